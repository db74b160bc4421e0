"""Mechanistic interpretability of what RLHF changed.

`compare(base, tuned, prompts)` takes two checkpoints and some prompts and returns a `Comparison`. Names are imported
when they are first used, so that `import interp` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.comparing import compare, compare_many
    from interp.comparison import Comparison
    from interp.errors import InterpError
    from interp.families import register_family
    from interp.hooks import Site
    from interp.measures import DEFAULT_MEASURES, MEASURES
    from interp.models import Policy, RewardModel
    from interp.pair import CheckpointPair
    from interp.prompts import Prompts

__version__ = "0.1.0"

_HOMES = {
    "CheckpointPair": "interp.pair",
    "Comparison": "interp.comparison",
    "DEFAULT_MEASURES": "interp.measures",
    "InterpError": "interp.errors",
    "MEASURES": "interp.measures",
    "Policy": "interp.models",
    "Prompts": "interp.prompts",
    "RewardModel": "interp.models",
    "Site": "interp.hooks",
    "compare": "interp.comparing",
    "compare_many": "interp.comparing",
    "register_family": "interp.families",
}
_MODULES = ("circuits", "families", "patching", "plot", "report", "reward")

__all__ = [
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
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
