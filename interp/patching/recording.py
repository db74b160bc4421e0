"""A pass, recorded block by block; the activations it leaves; and edits that write them into another pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.families import Parts
from interp.hooks import Edit, Site, capture
from interp.hooks.attention import listens
from interp.hooks.shapes import first
from interp.metrics import at_columns
from interp.models.running import forward_inputs, inference
from interp.patching.targets import Intervention, Target, position_mask
from interp.prompts import Batch

Call = tuple[tuple[Any, ...], dict[str, Any]]

Values = Callable[[Target], Tensor]
"""From a target to what is put there: the layout of `capture` for one batch, of which only the units (all where the
target has none) are kept."""


@dataclass(frozen=True)
class Recording:
    """What a model computed on a batch, block by block.

    Attributes:
        parts: the model.
        batch: tokens, on its device.
        calls: the arguments of each block of the main stack.
        attention: what each block's self-attention returned, a tuple.
        z: z of each block's self-attention, [batch, seq, head, d_head].
        final: the last residual, [batch, seq, d_model].
    """

    parts: Parts
    batch: Batch
    calls: tuple[Call, ...]
    attention: tuple[tuple[Any, ...], ...]
    z: tuple[Tensor, ...]
    final: Float[Tensor, "batch seq d_model"]

    def hidden(self, layer: int) -> Float[Tensor, "batch seq d_model"]:
        """What enters a block, or after the last one the last residual."""
        return first(*self.calls[layer]) if layer < len(self.calls) else self.final

    def at(self, columns: Int[Tensor, "batch column"]) -> Float[Tensor, "batch column d_model"]:
        """The last residual at some columns."""
        return at_columns(self.final, columns)

    @property
    def one_token_is_enough(self) -> bool:
        """Whether the last block can run on one token (an attention to an encoder takes biases for all of them)."""
        return self.attention_can_stand and self.parts.family.encoder is None

    @property
    def attention_can_stand(self) -> bool:
        """Whether what a self-attention returns can be put in its place (BLOOM's adds the residual to it)."""
        return listens(self.parts.inside(0, "attn"))


def record(parts: Parts, batch: Batch) -> Recording:
    """Run a model on a batch and keep what `replay` needs; logits are not computed where the family allows it."""
    calls: list[Call] = []
    attention: list[tuple[Any, ...]] = []
    handles = []
    layers = range(parts.n_layers)

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args, kwargs))

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        attention.append(output if isinstance(output, tuple) else (output,))

    sites = [*(Site("z", layer) for layer in layers), Site("resid_post", parts.n_layers - 1)]
    try:
        for layer in layers:
            handles.append(parts.block(layer).register_forward_pre_hook(before, with_kwargs=True))
            handles.append(parts.inside(layer, "attn").register_forward_hook(after))
        final, store = run_to_the_last_residual(parts, batch, sites)
    finally:
        for handle in handles:
            handle.remove()
    z = tuple(store[site] for site in sites[:-1])
    return Recording(parts, batch, tuple(calls), tuple(attention), z, final)


def run_to_the_last_residual(
    parts: Parts, batch: Batch, sites: Sequence[Site] = ()
) -> tuple[Float[Tensor, "batch seq d_model"], dict[Site, Tensor]]:
    """The last residual, and activations, of one pass; logits are not computed where the family allows it."""
    final = Site("resid_post", parts.n_layers - 1)
    eager = any(site.name == "pattern" for site in sites)
    model = parts.model if parts.family.encoder is not None else parts.backbone
    with inference(parts.model, eager=eager), capture(parts, {*sites, final}) as store:
        model(**forward_inputs(parts, batch))
    return store[final], {site: store[site] for site in sites}


def captured_sites(interventions: Iterable[Intervention]) -> list[Site]:
    """What must be captured to put it elsewhere; of `result`, which is large, z stands for it."""
    sites = (target.site for intervention in interventions for target in intervention.targets)
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


@dataclass(frozen=True)
class Write:
    """What goes into one block of rows at a site.

    Attributes:
        rows: the rows.
        target: the site's units.
        mask: at which tokens, or None for all.
        value: what is put there, as `Values` gives it.
    """

    rows: slice
    target: Target
    mask: Bool[Tensor, "batch seq"] | None
    value: Tensor

    def into(self, current: Tensor) -> None:
        """Write into an activation in the layout of `capture`."""
        view = current[self.rows]
        if self.target.units is None:
            view.copy_(self._where(view, self.value, 1))
            return
        dim = 1 if self.target.site.name == "pattern" else 2
        for index, unit in enumerate(self.target.units):
            part = view.select(dim, unit)
            part.copy_(self._where(part, self.value.select(dim, index), 1))

    def _where(self, old: Tensor, new: Tensor, dim: int) -> Tensor:
        if self.mask is None:
            return new.to(old)
        shape = [*self.mask.shape, *([1] * (old.ndim - dim - 1))]
        return torch.where(self.mask.reshape(shape).to(old.device), new.to(old), old)


def writes(interventions: Sequence[Intervention], batch: Batch, values: Values) -> dict[Site, list[Write]]:
    """For each site, what goes into which rows, when intervention i has the rows i * len(batch) and on."""
    count = len(batch.input_ids)
    by_site: dict[Site, list[Write]] = {}
    for index, intervention in enumerate(interventions):
        rows = slice(index * count, (index + 1) * count)
        for target in intervention.targets:
            mask = position_mask(batch, target.site, intervention.position)
            by_site.setdefault(target.site, []).append(Write(rows, target, mask, values(target)))
    return by_site


def edits(by_site: Mapping[Site, Sequence[Write]]) -> dict[Site, Edit]:
    """What `interp.hooks.patch` takes."""
    return {site: _edit(several) for site, several in by_site.items()}


def _edit(several: Sequence[Write]) -> Edit:
    def change(current: Tensor) -> Tensor:
        changed = current.clone()
        for write in several:
            write.into(changed)
        return changed

    return change


def substitutions(interventions: Sequence[Intervention], batch: Batch, values: Values) -> dict[Site, Edit]:
    """Edits that make the interventions, the first of them in the first `len(batch)` rows, and so on."""
    return edits(writes(interventions, batch, values))
