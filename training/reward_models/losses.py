"""The losses of reward models, and the noise on what they read."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def cross_entropy(logits: Float[Tensor, "text label"], targets: Float[Tensor, "text label"]) -> Float[Tensor, ""]:
    """Mean over texts of -log softmax(logits) at the one label of each, in nats."""
    return nn.functional.cross_entropy(logits.float(), targets.argmax(dim=-1))


def binary_cross_entropy(
    logits: Float[Tensor, "text label"], targets: Float[Tensor, "text label"]
) -> Float[Tensor, ""]:
    """Mean over texts and labels of -y log s(x) - (1 - y) log(1 - s(x)), s the logistic function, in nats."""
    return nn.functional.binary_cross_entropy_with_logits(logits.float(), targets)


def bradley_terry(chosen: Float[Tensor, " pair"], rejected: Float[Tensor, " pair"]) -> Float[Tensor, ""]:
    """Mean over pairs of -log s(r_chosen - r_rejected), in nats.

    The negative log-likelihood of the choices under Bradley and Terry (1952), with rewards as the log-odds: Stiennon et
    al. 2020 (arXiv:2009.01325), equation 1.
    """
    return -nn.functional.logsigmoid(chosen.float() - rejected.float()).mean()


def drop_words(
    ids: Int[Tensor, "text pos"], share: float, substitute: int, keep: Int[Tensor, " special"]
) -> Int[Tensor, "text pos"]:
    """Replace a random share of the tokens by `substitute`; those in `keep` stay."""
    if not share:
        return ids
    hit = (torch.rand(ids.shape) < share) & ~torch.isin(ids, keep)
    return torch.where(hit, substitute, ids)
