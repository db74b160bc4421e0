"""Joins among a comparison's arrays: each under a prefix of its own, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import xarray as xr

from interp.errors import MeasureError

PREFIX = {
    "implicit_reward": "implicit_",
    "token_join": "join_",
    "over_optimisation": "over_",
    "probes": "probes_",
}
"""How a join's arrays begin."""

_SHARED = {
    "implicit_reward": frozenset({"prompt", "source", "draw", "step", "permutation"}),
    "token_join": frozenset({"prompt", "permutation"}),
    "over_optimisation": frozenset({"prompt"}),
    "probes": frozenset[str](),
}
"""Dims that mean the same in the join and in the comparison; others get the prefix too."""

RECORD = "joins"
"""Attribute of a comparison that keeps what its joins say of themselves, as JSON by measure."""


def records(data: xr.Dataset) -> Mapping[str, Any]:
    """What the joins of a comparison say of themselves, by measure."""
    return dict(json.loads(data.attrs.get(RECORD, "{}")))


def flattened(data: xr.Dataset, measure: str, *, drop: frozenset[str] = frozenset()) -> xr.Dataset:
    """A join's arrays, named so that they can stand beside the comparison's.

    Args:
        data: the join's own dataset.
        measure: its name.
        drop: variables that the comparison has already.
    """
    own = data.drop_vars([name for name in (*drop, "group") if name in data.variables])
    names = [*map(str, own.data_vars), *(str(dim) for dim in own.dims if dim not in _SHARED[measure])]
    return own.rename({name: f"{PREFIX[measure]}{name}" for name in names})


def restored(data: xr.Dataset, measure: str) -> xr.Dataset:
    """A join's own dataset, out of the comparison's.

    Raises:
        MeasureError: the comparison has none; the message says why.
    """
    record, prefix = records(data), PREFIX[measure]
    if measure not in record:
        why = [each for each in str(data.attrs.get("remarks", "")).split("\n") if each.startswith(measure)]
        words = measure.replace("_", " ")
        raise MeasureError(why[0] if why else f"this comparison holds no {words}; compare with reward=")
    own = data[[str(name) for name in data.data_vars if str(name).startswith(prefix)]]
    own = own.drop_vars([name for name in own.coords if name not in (*own.dims, "group")])
    names = [str(name) for name in (*own.data_vars, *own.dims) if str(name).startswith(prefix)]
    own = own.rename({name: name.removeprefix(prefix) for name in names})
    own.attrs = dict(record[measure])
    return own
