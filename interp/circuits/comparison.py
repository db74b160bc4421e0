"""Did tuning keep a circuit? Two models' circuits side by side, and beside what chance and null runs give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from interp.circuits.choice import By, Circuit, check_sizes, choose, jaccard, random_circuits, ranking
from interp.circuits.components import component_changes
from interp.circuits.crossfit import crossfitted, folds
from interp.circuits.faithfulness import CircuitValues, circuit_values
from interp.circuits.graph import Graph
from interp.circuits.metrics import Metric
from interp.circuits.scores import EdgeScores, Method, edge_attribution, mean_of
from interp.circuits.verdict import carried, verdict
from interp.errors import MeasureError
from interp.measures.arrays import MODELS, dataset, strings, variable
from interp.models import Policy
from interp.models.matched import MatchedModels, load_matched
from interp.prompts import Prompts
from interp.stats import group_index, interval, random_halves

ENOUGH = 0.85
"""The share of its model's behaviour from which a circuit counts as whole, where the verdict's size is chosen."""


@dataclass(frozen=True)
class CircuitComparison:
    """Two models' circuits at equal numbers of edges.

    Attributes:
        dataset: overlaps and faithfulness by `size` (see `compare`), and by `component` what became of it.
        scores: each model's edge scores, "base" and "tuned".
        circuits: each model's circuit at the verdict's size.
        verdict: one sentence.
    """

    dataset: xr.Dataset
    scores: Mapping[str, EdgeScores]
    circuits: Mapping[str, Circuit]
    verdict: str

    @property
    def size(self) -> int:
        """Number of edges of the circuits that the verdict and the components speak of."""
        return int(self.dataset.attrs["size"])

    def summary(self) -> pd.DataFrame:
        """One row for each size: overlaps, and how much of each model's behaviour each circuit carries."""
        data, rows = self.dataset, []
        for size in data["size"].values:
            at = data.sel(size=size)
            row: dict[str, Any] = {"edges": int(size)}
            for name in ("edge_overlap", "node_overlap"):
                row[name] = float(at[name])
            half = at["half_overlap"].mean("split")
            row["between_halves"] = float(half.sel(pair="base-tuned"))
            row["within_halves"] = float(half.sel(pair=["base-base", "tuned-tuned"]).mean())
            row["random_overlap"] = float(at["random_edge_overlap"].mean())
            for circuit in MODELS:
                for model in MODELS:
                    share = at["faithfulness"].sel(circuit=circuit, model=model)
                    row[f"{circuit}'s circuit in {model}"] = float(share)
            row["random circuits in tuned"] = float(at["random_faithfulness"].sel(model="tuned").mean())
            rows.append(row)
        return pd.DataFrame(rows).set_index("edges")

    def components(self) -> pd.DataFrame:
        """One row for each component of either circuit, those that changed most first."""
        data = self.dataset
        names = ("change", "change_low", "change_high", "p", "wiring", "p_wiring", "state")
        table = data[list(names)].to_dataframe()[list(names)]
        for model in reversed(MODELS):
            table.insert(0, f"effect in {model}", data["effect"].sel(model=model).values)
        table = table[table["state"] != "in neither circuit"]
        order = table["change"].abs().sort_values(ascending=False, kind="stable").index
        return table.loc[order]

    def __str__(self) -> str:
        lines = [self.verdict, "", self.summary().to_string(float_format=lambda v: f"{v:.2f}"), ""]
        return "\n".join([*lines, self.components().head(12).to_string(float_format=lambda v: f"{v:.3g}")])


def compare(
    base: Any,
    tuned: Any,
    pairs: Prompts,
    metric: Metric = "logit_diff",
    *,
    sizes: Sequence[int] | None = None,
    control: Any = None,
    replicates: Sequence[Any] = (),
    method: Method = "eap-ig",
    steps: int = 5,
    by: By = "top",
    random: int = 5,
    draws: int = 50,
    batch_size: int = 16,
    tokenizer: Any = None,
    seed: int = 0,
    **load: Any,
) -> CircuitComparison:
    """Compare the circuits of two models for one behaviour, at equal numbers of edges.

    The dataset holds, by `size`:

    - `edge_overlap`, `node_overlap`: Jaccard of the two models' circuits (nodes: of those on a path), beside
      `random_edge_overlap` and `random_node_overlap` of base's circuit and random ones [draw, size], and beside
      `half_overlap` [pair, split, size]: a model's circuit from one half of the prompts against the other half's,
      within base, within tuned and between the two, so that a difference of models is not taken for one of prompts;
    - `faithfulness` [circuit, model, size] of each model's circuit in each model, with `low` and `high` (from 16
      groups of prompts on chosen on one half and judged on the other, `crossfitted` in the attributes), beside
      `random_faithfulness` [draw, model, size] of random circuits; `excess`, what tuned's own circuit carries of
      tuned's behaviour more than base's does, with its interval;
    - of null runs and replicates [run, size]: `run_edge_overlap`, `run_faithfulness` of base's circuit there;

    and `effect_of_corruption` [prompt, model], clean minus corrupted; by component what `component_changes` says.

    Args:
        base: what `Policy.load` takes.
        tuned: the same.
        pairs: prompts with `corrupted` counterparts.
        metric: see `Metric`.
        sizes: numbers of edges; None is eight, from one edge in two hundred to all.
        control: a null run, or a list of them: models whose reward meant nothing.
        replicates: runs of tuned's recipe with other seeds.
        method: how edges are scored (see `edge_attribution`).
        steps: gradients that "eap-ig" averages.
        by: how circuits are chosen (see `choose`).
        random: random circuits for each size.
        draws: splits of the prompts into halves.
        batch_size: prompts that run together.
        tokenizer: as in `interp.compare`.
        seed: of everything that is drawn.
        load: further arguments of `Policy.load`.

    Raises:
        MeasureError: the models differ in shape, or there are fewer than 4 groups of prompts.
    """
    if not isinstance(pairs, Prompts) or pairs.corrupted is None:
        raise MeasureError("circuits need clean and corrupted prompts: Prompts(texts, corrupted=[...], answers=...)")
    if len(set(pairs.groups or ())) < 4:
        raise MeasureError("circuits are compared on at least 4 groups of prompts; give more prompts")
    controls = [] if control is None else list(control) if isinstance(control, (list, tuple)) else [control]
    options = {"controls": controls, "replicates": list(replicates), "tokenizer": tokenizer, "options": load}
    lineup = load_matched(base, tuned, **options)
    pairs = pairs.for_models([each.tokenizer for each in (lineup.base, *lineup.others)])
    graph = Graph.of(lineup.base.parts)
    numbers = check_sizes(graph, sizes)
    how: dict[str, Any] = {"method": method, "steps": steps, "batch_size": batch_size}
    found = [edge_attribution(each, pairs, metric, **how) for each in (lineup.base, *lineup.others)]
    both = {"base": found[0], "tuned": found[1]}
    chosen = {name: [choose(graph, each.mean, size, by=by) for size in numbers] for name, each in both.items()}
    nulls = {size: random_circuits(graph, size, draws=random, seed=seed) for size in numbers}
    flat = [each for size in numbers for each in nulls[size]]
    values = {
        name: crossfitted(policy, pairs, found[:2], flat, metric, numbers, by=by, batch_size=batch_size)
        for name, policy in zip(MODELS, (lineup.base, lineup.tuned), strict=True)
    }
    parts = [
        _overlaps(both, chosen, nulls, numbers, by=by, draws=draws, seed=seed),
        _shares(values, numbers, random, seed),
        _runs(lineup, found, chosen["base"], pairs, metric, numbers, by=by, batch_size=batch_size, seed=seed),
    ]
    size = _size(parts[1], numbers, graph.size)
    at = {name: each[numbers.index(size)] for name, each in chosen.items()}
    count = len(lineup.controls)
    circuits = (at["base"], at["tuned"])
    parts.append(component_changes(both["base"], both["tuned"], circuits, found[2 : 2 + count], seed=seed))
    data = xr.merge(parts, combine_attrs="drop_conflicts", join="outer", compat="no_conflicts")
    about = {"metric": found[0].dataset.attrs["metric"], "crossfitted": int(len(folds(found[0])) > 1)}
    data = data.assign_attrs(size=size, controls=count, by=by, method=method, **about)
    return CircuitComparison(data, both, at, verdict(data))


def _overlaps(
    both: Mapping[str, EdgeScores],
    chosen: Mapping[str, list[Circuit]],
    nulls: Mapping[int, list[Circuit]],
    numbers: tuple[int, ...],
    *,
    by: By,
    draws: int,
    seed: int,
) -> xr.Dataset:
    pairs = list(zip(chosen["base"], chosen["tuned"], strict=True))
    chance = [[(a, b) for b in nulls[size]] for a, size in zip(chosen["base"], numbers, strict=True)]
    split = random_halves(both["base"].groups, draws=draws, seed=seed)
    if split is None:
        raise MeasureError("circuits are compared on at least 4 groups of prompts; give more prompts")
    half = np.zeros((3, draws, len(numbers)))
    for i, first in enumerate(split):
        ours, theirs = (
            [_of(scores, part, numbers, by) for part in (first, ~first)] for scores in (both["base"], both["tuned"])
        )
        for j in range(len(numbers)):
            between = [jaccard(ours[0][j], theirs[1][j]), jaccard(ours[1][j], theirs[0][j])]
            half[:, i, j] = (
                jaccard(ours[0][j], ours[1][j]),
                jaccard(theirs[0][j], theirs[1][j]),
                float(np.mean(between)),
            )
    edges = [jaccard(a.edges, b.edges) for a, b in pairs]
    nodes = [jaccard(a.members, b.members) for a, b in pairs]
    chance_edges = np.array([[jaccard(a.edges, b.edges) for a, b in each] for each in chance]).T
    chance_nodes = np.array([[jaccard(a.members, b.members) for a, b in each] for each in chance]).T
    return dataset(
        {
            "edge_overlap": variable("size", edges, "Jaccard of base's and tuned's edges"),
            "node_overlap": variable("size", nodes, "Jaccard of base's and tuned's nodes on a path"),
            "random_edge_overlap": variable("draw size", chance_edges, "Jaccard of base's edges and random ones"),
            "random_node_overlap": variable("draw size", chance_nodes, "Jaccard of base's nodes and random ones"),
            "half_overlap": variable("pair split size", half, "Jaccard of edges, each circuit from half the prompts"),
        },
        size=list(numbers),
        pair=["base-base", "tuned-tuned", "base-tuned"],
    )


def _of(scores: EdgeScores, rows: np.ndarray, numbers: tuple[int, ...], by: By) -> list[tuple[int, ...]]:
    """Edges chosen from some of the prompts, at every size."""
    strength = mean_of(scores.values, rows * scores.weights)
    if by == "top":  # ranked once for all sizes
        order = ranking(strength)
        return [tuple(order[:size].tolist()) for size in numbers]
    return [choose(scores.graph, strength, size, by=by).edges for size in numbers]


def _shares(values: Mapping[str, CircuitValues], numbers: tuple[int, ...], random: int, seed: int) -> xr.Dataset:
    """Faithfulness of each circuit in each model, of random ones, and what corrupting changes."""
    count = len(numbers)
    found = {m: each.faithfulness(seed=seed) for m, each in values.items()}
    own = [np.stack([*each], axis=-1)[: 2 * count] for each in found.values()]
    table = np.stack([each.reshape(2, count, 3) for each in own], axis=1)
    null = np.array([found[m].value[2 * count :] for m in MODELS]).reshape(2, count, random)
    tuned = values["tuned"]
    beyond = tuned.circuits[:, count : 2 * count] - tuned.circuits[:, :count]
    more = tuned.share(beyond, seed=seed)
    effects = np.stack([values[m].effect for m in MODELS], axis=1)
    grown = interval(effects[:, 1] - effects[:, 0], group_index(tuned.groups), seed=seed)
    names, dims, units = ("faithfulness", "low", "high"), "circuit model size", tuned.units
    words = ("share of a model's behaviour that a circuit carries", "lower bound, 95 %", "upper bound, 95 %")
    by_circuit = {name: variable(dims, table[..., i], words[i], "share") for i, name in enumerate(names)}
    extra = {
        "random_faithfulness": variable("draw model size", null.transpose(2, 0, 1), "of random circuits", "share"),
        "excess": variable("size", more.value, "tuned's circuit less base's, in tuned", "share"),
        "excess_low": variable("size", more.low, "lower bound over prompts", "share"),
        "excess_high": variable("size", more.high, "upper bound over prompts", "share"),
        "effect_of_corruption": variable("prompt model", effects, "metric of the clean less the corrupted run", units),
        "effect_change": variable("bound", list(grown), "tuned's effect minus base's", units),
    }
    data = dataset({**by_circuit, **extra}, size=list(numbers), circuit=list(MODELS), bound=["mean", "low", "high"])
    reasons = {f"reason_{m}": found[m].reason for m in MODELS}
    return data.assign_attrs(reasons)


def _runs(
    lineup: MatchedModels,
    found: Sequence[EdgeScores],
    base: list[Circuit],
    pairs: Prompts,
    metric: Metric,
    numbers: tuple[int, ...],
    *,
    by: By,
    batch_size: int,
    seed: int,
) -> xr.Dataset:
    """The same of null runs and replicates: overlap of their circuits with base's, and base's circuit in them."""
    policies: list[Policy] = [*lineup.controls, *lineup.replicates]
    names = [
        *(f"control {i}" for i in range(len(lineup.controls))),
        *(f"replicate {i}" for i in range(len(lineup.replicates))),
    ]
    shape = (len(policies), len(numbers))
    overlap, share, own, change = np.zeros(shape), np.zeros(shape), np.zeros(shape), np.zeros(len(policies))
    before = circuit_values(lineup.base, pairs, [], metric, batch_size=batch_size).effect if policies else np.zeros(0)
    for i, (policy, scores) in enumerate(zip(policies, found[2:], strict=True)):
        circuits = [choose(scores.graph, scores.mean, size, by=by) for size in numbers]
        ranked = [found[0], scores]
        values = crossfitted(policy, pairs, ranked, [], metric, numbers, by=by, batch_size=batch_size)
        overlap[i] = [jaccard(a.edges, b.edges) for a, b in zip(base, circuits, strict=True)]
        share[i], own[i] = values.faithfulness(seed=seed).value.reshape(2, -1)
        change[i] = float((values.effect - before).mean())
    units = found[0].dataset["score"].attrs["units"]
    data = dataset(
        {
            "run_edge_overlap": variable("run size", overlap, "Jaccard of base's edges and the run's"),
            "run_faithfulness": variable("run size", share, "of the run's behaviour base's circuit carries", "share"),
            "run_own_faithfulness": variable("run size", own, "of the run's behaviour its own carries", "share"),
            "run_effect_change": variable("run", change, "what corrupting changes there, less in base", units),
        },
        size=list(numbers),
    )
    return data.assign_coords(run=("run", strings(names)))


def _size(shares: xr.Dataset, numbers: tuple[int, ...], whole: int) -> int:
    """The smallest size at which both models' own circuits carry `ENOUGH`, or else the one that carries most.

    The whole graph, which carries everything, is no circuit, and taken only where no other size was asked for.
    """
    sizes = [size for size in numbers if size < whole] or list(numbers)
    own = np.array([min(carried(shares, m, m, size) for m in MODELS) for size in sizes])
    if not np.isfinite(own).any():
        return sizes[len(sizes) // 2]
    enough = [size for size, share in zip(sizes, own, strict=True) if share >= ENOUGH]
    return enough[0] if enough else sizes[int(np.nanargmax(own))]
