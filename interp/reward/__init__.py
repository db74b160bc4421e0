"""Reading a reward model: where its score comes from, what it holds on to, and what follows from it in the policy.

Names are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "Attribution": "attribution",
    "Counterexamples": "counter",
    "DirectAttribution": "direct",
    "ImplicitReward": "implicit",
    "Lens": "layers",
    "OverOptimisation": "optimisation",
    "Probes": "probing",
    "Spurious": "holding",
    "TokenJoin": "tokens",
    "against_patching": "against",
    "attribute": "attributing",
    "counterexamples": "counter",
    "direct_attribution": "direct",
    "implicit_reward": "implicit",
    "lens": "layers",
    "over_optimisation": "optimisation",
    "probes": "probing",
    "rank_correlation": "attribution",
    "score_range": "attributing",
    "spurious": "holding",
    "token_join": "tokens",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'interp.reward' has no attribute {name!r}")
    value = getattr(import_module(f"interp.reward.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
