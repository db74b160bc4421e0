"""Mechanistic interpretability of what RLHF changed.

`compare(base, tuned, prompts)` takes two checkpoints and some prompts and returns a `Comparison`. Names are imported
when they are first used, so that `import interp` costs nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.compare import Comparison, compare, compare_many
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
    "Comparison": "interp.compare",
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
    "compare": "interp.compare",
    "compare_many": "interp.compare",
    "load": "interp.models",
    "load_pair": "interp.models",
    "load_result": "interp.result",
    "load_reward": "interp.models",
    "register_family": "interp.families",
    "register_measure": "interp.measures",
}
_GROWING = ("DEFAULT_MEASURES", "MEASURES")  # register_measure adds to them
_MODULES = ("circuits", "families", "patching", "plot", "report", "reward")

__all__ = [
    "register_measure",
    "load_result",
    "load_reward",
    "load_pair",
    "load",
    "Sampling",
    "Result",
    "Measure",
    "DEFAULT_MEASURES",
    "MEASURES",
    "CheckpointPair",
    "Comparison",
    "InterpError",
    "Policy",
    "Prompts",
    "RewardModel",
    "Site",
    "circuits",
    "compare",
    "compare_many",
    "families",
    "patching",
    "plot",
    "register_family",
    "report",
    "reward",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name in _MODULES:
        value = import_module(f"interp.{name}")
    else:
        raise AttributeError(f"module 'interp' has no attribute {name!r}")
    if name not in _GROWING:
        globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """This package; importing the module `interp.compare` does not hide the function of that name."""

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value.compare if name == "compare" and isinstance(value, ModuleType) else value)


sys.modules[__name__].__class__ = _Package
