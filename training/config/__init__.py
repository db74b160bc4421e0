"""What decides a training run: `RLHFConfig`, its sections, and how they are read from TOML and checked."""

from typing import TYPE_CHECKING

from interp.lazy import submodules
from training.config.places import expand
from training.config.recipe import RLHFConfig
from training.config.reward_model import RewardModelConfig
from training.config.sections import (
    ALGORITHMS,
    ClassifierConfig,
    DPOConfig,
    GenerateConfig,
    GRPOConfig,
    LoraConfig,
    ModelConfig,
    NullsConfig,
    PPOConfig,
    PromptsConfig,
    RewardConfig,
    RLOOConfig,
    TermConfig,
    TrainConfig,
)

__all__ = [
    "ALGORITHMS",
    "ClassifierConfig",
    "DPOConfig",
    "GRPOConfig",
    "GenerateConfig",
    "LoraConfig",
    "ModelConfig",
    "NullsConfig",
    "PPOConfig",
    "PromptsConfig",
    "RLHFConfig",
    "RLOOConfig",
    "RewardConfig",
    "RewardModelConfig",
    "TermConfig",
    "TrainConfig",
    "expand",
]

if not TYPE_CHECKING:
    __getattr__ = submodules(__name__)
