"""How far a circuit is the prompts' doing: the edges that other prompts of the same kind would have chosen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from interp.circuits.choice import By, choose, jaccard
from interp.circuits.scores import EdgeScores, mean_of
from interp.errors import MeasureError
from interp.measures.arrays import dataset, strings, variable
from interp.stats import MIN_PROMPTS, random_halves, resamples


@dataclass(frozen=True)
class Stability:
    """What resampled prompts choose.

    Attributes:
        dataset: `frequency` [edge], the share of bootstrap resamples of the prompts whose circuit holds the edge;
            `overlap` [draw], edges that a resample's circuit shares with that of all prompts (Jaccard); `split_half`
            [draw], edges that the circuits of two halves of the prompts share.
    """

    dataset: xr.Dataset

    def __str__(self) -> str:
        data, size = self.dataset, self.dataset.attrs["size"]
        kept = int((data["frequency"] >= 0.9).sum())
        whole, half = (float(data[name].mean()) for name in ("overlap", "split_half"))
        return (
            f"{size} edges: {kept} are chosen in nine of ten resamples; resamples share {whole:.2f} with the whole,"
            f" halves {half:.2f} with each other (Jaccard)"
        )


def stability(scores: EdgeScores, size: int, *, by: By = "top", draws: int = 200, seed: int = 0) -> Stability:
    """Choose a circuit anew from resampled prompts and from halves of them.

    EAP-IG's circuits are known to vary much under resampling (arXiv 2510.00845), so that two circuits which overlap
    little may be one. Whole groups of prompts are resampled.

    Args:
        scores: by prompt.
        size: number of edges.
        by: how a circuit is chosen (see `choose`).
        draws: resamples, and splits into halves.
        seed: their seed.

    Raises:
        MeasureError: there are fewer than 8 groups of prompts, or no circuit has that size.
    """
    whole = choose(scores.graph, scores.mean, size, by=by)
    weights = resamples(scores.groups, draws=draws, seed=seed)
    split = random_halves(scores.groups, draws=draws, seed=seed)
    if weights is None or split is None:
        raise MeasureError(
            f"stability needs {MIN_PROMPTS} groups of prompts, and there are fewer; give more prompts (prompts with the"
            " same text, or of one of `groups`, count once; where scores were pooled a group is a batch)"
        )

    def edges(weight: np.ndarray) -> tuple[int, ...]:
        return choose(scores.graph, mean_of(scores.values, weight * scores.weights), size, by=by).edges

    chosen = [edges(weight) for weight in weights]
    frequency = np.zeros(scores.graph.size)
    for found in chosen:
        frequency[list(found)] += 1 / draws
    pairs = [(edges(first.astype(float)), edges((~first).astype(float))) for first in split]
    sources, destinations = scores.graph.labels
    data = dataset(
        {
            "frequency": variable("edge", frequency, "share of resamples that choose the edge", "share"),
            "overlap": variable("draw", [jaccard(found, whole.edges) for found in chosen], "Jaccard with the whole"),
            "split_half": variable("draw", [jaccard(*both) for both in pairs], "Jaccard of two halves of the prompts"),
        }
    )
    data = data.assign_coords(source=("edge", strings(sources)), destination=("edge", strings(destinations)))
    return Stability(data.assign_attrs(size=size, by=by, draws=draws, seed=seed))
