"""The reward as an optimiser saw it: what a recipe makes of a raw score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from interp.errors import MeasureError
from interp.pair import CheckpointPair


@dataclass(frozen=True)
class Optimised:
    """The reward as the optimiser saw it: the raw score shifted, scaled and clipped.

    r = clip((score - shift) / scale, -clip, clip); with `clip_first` r = (clip(score, -clip, clip) - shift) / scale.

    Attributes:
        shift: subtracted from the raw score.
        scale: what it is divided by.
        clip: most that remains in size.
        clip_first: clip the raw score, not the scaled one (trlX).
        beta: weight of the KL penalty in reward per nat, where the objective was E[r] - beta KL with a fixed beta; None
            where it was another one, or is not known.
    """

    shift: float | int = 0.0
    scale: float | int = 1.0
    clip: float | int = float("inf")
    clip_first: bool = False
    beta: float | None = None

    def __post_init__(self) -> None:
        if not self.scale > 0 or not self.clip > 0:
            raise MeasureError(
                f"scale and clip must be above 0, not {self.scale} and {self.clip}; leave out what is not used"
            )

    def __call__(self, raw: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """The reward of raw scores."""
        if self.clip_first:
            return np.asarray((np.clip(raw, -self.clip, self.clip) - self.shift) / self.scale)
        return np.asarray(np.clip((raw - self.shift) / self.scale, -self.clip, self.clip))

    @classmethod
    def of(cls, pair: CheckpointPair) -> Optimised:
        """Read it from a pair's recipe.

        Raises:
            MeasureError: scores were divided by a standard deviation that the run did not keep.
        """
        config = pair.manifest["config"]
        ppo = config.get("ppo")
        if ppo is None:
            return cls()  # the other algorithms take the score as it is, or set it against the group's
        trlx = pair.manifest["engine"] == "trlx"
        fixed = ppo.get("target") is None and config["generate"]["temperature"] == 1
        kind, spread = ppo.get("scale_reward", "none"), ppo.get("ref_std")
        if kind == "running" or (kind == "ref" and spread is None):
            raise MeasureError(
                f'the pair was trained with scale_reward = "{kind}", whose standard deviation is not on record; pass'
                " optimised=Optimised(scale=..., clip=...) with the scale that held at the end"
            )
        scaled = kind == "ref"
        return cls(
            shift=0.0 if trlx or not scaled else float(ppo.get("ref_mean") or 0.0),
            scale=float(spread) if scaled else 1.0,
            clip=float(ppo.get("cliprange_reward", "inf")),
            clip_first=trlx,
            beta=(ppo["init_kl_coef"] or None) if fixed else None,
        )
