"""The sweep over emotions: a pair for each, its readings, and what comes of laying them side by side.

`sweep` runs it, `check` resolves everything and runs nothing, `status` says how far it is.
"""

from analyses.sweep.config import SweepConfig
from analyses.sweep.run import RECIPE, check, status, sweep

__all__ = ["RECIPE", "SweepConfig", "check", "status", "sweep"]
