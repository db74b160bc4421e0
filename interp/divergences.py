"""How far two distributions lie apart: one definition of KL, JS and entropy, for measures and for training alike."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

KINDS = ("kl", "js", "entropy of base", "entropy of tuned")

_BLOCK = 2**19
"""Numbers in a block of rows: its arrays stay in the processor's cache, which is what makes `divergences` fast."""


def kl_divergence(tuned: Float[Tensor, "*batch vocab"], base: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch"]:
    """KL(tuned || base) = sum_v p_tuned(v) log(p_tuned(v) / p_base(v)), exact over the vocabulary.

    Args:
        tuned: logits of the tuned model; half precision is read as float32.
        base: logits of the base model on the same tokens.

    Returns:
        Nats, summed in float64; not below 0, where rounding would put it; infinite where base rules out what tuned
        does not.
    """
    return kl_of_log_probs(log_probs(tuned), log_probs(base))


def log_probs(logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch vocab"]:
    """Log-softmax of logits; half precision is read as float32."""
    return logits.log_softmax(-1, dtype=_precision(logits))


def kl_of_log_probs(
    log_p: Float[Tensor, "*batch outcome"], log_q: Float[Tensor, "*batch outcome"]
) -> Float[Tensor, "*batch"]:
    """KL(p || q) out of normalised log-probabilities (see `kl_divergence`)."""
    return _mean_under(log_p.exp(), log_p - log_q).clamp_min(0)


def entropy(p: Float[Tensor, "*batch outcome"]) -> Float[Tensor, "*batch"]:
    """Entropy -sum p log p of distributions, in nats; from 0 (certain) to log of the number of outcomes (uniform)."""
    return torch.special.entr(p).sum(-1, dtype=torch.float64).clamp_min(0)


def entropy_of_log_probs(log_p: Float[Tensor, "*batch outcome"]) -> Float[Tensor, "*batch"]:
    """The same out of normalised log-probabilities, where no logarithm is left to take."""
    return _mean_under(log_p.exp(), log_p).neg().clamp_min(0)


def js_divergence(p: Float[Tensor, "*batch outcome"], q: Float[Tensor, "*batch outcome"]) -> Float[Tensor, "*batch"]:
    """Jensen-Shannon divergence of two distributions, in nats; from 0 (equal) to log 2 (disjoint) (Lin 1991, eq. 3.3).

    JS = 1/2 sum p log(p / m) + 1/2 sum q log(q / m) with m = (p + q) / 2. With d = (p - q) / (p + q), p / m is 1 + d
    and q / m is 1 - d, which is exact where p equals q.

    Args:
        p: probabilities over the last dim.
        q: probabilities of the same shape.
    """
    d = (p - q) / (p + q).clamp_min(torch.finfo(p.dtype).tiny)
    # Where one of the two is 0 its logarithm is minus infinity; held finite, 0 times it is the 0 that is meant.
    terms = p * d.log1p().clamp_min(-100) + q * d.neg().log1p().clamp_min(-100)
    return 0.5 * terms.sum(-1, dtype=torch.float64).clamp_min(0)


def divergences(
    tuned: Float[Tensor, "*batch vocab"],
    base: Float[Tensor, "*batch vocab"],
    where: Bool[Tensor, "*batch"],
    *,
    targets: Int[Tensor, " row"] | None = None,
    kept: dict[Any, Any] | None = None,
) -> Float[Tensor, "kind row"]:
    """What `KINDS` names, in nats, of those rows of logits that are wanted, a few rows at a time.

    Each is what its own function gives; here the distributions are normalised once for all four.

    Args:
        tuned: logits of the tuned model.
        base: logits of the base model on the same tokens.
        where: True at the rows wanted.
        targets: a token for each row wanted; base's and tuned's log-probability of it are two more kinds.
        kept: what base's rows gave in an earlier call with the same `base` and `where` (and device), which is taken
            from here and put here.

    Returns:
        A row for each True, in their order, on the CPU.
    """
    t_rows, b_rows = tuned.flatten(0, -2), base.flatten(0, -2)
    blocks, size = [], max(1, _BLOCK // tuned.shape[-1])
    for number, index in enumerate(where.flatten().cpu().nonzero()[:, 0].split(size)):
        first, last = int(index[0]), int(index[-1])
        rows = slice(first, last + 1) if last - first < len(index) else index  # a slice of rows needs no copy
        log_p = log_probs(t_rows[rows])
        p, known = log_p.exp(), None if kept is None else kept.get(("divergences", first))
        if known is None:
            log_q = log_probs(b_rows[rows].to(tuned.device))
            known = log_q, (q := log_q.exp()), _mean_under(q, log_q).neg()
            if kept is not None:
                kept["divergences", first] = known
        log_q, q, of_base = known
        kl = _mean_under(p, log_p - log_q)
        js = js_divergence(p, q)
        entropies = (of_base, _mean_under(p, log_p).neg())
        found = torch.stack([kl, js, *entropies]).clamp_min(0)
        if targets is not None:
            said = targets[number * size :][: len(index), None].to(tuned.device)
            found = torch.cat([found, torch.stack([log.gather(1, said)[:, 0] for log in (log_q, log_p)])])
        blocks.append(found.cpu())
    return torch.cat(blocks, dim=1)


def _mean_under(p: Float[Tensor, "*batch outcome"], values: Float[Tensor, "*batch outcome"]) -> Float[Tensor, "*batch"]:
    """Sum of p * values, in float64; an outcome of probability 0 counts nothing, whatever its value."""
    terms = p * values
    total = terms.sum(-1, dtype=torch.float64)
    if bool(total.isnan().any()):  # 0 times an infinity somewhere; rare, and dear to look for in every number
        total = terms.masked_fill(p == 0, 0).sum(-1, dtype=torch.float64)
    return total


def _precision(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)
