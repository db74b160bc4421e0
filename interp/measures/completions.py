"""What both models say: sampled responses side by side, and how far the models lie apart along them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from interp.divergences import KINDS, divergences
from interp.measures.arrays import MODELS, Variable, dataset, strings, variable
from interp.measures.logits import response_steps, response_variables
from interp.models import Policy, RewardModel
from interp.prompts import Batch, make_batch
from interp.sampling import end_ids, sample
from interp.turns import Together, Turns

Ids = Sequence[Sequence[int]]


def completions(
    base: Policy,
    tuned: Policy,
    prompt_ids: Ids,
    *,
    encoder_ids: Ids | None = None,
    tuned_ids: tuple[Ids, Ids | None] | None = None,
    reward: RewardModel | None = None,
    draws: int = 1,
    max_new_tokens: int = 24,
    batch_size: int = 16,
    seed: int = 0,
    turns: Turns | None = None,
    kept: dict[Any, Any] | None = None,
) -> xr.Dataset:
    """Sample responses to each prompt from each model, with the same random numbers, at temperature 1.

    `response_kl[prompt, source, draw, step]` is KL(tuned || base) where response token `step` of the model `source` is
    predicted; its mean over the real steps of tuned's own samples is the KL in nats per response token.

    Args:
        base: base model.
        tuned: tuned model.
        prompt_ids: token ids of each prompt; for an encoder-decoder model what the decoder reads.
        encoder_ids: for an encoder-decoder model what the encoder reads.
        tuned_ids: both of these as tuned's own tokenizer gives them, where it is another one; the texts and rewards can
            then be compared, but there is no `response_kl`.
        reward: scores prompt and response together, as text.
        draws: responses to each prompt; the first is the same however many are asked for.
        max_new_tokens: longest response; prompts that leave less room in the context get less.
        batch_size: prompts a forward pass.
        seed: seed of the samples.
        turns: which model is in memory when; None: both all the time.
        kept: what base said in an earlier call with the same arguments but `tuned`, which is taken from here and put
            here.
    """
    count, turns = len(prompt_ids), turns or Together()
    max_new_tokens = min([max_new_tokens, *(p.context_length for p in (base, tuned) if p.context_length is not None)])
    own = [_repeated(draws, *ids) for ids in ((prompt_ids, encoder_ids), tuned_ids or (prompt_ids, encoder_ids))]
    texts, scores, values = [], [], []
    for policy, prompts in zip((base, tuned), own, strict=True):
        known = None if kept is None or policy is not base else kept.get(max_new_tokens)
        if known is None:
            turns.only(policy)
            responses = _responses(policy, prompts, max_new_tokens, batch_size, seed)
            score = None
            if reward is not None:
                turns.only(None)
                score = reward.score(_decoded(policy, prompts.followed_by(responses)))
            known = responses, _decoded(policy, responses), score
            if kept is not None and policy is base:
                kept[max_new_tokens] = known
        responses, said, score = known
        texts.append(said)
        if score is not None:
            scores.append(score)
        if tuned_ids is None:
            along = _divergences_along((base, tuned), prompts, responses, max_new_tokens, batch_size, turns)
            values.append(along.unflatten(1, (draws, count)).transpose(1, 2))
    variables = response_variables(torch.stack(values, dim=2)) if values else {}
    sampled = _by_prompt(strings(texts), draws, count)
    variables["completion"] = variable("prompt source draw", sampled, "sampled response")
    if reward is not None:
        variables["completion_reward"] = _rewards(reward, _by_prompt(np.stack(scores), draws, count))
    return dataset(variables, source=list(MODELS), draw=range(draws), step=range(max_new_tokens))


def _decoded(policy: Policy, ids: Ids) -> list[str]:
    return [policy.tokenizer.decode(row, skip_special_tokens=True) for row in ids]


def _rewards(reward: RewardModel, scores: np.ndarray) -> Variable:
    units = "logits" if reward.output == "logit" else "probability"
    return variable("prompt source draw", scores, f"reward: {reward.label}", units)


@dataclass(frozen=True)
class _Repeated:
    """Prompts, once for each draw."""

    prompt_ids: Ids
    encoder_ids: Ids | None

    def rows(self, start: int, size: int) -> tuple[Ids, Ids | None]:
        rows = slice(start, start + size)
        return self.prompt_ids[rows], None if self.encoder_ids is None else self.encoder_ids[rows]

    def followed_by(self, responses: Ids) -> Ids:
        """What was read before each response, by the encoder too, and the response."""
        read = self.encoder_ids or [()] * len(self.prompt_ids)
        return [[*e, *p, *r] for e, p, r in zip(read, self.prompt_ids, responses, strict=True)]


def _repeated(draws: int, prompt_ids: Ids, encoder_ids: Ids | None) -> _Repeated:
    return _Repeated(tuple(prompt_ids) * draws, None if encoder_ids is None else tuple(encoder_ids) * draws)


def _shared(ids: Sequence[int], vocab: int) -> list[int]:
    """A response up to its first token that only one of the models has, and that the other cannot read."""
    return list(itertools.takewhile(lambda token: token < vocab, ids))


def _by_prompt(values: np.ndarray, draws: int, count: int) -> np.ndarray:
    """From [source, draw * prompt] to [prompt, source, draw]."""
    return values.reshape(len(values), draws, count).transpose(2, 0, 1)


def _responses(policy: Policy, prompts: _Repeated, max_new_tokens: int, batch_size: int, seed: int) -> list[list[int]]:
    ends, limit = end_ids(policy.model, policy.tokenizer), policy.context_length
    rooms = [max_new_tokens if limit is None else min(max_new_tokens, limit - len(ids)) for ids in prompts.prompt_ids]
    responses: list[list[int]] = [[] for _ in rooms]
    for room in sorted({room for room in rooms if room > 0}):
        # A prompt near the context's end is sampled apart: it would shorten the responses of its whole batch.
        rows = [row for row, own in enumerate(rooms) if own == room]
        for chosen in (rows[start : start + batch_size] for start in range(0, len(rows), batch_size)):
            drawn = sample(
                policy.model,
                [prompts.prompt_ids[row] for row in chosen],
                max_new_tokens=room,
                seed=seed,
                indices=chosen,
                end_ids=ends,
                pad_id=0,
                encoder=None if prompts.encoder_ids is None else [prompts.encoder_ids[row] for row in chosen],
            )
            found = zip(chosen, drawn.response_ids.cpu(), drawn.response_mask.cpu(), strict=True)
            for row, ids, mask in found:
                responses[row] = ids[mask].tolist()
    return responses


def _divergences_along(
    models: tuple[Policy, Policy], prompts: _Repeated, responses: Ids, steps: int, batch_size: int, turns: Turns
) -> Float[Tensor, "kind prompt step"]:
    """What `KINDS` names at the positions that predict the response tokens, NaN behind the response."""
    readable = [_shared(ids, models[0].vocab_size) for ids in responses]

    def batches() -> Iterator[Batch]:
        for start in range(0, len(prompts.prompt_ids), batch_size):
            ids, encoder = prompts.rows(start, batch_size)
            yield make_batch(ids, readable[start : start + batch_size], encoder=encoder)

    pieces = []
    for pair in turns.pairs(models[0], [models[1]], batches(), []):
        batch = pair.base.batch.to("cpu")
        real = batch.attention_mask
        values = torch.full((len(KINDS), *real.shape), torch.nan, dtype=torch.float64)
        values[:, real] = divergences(pair.tuned.logits, pair.base.logits, real)
        pieces.append(response_steps(values, batch.prompt_lengths, batch.lengths, steps))
    return torch.cat(pieces, dim=1)
