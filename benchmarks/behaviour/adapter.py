"""The calls that differ between version 1 and later versions, side by side; cases use the later names."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import interp

NEW = hasattr(interp, "load_result")

OLD_NAMES: dict[str, dict[str, str]] = {
    "compare": {"controls": "control", "samples": "draws"},
    "compare_many": {"controls": "control", "samples": "draws"},
    "circuits.compare": {"controls": "control", "random_circuits": "random"},
    "circuits.faithfulness_curve": {"random_circuits": "random"},
    "patching.activation_patching": {"draws": "random_sets"},
    "patching.ablation": {"draws": "random_sets"},
    "patching.reward_patching": {"draws": "random_sets"},
    "patching.smallest_set": {"draws": "random_sets"},
    "patching.steering": {"draws": "random_directions"},
    "reward.implicit_reward": {"draws": "permutations"},
    "reward.token_join": {"draws": "permutations"},
    "reward.probes": {"draws": "permutations"},
}
"""Arguments that version 1 called otherwise."""

OLD_HOMES = {"circuits.path_patching": "circuits.paths.path_patching"}

ALSO = {
    "random_circuits": ("draws", "random"),
    "draws": ("random_sets", "random_directions", "permutations"),
    "control": ("controls",),
}
"""What else an argument may be called in later versions, tried in this order where a function has no such argument."""


def policy(source: Any) -> Any:
    return interp.load(source) if NEW else interp.Policy.load(source)


def reward_model(source: Any, **options: Any) -> Any:
    return interp.load_reward(source, **options) if NEW else interp.RewardModel.load(source, **options)


def pair(folder: Path) -> Any:
    return interp.load_pair(folder) if NEW else interp.CheckpointPair.load(folder)


def call(name: str, *values: Any, **settings: Any) -> Any:
    """Call `interp.NAME` with settings under the later names."""
    if not NEW:
        names = OLD_NAMES.get(name, {})
        return function(OLD_HOMES.get(name, name))(*values, **{names.get(key, key): v for key, v in settings.items()})
    verb = function(name)
    return verb(*values, **_translated(verb, settings))


def function(name: str) -> Any:
    from importlib import import_module

    found: Any = interp
    path = "interp"
    for part in name.split("."):
        path += f".{part}"
        found = getattr(found, part) if hasattr(found, part) else import_module(path)
    return found


def _translated(verb: Any, settings: dict[str, Any]) -> dict[str, Any]:
    has = inspect.signature(verb).parameters
    given = dict(settings)
    if "sampling" in has:
        sampled = {key: given.pop(key) for key in ("samples", "max_new_tokens") if key in given}
        if sampled:
            given["sampling"] = interp.Sampling(**sampled)
    taken: dict[str, Any] = {}
    for key, value in given.items():
        others = [key, *ALSO.get(key, ())]
        free = [
            other for other in others if other in has and other not in taken and (other == key or other not in given)
        ]
        taken[free[0] if free else key] = value
    return taken


def joined(result: Any, name: str) -> Any:
    """A part of a comparison that version 1 gave as a property: `implicit_reward`, `token_join` ..."""
    found = getattr(result, name, None)
    return result.added[name] if found is None or callable(found) else found


def run_command(*words: str) -> None:
    """The command line: `interp train ...`."""
    import sys

    from interp.cli import main

    before, sys.argv = sys.argv, ["interp", *words]
    try:
        main()
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(f"interp {words[0]} ended with {stop.code}") from stop
    finally:
        sys.argv = before
