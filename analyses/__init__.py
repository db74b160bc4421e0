"""Scripted studies on top of interp and training: one question a file."""

from typing import TYPE_CHECKING

from interp.lazy import submodules

if not TYPE_CHECKING:
    __getattr__ = submodules(__name__)
