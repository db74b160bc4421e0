"""The reward as an optimiser saw it: what a recipe makes of a raw score, and which reward a pair was tuned toward."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from interp.errors import MeasureError
from interp.pair import CheckpointPair, pair_at

Transform = Callable[[np.ndarray], np.ndarray]
"""What makes the reward that was optimised of an array of raw scores."""


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
                " optimised=Optimised(scale=..., clip=...) to interp.load_reward, with the scale that held at the end"
            )
        scaled = kind == "ref"
        return cls(
            shift=0.0 if trlx or not scaled else float(ppo.get("ref_mean") or 0.0),
            scale=float(spread) if scaled else 1.0,
            clip=float(ppo.get("cliprange_reward", "inf")),
            clip_first=trlx,
            beta=(ppo["init_kl_coef"] or None) if fixed else None,
        )


@dataclass(frozen=True)
class Unrecorded:
    """A scaling of which the run kept no record: it says so where somebody asks for the optimised reward.

    Attributes:
        why: what is missing, and what to do.
    """

    why: str

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        """Never returns.

        Raises:
            MeasureError: saying why.
        """
        raise MeasureError(self.why)


def transform_of(optimised: Any) -> Transform | None:
    """What makes the optimised reward of a raw score.

    Raises:
        MeasureError: it is neither a function nor a pair, or the pair does not say.
    """
    pair = pair_at(optimised)
    if pair is not None:
        return Optimised.of(pair)
    if optimised is not None and not callable(optimised):
        what = repr(optimised) if isinstance(optimised, (str, os.PathLike)) else f"a {type(optimised).__name__}"
        raise MeasureError(f"optimised is an Optimised, a function of scores or a pair's folder, not {what}")
    return optimised


def transform_name(transform: Transform) -> str:
    """How a transform is called where a result says what was made of the score."""
    return (
        repr(transform)
        if isinstance(transform, Optimised)
        else getattr(transform, "__name__", type(transform).__name__)
    )


def reward_of(pair: CheckpointPair, asked: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The reward that a pair was tuned toward, and how it was read; what is asked for goes before."""
    reward = pair.reward
    if reward is None:
        why = "names no reward" if pair.path is None else "was tuned toward a function or a sum of rewards"
        raise MeasureError(f"the pair {pair.name} {why}, so there is no reward model to load; name one")
    recipe: dict[str, Any] = {"label": None, "output": None, "optimised": None}
    if "reward" not in pair.models:
        how = pair.manifest["reward"]
        recipe = {"label": how.get("label"), "output": how.get("output", "probability")}
        recipe["optimised"] = _recipe_transform(pair) if asked["optimised"] is None else None
    return reward, {**recipe, **{name: value for name, value in asked.items() if value is not None}}


def _recipe_transform(pair: CheckpointPair) -> Transform:
    try:
        return Optimised.of(pair)
    except MeasureError as error:
        return Unrecorded(str(error))
