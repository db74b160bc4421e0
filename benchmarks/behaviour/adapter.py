"""The calls that differ between version 1 and later versions; cases use the later names."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import interp

NEW = hasattr(interp, "load_result")

HOMES = {
    "circuits.path_patching": ("circuits.path_patching", "circuits.paths.path_patching"),
    "circuits.Circuit": ("circuits.Circuit", "circuits.choice.Circuit"),
}
"""Where a function stands: the later place first, then that of version 1."""

ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "controls": ("control",),
    "draws": ("random_sets", "random_directions", "permutations"),
}
"""What version 1 called an argument, by its later name."""

OWN_ARGUMENTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "compare": {"samples": ("draws",)},
    "compare_many": {"samples": ("draws",)},
    "circuits.faithfulness_curve": {"draws": ("random",)},
}
"""The same, of single functions."""


def policy(source: Any) -> Any:
    return interp.load(source) if hasattr(interp, "load") else interp.Policy.load(source)


def reward_model(source: Any, **options: Any) -> Any:
    later = hasattr(interp, "load_reward")
    return interp.load_reward(source, **options) if later else interp.RewardModel.load(source, **options)


def pair(folder: Path) -> Any:
    return interp.load_pair(folder) if hasattr(interp, "load_pair") else interp.CheckpointPair.load(folder)


def function(name: str) -> Any:
    """What `interp.NAME` is, wherever it stands."""
    for place in HOMES.get(name, (name,)):
        home, _, last = f"interp.{place}".rpartition(".")
        try:
            return getattr(import_module(home), last)
        except (ImportError, AttributeError):
            continue
    raise AttributeError(f"interp has no {name}")


def call(name: str, *values: Any, **settings: Any) -> Any:
    """Call `interp.NAME` with settings under their later names."""
    verb = function(name)
    has = inspect.signature(verb).parameters
    given = dict(settings)
    if "sampling" in has:
        sampled = {key: given.pop(key) for key in ("samples", "max_new_tokens") if key in given}
        if sampled:
            given["sampling"] = _sampling(**sampled)
    others = {**ARGUMENTS, **OWN_ARGUMENTS.get(name, {})}
    # compare_many of version 1 hands options on, among them `control` and `draws`
    return verb(*values, **{_argument(key, others.get(key, ()), has): value for key, value in given.items()})


def _argument(key: str, others: tuple[str, ...], has: Mapping[str, Any]) -> str:
    if key in has:
        return key
    free = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in has.values())
    known = [other for other in others if other in has]
    return known[0] if known else others[0] if free and others else key


def _sampling(**settings: Any) -> Any:
    from interp.sampling import Sampling

    return Sampling(**settings)


def compare_circuits(*values: Any, steps: int, splits: int, draws: int, controls: Any, **settings: Any) -> Any:
    """`interp.circuits.compare`: how circuits are chosen is said by a `Selection` in later versions."""
    circuits = interp.circuits
    if hasattr(circuits, "Selection"):
        selection = circuits.Selection(steps=steps, splits=splits)
        return circuits.compare(*values, selection=selection, draws=draws, controls=controls, **settings)
    return circuits.compare(*values, steps=steps, draws=splits, random=draws, control=controls, **settings)


def joined(result: Any, name: str) -> Any:
    """A part of a comparison that version 1 gave as a property: `implicit_reward`, `token_join` ..."""
    found = getattr(result, name, None)
    return result.added[name] if found is None or callable(found) else found


def run_command(*words: str) -> None:
    """The command line: `interp train ...`."""
    from interp.cli import main

    before, sys.argv = sys.argv, ["interp", *words]
    try:
        main()
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(f"interp {words[0]} ended with {stop.code}") from stop
    finally:
        sys.argv = before
