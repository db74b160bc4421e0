"""Edge attribution: what each edge would do to a metric if it carried the corrupted run's activation."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn

from interp.circuits.graph import Graph, Reading, reader, reading_norm
from interp.circuits.passes import (
    METRICS,
    clean_and_corrupt,
    judged,
    last_logits,
    plain_pass,
    projection_weight,
    row_indices,
)
from interp.errors import MeasureError, renamed
from interp.families import Parts
from interp.hooks import Site, capture, patch
from interp.measures.arrays import dataset, strings, variable
from interp.metrics import Metric, metric_label, metric_units, resolve_metric
from interp.models import Policy, Source, as_policy
from interp.patching.runs import LOADING
from interp.progress import Progress, no_progress
from interp.prompts import Batch, Prompts
from interp.result import Result

Method = Literal["eap", "eap-ig"]
MOST_SCORES = 2**26
"""Most scores that are held by prompt (256 MiB); beyond, prompts are pooled by batch."""


class EdgeScores(Result):
    """A score for every edge of a model, by prompt.

    The dataset holds `score` [prompt, edge] in the metric's units, with the names of each edge's node (`source`) and
    `destination`; `clean` and `corrupted`, the metric of both runs by prompt; `prompts`, how many prompts a row is the
    mean of (1 unless they were pooled by batch); `group`.
    """

    kind = "edge_scores"
    title = "Edge scores"

    @cached_property
    def graph(self) -> Graph:
        """The graph whose edges these are."""
        return Graph.from_dataset(self.dataset)

    @property
    def values(self) -> Float[np.ndarray, "prompt edge"]:
        """The scores."""
        return np.asarray(self.dataset["score"].values)

    @cached_property
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
        return np.asarray(self.dataset["group"].values)

    @property
    def units(self) -> str:
        """Units of the scores."""
        return str(self.dataset["score"].attrs["units"])

    def about(self) -> dict[str, Any]:
        """What results that are made of these scores say of them: model, metric and method."""
        return {name: self.dataset.attrs[name] for name in ("model", "metric", "method") if name in self.dataset.attrs}

    def headline(self) -> str:
        """How many edges were scored, for what."""
        attrs = self.dataset.attrs
        return (
            f"{self.graph.size} edges scored by {attrs['method']} over {int(self.weights.sum())} prompts: what"
            f" corrupting an edge does to the {attrs['metric']}{f' ({self.units})' if self.units else ''}"
        )

    def summary(self) -> pd.DataFrame:
        """One row an edge, the largest mean scores first."""
        order, (sources, destinations) = np.argsort(-np.abs(self.mean), kind="stable"), self.graph.labels
        names = {"source": np.array(sources)[order], "destination": np.array(destinations)[order]}
        return pd.DataFrame({**names, "score": self.mean[order]})


def mean_of(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean of rows in float64, without a copy of them all."""
    return np.asarray(np.einsum("p,pe->e", weights / weights.sum(), values, dtype=np.float64))


@renamed(**LOADING)
def edge_attribution(
    model: Source | Policy,
    pairs: Prompts,
    metric: Metric | None = None,
    *,
    method: Method = "eap-ig",
    steps: int = 5,
    batch_size: int = 16,
    progress: Progress | None = None,
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
        model: id, folder, module or `Policy` of a causal language model or a T5.
        pairs: prompts with `corrupted` counterparts.
        metric: "logit_diff", "kl" or a function (see `interp.circuits.Metric`), read at each prompt's last token.
            None: "logit_diff" where the prompts have answers, else "kl".
        method: "eap-ig" or "eap".
        steps: gradients that "eap-ig" averages.
        batch_size: prompts that run together.
        progress: called with prompts done and prompts in all.

    Raises:
        MeasureError: the model has no such graph, the metric or method is unknown, or "eap" is asked for the KL to the
            clean run, whose derivative there is 0.
        PromptError: there are no corrupted prompts, or one does not fit.
    """
    policy, tell = as_policy(model), progress or no_progress
    judged_by = resolve_metric(metric, pairs, names=METRICS)
    _check_method(method, steps, judged_by, batch_size)
    graph = Graph.of(policy.parts)
    tokens, corrupt = clean_and_corrupt(policy, pairs)
    pooled = len(tokens) * graph.size > MOST_SCORES
    # midpoints of the way from the corrupted inputs to the clean ones
    shares = [1.0] if method == "eap" else [(k + 0.5) / steps for k in range(steps)]
    rows: list[tuple[Tensor, ...]] = []
    start = 0
    both = zip(tokens.batches(batch_size), corrupt.batches(batch_size), strict=True)
    for clean_batch, corrupt_batch in both:
        tables: tuple[Tensor, ...] = _batch_scores(policy, graph, judged_by, clean_batch, corrupt_batch, shares, start)
        size = len(clean_batch.input_ids)
        counts = torch.ones(size)
        if pooled:
            tables, counts = tuple(table.mean(0, keepdim=True) for table in tables), counts.sum()[None]
        rows.append((*tables, counts))
        start += size
        tell("scoring edges", start, len(tokens))
    columns = [torch.cat(column) for column in zip(*rows, strict=True)]
    groups = [f"batch {i}" for i in range(len(rows))] if pooled else list(pairs.groups or ())
    data = _dataset(graph, judged_by, columns, groups)
    about = {"method": method, "steps": steps if method == "eap-ig" else 1}
    return EdgeScores(data.assign_attrs(about, model=json.dumps(dict(policy.description))))


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


def _dataset(graph: Graph, metric: Metric, columns: list[Tensor], groups: list[str]) -> xr.Dataset:
    scores, clean, corrupted, counts = columns
    units, label = metric_units(metric), metric_label(metric)
    data = dataset(
        {
            "score": variable("prompt edge", scores, "change of the metric if the edge is corrupted, estimated", units),
            "clean": variable("prompt", clean, f"{label} of the clean run", units),
            "corrupted": variable("prompt", corrupted, f"{label} of the corrupted run", units),
            "prompts": variable("prompt", counts.long(), "prompts that a row is the mean of"),
        }
    )
    data = graph.described(data).assign_coords(group=("prompt", strings(groups)))
    inputs = np.array([source.endswith("input") for source in graph.labels[0]])
    total, change = scores.double().numpy()[:, inputs].sum(1), (corrupted - clean).double().numpy()
    size = float(np.abs(change).sum())
    completeness = float(np.abs(total - change).sum() / size) if size else float("nan")
    return data.assign_attrs(metric=label, completeness=completeness)


def _batch_scores(
    policy: Policy, graph: Graph, metric: Metric, batch: Batch, corrupt: Batch, shares: list[float], start: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores [row, edge], and the metric of the clean and of the corrupted run [row]."""
    parts, rows = policy.parts, row_indices(start, batch).to(policy.device)
    batch, corrupt = batch.to(policy.device), corrupt.to(policy.device)
    clean_run, corrupt_run = plain_pass(parts, graph, batch), plain_pass(parts, graph, corrupt)

    def value(logits: Tensor) -> Tensor:
        return judged(metric, logits, clean_run.logits, batch, rows)

    # By place, so that encoder and decoder may differ in length.
    changes = {writing: corrupt_run.written[writing] - clean_run.written[writing] for writing in graph.writings}
    streams = {
        encoded: torch.cat([change for writing, change in changes.items() if (writing.stack == "encoder") is encoded])
        for encoded in {writing.stack == "encoder" for writing in graph.writings}
    }
    decoder_first = len(streams[True]) if True in streams else 0
    scores = torch.zeros(len(rows), graph.size, dtype=torch.float32)
    for share in shares:
        inputs = {
            writing.site: (
                corrupt_run.written[writing] + share * (clean_run.written[writing] - corrupt_run.written[writing])
            )[0]
            for writing in graph.writings
            if writing.kind == "input"
        }
        done = 0
        for reading, gradient in _gradients(parts, graph, batch, inputs, value):
            encoded = reading.site.stack == "encoder"
            first = 0 if encoded else decoder_first
            change = streams[encoded][reading.sources.start - first : reading.sources.stop - first]
            part = torch.einsum("sbtd,nbtd->bns", change.to(gradient), gradient).flatten(1)
            scores[:, done : done + part.shape[1]] += part.cpu().float() / len(shares)
            done += part.shape[1]
    with torch.no_grad():
        values = [value(run.logits).cpu().double() for run in (clean_run, corrupt_run)]
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
        residuals = stack.enter_context(capture(parts, {reading.site for reading in graph.readings}))
        for reading in graph.readings:
            if reading.part in ("q", "k", "v"):
                module = parts.inside(reading.layer, reading.part, reading.stack)
                handle = module.register_forward_hook(functools.partial(_keep_output, outputs, reading))
            else:
                keep = functools.partial(_keep_input, outputs, reading)
                handle = reader(parts, reading).register_forward_pre_hook(keep)
            stack.callback(handle.remove)
        metric = value(last_logits(parts, batch)).sum()
        gradients = torch.autograd.grad(metric, [outputs[reading] for reading in graph.readings], allow_unused=True)
    for reading, gradient in zip(graph.readings, gradients, strict=True):
        gradient = torch.zeros_like(outputs[reading]) if gradient is None else gradient
        yield reading, _at_inputs(parts, reading, gradient, residuals[reading.site])


def _instead(value: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda before: value.to(before)


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
        (at_norm,) = torch.autograd.grad(norm(read), read, normed)
    return at_norm
