"""Attribution patching: the effect of every patch at once, by the gradient, and how well it ranks the exact ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats
import torch
from torch import Tensor

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
from interp.models import Policy, RewardModel
from interp.models.running import forward_inputs, inference
from interp.models.source import Source
from interp.patching.activation import patch_runs
from interp.patching.opening import Runs, open_runs
from interp.patching.recording import record
from interp.patching.result import Patching, build
from interp.patching.targets import Intervention, Sites, Target, interventions, position_mask
from interp.patching.values import activations, captured_sites, values_of
from interp.prompts import Batch, Prompts

SAMPLE = 24
"""Patches, drawn at random, that are also made in earnest, to see how well the estimate ranks them."""


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
    **options: Any,
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
        options: of `Policy.load`.
    """
    runs = open_runs(recipient, source, prompts, recipient_reads=recipient_reads, rewards=True, **options)
    found = attribution_map(
        runs, sites=sites, positions=positions, metric=metric, steps=steps, batch_size=batch_size, seed=seed
    )
    return with_exact_sample(runs, found, sites, positions, metric, sample=sample, batch_size=batch_size, seed=seed)


def attribution_map(
    runs: Runs,
    *,
    sites: Sites,
    positions: Any = "all",
    metric: Metric | None = None,
    steps: int = 0,
    batch_size: int = 16,
    seed: int = 0,
) -> Patching:
    """The estimate alone (see `attribution_patching`), of loaded models."""
    parts = runs.recipient.parts
    chosen = resolve_metric(metric, runs.prompts, runs.recipient)
    check_whole(batch_size=batch_size)
    check_whole(0, steps=steps, seed=seed)
    width = max(map(len, runs.reads.encoder_ids or runs.reads.prompt_ids))
    wanted = interventions(parts, sites, positions, width)
    blocks = []
    for number, (batch, other) in enumerate(runs.batches(batch_size)):
        blocks.append(_one_batch(runs, batch, other, wanted, chosen, number * batch_size, steps))
    estimate, recipient, source, readout = (np.concatenate(each) for each in zip(*blocks, strict=True))
    check_finite(metric_name(chosen), recipient=recipient, source=source, estimated=estimate)
    found = build(
        runs, wanted, recipient[:, None] + estimate, recipient, source, readout, [()] * len(wanted),
        metric=chosen, positions=positions, by=None, seed=seed,
    )  # fmt: skip
    method = "gradient at the recipient" if steps == 0 else f"integrated gradients, {steps} steps"
    return Patching(found.dataset.assign_attrs(method=f"attribution patching, {method}"))


def with_exact_sample(
    runs: Runs,
    found: Patching,
    sites: Sites,
    positions: Any,
    metric: Metric | None,
    *,
    sample: int,
    batch_size: int,
    seed: int,
) -> Patching:
    """The estimate with some of the patches made in earnest beside it, and their rank correlation."""
    count = found.dataset.sizes["site"]
    if sample <= 0:
        return Patching(found.dataset.assign_attrs(rank_correlation=float("nan"), rank_sample=0))
    width = max(map(len, runs.reads.encoder_ids or runs.reads.prompt_ids))
    wanted = interventions(runs.recipient.parts, sites, positions, width)
    chosen = np.sort(np.random.default_rng(seed).choice(count, size=min(sample, count), replace=False))
    exact = patch_runs(
        runs, sites=[wanted[index] for index in chosen], positions=positions, metric=metric,
        batch_size=batch_size, random_sets=0, seed=seed,
    )  # fmt: skip
    table = np.full(found["effect"].shape, np.nan)
    table[:, chosen] = exact["effect"].values
    own, true = found["effect"].values[:, chosen].mean(0), exact["effect"].values.mean(0)
    varied = len(chosen) > 2 and np.ptp(own) > 0 and np.ptp(true) > 0
    correlation = float(scipy.stats.spearmanr(own, true).statistic) if varied else float("nan")
    attrs = {"long_name": "effect of the patches that were made in earnest", "units": found.dataset.attrs["units"]}
    data = found.dataset.assign(exact_effect=as_variable(("prompt", "site"), table, attrs))
    return Patching(data.assign_attrs(rank_correlation=correlation, rank_sample=len(chosen)))


def _one_batch(
    runs: Runs,
    batch: Batch,
    other: Batch,
    wanted: Sequence[Intervention],
    metric: Metric,
    number: int,
    steps: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    parts, theirs = runs.recipient.parts, runs.source.parts
    targets = sorted({Target(target.site) for each in wanted for target in each.targets})
    store, final = activations(theirs, other, captured_sites(wanted))
    reader = runs.source_reader
    here, there = readings(metric, runs.recipient, reader, (batch, other), final, range(number, number + len(final)))
    whole = values_of(theirs, store)
    wholes = {target.site: whole(target) for target in targets}
    if steps == 0:
        own, gradients, residual = gradient_at(parts, batch, here, list(wholes), {})
        differences = {site: wholes[site].to(own[site]) - own[site] for site in wholes}
    else:
        recording = record(parts, batch)
        residual = recording.final
        mine, _ = activations(parts, batch, captured_sites(wanted))
        ours = values_of(parts, mine)
        differences = {target.site: wholes[target.site] - ours(target) for target in targets}
        gradients = {site: torch.zeros_like(value) for site, value in differences.items()}
        for site, value in differences.items():
            for step in range(steps):
                _, at, _ = gradient_at(parts, batch, here, [site], {site: value * ((step + 0.5) / steps)})
                gradients[site] = gradients[site] + at[site] / steps
    contributions = {site: (differences[site] * gradients[site]).detach() for site in differences}
    estimate = torch.stack([_sum(contributions, each, batch) for each in wanted], dim=1)
    source = there.of_run(reader, final)
    return estimate.cpu().numpy(), here.of_run(parts, residual), source, here.of_run(reader, residual)


def gradient_at(
    parts: Parts, batch: Batch, how: Reading, sites: Sequence[Site], moved: Mapping[Site, Tensor]
) -> tuple[dict[Site, Tensor], dict[Site, Tensor], Tensor]:
    """Activations, and the gradient of the metric by each, of a pass in which what `moved` says is added to each.

    The parameters' own `requires_grad` is left as it is, and nothing is accumulated in them.

    Returns:
        (activations before anything is added, gradients, the last residual).
    """
    leaves: dict[Site, Tensor] = {}
    own: dict[Site, Tensor] = {}

    def edit(site: Site) -> Edit:
        def add(value: Tensor) -> Tensor:
            own[site] = value.detach()
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
        found = torch.autograd.grad(total, wanted, allow_unused=True)
    gradients = {
        site: torch.zeros_like(leaf) if each is None else each
        for site, leaf, each in zip(sites, wanted, found, strict=True)
    }
    return own, gradients, final[0].detach()


def _sum(contributions: Mapping[Site, Tensor], each: Intervention, batch: Batch) -> Tensor:
    """What an intervention's targets contribute, at its positions: [prompt], float64."""
    total = torch.zeros(len(batch.input_ids), dtype=torch.float64, device=batch.input_ids.device)
    for target in each.targets:
        value = contributions[target.site]
        pattern = target.site.name == "pattern"
        if target.units is not None:
            value = value.index_select(1 if pattern else 2, torch.tensor(target.units, device=value.device))
        by_token = value.double().sum((1, 3)) if pattern else value.double().flatten(2).sum(2)
        mask = position_mask(batch, target.site, each.position)
        by_token = by_token if mask is None else by_token * mask.to(by_token)
        total = total + by_token.sum(1).to(total.device)
    return total
