"""Steering: the mean difference between two models' residuals, added to one of them in several doses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from interp.columns import frame_text
from interp.errors import MeasureError
from interp.hooks import Edit, Site, has_site
from interp.measures.arrays import as_variable
from interp.metrics import Metric, metric_name, metric_units, readings, resolve_metric
from interp.models import Policy
from interp.models.source import Source
from interp.patching.opening import Runs, open_runs
from interp.patching.replay import run_whole
from interp.patching.targets import interventions, position_mask
from interp.patching.values import activations
from interp.prompts import Batch, Prompts
from interp.stats import interval, selection_halves

DOSES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
STREAM = ("resid_pre", "resid_mid", "resid_post")


@dataclass(frozen=True)
class Steering:
    """What a difference vector does, by dose.

    `dataset` has the dims `prompt` and `dose`: `metric`, `effect` (metric minus that of dose 0), `mean` with `low` and
    `high` (of `metric`), `recovery` with its bounds, and `random_metric` [draw, dose], the mean under random
    directions of the same norm; `recipient` and `source` [prompt] are the unsteered runs.

    Attributes:
        dataset: all arrays; all prompts in it are those that the vector was not estimated on.
        vector: mean source minus recipient activation.
    """

    dataset: xr.Dataset
    vector: Float[Tensor, " d_model"]

    def __getitem__(self, name: str) -> xr.DataArray:
        return self.dataset[name]

    def summary(self) -> pd.DataFrame:
        """One row a dose."""
        data = self.dataset
        names = ("mean", "low", "high", "recovery", "recovery_low", "recovery_high")
        frame = pd.DataFrame({"dose": data["dose"].values, **{name: data[name].values for name in names}})
        if data.sizes["draw"]:
            frame["random_low"] = data["random_metric"].min("draw").values
            frame["random_high"] = data["random_metric"].max("draw").values
        return frame

    def __repr__(self) -> str:
        attrs = self.dataset.attrs
        head = f"{attrs['metric']} by dose of a difference vector of norm {attrs['norm']:.3g} at {attrs['site']}"
        return "\n".join([head, frame_text(self.summary())])


def steering(
    recipient: Source | Policy,
    source: Source | Policy,
    prompts: Prompts | Sequence[str],
    *,
    site: Site | tuple[str, int],
    doses: Sequence[float | int] = DOSES,
    positions: Any = "all",
    metric: Metric | None = None,
    random_directions: int = 20,
    recipient_reads: str | None = None,
    batch_size: int = 16,
    seed: int = 0,
    **options: Any,
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
        random_directions: how many, drawn from a normal distribution and scaled to the vector's norm.
        recipient_reads: see there.
        batch_size: prompts a pass.
        seed: of the random directions and of the resampling.
        options: of `Policy.load`.

    Raises:
        MeasureError: the site is no residual of the model, or there is no dose.
        PromptError: the prompts do not fit.
        LoadError: a model cannot be loaded.
    """
    site = site if isinstance(site, Site) else Site(*site)
    doses = [float(dose) for dose in doses]
    if not doses or not np.isfinite(doses).all():
        raise MeasureError(f"doses are finite multiples of the difference vector, at least one, not {doses}")
    runs = open_runs(recipient, source, prompts, recipient_reads=recipient_reads, **options)
    if site.name not in STREAM or not has_site(runs.recipient.parts, site):
        raise MeasureError(
            f"steering adds to a residual ({', '.join(STREAM)}) of layer 0 to {runs.recipient.parts.n_layers - 1}, not"
            f" to {site}"
        )
    chosen = resolve_metric(metric, runs.prompts)
    groups = np.unique(np.array(runs.prompts.groups, dtype=object), return_inverse=True)[1]
    estimating, judging = selection_halves(groups)
    width = max(map(len, runs.reads.encoder_ids or runs.reads.prompt_ids))
    where = interventions(runs.recipient.parts, site, positions, width)
    if len(where) > 1:
        raise MeasureError('steering adds the vector at one set of positions; pass "all", "last" or numbers')
    job = _Job(runs, site, chosen, where[0].position)
    vector = job.difference(estimating, batch_size)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(random_directions, len(vector), generator=generator, dtype=torch.float64)
    noise = noise / noise.norm(dim=1, keepdim=True) * vector.norm()
    metrics, mine, other = job.judge(torch.cat([vector[None], noise]), doses, judging, batch_size)
    data = _dataset(metrics, mine, other, doses, groups[judging], metric_units(chosen), seed)
    attrs = {
        "metric": metric_name(chosen),
        "units": metric_units(chosen),
        "site": str(site),
        "positions": str(positions),
        "norm": float(vector.norm()),
        "same_prompts": int(np.array_equal(estimating, judging)),
        "seed": seed,
        "recipient": json.dumps(dict(runs.recipient.description)),
        "source": json.dumps(dict(runs.source.description)),
    }
    return Steering(data.assign_attrs(attrs), vector)


@dataclass(frozen=True)
class _Job:
    runs: Runs
    site: Site
    metric: Metric
    where: Any

    def _batches(self, rows: np.ndarray, size: int) -> list[tuple[np.ndarray, Batch, Batch]]:
        found = []
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            both = []
            for reads, policy in ((self.runs.reads, self.runs.recipient), (self.runs.source_reads, self.runs.source)):
                pick: dict[str, Any] = {
                    name: None if held is None else tuple(held[row] for row in part)
                    for name in ("prompt_ids", "response_ids", "encoder_ids")
                    for held in [getattr(reads, name)]
                }
                answers = None if reads.answer_ids is None else reads.answer_ids[list(part)]
                few = replace(reads, answer_ids=answers, answer_tokens=None, answer_texts=None, shared=(), **pick)
                both.append(next(few.batches(len(part))).to(policy.device))
            found.append((part, both[0], both[1]))
        return found

    def difference(self, rows: np.ndarray, size: int) -> Tensor:
        """Mean over real tokens of source minus recipient, float64."""
        total, count = torch.zeros(self.runs.recipient.parts.d_model, dtype=torch.float64), 0
        for _, batch, other in self._batches(rows, size):
            mine = activations(self.runs.recipient.parts, batch, [self.site])[0][self.site]
            theirs = activations(self.runs.source.parts, other, [self.site])[0][self.site]
            mask = (batch.encoder_mask if self.site.stack == "encoder" else batch.attention_mask).cpu()  # type: ignore[union-attr]
            total += (theirs.double().cpu() - mine.double().cpu())[mask].sum(0)
            count += int(mask.sum())
        return total / count

    def judge(
        self, vectors: Tensor, doses: Sequence[float], rows: np.ndarray, size: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The metric under each vector and dose [prompt, vector, dose], and of both models unsteered [prompt]."""
        moved, own, other_own = [], [], []
        for part, batch, other in self._batches(rows, size):
            parts, theirs = self.runs.recipient.parts, self.runs.source.parts
            final = activations(theirs, other, [])[1]
            here, there = readings(self.metric, self.runs.recipient, theirs, (batch, other), final, part.tolist())
            other_own.append(there.of_run(theirs, final))
            own.append(here.of_run(parts, activations(parts, batch, [])[1]))
            table = np.empty((len(part), len(vectors), len(doses)))
            for index, vector in enumerate(vectors):
                steps = torch.tensor(doses, dtype=torch.float64)[:, None] * vector
                residual = run_whole(parts, batch, len(doses), {self.site: self._add(steps, batch)}, here.columns)
                table[:, index] = here.by_copy(parts, residual).numpy().T
            moved.append(table)
        return np.concatenate(moved), np.concatenate(own), np.concatenate(other_own)

    def _add(self, steps: Float[Tensor, "dose d_model"], batch: Batch) -> Edit:
        mask = position_mask(batch, self.site, self.where)

        def change(value: Tensor) -> Tensor:
            rows = steps.repeat_interleave(len(batch.input_ids), dim=0).to(value)[:, None]
            return value + (rows if mask is None else rows * mask.repeat(len(steps), 1)[..., None].to(value))

        return change


def _dataset(
    metrics: np.ndarray,
    mine: np.ndarray,
    other: np.ndarray,
    doses: Sequence[float],
    groups: np.ndarray,
    units: str,
    seed: int,
) -> xr.Dataset:
    own = metrics[:, 0]
    bounds = interval(own, groups, seed=seed)
    ratio = interval(own - mine[:, None], groups, over=other - mine, seed=seed)
    said = {
        "metric": (("prompt", "dose"), own, "metric under the dose", units),
        "effect": (("prompt", "dose"), own - mine[:, None], "steered minus unsteered", units),
        "recipient": (("prompt",), mine, "metric of the recipient", units),
        "source": (("prompt",), other, "metric of the source", units),
        "random_metric": (("draw", "dose"), metrics[:, 1:].mean(0), "mean metric under a random direction", units),
    }
    for name, values in zip(("mean", "low", "high"), bounds, strict=True):
        said[name] = (("dose",), values, f"{name} of the metric, 95 % interval over prompts", units)
    for name, values in zip(("recovery", "recovery_low", "recovery_high"), ratio, strict=True):
        said[name] = (("dose",), values, "sum of effects / sum of (source - recipient), and its 95 % interval", "")
    variables = {
        name: as_variable(dims, values, {"long_name": text, "units": unit})
        for name, (dims, values, text, unit) in said.items()
    }
    return xr.Dataset(variables, coords={"dose": list(doses), "group": ("prompt", groups)})
