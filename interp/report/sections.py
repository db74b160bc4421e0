"""The report's sections in the order in which they are read: those of every measure, and which this comparison has."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import xarray as xr

import interp.plot  # noqa: F401  (it registers the figures)
from interp.measures import Measure, Section, measures
from interp.plot.registry import figures_of
from interp.plot.style import COLUMN, PAGE, Result
from interp.report.svg import Drawing, to_svg
from interp.report.views import settings

KIND = "comparison"
"""The kind of results whose page this is."""

GROUPS = ("Next token", "Layers", "Attribution", "Attention", "Weights", "Reward", "Text")
"""The parts of the page in reading order; those of other measures follow."""


@dataclass(frozen=True)
class Place:
    """A section and the measure that it shows.

    Attributes:
        section: its words.
        measure: whose it is.
    """

    section: Section
    measure: Measure


def places() -> dict[str, Place]:
    """Every section by its name, group by group."""
    found = [Place(section, measure) for measure in measures().values() for section in measure.sections]
    others = [place.measure.group for place in found]
    groups = list(dict.fromkeys([*GROUPS, *others]))
    return {place.section.name: place for group in groups for place in found if place.measure.group == group}


def present(names: Collection[str]) -> dict[str, list[Section]]:
    """The sections that this page has, by group and in reading order."""
    groups: dict[str, list[Section]] = {}
    for name, place in places().items():
        if name in names:
            groups.setdefault(place.measure.group, []).append(place.section)
    return groups


def missing(names: Collection[str], data: xr.Dataset) -> list[Place]:
    """The sections left out because their measure was not taken.

    One that was taken and has nothing to show, as where a family has no such part, is not among them.
    """
    there = places()
    taken = {*settings(data).get("measures", []), *(there[name].measure.name for name in names)}
    return [
        place
        for name, place in there.items()
        if name not in names and not place.section.optional and place.measure.name not in taken
    ]


def draw(cmp: Result, section: Section) -> dict[str, Drawing] | None:
    """The section's figure for a wide and for a narrow screen; None where there is nothing to draw."""
    known = figures_of(KIND).get(section.name)
    if known is None or not known.can_be_drawn(cmp.dataset):
        return None
    return {
        "page": to_svg(known.draw(cmp, width=PAGE), section.name),
        "column": to_svg(known.draw(cmp, width=COLUMN), f"{section.name}-c"),
    }
