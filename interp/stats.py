"""How sure a number is: intervals over prompts, split halves, ranges of null runs; on scipy."""

from __future__ import annotations

import numpy as np
import scipy.stats

MIN_PROMPTS = 8
"""Fewest prompts (groups of prompts) for which an interval is given."""

SPLIT_PROMPTS = 16
"""Fewest prompts (groups of prompts) that are split into a half that selects and a half that estimates."""


def bootstrap_mean(
    values: np.ndarray, groups: np.ndarray | None = None, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean over prompts with its bias-corrected and accelerated bootstrap interval (Efron 1987).

    Args:
        values: one number a prompt; NaN is left out.
        groups: group of each prompt; whole groups are resampled (the cluster bootstrap), as prompts of one template are
            not independent. None: every prompt is its own.
        level: coverage.
        draws: resamples.
        seed: seed of the resampling.

    Returns:
        (mean, lower, upper) in the units of `values`; the bounds are NaN under `MIN_PROMPTS` groups, the mean is NaN
        without any prompt.
    """
    sample = np.asarray(values, dtype=np.float64)
    labels = np.arange(len(sample)) if groups is None else np.asarray(groups)
    real = np.isfinite(sample)
    sample, labels = sample[real], labels[real]
    if len(sample) == 0:
        return float("nan"), float("nan"), float("nan")
    mean = float(sample.mean())
    _, index = np.unique(labels, return_inverse=True)
    counts = np.bincount(index).astype(np.float64)
    if len(counts) < MIN_PROMPTS:
        return mean, float("nan"), float("nan")
    sums = np.bincount(index, weights=sample)
    if np.ptp(sums / counts) == 0:
        return mean, mean, mean

    def ratio(s: np.ndarray, n: np.ndarray, axis: int) -> np.ndarray | np.floating:
        return s.sum(axis) / n.sum(axis)

    result = scipy.stats.bootstrap(
        (sums, counts),
        ratio,
        paired=True,
        vectorized=True,
        confidence_level=level,
        n_resamples=draws,
        rng=np.random.default_rng(seed),
    )
    return mean, float(result.confidence_interval.low), float(result.confidence_interval.high)


def selection_halves(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Prompts on which a finding is chosen and prompts on which it is estimated.

    Every second group of prompts where there are `SPLIT_PROMPTS` groups or more; otherwise all prompts serve for both,
    and the estimate of what was chosen for being large is then itself too large.

    Args:
        groups: group of each prompt.

    Returns:
        (indices that select, indices that estimate).
    """
    everything = np.arange(len(groups))
    _, first, index = np.unique(groups, return_index=True, return_inverse=True)
    if len(first) < SPLIT_PROMPTS:
        return everything, everything
    rank = np.argsort(np.argsort(first))[index]  # groups in the order of their first prompts
    return everything[rank % 2 == 0], everything[rank % 2 == 1]


def null_range(values: list[float]) -> tuple[float, float]:
    """Smallest and largest value among null runs, NaN where there are none."""
    finite = [value for value in values if np.isfinite(value)]
    return (min(finite), max(finite)) if finite else (float("nan"), float("nan"))
