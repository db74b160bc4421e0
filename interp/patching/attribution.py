"""Attribution patching: the effect of every patch at once, by the gradient, and how well it ranks the exact ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from interp.errors import renamed
from interp.families import Parts
from interp.hooks import Edit, Site, patch
from interp.measures.arrays import as_variable
from interp.metrics import (
    Metric,
    Reading,
    at_columns,
    check_finite,
    check_whole,
    metric_name,
    readings,
    resolve_metric,
)
from interp.models import Policy, RewardModel, Source
from interp.models.running import forward_inputs, inference
from interp.patching.activation import patch_runs
from interp.patching.recording import activations, captured_sites, run_to_the_last_residual, values_of
from interp.patching.result import Patching, build
from interp.patching.runs import LOADING, Runs, open_runs
from interp.patching.targets import Intervention, Sites, Target, interventions, position_mask
from interp.progress import Progress, no_progress
from interp.prompts import Batch, Prompts

SAMPLE = 24
"""Patches, drawn at random, that are also made in earnest, to see how well the estimate ranks them."""


@renamed(**LOADING)
def attribution_patching(
    recipient: Source | Policy | RewardModel,
    source: Source | Policy | RewardModel,
    prompts: Prompts | Sequence[str],
    *,
    sites: Sites = "z",
    positions: Any = "all",
    metric: Metric | None = None,
    steps: int = 0,
    sample: int = SAMPLE,
    recipient_reads: str | None = None,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> Patching:
    """Estimate what `activation_patching` finds, for all sites at once, from gradients.

    With steps=0, (source - recipient) . d metric / d activation on the recipient's own run (Nanda 2023, "Attribution
    patching"; Kramar et al. 2024, AtP*): two forward passes and a backward pass for the whole map. With steps=m the
    gradient is the mean over m points, at the middles of m equal parts, of the way from the recipient's activations
    to the source's (integrated gradients, Sundararajan et al. 2017). Each site of a layer goes that way by itself, all
    its heads or neurons together, so that takes m forward and backward passes a layer and name. (On one way for all
    layers together the estimates rank the exact effects worse than the plain gradient does.)

    An estimate can be far off (saturated attention, large changes), so `sample` patches are also made in earnest:
    `exact_effect` holds them, and the attr `rank_correlation` is Spearman's between the two over the sample.

    Args:
        recipient: see `activation_patching`, as are the other arguments.
        source: see there.
        prompts: see there.
        sites: see there; sets are the sums of their members.
        positions: see there.
        metric: see there; a function of the user's own must be differentiable.
        steps: points of the integral; 0 takes the gradient at the recipient.
        sample: patches made in earnest; 0 makes none, and the result says so.
        recipient_reads: see there.
        batch_size: prompts a pass.
        seed: of the sample and of the resampling.
        progress: told of "prompts", then of the "patches" made in earnest.
    """
    check_whole(0, sample=sample)
    runs = open_runs(recipient, source, prompts, recipient_reads=recipient_reads, rewards=True)
    estimate = attribution_map(
        runs,
        sites=sites,
        positions=positions,
        metric=metric,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )
    data = estimate.dataset.assign_attrs(rank_correlation=float("nan"), rank_sample=0)
    if not sample:
        return Patching(data)
    wanted = interventions(runs.recipient.parts, sites, positions, runs.width)
    rows = np.sort(np.random.default_rng(seed).choice(len(wanted), size=min(sample, len(wanted)), replace=False))
    exact = patch_runs(
        runs, sites=[wanted[row] for row in rows], positions=positions, metric=metric,
        batch_size=batch_size, draws=0, seed=seed, progress=progress,
    )  # fmt: skip
    return _beside(estimate, exact, rows)


def attribution_map(
    runs: Runs,
    *,
    sites: Sites,
    positions: Any = "all",
    metric: Metric | None = None,
    steps: int = 0,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> Patching:
    """The estimate alone (see `attribution_patching`), of runs that are open."""
    check_whole(batch_size=batch_size)
    check_whole(0, steps=steps, seed=seed)
    metric, tell = resolve_metric(metric, runs.prompts, runs.recipient), progress or no_progress
    wanted = interventions(runs.recipient.parts, sites, positions, runs.width)
    blocks = []
    for number, (batch, other) in enumerate(runs.batches(batch_size)):
        blocks.append(_one_batch(runs, batch, other, wanted, metric, number * batch_size, steps))
        tell("prompts", min((number + 1) * batch_size, len(runs)), len(runs))
    estimate, recipient, source, readout = (np.concatenate(columns) for columns in zip(*blocks, strict=True))
    check_finite(metric_name(metric), recipient=recipient, source=source, estimated=estimate)
    result = build(
        runs, wanted, recipient[:, None] + estimate, recipient, source, readout, [()] * len(wanted),
        metric=metric, positions=positions, by=None, seed=seed,
    )  # fmt: skip
    method = "gradient at the recipient" if steps == 0 else f"integrated gradients, {steps} steps"
    return Patching(result.dataset.assign_attrs(method=f"attribution patching, {method}"))


def _beside(estimate: Patching, exact: Patching, rows: np.ndarray) -> Patching:
    """The estimate with the patches that were made in earnest beside it, and their rank correlation."""
    table = np.full(estimate["effect"].shape, np.nan)
    table[:, rows] = exact["effect"].values
    first, second = estimate["effect"].values[:, rows].mean(0), exact["effect"].values.mean(0)
    varied = len(rows) > 2 and np.ptp(first) > 0 and np.ptp(second) > 0
    correlation = float(scipy.stats.spearmanr(first, second).statistic) if varied else float("nan")
    attrs = {"long_name": "effect of the patches that were made in earnest", "units": estimate.dataset.attrs["units"]}
    data = estimate.dataset.assign(exact_effect=as_variable(("prompt", "site"), table, attrs))
    return Patching(data.assign_attrs(rank_correlation=correlation, rank_sample=len(rows)))


def _one_batch(
    runs: Runs,
    batch: Batch,
    other: Batch,
    wanted: Sequence[Intervention],
    metric: Metric,
    first: int,
    steps: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Estimate [prompt, site], recipient, source and readout [prompt]."""
    parts, reader = runs.recipient.parts, runs.source_reader
    targets = sorted({Target(target.site) for intervention in wanted for target in intervention.targets})
    store, final = activations(runs.source.parts, other, captured_sites(wanted))
    numbers = runs.numbers_of(first, len(final))
    here, there = readings(metric, runs.recipient, reader, (batch, other), final, numbers)
    whole = values_of(runs.source.parts, store)
    wholes = {target.site: whole(target) for target in targets}
    if steps == 0:
        before, gradients, residual = gradient_at(parts, batch, here, list(wholes), {})
        differences = {site: wholes[site].to(before[site]) - before[site] for site in wholes}
    else:
        residual = run_to_the_last_residual(parts, batch)[0]
        mine = values_of(parts, activations(parts, batch, captured_sites(wanted))[0])
        differences = {target.site: wholes[target.site] - mine(target) for target in targets}
        gradients = {site: torch.zeros_like(value) for site, value in differences.items()}
        for site, value in differences.items():
            for step in range(steps):
                _, at, _ = gradient_at(parts, batch, here, [site], {site: value * ((step + 0.5) / steps)})
                gradients[site] = gradients[site] + at[site] / steps
    contributions = {site: (differences[site] * gradients[site]).detach() for site in differences}
    estimate = torch.stack([_sum(contributions, intervention, batch) for intervention in wanted], dim=1)
    recipient, readout = here.of_run(parts, residual), here.of_run(reader, residual)
    return estimate.cpu().numpy(), recipient, there.of_run(reader, final), readout


def gradient_at(
    parts: Parts, batch: Batch, how: Reading, sites: Sequence[Site], moved: Mapping[Site, Tensor]
) -> tuple[dict[Site, Tensor], dict[Site, Tensor], Tensor]:
    """Activations, and the gradient of the metric by each, of a pass in which what `moved` says is added to each.

    The parameters' own `requires_grad` is left as it is, and nothing is accumulated in them.

    Returns:
        (activations before anything is added, gradients, the last residual).
    """
    leaves: dict[Site, Tensor] = {}
    before: dict[Site, Tensor] = {}

    def edit(site: Site) -> Edit:
        def add(value: Tensor) -> Tensor:
            before[site] = value.detach()
            start = torch.zeros_like(value) if site not in moved else moved[site].to(value)
            leaves[site] = start.detach().requires_grad_()
            return value + leaves[site]

        return add

    model = parts.model if parts.family.encoder is not None else parts.backbone
    final: list[Tensor] = []
    last = Site("resid_post", parts.n_layers - 1)
    edits = {site: edit(site) for site in sites}

    def keep(value: Tensor) -> Tensor:
        final[:] = [value]
        return value

    ends = edits.pop(last, None)
    edits[last] = keep if ends is None else lambda value: keep(ends(value))
    with inference(parts.model), torch.enable_grad():
        with patch(parts, edits):
            model(**forward_inputs(parts, batch))
        # Read once the hooks are gone: the head of some families runs a module that they sit on.
        rows = torch.arange(len(batch.input_ids), device=batch.input_ids.device)
        total = how.read(parts, at_columns(final[0], how.columns), rows).sum()
        wanted = [leaves[site] for site in sites]
        slopes = torch.autograd.grad(total, wanted, allow_unused=True)
    gradients = {
        site: torch.zeros_like(leaf) if slope is None else slope
        for site, leaf, slope in zip(sites, wanted, slopes, strict=True)
    }
    return before, gradients, final[0].detach()


def _sum(contributions: Mapping[Site, Tensor], intervention: Intervention, batch: Batch) -> Tensor:
    """What an intervention's targets contribute, at its positions: [prompt], float64."""
    total = torch.zeros(len(batch.input_ids), dtype=torch.float64, device=batch.input_ids.device)
    for target in intervention.targets:
        value = contributions[target.site]
        pattern = target.site.name == "pattern"
        if target.units is not None:
            value = value.index_select(1 if pattern else 2, torch.tensor(target.units, device=value.device))
        by_token = value.double().sum((1, 3)) if pattern else value.double().flatten(2).sum(2)
        mask = position_mask(batch, target.site, intervention.position)
        by_token = by_token if mask is None else by_token * mask.to(by_token)
        total = total + by_token.sum(1).to(total.device)
    return total
