"""The page of a result that has none of its own, and a result as a section of another's page."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from markupsafe import Markup

from interp.errors import MeasureError
from interp.plot.registry import figures_of
from interp.plot.style import COLUMN, PAGE
from interp.report.svg import Drawing, glyph_sheet, style_sheet, to_svg
from interp.result import Result, cells, drawable_names
from interp.result.pages import resource, template

ROWS = 60
"""Most rows of a table that a page shows."""


@dataclass(frozen=True)
class Picture:
    """A figure of a section.

    Attributes:
        name: of the figure.
        caption: first sentence of its function's docstring.
        wide: for a wide screen.
        narrow: for a narrow one.
    """

    name: str
    caption: str
    wide: Drawing
    narrow: Drawing


@dataclass(frozen=True)
class View:
    """A result as a page shows it.

    Attributes:
        id: unique on the page.
        title: heading.
        headline: what it says first.
        columns: of its table.
        numbers: columns of numbers.
        rows: of its table, as text.
        left_out: rows that the table leaves out.
        notes: under the table.
        pictures: its figures.
        about: what is on record of how it was made, by name.
        added: results that were added to it.
    """

    id: str
    title: str
    headline: str
    columns: tuple[str, ...]
    numbers: tuple[str, ...]
    rows: list[list[str]]
    left_out: int
    notes: list[str]
    pictures: list[Picture]
    about: list[tuple[str, str]]
    added: list[View]

    def drawings(self) -> Iterator[Drawing]:
        """Every drawing in it."""
        for picture in self.pictures:
            yield picture.wide
            yield picture.narrow
        for other in self.added:
            yield from other.drawings()


def view(result: Result, name: str = "result", title: str = "") -> View:
    """What a page shows of a result.

    Args:
        result: any.
        name: unique on the page, the beginning of its ids.
        title: its heading; "" is the title of its kind.
    """
    frame = result.summary()
    table = cells(frame.head(ROWS))
    words = {str(column) for column in frame.columns if not pd.api.types.is_numeric_dtype(frame[column].dtype)}
    return View(
        name,
        title or result.title,
        result.headline(),
        tuple(table.columns),
        tuple(column for column in table.columns if column not in words),
        table.to_numpy().tolist(),
        max(len(frame) - ROWS, 0),
        result.notes(),
        _pictures(result, name),
        _about(result),
        added_views(result.added, name),
    )


def _pictures(result: Result, prefix: str) -> list[Picture]:
    """The figures that can be drawn without being told more."""
    pictures = []
    for name in drawable_names(result):
        draw = figures_of(result.kind)[name].draw
        if any(p.default is p.empty for p in list(inspect.signature(draw).parameters.values())[1:]):
            continue
        try:
            both = [to_svg(draw(result, width=width), f"{prefix}-{name}-{width:g}") for width in (PAGE, COLUMN)]
        except MeasureError:  # it holds the arrays, and nothing in them to draw
            continue
        caption = (inspect.getdoc(draw) or name).split("\n\n")[0]
        pictures.append(Picture(name, " ".join(caption.split()), both[0], both[1]))
    return pictures


def _about(result: Result) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in result.dataset.attrs.items():
        rows += _flat(str(key).replace("_", " "), _parsed(value))
    return rows


def _parsed(value: object) -> object:
    if not isinstance(value, str) or value[:1] not in ("{", "["):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _flat(name: str, value: object) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [row for key, inner in value.items() for row in _flat(f"{name} {key}", inner)]
    if isinstance(value, (list, tuple, np.ndarray)):
        value = ", ".join(map(str, value))
    return [] if value is None or value == "" else [(name, str(value))]


def render_any(result: Result) -> str:
    """One HTML document that needs nothing else; the same result gives the same bytes."""
    shown = view(result)
    drawings = list(shown.drawings())
    return template("any_result.html").render(
        view=shown,
        glyphs=glyph_sheet(drawings),
        css=Markup(resource("page.css")) + style_sheet(drawings),
    )


def added_views(added: Mapping[str, Result], prefix: str = "added") -> list[View]:
    """What was added to a result, as sections of its page; one that was added under a name of its own bears it."""
    titles = [
        other.title if name == other.kind else f"{other.title}: {name.removeprefix(f'{other.kind}_')}"
        for name, other in added.items()
    ]
    both = enumerate(zip(added.values(), titles, strict=True))
    return [view(other, f"{prefix}-{index}", title) for index, (other, title) in both]
