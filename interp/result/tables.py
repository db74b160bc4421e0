"""A table as a person reads it, and numbers as every table, figure and page writes them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd

WIDTH = 80

Number = float | int | np.number | np.bool_
_LEAST = 24
"""Characters that a column of words keeps at least when a table is narrowed."""


def number(value: Number, digits: int = 4) -> str:
    """A number with `digits` significant digits; what is not finite is a dash."""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return str(value)
    return f"{value:.{digits}g}" if np.isfinite(value) else "-"


def interval(low: Number, high: Number) -> str:
    """Two ends as one cell: "[low, high]", one number where they are equal, nothing where they are not there."""
    if not (np.isfinite(low) and np.isfinite(high)):
        return ""
    return number(low) if low == high else f"[{number(low)}, {number(high)}]"


def cells(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame as text: NAME_low and NAME_high are one column of intervals, columns without any value are gone.

    The column of intervals of a number NAME stands behind it and is called "95 % of NAME"; where the frame holds no
    NAME, as for the range of control runs, it is called NAME.
    """
    names = list(map(str, frame.columns))
    out: dict[str, list[str]] = {}
    for name in names:
        stem, end = name[:-4] if name.endswith("_low") else name[:-5], name.rpartition("_")[2]
        if end == "high" and f"{stem}_low" in names:
            continue
        if end == "low" and f"{stem}_high" in names:
            title = f"95 % of {stem}" if stem in names else stem
            column = [interval(*ends) for ends in zip(frame[name], frame[f"{stem}_high"], strict=True)]
        else:
            title, column = name, [_cell(value) for value in frame[name]]
        if any(text not in ("", "-") for text in column) or not len(frame):
            out[title] = column
    return pd.DataFrame(out)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, (float, int, np.floating, np.integer, np.bool_)):
        return number(value)
    return " ".join("".join(char if char.isprintable() else " " for char in str(value)).split())


def frame_text(frame: pd.DataFrame, *, width: int = WIDTH, rows: int | None = None, fold: bool = False) -> str:
    """A frame as aligned columns: words to the left, numbers to the right.

    A table that is too wide is narrowed: long words are cut, then the last columns are left out; what was left out is
    said under the table.

    Args:
        frame: the table; NAME_low and NAME_high become one column (see `cells`).
        width: columns of the terminal; 0 is no limit.
        rows: most rows that are shown; None is all.
        fold: long words go on in the lines below instead of being cut.

    Returns:
        Lines, joined by newlines; "(nothing)" for a table without rows.
    """
    if not len(frame):
        return "(nothing)"
    shown = frame if rows is None else frame.head(max(rows, 0))
    numeric = {str(name) for name in frame.columns if pd.api.types.is_numeric_dtype(frame[name].dtype)}
    table = cells(shown)
    absent = [name for name in cells(frame).columns if name not in table] if len(shown) < len(frame) else []
    titles = [name for name in table.columns]
    right = [name for name in titles if name in numeric or name not in map(str, frame.columns)]
    widths = {name: max(len(name), *map(len, table[name]), 1) if len(table) else len(name) for name in titles}
    titles, widths, dropped = _fitted(titles, widths, right, width)
    lines = [_line(titles, titles, widths, right)]
    for _, row in table.iterrows():
        parts = {name: _parts(str(row[name]), widths[name], fold) for name in titles}
        for index in range(max(map(len, parts.values()))):
            texts = [parts[name][index] if index < len(parts[name]) else "" for name in titles]
            lines.append(_line(texts, titles, widths, right))
    notes = []
    if len(shown) < len(frame):
        left = len(frame) - len(shown)
        notes.append(f"... {left} more {'row' if left == 1 else 'rows'}")
    dropped = [*dropped, *absent]
    if dropped:
        notes.append(f"not shown: {', '.join(dropped)}")
    if notes:
        text = "; ".join(notes)
        lines.append(textwrap.shorten(text, width, placeholder=" ...") if width else text)
    return "\n".join(lines)


def _fitted(
    titles: list[str], widths: dict[str, int], right: Sequence[str], width: int
) -> tuple[list[str], dict[str, int], list[str]]:
    """Columns and their widths so that a line fits, and the columns that are left out."""
    dropped: list[str] = []
    titles, widths = list(titles), dict(widths)
    while width:
        excess = sum(widths[name] for name in titles) + 2 * (len(titles) - 1) - width
        if excess <= 0:
            break
        words = [name for name in titles if name not in right and widths[name] > _LEAST]
        if words:
            widest = max(words, key=lambda name: widths[name])
            others = [widths[name] for name in words if name != widest]
            floor = max([_LEAST, *others])
            widths[widest] = max(widths[widest] - excess, min(floor, widths[widest] - 1))
        elif len(titles) > 2:
            dropped.insert(0, titles.pop())
        else:
            widest = max(titles, key=lambda name: widths[name])
            widths[widest] = max(1, widths[widest] - excess)
            break
    return titles, widths, dropped


def _parts(text: str, width: int, fold: bool) -> list[str]:
    if len(text) <= width:
        return [text]
    if fold:
        return textwrap.wrap(text, width, subsequent_indent="  ") or [""]
    return [text[: max(width - 1, 0)] + "\N{HORIZONTAL ELLIPSIS}"]


def _line(texts: Sequence[str], titles: Sequence[str], widths: dict[str, int], right: Sequence[str]) -> str:
    padded = [
        text[: widths[name]].rjust(widths[name]) if name in right else text[: widths[name]].ljust(widths[name])
        for text, name in zip(texts, titles, strict=True)
    ]
    return "  ".join(padded).rstrip()
