"""Edge attribution: what each edge would do to a metric if it carried the corrupted run's activation."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn

from interp.circuits.graph import Graph, Reading, reader, reading_norm
from interp.circuits.metrics import Judge, Metric, clean_and_corrupt, judge, row_indices
from interp.circuits.passes import last_logits, plain_pass, projection_weight
from interp.errors import MeasureError
from interp.families import Parts
from interp.hooks import Site, capture, patch
from interp.measures.arrays import dataset, strings, variable
from interp.models import Policy, Source
from interp.prompts import Batch, Prompts

Method = Literal["eap", "eap-ig"]
KEPT = 2**26
"""Most scores that are kept by prompt (256 MiB); beyond, prompts are pooled by batch."""


@dataclass(frozen=True)
class EdgeScores:
    """A score for every edge of a model, by prompt.

    Attributes:
        dataset: `score` [prompt, edge] in the metric's units, with the names of each edge's node (`source`) and
            `destination`; `clean` and `corrupted`, the metric of both runs by prompt; `prompts`, how many prompts a row
            is the mean of (1 unless they were pooled by batch); `group`.
        graph: the graph whose edges these are.
    """

    dataset: xr.Dataset
    graph: Graph

    @property
    def values(self) -> Float[np.ndarray, "prompt edge"]:
        """The scores."""
        found: np.ndarray = self.dataset["score"].values
        return found

    @property
    def mean(self) -> Float[np.ndarray, " edge"]:
        """Mean over prompts, float64."""
        return mean_of(self.values, self.weights)

    @property
    def weights(self) -> Float[np.ndarray, " prompt"]:
        """Number of prompts that each row stands for."""
        return self.dataset["prompts"].values.astype(np.float64)

    @property
    def groups(self) -> np.ndarray:
        """Group of each row: rows of one group are resampled together."""
        found: np.ndarray = self.dataset["group"].values
        return found

    def __str__(self) -> str:
        order = np.argsort(-np.abs(self.mean), kind="stable")[:10]
        sources, destinations = self.graph.labels
        units = self.dataset["score"].attrs["units"]
        lines = [f"{self.graph.size} edges over {int(self.weights.sum())} prompts ({self.dataset.attrs['method']}):"]
        lines += [f"  {sources[e]} -> {destinations[e]}: {self.mean[e]:+.4g} {units}" for e in order]
        return "\n".join(lines)


def mean_of(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean of rows in float64, without a copy of them all."""
    found: np.ndarray = np.einsum("p,pe->e", weights / weights.sum(), values, dtype=np.float64)
    return found


def edge_attribution(
    model: Source | Policy,
    pairs: Prompts,
    metric: Metric = "logit_diff",
    *,
    method: Method = "eap-ig",
    steps: int = 5,
    batch_size: int = 16,
    **load: Any,
) -> EdgeScores:
    """Score every edge of a model at once, by gradients.

    The score of the edge from node s to destination d estimates how the metric changes when that edge alone carries the
    corrupted run's activation:

        score(s, d) = (out_s(corrupted) - out_s(clean)) . g_d,   summed over positions,

    where g_d is the derivative of the metric with respect to the input of d. With "eap" g_d is taken in the clean run
    (Syed et al. 2023, "Attribution Patching Outperforms Automated Circuit Discovery"); with "eap-ig" it is the mean
    over `steps` runs whose inputs to the first block lie between the corrupted and the clean ones (Hanna et al. 2024,
    arXiv 2403.17806), at the midpoints (k - 1/2) / steps of the way, not at k / steps, whose error is of first order.
    With many steps the scores of an input's edges sum to metric(corrupted) - metric(clean), up to the error
    `completeness` in the attributes (as a fraction of that).

    Gradients go through every norm's own Jacobian. All edges take one forward and one backward pass a step, and memory
    does not grow with the number of prompts beyond the scores themselves.

    Args:
        model: what `Policy.load` takes: a causal language model or a T5.
        pairs: prompts with `corrupted` counterparts.
        metric: see `Metric`; read at each prompt's last token.
        method: "eap-ig" or "eap".
        steps: gradients that "eap-ig" averages.
        batch_size: prompts that run together.
        load: further arguments of `Policy.load`.

    Raises:
        MeasureError: the model has no such graph, the metric or method is unknown, or "eap" is asked for the KL to the
            clean run, whose derivative there is 0.
        PromptError: there are no corrupted prompts, or one does not fit.
    """
    policy = Policy.load(model, **load)
    _check_method(method, steps, metric, batch_size)
    graph, judged = Graph.of(policy.parts), judge(metric, pairs)
    tokens, corrupt = clean_and_corrupt(policy, pairs)
    pooled = len(tokens) * graph.size > KEPT
    # midpoints of the way from the corrupted inputs to the clean ones
    shares = [1.0] if method == "eap" else [(k + 0.5) / steps for k in range(steps)]
    rows: list[tuple[Tensor, ...]] = []
    start = 0
    both = zip(tokens.batches(batch_size), corrupt.batches(batch_size), strict=True)
    for clean_batch, corrupt_batch in both:
        found = _batch_scores(policy, graph, judged, clean_batch, corrupt_batch, shares, start)
        start += len(clean_batch.input_ids)
        count = torch.ones(len(clean_batch.input_ids))
        rows.append((*(each.mean(0, keepdim=True) for each in found), count.sum()[None]) if pooled else (*found, count))
    scores, clean, corrupted, counts = (torch.cat(each) for each in zip(*rows, strict=True))
    groups = [f"batch {i}" for i in range(len(scores))] if pooled else list(pairs.groups or ())
    return EdgeScores(_dataset(graph, judged, scores, clean, corrupted, counts, groups, method, steps), graph)


def _check_method(method: str, steps: int, metric: Metric, batch_size: int) -> None:
    if method not in ("eap", "eap-ig"):
        raise MeasureError(f'method is "eap-ig" or "eap", not {method!r}')
    if steps < 1 or batch_size < 1:
        raise MeasureError(f"steps and batch_size are at least 1, not {steps} and {batch_size}")
    if method == "eap" and metric == "kl":
        raise MeasureError(
            'the KL to the clean run is least in that run, so its derivative is 0 there and "eap" finds nothing; use'
            ' method="eap-ig"'
        )


def _dataset(
    graph: Graph,
    judged: Judge,
    scores: Tensor,
    clean: Tensor,
    corrupted: Tensor,
    counts: Tensor,
    groups: list[str],
    method: str,
    steps: int,
) -> xr.Dataset:
    sources, destinations = graph.labels
    units = judged.units
    found = dataset(
        {
            "score": variable("prompt edge", scores, "change of the metric if the edge is corrupted, estimated", units),
            "clean": variable("prompt", clean, f"{judged.label} of the clean run", units),
            "corrupted": variable("prompt", corrupted, f"{judged.label} of the corrupted run", units),
            "prompts": variable("prompt", counts.long(), "prompts that a row is the mean of"),
            "group": variable("prompt", strings(groups), "prompts of one group are resampled together"),
        }
    )
    found = found.assign_coords(source=("edge", strings(sources)), destination=("edge", strings(destinations)))
    inputs = np.array([source.endswith("input") for source in sources])
    total, change = scores.double().numpy()[:, inputs].sum(1), (corrupted - clean).double().numpy()
    size = float(np.abs(change).sum())
    return found.assign_attrs(
        method=method,
        steps=steps if method == "eap-ig" else 1,
        metric=judged.label,
        completeness=float(np.abs(total - change).sum() / size) if size else float("nan"),
    )


def _batch_scores(
    policy: Policy, graph: Graph, judged: Judge, batch: Batch, corrupt: Batch, shares: list[float], start: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores [row, edge], and the metric of the clean and of the corrupted run [row]."""
    parts, rows = policy.parts, row_indices(start, batch).to(policy.device)
    batch, corrupt = batch.to(policy.device), corrupt.to(policy.device)
    clean_run, corrupt_run = plain_pass(parts, graph, batch), plain_pass(parts, graph, corrupt)

    def value(logits: Tensor) -> Tensor:
        return judged(logits, clean_run.logits, batch, rows)

    # By place, so that encoder and decoder may differ in length.
    changes = {each: corrupt_run.written[each] - clean_run.written[each] for each in graph.writings}
    streams = {
        encoded: torch.cat([change for each, change in changes.items() if (each.stack == "encoder") is encoded])
        for encoded in {each.stack == "encoder" for each in graph.writings}
    }
    decoder_first = len(streams[True]) if True in streams else 0
    scores = torch.zeros(len(rows), graph.size, dtype=torch.float32)
    for share in shares:
        inputs = {
            each.site: (corrupt_run.written[each] + share * (clean_run.written[each] - corrupt_run.written[each]))[0]
            for each in graph.writings
            if each.kind == "input"
        }
        done = 0
        for reading, gradient in _gradients(parts, graph, batch, inputs, value):
            encoded = reading.site.stack == "encoder"
            first = 0 if encoded else decoder_first
            change = streams[encoded][reading.sources.start - first : reading.sources.stop - first]
            found = torch.einsum("sbtd,nbtd->bns", change.to(gradient), gradient).flatten(1)
            scores[:, done : done + found.shape[1]] += found.cpu().float() / len(shares)
            done += found.shape[1]
    with torch.no_grad():
        values = [value(each.logits).cpu().double() for each in (clean_run, corrupt_run)]
    return scores, values[0], values[1]


def _gradients(
    parts: Parts,
    graph: Graph,
    batch: Batch,
    inputs: Mapping[Site, Tensor],
    value: Callable[[Tensor], Tensor],
) -> Iterator[tuple[Reading, Float[Tensor, "destination batch seq d_model"]]]:
    """For every reading in the graph's order, the derivative of the metric with respect to its destinations' inputs.

    That of a head is the derivative at its projection's output, taken back through the projection and the norm.
    """
    outputs: dict[Reading, Tensor] = {}
    with torch.enable_grad(), contextlib.ExitStack() as stack:
        # The graph of autograd begins at the first block, whatever the parameters say about gradients.
        begin = {site: _instead(value.detach().requires_grad_()) for site, value in inputs.items()}
        stack.enter_context(patch(parts, begin))
        residuals = stack.enter_context(capture(parts, {each.site for each in graph.readings}))
        for each in graph.readings:
            if each.part in ("q", "k", "v"):
                module = parts.inside(each.layer, each.part, each.stack)
                handle = module.register_forward_hook(functools.partial(_keep_output, outputs, each))
            else:
                keep = functools.partial(_keep_input, outputs, each)
                handle = reader(parts, each).register_forward_pre_hook(keep)
            stack.callback(handle.remove)
        metric = value(last_logits(parts, batch)).sum()
        if not metric.requires_grad:
            raise MeasureError("the metric has no gradient; compute it from the logits by torch's functions")
        found = torch.autograd.grad(metric, [outputs[each] for each in graph.readings], allow_unused=True)
    for each, gradient in zip(graph.readings, found, strict=True):
        gradient = torch.zeros_like(outputs[each]) if gradient is None else gradient
        yield each, _at_inputs(parts, each, gradient, residuals[each.site])


def _instead(value: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda found: value.to(found)


def _keep_output(outputs: dict[Reading, Tensor], reading: Reading, _: nn.Module, __: Any, output: Tensor) -> None:
    outputs[reading] = output


def _keep_input(
    outputs: dict[Reading, Tensor], reading: Reading, _: nn.Module, args: tuple[Any, ...]
) -> tuple[Any, ...]:
    # A tensor of its own, whose gradient is this reader's alone and not the residual's.
    outputs[reading] = args[0].view_as(args[0])
    return outputs[reading], *args[1:]


def _at_inputs(parts: Parts, reading: Reading, gradient: Tensor, residual: Tensor) -> Tensor:
    if reading.part in ("mlp", "logits"):
        return gradient.reshape(1, *residual.shape)
    by_head = parts.of_projection(gradient, reading.part, reading.stack)
    normed = torch.einsum("btnh,ndh->nbtd", by_head, projection_weight(parts, reading).to(by_head))
    norm = reading_norm(parts, reading)
    if norm is None:
        return normed
    with torch.enable_grad():
        read = residual.detach().expand(len(normed), *residual.shape).requires_grad_()
        (found,) = torch.autograd.grad(norm(read), read, normed)
    return found
