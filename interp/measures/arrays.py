"""Making labelled arrays out of tensors, in the glossary's dims."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.families.parts import StackName
from interp.prompts import Batch, token_text

MODELS = ("base", "tuned")
ANSWERS = ("answer", "alternative")

PREFIXES: dict[StackName | None, str] = {None: "", "encoder": "encoder_", "cross": "cross_"}
"""What the variables of an encoder-decoder's encoder, and of its attention to it, begin with."""

Variable = tuple[Sequence[str], Any, dict[str, str]]


def variable(dims: str, values: Any, long_name: str, units: str = "") -> Variable:
    """A data variable: dims separated by spaces, values, what they are, and their units."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    return dims.split(), values, {"long_name": long_name, "units": units}


def strings(values: Any) -> np.ndarray:
    """An array of Python strings, which netCDF keeps at any length; it has no NUL, whose picture stands for it."""
    array = np.array(values, dtype=object)
    clean = [str(text).replace("\0", "\N{SYMBOL FOR NULL}") for text in array.ravel()]
    return np.array(clean, dtype=object).reshape(array.shape)


def dataset(variables: Mapping[str, Variable], **coords: Any) -> xr.Dataset:
    """A Dataset with `model` and `answer` labelled where they occur, and `coords`."""
    used = {dim for dims, _, _ in variables.values() for dim in dims}
    known: dict[str, Any] = {"model": list(MODELS), "answer": list(ANSWERS)}
    labels = {dim: label for dim, label in {**known, **coords}.items() if dim in used}
    return xr.Dataset({name: as_variable(*each) for name, each in variables.items()}, coords=labels)


def as_variable(dims: Sequence[Hashable], values: Any, attrs: Mapping[Any, Any]) -> xr.Variable:
    """A variable of xarray that holds the very strings it is given.

    Otherwise xarray asks pandas what they are, which makes a new object of each, and a token that stands in a thousand
    places takes the memory of a thousand.
    """
    strings_given = isinstance(values, np.ndarray) and values.dtype == object
    return xr.Variable(tuple(dims), values, dict(attrs), fastpath=strings_given)


class TokenTexts:
    """Token ids as a person reads them; each id is decoded once.

    Args:
        tokenizer: a tokenizer of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def __getitem__(self, token_id: int) -> str:
        if token_id not in self._known:
            self._known[token_id] = sys.intern(token_text(self._tokenizer, token_id))
        return self._known[token_id]

    def of(self, ids: Int[Tensor, ...]) -> np.ndarray:
        """An array of texts in the shape of `ids`; a negative id is no token, and empty."""
        flat = [self[i] if i >= 0 else "" for i in ids.flatten().tolist()]
        return strings(flat).reshape(tuple(ids.shape))


def stack_models(base: Tensor, tuned: Tensor) -> Tensor:
    """Put base and tuned side by side on a new second dim, `model`."""
    return torch.stack([base.cpu(), tuned.cpu()], dim=1)


def prompt_columns(batch: Batch) -> Bool[Tensor, "batch seq"]:
    """True at the columns of prompt tokens, False at padding and response."""
    columns = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
    return (columns >= batch.first[:, None]) & (columns <= batch.last_prompt[:, None])


def mean_over(
    inside: Bool[Tensor, "batch seq"], values: Float[Tensor, "batch *part seq"]
) -> Float[Tensor, " batch *part"]:
    """Mean over the columns of `inside`, whatever stands in the others; float64, on the CPU."""
    mask = inside.to(values.device).reshape(len(inside), *[1] * (values.ndim - 2), -1)
    return (values.masked_fill(~mask, 0).sum(-1, dtype=torch.float64) / mask.sum(-1)).cpu()
