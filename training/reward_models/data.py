"""What a reward model learns from: labelled texts or preference pairs, in three sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import ConfigError
from training.config import expand
from training.config.reward_model import RewardDataConfig
from training.seeding import derive, permutation
from training.tables import decode, read_columns

LEAST = 2
"""Rows that each set needs at least: figures of fewer say nothing."""


@dataclass(frozen=True)
class Labelled:
    """Texts and their labels.

    Attributes:
        texts: the texts.
        targets: 1 where the text has the label, else 0.
    """

    texts: tuple[str, ...]
    targets: Float[Tensor, "text label"]

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.texts)

    def take(self, rows: Sequence[int]) -> Labelled:
        """Some of the texts."""
        return Labelled(tuple(self.texts[row] for row in rows), self.targets[list(rows)])


@dataclass(frozen=True)
class Preferences:
    """Pairs of texts of which the first was preferred."""

    chosen: tuple[str, ...]
    rejected: tuple[str, ...]

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.chosen)

    def take(self, rows: Sequence[int]) -> Preferences:
        """Some of the pairs."""
        return Preferences(tuple(self.chosen[row] for row in rows), tuple(self.rejected[row] for row in rows))

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts, the chosen first."""
        return self.chosen + self.rejected


Rows = Labelled | Preferences


@dataclass(frozen=True)
class RewardData:
    """The three sets: to learn from, to choose thresholds on, and to measure on.

    Attributes:
        train: what the model learns from.
        validation: what thresholds are chosen on.
        test: what the card's figures are measured on.
        labels: names of the labels by index; none for preferences.
        dropped: rows left out, because they were blank or their two texts equal.
    """

    train: Rows
    validation: Rows
    test: Rows
    labels: tuple[str, ...]
    dropped: int

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows of each set."""
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)}


def load_data(config: RewardDataConfig, seed: int) -> RewardData:
    """Read the three sets; those without files are split off the training rows by the seed.

    Raises:
        ConfigError: a file cannot be read, a label is unknown, or a set has fewer than two rows.
    """
    cells = {name: _read(getattr(config, name), config) for name in ("train", "validation", "test")}
    kept = {name: [row for row in rows if _whole(row, config.kind)] for name, rows in cells.items()}
    dropped = sum(map(len, cells.values())) - sum(map(len, kept.values()))
    if config.kind == "preferences":
        labels: tuple[str, ...] = ()
        sets: dict[str, Rows] = {name: _preferences(rows) for name, rows in kept.items()}
    else:
        labels = _names(config, kept["train"])
        sets = {name: _labelled(rows, config, labels) for name, rows in kept.items()}
    sets = _split(sets, config.heldout, seed)
    for name, rows in sets.items():
        if len(rows) < LEAST:
            raise ConfigError(f"data.{name} gives {len(rows)} rows of use; give it {LEAST} or more")
    return RewardData(sets["train"], sets["validation"], sets["test"], labels, dropped)


def _read(files: Sequence[str], config: RewardDataConfig) -> list[tuple[Any, ...]]:
    if config.kind == "preferences":
        columns, keys = [config.chosen, config.rejected], ["data.chosen", "data.rejected"]
    else:
        columns, keys = [config.text, config.label], ["data.text", "data.label"]
    rows = [row for file in files for row in read_columns(Path(expand(file)), columns, keys=keys)]
    for row in rows:
        if not isinstance(row[0], str) or (config.kind == "preferences" and not isinstance(row[1], str)):
            place = int(isinstance(row[0], str))
            came = f"a {type(row[place]).__name__} ({str(row[place])[:40]!r})"
            raise ConfigError(f"{keys[place]} holds {came}, not a text; name another column")
    return rows[: config.limit] if config.limit else rows


def _whole(row: tuple[Any, ...], kind: str) -> bool:
    """Whether there is anything to learn from: a text, or two that differ."""
    return bool(row[0].strip()) and (kind != "preferences" or (bool(row[1].strip()) and row[0] != row[1]))


def _preferences(rows: Sequence[tuple[Any, ...]]) -> Preferences:
    return Preferences(tuple(chosen for chosen, _ in rows), tuple(rejected for _, rejected in rows))


def _own(cell: Any, config: RewardDataConfig) -> list[str]:
    """The labels of one cell: a name, a number, a list of them, or several in one text."""
    if isinstance(cell, (list, tuple)):
        return [str(each) for each in cell]
    text = "" if cell is None else str(cell)
    parts = text.split(config.separator) if config.kind == "multi" else [text]
    return [part.strip() for part in parts if part.strip()]


def _names(config: RewardDataConfig, rows: Sequence[tuple[Any, ...]]) -> tuple[str, ...]:
    if config.names is not None:
        names = [line.strip() for line in decode(Path(expand(config.names))).split("\n") if line.strip()]
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None:
            raise ConfigError(f"data.names: {config.names} has {repeated!r} twice; correct the file")
    else:
        found = {label for _, cell in rows for label in _own(cell, config)}
        numbers = all(label.isdecimal() for label in found)
        names = sorted(found, key=int) if numbers else sorted(found)
    if len(names) < 2 and config.kind == "single":
        raise ConfigError(f"kind single needs two labels or more, the data have {', '.join(names) or 'none'}")
    if not names:
        raise ConfigError("the training texts have no label; correct data.label")
    return tuple(names)


def _labelled(rows: Sequence[tuple[Any, ...]], config: RewardDataConfig, labels: tuple[str, ...]) -> Labelled:
    index = {name: number for number, name in enumerate(labels)}
    if config.names is not None:  # names stand for themselves, numbers for the lines of the file
        index = {str(number): number for number in range(len(labels))} | index
    targets = torch.zeros(len(rows), len(labels))
    for number, (text, cell) in enumerate(rows):
        own = _own(cell, config)
        unknown = next((label for label in own if label not in index), None)
        if unknown is not None:
            raise ConfigError(
                f"the text {text[:40]!r} has the label {unknown!r}; the labels are {', '.join(labels)}; correct"
                " data.label, data.separator or data.names"
            )
        if config.kind == "single" and len(own) != 1:
            raise ConfigError(f'the text {text[:40]!r} has {len(own)} labels; use kind = "multi", or mend the file')
        targets[number, [index[label] for label in own]] = 1.0
    return Labelled(tuple(text for text, _ in rows), targets)


def _split(sets: dict[str, Rows], heldout: float, seed: int) -> dict[str, Rows]:
    """Fill sets without rows from the training rows, drawn by the seed; equal texts go into one set."""
    train = sets["train"]
    missing = [name for name in ("validation", "test") if not len(sets[name])]
    if not missing:
        return sets
    keys = train.texts if isinstance(train, Labelled) else list(zip(train.chosen, train.rejected, strict=True))
    unique = list(dict.fromkeys(keys))
    order = permutation(len(unique), derive(seed, "reward data"))
    size = max(LEAST, round(heldout * len(unique)))
    home = {unique[number]: place // size for place, number in enumerate(order)}  # the first for validation, and so on
    for place, name in enumerate([*missing, "train"]):
        last = name == "train"
        sets[name] = train.take(
            [row for row, key in enumerate(keys) if (home[key] >= place if last else home[key] == place)]
        )
    return sets
