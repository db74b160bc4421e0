"""Path patching: what one node tells one other, with everything between them as it was (Wang et al. 2022)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn

from interp.circuits.graph import Graph, Reading, reader, reading_norm
from interp.circuits.passes import Pass, plain_pass
from interp.errors import MeasureError, renamed
from interp.families import Parts
from interp.hooks import Site
from interp.measures.arrays import as_variable, strings
from interp.metrics import Metric, at_columns, metric_name, metric_units, readings, resolve_metric
from interp.metrics import Reading as How
from interp.models import Policy
from interp.models.running import inference
from interp.models.source import Source
from interp.patching import Runs, open_runs
from interp.patching.recording import run_to_the_last_residual
from interp.patching.runs import LOADING
from interp.progress import Progress, no_progress
from interp.prompts import Batch, Prompts
from interp.result import Result
from interp.stats import interval, max_t

ROWS = 256


class PathPatching(Result):
    """The effect of every path from a sender to a receiver.

    The dataset has the dims `prompt`, `component` (senders: `L3H1`, `L3.mlp`, `input`) and `site` (receivers: `L5H0.q`,
    `L5.mlp`, `logits`): `effect` (patched minus recipient; NaN where the sender does not come before the receiver),
    `recovery` with `recovery_low` and `recovery_high`, `p` (sign-flip max-T over all paths), and `recipient` and
    `source` [prompt].
    """

    kind = "path_patching"
    title = "Path patching"

    def headline(self) -> str:
        """The path with the largest effect."""
        data, paths = self.dataset, self.summary()
        units = f" {data.attrs['units']}" if data.attrs["units"] else ""
        head = f"{data.attrs['metric']} by path, mean of {data.sizes['prompt']} prompts, over {len(paths)} paths"
        if not len(paths):
            return head
        first = paths.iloc[0]
        return f"{head}; the largest effect is {first['effect']:+.3g}{units}, {first['component']} to {first['site']}"

    def notes(self) -> list[str]:
        """What the columns are."""
        return ["effect: patched minus recipient; recovery: share of the source's difference; p: sign flips, max-T"]

    def summary(self) -> pd.DataFrame:
        """One row a path, the largest effects first."""
        flat = self.dataset.drop_dims("prompt").assign(effect=self.dataset["effect"].mean("prompt", skipna=False))
        frame = flat.stack(path=("component", "site")).to_dataframe().dropna(subset=["effect"])
        frame = frame.reset_index(drop=True) if "component" in frame else frame.reset_index()
        names = ["component", "site", "effect", "recovery", "recovery_low", "recovery_high", "p"]
        order = np.argsort(-frame["effect"].abs().to_numpy(), kind="stable")
        return frame[names].iloc[order].reset_index(drop=True)


@renamed(**LOADING)
def path_patching(
    recipient: Source | Policy,
    source: Source | Policy,
    prompts: Prompts | Sequence[str],
    *,
    receivers: Sequence[str] = ("logits",),
    senders: Sequence[str] | None = None,
    metric: Metric | None = None,
    recipient_reads: str | None = None,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> PathPatching:
    """Change what one sender writes as one receiver reads it, and nothing else that the receiver reads.

    The receiver's input is the recipient's own residual plus (what the sender writes in the source - what it writes in
    the recipient), read through the receiver's own norm. Heads and MLPs between the two stay as they were, and what
    comes after the receiver follows from it. That is Wang et al.'s path patching (2022, arXiv 2211.00593, section 3.1)
    with the MLPs frozen too, for one receiver at a time. Recipient and source are two models on the same prompts, or
    one model on corrupted and clean ones.

    Args:
        recipient: see `interp.patching.activation_patching`, as for what is not named here.
        source: see there.
        prompts: see there.
        receivers: names of destinations: `L5H0.q`, `L5H0.k`, `L5H0.v` (`L5H0-2.k` where heads share it), `L5.mlp`,
            `logits`; `Graph.of(parts).destinations` lists them.
        senders: names of nodes: `L3H1`, `L3.mlp`, `input`; None is all of them.
        metric: see there.
        recipient_reads: see there.
        batch_size: prompts a pass.
        seed: of the resampling.
        progress: called with receivers done and receivers in all, batch by batch.

    Raises:
        MeasureError: there is no such sender or receiver, or the model's residual is no sum of what was written.
        PromptError: the prompts do not fit.
        LoadError: a model cannot be loaded.
    """
    runs, tell = open_runs(recipient, source, prompts, recipient_reads=recipient_reads), progress or no_progress
    judged_by = resolve_metric(metric, runs.prompts)
    graph = Graph.of(runs.recipient.parts)
    to = _indices(receivers, graph.destinations, "receiver")
    of = _indices(graph.nodes if senders is None else senders, graph.nodes, "sender")
    tables: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    batches = runs.batches(batch_size)
    for number, (batch, theirs) in enumerate(batches):
        job = _Job.of(runs, graph, batch, theirs, judged_by, number * batch_size)
        table = np.full((len(batch.input_ids), len(of), len(to)), np.nan)
        for column, destination in enumerate(to):
            place = next(reading for reading in graph.readings if destination in reading.destinations)
            rows = [row for row, node in enumerate(of) if node in place.sources]
            step = max(1, ROWS // len(batch.input_ids))
            for start in range(0, len(rows), step):
                part = rows[start : start + step]
                table[:, part, column] = job.patched(place, destination, [of[row] for row in part])
            tell("patching paths", number * len(to) + column + 1, len(batches) * len(to))
        tables.append((table, job.mine, job.other))
    columns = [np.concatenate(column) for column in zip(*tables, strict=True)]
    names = [graph.nodes[node] for node in of], [graph.destinations[destination] for destination in to]
    return _result(runs, *names, *columns, metric=judged_by, seed=seed)


def _indices(names: Sequence[str], known: Sequence[str], what: str) -> list[int]:
    if isinstance(names, str):
        names = [names]
    for name in names:
        if name not in known:
            raise MeasureError(f"there is no {what} {name!r}; there are {', '.join(known[:4])} ... {known[-1]}")
    if not names:
        raise MeasureError(f"name at least one {what}, as {known[-1]!r}")
    return [known.index(name) for name in names]


@dataclass(frozen=True)
class _Job:
    """One batch: both unpatched runs, and how the metric is read.

    Attributes:
        runs: recipient and source.
        graph: the recipient's.
        batch: what the recipient reads.
        mine_run: the recipient's pass.
        other_run: the source's pass.
        final: the recipient's last residual.
        how: how the metric is read.
        mine: the recipient's metric, [prompt].
        other: the source's.
    """

    runs: Runs
    graph: Graph
    batch: Batch
    mine_run: Pass
    other_run: Pass
    final: Tensor
    how: How
    mine: np.ndarray
    other: np.ndarray

    @classmethod
    def of(cls, runs: Runs, graph: Graph, batch: Batch, theirs: Batch, metric: Metric, first: int) -> _Job:
        """Run both models."""
        parts, others = runs.recipient.parts, runs.source.parts
        mine_run = plain_pass(parts, graph, batch)
        other_run = plain_pass(others, graph, theirs)
        final, end = _last(parts, mine_run), _last(others, other_run)
        here, there = readings(metric, runs.recipient, others, (batch, theirs), end, range(first, first + len(end)))
        mine, other = here.of_run(parts, final), there.of_run(others, end)
        return cls(runs, graph, batch, mine_run, other_run, final, here, mine, other)

    def patched(self, place: Reading, destination: int, nodes: list[int]) -> np.ndarray:
        """The metric with each node's path to the destination patched, [prompt, node]."""
        parts = self.runs.recipient.parts
        change = torch.stack(
            [self._written(self.other_run, node) - self._written(self.mine_run, node) for node in nodes]
        )
        columns = self.how.columns
        if place.part == "logits":
            residual = self.final + change
            residual = at_columns(residual.flatten(0, 1), columns.repeat(len(nodes), 1))
        else:
            tensors = {name: value for name, value in vars(self.batch).items() if isinstance(value, Tensor)}
            many = replace(self.batch, **{k: v.repeat(len(nodes), *[1] * (v.ndim - 1)) for k, v in tensors.items()})
            entering = (self.mine_run.residuals[place.site] + change).flatten(0, 1)
            with _reads(parts, place, destination, entering):
                final, _ = run_to_the_last_residual(parts, many)
            residual = at_columns(final, columns.repeat(len(nodes), 1))
        return self.how.by_copy(parts, residual).numpy().T

    def _written(self, of: Pass, node: int) -> Float[Tensor, "batch seq d_model"]:
        writing = next(place for place in self.graph.writings if node in place.nodes)
        return of.written[writing][node - writing.nodes.start].to(self.final)


def _last(parts: Parts, of: Pass) -> Tensor:
    return of.residuals[Site("resid_post", parts.n_layers - 1)]


@contextlib.contextmanager
def _reads(parts: Parts, place: Reading, destination: int, entering: Tensor) -> Iterator[None]:
    """Let one destination read `entering` in place of the residual during the passes made inside the context."""
    if place.part == "mlp":

        def swap(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return entering.reshape(args[0].shape), *args[1:]

        handle = reader(parts, place).register_forward_pre_hook(swap)
    else:
        module: Any = parts.inside(place.layer, place.part, place.stack)
        norm, head = reading_norm(parts, place), destination - place.destinations.start

        def project(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
            # forward, not the call: the hook must not meet itself
            whole = module.forward(entering if norm is None else norm(entering))
            value = parts.of_projection(output, place.part, place.stack).clone()
            value[:, :, head] = parts.of_projection(whole, place.part, place.stack)[:, :, head]
            return parts.in_projection(output, value, place.part, place.stack)

        handle = module.register_forward_hook(project)
    try:
        with inference(parts.model):
            yield
    finally:
        handle.remove()


def _result(
    runs: Runs,
    senders: list[str],
    receivers: list[str],
    table: np.ndarray,
    mine: np.ndarray,
    other: np.ndarray,
    *,
    metric: Metric,
    seed: int,
) -> PathPatching:
    groups = np.unique(np.array(runs.prompts.groups, dtype=object), return_inverse=True)[1]
    effect = table - mine[:, None, None]
    flat = effect.reshape(len(effect), -1)
    there = np.isfinite(flat).all(0)
    shape = effect.shape[1:]
    units = metric_units(metric)
    variables: dict[str, xr.Variable] = {}

    def put(name: str, values: np.ndarray, text: str) -> None:
        full = np.full(flat.shape[1], np.nan)
        full[there] = values
        variables[name] = as_variable(("component", "site"), full.reshape(shape), {"long_name": text, "units": ""})

    dims, text = ("prompt", "component", "site"), "patched minus recipient"
    variables["effect"] = as_variable(dims, effect, {"long_name": text, "units": units})
    ratio = interval(flat[:, there], groups, over=other - mine, seed=seed)
    for name, values in zip(("recovery", "recovery_low", "recovery_high"), ratio, strict=True):
        put(name, values, "sum of effects / sum of (source - recipient), and its 95 % interval")
    put("p", max_t(flat[:, there], groups, seed=seed), "p by sign flips, max-T over all paths")
    for name, values in (("recipient", mine), ("source", other)):
        variables[name] = as_variable(("prompt",), values, {"long_name": f"metric of the {name}", "units": units})
    coords = {
        "component": strings(senders),
        "site": strings(receivers),
        "prompt": range(len(mine)),
        "group": ("prompt", groups),
    }
    attrs = {
        "metric": metric_name(metric),
        "units": units,
        "seed": seed,
        "recipient": json.dumps(dict(runs.recipient.description)),
        "source": json.dumps(dict(runs.source.description)),
    }
    return PathPatching(xr.Dataset(variables, coords=coords, attrs=attrs))
