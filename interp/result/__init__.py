"""The one result that every verb returns: what it holds, how it prints, draws, is kept and read again."""

from typing import TYPE_CHECKING

from interp.lazy import submodules
from interp.result.result import ANY, PROVIDERS, Plots, Result, drawable_names, load_result, register_page
from interp.result.tables import cells, frame_text, interval, number

__all__ = [
    "ANY",
    "PROVIDERS",
    "Plots",
    "Result",
    "cells",
    "drawable_names",
    "frame_text",
    "interval",
    "load_result",
    "number",
    "register_page",
]

if not TYPE_CHECKING:
    __getattr__ = submodules(__name__)
