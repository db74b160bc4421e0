"""Did tuning keep a circuit? Two models' circuits side by side, and beside what chance and control runs give."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from interp.circuits.faithfulness import CircuitValues, circuit_values, crossfitted, folds
from interp.circuits.graph import Graph
from interp.circuits.scores import EdgeScores, edge_attribution, mean_of
from interp.circuits.selection import (
    Circuit,
    Selection,
    check_sizes,
    jaccard,
    random_circuits,
    strongest_by_size,
)
from interp.circuits.verdict import carried, component_changes, verdict
from interp.errors import MeasureError, renamed
from interp.measures.arrays import MODELS, dataset, strings, variable
from interp.metrics import Metric
from interp.models.matched import MatchedModels, load_matched
from interp.pair import pair_at
from interp.patching.runs import LOADING
from interp.progress import Progress, no_progress
from interp.prompts import Prompts
from interp.result import Result
from interp.stats import group_index, interval, random_halves

ENOUGH = 0.85
"""The share of its model's behaviour from which a circuit counts as whole, where the verdict's size is chosen."""

SELECTION = Selection()

_SCORES = ("score", "clean", "corrupted", "prompts")
_NOTE = "X_in_Y: share of Y's behaviour that X's circuit carries; .components(): what became of each head and MLP"


class CircuitComparison(Result):
    """Two models' circuits at equal numbers of edges.

    The dataset holds overlaps and faithfulness by `size` (see `compare`), by `component` what became of it, each
    model's edge scores (`score` [model, row, edge]; a row is a prompt, or a batch where scores were pooled), and
    `edge_in_circuit` [model, size, edge].
    """

    kind = "circuit_comparison"
    title = "Comparison of circuits"

    @cached_property
    def graph(self) -> Graph:
        """The graph of both models."""
        return Graph.from_dataset(self.dataset)

    @cached_property
    def scores(self) -> Mapping[str, EdgeScores]:
        """Each model's edge scores, "base" and "tuned"."""
        scores = {}
        for model in MODELS:
            data = self.dataset[list(_SCORES)].sel(model=model, drop=True).rename(row="prompt", row_group="group")
            data.attrs = {name: self.dataset.attrs[name] for name in ("graph", "metric", "method")}
            scores[model] = EdgeScores(data.assign_attrs(model=self.dataset.attrs[model]))
        return scores

    @cached_property
    def circuits(self) -> Mapping[str, Circuit]:
        """Each model's circuit at the verdict's size, "base" and "tuned"."""
        return {model: self.circuit(model, self.size) for model in MODELS}

    def circuit(self, model: str, size: int) -> Circuit:
        """The circuit of one model, "base" or "tuned", with so many edges.

        Raises:
            MeasureError: circuits of that size were not compared.
        """
        if size not in self.dataset["size"].values:
            sizes = ", ".join(map(str, self.dataset["size"].values))
            raise MeasureError(f"circuits of {size} edges were not compared; there are those of {sizes}")
        inside = self.dataset["edge_in_circuit"].sel(model=model, size=size).values
        return Circuit.of(self.graph, np.flatnonzero(inside), self.scores[model].mean)

    @property
    def size(self) -> int:
        """Number of edges of the circuits that the verdict and the components speak of."""
        return int(self.dataset.attrs["size"])

    @cached_property
    def verdict(self) -> str:
        """One sentence: did tuning keep the circuit, and how strongly does it speak now?"""
        return verdict(self.dataset)

    def headline(self) -> str:
        """What the verdict says first."""
        return self.verdict.partition("; ")[0]

    def notes(self) -> list[str]:
        """The rest of the verdict, and what the columns are."""
        rest = self.verdict.partition("; ")[2]
        return [rest, _NOTE] if rest else [_NOTE]

    def summary(self) -> pd.DataFrame:
        """One row a size: how much of each model's behaviour each circuit carries, and overlaps."""
        data = self.dataset
        half, pairs = data["half_overlap"].mean("split"), ["base-base", "tuned-tuned"]
        columns: dict[str, Any] = {"edges": data["size"].values}
        shares = {}
        for circuit, model in (("base", "base"), ("tuned", "tuned"), ("base", "tuned"), ("tuned", "base")):
            at = data.sel(circuit=circuit, model=model)
            columns[f"{circuit}_in_{model}"] = at["faithfulness"].values
            for end in ("low", "high"):
                shares[f"{circuit}_in_{model}_{end}"] = at[f"faithfulness_{end}"].values
        columns["edge_overlap"] = data["edge_overlap"].values
        columns["within_halves"] = half.sel(pair=pairs).mean("pair").values
        columns["between_halves"] = half.sel(pair="base-tuned").values
        columns["node_overlap"] = data["node_overlap"].values
        drawn = data.sizes["draw"] > 0
        nothing = np.full(data.sizes["size"], np.nan)
        columns["random_overlap"] = data["random_edge_overlap"].mean("draw").values if drawn else nothing
        random = data["random_faithfulness"].sel(model="tuned")
        columns["random_in_tuned"] = random.mean("draw").values if drawn else nothing
        return pd.DataFrame({**columns, **shares})

    def components(self) -> pd.DataFrame:
        """One row a component of either circuit, those that changed most first (see `component_changes`)."""
        data = self.dataset
        names = ("change", "change_low", "change_high", "p", "wiring", "p_wiring", "state")
        effects = {f"effect_in_{model}": data["effect"].sel(model=model).values for model in MODELS}
        columns = {"component": data["component"].values, **effects, **{name: data[name].values for name in names}}
        table = pd.DataFrame(columns)
        table = table[table["state"] != "in neither circuit"]
        order = np.argsort(-table["change"].abs().to_numpy(), kind="stable")
        return table.iloc[order].reset_index(drop=True)


@renamed(
    control="it is controls=",
    random="it is draws=",
    method="pass selection=Selection(method=...)",
    steps="pass selection=Selection(steps=...)",
    by="pass selection=Selection(by=...)",
    **LOADING,
)
def compare(
    base: Any,
    tuned: Any,
    pairs: Prompts | None = None,
    metric: Metric | None = None,
    *,
    sizes: Sequence[int] | None = None,
    selection: Selection = SELECTION,
    controls: Sequence[Any] | None = None,
    replicates: Sequence[Any] | None = None,
    draws: int = 5,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> CircuitComparison:
    """Compare the circuits of two models for one behaviour, at equal numbers of edges.

    The dataset holds, by `size`:

    - `edge_overlap`, `node_overlap`: Jaccard of the two models' circuits (nodes: of those on a path), beside
      `random_edge_overlap` and `random_node_overlap` of base's circuit and random ones [draw, size], and beside
      `half_overlap` [pair, split, size]: a model's circuit from one half of the prompts against the other half's,
      within base, within tuned and between the two, so that a difference of models is not taken for one of prompts;
    - `faithfulness` [circuit, model, size] of each model's circuit in each model, with `faithfulness_low` and
      `faithfulness_high` (from 16 groups of prompts on chosen on one half and judged on the other, `crossfitted` in
      the attributes), beside `random_faithfulness` [draw, model, size] of random circuits; `excess`, what tuned's own
      circuit carries of tuned's behaviour more than base's does, with its interval;
    - of control runs and replicates [run, size]: `run_edge_overlap`, `run_faithfulness` of base's circuit there;

    and `effect_of_corruption` [prompt, model], clean minus corrupted; `effect_change`, tuned's mean minus base's, with
    its interval; by component what `component_changes` says.

    Args:
        base: id, folder, module or `Policy`; or a pair, its folder or its name, with the prompts behind
            it: `compare(pair, prompts)`.
        tuned: the same.
        pairs: prompts with `corrupted` counterparts.
        metric: see `edge_attribution`.
        sizes: numbers of edges; None is eight, from one edge in two hundred to all.
        selection: how edges are scored and circuits chosen.
        controls: models whose reward meant nothing; None: a pair's own.
        replicates: runs of tuned's recipe with other seeds; None: a pair's own.
        draws: random circuits for each size.
        batch_size: prompts that run together.
        seed: of everything that is drawn.
        progress: called with what is done, models done and models in all.

    Raises:
        MeasureError: the models differ in shape, or there are fewer than 4 groups of prompts.
    """
    pair = pair_at(base) if pairs is None else None
    if pair is not None:
        base, tuned, pairs = pair, None, tuned
    if not isinstance(pairs, Prompts) or pairs.corrupted is None:
        raise MeasureError("circuits need clean and corrupted prompts: Prompts(texts, corrupted=[...], answers=...)")
    if len(set(pairs.groups or ())) < 4:
        raise MeasureError("circuits are compared on at least 4 groups of prompts; give more prompts")
    for name, listed in (("controls", controls), ("replicates", replicates)):
        if listed is not None and not isinstance(listed, (list, tuple)):
            raise MeasureError(f"{name} is a list of models, not a {type(listed).__name__}; put it in brackets")
    models = load_matched(base, tuned, controls=controls, replicates=replicates)
    policies = [models.base, *models.others]
    pairs = pairs.for_models([policy.tokenizer for policy in policies])
    numbers = check_sizes(Graph.of(models.base.parts), sizes)
    tell, scores = progress or no_progress, []
    for number, policy in enumerate(policies):
        how: dict[str, Any] = {"method": selection.method, "steps": selection.steps, "batch_size": batch_size}
        scores.append(edge_attribution(policy, pairs, metric, **how))
        tell("scoring edges", number + 1, len(policies))
    job = _Job(models, scores, pairs, metric, numbers, selection, draws, batch_size, seed, tell)
    return CircuitComparison(job.dataset())


@dataclass(frozen=True)
class _Job:
    """Everything that the parts of a comparison share: the arguments of `compare`, the models and their scores."""

    models: MatchedModels
    scores: Sequence[EdgeScores]
    pairs: Prompts
    metric: Metric | None
    sizes: tuple[int, ...]
    selection: Selection
    draws: int
    batch_size: int
    seed: int
    tell: Progress

    @property
    def graph(self) -> Graph:
        return self.scores[0].graph

    def by_size(self, strength: np.ndarray) -> list[np.ndarray]:
        """Edges chosen at every size."""
        return strongest_by_size(self.graph, strength, self.sizes, by=self.selection.by)

    @cached_property
    def chosen(self) -> list[list[np.ndarray]]:
        """Of base and tuned, edges chosen from all prompts at every size."""
        return [self.by_size(scores.mean) for scores in self.scores[:2]]

    @cached_property
    def nulls(self) -> list[list[Circuit]]:
        """Random circuits of every size."""
        return [random_circuits(self.graph, size, draws=self.draws, seed=self.seed) for size in self.sizes]

    def dataset(self) -> xr.Dataset:
        shares, overlaps, runs = self._shares(), self._overlaps(), self._runs()
        size = _verdict_size(shares, self.sizes, self.graph.size)
        at = [Circuit.of(self.graph, edges[self.sizes.index(size)]) for edges in self.chosen]
        count, (base, tuned, *others) = len(self.models.controls), self.scores
        changes = component_changes(base, tuned, (at[0], at[1]), others[:count], seed=self.seed)
        parts = [overlaps, shares, runs, changes, self._edges()]
        data = xr.merge(parts, combine_attrs="drop_conflicts", join="outer", compat="no_conflicts")
        models = {name: json.dumps(dict(getattr(self.models, name).description)) for name in MODELS}
        for name in ("controls", "replicates"):
            models[name] = json.dumps([dict(policy.description) for policy in getattr(self.models, name)])
        about = {name: self.scores[0].dataset.attrs[name] for name in ("metric", "method")}
        settings = {"size": size, "by": self.selection.by, "seed": self.seed}
        return data.assign_attrs(**models, **about, **settings, crossfitted=int(len(folds(self.scores[0])) > 1))

    def _edges(self) -> xr.Dataset:
        """Both models' scores, and the edges of their circuits at every size."""
        both = [scores.dataset for scores in self.scores[:2]]
        variables = {
            name: variable(
                f"model row {'edge' if name == 'score' else ''}",
                np.stack([data[name].values for data in both]),
                both[0][name].attrs["long_name"],
                both[0][name].attrs["units"],
            )
            for name in _SCORES[:3]
        }
        inside = np.zeros((2, len(self.sizes), self.graph.size), dtype=bool)
        for model, circuits in enumerate(self.chosen):
            for place, edges in enumerate(circuits):
                inside[model, place, edges] = True
        attrs = both[0]["prompts"].attrs
        data = dataset(
            {
                **variables,
                "prompts": variable("row", both[0]["prompts"].values, attrs["long_name"]),
                "edge_in_circuit": variable("model size edge", inside, "whether the model's circuit holds the edge"),
            },
            size=list(self.sizes),
        )
        return self.graph.described(data).assign_coords(row_group=("row", both[0]["group"].values))

    def _overlaps(self) -> xr.Dataset:
        split = random_halves(self.scores[0].groups, draws=self.selection.splits, seed=self.seed)
        if split is None:
            raise MeasureError("circuits are compared on at least 4 groups of prompts; give more prompts")
        half = np.zeros((3, len(split), len(self.sizes)))
        for i, first in enumerate(split):
            ours, theirs = (
                [self.by_size(mean_of(scores.values, part * scores.weights)) for part in (first, ~first)]
                for scores in self.scores[:2]
            )
            for j in range(len(self.sizes)):
                between = [jaccard(ours[0][j], theirs[1][j]), jaccard(ours[1][j], theirs[0][j])]
                half[:, i, j] = (
                    jaccard(ours[0][j], ours[1][j]),
                    jaccard(theirs[0][j], theirs[1][j]),
                    float(np.mean(between)),
                )
        base, tuned = self.chosen
        nodes = [[self.graph.members(edges) for edges in circuits] for circuits in self.chosen]
        edge_overlap = [jaccard(a, b) for a, b in zip(base, tuned, strict=True)]
        node_overlap = [jaccard(a, b) for a, b in zip(*nodes, strict=True)]
        at_random = [
            np.array(
                [[jaccard(a, getattr(b, what)) for b in drawn] for a, drawn in zip(ours, self.nulls, strict=True)]
            ).T
            for ours, what in ((base, "edges"), (nodes[0], "members"))
        ]
        shape = (self.draws, len(self.sizes))
        random_edges, random_nodes = (table.reshape(shape) for table in at_random)
        return dataset(
            {
                "edge_overlap": variable("size", edge_overlap, "Jaccard of base's and tuned's edges"),
                "node_overlap": variable("size", node_overlap, "Jaccard of base's and tuned's nodes on a path"),
                "random_edge_overlap": variable("draw size", random_edges, "Jaccard of base's edges and random ones"),
                "random_node_overlap": variable("draw size", random_nodes, "Jaccard of base's nodes and random ones"),
                "half_overlap": variable("pair split size", half, "Jaccard of edges, circuits from half the prompts"),
            },
            size=list(self.sizes),
            pair=["base-base", "tuned-tuned", "base-tuned"],
        )

    def _crossfitted(self, number: int, ranked: Sequence[EdgeScores], fixed: Sequence[Circuit]) -> CircuitValues:
        """Circuits of some scores, and fixed ones, in the model `number`."""
        policy = [self.models.base, *self.models.others][number]
        by, size = self.selection.by, self.batch_size
        values = crossfitted(policy, self.pairs, ranked, fixed, self.metric, self.sizes, by=by, batch_size=size)
        self.tell("running circuits", number + 1, len(self.scores))
        return values

    def _shares(self) -> xr.Dataset:
        """Faithfulness of each circuit in each model, of random ones, and what corrupting changes."""
        count, flat = len(self.sizes), [circuit for drawn in self.nulls for circuit in drawn]
        base, tuned = (self._crossfitted(number, self.scores[:2], flat) for number in range(2))
        shares = [values.faithfulness(seed=self.seed) for values in (base, tuned)]
        both = [np.stack([*share], axis=-1)[: 2 * count].reshape(2, count, 3) for share in shares]
        table = np.stack(both, axis=1)
        null = np.array([share.value[2 * count :] for share in shares]).reshape(2, count, self.draws)
        excess = tuned.share(tuned.circuits[:, count : 2 * count] - tuned.circuits[:, :count], seed=self.seed)
        effects = np.stack([base.effect, tuned.effect], axis=1)
        grown = interval(effects[:, 1] - effects[:, 0], group_index(tuned.groups), seed=self.seed)
        units, ends = tuned.units, ("", "_low", "_high")
        bounds = ("lower bound over prompts, 95 %", "upper bound over prompts, 95 %")
        words = {
            "faithfulness": ("share of a model's behaviour that a circuit carries", *bounds),
            "excess": ("tuned's circuit less base's, in tuned", *bounds),
            "effect_change": ("tuned's effect minus base's", *bounds),
        }
        variables = {}
        for i, end in enumerate(ends):
            text = {name: texts[i] for name, texts in words.items()}
            full = variable("circuit model size", table[..., i], text["faithfulness"], "share")
            variables[f"faithfulness{end}"] = full
            variables[f"excess{end}"] = variable("size", excess[i], text["excess"], "share")
            variables[f"effect_change{end}"] = variable("", grown[i], text["effect_change"], units)
        random = variable("draw model size", null.transpose(2, 0, 1), "of random circuits", "share")
        effect = variable("prompt model", effects, "metric of the clean less the corrupted run", units)
        variables |= {"random_faithfulness": random, "effect_of_corruption": effect}
        data = dataset(variables, size=list(self.sizes), circuit=list(MODELS))
        reasons = {f"reason_{model}": share.reason for model, share in zip(MODELS, shares, strict=True)}
        return data.assign_coords(group=("prompt", tuned.groups)).assign_attrs(reasons)

    def _runs(self) -> xr.Dataset:
        """Of control runs and replicates: overlap of their circuits with base's, and base's circuit in them."""
        names = [
            f"{kind} {i}" for kind in ("control", "replicate") for i in range(len(getattr(self.models, f"{kind}s")))
        ]
        shape = (len(names), len(self.sizes))
        overlap, of_base, of_run, change = np.zeros(shape), np.zeros(shape), np.zeros(shape), np.zeros(len(names))
        how: dict[str, Any] = {"batch_size": self.batch_size}
        before = circuit_values(self.models.base, self.pairs, [], self.metric, **how).effect if names else np.zeros(0)
        for i, scores in enumerate(self.scores[2:]):
            overlap[i] = [jaccard(*both) for both in zip(self.chosen[0], self.by_size(scores.mean), strict=True)]
            values = self._crossfitted(2 + i, [self.scores[0], scores], [])
            of_base[i], of_run[i] = values.faithfulness(seed=self.seed).value.reshape(2, -1)
            change[i] = float((values.effect - before).mean())
        units = self.scores[0].units
        data = dataset(
            {
                "run_edge_overlap": variable("run size", overlap, "Jaccard of base's edges and the run's"),
                "run_faithfulness": variable(
                    "run size", of_base, "of the run's behaviour base's circuit carries", "share"
                ),
                "run_own_faithfulness": variable("run size", of_run, "of the run's behaviour its own carries", "share"),
                "run_effect_change": variable("run", change, "what corrupting changes there, less in base", units),
            },
            size=list(self.sizes),
        )
        return data.assign_coords(run=("run", strings(names)))


def _verdict_size(shares: xr.Dataset, numbers: tuple[int, ...], whole: int) -> int:
    """The smallest size at which both models' own circuits carry `ENOUGH`, or else the one that carries most.

    The whole graph, which carries everything, is no circuit, and taken only where no other size was asked for.
    """
    sizes = [size for size in numbers if size < whole] or list(numbers)
    least = np.array([min(carried(shares, m, m, size) for m in MODELS) for size in sizes])
    if not np.isfinite(least).any():
        return sizes[len(sizes) // 2]
    enough = [size for size, share in zip(sizes, least, strict=True) if share >= ENOUGH]
    return enough[0] if enough else sizes[int(np.nanargmax(least))]
