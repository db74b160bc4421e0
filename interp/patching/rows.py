"""Edits for a pass that carries many interventions at once: one block of the batch's rows for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.hooks import Edit, Site
from interp.patching.targets import Intervention, Target, position_mask
from interp.prompts import Batch

Values = Callable[[Target], Tensor]
"""From a target to what is put there: the layout of `capture` for one batch, of which only the units (all where the
target has none) are kept."""


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
    found: dict[Site, list[Write]] = {}
    for index, intervention in enumerate(interventions):
        rows = slice(index * count, (index + 1) * count)
        for target in intervention.targets:
            mask = position_mask(batch, target.site, intervention.position)
            found.setdefault(target.site, []).append(Write(rows, target, mask, values(target)))
    return found


def edits(found: Mapping[Site, Sequence[Write]]) -> dict[Site, Edit]:
    """What `interp.hooks.patch` takes."""
    return {site: _edit(each) for site, each in found.items()}


def _edit(each: Sequence[Write]) -> Edit:
    def change(current: Tensor) -> Tensor:
        changed = current.clone()
        for write in each:
            write.into(changed)
        return changed

    return change
