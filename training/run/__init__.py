"""A run: from a config to a CheckpointPair, whole or resumable."""

from training.run.check import check
from training.run.pair import build, train

__all__ = ["build", "check", "train"]
