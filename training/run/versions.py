"""Versions of what decides a run's numbers."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping

ENGINES = {"native": (), "trlx": ("trlx",), "trl": ("trl", "accelerate", "datasets")}
"""Packages that an engine's numbers depend on, beside those that every run's do."""


def versions(engine: str, *, lora: bool = False) -> Mapping[str, str]:
    """Versions of what decides a run's numbers.

    Args:
        engine: the engine that ran.
        lora: whether an adapter was trained.
    """
    names = (
        "torch",
        "transformers",
        "tokenizers",
        "numpy",
        "rlhf-interp",
        *ENGINES[engine],
        *(("peft",) if lora else ()),
    )
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
