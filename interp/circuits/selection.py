"""Circuits: which edges are taken from scores, how far two sets overlap, and what other prompts would have taken."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from interp.circuits.graph import Graph
from interp.circuits.scores import EdgeScores, Method, mean_of
from interp.errors import MeasureError
from interp.measures.arrays import dataset, variable
from interp.result import Result
from interp.stats import MIN_PROMPTS, random_halves, resamples

By = Literal["top", "greedy"]


@dataclass(frozen=True)
class Selection:
    """How `compare` scores edges and chooses circuits from them.

    Attributes:
        method: "eap-ig" or "eap" (see `edge_attribution`).
        steps: gradients that "eap-ig" averages.
        by: "top" or "greedy" (see `choose`).
        splits: how often the prompts are halved, and circuits chosen from each half.
    """

    method: Method = "eap-ig"
    steps: int = 5
    by: By = "top"
    splits: int = 50


class Circuit(Result):
    """A set of edges of a model's graph; all others carry the corrupted run's activations.

    The dataset holds `in_circuit` [edge], with the names of each edge's node (`source`) and `destination`, and where
    it is known `strength` [edge], by which the edges were chosen.
    """

    kind = "circuit"
    title = "Circuit"

    @classmethod
    def of(
        cls, graph: Graph, edges: Sequence[int] | np.ndarray, strength: Float[np.ndarray, " edge"] | None = None
    ) -> Circuit:
        """The circuit of some edges.

        Args:
            graph: the graph.
            edges: indices of the edges in `Graph.edges`.
            strength: a number an edge, for its drawing and its table.
        """
        inside = np.zeros(graph.size, dtype=bool)
        inside[np.asarray(edges, dtype=int)] = True
        variables = {"in_circuit": variable("edge", inside, "whether the circuit holds the edge")}
        if strength is not None:
            variables["strength"] = variable("edge", strength, "what the edges were chosen by")
        return cls(graph.described(dataset(variables)))

    @cached_property
    def graph(self) -> Graph:
        """The graph whose edges these are."""
        return Graph.from_dataset(self.dataset)

    @cached_property
    def edges(self) -> tuple[int, ...]:
        """Indices of the edges in `Graph.edges`, sorted."""
        return tuple(np.flatnonzero(self.dataset["in_circuit"].values).tolist())

    @property
    def size(self) -> int:
        """Number of edges."""
        return len(self.edges)

    @cached_property
    def connected(self) -> Circuit:
        """The edges on a path from an input to the logits; the others, dangling, change nothing."""
        strength = self.dataset["strength"].values if "strength" in self.dataset else None
        return Circuit.of(self.graph, self.graph.connected(self.edges), strength)

    @cached_property
    def members(self) -> tuple[int, ...]:
        """Nodes on such a path, by index."""
        return tuple(self.graph.members(self.edges).tolist())

    @property
    def nodes(self) -> tuple[str, ...]:
        """Nodes on such a path, by name."""
        return tuple(self.graph.nodes[node] for node in self.members)

    def headline(self) -> str:
        """How many edges and nodes there are."""
        connected = len(self.graph.connected(self.edges))
        return (
            f"Circuit of {self.size} of {self.graph.size} edges, {connected} of them on a path from an input to the"
            f" logits, over {len(self.nodes)} nodes"
        )

    def summary(self) -> pd.DataFrame:
        """One row an edge, the strongest first where strengths are known."""
        data, edges = self.dataset, np.array(self.edges, dtype=int)
        on_path = np.isin(edges, self.graph.connected(edges))
        frame = pd.DataFrame(
            {"source": data["source"].values[edges], "destination": data["destination"].values[edges]},
        )
        if "strength" in data:
            frame["strength"] = data["strength"].values[edges]
            frame["on_path"] = on_path
            order = np.argsort(-frame["strength"].abs().to_numpy(), kind="stable")
            return frame.iloc[order].reset_index(drop=True)
        return frame.assign(on_path=on_path)


def choose(graph: Graph, strength: Float[np.ndarray, " edge"], size: int, *, by: By = "top") -> Circuit:
    """The circuit of the `size` strongest edges.

    Args:
        graph: the graph.
        strength: a number an edge, of which the magnitude counts: `EdgeScores.mean`.
        size: number of edges.
        by: "top", the edges of largest magnitude, dangling ones among them (`Circuit.connected` drops them); or
            "greedy", from the logits backwards, always the largest edge into what is already in the circuit, so that
            every edge leads to the logits (Hanna et al. 2024).

    Raises:
        MeasureError: the graph has not so many edges, or `by` is neither.
    """
    return Circuit.of(graph, strongest(graph, strength, size, by=by), strength)


def strongest(
    graph: Graph, strength: Float[np.ndarray, " edge"], size: int, *, by: By = "top"
) -> Int[np.ndarray, " chosen"]:
    """The edges that `choose` takes, by index, sorted.

    Raises:
        MeasureError: see `choose`.
    """
    if not 0 <= size <= graph.size:
        raise MeasureError(f"a circuit of this model has 0 to {graph.size} edges, not {size}")
    if by == "greedy":
        return np.array(sorted(_greedy(graph, np.abs(strength), size)), dtype=int)
    if by != "top":
        raise MeasureError(f'circuits are chosen by "top" or "greedy", not {by!r}')
    return np.sort(_ranking(strength)[:size])


def strongest_by_size(
    graph: Graph, strength: Float[np.ndarray, " edge"], sizes: Sequence[int], *, by: By = "top"
) -> list[Int[np.ndarray, " chosen"]]:
    """The edges that `choose` takes at every size, ranked once where that is possible."""
    if by == "top":
        order = _ranking(strength)
        return [np.sort(order[:size]) for size in sizes]
    return [strongest(graph, strength, size, by=by) for size in sizes]


def _ranking(strength: Float[np.ndarray, " edge"]) -> Int[np.ndarray, " edge"]:
    """Edges from the strongest to the weakest, equal ones by index."""
    return np.argsort(-np.abs(strength), kind="stable")


def _greedy(graph: Graph, magnitude: np.ndarray, count: int) -> list[int]:
    into: dict[int, list[int]] = {}
    for edge, (_, destination) in enumerate(graph.edges.tolist()):
        into.setdefault(destination, []).append(edge)
    inputs: dict[int, list[int]] = {}
    for destination, nodes in enumerate(graph.feeds):
        for node in nodes:
            inputs.setdefault(node, []).append(destination)
    heap: list[tuple[float, int]] = []
    opened: set[int] = set()

    def open_up(destinations: Sequence[int]) -> None:
        for destination in destinations:
            if destination not in opened:
                opened.add(destination)
                for edge in into.get(destination, ()):
                    heapq.heappush(heap, (-float(magnitude[edge]), edge))

    open_up([destination for destination, nodes in enumerate(graph.feeds) if not nodes])
    edges: list[int] = []
    while heap and len(edges) < count:
        _, edge = heapq.heappop(heap)
        edges.append(edge)
        open_up(inputs.get(int(graph.edges[edge, 0]), ()))
    return edges


def random_circuits(graph: Graph, size: int, *, draws: int, seed: int = 0) -> list[Circuit]:
    """Circuits of random edges that lead to the logits, for the null: what any circuit of this size does.

    Edges are drawn from the logits backwards ("greedy" on random scores): of edges drawn without regard to paths next
    to none would be connected, and the null would be an empty circuit.
    """
    rng = np.random.default_rng((seed, size))
    return [Circuit.of(graph, strongest(graph, rng.random(graph.size), size, by="greedy")) for _ in range(draws)]


def default_sizes(graph: Graph, count: int = 8) -> tuple[int, ...]:
    """Sizes from about one edge in two hundred to all, evenly spaced on a logarithmic axis."""
    smallest = max(4, graph.size // 200)
    return tuple(sorted({int(round(size)) for size in np.geomspace(smallest, graph.size, count)}))


def check_sizes(graph: Graph, sizes: Sequence[int] | None) -> tuple[int, ...]:
    """Sizes of circuits, sorted, each once.

    Raises:
        MeasureError: there is none, or one that the graph cannot have.
    """
    if sizes is None:
        return default_sizes(graph)
    numbers = sorted({int(size) for size in sizes})
    if not numbers or numbers[0] < 1 or numbers[-1] > graph.size:
        raise MeasureError(f"sizes are numbers of edges, 1 to {graph.size} in this model, not {list(sizes)}")
    return tuple(numbers)


def jaccard(first: Sequence[int] | np.ndarray, second: Sequence[int] | np.ndarray) -> float:
    """What two sets share of what they have together; NaN of two empty ones."""
    ours, theirs = np.asarray(first, dtype=int), np.asarray(second, dtype=int)
    both = np.intersect1d(ours, theirs, assume_unique=True).size
    either = ours.size + theirs.size - both
    return both / either if either else float("nan")


class Stability(Result):
    """How far a circuit is the prompts' doing: the edges that other prompts of the same kind would have chosen.

    The dataset holds `frequency` [edge], the share of bootstrap resamples of the prompts whose circuit holds the edge;
    `overlap` [draw], edges that a resample's circuit shares with that of all prompts (Jaccard); `split_half` [draw],
    edges that the circuits of two halves of the prompts share.
    """

    kind = "circuit_stability"
    title = "Stability of a circuit"

    def headline(self) -> str:
        """How many edges are stable, and the two overlaps."""
        data = self.dataset
        often = int((data["frequency"] >= 0.9).sum())
        whole, half = (float(data[name].mean()) for name in ("overlap", "split_half"))
        return (
            f"{data.attrs['size']} edges: {often} are chosen in nine of ten resamples; resamples share {whole:.2f} with"
            f" the whole, halves {half:.2f} with each other (Jaccard)"
        )

    def summary(self) -> pd.DataFrame:
        """One row an edge that any resample chose, the most frequent first."""
        data = self.dataset
        names = ("source", "destination", "frequency")
        frame = pd.DataFrame({name: data[name].values for name in names})
        frame = frame[frame["frequency"] > 0]
        return frame.sort_values("frequency", ascending=False, kind="stable").reset_index(drop=True)


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
    graph = scores.graph
    whole = strongest(graph, scores.mean, size, by=by)
    weights = resamples(scores.groups, draws=draws, seed=seed)
    split = random_halves(scores.groups, draws=draws, seed=seed)
    if weights is None or split is None:
        raise MeasureError(
            f"stability needs {MIN_PROMPTS} groups of prompts, and there are fewer; give more prompts (prompts with the"
            " same text, or of one of `groups`, count once; where scores were pooled a group is a batch)"
        )

    def edges(weight: np.ndarray) -> np.ndarray:
        return strongest(graph, mean_of(scores.values, weight * scores.weights), size, by=by)

    circuits = [edges(weight) for weight in weights]
    frequency = np.zeros(graph.size)
    for circuit in circuits:
        frequency[circuit] += 1 / draws
    pairs = [(edges(first.astype(float)), edges((~first).astype(float))) for first in split]
    variables: dict[str, Any] = {
        "frequency": variable("edge", frequency, "share of resamples that choose the edge", "share"),
        "overlap": variable("draw", [jaccard(circuit, whole) for circuit in circuits], "Jaccard with the whole"),
        "split_half": variable("draw", [jaccard(*both) for both in pairs], "Jaccard of two halves of the prompts"),
    }
    data = graph.described(dataset(variables))
    return Stability(data.assign_attrs(scores.about(), size=size, by=by, seed=seed))
