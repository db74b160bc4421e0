"""Measures of what changed from a base model to its tuned version; each is one `Measure`, in one file.

A measure that reads activations maps (Trace base, Trace tuned) to an `xarray.Dataset` whose first dim is `prompt`, so
that batches concatenate; one that needs weights, samples, checkpoints or a reward maps a `Context` to a Dataset.
Differences are tuned minus base; KL is KL(tuned || base) in nats. `register_measure` adds one.
"""

from __future__ import annotations

from typing import Any

from interp.lazy import submodule
from interp.measures import registry
from interp.measures.arrays import dataset, stack_models, variable
from interp.measures.findings import Table, difference, of_model
from interp.measures.measure import Context, Measure, Needs, Section, Settings
from interp.measures.registry import as_names, check_measures, measures, register_measure, unregister_measure

__all__ = [
    "DEFAULT_MEASURES",
    "MEASURES",
    "Context",
    "Measure",
    "Needs",
    "Section",
    "Settings",
    "Table",
    "as_names",
    "check_measures",
    "dataset",
    "difference",
    "measures",
    "of_model",
    "register_measure",
    "stack_models",
    "unregister_measure",
    "variable",
]

MEASURES: tuple[str, ...]
"""Every measure that `compare` knows, in the order of the report."""

DEFAULT_MEASURES: tuple[str, ...]
"""What `compare` takes unless told otherwise; the others are asked for by name, all of them by "all"."""


def __getattr__(name: str) -> Any:
    if name in ("MEASURES", "DEFAULT_MEASURES"):
        return getattr(registry, name)
    return submodule(__name__, name)
