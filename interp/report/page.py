"""The page itself: template, style, script and content put together."""

from __future__ import annotations

import os
from pathlib import Path

from markupsafe import Markup

from interp.errors import InterpError
from interp.io import write_text
from interp.measures.summary import interval_notes
from interp.plot.bars import completeness_words
from interp.plot.style import Result
from interp.report import views
from interp.report.any_result import added_views
from interp.report.reward_pages import coloured_texts
from interp.report.sections import draw, missing, places, present
from interp.report.svg import glyph_sheet, style_sheet
from interp.report.verdict import verdict
from interp.result.pages import resource, template


def render(cmp: Result) -> str:
    """The report as one HTML document that needs nothing else: no network, no file beside it.

    What was not measured is left out and named in one line. The same comparison gives the same bytes.
    """
    data, table = cmp.dataset, cmp.summary()
    sections = {name: place.section for name, place in places().items()}
    drawn_by_plot = [section for section in sections.values() if section.drawn_by == "plot"]
    figures = {section.name: drawn for section in drawn_by_plot if (drawn := draw(cmp, section)) is not None}
    added = added_views(getattr(cmp, "added", {}))
    drawings = [drawing for drawn in figures.values() for drawing in drawn.values()]
    drawings += [drawing for view in added for drawing in view.drawings()]
    parts = {
        "tokens": views.top_tokens(data),
        "attention": views.attention(data),
        "ov": views.ov_circuits(data),
        "samples": views.completions(data),
        "token_texts": coloured_texts(data),
    }
    names = {*figures, *(name for name, content in parts.items() if content is not None)}
    groups = present(names)
    columns, rows = views.headline(table)
    return template("template.html").render(
        sources={m: views.source(data, m) for m in ("base", "tuned")},
        prompts=data.sizes["prompt"],
        verdict=verdict(cmp, table),
        columns=columns,
        rows=rows,
        numbers=views.NUMBERS,
        ranges=tuple(views.RANGES),
        specs=sections,
        leads={name: views.lead(table, section.readings) for name, section in sections.items()},
        figures={name: {size: drawing.svg for size, drawing in drawn.items()} for name, drawn in figures.items()},
        glyphs=glyph_sheet(drawings),
        parts=parts,
        attention_json=views.embed(parts["attention"]),
        groups=groups,
        sections=[section for members in groups.values() for section in members],
        added=added,
        missing=missing(names, data),
        completeness=completeness_words(data),
        runs={"control runs": len(cmp.controls), "replicates": len(getattr(cmp, "replicates", ()))},
        notes=interval_notes(data),
        provenance=views.provenance(data),
        css=Markup(resource("page.css")) + style_sheet(drawings),
        coloured=Markup(resource("coloured.css")) if parts["token_texts"] else "",
        js=Markup(resource("page.js")),
    )


def write(cmp: Result, path: str | os.PathLike[str]) -> Path:
    """Write the report to `path`, whole or not at all.

    Raises:
        InterpError: the file cannot be written, or its name does not end in .html.
    """
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise InterpError(f"a report is an HTML page; name a file that ends in .html, not {os.fspath(path)!r}")
    return write_text(path, render(cmp))
