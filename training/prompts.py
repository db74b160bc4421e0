"""Prompts for training: the first words of texts, without repeats, split into training and held-out prompts."""

from __future__ import annotations

import csv
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from interp.errors import ConfigError
from interp.io import os_reason
from training.config import PromptsConfig, expand
from training.seeding import derive, permutation


@dataclass(frozen=True)
class PromptSplit:
    """Prompts to train on, and others that training never sees."""

    train: tuple[str, ...]
    heldout: tuple[str, ...]


def load_prompts(config: PromptsConfig, seed: int, *, pair: str | os.PathLike[str] | None = None) -> PromptSplit:
    """Read, cut, deduplicate, shuffle by the seed, and split.

    Texts with fewer than `config.words` words are left out: they are whole texts, with nothing to complete.

    Raises:
        ConfigError: a file cannot be read, the column is absent, or too few prompts are left.
    """
    texts = [t for file in config.files for t in read_texts(expand(file, pair=pair), config.column, config.unit)]
    cut = (first_words(text, config.words) for text in texts)
    unique = list(dict.fromkeys(prompt for prompt in cut if prompt))
    if len(unique) <= config.heldout:
        raise ConfigError(
            f"prompts.files give {len(unique)} different prompts, prompts.heldout = {config.heldout} leaves none "
            "to train on; add files or hold out fewer"
        )
    shuffled = [unique[i] for i in permutation(len(unique), derive(seed, "prompts"))]
    heldout, train = shuffled[: config.heldout], shuffled[config.heldout :]
    return PromptSplit(tuple(train[: config.train] if config.train else train), tuple(heldout))


def first_words(text: str, words: int) -> str:
    """The first `words` words joined by single spaces, "" for a shorter text; the whole text for 0 words."""
    parts = text.split()
    if words == 0:
        return " ".join(parts)
    return " ".join(parts[:words]) if len(parts) >= words else ""


def read_texts(path: str | os.PathLike[str], column: str | None = None, unit: str = "line") -> list[str]:
    """The texts of one file, in order, blank ones left out.

    Args:
        path: a .csv or .tsv file (its `column` holds the texts) or any other text file. UTF-8, else Latin-1.
        column: a name from the first row, or a number from 0 where the file has no header.
        unit: of a text file, "line" or "sentence" (ends at . ! or ? before white space, and at line breaks).

    Raises:
        ConfigError: the file cannot be read or the column is absent.
    """
    file = Path(path)
    content = _decode(file)
    if file.suffix.lower() in (".csv", ".tsv"):
        delimiter = "," if file.suffix.lower() == ".csv" else "\t"
        texts = _column(content, column, delimiter, file)
    elif column is not None:
        raise ConfigError(f"prompts.column = {column!r} needs a .csv or .tsv file, not {file}; leave it out")
    else:
        texts = re.split(r"\n+|(?<=[.!?])[\"'”’]?\s+" if unit == "sentence" else r"\n+", content)
    return [text.strip() for text in texts if text.strip()]


def _decode(file: Path) -> str:
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {os_reason(error)}; correct the path in the recipe") from error
    try:
        return raw.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError:
        return raw.decode("latin-1").replace("\r\n", "\n")


def _column(content: str, column: str | None, delimiter: str, file: Path) -> list[str]:
    # Tab-separated corpora hold bare quotation marks; in comma-separated ones they quote.
    quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    lines = content.splitlines(keepends=True)
    rows = [row for row in csv.reader(lines, delimiter=delimiter, quoting=quoting) if row]
    if column is None or not rows:
        raise ConfigError(f"{file} needs prompts.column, the name or number of the column with the texts")
    if column.isdecimal():
        index = int(column)
    elif column in rows[0]:
        index, rows = rows[0].index(column), rows[1:]
    else:
        raise ConfigError(f"{file} has no column {column!r}; it has {', '.join(rows[0])}")
    if any(index >= len(row) for row in rows):
        raise ConfigError(f"{file} has rows of fewer than {index + 1} columns; correct prompts.column")
    return [row[index] for row in rows]
