"""Circuits chosen on half the prompts and judged on the other half, and the other way round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from interp.circuits.choice import By, Circuit, choose
from interp.circuits.faithfulness import CircuitValues, circuit_values
from interp.circuits.metrics import Metric
from interp.circuits.scores import EdgeScores, mean_of
from interp.models import Policy
from interp.prompts import Prompts
from interp.stats import selection_halves


def folds(scores: EdgeScores) -> list[tuple[np.ndarray, np.ndarray]]:
    """Prompts that choose and prompts that judge: two halves in turn; under 16 groups, or pooled scores, all and all.

    A circuit that was chosen on the prompts that judge it looks better than it is, and so would tuned's own circuit
    beside base's.
    """
    first, second = selection_halves(scores.groups.astype(str))
    if len(first) == len(scores.groups) or scores.weights.max() > 1:
        everything = np.arange(int(scores.weights.sum()))
        return [(everything, everything)]
    return [(first, second), (second, first)]


def crossfitted(
    policy: Policy,
    pairs: Prompts,
    ranked: Sequence[EdgeScores],
    fixed: Sequence[Circuit],
    metric: Metric,
    sizes: Sequence[int],
    *,
    by: By,
    batch_size: int,
) -> CircuitValues:
    """The metric under each score's circuits at every size, and under fixed circuits, each prompt judged once.

    Args:
        policy: the model that runs.
        pairs: the prompts of all scores.
        ranked: scores from which circuits are chosen.
        fixed: circuits that are chosen already, such as random ones.
        metric: see `Metric`.
        sizes: numbers of edges.
        by: how circuits are chosen.
        batch_size: prompts that run together.

    Returns:
        By prompt: the circuits of the first scores by size, those of the next, then the fixed ones.
    """
    parts: list[tuple[np.ndarray, CircuitValues]] = []
    for chooses, judges in folds(ranked[0]):
        circuits = [c for scores in ranked for c in _chosen(scores, chooses, sizes, by)]
        found = circuit_values(policy, pairs, [*circuits, *fixed], metric, batch_size=batch_size, rows=judges)
        parts.append((judges, found))
    order = np.argsort(np.concatenate([rows for rows, _ in parts]))
    return replace(
        parts[0][1],
        circuits=np.concatenate([each.circuits for _, each in parts])[order],
        clean=np.concatenate([each.clean for _, each in parts])[order],
        corrupted=np.concatenate([each.corrupted for _, each in parts])[order],
        groups=np.concatenate([each.groups for _, each in parts])[order],
    )


def _chosen(scores: EdgeScores, rows: np.ndarray, sizes: Sequence[int], by: By) -> list[Circuit]:
    weights = scores.weights.copy()
    if weights.max() == 1:  # not pooled: each row is a prompt
        weights = np.isin(np.arange(len(weights)), rows).astype(float)
    strength = mean_of(scores.values, weights)
    return [choose(scores.graph, strength, size, by=by) for size in sizes]
