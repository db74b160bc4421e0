"""Token attributions by leaving a token out, and by one gradient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.models import RewardModel
from interp.prompts import make_batch
from interp.reward.forward import embeddings, pull, score_embedded, tokens_a_pass
from interp.reward.integrate import batches, scores_of
from interp.reward.texts import Texts


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
