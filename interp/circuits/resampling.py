"""Resampling of prompts for circuits: shares with their intervals, resamples and halves that choose edges anew."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from interp.resampling import ratio_of_sums
from interp.stats import MIN_PROMPTS, bootstrap_mean

DRAWS = 1000


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: NaN where it was refused.
        low: lower bound, NaN without an interval.
        high: upper bound.
        reason: why there is no value or no interval; "" where both are there.
    """

    value: float
    low: float = float("nan")
    high: float = float("nan")
    reason: str = ""

    def __str__(self) -> str:
        if not np.isfinite(self.value):
            return f"none ({self.reason})"
        return f"{self.value:.3g}" + (f" [{self.low:.3g}, {self.high:.3g}]" if np.isfinite(self.low) else "")


def group_index(groups: np.ndarray) -> np.ndarray:
    """Each prompt's group as a number from 0."""
    found: np.ndarray = np.unique(np.asarray(groups).astype(str), return_inverse=True)[1]
    return found


def resamples(groups: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> Float[np.ndarray, "draw prompt"] | None:
    """How often each prompt is drawn in each bootstrap resample of whole groups; None under `MIN_PROMPTS` groups."""
    index = group_index(groups)
    count = int(index.max()) + 1
    if count < MIN_PROMPTS:
        return None
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    return drawn[:, index].astype(np.float64)


def halves(groups: np.ndarray, *, draws: int, seed: int = 0) -> Bool[np.ndarray, "draw prompt"] | None:
    """Which prompts are in the first of two halves of the groups, drawn many times; None under 4 groups."""
    index = group_index(groups)
    count = int(index.max()) + 1
    if count < 4:
        return None
    order = np.random.default_rng(seed).permuted(np.tile(np.arange(count), (draws, 1)), axis=1)
    return (order < count // 2)[:, index]


def shares(
    numerators: Float[np.ndarray, "prompt circuit"],
    denominator: Float[np.ndarray, " prompt"],
    groups: np.ndarray,
    *,
    what: str,
    seed: int = 0,
) -> list[Estimate]:
    """Sums over prompts of several things over the sum of one, resampled together (BCa, 95 %).

    Args:
        numerators: by prompt.
        denominator: by prompt.
        groups: group of each prompt.
        what: what the denominator is, for the reason.
        seed: of the resampling.

    Returns:
        The shares; all NaN with a reason where the interval of the denominator holds 0, as any ratio could come of
        that.
    """
    labels = group_index(groups)
    found = zip(*ratio_of_sums(numerators, denominator, labels, draws=DRAWS, seed=seed), strict=True)
    few = labels.max() + 1 < MIN_PROMPTS
    reason = f"fewer than {MIN_PROMPTS} groups of prompts: no interval" if few else ""
    _, low, high = bootstrap_mean(denominator, labels, draws=DRAWS, seed=seed)
    refused = f"the sum of {what} is 0" if few else f"the interval of {what} holds 0 (mean in [{low:.3g}, {high:.3g}])"
    return [
        Estimate(float(value), float(below), float(above), reason if np.isfinite(value) else refused)
        for value, below, above in found
    ]
