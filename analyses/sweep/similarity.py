"""How alike the changes of several pairs are, and whether that follows how alike their labels are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.cluster.hierarchy
import scipy.spatial.distance
import scipy.stats
import xarray as xr
from jaxtyping import Float

from interp.errors import MeasureError

FEWEST = 4
"""Fewest pairs of which the similarities are compared with those of the labels: 3 have 6 orders, and p >= 1/6."""


def centred_cosines(gram: Float[np.ndarray, "pair pair"], own: Sequence[bool]) -> Float[np.ndarray, "pair pair"]:
    """Cosines of change vectors, of which those of `own` have their mean taken out, from the vectors' products alone.

    With products G, o = 1 at the own pairs and 0 elsewhere, and w = o / n, the products of what is left are
    G - o w'G - G w o' + o w'Gw o' (Torgerson 1952, where all are own). A second seed's vector stays whole: were that
    same mean taken out of it too, any two second seeds would share it, and look alike by 1 / (n + 1) for that alone.
    So a cosine of an own pair and a second seed is 0 on average where the two have nothing in common, whatever the
    emotions; of two own pairs it is -1 / (n - 1).

    Args:
        gram: products of each two vectors.
        own: which pairs the mean is over and is taken out of; second seeds are not among them.

    Returns:
        Cosines, NaN where nothing is left of a vector.
    """
    inside = np.asarray(own, dtype=np.float64)
    if inside.sum() < 2:
        raise MeasureError("the mean change of one pair is that change, so nothing is left; give two pairs or more")
    weights = inside / inside.sum()
    means = gram @ weights
    left = gram - np.outer(inside, means) - np.outer(means, inside)
    left = left + np.outer(inside, inside) * float(weights @ means)
    sizes = np.sqrt(np.clip(np.diag(left), 0, None))
    scale = np.outer(sizes, sizes)
    floor = 1e-12 * max(1e-300, float(np.abs(np.diag(gram)).max()))
    cosines: np.ndarray = np.divide(left, scale, out=np.full_like(left, np.nan), where=scale > floor)
    return np.clip(cosines, -1, 1)


def gram_of(vectors: Float[np.ndarray, "pair value"]) -> Float[np.ndarray, "pair pair"]:
    """Products of each two vectors, float64."""
    found: np.ndarray = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    return found


def weight_gram(base: str, tuned: Sequence[str]) -> Float[np.ndarray, "pair pair"]:
    """Products of the changes of all weights; of every model one parameter is in memory at a time.

    Weights are mapped from their files, and what was read is given back (see `interp.models.offload`).

    Args:
        base: folder or id of the base model.
        tuned: of each tuned model.
    """
    from interp.models import load_model
    from interp.models.offload import pages_of

    states, pages = [], []
    for source in (base, *tuned):
        model = load_model(source)
        states.append(dict(model.named_parameters()))
        pages.append(pages_of(model))
        pages[-1].release()
    total = np.zeros((len(tuned), len(tuned)))
    for name, parameter in states[0].items():
        first = parameter.detach().double().flatten()
        total += gram_of(np.stack([(state[name].detach().double().flatten() - first).numpy() for state in states[1:]]))
        for of_one in pages:
            of_one.release()
    return total


@dataclass(frozen=True)
class Mantel:
    """Rank correlation of two similarity matrices, and how often permuted labels give as large a one.

    Attributes:
        correlation: Spearman over pairs of items.
        p: two-sided, (1 + as large in size) / (1 + permutations).
        permutations: draws of the null.
        items: number of items.
    """

    correlation: float
    p: float
    permutations: int
    items: int


def mantel(
    first: Float[np.ndarray, "item item"], second: Float[np.ndarray, "item item"], *, permutations: int, seed: int = 0
) -> Mantel:
    """Do two matrices of similarities agree (Mantel 1967)? Spearman over the pairs of items; null: items permuted.

    The pairs of items are not independent, so the null permutes whole items in one of the matrices. NaN with fewer than
    `FEWEST` items, or where a matrix has one value only.

    Args:
        first: similarities, symmetric.
        second: the same of the same items.
        permutations: draws of the null.
        seed: of the draws.
    """
    count = len(first)
    upper = np.triu_indices(count, 1)
    known = np.isfinite(first[upper]).all() and np.isfinite(second[upper]).all()
    if count < FEWEST or not known or np.ptp(first[upper]) == 0 or np.ptp(second[upper]) == 0:
        return Mantel(float("nan"), float("nan"), permutations, count)
    ranks = scipy.stats.rankdata(second[upper])
    square = scipy.stats.rankdata(first[upper])
    table = np.zeros((count, count))
    table[upper] = square - square.mean()
    table += table.T
    other = ranks - ranks.mean()
    scale = np.sqrt((table[upper] ** 2).sum() * (other**2).sum())
    value = float(table[upper] @ other / scale)
    rng, beyond = np.random.default_rng(seed), 1
    for _ in range(permutations):
        order = rng.permutation(count)
        beyond += abs(float(table[np.ix_(order, order)][upper] @ other / scale)) >= abs(value) * (1 - 1e-12)
    return Mantel(value, beyond / (1 + permutations), permutations, count)


def order_of(similarity: Float[np.ndarray, "item item"]) -> tuple[list[int], np.ndarray | None]:
    """An order in which like stands beside like, and the tree (average linkage of 1 - similarity) behind it."""
    count = len(similarity)
    if count < 3 or not np.isfinite(similarity).all():
        return list(range(count)), None
    distance = np.clip(1 - (similarity + similarity.T) / 2, 0, None)
    np.fill_diagonal(distance, 0)
    tree = scipy.cluster.hierarchy.linkage(
        scipy.spatial.distance.squareform(distance, checks=False), method="average", optimal_ordering=True
    )
    return [int(leaf) for leaf in scipy.cluster.hierarchy.leaves_list(tree)], tree


def vectors_of(cells: Mapping[str, Path], base: Path, *, kind: str) -> Float[np.ndarray, "pair value"]:
    """What is left of each pair's states (relative to their size in base, by site) or edges without base's, as one row.

    Args:
        cells: folder of each pair's cell.
        base: folder of base's cell.
        kind: "states" or "circuit".
    """
    if kind == "circuit":
        own = _edges(base)
        return np.stack([_edges(folder) - own for folder in cells.values()])
    first = _states(base)
    # The residual grows with depth: each site counts by its change relative to its own size.
    size = np.sqrt((first**2).sum(-1, keepdims=True).mean(0, keepdims=True))
    return np.stack([np.ravel((_states(folder) - first) / size) for folder in cells.values()])


def _states(folder: Path) -> Float[np.ndarray, "prompt site d_model"]:
    with xr.open_dataset(folder / "states.nc", engine="h5netcdf") as data:
        found: np.ndarray = data["state"].transpose("prompt", "site", "d_model").values.astype(np.float64)
    return found


def _edges(folder: Path) -> np.ndarray:
    found: np.ndarray = pd.read_parquet(folder / "edges.parquet")["score"].to_numpy(np.float64)
    return found
