"""What a replay need not compute: the attention of its first block, and all tokens but one of the last block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.families import Parts
from interp.hooks import Edit, Site
from interp.hooks.attention import eager_function, stopping_at_attention
from interp.patching.recording import Recording

BEFORE_ATTENTION = ("resid_pre", "q", "k", "v", "pattern", "embed", "pos_embed")


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
    own = vars(module).get("forward")
    module.forward = lambda *_, **__: result
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


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
    own = {site.name: edit for site, edit in edits.items() if site.stack is None}
    value = recording.attention[layer][0]
    output = value.repeat(copies, *[1] * (value.ndim - 1))
    done: set[str] = set()
    if "z" in own or "result" in own:
        output = _with_heads(parts, recording, layer, copies, own, output)
        done |= {"z", "result"}
    if parts.path("attn_post_norm") is None and projects_inside(parts):
        if "attn_out" in own:
            output = own["attn_out"](output)
            done.add("attn_out")
        if "resid_mid" in own and not parts.layout().norm_of_sum:
            entering = recording.hidden(layer)
            stream = entering.repeat(copies, *[1] * (entering.ndim - 1))
            output = own["resid_mid"](stream + output) - stream
            done.add("resid_mid")
    left = {site: edit for site, edit in edits.items() if site.stack is not None or site.name not in done}
    return (output, *recording.attention[layer][1:]), left


def _with_heads(
    parts: Parts, recording: Recording, layer: int, copies: int, own: Mapping[str, Edit], output: Tensor
) -> Tensor:
    """The attention's output when z, or what each head adds to it, is edited."""
    z = recording.z[layer]
    many = z.repeat(copies, 1, 1, 1)
    changed = own["z"](many) if "z" in own else many
    if not projects_inside(parts):
        return changed.flatten(-2)
    weight = parts.W_O(layer).detach()
    if "z" in own:
        moved = (changed - many).flatten(-2)
        output = output + moved.to(weight) @ weight.flatten(0, 1)
    if "result" in own:
        by_head = torch.einsum("bshd,hdm->bshm", changed.to(weight), weight)
        output = output + (own["result"](by_head) - by_head).sum(2)
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
    if any(isinstance(each, Tensor) for each in options.values()):
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
