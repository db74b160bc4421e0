"""Templates and style sheets that lie beside this file, and the one way in which they are filled."""

from __future__ import annotations

import os
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

from interp.errors import InterpError
from interp.plot.text import clean


def resource(name: str, package: str = "interp.report") -> str:
    """A file that lies in a package, as text."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def check_page(path: str | os.PathLike[str]) -> None:
    """Refuse a name that is no page's, before the work or at its end.

    Raises:
        InterpError: it does not end in .html.
    """
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise InterpError(f"a report is an HTML page; name a file that ends in .html, not {os.fspath(path)!r}")


def template(name: str, package: str = "interp.report") -> Template:
    """A template. Every value is escaped, and loses its control characters; Markup was made here and passes."""
    return _environment(package).get_template(name)


@cache
def _environment(package: str) -> Environment:
    return Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
        loader=FunctionLoader(lambda each: resource(each, package)),
    )


def _finalize(value: Any) -> Any:
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value
