"""Causes: patching across models and within one, ablation, attribution patching, search, steering, the value head."""

from typing import TYPE_CHECKING

from interp.lazy import submodules
from interp.patching.ablation import ablation
from interp.patching.activation import activation_patching, patch_runs
from interp.patching.attribution import attribution_map, attribution_patching
from interp.patching.generation import reward_patching, reward_runs
from interp.patching.result import Patching
from interp.patching.runs import Runs, open_runs, runs_of
from interp.patching.search import SmallestSet, smallest_set
from interp.patching.steering import Steering, steering
from interp.patching.value_reading import ValueReading, value_reading

__all__ = [
    "Patching",
    "Runs",
    "SmallestSet",
    "Steering",
    "ValueReading",
    "ablation",
    "activation_patching",
    "attribution_map",
    "attribution_patching",
    "open_runs",
    "patch_runs",
    "reward_patching",
    "reward_runs",
    "runs_of",
    "smallest_set",
    "steering",
    "value_reading",
]

if not TYPE_CHECKING:
    __getattr__ = submodules(__name__)
