"""RewardModelConfig: everything that decides the training of a reward model, in frozen sections, as TOML on disk."""

from __future__ import annotations

import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.errors import ConfigError
from interp.io import write_text
from training.config.places import FILE, SOURCE, anchored
from training.config.schema import REQUIRED, load_values, plain, read, setting, to_toml


@dataclass(frozen=True)
class NewModelConfig:
    """A fresh model, with a tokenizer of its own that is trained on the training texts."""

    kind: str = setting(
        "encoder",
        "encoder is DistilBERT's shape and reads both ways, causal is GPT-2's",
        choices=("encoder", "causal"),
    )
    layers: int = setting(2, "blocks", low=1)
    width: int = setting(256, "components of a token's vector", low=8)
    heads: int = setting(4, "attention heads in a block; they divide width", low=1)
    context: int = setting(128, "most tokens that it can read", low=8)
    dropout: float = setting(0.1, "share of components dropped while training", low=0, high=0.9)
    tokenizer: str = setting(
        "wordpiece", "wordpiece of lower-cased words, or bytes for byte-level BPE", choices=("wordpiece", "bytes")
    )
    vocabulary: int = setting(8000, "most tokens of the vocabulary", low=300)


@dataclass(frozen=True)
class RewardBackboneConfig:
    """What the reward model starts from: exactly one of the two."""

    backbone: str | None = setting(
        None, "folder or hub id of a causal language model or a masked one, which gets a new score head", place=SOURCE
    )
    revision: str | None = setting(None, "branch, tag or commit of a hub id")
    new: NewModelConfig | None = setting(None, "a fresh model instead")


@dataclass(frozen=True)
class RewardDataConfig:
    """What it learns from: labelled texts, or pairs of which one text was preferred."""

    kind: str = setting(
        REQUIRED,
        "single: every text has one label; multi: any number; preferences: pairs of a chosen and a rejected text",
        choices=("single", "multi", "preferences"),
    )
    train: tuple[str, ...] = setting(
        REQUIRED, ".csv, .tsv, .jsonl, .jsonl.gz or .parquet files to learn from", place=FILE
    )
    validation: tuple[str, ...] = setting(
        (), "files on which thresholds are chosen; none splits a part off the training texts", place=FILE
    )
    test: tuple[str, ...] = setting(
        (), "files that the card's figures are measured on; none splits a part off the training texts", place=FILE
    )
    heldout: float = setting(0.1, "share of the training texts split off for each set without files", above=0, high=0.4)
    text: str = setting("text", "column of the texts: a name, or a number from 0 in a file without header")
    label: str = setting("label", "column of the labels, names or numbers: a name or a number from 0, as text")
    separator: str = setting(",", "what stands between the labels of one text, of kind multi")
    names: str | None = setting(
        None,
        "text file with the labels' names, one a line in the order of their numbers; default the labels as found",
        place=FILE,
    )
    chosen: str = setting("chosen", "column of the preferred texts, of kind preferences")
    rejected: str = setting("rejected", "column of the others, of kind preferences")
    published: Mapping[str, Any] | None = setting(
        None, "figures of others on these data, by name, to stand in the card beside its own; nothing else uses them"
    )
    limit: int = setting(0, "most rows read of each set, from its beginning; 0 reads all", low=0)


@dataclass(frozen=True)
class RewardTrainConfig:
    """How it learns."""

    seed: int = setting(0, "seed of splits, order, dropout and initial values", low=0, high=2**63 - 1)
    epochs: int = setting(3, "passes over the training texts", low=1)
    batch_size: int = setting(32, "texts, or pairs, in a step", low=1)
    learning_rate: float = setting(3e-4, "peak learning rate of AdamW; linear warm-up over 10 %, linear decay", above=0)
    weight_decay: float = setting(0.01, "decoupled weight decay of AdamW", low=0)
    max_length: int = setting(128, "tokens kept of each text: the first, of a pair's texts the last", low=2)
    word_dropout: float = setting(
        0.0, "share of the tokens replaced by the mask or unknown token while training", low=0, high=0.9
    )
    checkpoint_interval: int = setting(
        0, "steps between stored checkpoints, each a loadable reward model, from step 0 on; 0 stores none", low=0
    )
    timings: bool = setting(True, "write the minutes it took into the card; without it two runs give the same bytes")


@dataclass(frozen=True)
class RewardModelConfig:
    """The training of one reward model. `load` reads it from TOML, `save` writes it back; both check every key."""

    model: RewardBackboneConfig = setting(REQUIRED, "what it starts from")
    data: RewardDataConfig = setting(REQUIRED, "what it learns from")
    train: RewardTrainConfig = setting(RewardTrainConfig(), "how it learns")

    def __post_init__(self) -> None:
        """Check what concerns several keys."""
        if (self.model.backbone is None) == (self.model.new is None):
            raise ConfigError("the section model has exactly one of backbone and new")
        new = self.model.new
        if new is not None and new.width % new.heads:
            raise ConfigError(f"model.new.heads ({new.heads}) must divide model.new.width ({new.width})")
        if new is not None and self.train.max_length > new.context:
            raise ConfigError(
                f"train.max_length ({self.train.max_length}) exceeds model.new.context ({new.context}); lower it"
            )
        if not self.data.train:
            raise ConfigError("data.train names no file; add one")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RewardModelConfig:
        """Make a config of nested mappings, as TOML gives them.

        Raises:
            ConfigError: a key is unknown or missing, or a value has the wrong type or lies out of its range.
        """
        return typing.cast(RewardModelConfig, read(cls, values))

    @classmethod
    def load(cls, path: str | os.PathLike[str], overrides: Mapping[str, str] | None = None) -> RewardModelConfig:
        """Read a recipe for a reward model; its relative paths, which are relative to its file, become absolute.

        Args:
            path: the TOML file, or the name of a recipe that comes with the package, such as "hh_reward".
            overrides: values by dotted key, such as `{"train.seed": "1"}`; each is read as TOML, or else as a string.
                Their paths are relative to the working directory.

        Raises:
            ConfigError: the file cannot be read or parsed, or `from_dict` refuses its content.
        """
        return cls.from_dict(load_values(cls, path, overrides, "train-reward"))

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries without keys that are None; `from_dict` reads them back."""
        return typing.cast(dict[str, Any], plain(self))

    def to_toml(self) -> str:
        """The config as TOML, every key with its meaning as a comment."""
        return to_toml(self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `to_toml` to a file, with absolute paths."""
        values = anchored(RewardModelConfig, self.to_dict(), Path.cwd())
        return write_text(path, to_toml(self.from_dict(values)))
