"""A reward model run on embeddings of our own in place of its tokens', with gradients back to them.

The token embedding's output is replaced by a hook while the model reads the true ids, mask and positions, so that
nothing which a model derives from ids (the positions of RoBERTa, the last token of a causal classifier) moves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.families import Parts
from interp.hooks import Site, capture
from interp.models import RewardModel
from interp.models.running import at_read_token, forward_inputs
from interp.prompts import Batch
from interp.sampling import evaluating

ROWS = 1024
"""Tokens of one pass with gradients on a CPU: more of them leave the processor's cache, fewer waste calls."""

ROWS_GPU = 16384
"""The same on an accelerator."""


def tokens_a_pass(model: RewardModel) -> int:
    """How many tokens a pass with gradients should hold."""
    return ROWS if model.device.type == "cpu" else ROWS_GPU


def embeddings(model: RewardModel, batch: Batch) -> Float[Tensor, "batch seq d_embed"]:
    """What the token embedding gives for a batch, without gradients."""
    with torch.no_grad():
        found: Tensor = model.parts.embed(batch.input_ids)
    return found


def logits_of(
    model: RewardModel, batch: Batch, embedded: Float[Tensor, "batch seq d_embed"]
) -> Float[Tensor, "batch label"]:
    """All labels' logits of a batch whose token embeddings are `embedded`; gradients pass where they are switched on.

    The module must be in evaluation mode (`at_rest`).
    """
    parts = model.parts
    final = Site("resid_post", parts.n_layers - 1)
    first = parts.head.reads == "first" and parts.layout().norm_of_sum
    with contextlib.ExitStack() as stack:
        stack.enter_context(_replacing(parts.embed, embedded))
        if first:
            stack.enter_context(_only_the_first(parts))
        store = stack.enter_context(capture(parts, [final], keep_graph=True))
        parts.backbone(**forward_inputs(parts, batch))
    return head(parts, store[final][:, 0] if first else at_read_token(parts, batch, store[final]))


@contextlib.contextmanager
def _only_the_first(parts: Parts) -> Iterator[None]:
    """Of the last block compute what follows its attention for the first token alone, from which the score is read.

    Padding is on the right here, so the first column is every row's first token. The projection's one row is added to
    all tokens of the residual, and the norm of the sum then reads the one row of it that is right.
    """

    def first(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][:, :1], *args[1:])

    last = parts.n_layers - 1
    handles = [parts.inside(last, name).register_forward_pre_hook(first) for name in ("o", "attn_norm")]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def head(parts: Parts, residual: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch label"]:
    """Logits of a last residual, as `Parts.logits`, but gradients pass."""
    linear = parts.linear_output(residual)
    found: Tensor = parts.head.after(parts.model, linear) if parts.head.after else linear
    return found


@contextlib.contextmanager
def _replacing(module: nn.Module, value: Tensor) -> Iterator[None]:
    def replace(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        assert output.shape == value.shape
        return value.to(output)

    handle = module.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def at_rest(model: RewardModel) -> Iterator[None]:
    """Evaluation mode meanwhile; afterwards every submodule is in the mode it was in."""
    with evaluating(model.model):
        yield


def pull(
    model: RewardModel,
    batch: Batch,
    at: Float[Tensor, "batch seq d_embed"],
    step: Float[Tensor, "batch seq d_embed"],
    columns: Sequence[Sequence[int]],
) -> tuple[Float[Tensor, "batch label"], list[Float[Tensor, "seq column"]]]:
    """All labels' scores at the embeddings `at`, and gradients dotted with `step` token by token; float64.

    One forward pass for all, and one backward pass for the first column of every row, one for the second, and so on:
    rows may ask for different labels in one pass.

    Args:
        model: the reward model, in evaluation mode.
        batch: the tokens.
        at: embeddings.
        step: what each token's gradient is dotted with.
        columns: for each row the indices of the labels asked for.

    Returns:
        Scores, and for each row its part of the gradient by token and column.
    """
    scores, found = _gradients(model, batch, at, columns, lambda gradient: (gradient * step).sum(-1).double())
    dotted = torch.stack(found, dim=-1) * batch.attention_mask[..., None]
    return scores, [dotted[row, :, : len(each)] for row, each in enumerate(columns)]


def gradients(
    model: RewardModel, batch: Batch, at: Float[Tensor, "batch seq d_embed"], columns: Sequence[int]
) -> tuple[Float[Tensor, "batch label"], Float[Tensor, "batch seq d_embed column"]]:
    """All labels' scores at the embeddings `at`, float64, and the gradients of those of `columns`."""
    scores, found = _gradients(model, batch, at, [columns] * len(at), lambda gradient: gradient)
    return scores, torch.stack(found, dim=-1)


def _gradients(
    model: RewardModel,
    batch: Batch,
    at: Tensor,
    columns: Sequence[Sequence[int]],
    keep: Callable[[Tensor], Tensor],
) -> tuple[Tensor, list[Tensor]]:
    most = max(map(len, columns))
    found = []
    with torch.enable_grad():
        leaf = at.detach().requires_grad_(True)
        scores = model.output_of(logits_of(model, batch, leaf))
        for index in range(most):
            rows = [row for row, each in enumerate(columns) if len(each) > index]
            total = scores[rows, [columns[row][index] for row in rows]].sum()
            found.append(keep(torch.autograd.grad(total, leaf, retain_graph=index + 1 < most)[0]))
    return scores.detach().double(), found


def score_embedded(
    model: RewardModel, batch: Batch, at: Float[Tensor, "batch seq d_embed"], columns: Sequence[int]
) -> Float[Tensor, "batch column"]:
    """Scores at the embeddings `at`, without gradients; float64."""
    with torch.no_grad():
        return model.output_of(logits_of(model, batch, at))[:, list(columns)].double()
