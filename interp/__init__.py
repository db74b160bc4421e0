"""Mechanistic interpretability of what RLHF changed.

`compare(base, tuned, prompts)` takes two checkpoints and some prompts and returns a result that prints, draws, saves
and reports itself. Names are imported when they are first used, so that `import interp` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from interp import circuits, families, patching, plot, report, reward
    from interp.comparison import Comparison, compare, compare_many
    from interp.errors import InterpError
    from interp.families import register_family
    from interp.hooks import Site
    from interp.measures import DEFAULT_MEASURES, MEASURES, Measure, register_measure
    from interp.models import Policy, RewardModel, load, load_pair, load_reward
    from interp.pair import CheckpointPair
    from interp.prompts import Prompts
    from interp.result import Result, load_result
    from interp.sampling import Sampling

__version__ = "0.1.0"

_HOMES = {
    "CheckpointPair": "interp.pair",
    "Comparison": "interp.comparison",
    "DEFAULT_MEASURES": "interp.measures",
    "InterpError": "interp.errors",
    "MEASURES": "interp.measures",
    "Measure": "interp.measures",
    "Policy": "interp.models",
    "Prompts": "interp.prompts",
    "Result": "interp.result",
    "RewardModel": "interp.models",
    "Sampling": "interp.sampling",
    "Site": "interp.hooks",
    "circuits": "",
    "compare": "interp.comparison",
    "compare_many": "interp.comparison",
    "families": "",
    "load": "interp.models",
    "load_pair": "interp.models",
    "load_result": "interp.result",
    "load_reward": "interp.models",
    "patching": "",
    "plot": "",
    "register_family": "interp.families",
    "register_measure": "interp.measures",
    "report": "",
    "reward": "",
}
"""Where each public name lives; "" for what is a module of this package."""

__all__ = [
    "DEFAULT_MEASURES",
    "MEASURES",
    "CheckpointPair",
    "Comparison",
    "InterpError",
    "Measure",
    "Policy",
    "Prompts",
    "Result",
    "RewardModel",
    "Sampling",
    "Site",
    "circuits",
    "compare",
    "compare_many",
    "families",
    "load",
    "load_pair",
    "load_result",
    "load_reward",
    "patching",
    "plot",
    "register_family",
    "register_measure",
    "report",
    "reward",
]


if not TYPE_CHECKING:  # to a type checker, names are what the imports above say

    def __getattr__(name):
        if name not in _HOMES:
            raise AttributeError(f"module 'interp' has no attribute {name!r}; dir(interp) lists its names")
        home = _HOMES[name]
        value = getattr(import_module(home), name) if home else import_module(f"interp.{name}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return list(__all__)
