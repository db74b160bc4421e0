"""A pass that was recorded, and can be run again from any block on with something changed.

What lies before the change is not computed again: not the earlier blocks, not the attention of the first patched block
where the change comes after it, not the logits that the metric does not read, and of the last block only the tokens
that it reads. The blocks themselves run with the arguments that the model gave them (masks, positions, biases, an
encoder's output), so nothing here knows a family. Before a recording is used, one run of it without a change is
compared with the recorded pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.errors import FidelityError
from interp.families import Parts
from interp.hooks import Edit, Site, capture, patch
from interp.hooks.attention import eager_function, stopping_at_attention
from interp.hooks.shapes import with_first
from interp.metrics import Reading, at_columns, read_columns
from interp.models.running import inference
from interp.patching.recording import Call, Recording, Values, run_to_the_last_residual, substitutions
from interp.patching.targets import Intervention
from interp.prompts import Batch

TOLERANCE = 1e-5
"""Largest difference between a recording and its repetition, as a fraction of the largest value, in float32."""

TOKENS = 1024
"""Most tokens of a pass that carries several interventions; beyond it a processor's caches overflow."""

BEFORE_ATTENTION = ("resid_pre", "q", "k", "v", "pattern", "embed", "pos_embed")


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
    table = torch.full((count, len(interventions)), torch.nan, dtype=torch.float64)
    for start, indices in _passes(interventions, max(1, tokens // batch.input_ids.numel())):
        several = [interventions[index] for index in indices]
        edits = substitutions(several, batch, values)
        if start is None or not short_cut:
            residual = run_whole(parts, batch, len(several), edits, reading.columns)
        else:
            residual = replay(recording, start, len(several), edits, reading.columns)
        table[:, list(indices)] = reading.by_copy(parts, residual).T
    return table


def _passes(interventions: Sequence[Intervention], most: int) -> Iterator[tuple[int | None, Sequence[int]]]:
    """Which interventions go into a pass together: those that begin in one block, some at a time."""
    by_start: dict[int | None, list[int]] = {}
    for index, intervention in enumerate(interventions):
        by_start.setdefault(first_layer(intervention), []).append(index)
    for start, indices in by_start.items():
        for at in range(0, len(indices), most):
            yield start, indices[at : at + most]


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
            here = {site: edit for site, edit in edits.items() if site.layer == layer}
            if layer == last and columns.shape[1] == 1 and recording.one_token_is_enough:
                with contextlib.suppress(NoShortCut):
                    return _last_block(recording, layer, state, copies, here, wide, begins=layer == start)
            state = _block(recording, layer, state, copies, here, begins=layer == start)
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
    args = tuple(_spread(value, copies, count) for value in args)
    return with_first(args, {name: _spread(value, copies, count) for name, value in kwargs.items()}, state)


def _spread(value: Any, copies: int, count: int) -> Any:
    """A block's argument for several copies of the batch: what has a row for each prompt gets one for each copy."""
    if isinstance(value, tuple):
        return tuple(_spread(part, copies, count) for part in value)
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


# What a replay need not compute: the attention of its first block, and all tokens but one of the last block.


class NoShortCut(Exception):
    """The short cut does not hold here; the whole block must run."""


def projects_inside(parts: Parts) -> bool:
    """Whether the output projection is a part of the attention module (in BERT it stands behind it)."""
    return str(parts.path("o")).startswith(f"{parts.path('attn')}.")


@contextlib.contextmanager
def attention_stands_for(parts: Parts, layer: int, result: tuple[Any, ...] | None) -> Iterator[None]:
    """Let the self-attention of a block return `result` without running; None lets it run."""
    if result is None:
        yield
        return
    module: Any = parts.inside(layer, "attn")
    former = vars(module).get("forward")
    module.forward = lambda *_, **__: result
    try:
        yield
    finally:
        if former is None:
            del module.forward
        else:
            module.forward = former


def attention_result(
    parts: Parts, recording: Recording, layer: int, copies: int, edits: Mapping[Site, Edit]
) -> tuple[tuple[Any, ...] | None, Mapping[Site, Edit]]:
    """What the attention of the first block returns, from what it returned when it was recorded, and the edits left.

    Edits of z, result, attn_out and resid_mid go into it; those of the MLP and of an attention to an encoder are left.
    None where an edit comes before the attention, which must run then, or behind a projection outside it.
    """
    if any(site.stack is None and site.name in BEFORE_ATTENTION for site in edits):
        return None, edits
    if not projects_inside(parts) and any(site.stack is None and site.name == "result" for site in edits):
        return None, edits
    by_name = {site.name: edit for site, edit in edits.items() if site.stack is None}
    value = recording.attention[layer][0]
    output = value.repeat(copies, *[1] * (value.ndim - 1))
    done: set[str] = set()
    if "z" in by_name or "result" in by_name:
        output = _with_heads(parts, recording, layer, copies, by_name, output)
        done |= {"z", "result"}
    if parts.path("attn_post_norm") is None and projects_inside(parts):
        if "attn_out" in by_name:
            output = by_name["attn_out"](output)
            done.add("attn_out")
        if "resid_mid" in by_name and not parts.layout().norm_of_sum:
            entering = recording.hidden(layer)
            stream = entering.repeat(copies, *[1] * (entering.ndim - 1))
            output = by_name["resid_mid"](stream + output) - stream
            done.add("resid_mid")
    left = {site: edit for site, edit in edits.items() if site.stack is not None or site.name not in done}
    return (output, *recording.attention[layer][1:]), left


def _with_heads(
    parts: Parts, recording: Recording, layer: int, copies: int, by_name: Mapping[str, Edit], output: Tensor
) -> Tensor:
    """The attention's output when z, or what each head adds to it, is edited."""
    z = recording.z[layer]
    many = z.repeat(copies, 1, 1, 1)
    changed = by_name["z"](many) if "z" in by_name else many
    if not projects_inside(parts):
        return changed.flatten(-2)
    weight = parts.W_O(layer).detach()
    if "z" in by_name:
        moved = (changed - many).flatten(-2)
        output = output + moved.to(weight) @ weight.flatten(0, 1)
    if "result" in by_name:
        by_head = torch.einsum("bshd,hdm->bshm", changed.to(weight), weight)
        output = output + (by_name["result"](by_head) - by_head).sum(2)
    return output


def last_attention(
    parts: Parts,
    layer: int,
    call: tuple[tuple[Any, ...], dict[str, Any]],
    columns: Int[Tensor, "row 1"],
    recorded: tuple[Any, ...],
) -> tuple[Any, ...]:
    """What the self-attention of a block returns for one query a row.

    Raises:
        NoShortCut: the attention is given a mask or a bias of a kind that is not known here.
    """
    module, (args, kwargs) = parts.inside(layer, "attn"), call
    kernel = parts.model.config._attn_implementation  # type: ignore[union-attr]
    if kernel not in ("eager", "sdpa"):
        raise NoShortCut
    query, key, value, mask, options = stopping_at_attention(parts, layer, lambda: parts.block(layer)(*args, **kwargs))
    if any(isinstance(option, Tensor) for option in options.values()):
        raise NoShortCut
    rows = torch.arange(len(query), device=query.device)[:, None]
    one = query.transpose(1, 2)[rows, columns].transpose(1, 2)
    output, _ = eager_function(module)(
        module, one, key, value, _row_of_mask(parts, mask, columns, key.shape[-2], query), **options
    )
    output = output.flatten(-2)
    if projects_inside(parts):
        projection: nn.Module = parts.inside(layer, "o")
        output = projection(output)
    return (output, *recorded[1:])


def _row_of_mask(
    parts: Parts, mask: Tensor | None, columns: Int[Tensor, "row 1"], keys: int, like: Tensor
) -> Float[Tensor, "row 1 1 key"] | None:
    """The mask of one query a row, as a number that is added to the scores."""
    rows = torch.arange(len(columns), device=columns.device)[:, None]
    if mask is None:
        if not parts.family.causal:
            return None
        allowed = torch.arange(keys, device=columns.device) <= columns[..., None, None]
    elif mask.ndim == 4 and mask.shape[0] in (1, len(columns)):
        wide = mask.expand(len(columns), -1, -1, -1)
        allowed = wide.transpose(1, 2)[rows, columns.to(mask.device)].transpose(1, 2)
    else:
        raise NoShortCut
    if allowed.dtype != torch.bool:
        return allowed
    return torch.zeros(allowed.shape, dtype=like.dtype, device=like.device).masked_fill(
        ~allowed, torch.finfo(like.dtype).min
    )
