"""Responses that policies sample, what a reward says of them, and how likely each model finds them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.divergences import kl_divergence, log_probs
from interp.errors import TokenizerMismatch
from interp.metrics import Reward, call_reward
from interp.models import Policy, RewardModel
from interp.prompts import Batch, Prompts, TokenizedPrompts, make_batch, response_texts
from interp.sampling import Sampling, end_ids, sample

Reads = Literal["sample", "output"]

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Responses:
    """What one policy wrote.

    Attributes:
        rows: prompt of each response; the draws follow one another, each of all prompts.
        ids: tokens of each response, its end token included.
        texts: each response as text, without special tokens.
        samples: prompt and response as one text.
        prompts: the prompt of each response as text.
    """

    rows: tuple[int, ...]
    ids: tuple[Ids, ...]
    texts: tuple[str, ...]
    samples: tuple[str, ...]
    prompts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each response, its end token included."""
        return np.array([len(ids) for ids in self.ids], dtype=np.float64)


def read_prompts(policies: Sequence[Policy], prompts: Prompts) -> TokenizedPrompts:
    """The prompts in the tokens that all policies share; their answers and continuations are left out."""
    plain = Prompts(
        prompts.texts,
        bos=prompts.bos,
        groups=prompts.groups,
        decoder_prefixes=prompts.decoder_prefixes,
        chat_template=prompts.chat_template,
    )
    first = policies[0]
    same = plain.for_models([policy.tokenizer for policy in policies])
    return same.tokenize(first.tokenizer, decoder_start=first.decoder_start)


def respond(
    policy: Policy, tokens: TokenizedPrompts, samples: int, sampling: Sampling, *, seed: int, batch_size: int
) -> Responses:
    """Sample responses to every prompt.

    Two policies that are given one seed share their random numbers.

    Args:
        policy: what samples.
        tokens: the prompts.
        samples: responses to each prompt; the first ones are the same however many are asked for.
        sampling: how they are drawn.
        seed: seed of the samples.
        batch_size: prompts a forward pass.

    Raises:
        InterpError: a prompt leaves too little room in the context.
    """
    count = len(tokens)
    rows = [row for _ in range(samples) for row in range(count)]
    ends, ids = end_ids(policy.model, policy.tokenizer), []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        drawn = sample(
            policy.model,
            [tokens.prompt_ids[row] for row in part],
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            seed=seed,
            first_index=start,
            end_ids=ends,
            pad_id=0,
            encoder=None if tokens.encoder_ids is None else [tokens.encoder_ids[row] for row in part],
        )
        kept = zip(drawn.response_ids.cpu(), drawn.response_mask.cpu(), strict=True)
        ids += [tuple(each[mask].tolist()) for each, mask in kept]
    return _as_texts(policy, tokens, rows, ids)


def _as_texts(policy: Policy, tokens: TokenizedPrompts, rows: Sequence[int], ids: Sequence[Ids]) -> Responses:
    """Decoded as in training."""
    before = [[*(tokens.encoder_ids[row] if tokens.encoder_ids else ()), *tokens.prompt_ids[row]] for row in rows]
    samples, prompts, texts = response_texts(policy.tokenizer, before, ids)
    return Responses(tuple(rows), tuple(ids), tuple(texts), tuple(samples), tuple(prompts))


def scores(reward: Reward, responses: Responses, *, reads: Reads = "sample", batch_size: int = 64) -> np.ndarray:
    """The raw score of each response, float64 (see `interp.metrics.call_reward`)."""
    return call_reward(
        reward, responses.samples, responses.prompts, responses.texts, reads=reads, batch_size=batch_size
    )


def reward_words(reward: Reward) -> tuple[str, str]:
    """What a reward is called, and its units."""
    if isinstance(reward, RewardModel):
        return f"reward: {reward.label}", "logits" if reward.output == "logit" else "probability"
    return f"reward: {getattr(reward, '__name__', type(reward).__name__)}", "reward"


def response_log_probs(
    policy: Policy, tokens: TokenizedPrompts, responses: Responses, *, batch_size: int
) -> list[Float[np.ndarray, " step"]]:
    """Log-probability in nats that the policy gives each token of each response, its end token included; float64.

    Raises:
        TokenizerMismatch: a response holds a token that the policy does not predict.
    """
    out: list[np.ndarray] = [np.empty(0)] * len(responses)
    for rows, batch in response_batches(tokens, responses, batch_size):
        logits = policy.trace(batch).logits
        where = _predicts(batch)
        targets = batch.input_ids.roll(-1, 1)[where]
        if int(targets.max()) >= logits.shape[-1]:
            raise TokenizerMismatch(
                f"a response holds the token id {int(targets.max())}, a model predicts {logits.shape[-1]}; compare"
                " models of one vocabulary"
            )
        found = log_probs(logits[where.to(logits.device)]).gather(1, targets.to(logits.device)[:, None])[:, 0]
        for row, each in zip(rows, _by_response(found, responses, rows), strict=True):
            out[row] = each
    return out


def response_kl(
    base: Policy, tuned: Policy, tokens: TokenizedPrompts, responses: Responses, *, batch_size: int
) -> list[Float[np.ndarray, " step"]]:
    """KL(tuned || base) in nats, exact over the vocabulary, where each token of each response is predicted; float64."""
    out: list[np.ndarray] = [np.empty(0)] * len(responses)
    for rows, batch in response_batches(tokens, responses, batch_size):
        where = _predicts(batch)
        first, second = (policy.trace(batch).logits for policy in (tuned, base))
        found = kl_divergence(first[where.to(first.device)], second[where.to(second.device)].to(first.device))
        for row, each in zip(rows, _by_response(found, responses, rows), strict=True):
            out[row] = each
    return out


def response_batches(tokens: TokenizedPrompts, responses: Responses, size: int) -> Iterator[tuple[list[int], Batch]]:
    """Prompts with their responses in batches of like length, and which responses they are."""
    lengths = [len(tokens.prompt_ids[row]) + len(ids) for row, ids in zip(responses.rows, responses.ids, strict=True)]
    order = sorted(range(len(responses)), key=lambda each: lengths[each])
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        rows = [responses.rows[each] for each in chosen]
        encoder = None if tokens.encoder_ids is None else [tokens.encoder_ids[row] for row in rows]
        batch = make_batch(
            [tokens.prompt_ids[row] for row in rows], [responses.ids[i] for i in chosen], encoder=encoder
        )
        yield chosen, batch


def _predicts(batch: Batch) -> Bool[Tensor, "batch seq"]:
    """The columns whose logits predict a response token (batches are padded on the right)."""
    columns = torch.arange(batch.input_ids.shape[1])
    return (columns >= batch.prompt_lengths[:, None] - 1) & (columns < batch.lengths[:, None] - 1)


def _by_response(values: Tensor, responses: Responses, rows: Sequence[int]) -> list[np.ndarray]:
    sizes = [len(responses.ids[row]) for row in rows]
    return [each.double().cpu().numpy() for each in values.split(sizes)]
