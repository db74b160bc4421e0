"""The computation graph of a model: nodes that write into the residual, and the places that read it.

A node is an embedding, a head, or an MLP; what it writes is what it adds to the residual. A destination is one input:
the query, key or value input of a head (key and value by key-value head), an MLP's input, or the logits. An edge leads
from every node to every destination after it in the same residual stream, as all of them read the sum of what was
written before. (OLMo-2 norms the queries of all heads together, and the keys: there an input of one head moves the
others a little.) (Conmy et al. 2023, "Towards Automated Circuit Discovery"; Syed et al. 2023.)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
import xarray as xr
from torch import nn

from interp.errors import MeasureError
from interp.families import Parts
from interp.families.parts import StackName
from interp.hooks import Site
from interp.measures.arrays import as_variable, strings

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
class Shape:
    """What a model's graph depends on; with it a graph is built again without the model.

    Attributes:
        n_layers: blocks, of an encoder-decoder those of the decoder.
        n_heads: heads of a block.
        n_kv_heads: key-value heads of a block.
        n_encoder_layers: blocks of the encoder; 0 without one.
        parallel: attention and MLP of a block read the same residual.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    n_encoder_layers: int = 0
    parallel: bool = False

    @classmethod
    def of(cls, parts: Parts) -> Shape:
        """The shape of a causal language model or of an encoder-decoder.

        Raises:
            MeasureError: the model is none of these, or its norms take sums (OPT-350m), so that the residual is no sum
                of what was written.
        """
        if parts.head.kind != "language model" or parts.layout().norm_of_sum:
            raise MeasureError(
                f"circuits are for language models whose residual is a sum of what was written, and"
                f" {type(parts.model).__name__} ({parts.family.name}) is none; compare it by patching its sites instead"
            )
        layers = parts.n_encoder_layers if parts.family.encoder is not None else 0
        return cls(parts.n_layers, parts.n_heads, parts.n_kv_heads, layers, parts.layout().resid_mid is None)


@dataclass(frozen=True)
class Graph:
    """Nodes, destinations and edges of models of one shape.

    Attributes:
        shape: the numbers of layers and heads that decide them.
    """

    shape: Shape

    @classmethod
    def of(cls, parts: Parts) -> Graph:
        """The graph of a causal language model or of an encoder-decoder.

        Raises:
            MeasureError: see `Shape.of`.
        """
        return _shared(Shape.of(parts))

    @classmethod
    def from_dataset(cls, data: xr.Dataset) -> Graph:
        """The graph that `described` put into a dataset."""
        return _shared(Shape(**json.loads(data.attrs["graph"])))

    def described(self, data: xr.Dataset) -> xr.Dataset:
        """A dataset with the graph in its attributes and, where it has the dim edge, names of every edge's ends."""
        data = data.assign_attrs(graph=json.dumps(asdict(self.shape)))
        if "edge" not in data.dims:
            return data
        return data.assign_coords(self._ends)

    @cached_property
    def _ends(self) -> dict[str, xr.Variable]:
        ends = zip(("source", "destination"), self.labels, strict=True)
        return {name: as_variable(("edge",), strings(names), {}) for name, names in ends}

    @cached_property
    def _parts(self) -> _Builder:
        return _Builder(self.shape)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of what writes: `input`, `L3H1`, `L3.mlp`; of a T5 also `encoder.input`, `cross.L0H1`."""
        return self._parts.nodes

    @property
    def destinations(self) -> tuple[str, ...]:
        """Names of what reads: `L3H1.q`, `L3H1.k` (`L3H0-2.k` where heads 0 to 2 share it), `L3.mlp`, `logits`."""
        return self._parts.destinations

    @property
    def writings(self) -> tuple[Writing, ...]:
        """Nodes by place, in the order of `nodes`."""
        return self._parts.writings

    @property
    def readings(self) -> tuple[Reading, ...]:
        """Destinations by place, in the order of `destinations`."""
        return self._parts.readings

    @property
    def feeds(self) -> tuple[tuple[int, ...], ...]:
        """For each destination the nodes whose output it decides; none for the logits."""
        return self._parts.feeds

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
        table = np.zeros((len(self.nodes), len(self.destinations)), dtype=bool)
        ends = self.edges[np.asarray(edges, dtype=int)]
        table[ends[:, 0], ends[:, 1]] = True
        return table

    def connected(self, edges: Sequence[int] | np.ndarray) -> np.ndarray:
        """Those of `edges` that lie on a path from an input to the logits: the others carry nothing (index, sorted)."""
        into: dict[int, list[int]] = {}
        for edge in np.sort(np.asarray(edges, dtype=int)).tolist():
            into.setdefault(int(self.edges[edge, 1]), []).append(edge)
        order = [d for reading in self.readings for d in reading.destinations]
        reached = {node for writing in self.writings if writing.kind == "input" for node in writing.nodes}
        live: set[int] = set()
        for destination in order:  # in the order of the pass, so that what a node reads is settled before it writes
            arriving = [e for e in into.get(destination, ()) if int(self.edges[e, 0]) in reached]
            live.update(arriving)
            if arriving:
                reached.update(self.feeds[destination])
        needed: set[int] = set()
        on_path: list[int] = []
        for destination in reversed(order):
            if self.feeds[destination] and not needed.intersection(self.feeds[destination]):
                continue
            arriving = [e for e in into.get(destination, ()) if e in live]
            on_path += arriving
            needed.update(int(self.edges[e, 0]) for e in arriving)
        return np.array(sorted(on_path), dtype=int)

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
        return self.shape == other.shape


@lru_cache(maxsize=8)
def _shared(shape: Shape) -> Graph:
    """One graph for one shape, whose names and edges are made once."""
    return Graph(shape)


def span(indices: range) -> slice:
    """A range as an index that makes no copy."""
    return slice(indices.start, indices.stop)


class _Builder:
    """Walks through a model in the order of its pass."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.nodes: tuple[str, ...] = ()
        self.destinations: tuple[str, ...] = ()
        self.writings: tuple[Writing, ...] = ()
        self.readings: tuple[Reading, ...] = ()
        self.feeds: tuple[tuple[int, ...], ...] = ()
        self.begin = 0  # first node of the stream that is being walked
        self._walk()

    def _walk(self) -> None:
        shape, last = self.shape, self.shape.n_layers - 1
        encoded = range(0)
        if shape.n_encoder_layers:
            self._write("input", 0, "encoder", ["encoder.input"])
            for layer in range(shape.n_encoder_layers):
                self._attention(layer, "encoder")
                self._mlp(layer, "encoder", len(self.nodes))
            encoded = self._stream()
        self.begin = len(self.nodes)
        self._write("input", 0, None, ["input"])
        for layer in range(shape.n_layers):
            before = len(self.nodes)
            self._attention(layer, None)
            if shape.n_encoder_layers:
                self._attention(layer, "cross", encoded)
            self._mlp(layer, None, before if shape.parallel else len(self.nodes))
        self._read("logits", last, None, ["logits"], [()], self._stream(), Site("resid_post", last))

    def _stream(self, stop: int | None = None) -> range:
        return range(self.begin, len(self.nodes) if stop is None else stop)

    def _write(
        self, kind: Literal["input", "heads", "mlp"], layer: int, stack: StackName | None, names: list[str]
    ) -> None:
        start = len(self.nodes)
        self.nodes += tuple(names)
        self.writings += (Writing(kind, layer, stack, range(start, start + len(names))),)

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
        self.destinations += tuple(names)
        self.feeds += tuple(feeds)
        self.readings += (Reading(part, layer, stack, range(start, start + len(names)), sources, site),)

    def _attention(self, layer: int, stack: StackName | None, encoded: range | None = None) -> None:
        n_heads, n_groups = self.shape.n_heads, self.shape.n_kv_heads
        here = f"{stack}.L{layer}" if stack else f"L{layer}"
        heads = [f"{here}H{head}" for head in range(n_heads)]
        first, shared = len(self.nodes), n_heads // n_groups
        single: list[tuple[int, ...]] = [(first + head,) for head in range(n_heads)]
        groups = [tuple(range(first + i * shared, first + (i + 1) * shared)) for i in range(n_groups)]
        spans = [heads[i] if shared == 1 else f"{heads[i * shared]}-{(i + 1) * shared - 1}" for i in range(n_groups)]
        site = Site("resid_mid", layer) if stack == "cross" else Site("resid_pre", layer, stack)
        last = Site("resid_post", self.shape.n_encoder_layers - 1, "encoder")
        far = (encoded, last) if encoded else (self._stream(), site)
        self._read("q", layer, stack, [f"{name}.q" for name in heads], single, self._stream(), site)
        self._read("k", layer, stack, [f"{name}.k" for name in spans], groups, *far)
        self._read("v", layer, stack, [f"{name}.v" for name in spans], groups, *far)
        self._write("heads", layer, stack, heads)

    def _mlp(self, layer: int, stack: StackName | None, stop: int) -> None:
        if self.shape.parallel and stack is None:
            site = Site("resid_pre", layer)
        elif stack is None and self.shape.n_encoder_layers:
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
