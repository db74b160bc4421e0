"""Columns of files: .csv, .tsv, .jsonl, .jsonl.gz and .parquet."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from interp.errors import ConfigError
from interp.io import os_reason

FORMATS = ".csv, .tsv, .jsonl, .jsonl.gz or .parquet"


def is_table(path: Path) -> bool:
    """Whether the file's name says that it has columns."""
    return _kind(path) is not None


def _kind(path: Path) -> str | None:
    name = path.name.lower()
    endings = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".jsonl.gz": "jsonl", ".parquet": "parquet"}
    return next((kind for ending, kind in endings.items() if name.endswith(ending)), None)


def read_columns(path: Path, columns: Sequence[str], *, keys: Sequence[str], limit: int = 0) -> list[tuple[Any, ...]]:
    """The cells of some columns, row by row.

    Args:
        path: the file. Of .csv and .tsv, numbers from 0 instead of names mean that there is no header.
        columns: the columns.
        keys: the keys of the recipe that name them, for errors.
        limit: most rows read; 0 reads all.

    Raises:
        ConfigError: the file cannot be read or parsed, or a column is absent.
    """
    kind = _kind(path)
    if kind is None:
        raise ConfigError(f"{keys[0]} = {columns[0]!r} needs a {FORMATS} file, not {path}")
    if kind == "parquet":
        rows = _parquet(path, columns, keys)
    elif kind == "jsonl":
        rows = _jsonl(path, columns, keys)
    else:
        rows = _separated(path, columns, keys, "," if kind == "csv" else "\t")
    return rows[:limit] if limit else rows


def decode(path: Path) -> str:
    """A text file's content, UTF-8 or else Latin-1, unpacked where its name ends in .gz.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        raw = path.read_bytes()
        if path.suffix.lower() == ".gz":
            raw = gzip.decompress(raw)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigError(f"cannot unpack {path}: {error}; was it cut off while copying?") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {os_reason(error)}; correct the path in the recipe") from error
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        return raw.decode("latin-1").replace("\r\n", "\n")


def _separated(path: Path, columns: Sequence[str], keys: Sequence[str], delimiter: str) -> list[tuple[Any, ...]]:
    # Tab-separated corpora hold bare quotation marks; in comma-separated ones they quote.
    quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    lines = decode(path).split("\n")  # splitlines would also break at the odd separators that texts may hold
    try:
        rows = [row for row in csv.reader((f"{line}\n" for line in lines), delimiter=delimiter, quoting=quoting) if row]
    except csv.Error as error:
        raise ConfigError(f"{path} cannot be parsed: {error}; mend the file") from error
    numbers = [column.isdecimal() for column in columns]
    if not rows:
        return []
    if all(numbers):
        indices = [int(column) for column in columns]
    else:
        header, *rows = rows
        for column, key in zip(columns, keys, strict=True):
            if column not in header:
                raise ConfigError(f"{path} has no column {column!r}; it has {', '.join(header)}; correct {key}")
        indices = [header.index(column) for column in columns]
    short = next((number for number, row in enumerate(rows, 1) if len(row) <= max(indices)), None)
    if short is not None:
        raise ConfigError(f"{path}: row {short} has fewer than {max(indices) + 1} columns; correct {' or '.join(keys)}")
    return [tuple(row[index] for index in indices) for row in rows]


def _jsonl(path: Path, columns: Sequence[str], keys: Sequence[str]) -> list[tuple[Any, ...]]:
    rows = []
    for number, line in enumerate(decode(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{path}, line {number} is not JSON ({error}); mend the file") from error
        if not isinstance(row, Mapping):
            raise ConfigError(f"{path}, line {number} is a {type(row).__name__}, not an object with keys")
        for column, key in zip(columns, keys, strict=True):
            if column not in row:
                raise ConfigError(
                    f"{path}, line {number} has no {column!r}; it has {', '.join(map(str, row))}; correct {key}"
                )
        rows.append(tuple(row[column] for column in columns))
    return rows


def _parquet(path: Path, columns: Sequence[str], keys: Sequence[str]) -> list[tuple[Any, ...]]:
    import pyarrow
    import pyarrow.parquet

    try:
        there = pyarrow.parquet.read_schema(path).names
        for column, key in zip(columns, keys, strict=True):
            if column not in there:
                raise ConfigError(f"{path} has no column {column!r}; it has {', '.join(there)}; correct {key}")
        table = pyarrow.parquet.read_table(path, columns=list(dict.fromkeys(columns)))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {os_reason(error)}; correct the path in the recipe") from error
    except pyarrow.ArrowInvalid as error:
        raise ConfigError(f"{path} is no parquet file ({str(error).splitlines()[0]}); correct the path") from error
    return list(zip(*(table.column(column).to_pylist() for column in columns), strict=True))
