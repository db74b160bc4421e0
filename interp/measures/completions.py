"""What both models say: sampled responses side by side, and how far the models lie apart along them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from interp.measures.arrays import MODELS, dataset, strings, variable
from interp.measures.logits import divergences, response_steps, response_variables
from interp.models import Policy, RewardModel
from interp.prompts import make_batch
from interp.sampling import end_ids, sample

Ids = Sequence[Sequence[int]]


def completions(
    base: Policy,
    tuned: Policy,
    prompt_ids: Ids,
    *,
    reward: RewardModel | None = None,
    max_new_tokens: int = 24,
    batch_size: int = 16,
    seed: int = 0,
) -> xr.Dataset:
    """Sample one response to each prompt from each model, with the same random numbers, at temperature 1.

    `response_kl[prompt, source, draw, step]` is KL(tuned || base) where response token `step` of the model `source` is
    predicted; its mean over the real steps of tuned's own samples is the KL in nats per response token.

    Args:
        base: base model.
        tuned: tuned model.
        prompt_ids: token ids of each prompt.
        reward: scores prompt and response together, as text.
        max_new_tokens: longest response; prompts that leave less room in the context get less.
        batch_size: prompts a forward pass.
        seed: seed of the samples.
    """
    texts, scores, values = [], [], []
    for policy in (base, tuned):
        responses = _responses(policy, prompt_ids, max_new_tokens, batch_size, seed)
        decode = policy.tokenizer.decode
        texts.append([decode(ids, skip_special_tokens=True) for ids in responses])
        whole = [decode([*p, *r], skip_special_tokens=True) for p, r in zip(prompt_ids, responses, strict=True)]
        if reward is not None:
            scores.append(reward.score(whole))
        values.append(_divergences_along(base, tuned, prompt_ids, responses, max_new_tokens, batch_size))
    by_prompt = [[[text] for text in pair] for pair in zip(*texts, strict=True)]
    variables = {
        "completion": variable("prompt source draw", strings(by_prompt), "sampled response"),
        **response_variables(torch.stack(values, dim=2)[:, :, :, None]),
    }
    if reward is not None:
        stacked = np.stack(scores, axis=1)[:, :, None]
        units = "probability" if reward.output == "probability" else "logits"
        variables["completion_reward"] = variable("prompt source draw", stacked, f"reward: {reward.label}", units)
    return dataset(variables, source=list(MODELS), draw=[0], step=range(max_new_tokens))


def _responses(policy: Policy, prompt_ids: Ids, max_new_tokens: int, batch_size: int, seed: int) -> list[list[int]]:
    ends = end_ids(policy.model, policy.tokenizer)
    limit = policy.context_length
    responses: list[list[int]] = []
    for start in range(0, len(prompt_ids), batch_size):
        prompts = prompt_ids[start : start + batch_size]
        room = max_new_tokens if limit is None else min(max_new_tokens, limit - max(map(len, prompts)))
        if room < 1:
            responses += [[] for _ in prompts]
            continue
        drawn = sample(policy.model, prompts, max_new_tokens=room, seed=seed, first_index=start, end_ids=ends, pad_id=0)
        rows = zip(drawn.response_ids.cpu(), drawn.response_mask.cpu(), strict=True)
        responses += [ids[mask].tolist() for ids, mask in rows]
    return responses


def _divergences_along(
    base: Policy, tuned: Policy, prompt_ids: Ids, responses: Ids, steps: int, batch_size: int
) -> Float[Tensor, "kind prompt step"]:
    """KL and JS at the positions that predict the response tokens, NaN behind the response."""
    pieces = []
    for start in range(0, len(prompt_ids), batch_size):
        rows = slice(start, start + batch_size)
        batch = make_batch(prompt_ids[rows], responses[rows])
        logits = [policy.trace(batch).logits for policy in (tuned, base)]
        real = batch.attention_mask
        values = torch.full((2, *real.shape), torch.nan, dtype=torch.float64)
        values[:, real] = torch.stack(divergences(*(each[real.to(each.device)] for each in logits)))
        pieces.append(response_steps(values, batch.prompt_lengths, batch.lengths, steps))
    return torch.cat(pieces, dim=1)
