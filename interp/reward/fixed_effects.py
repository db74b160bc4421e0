"""Statistics within groups: slopes and rank correlations once what varies between groups is taken out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.special
import scipy.stats
from jaxtyping import Float, Int
from scipy.stats import spearmanr

from interp.stats import MIN_PROMPTS, bca

_DRAWN = 2**21  # numbers drawn at once, so that memory does not grow with the number of groups


def centred(values: Float[np.ndarray, " n"], index: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Values minus the mean of their group.

    Args:
        values: one number a row.
        index: group of each row, numbered from 0 without gaps.
    """
    counts = np.bincount(index)
    return values - (np.bincount(index, weights=values) / np.maximum(counts, 1))[index]


@dataclass(frozen=True)
class Slopes:
    """Coefficients of a least-squares fit.

    Attributes:
        values: one a column of x, in units of y over units of x.
        low: lower bounds of their intervals.
        high: upper bounds.
        residual: what the fit leaves of each row, in units of y.
        explained: share of the variance of y within groups that the fit takes up, 0 to 1; NaN where y is constant.
    """

    values: Float[np.ndarray, " column"]
    low: Float[np.ndarray, " column"]
    high: Float[np.ndarray, " column"]
    residual: Float[np.ndarray, " n"]
    explained: float


def fixed_effects(
    y: Float[np.ndarray, " n"],
    x: Float[np.ndarray, "n column"],
    index: Int[np.ndarray, " n"],
    *,
    clusters: Int[np.ndarray, " n"] | None = None,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Slopes:
    """Least squares of y on x with an intercept for every group.

    The fit is that of the values minus their group's means (Frisch and Waugh 1933), which is the same as a dummy for
    each group. Its intervals are bias-corrected and accelerated bootstrap intervals (Efron 1987) over whole clusters.
    A column that does not vary within any group has the slope 0.

    Args:
        y: what is explained.
        x: what explains it.
        index: group of each row, from 0 without gaps; each has its own intercept.
        clusters: what is resampled, unions of groups; None: the groups.
        level: coverage.
        draws: resamples.
        seed: seed of the resampling.

    Returns:
        The slopes; their bounds are NaN under `MIN_PROMPTS` clusters.
    """
    own = np.stack([centred(column, index) for column in x.T], axis=1)
    target = centred(y, index)
    _, cluster = np.unique(index if clusters is None else clusters, return_inverse=True)
    count = int(cluster.max()) + 1
    squares = _sums(own[:, :, None] * own[:, None, :], cluster, count)
    products = _sums(own * target[:, None], cluster, count)
    values = _solve(squares.sum(0), products.sum(0))
    residual = target - own @ values
    total = float((target**2).sum())
    explained = 1 - float((residual**2).sum()) / total if total > 0 else float("nan")
    if count < MIN_PROMPTS:
        none = np.full(len(values), np.nan)
        return Slopes(values, none, none.copy(), residual, explained)
    rng = np.random.default_rng(seed)
    blocks, step = [], max(1, _DRAWN // count)
    for start in range(0, draws, step):
        rows = rng.integers(0, count, (min(step, draws - start), count))
        weights = np.stack([np.bincount(row, minlength=count) for row in rows]).astype(float)
        blocks.append(_solve(np.tensordot(weights, squares, 1), weights @ products))
    left_out = _solve(squares.sum(0) - squares, products.sum(0) - products)
    low, high = bca(values, np.concatenate(blocks).T, left_out.T, level=level)
    return Slopes(values, low, high, residual, explained)


def _sums(rows: np.ndarray, cluster: np.ndarray, count: int) -> np.ndarray:
    out = np.zeros((count, *rows.shape[1:]))
    np.add.at(out, cluster, rows)
    return out


def _solve(squares: np.ndarray, products: np.ndarray) -> np.ndarray:
    """The coefficients of one fit or many; by the pseudo-inverse, as a resample may hold a constant column."""
    return np.asarray((np.linalg.pinv(squares, hermitian=True) @ products[..., None])[..., 0])


def unit_ranks(values: Float[np.ndarray, " n"], index: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Ranks within each group, centred and of length 1, so that a sum of products is Spearman's correlation.

    Ties share their mean rank. NaN throughout a group whose values are all equal, or that has fewer than three.
    """
    ranks, groups = np.empty(len(values)), _rows(index)
    if len({len(rows) for rows in groups}) == 1:
        table = np.stack(groups)
        ranks[table] = scipy.stats.rankdata(values[table], axis=1)
    else:
        for rows in groups:
            ranks[rows] = scipy.stats.rankdata(values[rows])
    own = centred(ranks, index)
    length = np.sqrt(np.bincount(index, weights=own**2))
    length[(length < 1e-9) | (np.bincount(index) < 3)] = np.nan
    return np.asarray(own / length[index])


def spearman_within(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], index: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " group"]:
    """Spearman's rank correlation of x and y in each group; NaN where one of the two is constant, or n is under 3."""
    return np.bincount(index, weights=unit_ranks(x, index) * unit_ranks(y, index))


def permutations_within(index: Int[np.ndarray, " n"], count: int, *, seed: int) -> Iterator[Int[np.ndarray, " n"]]:
    """Random orders of the rows, each of which moves a row within its own group only.

    Args:
        index: group of each row.
        count: how many.
        seed: seed of all of them.
    """
    rng, places = np.random.default_rng(seed), np.argsort(index, kind="stable")
    for _ in range(count):
        order = np.empty(len(index), dtype=np.intp)
        order[places] = np.lexsort((rng.random(len(index)), index))
        yield order


def _rows(index: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(index, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(index[order])) + 1)


def rank_correlations(first: np.ndarray, second: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of two attributions over each text's own tokens, [prompt, label].

    Args:
        first: [prompt, pos, label].
        second: the same; a text of which one is NaN gets NaN.
        own: which tokens are the text's own, [prompt, pos].
    """
    out = np.full((len(first), first.shape[2]), np.nan)
    for row, tokens in enumerate(own):
        for column in range(first.shape[2]):
            out[row, column] = spearman(first[row, tokens, column], second[row, tokens, column])
    return out


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation, NaN where it is not defined."""
    if len(first) < 3 or not (np.ptp(first) > 0 and np.ptp(second) > 0):  # NaN is not above 0
        return float("nan")
    return float(spearmanr(first, second).statistic)
