"""Scores as PPO uses them: shifted and scaled if so configured, then clipped."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import TrainingError
from training.config import PPOConfig


@dataclass(frozen=True)
class Moments:
    """Moments of the scores so far.

    Attributes:
        count: number of scores.
        mean: their mean.
        squares: sum of the squared distances from the mean.
        first: standard deviation of the first round; None before it.
        constant: rounds in a row, up to the last, in which every score was one and the same number.
        last: that number.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    first: float | None = None
    constant: int = 0
    last: float = 0.0

    @property
    def spread(self) -> float:
        """Standard deviation of all scores so far (unbiased); 0 for a single one."""
        return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0


def seen(moments: Moments, scores: Float[Tensor, " sample"]) -> Moments:
    """The moments with one more round of scores, by the pairwise update of Chan, Golub and LeVeque (1983)."""
    values = scores.double()
    count, mean = len(values), float(values.mean())
    squares = float(((values - mean) ** 2).sum())
    total, gap = moments.count + count, mean - moments.mean
    value, constant = float(values[0]), bool((values == values[0]).all())
    joined = replace(
        moments,
        count=total,
        mean=moments.mean + gap * count / total,
        squares=moments.squares + squares + gap**2 * moments.count * count / total,
        constant=(moments.constant + 1 if value == moments.last else 1) if constant else 0,
        last=value,
    )
    return joined if joined.first is not None else replace(joined, first=joined.spread)


def scaled(scores: Float[Tensor, " sample"], moments: Moments, ppo: PPOConfig) -> Float[Tensor, " sample"]:
    """Scores divided by the standard deviation that `ppo.scale_reward` names, then clipped.

    Args:
        scores: the round's scores.
        moments: of all scores up to this round.
        ppo: its scale_reward, ref_mean, ref_std and cliprange_reward.

    Raises:
        TrainingError: all scores are equal, so that there is no scale.
    """
    if ppo.scale_reward == "ref":
        spread = ppo.ref_std if ppo.ref_std is not None else moments.first or 0.0
        scores = scores - (ppo.ref_mean or 0.0)
    else:
        spread = moments.spread if ppo.scale_reward == "running" else 1.0
    if spread == 0:
        raise TrainingError('the reward is constant, ppo.scale_reward has no scale; set it to "none"')
    return torch.clamp(scores / spread, -ppo.cliprange_reward, ppo.cliprange_reward)
