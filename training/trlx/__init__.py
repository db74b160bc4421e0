"""PPO by an installed trlX, driven from outside."""

from training.trlx.engine import tune

__all__ = ["tune"]
