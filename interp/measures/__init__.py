"""Measures: pure functions of two traces, or of two models, each of which gives labelled arrays.

A trace measure maps (Trace base, Trace tuned) to an `xarray.Dataset` whose first dim is `prompt`, so that batches
concatenate. Differences are tuned minus base; KL is KL(tuned || base) in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import xarray as xr

from interp.errors import MeasureError
from interp.hooks import Site
from interp.measures.attention import attention, attention_sites
from interp.measures.attribution import attribution, attribution_sites
from interp.measures.lens import lens, lens_sites
from interp.measures.logits import kl, logit_diff, next_token
from interp.models import Policy, Trace

__all__ = ["MEASURES", "TRACE_MEASURES", "TraceMeasure", "check_measures"]


def _no_sites(_: Policy) -> list[Site]:
    return []


@dataclass(frozen=True)
class TraceMeasure:
    """A measure of two traces.

    Attributes:
        function: from (base, tuned) to a Dataset.
        sites: the sites that must be captured for it.
    """

    function: Callable[[Trace, Trace], xr.Dataset]
    sites: Callable[[Policy], list[Site]] = _no_sites


TRACE_MEASURES: dict[str, TraceMeasure] = {
    "next_token": TraceMeasure(next_token),
    "logit_diff": TraceMeasure(logit_diff),
    "kl": TraceMeasure(kl),
    "lens": TraceMeasure(lens, lens_sites),
    "attribution": TraceMeasure(attribution, attribution_sites),
    "attention": TraceMeasure(attention, attention_sites),
}

MEASURES: tuple[str, ...] = (*TRACE_MEASURES, "weights", "completions")
"""Every measure that `compare` knows, in the order of the report."""


def check_measures(names: Iterable[str] | None) -> tuple[str, ...]:
    """The measures to take, in the report's order; None is all of them.

    Raises:
        MeasureError: one is unknown, or none is named.
    """
    if names is None:
        return MEASURES
    asked = [names] if isinstance(names, str) else list(names)
    for name in asked:
        if name not in MEASURES:
            raise MeasureError(f"unknown measure {name!r}; choose among {', '.join(MEASURES)}")
    if not asked:
        raise MeasureError(f"no measure is named; choose among {', '.join(MEASURES)}, or leave measures out for all")
    return tuple(name for name in MEASURES if name in asked)
