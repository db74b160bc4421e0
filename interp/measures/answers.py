"""Whole answers: how likely each model finds an answer of several tokens."""

from __future__ import annotations

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from interp.measures.arrays import dataset, stack_models, strings, variable
from interp.models import Policy, Trace
from interp.models.offload import AllInMemory, InMemory
from interp.prompts import TokenizedPrompts, make_batch


def response_logprobs(trace: Trace) -> Float[Tensor, " batch"]:
    """Summed log-probability in nats of each row's response tokens, float64.

    log P(r_1 ... r_n | prompt) = sum over i of log P(r_i | prompt, r_1 ... r_(i-1)), all read in one pass.
    """
    batch, logits = trace.batch, trace.logits
    steps = torch.arange(batch.input_ids.shape[1], device=logits.device)
    inside = steps < (batch.lengths - batch.prompt_lengths)[:, None]
    rows, offsets = torch.nonzero(inside, as_tuple=True)
    columns = batch.last_prompt[rows] + offsets
    predicted = logits[rows, columns].double().log_softmax(-1)
    each = predicted.gather(-1, batch.input_ids[rows, columns + 1][:, None])[:, 0]
    total = torch.zeros(len(logits), dtype=torch.float64, device=logits.device)
    return total.index_add(0, rows, each)


def answers(
    base: Policy, tuned: Policy, tokens: TokenizedPrompts, *, batch_size: int = 16, turns: InMemory | None = None
) -> xr.Dataset:
    """Log-probability of both answers, summed over their tokens, and its difference.

    `answer_logprob_sum[prompt, model, answer]` is log P(answer | prompt); `logprob_diff[prompt, model]` is log P(answer
    | prompt) - log P(alternative | prompt), which for answers of one token is the logit difference. Tokens that both
    answers share at their beginning count in both sums and cancel in the difference.

    Args:
        base: base model.
        tuned: tuned model.
        tokens: prompts tokenised with `multi_token="sum"`.
        batch_size: sequences a forward pass.
        turns: which model is in memory when; None: both all the time.
    """
    assert tokens.answer_tokens is not None and tokens.answer_texts is not None
    stems = [ids[: len(ids) - shared] for ids, shared in zip(tokens.prompt_ids, tokens.shared, strict=True)]
    encoder = tokens.encoder_ids
    sums: list[list[Tensor]] = [[], []]
    size = max(1, batch_size // 2)  # each prompt is read twice, with either answer
    batches = []
    for start in range(0, len(tokens), size):
        rows = slice(start, start + size)
        pairs = tokens.answer_tokens[rows]
        batches.append(
            make_batch(
                [*stems[rows], *stems[rows]],
                [*(first for first, _ in pairs), *(second for _, second in pairs)],
                encoder=[*encoder[rows], *encoder[rows]] if encoder is not None else None,
            )
        )
    for policy, found in zip((base, tuned), sums, strict=True):
        (turns or AllInMemory()).only(policy)
        for batch in batches:
            found.append(response_logprobs(policy.trace(batch)).cpu().unflatten(0, (2, -1)).T)
    total = stack_models(*(torch.cat(found) for found in sums))
    texts = list(zip(*tokens.answer_texts, strict=True))
    return dataset(
        {
            "answer_logprob_sum": variable(
                "prompt model answer", total, "log-probability of the whole answers, summed over tokens", "nats"
            ),
            "logprob_diff": variable(
                "prompt model", total[..., 0] - total[..., 1], "log-probability of the answer minus alternative", "nats"
            ),
            "answer_text": variable("prompt", strings(texts[0]), "whole answer"),
            "alternative_text": variable("prompt", strings(texts[1]), "whole alternative"),
        }
    )
