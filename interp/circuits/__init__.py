"""Circuits: which edges of the computation graph carry a behaviour, and whether tuning kept them.

`edge_attribution` scores every edge by gradients, `choose` takes the strongest, `faithfulness` ablates all others for
real, `stability` asks what other prompts would have chosen, and `compare` puts two models side by side.
"""

from interp.circuits.choice import Circuit, choose, default_sizes, jaccard, random_circuits
from interp.circuits.comparison import CircuitComparison, compare
from interp.circuits.faithfulness import (
    CircuitValues,
    Faithfulness,
    circuit_values,
    faithfulness,
    faithfulness_curve,
)
from interp.circuits.graph import Graph
from interp.circuits.heads import HeadChanges, head_changes
from interp.circuits.metrics import Metric
from interp.circuits.scores import EdgeScores, edge_attribution
from interp.circuits.stability import Stability, stability
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
    "random_circuits",
    "stability",
]
