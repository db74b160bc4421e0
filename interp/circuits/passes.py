"""Passes through a model by the graph, clean, corrupted and by edges, and the metric by which a pass is judged."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.circuits.graph import Graph, Reading, Writing, reader, reading_norm, span
from interp.errors import PromptError
from interp.families import Parts
from interp.hooks import Site, capture, patch
from interp.metrics import Metric, metric_of_logits
from interp.models import Policy
from interp.models.running import forward_inputs
from interp.prompts import Batch, Prompts, TokenizedPrompts
from interp.sampling import evaluating

METRICS = ("logit_diff", "kl")
"""What a circuit can be for, besides a function of logits and rows; `kl` is KL(clean run ‖ this run)."""


@dataclass(frozen=True)
class Pass:
    """What a pass of one batch left.

    Attributes:
        logits: at each row's last prompt token.
        written: by place, what each of its nodes added to the residual, [node, batch, seq, d_model].
        residuals: by site, what is read there.
    """

    logits: Float[Tensor, "batch vocab"]
    written: Mapping[Writing, Tensor]
    residuals: Mapping[Site, Tensor]


def plain_pass(parts: Parts, graph: Graph, batch: Batch) -> Pass:
    """Run a batch as it is."""
    sites = {writing.site for writing in graph.writings} | {reading.site for reading in graph.readings}
    with torch.no_grad(), capture(parts, sites) as store:
        logits = last_logits(parts, batch)
    written = {writing: what_is_written(parts, writing, store[writing.site]) for writing in graph.writings}
    return Pass(logits, written, {reading.site: store[reading.site] for reading in graph.readings})


def last_logits(parts: Parts, batch: Batch) -> Float[Tensor, "batch vocab"]:
    """Logits at each row's last prompt token; the unembedding reads these tokens alone.

    The mode of the module is put back; gradients flow if they are on.
    """
    handle = parts.linear_readout[0].register_forward_pre_hook(functools.partial(_keep_last, batch))
    try:
        with evaluating(parts.model):
            logits: Tensor = parts.model(**forward_inputs(parts, batch)).logits[:, 0]
    finally:
        handle.remove()
    logits = logits[:, : parts.n_outputs]
    return logits if logits.dtype == torch.float64 else logits.float()


def _keep_last(batch: Batch, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return batch.at_last_prompt(args[0])[:, None], *args[1:]


def what_is_written(
    parts: Parts, writing: Writing, value: Float[Tensor, "batch seq *rest"]
) -> Float[Tensor, "node batch seq d_model"]:
    """What each node of a place adds to the residual.

    Of a head z W_O; where a norm follows the attention (Gemma-2, OLMo-2), what that norm, its scale as it was in this
    pass, makes of it. Biases and shifts belong to no node.

    Args:
        parts: the model.
        writing: the place.
        value: what its site had.
    """
    if writing.kind != "heads":
        return value[None]
    result = torch.einsum("bshd,hdm->hbsm", value, parts.W_O(writing.layer, writing.stack).detach().to(value))
    norm = parts.norm(writing.layer, "attn_post_norm", writing.stack)
    if norm is None:
        return result
    bias = parts.b_O(writing.layer, writing.stack)
    total = result.sum(0).double() + (0 if bias is None else bias.detach().to(value).double())
    norm = norm.to(value.device)
    return norm.carry(result.double(), norm.scale(total)).to(value)


def projection_weight(parts: Parts, reading: Reading) -> Float[Tensor, "head d_model d_head"]:
    """The weights by which heads read their queries, keys or values."""
    find = {"q": parts.W_Q, "k": parts.W_K, "v": parts.W_V}[reading.part]
    return find(reading.layer, reading.stack).detach()


def circuit_pass(
    parts: Parts, graph: Graph, batch: Batch, corrupted: Pass, mask: Float[Tensor, "node destination"]
) -> Float[Tensor, "batch vocab"]:
    """Run a batch while every edge carries what it is told to; logits at each row's last prompt token.

    The input of destination d is the residual of the corrupted run there, plus the sum over nodes s of
    mask[s, d] (out_s - out_s in the corrupted run), where out_s is what s writes in this very pass: with 1 an edge
    carries this pass's activation, with 0 the corrupted run's. All ones are the clean run, all zeros the corrupted one.

    Args:
        parts: the model.
        graph: its graph.
        batch: the clean prompts.
        corrupted: the pass of the corrupted ones.
        mask: 1 for edges of the circuit, 0 for all others.
    """
    running = _Running(parts, graph, corrupted, mask)
    with torch.no_grad(), running.hooked():
        return last_logits(parts, batch)


class _Running:
    """A pass by edges: what its nodes have written so far, less what they wrote in the corrupted run."""

    def __init__(self, parts: Parts, graph: Graph, corrupted: Pass, mask: Tensor) -> None:
        self.parts, self.graph, self.corrupted, self.mask = parts, graph, corrupted, mask
        self.deltas: dict[bool, Tensor] = {}
        self.constants = {
            reading: _constant(parts, reading) for reading in graph.readings if reading.part in ("q", "k", "v")
        }

    @contextlib.contextmanager
    def hooked(self) -> Iterator[None]:
        parts, handles = self.parts, contextlib.ExitStack()
        with handles:
            handles.enter_context(
                patch(parts, {place.site: functools.partial(self._write, place) for place in self.graph.writings})
            )
            for reading in self.graph.readings:
                if reading.part in ("q", "k", "v"):
                    module = parts.inside(reading.layer, reading.part, reading.stack)
                    handle = module.register_forward_hook(functools.partial(self._project, reading))
                else:
                    handle = reader(parts, reading).register_forward_pre_hook(functools.partial(self._read, reading))
                handles.callback(handle.remove)
            yield

    def _write(self, writing: Writing, value: Tensor) -> Tensor:
        change = what_is_written(self.parts, writing, value) - self.corrupted.written[writing]
        encoded = writing.stack == "encoder"
        if writing.kind == "input":
            self.deltas[encoded] = change.new_zeros(len(self.graph.nodes), *change.shape[1:])
        self.deltas[encoded][span(writing.nodes)] = change
        return value

    def _inputs(self, reading: Reading) -> Float[Tensor, "destination batch seq d_model"]:
        deltas = self.deltas[reading.site.stack == "encoder"][span(reading.sources)]
        chosen = self.mask[span(reading.sources), span(reading.destinations)].to(deltas)
        mixed = (chosen.T @ deltas.flatten(1)).unflatten(1, deltas.shape[1:])
        return mixed + self.corrupted.residuals[reading.site]

    def _read(self, reading: Reading, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return self._inputs(reading)[0].reshape(args[0].shape), *args[1:]

    def _project(self, reading: Reading, _: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        norm, weight = reading_norm(self.parts, reading), projection_weight(self.parts, reading)
        inputs = self._inputs(reading)
        normed = inputs if norm is None else norm(inputs)
        value = torch.einsum("nbtd,ndh->btnh", normed, weight.to(normed)) + self.constants[reading]
        return self.parts.in_projection(output, value.to(output), reading.part, reading.stack)


def _constant(parts: Parts, reading: Reading) -> Tensor:
    """What a projection adds whatever it reads: its bias by head, or 0."""
    module: Any = parts.inside(reading.layer, reading.part, reading.stack)
    weight = projection_weight(parts, reading)
    with torch.no_grad():
        nothing = module(weight.new_zeros(1, 1, parts.d_model))
    return parts.of_projection(nothing, reading.part, reading.stack)[0, 0]


def judged(
    metric: Metric,
    logits: Float[Tensor, "batch vocab"],
    clean: Float[Tensor, "batch vocab"],
    batch: Batch,
    rows: Int[Tensor, " batch"],
) -> Float[Tensor, " batch"]:
    """The metric of a batch (see `metric_of_logits`).

    Args:
        metric: as `resolve_metric` gives it.
        logits: of the run that is judged.
        clean: of the clean run.
        batch: the clean prompts.
        rows: indices of the prompts.

    Raises:
        MeasureError: a function gave something else than one number a row, or none with a gradient where one is wanted.
    """
    source = clean.log_softmax(-1) if metric == "kl" else None
    return metric_of_logits(metric, logits, rows, answers=batch.answer_ids, source=source)


def clean_and_corrupt(policy: Policy, pairs: Prompts) -> tuple[TokenizedPrompts, TokenizedPrompts]:
    """Token ids of clean and corrupted prompts; continuations are left out, as everything is read before them.

    Raises:
        PromptError: there are no corrupted prompts, or one is the same as its prompt.
    """
    corrupted = replace(pairs.corrupt, continuations=None)  # an error now if there are none
    tokens = replace(pairs, continuations=None).tokenize(policy.tokenizer, decoder_start=policy.decoder_start)
    assert tokens.corrupt is not None and len(corrupted) == len(tokens)
    ours, theirs = (ids.encoder_ids or ids.prompt_ids for ids in (tokens, tokens.corrupt))
    for index, (clean, other) in enumerate(zip(ours, theirs, strict=True)):
        if clean == other:
            raise PromptError(
                f"prompt {index} and its corrupted counterpart are the same tokens ({tokens.texts[index][:60]!r});"
                " change what the answer depends on"
            )
    return tokens, tokens.corrupt


def take(tokens: TokenizedPrompts, rows: np.ndarray) -> TokenizedPrompts:
    """Some of the prompts, for batches: ids and answers alone."""
    chosen = rows.tolist()
    encoder = None if tokens.encoder_ids is None else tuple(tokens.encoder_ids[row] for row in chosen)
    answers = None if tokens.answer_ids is None else tokens.answer_ids[chosen]
    return TokenizedPrompts(tuple(tokens.prompt_ids[row] for row in chosen), None, answers, encoder)


def row_indices(start: int, batch: Batch) -> Int[Tensor, " batch"]:
    """Indices of a batch's prompts, whose first is `start`."""
    return torch.arange(start, start + len(batch.input_ids), device=batch.input_ids.device)
