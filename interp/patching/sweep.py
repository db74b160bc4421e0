"""Many interventions on one batch: the metric under each of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.metrics import Reading
from interp.patching.recording import Recording
from interp.patching.replay import replay, run_whole
from interp.patching.rows import Values, edits, writes
from interp.patching.targets import Intervention

TOKENS = 1024
"""Most tokens of a pass that carries several interventions; beyond it a processor's caches overflow."""


def first_layer(intervention: Intervention) -> int | None:
    """The first block of the main stack that an intervention touches; None where it begins in an encoder."""
    layers = [target.site.layer or 0 for target in intervention.targets if target.site.stack != "encoder"]
    return min(layers) if len(layers) == len(intervention.targets) else None


def sweep(
    recording: Recording,
    interventions: Sequence[Intervention],
    values: Values,
    reading: Reading,
    *,
    tokens: int = TOKENS,
    short_cut: bool = True,
) -> Float[Tensor, "prompt site"]:
    """The metric of each prompt under each intervention.

    Interventions that begin in one block share passes; each pass computes only what the change can reach.

    Args:
        recording: the recipient's own pass.
        interventions: what is patched.
        values: what is put there.
        reading: the metric.
        tokens: most tokens a pass.
        short_cut: False runs the whole model for each pass instead.
    """
    batch, parts = recording.batch, recording.parts
    count = len(batch.input_ids)
    found = torch.full((count, len(interventions)), torch.nan, dtype=torch.float64)
    for start, indices in _passes(interventions, max(1, tokens // batch.input_ids.numel())):
        chosen = [interventions[index] for index in indices]
        change = edits(writes(chosen, batch, values))
        if start is None or not short_cut:
            residual = run_whole(parts, batch, len(chosen), change, reading.columns)
        else:
            residual = replay(recording, start, len(chosen), change, reading.columns)
        found[:, list(indices)] = reading.by_copy(parts, residual).T
    return found


def _passes(interventions: Sequence[Intervention], most: int) -> Iterator[tuple[int | None, Sequence[int]]]:
    """Which interventions go into a pass together: those that begin in one block, some at a time."""
    by_start: dict[int | None, list[int]] = {}
    for index, each in enumerate(interventions):
        by_start.setdefault(first_layer(each), []).append(index)
    for start, indices in by_start.items():
        for at in range(0, len(indices), most):
            yield start, indices[at : at + most]
