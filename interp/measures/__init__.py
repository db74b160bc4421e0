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
from interp.measures.lens import lens, lens_base_head, lens_positions, lens_sites
from interp.measures.logits import kl, logit_diff, next_token
from interp.measures.neurons import most_changed, neuron_sites, neurons
from interp.measures.residual import residual
from interp.models import Policy, Trace

__all__ = [
    "DEFAULT_MEASURES",
    "MEASURES",
    "REWARD_MEASURES",
    "TRACE_MEASURES",
    "TRAINING_MEASURES",
    "TraceMeasure",
    "as_names",
    "check_measures",
]


def _no_sites(_: Policy) -> list[Site]:
    return []


@dataclass(frozen=True)
class TraceMeasure:
    """A measure of two traces.

    Attributes:
        function: from (base, tuned) to a Dataset.
        sites: the sites that must be captured for it.
        finish: from the Dataset of all prompts to what is kept of it, where a choice needs all prompts.
    """

    function: Callable[[Trace, Trace], xr.Dataset]
    sites: Callable[[Policy], list[Site]] = _no_sites
    finish: Callable[[xr.Dataset], xr.Dataset] | None = None


TRACE_MEASURES: dict[str, TraceMeasure] = {
    "next_token": TraceMeasure(next_token),
    "logit_diff": TraceMeasure(logit_diff),
    "kl": TraceMeasure(kl),
    "lens": TraceMeasure(lens, lens_sites),
    "lens_base_head": TraceMeasure(lens_base_head, lens_sites),
    "lens_positions": TraceMeasure(lens_positions, lens_sites),
    "residual": TraceMeasure(residual, lens_sites),
    "attribution": TraceMeasure(attribution, attribution_sites),
    "neurons": TraceMeasure(neurons, neuron_sites, most_changed),
    "attention": TraceMeasure(attention, attention_sites),
}

REWARD_MEASURES: tuple[str, ...] = ("implicit_reward", "token_join")
"""Measures that join a reward model to what the models sampled."""

TRAINING_MEASURES: tuple[str, ...] = ("over_optimisation", "probes")
"""Measures of a pair's checkpoints and its reward."""

MEASURES: tuple[str, ...] = (*TRACE_MEASURES, "weights", "completions", *REWARD_MEASURES, *TRAINING_MEASURES)
"""Every measure that `compare` knows, in the order of the report."""

DEFAULT_MEASURES: tuple[str, ...] = ("next_token", "logit_diff", "kl", "lens", "residual", "attribution", "attention")
"""What `compare` takes unless told otherwise; the others are asked for by name, all of them by "all"."""


def as_names(names: Iterable[str] | None) -> tuple[str, ...]:
    """The measures that were asked for by name."""
    return () if names is None else (names,) if isinstance(names, str) else tuple(names)


def check_measures(
    names: Iterable[str] | None, *, with_reward: bool = False, with_checkpoints: bool = False
) -> tuple[str, ...]:
    """The measures to take, in the report's order.

    Args:
        names: a name or several; "all" is `MEASURES`, those of a reward or of checkpoints only where there are any;
            None `DEFAULT_MEASURES`.
        with_reward: there is a reward, so that the default holds the completions that it scores, and what joins it to
            them.
        with_checkpoints: the reward is that of a pair that kept checkpoints.

    Raises:
        MeasureError: one is unknown, needs a reward or checkpoints that are not there, or none is named.
    """
    asked = as_names(names)
    for name in asked:
        if name not in (*MEASURES, "all"):
            raise MeasureError(f"unknown measure {name!r}; choose among {', '.join(MEASURES)}, or all")
        if name in REWARD_MEASURES and not with_reward:
            raise MeasureError(f"{name} joins a reward to the models; pass reward= (--reward), a RewardModel or a pair")
        if name in TRAINING_MEASURES and not with_checkpoints:
            raise MeasureError(
                f"{name} needs checkpoints; pass as reward= (--reward) a pair that was trained with"
                " train.checkpoint_interval"
            )
    if names is None:
        asked = (*DEFAULT_MEASURES, "completions", *REWARD_MEASURES) if with_reward else DEFAULT_MEASURES
    if not asked:
        raise MeasureError(
            f"no measure is named; choose among {', '.join(MEASURES)}, or leave measures out for the default"
        )
    absent = (() if with_reward else REWARD_MEASURES) + (() if with_checkpoints else TRAINING_MEASURES)
    if "all" in asked:
        return tuple(name for name in MEASURES if name not in absent)
    if not set(asked).isdisjoint((*REWARD_MEASURES, *TRAINING_MEASURES)):
        asked = (*asked, "completions")
    return tuple(name for name in MEASURES if name in asked)
