"""Planted differences: do the toolkit's methods find what is known to be there? The module `study` runs them."""

from analyses.planted.study import Settings, load, report, run

__all__ = ["Settings", "load", "report", "run"]
