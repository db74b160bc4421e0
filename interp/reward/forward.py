"""A reward model run on embeddings of our own in place of its tokens', with gradients back to them.

The token embedding's output is replaced by a hook while the model reads the true ids, mask and positions, so that
nothing which a model derives from ids (the positions of RoBERTa, the last token of a causal classifier) moves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from interp.errors import MeasureError
from interp.families import Parts
from interp.hooks import Site, capture
from interp.models import RewardModel
from interp.models.running import at_read_token, forward_inputs
from interp.prompts import Batch, make_batch
from interp.reward.texts import Texts
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


Baseline = Literal["mean", "zero", "mask", "unk"]

BASELINES: tuple[str, ...] = get_args(Baseline)

BASELINE_WORDS = {
    "mean": "the mean of all tokens' embeddings",
    "zero": "a zero embedding",
    "mask": "the mask token",
    "unk": "the unknown token",
    "delete": "the token deleted",
}
"""What each baseline puts in a token's place."""

_CHUNK = 8192  # tokens embedded at once for their mean


def baseline_vector(model: RewardModel, baseline: str) -> Float[Tensor, " d_embed"]:
    """The embedding that takes a token's place.

    Raises:
        MeasureError: there is no such baseline, or the tokenizer has no such token.
    """
    if baseline not in BASELINES:
        raise MeasureError(f"there is no baseline {baseline!r}; take one of {', '.join(BASELINES)}")
    embed = model.parts.embed
    size = next(embed.parameters()).shape[0]
    with torch.no_grad():
        if baseline == "zero":
            return torch.zeros_like(embed(torch.zeros(1, dtype=torch.long, device=model.device))[0])
        if baseline == "mean":
            ids = torch.arange(size, device=model.device)
            total = sum(embed(part).double().sum(0) for part in ids.split(_CHUNK))
            assert isinstance(total, Tensor)
            return (total / size).to(next(embed.parameters()).dtype)
        token = getattr(model.tokenizer, f"{baseline}_token_id", None)
        if token is None or not 0 <= int(token) < size:
            raise MeasureError(f'the tokenizer has no {baseline} token; take baseline="mean" or "zero"')
        found: Tensor = embed(torch.tensor([int(token)], device=model.device))[0]
        return found


def own_tokens(texts: Texts, rows: list[int], batch: Batch) -> Bool[Tensor, "batch seq"]:
    """True at tokens of the texts themselves: neither padding nor added by the tokenizer."""
    own = batch.attention_mask.clone()
    for index, row in enumerate(rows):
        own[index, : len(texts.special[row])] &= ~torch.tensor(texts.special[row], device=own.device)
    return own


def at_baseline(
    embedded: Float[Tensor, "batch seq d_embed"], own: Bool[Tensor, "batch seq"], vector: Float[Tensor, " d_embed"]
) -> Float[Tensor, "batch seq d_embed"]:
    """The embeddings with every token of the text at the baseline."""
    return torch.where(own[..., None], vector, embedded)


def batches(lengths: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Jobs in passes of at most `limit` tokens, padding counted; the jobs of one pass are of about one length."""
    rows: list[int] = []
    for job in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if rows and (len(rows) + 1) * lengths[job] > limit:
            yield rows
            rows = []
        rows.append(job)
    if rows:
        yield rows


def scores_of(model: RewardModel, texts: Texts, columns: Sequence[int]) -> np.ndarray:
    """F at the texts, [text, label]."""
    found = np.empty((len(texts), len(columns)))
    for rows in batches([len(ids) for ids in texts.ids], 4 * tokens_a_pass(model)):
        batch = texts.batch(rows).to(model.device)
        found[rows] = score_embedded(model, batch, embeddings(model, batch), columns).cpu().numpy()
    return found


def leave_one_out(
    model: RewardModel, texts: Texts, columns: Sequence[int], *, vector: Float[Tensor, " d_embed"] | None
) -> list[np.ndarray]:
    """F(x) - F(x without token i), for each of a text's own tokens (Li, Monroe and Jurafsky 2016, equation 3).

    Args:
        model: the reward model, in evaluation mode.
        texts: the texts.
        columns: indices of the labels.
        vector: what takes the token's place, so that no other token moves; None deletes the token.

    Returns:
        For each text an array [token, label], 0 at tokens that the tokenizer added. The only token of a text cannot be
        deleted; it gets F(x) less F of the tokens that the tokenizer adds, or NaN where there are none.
    """
    whole = scores_of(model, texts, columns)
    found = [np.zeros((len(ids), len(columns))) for ids in texts.ids]
    jobs = [(row, place) for row in range(len(texts)) for place, mark in enumerate(texts.special[row]) if not mark]
    if vector is None:
        for row, place in [job for job in jobs if len(texts.ids[job[0]]) == 1]:
            found[row][place] = np.nan
        jobs = [job for job in jobs if len(texts.ids[job[0]]) > 1]
    for chosen in batches([len(texts.ids[row]) for row, _ in jobs], 4 * tokens_a_pass(model)):
        rows, places = [jobs[job][0] for job in chosen], [jobs[job][1] for job in chosen]
        scores = _without(model, texts, rows, places, columns, vector)
        for row, place, values in zip(rows, places, scores, strict=True):
            found[row][place] = whole[row] - values
    return found


def _without(
    model: RewardModel,
    texts: Texts,
    rows: Sequence[int],
    places: Sequence[int],
    columns: Sequence[int],
    vector: Tensor | None,
) -> np.ndarray:
    ids = [list(texts.ids[row]) for row in rows]
    if vector is None:
        ids = [[*each[:place], *each[place + 1 :]] for each, place in zip(ids, places, strict=True)]
    batch = make_batch(ids).to(model.device)
    embedded = embeddings(model, batch)
    if vector is not None:
        embedded[torch.arange(len(rows)), torch.tensor(places)] = vector.to(embedded)
    return score_embedded(model, batch, embedded, columns).cpu().numpy()


def gradient_x_input(model: RewardModel, texts: Texts, columns: Sequence[int]) -> tuple[list[np.ndarray], np.ndarray]:
    """Gradient of F at the text, dotted with each token's embedding (Shrikumar et al. 2017).

    Returns:
        For each text an array [token, label], and F [text, label].
    """
    parts: list[np.ndarray] = [np.empty(0)] * len(texts)
    for rows in batches([len(ids) for ids in texts.ids], tokens_a_pass(model)):
        batch = texts.batch(rows).to(model.device)
        embedded = embeddings(model, batch)
        _, pulled = pull(model, batch, embedded, embedded, [list(columns)] * len(rows))
        for row, values in zip(rows, pulled, strict=True):
            parts[row] = values[: len(texts.ids[row])].cpu().numpy()
    return parts, scores_of(model, texts, columns)
