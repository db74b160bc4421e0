"""Causes: activation patching across models and within one, ablation, attribution patching, steering."""

from interp.patching.activation import Runs, ablation, activation_patching, open_runs, patch_runs, runs_of
from interp.patching.attribution import attribution_map, attribution_patching
from interp.patching.result import Patching

__all__ = [
    "Patching",
    "Runs",
    "ablation",
    "activation_patching",
    "attribution_map",
    "attribution_patching",
    "open_runs",
    "patch_runs",
    "runs_of",
]
