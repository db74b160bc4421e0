"""One result as one self-contained HTML file: `render` gives the page of a comparison, `write` puts it on disk."""

from typing import TYPE_CHECKING

from interp.lazy import submodules
from interp.report.any_result import render_any
from interp.report.page import render, write
from interp.report.reward_pages import render_attribution, render_counterexamples, render_spurious, render_tokens
from interp.result import ANY, register_page

register_page(ANY, render_any)
register_page("reward_attribution", render_attribution)
register_page("spurious", render_spurious)
register_page("counterexamples", render_counterexamples)
register_page("token_join", render_tokens)

__all__ = ["render", "write"]

if not TYPE_CHECKING:
    __getattr__ = submodules(__name__)
