"""The page itself: template, style, script and content put together."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from interp.errors import InterpError
from interp.io import write_text
from interp.plot.style import Result
from interp.plot.text import clean
from interp.report import views
from interp.report.figures import SPECS, draw
from interp.report.verdict import verdict
from interp.text import interval_notes


def render(cmp: Result) -> str:
    """The report as one HTML document that needs nothing else: no network, no file beside it.

    What was not measured is left out and named in one line. The same comparison gives the same bytes.
    """
    data = cmp.dataset
    figures = {spec.name: draw(cmp, spec) for spec in SPECS}
    tokens, samples, patterns = views.top_tokens(data), views.completions(data), views.attention(data)
    columns, rows = views.headline(cmp.summary())
    missing = [(s.title, s.measure) for s in SPECS if figures[s.name] is None]
    for content, title, measure in (
        (tokens, "Likeliest next tokens", "next_token"),
        (patterns, "Attention of the heads that changed most", "attention"),
        (samples, "Sample completions", "completions"),
    ):
        if content is None:
            missing.append((title, measure))
    return _template().render(
        sources={m: views.source(data, m) for m in ("base", "tuned")},
        prompts=data.sizes["prompt"],
        verdict=verdict(cmp),
        columns=columns,
        rows=rows,
        specs={s.name: s for s in SPECS},
        figures=figures,
        tokens=tokens,
        samples=samples,
        attention=patterns,
        attention_json=views.embed(patterns),
        controls=len(cmp.controls),
        missing=missing,
        notes=interval_notes(data),
        provenance=views.provenance(data),
        css=Markup(_resource("page.css")),
        js=Markup(_resource("page.js")),
    )


def write(cmp: Result, path: str | os.PathLike[str]) -> Path:
    """Write the report to `path`, whole or not at all.

    Raises:
        InterpError: the file cannot be written, or its name does not end in .html.
    """
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise InterpError(f"a report is an HTML page; name a file that ends in .html, not {os.fspath(path)!r}")
    return write_text(path, render(cmp))


def _resource(name: str) -> str:
    return files("interp.report").joinpath(name).read_text(encoding="utf-8")


def _template() -> Any:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_finalize
    )
    return environment.from_string(_resource("template.html"))


def _finalize(value: Any) -> Any:
    """Every text that enters the page loses its control characters; Markup was made here and passes."""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value
