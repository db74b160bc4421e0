"""GRPO, RLOO and DPO by TRL, for causal language models."""

from training.trl.engine import tune

__all__ = ["tune"]
