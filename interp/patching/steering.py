"""Steering: the mean difference between two models' residuals, added to one of them in several doses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from interp.errors import MeasureError, renamed
from interp.hooks import Edit, Site, has_site
from interp.measures.arrays import as_variable
from interp.metrics import Metric, check_finite, check_whole, metric_name, metric_units, readings, resolve_metric
from interp.models import Policy, Source
from interp.patching.recording import activations
from interp.patching.replay import run_whole
from interp.patching.result import counted, random_range
from interp.patching.runs import LOADING, Runs, open_runs
from interp.patching.targets import Position, interventions, position_mask
from interp.progress import Progress, no_progress
from interp.prompts import Batch, Prompts
from interp.result import Result, number
from interp.stats import MIN_PROMPTS, interval, selection_halves

DOSES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
STREAM = ("resid_pre", "resid_mid", "resid_post")


@dataclass(frozen=True, eq=False, repr=False)
class Steering(Result):
    """What a difference vector does, by dose.

    `dataset` has the dims `prompt` and `dose`: `metric`, `effect` (metric minus that of the unsteered recipient),
    `mean` (of `metric`) with `mean_low` and `mean_high`, `recovery` with its bounds, and `random_metric` [draw, dose],
    the mean under random directions of the same norm; `recipient` and `source` [prompt] are the unsteered runs;
    `vector` [d_model] is the mean source minus recipient activation. All prompts are those that the vector was not
    estimated on, unless the attr `same_prompts` says 1.
    """

    kind = "steering"
    title = "Steering"

    @property
    def vector(self) -> Float[Tensor, " d_model"]:
        """Mean source minus recipient activation, float64."""
        return torch.from_numpy(np.array(self.dataset["vector"].values))

    def headline(self) -> str:
        """Where the vector is added, and the metric without it."""
        data = self.dataset
        units = f" {data.attrs['units']}".rstrip()
        return (
            f"{data.attrs['metric']} by dose of a difference vector of norm {number(data.attrs['norm'])} at"
            f" {data.attrs['site']}, mean of {counted(data.sizes['prompt'], 'prompt')}: of the recipient"
            f" {number(float(data['recipient'].mean()))}, of the source {number(float(data['source'].mean()))}{units}."
        )

    def notes(self) -> list[str]:
        """Whether the vector was estimated on the prompts that judge it, and why there is no interval."""
        data = self.dataset
        notes = ["random: range of the mean under random directions of the same norm"] if data.sizes["draw"] else []
        if data.attrs["same_prompts"]:
            notes.append("the vector was estimated on the prompts that judge it: too few groups for two halves")
        if np.isnan(data["mean_low"].values).all():
            notes.append(f"no intervals: fewer than {MIN_PROMPTS} groups of prompts")
        elif np.isnan(data["recovery"].values).all():
            notes.append("no recovery: source and recipient do not differ beyond chance on these prompts")
        return notes

    def summary(self) -> pd.DataFrame:
        """One row a dose."""
        data = self.dataset
        names = ("mean", "mean_low", "mean_high", "recovery", "recovery_low", "recovery_high")
        columns = {name: data[name].values + 0.0 for name in names}  # + 0.0: no minus before a zero
        frame = pd.DataFrame({"dose": data["dose"].values, **columns})
        return frame.assign(**random_range(data, "random_metric"))


@renamed(**LOADING, random_directions="it is draws=")
def steering(
    recipient: Source | Policy,
    source: Source | Policy,
    prompts: Prompts | Sequence[str],
    *,
    site: Site | tuple[str, int],
    doses: Sequence[float | int] = DOSES,
    positions: Any = "all",
    metric: Metric | None = None,
    draws: int = 20,
    recipient_reads: str | None = None,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> Steering:
    """Add a multiple of the mean difference between source and recipient to the recipient's residual.

    The vector is the mean over prompts and real tokens of (source - recipient) at `site` (Turner et al. 2023, Rimsky
    et al. 2024), estimated on every second group of prompts; what each dose does is measured on the others, beside
    random directions of the same norm. Under 16 groups all prompts serve for both, and the result says so.

    Args:
        recipient: see `interp.patching.activation_patching`, as for what is not named here.
        source: see there.
        prompts: see there.
        site: a residual: resid_pre, resid_mid or resid_post of a layer.
        doses: multiples of the vector.
        positions: the tokens to which it is added: "all", "prompt", "last" or numbers.
        metric: see there.
        draws: how many random directions, drawn from a normal distribution and scaled to the vector's norm.
        recipient_reads: see there.
        batch_size: prompts a pass.
        seed: of the random directions and of the resampling.
        progress: told of the "prompts" steered.

    Raises:
        MeasureError: the site is no residual of the model, or there is no dose.
        PromptError: the prompts do not fit.
        LoadError: a model cannot be loaded.
    """
    site = site if isinstance(site, Site) else Site(*site)
    doses = [float(dose) for dose in doses]
    if not doses or not np.isfinite(doses).all():
        raise MeasureError(f"doses are finite multiples of the difference vector, at least one, not {doses}")
    check_whole(batch_size=batch_size)
    check_whole(0, draws=draws, seed=seed)
    runs = open_runs(recipient, source, prompts, recipient_reads=recipient_reads)
    if site.name not in STREAM or not has_site(runs.recipient.parts, site):
        raise MeasureError(
            f"steering adds to a residual ({', '.join(STREAM)}) of layer 0 to {runs.recipient.parts.n_layers - 1}, not"
            f" to {site}"
        )
    metric = resolve_metric(metric, runs.prompts)
    places = interventions(runs.recipient.parts, site, positions, runs.width)
    if len(places) > 1:
        raise MeasureError('steering adds the vector at one set of positions; pass "all", "last" or numbers')
    estimating, judging = selection_halves(runs.groups)
    vector = mean_difference(runs.take(estimating), site, batch_size)
    noise = torch.randn(draws, len(vector), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    noise = noise / noise.norm(dim=1, keepdim=True) * vector.norm()
    vectors, judges = torch.cat([vector[None], noise]), runs.take(judging)
    values = _steered(judges, site, metric, places[0].position, vectors, doses, batch_size, progress or no_progress)
    data = _dataset(*values, vector.numpy(), doses, runs.groups[judging], units=metric_units(metric), seed=seed)
    attrs = {
        "metric": metric_name(metric),
        "units": metric_units(metric),
        "site": str(site),
        "positions": str(positions),
        "norm": float(vector.norm()),
        "same_prompts": int(np.array_equal(estimating, judging)),
        "seed": seed,
        "recipient": json.dumps(dict(runs.recipient.description)),
        "source": json.dumps(dict(runs.source.description)),
    }
    return Steering(data.assign_attrs(attrs))


def mean_difference(runs: Runs, site: Site, batch_size: int = 16) -> Float[Tensor, " d_model"]:
    """Mean over prompts and real tokens of source minus recipient at a residual, float64."""
    total, count = torch.zeros(runs.recipient.parts.d_model, dtype=torch.float64), 0
    for batch, other in runs.batches(batch_size):
        mine = activations(runs.recipient.parts, batch, [site])[0][site]
        theirs = activations(runs.source.parts, other, [site])[0][site]
        mask = (batch.encoder_mask if site.stack == "encoder" else batch.attention_mask).cpu()  # type: ignore[union-attr]
        total += (theirs.double().cpu() - mine.double().cpu())[mask].sum(0)
        count += int(mask.sum())
    return total / count


def _steered(
    runs: Runs,
    site: Site,
    metric: Metric,
    position: Position,
    vectors: Float[Tensor, "vector d_model"],
    doses: Sequence[float],
    batch_size: int,
    tell: Progress,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The metric under each vector and dose [prompt, vector, dose], and of both models unsteered [prompt]."""
    parts, theirs = runs.recipient.parts, runs.source.parts
    blocks: list[tuple[np.ndarray, ...]] = []
    for index, (batch, other) in enumerate(runs.batches(batch_size)):
        first, count = index * batch_size, len(batch.input_ids)
        final = activations(theirs, other, [])[1]
        here, there = readings(metric, runs.recipient, theirs, (batch, other), final, runs.numbers_of(first, count))
        table = np.empty((count, len(vectors), len(doses)))
        for column, vector in enumerate(vectors):
            steps = torch.tensor(doses, dtype=torch.float64)[:, None] * vector
            edits = {site: _adding(steps, batch, site, position)}
            residual = run_whole(parts, batch, len(doses), edits, here.columns)
            table[:, column] = here.by_copy(parts, residual).numpy().T
        unsteered = here.of_run(parts, activations(parts, batch, [])[1])
        blocks.append((table, unsteered, there.of_run(theirs, final)))
        tell("prompts", first + count, len(runs))
    steered, recipient, source = (np.concatenate(columns) for columns in zip(*blocks, strict=True))
    check_finite(metric_name(metric), recipient=recipient, source=source, steered=steered)
    return steered, recipient, source


def _adding(steps: Float[Tensor, "dose d_model"], batch: Batch, site: Site, position: Position) -> Edit:
    mask = position_mask(batch, site, position)

    def change(value: Tensor) -> Tensor:
        rows = steps.repeat_interleave(len(batch.input_ids), dim=0).to(value)[:, None]
        return value + (rows if mask is None else rows * mask.repeat(len(steps), 1)[..., None].to(value))

    return change


def _dataset(
    steered: Float[np.ndarray, "prompt vector dose"],
    recipient: Float[np.ndarray, " prompt"],
    source: Float[np.ndarray, " prompt"],
    vector: Float[np.ndarray, " d_model"],
    doses: Sequence[float],
    groups: np.ndarray,
    *,
    units: str,
    seed: int,
) -> xr.Dataset:
    metric = steered[:, 0]
    effect = metric - recipient[:, None]
    ratio = interval(effect, groups, over=source - recipient, seed=seed)
    arrays = {
        "metric": (("prompt", "dose"), metric, "metric under the dose", units),
        "effect": (("prompt", "dose"), effect, "steered minus unsteered", units),
        "recipient": (("prompt",), recipient, "metric of the recipient", units),
        "source": (("prompt",), source, "metric of the source", units),
        "random_metric": (("draw", "dose"), steered[:, 1:].mean(0), "mean metric under a random direction", units),
        "vector": (("d_model",), vector, "mean source minus recipient activation", ""),
    }
    for name, values in zip(("mean", "mean_low", "mean_high"), interval(metric, groups, seed=seed), strict=True):
        arrays[name] = (("dose",), values, "mean metric, and its 95 % interval over prompts", units)
    for name, values in zip(("recovery", "recovery_low", "recovery_high"), ratio, strict=True):
        arrays[name] = (("dose",), values, "sum of effects / sum of (source - recipient), and its 95 % interval", "")
    variables = {
        name: as_variable(dims, values, {"long_name": text, "units": unit})
        for name, (dims, values, text, unit) in arrays.items()
    }
    return xr.Dataset(variables, coords={"dose": list(doses), "group": ("prompt", groups)})
