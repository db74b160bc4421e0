"""A pass that was recorded, and can be run again from any block on with something changed.

What lies before the change is not computed again: not the earlier blocks, not the attention of the first patched block
where the change comes after it, not the logits that the metric does not read, and of the last block only the tokens
that it reads. The blocks themselves run with the arguments that the model gave them (masks, positions, biases, an
encoder's output), so nothing here knows a family. Before a recording is used, one run of it without a change is
compared with the recorded pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import FidelityError
from interp.families import Parts
from interp.hooks import Edit, Site, capture, patch
from interp.hooks.shapes import with_first
from interp.metrics import at_columns, read_columns
from interp.models.running import inference
from interp.patching.recording import Call, Recording, run_to_the_last_residual
from interp.patching.short_cuts import NoShortCut, attention_result, attention_stands_for, last_attention
from interp.prompts import Batch

TOLERANCE = 1e-5
"""Largest difference between a recording and its repetition, as a fraction of the largest value, in float32."""


def run_whole(
    parts: Parts, batch: Batch, copies: int, edits: Mapping[Site, Edit], columns: Int[Tensor, "batch column"]
) -> Float[Tensor, "row column d_model"]:
    """Last residuals of a whole pass over `copies` of a batch, one after the other, under `edits`."""
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
    many = replace(batch, **{name: value.repeat(copies, *[1] * (value.ndim - 1)) for name, value in tensors.items()})
    with patch(parts, edits):
        final, _ = run_to_the_last_residual(parts, many)
    return at_columns(final, columns.repeat(copies, 1))


def replay(
    recording: Recording,
    start: int,
    copies: int,
    edits: Mapping[Site, Edit],
    columns: Int[Tensor, "batch column"],
) -> Float[Tensor, "row column d_model"]:
    """Last residuals of a pass that begins at block `start` with what entered it, over `copies` of the batch.

    Args:
        recording: the pass.
        start: no edit is at a block before it.
        copies: rows are the batch's, `copies` times one after the other.
        edits: by site, as `interp.hooks.patch` takes them.
        columns: where the last residual is wanted, for each row of the batch.
    """
    parts, last = recording.parts, recording.parts.n_layers - 1
    wide = columns.repeat(copies, 1)
    with inference(parts.model):
        state = _repeat(recording.hidden(start), copies, len(recording.batch.input_ids))
        for layer in range(start, parts.n_layers):
            own = {site: edit for site, edit in edits.items() if site.layer == layer}
            if layer == last and columns.shape[1] == 1 and recording.one_token_is_enough:
                with contextlib.suppress(NoShortCut):
                    return _last_block(recording, layer, state, copies, own, wide, begins=layer == start)
            state = _block(recording, layer, state, copies, own, begins=layer == start)
    return at_columns(state, wide)


def _block(
    recording: Recording, layer: int, state: Tensor, copies: int, edits: Mapping[Site, Edit], *, begins: bool
) -> Tensor:
    """One block on all tokens; the attention of the first one is not computed again where the edits come after it."""
    parts, result = recording.parts, None
    if begins and edits and recording.attention_can_stand:
        result, edits = attention_result(parts, recording, layer, copies, edits)
    args, kwargs = _arguments(recording, layer, state, copies)
    with patch(parts, edits), attention_stands_for(parts, layer, result):
        return _output(parts, layer, args, kwargs)


def _last_block(
    recording: Recording,
    layer: int,
    state: Tensor,
    copies: int,
    edits: Mapping[Site, Edit],
    columns: Int[Tensor, "row 1"],
    *,
    begins: bool,
) -> Float[Tensor, "row 1 d_model"]:
    """The last block, at one token a row.

    Raises:
        NoShortCut: an edit is inside the block, or its attention takes something that is not known here.
    """
    parts, result = recording.parts, None
    args, kwargs = _arguments(recording, layer, state, copies)
    if begins and edits:
        result, edits = attention_result(parts, recording, layer, copies, edits)
        if edits or result is None:
            raise NoShortCut
        result = (at_columns(result[0], columns), *result[1:])
    elif edits:
        raise NoShortCut
    else:
        result = last_attention(recording.parts, layer, (args, kwargs), columns, recording.attention[layer])
    args, kwargs = with_first(args, kwargs, at_columns(state, columns))
    with attention_stands_for(parts, layer, result):
        return _output(parts, layer, args, kwargs)


def _arguments(recording: Recording, layer: int, state: Tensor, copies: int) -> Call:
    args, kwargs = recording.calls[layer]
    count = len(recording.batch.input_ids)
    args = tuple(_spread(each, copies, count) for each in args)
    return with_first(args, {name: _spread(each, copies, count) for name, each in kwargs.items()}, state)


def _spread(value: Any, copies: int, count: int) -> Any:
    """A block's argument for several copies of the batch: what has a row for each prompt gets one for each copy."""
    if isinstance(value, tuple):
        return tuple(_spread(each, copies, count) for each in value)
    return _repeat(value, copies, count) if isinstance(value, Tensor) else value


def _repeat(value: Tensor, copies: int, count: int) -> Tensor:
    """Rows of prompts (of BLOOM's position bias, of prompts and heads) once for each copy; others are shared by all."""
    if copies == 1 or value.ndim < 2 or value.shape[0] % count:
        return value
    return value.repeat(copies, *[1] * (value.ndim - 1))


def _output(parts: Parts, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What leaves a block; of the last one the residual that is read, which some families norm inside the block."""
    if layer == parts.n_layers - 1 and parts.layout().norm_of_sum:
        final = Site("resid_post", layer)
        with capture(parts, [final]) as store:
            parts.block(layer)(*args, **kwargs)
        return store[final]
    output = parts.block(layer)(*args, **kwargs)
    value: Tensor = output[0] if isinstance(output, tuple) else output
    return value


def verify(recording: Recording) -> None:
    """Run a recording again from its first block, without a change, and compare the last residuals.

    Raises:
        FidelityError: they differ.
    """
    last = read_columns(recording.parts, recording.batch)
    again, expected = replay(recording, 0, 2, {}, last), recording.at(last).repeat(2, 1, 1)
    error = float((again - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    limit = max(TOLERANCE, 20 * torch.finfo(expected.dtype).eps)
    if not error <= limit:
        raise FidelityError(
            f"a {recording.parts.family.name} model's blocks, run again by themselves, miss its own pass by {error:.1e}"
            f" of its size (limit {limit:.0e}); pass short_cut=False, which runs the whole model for every patch"
        )
