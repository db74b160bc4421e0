"""Classes of tokens between which attention moves: the first one, punctuation, content, the answer's antecedents."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.measures.arrays import TokenTexts
from interp.prompts import Batch

TOKEN_CLASSES = ("bos", "punctuation", "content", "antecedent")


def is_punctuation(text: str) -> bool:
    """Whether a token has no letter and no digit; white space counts."""
    return not any(character.isalnum() for character in text)


def token_classes(
    batch: Batch, targets: Int[Tensor, "batch 2"], texts: TokenTexts
) -> Float[Tensor, "batch key token_class"]:
    """The class of each column of a batch, one-hot in the order of `TOKEN_CLASSES`.

    bos: the row's first token, which heads use as a sink (a BOS token, or without one the first of the text);
    antecedent: a later one, before the last prompt token, that is the token of the answer or of the alternative;
    punctuation: no letter and no digit; content: all others. Each column has one class, the first that fits.

    Args:
        batch: the tokens.
        targets: ids of the answer and of the alternative.
        texts: texts of the tokens.
    """
    ids = batch.input_ids
    columns = torch.arange(ids.shape[1], device=ids.device)
    used, index = ids.unique(return_inverse=True)
    marks = torch.tensor([is_punctuation(texts[i]) for i in used.tolist()], device=ids.device)
    found = torch.where(marks[index], TOKEN_CLASSES.index("punctuation"), TOKEN_CLASSES.index("content"))
    named = (ids[:, :, None] == targets.to(ids.device)[:, None]).any(-1) & (columns < batch.last_prompt[:, None])
    found[named] = TOKEN_CLASSES.index("antecedent")
    found[columns == batch.first[:, None]] = TOKEN_CLASSES.index("bos")
    return torch.nn.functional.one_hot(found, len(TOKEN_CLASSES)).float()


def shares(
    attention: Float[Tensor, "batch head key"], classes: Float[Tensor, "batch key token_class"]
) -> Float[Tensor, "batch head token_class"]:
    """Share of the attention that goes to each class; the shares sum to 1, float64."""
    by_class = torch.einsum("bhk,bkc->bhc", attention.double(), classes.to(attention.device).double())
    return by_class / by_class.sum(-1, keepdim=True)
