"""Versions of what decides a run's numbers."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping


def versions() -> Mapping[str, str]:
    """Versions of what decides a run's numbers."""
    names = ("torch", "transformers", "tokenizers", "numpy", "rlhf-interp")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
