"""How sure a number is: intervals over prompts, tests by permutation and by sign flips, ranks among control runs.

    mean, low, high = interval(values, groups)            # a mean, or of [prompt, column] one for each column
    interval(tuned - base, groups)                        # a difference, paired by prompt
    interval(effects, groups, over=gaps)                  # a ratio of sums, both resampled together
    interval(lambda rows: spearmanr(x[rows], y[rows]).statistic, groups)

The unit is the prompt, or a group of prompts that are not independent, such as those of one template; a group is
resampled, flipped and halved as one. What these numbers support is one claim only: these two models differ here, on
prompts like these. That the reward did it needs control runs (`rank_p`, `null_range`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.special
from jaxtyping import Bool, Float, Int

MIN_PROMPTS = 8
"""Fewest prompts (groups of prompts) for which an interval is given."""

SPLIT_PROMPTS = 16
"""Fewest prompts (groups of prompts) that are split into a half that selects and a half that estimates."""

MIN_CONTROLS = 19
"""Fewest control runs for which a p is given."""

_CELLS = 2**22  # numbers drawn at once, so that memory grows neither with the prompts nor with the columns
_INDICES = 2**20

Statistic = Callable[[Int[np.ndarray, " row"]], Any]
"""From the rows of a resample, by index, to a number or to one number a column."""


@dataclass(frozen=True)
class Estimate:
    """An estimate and its interval, numbers or arrays with one entry per column; it unpacks as `value, low, high`.

    Attributes:
        value: NaN where it was refused.
        low: lower bound, NaN without an interval.
        high: upper bound.
        reason: why a value or an interval is missing; "" where none is.
    """

    value: Any
    low: Any = float("nan")
    high: Any = float("nan")
    reason: str = ""

    def __iter__(self) -> Iterator[Any]:
        yield from (self.value, self.low, self.high)

    def __len__(self) -> int:
        return 3

    def __getitem__(self, place: int) -> Any:
        return (self.value, self.low, self.high)[place]

    def column(self, index: int) -> Estimate:
        """The estimate of one column."""
        value, low, high = (float(each[index]) for each in self)
        return Estimate(value, low, high, self.reason)

    def __str__(self) -> str:
        if np.ndim(self.value):
            return f"{len(self.value)} estimates" + (f" ({self.reason})" if self.reason else "")
        if not np.isfinite(self.value):
            return f"none ({self.reason})"
        return f"{self.value:.3g}" + (f" [{self.low:.3g}, {self.high:.3g}]" if np.isfinite(self.low) else "")


def interval(
    values: np.ndarray | Statistic,
    groups: np.ndarray | None = None,
    *,
    over: np.ndarray | None = None,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
    what: str = "the denominator",
) -> Estimate:
    """A statistic over prompts with its bias-corrected and accelerated bootstrap interval (BCa; Efron 1987).

    It is the interval of `scipy.stats.bootstrap(method="BCa")`, over whole groups (the cluster bootstrap).

    Args:
        values: what the statistic is of.
            - float [prompt] or [prompt, column]: the mean over prompts; NaN is left out, column by column.
            - the same with `over`: the ratio sum(values) / sum(over).
            - a function from the rows of a resample to a number, or to one a column; with it `groups` is needed.
        groups: group of each prompt; whole groups are resampled, as prompts of one template are not independent. None:
            every prompt is its own.
        over: float [prompt], the denominator of all columns.
        level: coverage.
        draws: resamples.
        seed: seed of the resampling.
        what: what `over` is, for the reason.

    Returns:
        The estimate in the units of `values` (of a ratio, their quotient): numbers, or arrays [column]. The bounds are
        NaN under `MIN_PROMPTS` groups, and equal the value where all groups have the same. The value is NaN without
        any prompt, and a ratio where the interval of the sum of `over` holds 0 (without an interval: where it is 0), as
        any ratio could come of that.
    """
    if callable(values):
        assert groups is not None, "a statistic of rows needs groups"
        return _of_statistic(values, np.asarray(groups), level, draws, seed)
    table = np.asarray(values, dtype=np.float64)
    single = table.ndim == 1
    table = table[:, None] if single else table
    labels = np.arange(len(table)) if groups is None else np.asarray(groups)
    if over is None:
        estimate = _of_means(table, labels, level, draws, seed)
    else:
        estimate = _of_ratios(table, np.asarray(over, dtype=np.float64), labels, level, draws, seed, what)
    return estimate.column(0) if single else estimate


def _few(groups: int) -> str:
    return f"fewer than {MIN_PROMPTS} groups of prompts: no interval" if groups < MIN_PROMPTS else ""


def _of_means(table: np.ndarray, labels: np.ndarray, level: float, draws: int, seed: int) -> Estimate:
    out, reasons = np.full((3, table.shape[1]), np.nan), {""}
    real = np.isfinite(table)
    patterns, pattern = np.unique(real, axis=1, return_inverse=True) if not real.all() else (real[:, :1], 0)
    for number, rows in enumerate(patterns.T):
        columns = np.flatnonzero(np.broadcast_to(pattern, table.shape[1]) == number)
        if not rows.any():
            reasons.add("no prompt has a value")
            continue
        _, index = np.unique(labels[rows], return_inverse=True)
        counts = np.bincount(index).astype(np.float64)
        sample = np.ascontiguousarray(table[rows][:, columns].T)
        out[0, columns] = sample.mean(1)
        if reason := _few(len(counts)):
            reasons.add(reason)
            continue
        sums = np.array([np.bincount(index, weights=row) for row in sample])
        out[1:, columns] = out[0, columns]
        varies = np.ptp(sums / counts, axis=1) > 0
        out[1:, columns[varies]] = _bounds_of_means(sums[varies], counts, level, draws, seed)
    return Estimate(out[0], out[1], out[2], "; ".join(sorted(reasons - {""})))


def _bounds_of_means(sums: np.ndarray, counts: np.ndarray, level: float, draws: int, seed: int) -> np.ndarray:
    """Bounds of sum(sums) / sum(counts) for each row of sums [column, group]; leave-one-out values in closed form."""
    drawn = np.empty((len(sums), draws))
    start = 0
    for index in _indices(len(counts), draws, seed):
        part = slice(start, start + len(index))
        below = counts[index].sum(1)
        for column, row in enumerate(sums):
            drawn[column, part] = row[index].sum(1) / below
        start = part.stop
    total = sums.sum(1)
    left_out = (total[:, None] - sums) / (counts.sum() - counts)
    return bca(total / counts.sum(), drawn, left_out, level=level)


def _indices(count: int, draws: int, seed: int) -> Iterator[Int[np.ndarray, "draw group"]]:
    """Indices of the groups of each resample, block by block."""
    rng, step = np.random.default_rng(seed), max(1, _INDICES // count)
    for start in range(0, draws, step):
        yield rng.integers(0, count, (min(step, draws - start), count))


def _of_ratios(
    table: np.ndarray, over: np.ndarray, labels: np.ndarray, level: float, draws: int, seed: int, what: str
) -> Estimate:
    top, bottom = group_sums(table, labels), group_sums(over[:, None], labels)
    missing = np.full(table.shape[1], np.nan)
    total = float(bottom.sum())
    if reason := _few(len(top)):
        return Estimate(
            top.sum(0) / total if total else missing, missing, missing, reason if total else f"the sum of {what} is 0"
        )
    weights = _weights(len(top), draws, seed)
    drawn_bottom = (weights @ bottom)[:, 0]
    low, high = np.quantile(drawn_bottom, [(1 - level) / 2, (1 + level) / 2])
    if low <= 0 <= high:
        _, low, high = interval(over, labels, level=level, draws=draws, seed=seed)
        reason = f"the interval of {what} holds 0 (mean in [{low:.3g}, {high:.3g}])"
        return Estimate(missing, missing, missing, reason)
    bounds = np.empty((2, table.shape[1]))
    step = max(1, _CELLS // draws)
    for start in range(0, table.shape[1], step):
        part = top[:, start : start + step]
        drawn = (weights @ part) / drawn_bottom[:, None]
        left_out = (part.sum(0) - part) / (bottom.sum() - bottom)
        bounds[:, start : start + step] = bca(part.sum(0) / bottom.sum(), drawn.T, left_out.T, level=level)
    return Estimate(top.sum(0) / total, bounds[0], bounds[1])


def _weights(count: int, draws: int, seed: int) -> Float[np.ndarray, "draw group"]:
    """How often each group is in each resample."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float64)


def _of_statistic(statistic: Statistic, groups: np.ndarray, level: float, draws: int, seed: int) -> Estimate:
    _, index = np.unique(groups, return_inverse=True)
    rows = np.split(np.argsort(index, kind="stable"), np.cumsum(np.bincount(index))[:-1])
    value = np.asarray(statistic(np.arange(len(groups))), dtype=np.float64)
    single, flat = value.ndim == 0, np.atleast_1d(value)
    bounds, reason = np.full((2, len(flat)), np.nan), _few(len(rows))
    if not reason:
        resamples = (each for block in _indices(len(rows), draws, seed) for each in block)
        drawn = [statistic(np.concatenate([rows[group] for group in each])) for each in resamples]
        left_out = [statistic(np.concatenate([*rows[:out], *rows[out + 1 :]])) for out in range(len(rows))]
        tables = [np.array(each, dtype=np.float64).reshape(-1, len(flat)).T for each in (drawn, left_out)]
        bounds = bca(flat, *tables, level=level)
    estimate = Estimate(flat, bounds[0], bounds[1], reason)
    return estimate.column(0) if single else estimate


def bca(
    value: Float[np.ndarray, " column"],
    drawn: Float[np.ndarray, "column draw"],
    left_out: Float[np.ndarray, "column group"],
    *,
    level: float = 0.95,
) -> Float[np.ndarray, "bound column"]:
    """Bias-corrected and accelerated bounds out of resamples and leave-one-out values (Efron 1987; as scipy has it).

    `interval` draws and calls this; who resamples in another way calls it by itself.

    Args:
        value: the statistic of all groups.
        drawn: of each resample.
        left_out: of all groups but one.
        level: coverage.

    Returns:
        Lower and upper bounds; where all resamples are alike, the value.
    """
    drawn, left_out = np.ascontiguousarray(drawn), np.ascontiguousarray(left_out)
    draws = drawn.shape[1]
    below = ((drawn < value[:, None]).mean(1) + (drawn <= value[:, None]).mean(1)) / 2
    bias = scipy.special.ndtri(np.clip(below, 0.5 / draws, 1 - 0.5 / draws))
    pull = left_out.mean(1, keepdims=True) - left_out
    pull = pull / np.maximum(np.abs(pull).max(1, keepdims=True), np.finfo(float).tiny)  # cubes must not vanish
    spread = np.maximum((pull**2).sum(1), 1e-100)  # at least 1 but where nothing pulls
    acceleration = (pull**3).sum(1) / (6 * spread**1.5)
    ordered = np.sort(drawn, axis=1)
    tail, bounds = scipy.special.ndtri((1 - level) / 2), []
    for end in (tail, -tail):
        levels = scipy.special.ndtr(bias + (end + bias) / (1 - acceleration * (end + bias)))
        bounds.append(_quantiles(ordered, levels))
    return np.where(ordered[:, 0] == ordered[:, -1], value, np.stack(bounds))


def _quantiles(ordered: Float[np.ndarray, "row draw"], levels: Float[np.ndarray, " row"]) -> np.ndarray:
    """The quantile of each row at its own level, linear between neighbours as `numpy.quantile`; NaN of a row of NaN."""
    real = np.isfinite(levels) & np.isfinite(ordered[:, -1])
    place = np.where(real, levels, 0) * (ordered.shape[1] - 1)
    low = np.floor(place).astype(int)
    share, rows = place - low, np.arange(len(ordered))
    first, second = ordered[rows, low], ordered[rows, np.minimum(low + 1, ordered.shape[1] - 1)]
    step = second - first
    return np.where(real, np.where(share < 0.5, first + step * share, second - step * (1 - share)), np.nan)


def group_index(groups: np.ndarray) -> Int[np.ndarray, " prompt"]:
    """Each prompt's group as a number from 0, groups in the order of their names as text."""
    return np.asarray(np.unique(np.asarray(groups).astype(str), return_inverse=True)[1])


def group_sums(values: Float[np.ndarray, "prompt column"], groups: np.ndarray) -> Float[np.ndarray, "group column"]:
    """Sums over the prompts of each group, groups in sorted order."""
    _, index = np.unique(groups, return_inverse=True)
    sums = np.zeros((index.max() + 1, values.shape[1]))
    np.add.at(sums, index, values)
    return sums


def resamples(groups: np.ndarray, *, draws: int, seed: int = 0) -> Float[np.ndarray, "draw prompt"] | None:
    """How often each prompt is drawn in each bootstrap resample of whole groups; None under `MIN_PROMPTS` groups."""
    index = group_index(groups)
    count = int(index.max()) + 1
    return _weights(count, draws, seed)[:, index] if count >= MIN_PROMPTS else None


def random_halves(groups: np.ndarray, *, draws: int, seed: int = 0) -> Bool[np.ndarray, "draw prompt"] | None:
    """Which prompts are in the first of two halves of the groups, drawn many times; None under 4 groups."""
    index = group_index(groups)
    count = int(index.max()) + 1
    if count < 4:
        return None
    order = np.random.default_rng(seed).permuted(np.tile(np.arange(count), (draws, 1)), axis=1)
    return (order < count // 2)[:, index]


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


def max_t(effects: np.ndarray, groups: np.ndarray, *, draws: int = 2000, seed: int = 0) -> np.ndarray:
    """For each site the p of its mean effect under sign flips, corrected for the size of the map (max-T).

    Under the null the effect of a group of prompts is as likely one sign as the other; t is the mean over its standard
    error, and its null distribution that of the largest |t| of the map (Westfall and Young 1993; Nichols and Holmes
    2002).

    Args:
        effects: float [prompt, site].
        groups: group of each prompt; a group flips as one.
        draws: sign flips; where all of them are fewer, all are taken.
        seed: seed of the flips.

    Returns:
        p by site, at least 1 / (1 + flips); NaN under `MIN_PROMPTS` groups and where an effect is not finite.
    """
    sums = group_sums(effects, groups)
    count = len(sums)
    p = np.full(effects.shape[1], np.nan)
    real = np.isfinite(sums).all(0) & (sums != 0).any(0)
    p[np.isfinite(sums).all(0) & ~real] = 1.0
    if count < MIN_PROMPTS:
        return np.full(effects.shape[1], np.nan)
    if not real.any():
        return p
    sums = sums[:, real]
    squares = (sums**2).sum(0)
    if 2**count - 1 <= draws:  # the flips that change something; a flip of all signs keeps |t|
        bits = (np.arange(1, 2**count)[:, None] >> np.arange(count)) & 1
        signs = 1.0 - 2.0 * bits
    else:
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(draws, count))
    largest = np.zeros(len(signs))
    step = max(1, _CELLS // len(signs))
    for start in range(0, sums.shape[1], step):
        part = slice(start, start + step)
        largest = np.maximum(largest, _t(signs @ sums[:, part], squares[part], count).max(1))
    observed = _t(sums.sum(0)[None], squares, count)[0]
    tolerance = 1e-12 * np.maximum(observed, 1.0)
    p[real] = (1 + (largest[:, None] >= (observed - tolerance)[None]).sum(0)) / (1 + len(signs))
    return p


def _t(totals: np.ndarray, squares: np.ndarray, count: int) -> np.ndarray:
    """|mean / standard error| from sums and sums of squares, which flips leave as they are."""
    spread = (squares - totals**2 / count) / (count - 1)
    return np.abs(totals) / np.sqrt(np.maximum(spread, squares * 1e-24) * count)


def sign_flip_p(values: Float[np.ndarray, " prompt"], *, draws: int = 9999, seed: int = 0) -> float:
    """The p of a mean when each value is as likely to have the other sign: (1 + flips as far from 0) / (1 + flips).

    NaN values are left out; NaN under `MIN_PROMPTS` values.
    """
    real = values[np.isfinite(values)]
    if len(real) < MIN_PROMPTS:
        return float("nan")
    rng, observed, beyond = np.random.default_rng(seed), abs(real.sum()), 1
    for start in range(0, draws, 500):
        signs = rng.integers(0, 2, (min(500, draws - start), len(real))) * 2 - 1
        beyond += int((np.abs(signs @ real) >= observed * (1 - 1e-12)).sum())
    return beyond / (1 + draws)


def permutation_p(value: float, null: Float[np.ndarray, " permutation"]) -> float:
    """The p of a permutation test: (1 + permutations at least as far from the centre) / (1 + permutations).

    The centre is the mean of all, the value among them: it is not 0 where permutations leave something in place, as
    those within texts leave what differs between texts. NaN where the value or the null is not a number.
    """
    if not np.isfinite(value) or not len(null) or not np.isfinite(null).all():
        return float("nan")
    # A permutation that changes nothing must count, though its sum is rounded otherwise.
    centre = (null.sum() + value) / (1 + len(null))
    return float((1 + (np.abs(null - centre) >= abs(value - centre) * (1 - 1e-9)).sum()) / (1 + len(null)))


def holm(p: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Holm's (1979) correction: p of k tests, largest first multiplied by 1, the smallest by k; NaN is no test."""
    out = np.full(len(p), np.nan)
    real = np.flatnonzero(np.isfinite(p))
    order = real[np.argsort(p[real], kind="stable")]
    scaled = p[order] * np.arange(len(order), 0, -1)
    out[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return out


def null_range(values: list[float]) -> tuple[float, float]:
    """Smallest and largest value among control runs, NaN where there are none."""
    finite = [value for value in values if np.isfinite(value)]
    return (min(finite), max(finite)) if finite else (float("nan"), float("nan"))


def rank_p(value: float, nulls: list[float]) -> float:
    """The p of a pair's statistic among control runs: (1 + runs at least as large in size) / (1 + runs).

    Args:
        value: the pair's statistic.
        nulls: the same of each control run.

    Returns:
        p, from 1 / (1 + runs) to 1; NaN with fewer than `MIN_CONTROLS` runs, as it could not reach 0.05.
    """
    finite = np.abs([null for null in nulls if np.isfinite(null)])
    if len(finite) < MIN_CONTROLS or not np.isfinite(value):
        return float("nan")
    return float((1 + (finite >= abs(value)).sum()) / (1 + len(finite)))


def bootstrap_mean(
    values: np.ndarray, groups: np.ndarray | None = None, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """(mean, lower, upper): what `interval` gives of one column, for callers that have not changed to it yet."""
    mean, low, high = interval(np.asarray(values), groups, level=level, draws=draws, seed=seed)
    return mean, low, high
