"""Making pairs: a base model, a reward and some prompts go in, a `CheckpointPair` comes out.

from training import RLHFConfig, train
pair = train(RLHFConfig.load("stories3M_positive"), "runs/positive")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.lazy import lazy

if TYPE_CHECKING:
    from training.config import RewardModelConfig, RLHFConfig
    from training.config.trlx import from_trlx, to_trlx
    from training.reward_models import train_reward
    from training.run import check, train

__all__ = ["RLHFConfig", "RewardModelConfig", "check", "from_trlx", "to_trlx", "train", "train_reward"]

_HOMES = {
    "RLHFConfig": "training.config",
    "RewardModelConfig": "training.config",
    "check": "training.run",
    "from_trlx": "training.config.trlx",
    "to_trlx": "training.config.trlx",
    "train": "training.run",
    "train_reward": "training.reward_models",
}


if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__, _HOMES)
