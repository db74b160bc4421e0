"""The report's sections in the order in which they are read, and which of them this comparison has."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import xarray as xr

from interp.report.figures import SPECS
from interp.report.views import settings


@dataclass(frozen=True)
class Section:
    """One section of the page.

    Attributes:
        name: its id.
        title: its heading.
        short: its name in the list of sections.
        measure: what to ask `compare` for.
    """

    name: str
    title: str
    short: str
    measure: str


_OWN = (
    Section("tokens", "Likeliest next tokens", "Top tokens", "next_token"),
    Section("attention", "Attention of the heads that changed most", "Patterns", "attention"),
    Section("ov", "What the changed heads read and write", "OV circuits", "attention"),
    Section("samples", "Sample completions", "Completions", "completions"),
    Section("token_texts", "What the reward reads, and what the tuning moved", "Coloured texts", "token_join"),
)
_ORDER = {
    "Next token": ("tokens", "movers", "answers", "mass_outside", "kl", "entropy"),
    "Layers": ("lens", "lens_positions", "residual"),
    "Attribution": ("attribution", "heads", "neurons"),
    "Attention": ("attention_change", "attention_entropy", "attention_classes", "attention", "ov"),
    "Weights": ("weights", "singular_directions"),
    "Reward": ("implicit_reward", "token_join", "token_texts", "over_optimisation", "probes"),
    "Text": ("samples",),
}
_ONLY_SOMETIMES = ("mass_outside", "answers")  # they need more than that their measure is taken

SECTIONS = {s.name: s for s in (*_OWN, *(Section(s.name, s.title, s.short, s.measure) for s in SPECS))}


def present(names: Collection[str]) -> dict[str, list[Section]]:
    """The sections that this page has, by group and in reading order."""
    groups = {title: [SECTIONS[n] for n in order if n in names] for title, order in _ORDER.items()}
    return {title: sections for title, sections in groups.items() if sections}


def missing(names: Collection[str], data: xr.Dataset) -> list[Section]:
    """The sections left out because their measure was not taken.

    One that was taken and has nothing to show, as where a family has no such part, is not among them.
    """
    taken = {*settings(data).get("measures", []), *(SECTIONS[n].measure for n in names)}
    order = [n for names_ in _ORDER.values() for n in names_]
    left_out = [n for n in order if n not in names and n not in _ONLY_SOMETIMES]
    return [SECTIONS[n] for n in left_out if SECTIONS[n].measure not in taken]
