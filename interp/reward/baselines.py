"""What an attribution is measured from: the embeddings that stand for a text that says nothing.

A baseline replaces the embeddings of the text's own tokens and leaves everything else as it is: the ids that the model
sees, its attention mask, its position ids, and the tokens that the tokenizer adds ([CLS], an end token).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import MeasureError
from interp.models import RewardModel
from interp.prompts import Batch
from interp.reward.texts import Texts

Baseline = Literal["mean", "zero", "mask", "unk"]
BASELINES: tuple[str, ...] = get_args(Baseline)

WORDS = {
    "mean": "the mean of all tokens' embeddings",
    "zero": "a zero embedding",
    "mask": "the mask token",
    "unk": "the unknown token",
    "delete": "the token deleted",
}
"""What each baseline puts in a token's place."""

_CHUNK = 8192  # tokens embedded at once for their mean


def baseline_vector(model: RewardModel, baseline: str) -> Float[Tensor, " d_embed"]:
    """The embedding that takes a token's place.

    Raises:
        MeasureError: there is no such baseline, or the tokenizer has no such token.
    """
    if baseline not in BASELINES:
        raise MeasureError(f"there is no baseline {baseline!r}; take one of {', '.join(BASELINES)}")
    embed = model.parts.embed
    size = next(embed.parameters()).shape[0]
    with torch.no_grad():
        if baseline == "zero":
            return torch.zeros_like(embed(torch.zeros(1, dtype=torch.long, device=model.device))[0])
        if baseline == "mean":
            ids = torch.arange(size, device=model.device)
            total = sum(embed(part).double().sum(0) for part in ids.split(_CHUNK))
            assert isinstance(total, Tensor)
            return (total / size).to(next(embed.parameters()).dtype)
        token = getattr(model.tokenizer, f"{baseline}_token_id", None)
        if token is None or not 0 <= int(token) < size:
            raise MeasureError(f'the tokenizer has no {baseline} token; take baseline="mean" or "zero"')
        found: Tensor = embed(torch.tensor([int(token)], device=model.device))[0]
        return found


def own_tokens(texts: Texts, rows: list[int], batch: Batch) -> Bool[Tensor, "batch seq"]:
    """True at tokens of the texts themselves: neither padding nor added by the tokenizer."""
    own = batch.attention_mask.clone()
    for index, row in enumerate(rows):
        own[index, : len(texts.special[row])] &= ~torch.tensor(texts.special[row], device=own.device)
    return own


def at_baseline(
    embedded: Float[Tensor, "batch seq d_embed"], own: Bool[Tensor, "batch seq"], vector: Float[Tensor, " d_embed"]
) -> Float[Tensor, "batch seq d_embed"]:
    """The embeddings with every token of the text at the baseline."""
    return torch.where(own[..., None], vector, embedded)
