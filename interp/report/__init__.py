"""One result as one self-contained HTML file: `render` gives the page of a comparison, `write` puts it on disk."""

from interp.report.any_result import render_any
from interp.report.page import render, write
from interp.result import ANY, register_page

register_page(ANY, render_any)

__all__ = ["render", "write"]
