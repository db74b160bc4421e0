"""Does a circuit do what the model does? Every edge outside it is ablated, for real."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from interp.circuits.choice import By, Circuit, check_sizes, choose, random_circuits
from interp.circuits.graph import Graph
from interp.circuits.metrics import Metric, clean_and_corrupt, judge, take
from interp.circuits.passes import circuit_pass, plain_pass
from interp.circuits.scores import EdgeScores
from interp.errors import MeasureError
from interp.measures.arrays import dataset, variable
from interp.models import Policy, Source
from interp.prompts import Prompts
from interp.stats import Estimate, group_index, interval

EFFECT = "what corrupting the prompts changes"
DRAWS = 1000
"""Bootstrap resamples of a share."""


@dataclass(frozen=True)
class CircuitValues:
    """The metric under circuits, by prompt.

    Attributes:
        circuits: under each circuit.
        clean: of the whole model.
        corrupted: of the corrupted run.
        groups: group of each prompt.
        units: of all three.
    """

    circuits: Float[np.ndarray, "prompt circuit"]
    clean: Float[np.ndarray, " prompt"]
    corrupted: Float[np.ndarray, " prompt"]
    groups: np.ndarray
    units: str

    @property
    def effect(self) -> Float[np.ndarray, " prompt"]:
        """What corrupting the prompts takes away: clean minus corrupted."""
        return self.clean - self.corrupted

    def faithfulness(self, *, seed: int = 0) -> Estimate:
        """Of each circuit the sum of (circuit - corrupted) over prompts, over the sum of (clean - corrupted)."""
        kept = self.circuits - self.corrupted[:, None]
        return self.share(kept, seed=seed)

    def share(self, values: Float[np.ndarray, "prompt circuit"], *, seed: int = 0) -> Estimate:
        """Sums of values over prompts over the sum of (clean - corrupted), resampled together."""
        return interval(values, group_index(self.groups), over=self.effect, draws=DRAWS, seed=seed, what=EFFECT)


def circuit_values(
    policy: Policy,
    pairs: Prompts,
    circuits: Sequence[Circuit],
    metric: Metric = "logit_diff",
    *,
    batch_size: int = 16,
    rows: Sequence[int] | np.ndarray | None = None,
) -> CircuitValues:
    """The metric when every edge outside a circuit carries the corrupted run's activation, for many circuits.

    The corrupted run is made once a batch; then each circuit costs one pass.

    Args:
        policy: the model.
        pairs: prompts with `corrupted` counterparts.
        circuits: the edges that stay, for each.
        metric: see `Metric`.
        batch_size: prompts that run together.
        rows: which prompts, by index; None is all.

    Raises:
        MeasureError: a circuit is of another model's shape.
    """
    parts, graph, judged = policy.parts, Graph.of(policy.parts), judge(metric, pairs)
    for circuit in circuits:
        if not graph.same_as(circuit.graph):
            raise MeasureError("a circuit has other nodes than this model; choose it from scores of this architecture")
    chosen = np.arange(len(pairs)) if rows is None else np.asarray(rows)
    tokens, corrupt = (take(each, chosen) for each in clean_and_corrupt(policy, pairs))
    masks = [torch.from_numpy(graph.mask(circuit.edges)).to(policy.device) for circuit in circuits]
    found_rows: list[np.ndarray] = []
    start = 0
    for batch, other in zip(tokens.batches(batch_size), corrupt.batches(batch_size), strict=True):
        index = torch.from_numpy(chosen[start : start + len(batch.input_ids)]).to(policy.device)
        start += len(batch.input_ids)
        batch, other = batch.to(policy.device), other.to(policy.device)
        clean, corrupted = plain_pass(parts, graph, batch), plain_pass(parts, graph, other)
        found = [clean.logits, corrupted.logits]
        found += [circuit_pass(parts, graph, batch, corrupted, mask.float()) for mask in masks]
        with torch.no_grad():
            values = [judged(each, clean.logits, batch, index) for each in found]
        found_rows.append(torch.stack(values, dim=1).double().cpu().numpy())
    table = np.concatenate(found_rows)
    groups = np.array(pairs.groups, dtype=object)[chosen]
    return CircuitValues(table[:, 2:], table[:, 0], table[:, 1], groups, judged.units)


@dataclass(frozen=True)
class Faithfulness:
    """How much of a model's behaviour circuits carry, by number of edges.

    Attributes:
        dataset: `faithfulness`, `low`, `high` and `connected` (edges on a path) by `size`; `random` [draw, size], the
            same of random circuits; `circuit` [prompt, size], `clean` and `corrupted` [prompt], the metric; the reason
            in the attributes where it was refused.
        circuits: the circuits, by size.
    """

    dataset: xr.Dataset
    circuits: tuple[Circuit, ...]

    @property
    def reason(self) -> str:
        """Why faithfulness or its interval is absent, or ""."""
        return str(self.dataset.attrs["reason"])

    def __str__(self) -> str:
        data = self.dataset
        lines = []
        for size in data["size"].values:
            value, low, high = (float(data[name].sel(size=size)) for name in ("faithfulness", "low", "high"))
            random = ", ".join(f"{float(each):.2f}" for each in data["random"].sel(size=size))
            lines.append(f"{int(size):>7} edges: {Estimate(value, low, high, self.reason)}  random: {random}")
        return "\n".join(lines)


def faithfulness(
    model: Source | Policy,
    pairs: Prompts,
    circuit: Circuit,
    metric: Metric = "logit_diff",
    *,
    batch_size: int = 16,
    seed: int = 0,
    **load: Any,
) -> Estimate:
    """The share of a model's behaviour that one circuit carries, by real ablation of every other edge.

    faithfulness = sum over prompts (circuit - corrupted) / sum over prompts (clean - corrupted),

    with a 95 % interval over prompts (both sums resampled together). 1 is the model, 0 the corrupted run; it may be
    under 0 or over 1.

    Args:
        model: what `Policy.load` takes.
        pairs: prompts with `corrupted` counterparts.
        circuit: the edges that stay.
        metric: see `Metric`.
        batch_size: prompts that run together.
        seed: of the resampling.
        load: further arguments of `Policy.load`.

    Returns:
        The share; NaN with a reason where the interval of what corrupting changes holds 0.
    """
    policy = Policy.load(model, **load)
    values = circuit_values(policy, pairs, [circuit], metric, batch_size=batch_size)
    return values.faithfulness(seed=seed).column(0)


def faithfulness_curve(
    model: Source | Policy,
    pairs: Prompts,
    scores: EdgeScores,
    metric: Metric = "logit_diff",
    *,
    sizes: Sequence[int] | None = None,
    by: By = "top",
    random: int = 5,
    batch_size: int = 16,
    seed: int = 0,
    **load: Any,
) -> Faithfulness:
    """Faithfulness of the strongest edges by their number, beside random circuits of the same numbers.

    Args:
        model: what `Policy.load` takes.
        pairs: prompts with `corrupted` counterparts; not those of the scores, where the estimate is to be honest.
        scores: what ranks the edges.
        metric: see `Metric`.
        sizes: numbers of edges; None is eight, from one edge in two hundred to all.
        by: how circuits are chosen (see `choose`).
        random: random circuits for each size (see `random_circuits`).
        batch_size: prompts that run together.
        seed: of random circuits and resampling.
        load: further arguments of `Policy.load`.

    Raises:
        MeasureError: a size that the graph cannot have, or scores of another architecture.
    """
    policy, graph = Policy.load(model, **load), scores.graph
    numbers = check_sizes(graph, sizes)
    chosen = [choose(graph, scores.mean, size, by=by) for size in numbers]
    nulls = [each for size in numbers for each in random_circuits(graph, size, draws=random, seed=seed)]
    values = circuit_values(policy, pairs, [*chosen, *nulls], metric, batch_size=batch_size)
    found = values.faithfulness(seed=seed)
    null = found.value[len(chosen) :].reshape(len(numbers), random).T
    units, count = values.units, len(chosen)
    data = dataset(
        {
            "faithfulness": variable("size", found.value[:count], "share of the behaviour", "share"),
            "low": variable("size", found.low[:count], "lower bound over prompts, 95 %", "share"),
            "high": variable("size", found.high[:count], "upper bound over prompts, 95 %", "share"),
            "random": variable("draw size", null, "share that a random circuit of as many edges carries", "share"),
            "connected": variable("size", [len(e.connected) for e in chosen], "edges on a path", "edges"),
            "circuit": variable("prompt size", values.circuits[:, :count], "metric under the circuit", units),
            "clean": variable("prompt", values.clean, "metric of the clean run", units),
            "corrupted": variable("prompt", values.corrupted, "metric of the corrupted run", units),
        },
        size=list(numbers),
    )
    return Faithfulness(data.assign_attrs(reason=found.reason, by=by, seed=seed), tuple(chosen))
