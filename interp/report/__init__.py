"""One comparison as one self-contained HTML file: `render` gives the page, `write` puts it on disk."""

from interp.report.page import render, write

__all__ = ["render", "write"]
