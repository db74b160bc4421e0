"""What decides a sweep: one TOML file, every key checked."""

from __future__ import annotations

import os
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.errors import ConfigError
from training.config import RLHFConfig, expand
from training.config.places import FILE, RECIPE, SOURCE, anchored
from training.config.schema import REQUIRED, override, read, read_toml, setting
from training.recipes import recipe_file

CELLS = ("comparison", "states", "patching", "reading", "implicit", "tokens", "circuit", "probes")
"""What can be computed of each pair; `circuit` needs `circuit_prompts`, `probes` labelled texts."""

DEFAULT_CELLS = ("comparison", "states", "patching", "reading", "implicit", "tokens")


@dataclass(frozen=True)
class SweepConfig:
    """One sweep. `load` reads it from TOML and checks every key and range."""

    emotions: tuple[str, ...] = setting(REQUIRED, "labels of the reward model, a pair for each")
    texts: str = setting(
        REQUIRED,
        "held-out texts, the first column of a .tsv or one a line; for probes a .tsv whose second column numbers the"
        " reward model's labels that the text bears, with commas between",
        place=FILE,
    )
    recipe: str = setting(
        "emotion", "the recipe by which each pair is trained: a file, or one that comes with the package", place=RECIPE
    )
    reward: str = setting("", "folder or hub id of the reward model; empty is the recipe's", place=SOURCE)
    overrides: dict[str, Any] | None = setting(None, 'keys of the recipe that are set, as { "train.total_steps" = 80 }')
    given: dict[str, str] | None = setting(None, "folders of pairs that are there already, by emotion", place=FILE)
    second_seeds: tuple[str, ...] = setting((), "emotions of which a second seed is trained too")
    second_seed: int = setting(1, "its seed", low=0)
    cells: tuple[str, ...] = setting(DEFAULT_CELLS, "what is computed of each pair", choices=CELLS)
    prompts: str = setting(
        "", "file of the prompts that all pairs are compared on; empty is the recipe's held-out ones", place=FILE
    )
    prompt_limit: int = setting(48, "most prompts", low=8)
    text_limit: int = setting(400, "most texts by which labels are compared", low=40)
    circuit_prompts: str = setting("", "file of prompts with a column `corrupted`, for the cell circuit", place=FILE)
    probe_texts: int = setting(60, "most texts that bear a label in the probes for it, and as many that do not", low=10)
    samples: int = setting(8, "responses to each prompt in the implicit reward; even", low=8)
    gate: float = setting(
        0.7, "lower bound of the held-out AUROC under which a label is kept out of claims", low=0, high=1
    )
    permutations: int = setting(999, "draws of every null", low=99)
    seed: int = setting(0, "of samples, intervals and nulls", low=0)

    def __post_init__(self) -> None:
        """Check what concerns several keys."""
        if not self.emotions:
            raise ConfigError("emotions is empty; name at least one label of the reward model")
        for key, names in (("emotions", self.emotions), ("second_seeds", self.second_seeds), ("cells", self.cells)):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ConfigError(f"{key} names {twice[0]!r} twice, so two cells would have one name; leave one out")
        seconds = [f"{name}-seed{self.second_seed}" for name in self.second_seeds]
        files: dict[str, str] = {}
        for name in ("base", "labels", *self.emotions, *seconds):
            other = files.setdefault(folder_name(name), name)
            if other != name or (name in seconds and name in self.emotions):
                raise ConfigError(f"the cells of {name!r} and {other!r} would have one name; rename a label")
        for key, found in (("second_seeds", self.second_seeds), ("given", tuple(self.given or ()))):
            strange = [name for name in found if name not in self.emotions]
            if strange:
                raise ConfigError(f"{key} names {strange[0]!r}, which is not among emotions; add it there")
        if "circuit" in self.cells and not self.circuit_prompts:
            raise ConfigError("the cell circuit needs circuit_prompts, a file with the columns text and corrupted")
        if self.samples % 2:
            raise ConfigError(f"samples must be even, half from each model, not {self.samples}")

    @classmethod
    def load(cls, path: str | os.PathLike[str], overrides: Mapping[str, str] | None = None) -> SweepConfig:
        """Read a sweep file; its relative paths, which are relative to the file, become absolute.

        Args:
            path: the TOML file, or the name of one that comes with the package, such as "emotions".
            overrides: values by key, each read as TOML or else as a string. Their paths are relative to the working
                directory.

        Raises:
            ConfigError: the file cannot be read, or a key is unknown, missing or out of its range.
        """
        file = recipe_file(path, "sweep")
        values = anchored(cls, read_toml(file), file.parent)
        if isinstance(values.get("overrides"), dict):
            values["overrides"] = {key: _anchored(key, value, file) for key, value in values["overrides"].items()}
        for key, text in (overrides or {}).items():
            override({"sweep": values}, f"sweep.{key}", text)  # a sweep file has no sections of its own
        return cls.from_dict(anchored(cls, values, Path.cwd()))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SweepConfig:
        """Make a config of a mapping, as TOML gives it.

        Raises:
            ConfigError: as `load`.
        """
        return typing.cast(SweepConfig, read(cls, values))

    def training(self, emotion: str, seed: int | None = None) -> RLHFConfig:
        """The recipe of one pair.

        Args:
            emotion: the label that is rewarded.
            seed: of the run; None is the recipe's.

        Raises:
            ConfigError: the recipe cannot be read, or an override does not fit it.
        """
        changes = {key: _as_toml(value) for key, value in (self.overrides or {}).items()}
        changes |= {"reward.model": self.reward} if self.reward else {}
        changes |= {"reward.label": emotion}
        changes |= {} if seed is None else {"train.seed": str(seed)}
        return RLHFConfig.load(expand(self.recipe), changes)

    def pairs(self) -> dict[str, tuple[str, int | None]]:
        """(emotion, seed or None for the recipe's) of each pair by its name; second seeds come last."""
        first: dict[str, tuple[str, int | None]] = {name: (name, None) for name in self.emotions}
        return first | {f"{name}-seed{self.second_seed}": (name, self.second_seed) for name in self.second_seeds}

    def held_out_texts(self) -> list[str]:
        """The texts of `texts`, at most `text_limit`, each once.

        Raises:
            ConfigError: the file cannot be read, or holds too few.
        """
        path = Path(expand(self.texts))
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"texts: cannot read {path} ({error}); correct the path") from error
        column = [line.split("\t")[0] if path.suffix == ".tsv" else line for line in lines]
        found = list(dict.fromkeys(text.strip() for text in column if text.strip()))[: self.text_limit]
        if len(found) < 40:
            raise ConfigError(f"texts: {path} has {len(found)} different texts; 40 are the fewest")
        return found

    def labelled_texts(self) -> list[tuple[str, frozenset[int]]]:
        """Every text of `texts`, each once, and the numbers of the labels that it bears.

        Raises:
            ConfigError: the file is no .tsv, or its second column is not numbers.
        """
        path = Path(expand(self.texts))
        found: dict[str, frozenset[int]] = {}
        if path.suffix != ".tsv":
            raise ConfigError(f"the cell probes needs texts with labels, a .tsv, and {path} is none; leave probes out")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            text, _, rest = line.partition("\t")
            try:
                labels = frozenset(int(each) for each in rest.split("\t")[0].split(",") if each.strip())
            except ValueError:
                raise ConfigError(
                    f"texts: line {number} of {path} has {rest[:20]!r} where label numbers stand, as 3,17; correct it,"
                    " or leave probes out"
                ) from None
            if text.strip():
                found.setdefault(text.strip(), labels)
        return list(found.items())


def folder_name(name: str) -> str:
    """A label as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)


def _anchored(key: str, value: Any, file: Path) -> Any:
    """A recipe's value by its dotted key; a path that is relative to the sweep's file becomes absolute."""
    sections = key.split(".")
    for name in reversed(sections):
        value = {name: value}
    value = anchored(RLHFConfig, value, file.parent)
    for name in sections:
        value = value[name]
    return value


def _as_toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
