"""Does a circuit do what the model does? Every edge outside it is ablated, for real."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Float

from interp.circuits.graph import Graph
from interp.circuits.passes import METRICS, circuit_pass, clean_and_corrupt, judged, plain_pass, take
from interp.circuits.scores import EdgeScores, mean_of
from interp.circuits.selection import By, Circuit, check_sizes, random_circuits, strongest_by_size
from interp.errors import MeasureError, renamed
from interp.measures.arrays import dataset, strings, variable
from interp.metrics import Metric, metric_label, metric_units, resolve_metric
from interp.models import Policy, Source, as_policy
from interp.patching.runs import LOADING
from interp.progress import Progress, no_progress
from interp.prompts import Prompts
from interp.result import Result
from interp.stats import Estimate, group_index, interval, selection_halves

EFFECT = "what corrupting the prompts changes"
DRAWS = 1000
"""Bootstrap resamples of a share."""


class CircuitValues(Result):
    """The metric under circuits, by prompt.

    The dataset holds `under_circuit` [prompt, circuit], the metric where every edge outside a circuit is corrupted,
    `clean` and `corrupted` [prompt], that of the whole model and of the corrupted run, and `edges` [circuit].
    """

    kind = "circuit_values"
    title = "Values of circuits"

    @property
    def circuits(self) -> Float[np.ndarray, "prompt circuit"]:
        """Under each circuit."""
        return np.asarray(self.dataset["under_circuit"].values)

    @property
    def clean(self) -> Float[np.ndarray, " prompt"]:
        """Of the whole model."""
        return np.asarray(self.dataset["clean"].values)

    @property
    def corrupted(self) -> Float[np.ndarray, " prompt"]:
        """Of the corrupted run."""
        return np.asarray(self.dataset["corrupted"].values)

    @property
    def groups(self) -> np.ndarray:
        """Group of each prompt."""
        return np.asarray(self.dataset["group"].values)

    @property
    def units(self) -> str:
        """Units of all three."""
        return str(self.dataset["clean"].attrs["units"])

    @property
    def effect(self) -> Float[np.ndarray, " prompt"]:
        """What corrupting the prompts takes away: clean minus corrupted."""
        return self.clean - self.corrupted

    def faithfulness(self, *, seed: int = 0) -> Estimate:
        """Of each circuit the sum of (circuit - corrupted) over prompts, over the sum of (clean - corrupted)."""
        return self.share(self.circuits - self.corrupted[:, None], seed=seed)

    def share(self, values: Float[np.ndarray, "prompt circuit"], *, seed: int = 0) -> Estimate:
        """Sums of values over prompts over the sum of (clean - corrupted), resampled together."""
        return interval(values, group_index(self.groups), over=self.effect, draws=DRAWS, seed=seed, what=EFFECT)

    def headline(self) -> str:
        """The metric of both runs, and how many circuits there are."""
        clean, corrupted, count = self.clean.mean(), self.corrupted.mean(), self.circuits.shape[1]
        return (
            f"{self.dataset.attrs['metric']} under {count} circuit{'s' * (count != 1)}, mean of {len(self.clean)}"
            f" prompts: {clean:.3g} in the whole model, {corrupted:.3g} in the corrupted run"
        )

    def notes(self) -> list[str]:
        """Why faithfulness or its interval is absent."""
        reason = self.faithfulness().reason
        return [reason] if reason else []

    def summary(self) -> pd.DataFrame:
        """One row a circuit: the metric under it, and its faithfulness."""
        share, edges = self.faithfulness(), self.dataset["edges"].values
        return pd.DataFrame(
            {
                "edges": edges,
                "metric": self.circuits.mean(0),
                "faithfulness": share.value,
                "faithfulness_low": share.low,
                "faithfulness_high": share.high,
            }
        )


def circuit_values(
    model: Source | Policy,
    pairs: Prompts,
    circuits: Sequence[Circuit],
    metric: Metric | None = None,
    *,
    batch_size: int = 16,
    rows: Sequence[int] | np.ndarray | None = None,
    progress: Progress | None = None,
) -> CircuitValues:
    """The metric when every edge outside a circuit carries the corrupted run's activation, for many circuits.

    The corrupted run is made once a batch; then each circuit costs one pass.

    Args:
        model: id, folder, module or `Policy`.
        pairs: prompts with `corrupted` counterparts.
        circuits: the edges that stay, for each.
        metric: see `edge_attribution`.
        batch_size: prompts that run together.
        rows: which prompts, by index; None is all.
        progress: called with prompts done and prompts in all.

    Raises:
        MeasureError: a circuit is of another model's shape.
    """
    policy, tell = as_policy(model), progress or no_progress
    parts, graph, judged_by = policy.parts, Graph.of(policy.parts), resolve_metric(metric, pairs, names=METRICS)
    for circuit in circuits:
        if not graph.same_as(circuit.graph):
            raise MeasureError("a circuit has other nodes than this model; choose it from scores of this architecture")
    chosen = np.arange(len(pairs)) if rows is None else np.asarray(rows)
    tokens, corrupt = (take(ids, chosen) for ids in clean_and_corrupt(policy, pairs))
    masks = [torch.from_numpy(graph.mask(circuit.edges)).to(policy.device) for circuit in circuits]
    tables: list[np.ndarray] = []
    start = 0
    for batch, other in zip(tokens.batches(batch_size), corrupt.batches(batch_size), strict=True):
        index = torch.from_numpy(chosen[start : start + len(batch.input_ids)]).to(policy.device)
        start += len(batch.input_ids)
        batch, other = batch.to(policy.device), other.to(policy.device)
        clean, corrupted = plain_pass(parts, graph, batch), plain_pass(parts, graph, other)
        logits = [clean.logits, corrupted.logits]
        logits += [circuit_pass(parts, graph, batch, corrupted, mask.float()) for mask in masks]
        with torch.no_grad():
            values = [judged(judged_by, run, clean.logits, batch, index) for run in logits]
        tables.append(torch.stack(values, dim=1).double().cpu().numpy())
        tell("running circuits", start, len(chosen))
    table, units, label = np.concatenate(tables), metric_units(judged_by), metric_label(judged_by)
    data = dataset(
        {
            "under_circuit": variable("prompt circuit", table[:, 2:], f"{label} under a circuit", units),
            "clean": variable("prompt", table[:, 0], f"{label} of the clean run", units),
            "corrupted": variable("prompt", table[:, 1], f"{label} of the corrupted run", units),
            "edges": variable(
                "circuit", np.array([circuit.size for circuit in circuits], dtype=int), "edges that stay"
            ),
        },
        prompt=chosen,
    )
    groups = strings(np.array(pairs.groups, dtype=object)[chosen])
    data = data.assign_coords(group=("prompt", groups))
    return CircuitValues(data.assign_attrs(metric=label, model=json.dumps(dict(policy.description))))


class Faithfulness(Result):
    """How much of a model's behaviour circuits carry, by number of edges.

    The dataset holds `faithfulness` with `faithfulness_low` and `faithfulness_high`, and `connected` (edges on a path),
    by `size`; `random` [draw, size], the same of random circuits; `circuit` [prompt, size], `clean` and `corrupted`
    [prompt], the metric; `in_circuit` [size, edge].
    """

    kind = "faithfulness"
    title = "Faithfulness of circuits"

    @cached_property
    def circuits(self) -> tuple[Circuit, ...]:
        """The circuits, by size."""
        graph = Graph.from_dataset(self.dataset)
        return tuple(Circuit.of(graph, np.flatnonzero(row)) for row in self.dataset["in_circuit"].values)

    @property
    def reason(self) -> str:
        """Why faithfulness or its interval is absent, or ""."""
        return str(self.dataset.attrs["reason"])

    def headline(self) -> str:
        """What the smallest circuit that carries most of the behaviour carries."""
        data = self.dataset
        value = data["faithfulness"].values
        if not np.isfinite(value).any():
            return f"No faithfulness: {self.reason}"
        best = int(np.argmax(value >= 0.85)) if (value >= 0.85).any() else int(np.nanargmax(value))
        low, high = (float(data[f"faithfulness_{end}"][best]) for end in ("low", "high"))
        return (
            f"{int(data['size'][best])} edges carry {Estimate(float(value[best]), low, high)} of the model's"
            f" {data.attrs['metric']}"
        )

    def notes(self) -> list[str]:
        """What the columns are."""
        words = "faithfulness: share of what corrupting takes away; random: mean of random circuits of as many edges"
        return [words] if not self.reason else [words, self.reason]

    def summary(self) -> pd.DataFrame:
        """One row a size."""
        data = self.dataset
        names = ("faithfulness", "faithfulness_low", "faithfulness_high")
        random = data["random"].values.reshape(-1, data.sizes["size"])
        columns = {"edges": data["size"].values, **{name: data[name].values for name in names}}
        columns["random"] = random.mean(0) if len(random) else np.full(data.sizes["size"], np.nan)
        return pd.DataFrame({**columns, "connected": data["connected"].values})


@renamed(**LOADING)
def faithfulness(
    model: Source | Policy,
    pairs: Prompts,
    circuit: Circuit,
    metric: Metric | None = None,
    *,
    batch_size: int = 16,
    seed: int = 0,
) -> Estimate:
    """The share of a model's behaviour that one circuit carries, by real ablation of every other edge.

    faithfulness = sum over prompts (circuit - corrupted) / sum over prompts (clean - corrupted),

    with a 95 % interval over prompts (both sums resampled together). 1 is the model, 0 the corrupted run; it may be
    under 0 or over 1.

    Args:
        model: id, folder, module or `Policy`.
        pairs: prompts with `corrupted` counterparts.
        circuit: the edges that stay.
        metric: see `edge_attribution`.
        batch_size: prompts that run together.
        seed: of the resampling.

    Returns:
        The share; NaN with a reason where the interval of what corrupting changes holds 0.
    """
    values = circuit_values(model, pairs, [circuit], metric, batch_size=batch_size)
    return values.faithfulness(seed=seed).column(0)


@renamed(random="it is draws=", **LOADING)
def faithfulness_curve(
    model: Source | Policy,
    pairs: Prompts,
    scores: EdgeScores,
    metric: Metric | None = None,
    *,
    sizes: Sequence[int] | None = None,
    by: By = "top",
    draws: int = 5,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> Faithfulness:
    """Faithfulness of the strongest edges by their number, beside random circuits of the same numbers.

    Args:
        model: id, folder, module or `Policy`.
        pairs: prompts with `corrupted` counterparts; not those of the scores, where the estimate is to be honest.
        scores: what ranks the edges.
        metric: see `edge_attribution`.
        sizes: numbers of edges; None is eight, from one edge in two hundred to all.
        by: how circuits are chosen (see `choose`).
        draws: random circuits for each size (see `random_circuits`).
        batch_size: prompts that run together.
        seed: of random circuits and resampling.
        progress: called with prompts done and prompts in all.

    Raises:
        MeasureError: a size that the graph cannot have, or scores of another architecture.
    """
    graph = scores.graph
    numbers = check_sizes(graph, sizes)
    circuits = [Circuit.of(graph, edges) for edges in strongest_by_size(graph, scores.mean, numbers, by=by)]
    nulls = [circuit for size in numbers for circuit in random_circuits(graph, size, draws=draws, seed=seed)]
    values = circuit_values(model, pairs, [*circuits, *nulls], metric, batch_size=batch_size, progress=progress)
    share, count, units = values.faithfulness(seed=seed), len(circuits), values.units
    null = share.value[count:].reshape(len(numbers), draws).T
    inside = np.stack([circuit.dataset["in_circuit"].values for circuit in circuits])
    words = ("share of the behaviour", "lower bound over prompts, 95 %", "upper bound over prompts, 95 %")
    names = ("faithfulness", "faithfulness_low", "faithfulness_high")
    parts = zip(names, share, words, strict=True)
    shares = {name: variable("size", values_of[:count], text, "share") for name, values_of, text in parts}
    data = dataset(
        {
            **shares,
            "random": variable("draw size", null, "share that a random circuit of as many edges carries", "share"),
            "connected": variable("size", [circuit.connected.size for circuit in circuits], "edges on a path", "edges"),
            "circuit": variable("prompt size", values.circuits[:, :count], "metric under the circuit", units),
            "clean": variable("prompt", values.clean, "metric of the clean run", units),
            "corrupted": variable("prompt", values.corrupted, "metric of the corrupted run", units),
            "in_circuit": variable("size edge", inside, "whether the circuit holds the edge"),
        },
        size=list(numbers),
    )  # fmt: skip
    data = graph.described(data).assign_coords(group=("prompt", values.groups))
    about = {name: values.dataset.attrs[name] for name in ("model", "metric")}
    return Faithfulness(data.assign_attrs(about, reason=share.reason, by=by, seed=seed))


def folds(scores: EdgeScores) -> list[tuple[np.ndarray, np.ndarray]]:
    """Prompts that choose and prompts that judge: two halves in turn; under 16 groups, or pooled scores, all and all.

    A circuit that was chosen on the prompts that judge it looks better than it is, and so would tuned's own circuit
    beside base's.
    """
    first, second = selection_halves(scores.groups.astype(str))
    if len(first) == len(scores.groups) or scores.weights.max() > 1:
        everything = np.arange(int(scores.weights.sum()))
        return [(everything, everything)]
    return [(first, second), (second, first)]


def crossfitted(
    policy: Policy,
    pairs: Prompts,
    ranked: Sequence[EdgeScores],
    fixed: Sequence[Circuit],
    metric: Metric | None,
    sizes: Sequence[int],
    *,
    by: By,
    batch_size: int,
) -> CircuitValues:
    """The metric under each score's circuits at every size, and under fixed circuits, each prompt judged once.

    Args:
        policy: the model that runs.
        pairs: the prompts of all scores.
        ranked: scores from which circuits are chosen, on half the prompts, to be judged on the other half.
        fixed: circuits that are chosen already, such as random ones.
        metric: see `edge_attribution`.
        sizes: numbers of edges.
        by: how circuits are chosen.
        batch_size: prompts that run together.

    Returns:
        By prompt: the circuits of the first scores by size, those of the next, then the fixed ones.
    """
    halves: list[xr.Dataset] = []
    for chooses, judges in folds(ranked[0]):
        circuits = [circuit for scores in ranked for circuit in _chosen_on(scores, chooses, sizes, by)]
        values = circuit_values(policy, pairs, [*circuits, *fixed], metric, batch_size=batch_size, rows=judges)
        halves.append(values.dataset)
    data = xr.concat(halves, "prompt", data_vars="minimal", coords="minimal", compat="override", join="override")
    return CircuitValues(data.sortby("prompt"))


def _chosen_on(scores: EdgeScores, rows: np.ndarray, sizes: Sequence[int], by: By) -> list[Circuit]:
    weights = scores.weights.copy()
    if weights.max() == 1:  # not pooled: each row is a prompt
        weights = np.isin(np.arange(len(weights)), rows).astype(float)
    strength = mean_of(scores.values, weights)
    return [Circuit.of(scores.graph, edges) for edges in strongest_by_size(scores.graph, strength, sizes, by=by)]
