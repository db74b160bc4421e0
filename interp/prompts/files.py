"""Prompts from files and data sets: columns to the arguments of `Prompts`."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from interp.errors import PromptError
from interp.io import os_reason
from interp.prompts.kinds import Kind, check_prompt, same_kind

PROMPT_COLUMNS = ("text", "prompt", "messages", "ids")
_FORMATS = "a UTF-8 text file with one prompt a line, or .csv, .tsv, .jsonl, .json or .parquet"
_KINDS: dict[str, Kind] = {"messages": "chat", "ids": "ids"}
_OPTIONAL = {"continuation": "continuations", "group": "groups", "decoder_prefix": "decoder_prefixes"}


@dataclass(frozen=True)
class Table:
    """Columns of cells.

    Attributes:
        origin: the file's name, or what stands for it in errors.
        names: names of the columns; none for a file of bare prompts, whose one column is "".
        cells: from a name to its cells.
        rows: what errors call each row, as "line 3".
    """

    origin: str
    names: tuple[str, ...]
    cells: Callable[[str], Sequence[Any]]
    rows: Sequence[str]

    def where(self, row: int) -> str:
        """A row's name in an error."""
        return f"{self.origin}, {self.rows[row]}"


def arguments_of(table: Table, column: str | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Prompts` that a table gives, with `settings` in place of its own.

    Raises:
        PromptError: the column of the prompts is absent or not clear, there are no rows, or a cell does not fit.
    """
    if not table.rows:
        raise PromptError(f"{table.origin} holds no prompts; give it at least one row")
    name = _prompt_column(table, column)
    values = table.cells(name)
    checked = [check_prompt(_present(table, name, row, value), table.where(row)) for row, value in enumerate(values)]
    kind = same_kind([each for each, _ in checked], table.where)
    if kind != _KINDS.get(name, kind):
        wanted = "chats (lists of messages)" if name == "messages" else "lists of token ids"
        raise PromptError(
            f"{table.origin}: the column {name!r} is for {wanted} and holds texts; call it text, or keep them as JSON"
        )
    found: dict[str, Any] = {"texts": [value for _, value in checked]}
    others = [each for each in table.names if each != name]
    if settings.get("answers") is None:
        found["answers"] = _answers(table, others)
    for optional, argument in _OPTIONAL.items():
        if optional in others and settings.get(argument) is None:
            found[argument] = _texts(table, optional)
    if "corrupted" in others and settings.get("corrupted") is None:
        found["corrupted"] = [
            _present(table, "corrupted", row, value) for row, value in enumerate(table.cells("corrupted"))
        ]
    return {**found, **{key: value for key, value in settings.items() if value is not None}}


def _prompt_column(table: Table, column: str | None) -> str:
    there = _listed(table.names) or "no columns"
    if column is not None:
        if not isinstance(column, str) or column not in table.names:
            raise PromptError(f"{table.origin} has no column {column!r}; it has {there}")
        return column
    if not table.names:
        return ""
    known = [name for name in PROMPT_COLUMNS if name in table.names]
    if len(known) != 1:
        several = f"several columns of prompts ({', '.join(known)})"
        which = several if known else f"no column {', '.join(PROMPT_COLUMNS[:-1])} or {PROMPT_COLUMNS[-1]}"
        raise PromptError(f"{table.origin} has {which}; name one with column= (--column); it has {there}")
    return known[0]


def _listed(names: Sequence[str]) -> str:
    """Names in an error, whose line they must not burst: a first line may be no header but a text."""
    more = ", ..." if len(names) > 12 else ""
    return ", ".join(name if len(name) <= 30 else f"{name[:30]}..." for name in names[:12]) + more


def _present(table: Table, name: str, row: int, value: Any) -> Any:
    """A cell that holds something."""
    if value is None or (isinstance(value, float) and value != value) or type(value).__name__ in ("NAType", "NaTType"):
        raise PromptError(f"{table.where(row)} has no {name or 'prompt'}; fill it in or drop the row")
    return value


def _texts(table: Table, name: str) -> list[str]:
    cells = []
    for row, value in enumerate(table.cells(name)):
        value = _present(table, name, row, value)
        if name == "group" and not isinstance(value, str):
            value = str(value)
        if not isinstance(value, str):
            raise PromptError(f"{table.where(row)}: {name} is {type(value).__name__} {str(value)[:40]!r}, not a text")
        cells.append(value)
    return cells


def _answers(table: Table, names: Sequence[str]) -> list[tuple[str, str]] | None:
    there = [name for name in ("answer", "alternative") if name in names]
    if not there:
        return None
    if len(there) == 1:
        lacking = "alternative" if there == ["answer"] else "answer"
        raise PromptError(
            f"{table.origin} has a column {there[0]!r} and none {lacking!r}; give both (each prompt's answer is"
            " contrasted with its alternative), or rename it if it is something else"
        )
    columns = [_texts(table, name) for name in there]
    for name, cells in zip(there, columns, strict=True):
        for row, cell in enumerate(cells):
            if not cell.strip():
                raise PromptError(f"{table.where(row)} has an empty {name}; fill it in or drop the row")
    return list(zip(*columns, strict=True))


def table_of(data: Any) -> Table:
    """The columns of a `datasets.Dataset`, a pandas frame or a dict of lists.

    Raises:
        PromptError: it is none of these, or its columns differ in length.
    """
    names = getattr(data, "column_names", None)
    if isinstance(names, Mapping):
        splits = ", ".join(map(str, names))
        raise PromptError(f"this data set has the splits {splits}; pass one of them, as data[{next(iter(names))!r}]")
    if names is None:
        names = list(data) if isinstance(data, Mapping) else getattr(data, "columns", None)
    if names is None or not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise PromptError(
            f"prompts come from a datasets.Dataset, a pandas frame or a dict of columns, not {type(data).__name__};"
            " take a part of a stream, as datasets.Dataset.from_list(list(stream.take(100)))"
        )
    names = list(names)
    _check_names(names, "the data set")
    count = len(data) if not isinstance(data, Mapping) else len(next(iter(data.values()), ()))
    if isinstance(data, Mapping) and any(len(cells) != count for cells in data.values()):
        sizes = ", ".join(f"{name} {len(cells)}" for name, cells in data.items())
        raise PromptError(f"the columns differ in length ({sizes}); give one cell a row in each")
    rows = [f"row {index}" for index in range(count)]
    keys = {str(name): name for name in names}
    return Table("the data set", tuple(keys), lambda name: list(map(_plain, data[keys[name]])), rows)


def _plain(cell: Any) -> Any:
    """A cell as JSON would give it: arrays as lists, and messages kept by column as a list of messages."""
    cell = cell.tolist() if hasattr(cell, "tolist") else cell
    if isinstance(cell, Mapping) and cell and all(isinstance(value, (list, tuple)) for value in cell.values()):
        return [dict(zip(cell, values, strict=True)) for values in zip(*cell.values(), strict=True)]
    return cell


def read_table(path: str | os.PathLike[str]) -> Table:
    """Read a file by its ending (see `Prompts.from_file`).

    Raises:
        PromptError: it cannot be read, or is not what its ending says.
    """
    file = Path(path)
    ending = file.suffix.lower()
    if ending == ".parquet":
        return _parquet(file)
    text = _read_text(file)
    if ending in (".csv", ".tsv"):
        return _separated(file, text, "," if ending == ".csv" else "\t")
    if ending in (".jsonl", ".ndjson"):
        return _json_rows(file, *_json_lines(file, text))
    if ending == ".json":
        return _json(file, text)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    return Table(str(file), (), lambda _: [line for _, line in lines], [f"line {number}" for number, _ in lines])


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise PromptError(f"cannot read prompts from {file} ({os_reason(error)}); give {_FORMATS}") from error
    except UnicodeDecodeError as error:
        raise PromptError(f"cannot read prompts from {file} (it is not UTF-8 text); give {_FORMATS}") from error


def _check_names(names: Sequence[Any], origin: str) -> None:
    twice = next((name for index, name in enumerate(names) if name in list(names)[:index]), None)
    if twice is not None:
        raise PromptError(f"{origin} has two columns {twice!r}; rename one")


def _separated(file: Path, text: str, delimiter: str) -> Table:
    # Tab-separated corpora hold bare quotation marks; in comma-separated ones they quote.
    quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    limit = csv.field_size_limit(sys.maxsize)  # of the whole process, so put back
    rows, numbers = [], []
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
        for row in reader:
            if row:
                rows.append(row)
                numbers.append(reader.line_num)
    except csv.Error as error:
        raise PromptError(f"{file}, line {reader.line_num}: {error}; quote texts that hold quotation marks") from error
    finally:
        csv.field_size_limit(limit)
    if not rows:
        raise PromptError(f"{file} is empty; its first line names the columns, as text,answer,alternative")
    names = tuple(name.strip() for name in rows[0])
    _check_names(names, str(file))
    for row, number in zip(rows, numbers, strict=True):
        if len(row) != len(names):
            kind = "commas" if delimiter == "," else "tabs"
            raise PromptError(
                f"{file}, line {number} has {len(row)} cells, its first line {len(names)} columns ({_listed(names)});"
                f" quote texts that hold {kind}" + ("" if delimiter == "," else " in a .csv file")
            )
    return Table(
        str(file),
        names,
        lambda name: [row[names.index(name)] for row in rows[1:]],
        [f"line {number}" for number in numbers[1:]],
    )


def _json(file: Path, text: str) -> Table:
    """A list of rows, or one row a line."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return _json_rows(file, *_json_lines(file, text))
    if isinstance(whole, list):
        return _json_rows(file, whole, [f"row {index}" for index in range(len(whole))])
    if isinstance(whole, dict) and any(name in whole for name in PROMPT_COLUMNS) and "\n" not in text.strip():
        return _json_rows(file, [whole], ["line 1"])
    keys = f"an object with {', '.join(map(str, whole))[:80]}" if isinstance(whole, dict) else type(whole).__name__
    raise PromptError(f"{file} holds {keys}; give a list of rows, or one row a line")


def _json_lines(file: Path, text: str) -> tuple[list[Any], list[str]]:
    rows, names = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                reason = getattr(error, "msg", "nested too deeply")
                raise PromptError(f"{file}, line {number} is no JSON ({reason}); give one JSON value a line") from error
            names.append(f"line {number}")
    return rows, names


def _json_rows(file: Path, rows: list[Any], names: list[str]) -> Table:
    """Rows that are objects have columns; bare strings, chats and lists of ids have none."""
    tables = [isinstance(row, dict) for row in rows]
    if not any(tables):
        return Table(str(file), (), lambda _: rows, names)
    if not all(tables):
        raise PromptError(
            f"{file}, {names[tables.index(not tables[0])]} is {'no object' if tables[0] else 'an object'}, unlike the"
            " rows before it; give objects with columns, or bare prompts, throughout"
        )
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    return Table(str(file), columns, lambda name: [row.get(name) for row in rows], names)


def _parquet(file: Path) -> Table:
    import pyarrow
    from pyarrow import parquet

    def read(columns: list[str] | None) -> Any:
        try:
            with file.open("rb") as source:  # Python's own errors name the reason
                return (
                    parquet.read_schema(source)
                    if columns is None
                    else parquet.read_table(source, columns=columns, use_threads=False)
                )
        except (OSError, pyarrow.ArrowException) as error:
            known = isinstance(error, OSError) and error.strerror
            reason = os_reason(error) if known else "it is no Parquet file, or a damaged one"
            raise PromptError(f"cannot read prompts from {file} ({reason}); give {_FORMATS}") from error

    names = tuple(read(None).names)
    _check_names(names, str(file))
    count = read([]).num_rows
    return Table(
        str(file),
        names,
        lambda name: list(map(_plain, read([name]).column(0).to_pylist())),
        [f"row {index}" for index in range(count)],
    )
