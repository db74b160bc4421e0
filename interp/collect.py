"""Putting batches of results together: each value is written once into an array that holds all prompts."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import xarray as xr

from interp.measures.arrays import as_variable

SINGLE = frozenset({"head", "pos", "rank", "site"})
"""Tables over these dims are kept in float32, as activations are: they are nearly all of a result's memory."""


class Collector:
    """One Dataset out of batches, whose first dim is `prompt`.

    Arrays for all prompts are made when a variable first comes, so that nothing is copied again at the end. Where a
    later batch is longer on another dim, the array grows; what a batch does not reach is NaN, or an empty string.

    Args:
        prompts: number of prompts.
    """

    def __init__(self, prompts: int) -> None:
        self._prompts = prompts
        self._values: dict[Hashable, np.ndarray] = {}
        self._described: dict[Hashable, tuple[tuple[Hashable, ...], dict[Any, Any]]] = {}
        self._coords: dict[Hashable, xr.DataArray] = {}
        self._strings: dict[str, int] = {"": 0}
        self._texts: set[Hashable] = set()

    def add(self, first: int, data: xr.Dataset) -> None:
        """Write the variables of a batch whose first prompt is `first`."""
        for name, label in data.coords.items():
            if name != "prompt" and (name not in self._coords or label.size > self._coords[name].size):
                self._coords[name] = label
        for name, array in data.data_vars.items():
            values = np.asarray(array.values)
            if array.dims[0] != "prompt":
                raise ValueError(f"{name} has the dims {array.dims}; the first dim of a measure is prompt")
            self._described.setdefault(name, (array.dims, dict(array.attrs)))
            if values.dtype == object:
                self._texts.add(name)
                values = self._numbered(values)
            if values.dtype == np.float64 and not SINGLE.isdisjoint(map(str, array.dims)):
                values = values.astype(np.float32)
            held = self._room(name, values)
            held[(slice(first, first + len(values)), *map(slice, values.shape[1:]))] = values

    def _numbered(self, texts: np.ndarray) -> np.ndarray:
        """Strings by their number in the order in which they first came, which takes half the room of an object."""
        known = self._strings
        numbers = [known.setdefault(text, len(known)) for text in texts.ravel()]
        return np.array(numbers, dtype=np.int32).reshape(texts.shape)

    def _room(self, name: Hashable, values: np.ndarray) -> np.ndarray:
        """The array of a variable, large enough for `values`."""
        held = self._values.get(name)
        inner = values.shape[1:]
        if held is None:
            held = np.full((self._prompts, *inner), *self._filling(name, values.dtype))
        elif any(size > there for size, there in zip(inner, held.shape[1:], strict=True)):
            larger = np.full((self._prompts, *map(max, inner, held.shape[1:])), *self._filling(name, held.dtype))
            larger[tuple(map(slice, held.shape))] = held
            held = larger
        self._values[name] = held
        return held

    def _filling(self, name: Hashable, dtype: np.dtype) -> tuple[Any, np.dtype]:
        """What stands where no batch wrote, and a dtype that can hold it beside values of `dtype`."""
        if name in self._texts:
            return self._strings[""], dtype
        return np.nan, dtype if np.issubdtype(dtype, np.floating) else np.dtype(np.float64)

    def dataset(self) -> xr.Dataset:
        """Everything that was added; to be called once, as it gives its arrays away."""
        texts = np.array(list(self._strings), dtype=object)
        variables = {}
        for name, (dims, attrs) in self._described.items():
            values = self._values.pop(name)
            variables[name] = as_variable(dims, texts[values] if name in self._texts else values, attrs)
        return xr.Dataset(variables, coords=self._coords)
