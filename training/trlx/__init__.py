"""PPO by an installed trlX, driven from outside."""

from typing import TYPE_CHECKING

from interp.lazy import submodules
from training.trlx.engine import tune

__all__ = ["tune"]

if not TYPE_CHECKING:
    __getattr__ = submodules(__name__)
