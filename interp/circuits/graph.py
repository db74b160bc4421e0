"""The computation graph of a model: nodes that write into the residual, and the places that read it.

A node is an embedding, a head, or an MLP; what it writes is what it adds to the residual. A destination is one input:
the query, key or value input of a head (key and value by key-value head), an MLP's input, or the logits. An edge leads
from every node to every destination after it in the same residual stream, as all of them read the sum of what was
written before. (OLMo-2 norms the queries of all heads together, and the keys: there an input of one head moves the
others a little.) (Conmy et al. 2023, "Towards Automated Circuit Discovery"; Syed et al. 2023.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from torch import nn

from interp.errors import MeasureError
from interp.families import Parts
from interp.families.parts import StackName
from interp.hooks import Site

Part = Literal["q", "k", "v", "mlp", "logits"]


@dataclass(frozen=True)
class Writing:
    """Nodes that write at one place of the pass: an embedding, the heads of one attention, or one MLP.

    Attributes:
        kind: "input", "heads" or "mlp".
        layer: index of the block; 0 for an input.
        stack: None, "encoder" or "cross".
        nodes: their range in `Graph.nodes`.
    """

    kind: Literal["input", "heads", "mlp"]
    layer: int
    stack: StackName | None
    nodes: range

    @property
    def site(self) -> Site:
        """What is captured of them: the residual at the first block, z, or what the MLP adds."""
        return Site({"input": "resid_pre", "heads": "z", "mlp": "mlp_out"}[self.kind], self.layer, self.stack)


@dataclass(frozen=True)
class Reading:
    """Destinations that read at one place of the pass, through one norm: a head's queries, say.

    Attributes:
        part: "q", "k", "v", "mlp" or "logits".
        layer: index of the block; of the logits, the last.
        stack: None, "encoder" or "cross".
        destinations: their range in `Graph.destinations`.
        sources: the range of nodes in `Graph.nodes` that they read.
        site: the residual that they read.
    """

    part: Part
    layer: int
    stack: StackName | None
    destinations: range
    sources: range
    site: Site


@dataclass(frozen=True)
class Graph:
    """Nodes, destinations and edges of one model.

    Attributes:
        nodes: names of what writes: `input`, `L3H1`, `L3.mlp`; of a T5 also `encoder.input`, `encoder.L0H1`,
            `cross.L0H1`.
        destinations: names of what reads: `L3H1.q`, `L3H1.k` (`L3H0-2.k` where heads 0 to 2 share it), `L3.mlp`,
            `logits`.
        writings: nodes by place, in the order of `nodes`.
        readings: destinations by place, in the order of `destinations`.
        feeds: for each destination the nodes whose output it decides; none for the logits.
    """

    nodes: tuple[str, ...]
    destinations: tuple[str, ...]
    writings: tuple[Writing, ...]
    readings: tuple[Reading, ...]
    feeds: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, parts: Parts) -> Graph:
        """The graph of a causal language model or of an encoder-decoder.

        Raises:
            MeasureError: the model is none of these, or its norms take sums (OPT-350m), so that the residual is no sum
                of what was written.
        """
        if parts.head.kind != "language model" or parts.layout().norm_of_sum:
            raise MeasureError(
                f"circuits are for language models whose residual is a sum of what was written, and"
                f" {type(parts.model).__name__} ({parts.family.name}) is none; compare it by patching its sites instead"
            )
        return _Builder(parts).graph()

    @cached_property
    def edges(self) -> np.ndarray:
        """Every edge as (node, destination), [edge, 2], by destination and then by node."""
        pairs = [
            (source, destination)
            for reading in self.readings
            for destination in reading.destinations
            for source in reading.sources
        ]
        return np.array(pairs)

    @property
    def size(self) -> int:
        """Number of edges."""
        return len(self.edges)

    @cached_property
    def labels(self) -> tuple[list[str], list[str]]:
        """Names of every edge's node and destination."""
        return [self.nodes[s] for s, _ in self.edges], [self.destinations[d] for _, d in self.edges]

    def mask(self, edges: Sequence[int] | np.ndarray) -> np.ndarray:
        """Edges by their index as a table of truths, [node, destination]."""
        found = np.zeros((len(self.nodes), len(self.destinations)), dtype=bool)
        chosen = self.edges[np.asarray(edges, dtype=int)]
        found[chosen[:, 0], chosen[:, 1]] = True
        return found

    def connected(self, edges: Sequence[int] | np.ndarray) -> np.ndarray:
        """Those of `edges` that lie on a path from an input to the logits: the others carry nothing (index, sorted)."""
        chosen = np.sort(np.asarray(edges, dtype=int))
        by_destination: dict[int, list[int]] = {}
        for edge in chosen:
            by_destination.setdefault(int(self.edges[edge, 1]), []).append(int(edge))
        order = [d for reading in self.readings for d in reading.destinations]
        reached = {node for each in self.writings if each.kind == "input" for node in each.nodes}
        live: set[int] = set()
        for destination in order:  # in the order of the pass, so that what a node reads is settled before it writes
            found = [e for e in by_destination.get(destination, ()) if int(self.edges[e, 0]) in reached]
            live.update(found)
            if found:
                reached.update(self.feeds[destination])
        needed: set[int] = set()
        kept: list[int] = []
        for destination in reversed(order):
            if self.feeds[destination] and not needed.intersection(self.feeds[destination]):
                continue
            found = [e for e in by_destination.get(destination, ()) if e in live]
            kept += found
            needed.update(int(self.edges[e, 0]) for e in found)
        return np.array(sorted(kept), dtype=int)

    def members(self, edges: Sequence[int] | np.ndarray) -> np.ndarray:
        """Nodes on a path from an input to the logits over `edges` (index, sorted)."""
        return np.unique(self.edges[self.connected(edges), 0])

    @cached_property
    def incident(self) -> tuple[np.ndarray, ...]:
        """For each node the edges that leave it or enter one of its inputs (index)."""
        inputs: list[list[int]] = [[] for _ in self.nodes]
        for destination, nodes in enumerate(self.feeds):
            for node in nodes:
                inputs[node].append(destination)
        sources, ends = self.edges.T
        return tuple(np.flatnonzero((sources == node) | np.isin(ends, into)) for node, into in enumerate(inputs))

    def same_as(self, other: Graph) -> bool:
        """Whether two models have the same nodes and edges."""
        return self.nodes == other.nodes and self.destinations == other.destinations


def span(indices: range) -> slice:
    """A range as an index that makes no copy."""
    return slice(indices.start, indices.stop)


class _Builder:
    """Walks through a model in the order of its pass."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.nodes: list[str] = []
        self.destinations: list[str] = []
        self.writings: list[Writing] = []
        self.readings: list[Reading] = []
        self.feeds: list[tuple[int, ...]] = []
        self.begin = 0  # first node of the stream that is being walked

    def graph(self) -> Graph:
        parts, last = self.parts, self.parts.n_layers - 1
        encoded = range(0)
        if parts.family.encoder is not None:
            self._write("input", 0, "encoder", ["encoder.input"])
            for layer in range(parts.n_encoder_layers):
                self._attention(layer, "encoder")
                self._mlp(layer, "encoder", len(self.nodes))
            encoded = self._stream()
        self.begin = len(self.nodes)
        self._write("input", 0, None, ["input"])
        for layer in range(parts.n_layers):
            before = len(self.nodes)
            self._attention(layer, None)
            if parts.family.encoder is not None:
                self._attention(layer, "cross", encoded)
            parallel = parts.layout().resid_mid is None
            self._mlp(layer, None, before if parallel else len(self.nodes))
        self._read("logits", last, None, ["logits"], [()], self._stream(), Site("resid_post", last))
        return Graph(
            tuple(self.nodes), tuple(self.destinations), tuple(self.writings), tuple(self.readings), tuple(self.feeds)
        )

    def _stream(self, stop: int | None = None) -> range:
        return range(self.begin, len(self.nodes) if stop is None else stop)

    def _write(
        self, kind: Literal["input", "heads", "mlp"], layer: int, stack: StackName | None, names: list[str]
    ) -> None:
        start = len(self.nodes)
        self.nodes += names
        self.writings.append(Writing(kind, layer, stack, range(start, start + len(names))))

    def _read(
        self,
        part: Part,
        layer: int,
        stack: StackName | None,
        names: list[str],
        feeds: list[tuple[int, ...]],
        sources: range,
        site: Site,
    ) -> None:
        start = len(self.destinations)
        self.destinations += names
        self.feeds += feeds
        self.readings.append(Reading(part, layer, stack, range(start, start + len(names)), sources, site))

    def _attention(self, layer: int, stack: StackName | None, encoded: range | None = None) -> None:
        parts = self.parts
        here = f"{stack}.L{layer}" if stack else f"L{layer}"
        heads = [f"{here}H{head}" for head in range(parts.n_heads)]
        first, shared = len(self.nodes), parts.n_heads // parts.n_kv_heads
        own: list[tuple[int, ...]] = [(first + head,) for head in range(parts.n_heads)]
        groups = [tuple(range(first + i * shared, first + (i + 1) * shared)) for i in range(parts.n_kv_heads)]
        spans = [
            heads[i] if shared == 1 else f"{heads[i * shared]}-{(i + 1) * shared - 1}" for i in range(parts.n_kv_heads)
        ]
        site = Site("resid_mid", layer) if stack == "cross" else Site("resid_pre", layer, stack)
        far = (
            (encoded, Site("resid_post", parts.n_encoder_layers - 1, "encoder")) if encoded else (self._stream(), site)
        )
        self._read("q", layer, stack, [f"{name}.q" for name in heads], own, self._stream(), site)
        self._read("k", layer, stack, [f"{name}.k" for name in spans], groups, *far)
        self._read("v", layer, stack, [f"{name}.v" for name in spans], groups, *far)
        self._write("heads", layer, stack, heads)

    def _mlp(self, layer: int, stack: StackName | None, stop: int) -> None:
        parts = self.parts
        if parts.layout(stack).resid_mid is None:
            site = Site("resid_pre", layer, stack)
        elif stack is None and parts.family.encoder is not None:
            site = Site("resid_mid", layer, "cross")
        else:
            site = Site("resid_mid", layer, stack)
        name = f"{stack}.L{layer}.mlp" if stack else f"L{layer}.mlp"
        self._read("mlp", layer, stack, [name], [(len(self.nodes),)], self._stream(stop), site)
        self._write("mlp", layer, stack, [name])


def reading_norm(parts: Parts, reading: Reading) -> nn.Module | None:
    """The norm through which destinations read the residual, or None where they read it as it is (OLMo-2)."""
    layer, stack, part = reading.layer, reading.stack, reading.part
    if part == "logits":
        return parts.final_norm
    if part == "mlp":
        return parts.inside(layer, "mlp_norm", stack) if parts.path("mlp_norm", stack) else None
    if stack == "cross" and part != "q":
        return parts.model.get_submodule(str(parts.layout("encoder").final_norm))
    name = "resid_mid" if stack == "cross" else "attn_norm"
    return parts.inside(layer, name, stack) if parts.path(name, stack) else None


def reader(parts: Parts, reading: Reading) -> nn.Module:
    """The module whose first argument is the residual that an MLP or the logits read: their norm, or the MLP."""
    norm = reading_norm(parts, reading)
    return norm if norm is not None else parts.inside(reading.layer, "resid_mid", reading.stack)
