"""RLHFConfig: everything that decides a training run, in frozen sections, as TOML on disk.

`training.config.places` says where its paths lead.
"""

from __future__ import annotations

import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.errors import ConfigError
from interp.io import write_text
from training.config.places import anchored
from training.config.schema import REQUIRED, check_unused, load_values, plain, read, setting, to_toml
from training.config.sections import (
    ALGORITHMS,
    DPOConfig,
    GenerateConfig,
    GRPOConfig,
    ModelConfig,
    NullsConfig,
    PPOConfig,
    PromptsConfig,
    RewardConfig,
    RLOOConfig,
    TrainConfig,
)


@dataclass(frozen=True)
class RLHFConfig:
    """One training run. `load` reads it from TOML, `save` writes it back; both check every key and range."""

    model: ModelConfig = setting(REQUIRED, "the model that is tuned")
    prompts: PromptsConfig = setting(PromptsConfig(), "where prompts come from")
    reward: RewardConfig = setting(RewardConfig(), "what is rewarded")
    generate: GenerateConfig = setting(GenerateConfig(), "how responses are sampled")
    train: TrainConfig = setting(TrainConfig(), "the run")
    nulls: NullsConfig = setting(NullsConfig(), "null runs and replicates beside the pair")
    ppo: PPOConfig | None = setting(None, "proximal policy optimisation")
    grpo: GRPOConfig | None = setting(None, "group relative policy optimisation")
    rloo: RLOOConfig | None = setting(None, "REINFORCE, leave one out")
    dpo: DPOConfig | None = setting(None, "direct preference optimisation")

    def __post_init__(self) -> None:
        """Check what concerns several keys."""
        check_unused(self, self.train.engine)
        self._check_algorithm()
        self._check_reward()
        if self.prompts.files and self.prompts.dataset is not None:
            raise ConfigError("prompts.files and prompts.dataset exclude each other; keep one")
        if self.ppo is not None and self.train.batch_size > self.ppo.num_rollouts:
            raise ConfigError(
                f"train.batch_size ({self.train.batch_size}) exceeds ppo.num_rollouts ({self.ppo.num_rollouts})"
            )
        if self.train.minibatch_size > self.train.batch_size:
            raise ConfigError(
                f"train.minibatch_size ({self.train.minibatch_size}) exceeds train.batch_size ({self.train.batch_size})"
            )
        if self.model.lora is not None and self.model.num_layers_unfrozen != -1:
            raise ConfigError("model.lora and model.num_layers_unfrozen exclude each other; keep one")

    def _check_algorithm(self) -> None:
        given = [name for name in ALGORITHMS if getattr(self, name) is not None]
        if len(given) != 1:
            came = " and ".join(given) if given else "none"
            raise ConfigError(f"a recipe has exactly one of the sections {', '.join(ALGORITHMS)}, not {came}")
        if self.dpo is not None and not self.dpo.files:
            raise ConfigError("missing key dpo.files: the preference pairs; add it")
        if self.dpo is not None and self.nulls.unrelated:
            raise ConfigError(
                "nulls.unrelated needs a reward that is learned from, and dpo learns from pairs; use shuffled"
            )
        if self.train.engine not in ALGORITHMS[given[0]]:
            engines = " or ".join(ALGORITHMS[given[0]])
            raise ConfigError(f"the engine {self.train.engine} does not run {given[0]}; set train.engine to {engines}")

    def _check_reward(self) -> None:
        reward = self.reward
        named = [name for name in ("model", "classifier", "function", "terms") if getattr(reward, name)]
        if len(named) > 1:
            raise ConfigError(f"{' and '.join(f'reward.{name}' for name in named)} exclude each other; keep one")
        for name, term in (reward.terms or {}).items():
            if (term.model is None) == (term.function is None):
                raise ConfigError(f"reward.terms.{name} needs either model or function")
        if reward.classifier is not None:
            labels = sorted(reward.classifier.files)
            if len(labels) < 2:
                raise ConfigError(f"reward.classifier.files needs two labels or more, {len(labels)} came; add a file")
            if reward.label not in labels:
                raise ConfigError(f"reward.label must be one of {', '.join(labels)}, not {reward.label!r}")

    @property
    def algorithm(self) -> str:
        """Name of the one section that says how the policy learns: ppo, grpo, rloo or dpo."""
        return next(name for name in ALGORITHMS if getattr(self, name) is not None)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RLHFConfig:
        """Make a config of nested mappings, as TOML gives them.

        Raises:
            ConfigError: a key is unknown, missing or not used by the engine, or a value has the wrong type or lies out
                of its range.
        """
        train = values.get("train") if isinstance(values, Mapping) else None
        engine = train.get("engine", TrainConfig().engine) if isinstance(train, Mapping) else TrainConfig().engine
        known = engine if isinstance(engine, str) else None
        return typing.cast(RLHFConfig, read(cls, values, engine=known))

    @classmethod
    def load(cls, path: str | os.PathLike[str], overrides: Mapping[str, str] | None = None) -> RLHFConfig:
        """Read a recipe; its relative paths, which are relative to its file, become absolute.

        Args:
            path: the TOML file, or the name of a recipe that comes with the package, such as "demo".
            overrides: values by dotted key, such as `{"train.seed": "1"}`; each is read as TOML, or else as a string.
                Their paths are relative to the working directory.

        Raises:
            ConfigError: the file cannot be read or parsed, or `from_dict` refuses its content.
        """
        return cls.from_dict(load_values(cls, path, overrides, "train"))

    def anchored(self) -> RLHFConfig:
        """The same with paths that were relative to the working directory made absolute."""
        return self.from_dict(anchored(RLHFConfig, self.to_dict(), Path.cwd()))

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries without keys that are None or not used; `from_dict` reads them back."""
        return typing.cast(dict[str, Any], plain(self, engine=self.train.engine))

    def to_toml(self) -> str:
        """The config as TOML, every key that the engine uses with its meaning as a comment."""
        return to_toml(self, engine=self.train.engine)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `to_toml` to a file, with absolute paths."""
        return write_text(path, self.anchored().to_toml())
