"""Resampling of whole maps: intervals of ratios of sums, and sign-flip tests that hold for the largest of a map."""

from __future__ import annotations

import numpy as np
import scipy.special

from interp.stats import MIN_PROMPTS

_CELLS = 2**22  # numbers drawn at once, so that memory does not grow with the map


def ratio_of_sums(
    effects: np.ndarray,
    gaps: np.ndarray,
    groups: np.ndarray,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sum of effects over sum of gaps, for each site, with its BCa interval (Efron 1987); groups resampled together.

    Args:
        effects: float [prompt, site].
        gaps: float [prompt]; the denominator, the same for all sites.
        groups: group of each prompt.
        level: coverage.
        draws: resamples.
        seed: seed of the resampling.

    Returns:
        (ratio, lower, upper), [site]. All NaN where the interval of the gaps' sum holds 0, as the ratio means nothing
        there; the bounds NaN under `MIN_PROMPTS` groups, where such an interval cannot be had and only a sum of
        exactly 0 is refused.
    """
    top, bottom = _by_group(effects, groups), _by_group(gaps[:, None], groups)
    sites, count = effects.shape[1], len(top)
    missing = np.full(sites, np.nan)
    total = float(bottom.sum())
    if count < MIN_PROMPTS:
        return (top.sum(0) / total if total else missing), missing, missing
    weights = _draws(count, draws, seed)
    drawn_bottom = (weights @ bottom)[:, 0]
    tail = (1 - level) / 2
    low, high = np.quantile(drawn_bottom, [tail, 1 - tail])
    if low <= 0 <= high:
        return missing, missing, missing
    bounds = np.empty((2, sites))
    step = max(1, _CELLS // draws)
    for start in range(0, sites, step):
        part = slice(start, start + step)
        bounds[:, part] = _accelerated(top[:, part], bottom, weights, drawn_bottom, tail)
    return top.sum(0) / total, bounds[0], bounds[1]


def _draws(count: int, draws: int, seed: int) -> np.ndarray:
    """How often each group is drawn, [draw, group]."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float64)


def _by_group(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    _, index = np.unique(groups, return_inverse=True)
    sums = np.zeros((index.max() + 1, values.shape[1]))
    np.add.at(sums, index, values)
    return sums


def _accelerated(
    top: np.ndarray, bottom: np.ndarray, weights: np.ndarray, drawn_bottom: np.ndarray, tail: float
) -> np.ndarray:
    """Bias-corrected and accelerated bounds of sum(top) / sum(bottom), [2, site]."""
    drawn = (weights @ top) / drawn_bottom[:, None]
    value = top.sum(0) / bottom.sum()
    draws = len(weights)
    below = ((drawn < value).mean(0) + (drawn <= value).mean(0)) / 2
    bias = scipy.special.ndtri(np.clip(below, 0.5 / draws, 1 - 0.5 / draws))
    left_out = (top.sum(0) - top) / (bottom.sum() - bottom)
    pull = left_out.mean(0) - left_out
    scale = np.maximum(np.abs(pull).max(0), np.finfo(float).tiny)
    pull = pull / scale
    spread = np.maximum((pull**2).sum(0), 1e-100)  # at least 1 but where nothing pulls; its power must not vanish
    acceleration = (pull**3).sum(0) / (6 * spread**1.5)
    points = []
    for each in (tail, 1 - tail):
        shifted = bias + scipy.special.ndtri(each)
        points.append(scipy.special.ndtr(bias + shifted / (1 - acceleration * shifted)))
    ordered = np.sort(drawn, axis=0)
    return np.stack([_quantiles(ordered, point) for point in points])


def _quantiles(ordered: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The quantile of each column at its own level, linear between neighbours."""
    place = levels * (len(ordered) - 1)
    low = np.floor(place).astype(int)
    high = np.minimum(low + 1, len(ordered) - 1)
    columns = np.arange(ordered.shape[1])
    share = place - low
    return ordered[low, columns] * (1 - share) + ordered[high, columns] * share


def max_t(effects: np.ndarray, groups: np.ndarray, *, draws: int = 2000, seed: int = 0) -> np.ndarray:
    """For each site the p of its mean effect under sign flips, corrected for the size of the map (max-T).

    Under the null the effect of a group of prompts is as likely one sign as the other; t is the mean over its standard
    error, and its null distribution that of the largest |t| of the map (Westfall and Young 1993; Nichols and Holmes
    2002). It supports one claim only: these two models differ here, on prompts like these.

    Args:
        effects: float [prompt, site].
        groups: group of each prompt; a group flips as one.
        draws: sign flips; where all of them are fewer, all are taken.
        seed: seed of the flips.

    Returns:
        p by site, at least 1 / (1 + flips); NaN under `MIN_PROMPTS` groups and where an effect is not finite.
    """
    sums = _by_group(effects, groups)
    count = len(sums)
    found = np.full(effects.shape[1], np.nan)
    real = np.isfinite(sums).all(0) & (sums != 0).any(0)
    found[np.isfinite(sums).all(0) & ~real] = 1.0
    if count < MIN_PROMPTS:
        return np.full(effects.shape[1], np.nan)
    if not real.any():
        return found
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
    own = _t(sums.sum(0)[None], squares, count)[0]
    tolerance = 1e-12 * np.maximum(own, 1.0)
    found[real] = (1 + (largest[:, None] >= (own - tolerance)[None]).sum(0)) / (1 + len(signs))
    return found


def _t(totals: np.ndarray, squares: np.ndarray, count: int) -> np.ndarray:
    """|mean / standard error| from sums and sums of squares, which flips leave as they are."""
    spread = (squares - totals**2 / count) / (count - 1)
    return np.abs(totals) / np.sqrt(np.maximum(spread, squares * 1e-24) * count)
