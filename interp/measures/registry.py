"""Every measure there is: the one list from which names, help, summary, figures and report take what they show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module

from interp.errors import MeasureError
from interp.measures.measure import Measure

_BUILT_IN = (
    "interp.measures.logit_diff:LOGIT_DIFF",
    "interp.measures.next_token:NEXT_TOKEN",
    "interp.measures.mass_outside:MASS_OUTSIDE",
    "interp.measures.kl:KL",
    "interp.measures.lens:LENS",
    "interp.measures.lens_base_head:LENS_BASE_HEAD",
    "interp.measures.lens_positions:LENS_POSITIONS",
    "interp.measures.residual:RESIDUAL",
    "interp.measures.attribution:ATTRIBUTION",
    "interp.measures.neurons:NEURONS",
    "interp.measures.attention:ATTENTION",
    "interp.measures.weights:WEIGHTS",
    "interp.measures.completions:COMPLETIONS",
    "interp.reward.measures:IMPLICIT_REWARD",
    "interp.reward.measures:TOKEN_JOIN",
    "interp.reward.measures:OVER_OPTIMISATION",
    "interp.reward.measures:PROBES",
)
"""The library's own measures in the order of the summary and the report, each by its module and its name there.

Those of a reward lie in a room above this one, so they are named here and imported when the list is first asked for.
"""

_ADDED: dict[str, Measure] = {}


@cache
def _own() -> dict[str, Measure]:
    places = (place.partition(":") for place in _BUILT_IN)
    found: list[Measure] = [getattr(import_module(module), attribute) for module, _, attribute in places]
    return {measure.name: measure for measure in found}


def measures() -> Mapping[str, Measure]:
    """Every measure by its name, in the order of summary and report."""
    return {**_own(), **_ADDED}


def register_measure(measure: Measure) -> None:
    """Add a measure to those that `compare` can take; summary, plots, report and help know it from then on.

    Args:
        measure: its name must be new.

    Raises:
        MeasureError: there is one of this name, or it computes nothing.
    """
    if measure.name in measures() or measure.name == "all":
        raise MeasureError(
            f"there is a measure {measure.name!r} already; choose another name, or unregister_measure it"
        )
    if measure.per_batch is None and measure.whole is None:
        raise MeasureError(f"the measure {measure.name!r} computes nothing; give it per_batch or whole")
    _ADDED[measure.name] = measure


def unregister_measure(name: str) -> Measure:
    """Take away a measure that `register_measure` added.

    Raises:
        MeasureError: it is not among those.
    """
    if name not in _ADDED:
        raise MeasureError(f"{name!r} was not added by register_measure, so it stays")
    return _ADDED.pop(name)


def names(*when: str) -> tuple[str, ...]:
    """Names of the measures that can be asked for, in order; with `when` those that are taken then."""
    asked = when or ("by default", "with a reward", "on request")
    return tuple(name for name, measure in measures().items() if measure.when in asked)


def as_names(wanted: Iterable[str] | None) -> tuple[str, ...]:
    """The measures that were asked for by name."""
    return () if wanted is None else (wanted,) if isinstance(wanted, str) else tuple(wanted)


def check_measures(
    wanted: Iterable[str] | None, *, with_reward: bool = False, with_checkpoints: bool = False
) -> tuple[str, ...]:
    """The measures to take, in the report's order, and with each those whose arrays it reads.

    Args:
        wanted: a name or several; "all" is `MEASURES`, those of a reward or of checkpoints only where there are any;
            None `DEFAULT_MEASURES`.
        with_reward: there is a reward, so that the default holds the completions that it scores, and what joins it to
            them.
        with_checkpoints: the reward is that of a pair that kept checkpoints.

    Raises:
        MeasureError: one is unknown, needs a reward or checkpoints that are not there, or none is named.
    """
    known, there = names(), measures()
    asked = as_names(wanted)
    for name in asked:
        if name not in (*known, "all"):
            raise MeasureError(f"unknown measure {name!r}; choose among {', '.join(known)}, or all")
        if name == "all":
            continue
        if there[name].needs.checkpoints and not with_checkpoints:
            raise MeasureError(
                f"{name} needs checkpoints; pass as reward= (--reward) a pair that was trained with"
                " train.checkpoint_interval"
            )
        if there[name].needs.reward and not with_reward:
            raise MeasureError(f"{name} joins a reward to the models; pass reward= (--reward), a RewardModel or a pair")
    if wanted is None:
        asked = names("by default", "with a reward") if with_reward else names("by default")
    if not asked:
        raise MeasureError(
            f"no measure is named; choose among {', '.join(known)}, or leave measures out for the default"
        )
    if "all" in asked:
        possible = (with_reward, with_checkpoints)
        asked = tuple(name for name in known if _can_be_taken(there[name], *possible))
    asked = (*asked, *(below for name in asked for below in there[name].needs.measures))
    return tuple(name for name in known if name in asked)


def _can_be_taken(measure: Measure, with_reward: bool, with_checkpoints: bool) -> bool:
    needs = measure.needs
    return (with_reward or not needs.reward) and (with_checkpoints or not needs.checkpoints)


def samples_needed(wanted: Iterable[str]) -> int:
    """Continuations of each prompt that the named measures need from each model, 1 at least."""
    return max([1, *(measures()[name].needs.samples for name in wanted)])


def __getattr__(name: str) -> tuple[str, ...]:
    if name == "MEASURES":
        return names()
    if name == "DEFAULT_MEASURES":
        return names("by default")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
