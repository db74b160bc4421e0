"""Planted differences: do the toolkit's methods find what is known to be there? See `analyses.planted.study`."""

from analyses.planted.study import Settings, load, report, run

__all__ = ["Settings", "load", "report", "run"]
