"""A slow pass by edges, one node at a time through the bare model: the oracle of the tests of circuits."""

from __future__ import annotations

import contextlib

import numpy as np
import torch

from interp.circuits.graph import Graph, reader, reading_norm
from interp.hooks import Site, capture
from interp.models.running import forward_inputs, run


def naive_logits(parts, graph: Graph, clean, corrupt, weight: np.ndarray) -> torch.Tensor:
    """Last-token logits where edge (s, d) carries `weight` parts of this pass and the rest of the corrupted run.

    Every node takes a whole run of the bare model, in which its own inputs alone are put right.
    """
    corrupted = _written(parts, graph, corrupt)
    sites = {each.site for each in graph.readings}
    _, residuals = run(parts, corrupt, sites)
    outputs: dict[int, torch.Tensor] = {}
    _, entering = run(parts, clean, [each.site for each in graph.writings if each.kind == "input"])

    def destination(name_end: str, node: int) -> int:
        return next(
            d for d, nodes in enumerate(graph.feeds) if node in nodes and graph.destinations[d].endswith(name_end)
        )

    def value(d: int) -> torch.Tensor:
        reading = next(each for each in graph.readings if d in each.destinations)
        total = residuals[reading.site].clone()
        for s in reading.sources:
            total += float(weight[s, d]) * (outputs[s] - corrupted[s])
        return total

    for writing in graph.writings:
        if writing.kind == "input":
            outputs[writing.nodes.start] = entering[writing.site]
        elif writing.kind == "mlp":
            (node,) = writing.nodes
            with _mlp_reads(parts, graph, writing, value(destination("mlp", node))):
                outputs[node] = _captured(parts, clean, writing.site)
        else:
            inputs = {p: [value(destination(f".{p}", node)) for node in writing.nodes] for p in "qkv"}
            with _attention_reads(parts, graph, writing, inputs):
                z = _captured(parts, clean, writing.site)
            weights = parts.W_O(writing.layer, writing.stack).detach()
            heads = {node: z[:, :, i] @ weights[i] for i, node in enumerate(writing.nodes)}
            outputs |= _after_norm(parts, writing, heads)
    last = graph.readings[-1]
    with _replaced(parts.final_norm, value(last.destinations.start)), torch.no_grad():
        return parts.model(**forward_inputs(parts, clean)).logits[:, -1]


def _captured(parts, batch, site: Site) -> torch.Tensor:
    with torch.no_grad(), capture(parts, [site]) as store:
        parts.model(**forward_inputs(parts, batch))
    return store[site]


def _written(parts, graph: Graph, batch) -> dict[int, torch.Tensor]:
    outputs: dict[int, torch.Tensor] = {}
    for writing in graph.writings:
        found = _captured(parts, batch, writing.site)
        if writing.kind != "heads":
            outputs[writing.nodes.start] = found
            continue
        weights = parts.W_O(writing.layer, writing.stack).detach()
        outputs |= _after_norm(
            parts, writing, {node: found[:, :, i] @ weights[i] for i, node in enumerate(writing.nodes)}
        )
    return outputs


def _after_norm(parts, writing, heads):
    """Where an RMSNorm follows the attention it multiplies every part by what it multiplies the whole."""
    if not parts.path("attn_post_norm", writing.stack):
        return heads
    assert parts.b_O(writing.layer, writing.stack) is None
    total = sum(heads.values())
    with torch.no_grad():
        factor = parts.inside(writing.layer, "attn_post_norm", writing.stack)(total) / total
    return {node: value * factor for node, value in heads.items()}


@contextlib.contextmanager
def _replaced(module, value):
    handle = module.register_forward_pre_hook(lambda _, args: (value.reshape(args[0].shape), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _mlp_reads(parts, graph, writing, value):
    (reading,) = [r for r in graph.readings if (r.part, r.layer, r.stack) == ("mlp", writing.layer, writing.stack)]
    with _replaced(reader(parts, reading), value):
        yield


@contextlib.contextmanager
def _attention_reads(parts, graph, writing, inputs):
    """Every head of one attention reads its own inputs, through a whole projection each."""
    outputs: dict[torch.nn.Module, torch.Tensor] = {}
    for reading in graph.readings:
        if reading.part in inputs and (reading.layer, reading.stack) == (writing.layer, writing.stack):
            module, norm = parts.inside(reading.layer, reading.part, reading.stack), reading_norm(parts, reading)
            with torch.no_grad():
                whole = [module(each if norm is None else norm(each)) for each in inputs[reading.part]]
                split = [parts.of_projection(each, reading.part, reading.stack) for each in whole]
                shared = len(split) // len(reading.destinations)
                own = torch.stack([split[i * shared][:, :, i] for i in range(len(reading.destinations))], dim=2)
                outputs[module] = parts.in_projection(outputs.get(module, whole[0]), own, reading.part, reading.stack)
    handles = [module.register_forward_hook(lambda *_, out=out: out) for module, out in outputs.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
