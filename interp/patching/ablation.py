"""Ablation: zeros, a mean or another prompt's activations in the place of a model's own."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from interp.errors import MeasureError, renamed
from interp.hooks import Site
from interp.metrics import Metric, check_whole
from interp.models import Policy, RewardModel, Source
from interp.models.load import as_policy
from interp.patching.activation import DRAWS, Put, Replacement, patch_runs
from interp.patching.recording import Values, activations, captured_sites, values_of
from interp.patching.result import Patching
from interp.patching.runs import LOADING, Runs, tokens_of
from interp.patching.targets import Intervention, Sites
from interp.progress import Progress
from interp.prompts import Batch, Prompts, make_batch

Ablation = Literal["zero", "mean", "resample"]


@renamed(**LOADING, random_sets="it is draws=", tokens="pass it to patching.patch_runs")
def ablation(
    model: Source | Policy | RewardModel,
    prompts: Prompts | Sequence[str],
    *,
    by: Ablation = "mean",
    sites: Sites = ("attn_out", "mlp_out"),
    positions: Any = "all",
    metric: Metric | None = None,
    batch_size: int = 16,
    draws: int = DRAWS,
    short_cut: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Patching:
    """Put zeros, a mean or another prompt's activations into a model, site by site.

    Args:
        model: the model, a policy or a reward model.
        prompts: what it reads.
        by: "zero"; "mean", over all tokens of all prompts, those that a tokenizer adds among them; or "resample", the
            activations of another prompt (drawn once, nobody gets its own), at the same positions counted from the
            first token.
        sites: see `interp.patching.activation_patching`, as are the other arguments.
        positions: see there.
        metric: see there; `kl` is to the model itself without ablation.
        batch_size: prompts a pass.
        draws: random sets beside each set of several sites.
        short_cut: False runs the whole model for each pass.
        seed: seed of the resampling.
        progress: told of "patches".

    Raises:
        As `activation_patching`.
    """
    if by not in get_args(Ablation):
        raise MeasureError(f'an ablation is by "zero", "mean" or "resample", not {by!r}')
    check_whole(0, seed=seed)
    prompts = prompts if isinstance(prompts, Prompts) else Prompts(prompts)
    prompts = replace(prompts, corrupted=None)
    subject = model if isinstance(model, RewardModel) else as_policy(model)
    if isinstance(subject, Policy):
        prompts = prompts.for_models([subject.tokenizer])
    tokens = tokens_of(subject, prompts)
    return patch_runs(
        Runs(subject, subject, tokens, tokens, prompts),
        replacement=Replacement(by, functools.partial(substitutes, by=by, seed=seed)),
        sites=sites,
        positions=positions,
        metric=metric,
        batch_size=batch_size,
        draws=draws,
        short_cut=short_cut,
        seed=seed,
        progress=progress,
    )


def substitutes(runs: Runs, patches: Sequence[Intervention], batch_size: int, *, by: Ablation, seed: int = 0) -> Put:
    """What an ablation puts into each batch.

    Args:
        runs: the model and what it reads.
        patches: where.
        batch_size: prompts a pass.
        by: "zero", "mean" (over all real tokens of all prompts), or "resample": the activations of another prompt at
            the same positions from the first token, its last one where it is shorter.
        seed: of the permutation.
    """
    parts, sites = runs.recipient.parts, captured_sites(patches)
    if by == "resample":
        return _resampled(runs, sites, seed)
    if by == "mean":
        if any(site.name == "pattern" for site in sites):
            raise MeasureError("a mean of patterns over prompts of different lengths means nothing; use zero, or z")
        means = _means(runs, sites, batch_size)

    def put(_: int, batch: Batch) -> Values:
        store, _final = activations(parts, batch, sites)
        filled = {
            site: torch.zeros_like(value) if by == "zero" else means[site].to(value).expand_as(value)
            for site, value in store.items()
        }
        return values_of(parts, filled)

    return put


def _mask_of(batch: Batch, site: Site) -> Tensor:
    encoder = site.stack == "encoder" or (site.stack == "cross" and site.name in ("k", "v"))
    mask = batch.encoder_mask if encoder else batch.attention_mask
    assert mask is not None
    return mask


def _means(runs: Runs, sites: Sequence[Site], batch_size: int) -> dict[Site, Tensor]:
    totals: dict[Site, Tensor] = {}
    counts: dict[Site, int] = {}
    for batch, _ in runs.batches(batch_size):
        store, _final = activations(runs.recipient.parts, batch, sites)
        for site, value in store.items():
            real = value[_mask_of(batch, site)].double()
            totals[site] = totals.get(site, torch.zeros_like(real[0])) + real.sum(0)
            counts[site] = counts.get(site, 0) + len(real)
    return {site: total / counts[site] for site, total in totals.items()}


def _resampled(runs: Runs, sites: Sequence[Site], seed: int) -> Put:
    count = len(runs)
    if count < 2:
        raise MeasureError("resample puts another prompt's activations in, and there is one prompt; give more")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    partner = {row: order[(place + 1) % count] for place, row in enumerate(order)}  # one cycle: nobody gets itself
    parts = runs.recipient.parts

    def put(first: int, batch: Batch) -> Values:
        rows = range(first, first + len(batch.input_ids))
        others = [partner[row] for row in rows]
        tokens = runs.reads
        other = make_batch(
            [tokens.prompt_ids[row] for row in others],
            [tokens.response_ids[row] if tokens.response_ids is not None else () for row in others],
            encoder=[tokens.encoder_ids[row] for row in others] if tokens.encoder_ids is not None else None,
        ).to(batch.input_ids.device)
        store, _final = activations(parts, other, sites)
        return values_of(parts, {site: _aligned(value, site, other, batch) for site, value in store.items()})

    return put


def _aligned(value: Tensor, site: Site, other: Batch, batch: Batch) -> Tensor:
    """Another batch's activations, token by token from the first, in the columns of this batch."""
    if site.name == "pattern":
        raise MeasureError("patterns of prompts of different lengths cannot be exchanged; use zero, or z")
    mine, theirs = _mask_of(batch, site), _mask_of(other, site)
    number = torch.arange(mine.shape[1], device=mine.device) - mine.long().argmax(-1)[:, None]
    last = theirs.sum(-1)[:, None] - 1
    columns = theirs.long().argmax(-1)[:, None] + torch.minimum(number.clamp_min(0), last)
    return value[torch.arange(len(value), device=value.device)[:, None], columns.to(value.device)]
