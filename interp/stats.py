"""How sure a number is: intervals over prompts, split halves, ranges and ranks of null runs; on scipy."""

from __future__ import annotations

import numpy as np
import scipy.special

MIN_PROMPTS = 8
"""Fewest prompts (groups of prompts) for which an interval is given."""

SPLIT_PROMPTS = 16
"""Fewest prompts (groups of prompts) that are split into a half that selects and a half that estimates."""

MIN_CONTROLS = 19
"""Fewest null runs for which a p is given."""


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

    low, high = _accelerated(sums, counts, (1 - level) / 2, draws, np.random.default_rng(seed))
    return mean, low, high


_DRAWN = 2**20  # indices drawn at once, so that memory does not grow with the number of prompts


def _accelerated(
    sums: np.ndarray, counts: np.ndarray, tail: float, draws: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Bounds of the bias-corrected and accelerated interval of sum(sums) / sum(counts), groups resampled together.

    As `scipy.stats.bootstrap` has it, with the leave-one-out values in closed form: they are (S - s_i) / (C - c_i).
    """
    size, blocks = len(sums), []
    for start in range(0, draws, max(1, _DRAWN // size)):
        rows = min(max(1, _DRAWN // size), draws - start)
        index = rng.integers(0, size, (rows, size))
        blocks.append(sums[index].sum(1) / counts[index].sum(1))
    drawn = np.concatenate(blocks)
    value = sums.sum() / counts.sum()
    below = ((drawn < value).mean() + (drawn <= value).mean()) / 2
    bias = scipy.special.ndtri(np.clip(below, 0.5 / draws, 1 - 0.5 / draws))
    left_out = (sums.sum() - sums) / (counts.sum() - counts)
    pull = left_out.mean() - left_out
    pull = pull / max(np.abs(pull).max(), np.finfo(float).tiny)  # whose scale cancels, but its cube may vanish
    acceleration = (pull**3).sum() / (6 * (pull**2).sum() ** 1.5) if pull.any() else 0.0
    quantiles = np.array([scipy.special.ndtri(tail), -scipy.special.ndtri(tail)]) + bias
    levels = scipy.special.ndtr(bias + quantiles / (1 - acceleration * quantiles))
    low, high = np.quantile(drawn, levels)
    return float(low), float(high)


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


def rank_p(value: float, nulls: list[float]) -> float:
    """The p of a pair's statistic among null runs: (1 + null runs at least as large in size) / (1 + null runs).

    Args:
        value: the pair's statistic.
        nulls: the same of each null run.

    Returns:
        p, from 1 / (1 + null runs) to 1; NaN with fewer than `MIN_CONTROLS` null runs, as it could not reach 0.05.
    """
    finite = np.abs([null for null in nulls if np.isfinite(null)])
    if len(finite) < MIN_CONTROLS or not np.isfinite(value):
        return float("nan")
    return float((1 + (finite >= abs(value)).sum()) / (1 + len(finite)))


def two_sided_p(value: float, null: np.ndarray) -> float:
    """The p of a permutation test: (1 + permutations at least as far from the centre) / (1 + permutations).

    The centre is the mean of all, the value among them: it is not 0 where permutations leave something in place, as
    those within texts leave what differs between texts. NaN where the value or the null is not a number.
    """
    if not np.isfinite(value) or not len(null) or not np.isfinite(null).all():
        return float("nan")
    # A permutation that changes nothing must count, though its sum is rounded otherwise.
    centre = (null.sum() + value) / (1 + len(null))
    return float((1 + (np.abs(null - centre) >= abs(value - centre) * (1 - 1e-9)).sum()) / (1 + len(null)))
