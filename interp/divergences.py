"""How far two distributions lie apart: the one definition of KL and of JS, for measures and for training alike."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def kl_divergence(tuned: Float[Tensor, "*batch vocab"], base: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch"]:
    """KL(tuned || base) = sum_v p_tuned(v) log(p_tuned(v) / p_base(v)), exact over the vocabulary.

    Args:
        tuned: logits of the tuned model; half precision is read as float32.
        base: logits of the base model on the same tokens.

    Returns:
        Nats, summed in float64; not below 0, where rounding would put it; infinite where base rules out what tuned
        does not.
    """
    log_p, log_q = (logits.log_softmax(-1, dtype=_precision(logits)) for logits in (tuned, base))
    p = log_p.exp()
    terms = torch.where(p > 0, p * (log_p - log_q), torch.zeros_like(p))
    return terms.sum(-1, dtype=torch.float64).clamp_min(0)


def js_divergence(p: Float[Tensor, "*batch outcome"], q: Float[Tensor, "*batch outcome"]) -> Float[Tensor, "*batch"]:
    """Jensen-Shannon divergence of two distributions, in nats; from 0 (equal) to log 2 (disjoint) (Lin 1991, eq. 3.3).

    JS = 1/2 sum p log(p / m) + 1/2 sum q log(q / m) with m = (p + q) / 2. With d = (p - q) / (p + q), p / m is 1 + d
    and q / m is 1 - d, which is exact where p equals q.

    Args:
        p: probabilities over the last dim.
        q: probabilities of the same shape.
    """
    total = p + q
    d = torch.where(total > 0, (p - q) / total.clamp_min(torch.finfo(total.dtype).tiny), torch.zeros_like(total))
    terms = torch.special.xlog1py(p, d) + torch.special.xlog1py(q, -d)
    return 0.5 * terms.sum(-1, dtype=torch.float64).clamp_min(0)


def _precision(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)
