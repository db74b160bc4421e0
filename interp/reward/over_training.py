"""What a pair's checkpoints add to its comparison: over-optimisation, and when the reward became readable."""

from __future__ import annotations

from itertools import islice

import numpy as np
import xarray as xr

from interp.errors import MeasureError
from interp.models import RewardModel
from interp.pair import CheckpointPair
from interp.reward.flat import restored
from interp.reward.optimisation import OverOptimisation
from interp.reward.probing import Probes, probes

MOST_TEXTS = 256
"""Responses that are probed, of which half have a reward above the median."""


def probe_arrays(data: xr.Dataset, pair: CheckpointPair, reward: RewardModel, seed: int) -> xr.Dataset:
    """Probes for a high reward, on what both models said.

    Raises:
        MeasureError: as `probes`.
    """
    own = data[["completion", "completion_reward"]].sel(source=["base", "tuned"]).transpose("draw", "source", "prompt")
    heads = np.broadcast_to(data["completion_prompt"].values, own["completion"].shape)
    groups = np.broadcast_to(data["group"].values, own["completion"].shape)
    found = (
        (f"{head}{said}", float(score), str(group))
        for head, said, score, group in zip(
            heads.ravel(), own["completion"].values.ravel(), own["completion_reward"].values.ravel(), groups.ravel(),
            strict=True,
        )
        if str(said).strip() and not reward.too_long([f"{head}{said}"])
    )  # fmt: skip
    rows = list(islice(found, MOST_TEXTS))
    if not rows:
        raise MeasureError("no response has text that can be probed")
    texts, scores, owners = zip(*rows, strict=True)
    high = (np.array(scores) > np.median(scores)).astype(int).tolist()
    return probes(pair, list(texts), high, groups=list(owners), seed=seed).dataset


def over_optimisation_of(data: xr.Dataset) -> OverOptimisation:
    """The over-optimisation that a comparison holds.

    Args:
        data: the comparison's dataset.

    Raises:
        MeasureError: it holds none.
    """
    return OverOptimisation(restored(data, "over_optimisation"))


def probes_of(data: xr.Dataset) -> Probes:
    """The probes that a comparison holds.

    Args:
        data: the comparison's dataset.

    Raises:
        MeasureError: it holds none.
    """
    return Probes(restored(data, "probes"))
