"""Prompts for training: the first words of texts, without repeats, split into training and held-out prompts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from interp.errors import ConfigError, MissingExtra
from training.config import PromptsConfig, expand
from training.seeding import derive, permutation
from training.tables import FORMATS, decode, is_table, read_columns


@dataclass(frozen=True)
class PromptSplit:
    """Prompts to train on, and others that training never sees."""

    train: tuple[str, ...]
    heldout: tuple[str, ...]


def load_prompts(
    config: PromptsConfig, seed: int, *, pair: str | os.PathLike[str] | None = None, dataset: Any = None
) -> PromptSplit:
    """Read, cut, deduplicate, shuffle by the seed, and split.

    Texts with fewer than `config.words` words are left out: they are whole texts, with nothing to complete.

    Args:
        config: where the texts come from and how they are cut.
        seed: seed of the order, and so of the split.
        pair: the pair's own folder, which `${PAIR}` stands for.
        dataset: texts, or a `datasets.Dataset` (or a dictionary of them by split), for a config that names none.

    Raises:
        ConfigError: there are no texts or two sources of them, a file or dataset cannot be read, the column is absent,
            or too few prompts are left.
        MissingExtra: a dataset is named and `datasets` is not installed.
    """
    named = bool(config.files) or config.dataset is not None
    if named and dataset is not None:
        raise ConfigError("the recipe names prompts and others were passed; keep one")
    if isinstance(dataset, (list, tuple)):
        texts = list(_stripped(dataset, "prompts"))
    elif dataset is not None:
        texts = _texts_of(dataset, config, "the dataset")
    elif config.dataset is not None:
        texts = _load_dataset(config, pair)
    elif not named:
        raise ConfigError("no prompts: set prompts.files or prompts.dataset in the recipe, or pass prompts= in Python")
    else:
        texts = [t for file in config.files for t in read_texts(expand(file, pair=pair), config.column, config.unit)]
    cut = (first_words(text, config.words) for text in texts)
    unique = list(dict.fromkeys(config.prefix + prompt for prompt in cut if prompt))
    if len(unique) <= config.heldout:
        raise ConfigError(
            f"the texts give {len(unique)} different prompts, prompts.heldout = {config.heldout} leaves none "
            "to train on; add texts or hold out fewer"
        )
    shuffled = [unique[i] for i in permutation(len(unique), derive(seed, "prompts"))]
    heldout, train = shuffled[: config.heldout], shuffled[config.heldout :]
    return PromptSplit(tuple(train[: config.train] if config.train else train), tuple(heldout))


def not_fetched(config: PromptsConfig, *, pair: str | os.PathLike[str] | None = None) -> str | None:
    """The dataset that would come from the hub, in words, or None where everything is on this machine."""
    if config.dataset is None or Path(expand(config.dataset, pair=pair)).is_dir():
        return None
    name = f", configuration {config.dataset_config}" if config.dataset_config else ""
    column = f", column {config.column}" if config.column else ""
    return f"dataset {config.dataset}{name}, {' and '.join(config.splits)}{column}: not fetched"


def first_words(text: str, words: int) -> str:
    """The first `words` words joined by single spaces, "" for a shorter text; the whole text for 0 words."""
    parts = text.split()
    if words == 0:
        return " ".join(parts)
    return " ".join(parts[:words]) if len(parts) >= words else ""


def read_texts(path: str | os.PathLike[str], column: str | None = None, unit: str = "line") -> list[str]:
    """The texts of one file, in order, blank ones left out.

    Args:
        path: a .csv, .tsv, .jsonl or .parquet file (its `column` holds the texts) or any other text file. UTF-8, else
            Latin-1.
        column: a name, or of .csv and .tsv without header a number from 0; of .jsonl and .parquet default "text".
        unit: of a text file, "line" or "sentence" (ends at . ! or ? before white space, and at line breaks).

    Raises:
        ConfigError: the file cannot be read, the column is absent, or a cell is no text.
    """
    file = Path(path)
    if is_table(file):
        if column is None and file.suffix.lower() in (".csv", ".tsv"):
            decode(file)  # an absent file is the first thing to hear of
            raise ConfigError(f"{file} needs prompts.column, the name or number of the column with the texts")
        cells = [row[0] for row in read_columns(file, [column or "text"], keys=["prompts.column"])]
        return list(_stripped(cells, str(file)))
    content = decode(file)
    if column is not None:
        raise ConfigError(f"prompts.column = {column!r} needs a {FORMATS} file, not {file}; leave it out")
    return list(_stripped(re.split(r"\n+|(?<=[.!?])[\"'”’]?\s+" if unit == "sentence" else r"\n+", content), str(file)))


def _stripped(cells: Iterable[Any], origin: str) -> Iterable[str]:
    for number, cell in enumerate(cells, 1):
        if cell is not None and not isinstance(cell, str):
            raise ConfigError(
                f"{origin}: prompts.column holds a {type(cell).__name__} in row {number}, not a text; name another"
            )
        if cell and cell.strip():
            yield cell.strip()


def _load_dataset(config: PromptsConfig, pair: str | os.PathLike[str] | None) -> list[str]:
    """The texts of a dataset from the hub, from a folder of files, or from one that `save_to_disk` wrote."""
    if find_spec("datasets") is None:
        raise MissingExtra("training", "prompts.dataset")
    import datasets

    assert config.dataset is not None
    source = expand(config.dataset, pair=pair)
    saved = any((Path(source) / name).is_file() for name in ("dataset_info.json", "dataset_dict.json", "state.json"))
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()  # a run has a bar of its own
    try:
        if saved:
            found = datasets.load_from_disk(source)
        else:
            splits = list(config.splits)
            parts = datasets.load_dataset(source, config.dataset_config, split=splits)
            found = dict(zip(splits, parts, strict=True))
    except Exception as error:  # datasets raises whatever its readers and the connection stumble over
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"cannot load prompts.dataset {source!r} ({reason[:160]}); correct its name, configuration and splits, or"
            " check the connection"
        ) from error
    finally:
        if shown:
            datasets.enable_progress_bars()
    return _texts_of(found, config, source)


def _texts_of(dataset: Any, config: PromptsConfig, origin: str) -> list[str]:
    """The texts of one dataset, or of those of a dictionary that `prompts.splits` names."""
    if isinstance(dataset, dict):
        missing = [name for name in config.splits if name not in dataset]
        if missing:
            raise ConfigError(
                f"{origin} has no split {missing[0]!r}; it has {', '.join(map(str, dataset))}; correct prompts.splits"
            )
        return [text for name in config.splits for text in _texts_of(dataset[name], config, origin)]
    columns = getattr(dataset, "column_names", None)
    if not isinstance(columns, list):
        raise ConfigError(f"dataset must be a datasets.Dataset, not a {type(dataset).__name__}")
    column = config.column or "text"
    if column not in columns:
        raise ConfigError(f"{origin} has no column {column!r}; it has {', '.join(columns)}; set prompts.column")
    return list(_stripped(dataset[column], origin))
