"""Circuits: sets of edges, how they are chosen from scores, and how far two of them overlap."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from interp.circuits.graph import Graph
from interp.errors import MeasureError

By = Literal["top", "greedy"]


@dataclass(frozen=True)
class Circuit:
    """A set of edges of a graph; all others carry the corrupted run's activations.

    Attributes:
        graph: the graph.
        edges: indices of the edges in `Graph.edges`, sorted.
    """

    graph: Graph
    edges: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.edges)

    @cached_property
    def connected(self) -> Circuit:
        """The edges on a path from an input to the logits; the others, dangling, change nothing."""
        return Circuit(self.graph, tuple(self.graph.connected(self.edges).tolist()))

    @cached_property
    def members(self) -> tuple[int, ...]:
        """Nodes on such a path, by index."""
        return tuple(self.graph.members(self.edges).tolist())

    @property
    def nodes(self) -> tuple[str, ...]:
        """Nodes on such a path, by name."""
        return tuple(self.graph.nodes[node] for node in self.members)

    def __str__(self) -> str:
        return f"{len(self)} edges, {len(self.connected)} of them connected: {', '.join(self.nodes)}"


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
    if not 0 <= size <= graph.size:
        raise MeasureError(f"a circuit of this model has 0 to {graph.size} edges, not {size}")
    if by == "greedy":
        return Circuit(graph, tuple(sorted(_greedy(graph, np.abs(strength), size))))
    if by != "top":
        raise MeasureError(f'circuits are chosen by "top" or "greedy", not {by!r}')
    return Circuit(graph, tuple(sorted(ranking(strength)[:size].tolist())))


def ranking(strength: Float[np.ndarray, " edge"]) -> Int[np.ndarray, " edge"]:
    """Edges from the strongest to the weakest, equal ones by index."""
    return np.argsort(-np.abs(strength), kind="stable")


def _greedy(graph: Graph, size_of: np.ndarray, count: int) -> list[int]:
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
                    heapq.heappush(heap, (-float(size_of[edge]), edge))

    open_up([destination for destination, nodes in enumerate(graph.feeds) if not nodes])
    found: list[int] = []
    while heap and len(found) < count:
        _, edge = heapq.heappop(heap)
        found.append(edge)
        open_up(inputs.get(int(graph.edges[edge, 0]), ()))
    return found


def random_circuits(graph: Graph, size: int, *, draws: int, seed: int = 0) -> list[Circuit]:
    """Circuits of random edges that lead to the logits, for the null: what any circuit of this size does.

    Edges are drawn from the logits backwards ("greedy" on random scores): of edges drawn without regard to paths next
    to none would be connected, and the null would be an empty circuit.
    """
    rng = np.random.default_rng((seed, size))
    return [choose(graph, rng.random(graph.size), size, by="greedy") for _ in range(draws)]


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
    found = sorted({int(size) for size in sizes})
    if not found or found[0] < 1 or found[-1] > graph.size:
        raise MeasureError(f"sizes are numbers of edges, 1 to {graph.size} in this model, not {list(sizes)}")
    return tuple(found)


def jaccard(first: Sequence[int] | np.ndarray, second: Sequence[int] | np.ndarray) -> float:
    """What two sets share of what they have together; NaN of two empty ones."""
    ours, theirs = np.asarray(first, dtype=int), np.asarray(second, dtype=int)
    both = np.intersect1d(ours, theirs, assume_unique=True).size
    either = ours.size + theirs.size - both
    return both / either if either else float("nan")
