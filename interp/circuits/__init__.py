"""Circuits: which edges of the computation graph carry a behaviour, and whether tuning kept them.

`edge_attribution` scores every edge by gradients, `choose` takes the strongest, `faithfulness` ablates all others for
real, `stability` asks what other prompts would have chosen, `compare` puts two models side by side, `head_changes` says
what changed in a head, and `path_patching` follows one path from a head or MLP to another.
"""

from typing import TYPE_CHECKING

from interp.circuits.compare import CircuitComparison, compare
from interp.circuits.faithfulness import (
    CircuitValues,
    Faithfulness,
    circuit_values,
    faithfulness,
    faithfulness_curve,
)
from interp.circuits.graph import Graph
from interp.circuits.heads import HeadChanges, head_changes
from interp.circuits.paths import PathPatching, path_patching
from interp.circuits.scores import EdgeScores, edge_attribution
from interp.circuits.selection import (
    Circuit,
    Selection,
    Stability,
    choose,
    default_sizes,
    jaccard,
    random_circuits,
    stability,
)
from interp.lazy import submodules
from interp.metrics import Metric
from interp.stats import Estimate

__all__ = [
    "Circuit",
    "CircuitComparison",
    "CircuitValues",
    "EdgeScores",
    "Estimate",
    "Faithfulness",
    "Graph",
    "HeadChanges",
    "Metric",
    "PathPatching",
    "Selection",
    "Stability",
    "choose",
    "circuit_values",
    "compare",
    "default_sizes",
    "edge_attribution",
    "faithfulness",
    "faithfulness_curve",
    "head_changes",
    "jaccard",
    "path_patching",
    "random_circuits",
    "stability",
]

if not TYPE_CHECKING:
    __getattr__ = submodules(__name__)
