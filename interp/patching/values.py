"""What is put in the place of an activation: another model's or run's, zero, a mean, or another prompt's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from interp.errors import MeasureError
from interp.families import Parts
from interp.hooks import Site
from interp.patching.recording import run_to_the_last_residual
from interp.patching.rows import Values
from interp.patching.targets import Intervention, Target
from interp.prompts import Batch, make_batch


def captured_sites(interventions: Iterable[Intervention]) -> list[Site]:
    """What must be captured to put it elsewhere; of `result`, which is large, z stands for it."""
    sites = (target.site for each in interventions for target in each.targets)
    return sorted({Site("z", site.layer, site.stack) if site.name == "result" else site for site in sites})


def activations(parts: Parts, batch: Batch, sites: Sequence[Site]) -> tuple[dict[Site, Tensor], Tensor]:
    """Activations at `sites`, and the last residual, of one pass."""
    final, store = run_to_the_last_residual(parts, batch, sites)
    return store, final


def values_of(parts: Parts, store: dict[Site, Tensor]) -> Values:
    """The activations themselves; `result` is z times this model's W_O, without b_O."""
    known: dict[Target, Tensor] = {}

    def value(target: Target) -> Tensor:
        if target not in known:
            known[target] = _of_units(parts, store, target)
        return known[target]

    return value


def _of_units(parts: Parts, store: dict[Site, Tensor], target: Target) -> Tensor:
    site, units = target.site, target.units
    if site.name == "result":
        assert site.layer is not None
        z = store[Site("z", site.layer, site.stack)]
        heads = list(range(parts.n_heads) if units is None else units)
        weight = parts.W_O(site.layer, site.stack).detach()[heads]
        return torch.einsum("bshd,hdm->bshm", z[:, :, heads].to(weight), weight)
    if units is None:
        return store[site]
    return store[site].index_select(1 if site.name == "pattern" else 2, torch.tensor(units, device=store[site].device))


def replaced_by(
    runs: Any, by: str, interventions: Sequence[Intervention], batch_size: int, seed: int
) -> Callable[[int, Batch], Values]:
    """What an ablation puts into each batch: from the number of its first prompt and its tokens to `Values`.

    Args:
        runs: the model and what it reads (`interp.patching.opening.Runs`).
        by: "zero", "mean" (over all real tokens of all prompts), or "resample": the activations of another prompt at
            the same positions from the first token, its last one where it is shorter.
        interventions: where.
        batch_size: prompts a pass.
        seed: of the permutation.
    """
    parts = runs.recipient.parts
    sites = captured_sites(interventions)
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


def _means(runs: Any, sites: Sequence[Site], batch_size: int) -> dict[Site, Tensor]:
    totals: dict[Site, Tensor] = {}
    counts: dict[Site, int] = {}
    for batch, _ in runs.batches(batch_size):
        store, _final = activations(runs.recipient.parts, batch, sites)
        for site, value in store.items():
            real = value[_mask_of(batch, site)].double()
            totals[site] = totals.get(site, torch.zeros_like(real[0])) + real.sum(0)
            counts[site] = counts.get(site, 0) + len(real)
    return {site: total / counts[site] for site, total in totals.items()}


def _resampled(runs: Any, sites: Sequence[Site], seed: int) -> Callable[[int, Batch], Values]:
    count = len(runs.prompts)
    if count < 2:
        raise MeasureError("resample puts another prompt's activations in, and there is one prompt; give more")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    partner = {own: order[(place + 1) % count] for place, own in enumerate(order)}  # one cycle: nobody gets its own
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
