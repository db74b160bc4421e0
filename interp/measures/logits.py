"""What the next token is: top tokens, the logit difference, and how far the two distributions lie apart."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from interp.divergences import KINDS, divergences, entropy_of_log_probs
from interp.measures.arrays import TokenTexts, Variable, dataset, stack_models, variable
from interp.models import Trace

TOP = 10
DIRECTIONS = ("up", "down")


def target_ids(base: Trace, tuned: Trace) -> Int[Tensor, "prompt 2"]:
    """The tokens whose logits are contrasted at each prompt's last token.

    The prompts' answers, or, without them, tuned's top token and base's likeliest other.
    """
    if base.batch.answer_ids is not None:
        return base.batch.answer_ids
    top = tuned.last_logits.argmax(-1)
    others = base.last_logits.to(top.device).scatter(1, top[:, None], -torch.inf)
    return torch.stack([top, others.argmax(-1)], dim=1)


def logit_difference(
    logits: Float[Tensor, "*batch vocab"], targets: Int[Tensor, "*batch 2"]
) -> Float[Tensor, "*batch"]:
    """Logit of the answer minus logit of the alternative, float64."""
    chosen = logits.double().gather(-1, targets.to(logits.device))
    return chosen[..., 0] - chosen[..., 1]


def next_token(base: Trace, tuned: Trace) -> xr.Dataset:
    """What both models predict after each prompt, and which tokens' probabilities moved most.

    `mover_change` is the change of a token's probability, tuned minus base; where fewer than `TOP` tokens moved in a
    direction, the rest is an empty token with change 0.
    """
    count = min(TOP, base.logits.shape[-1])
    both = [trace.once("next token", partial(_next_token, trace, count)) for trace in (base, tuned)]
    tops, probs, entropies = zip(*both, strict=True)
    change, moved = movers(probs[0], probs[1], count)
    texts = TokenTexts(base.policy.tokenizer)
    mover_texts = texts.of(moved)
    mover_texts[change.numpy() == 0] = ""
    return dataset(
        {
            "top_token": variable(
                "prompt model rank", texts.of(stack_models(*(t.indices for t in tops))), "likeliest next tokens"
            ),
            "top_prob": variable(
                "prompt model rank",
                stack_models(*(t.values.exp() for t in tops)),
                "probability of the next token",
                "probability",
            ),
            "entropy": variable("prompt model", stack_models(*entropies), "entropy of the next token", "nats"),
            "mover_token": variable("prompt direction rank", mover_texts, "tokens whose probability moved most"),
            "mover_change": variable(
                "prompt direction rank", change, "change of the token's probability, tuned minus base", "probability"
            ),
        },
        rank=range(count),
        direction=list(DIRECTIONS),
    )


def _next_token(trace: Trace, count: int) -> tuple[Any, Tensor, Tensor]:
    """The likeliest next tokens, the probabilities of all, and their entropy."""
    log_p = trace.last_logits.cpu().double().log_softmax(-1)
    return log_p.topk(count, dim=-1), log_p.exp(), entropy_of_log_probs(log_p)


def movers(
    base: Float[Tensor, "prompt vocab"], tuned: Float[Tensor, "prompt vocab"], count: int
) -> tuple[Float[Tensor, "prompt direction rank"], Int[Tensor, "prompt direction rank"]]:
    """The tokens whose probability rose most and those whose fell most.

    Args:
        base: probabilities under base.
        tuned: probabilities under tuned.
        count: tokens in each direction.

    Returns:
        (changes, token ids), largest change first; a change is 0 where fewer tokens moved in that direction.
    """
    change = tuned - base
    both = [change.topk(count, dim=-1, largest=up) for up in (True, False)]
    values = torch.stack([both[0].values.clamp_min(0), both[1].values.clamp_max(0)], dim=1)
    return values, torch.stack([found.indices for found in both], dim=1)


def logit_diff(base: Trace, tuned: Trace) -> xr.Dataset:
    """Logit of the answer minus logit of the alternative after each prompt, and the probability of both.

    Without answers there is none, and the Dataset has the two target tokens only.
    """
    targets = target_ids(base, tuned).cpu()
    names = TokenTexts(base.policy.tokenizer).of(targets)
    variables = {
        "answer_token": variable("prompt", names[:, 0], "answer, or tuned's top token"),
        "other_token": variable("prompt", names[:, 1], "alternative, or base's likeliest other"),
    }
    if base.batch.answer_ids is not None:
        differences = [logit_difference(trace.last_logits, targets) for trace in (base, tuned)]
        log_probs = [
            trace.last_logits.double().log_softmax(-1).gather(1, targets.to(trace.logits.device))
            for trace in (base, tuned)
        ]
        stacked = stack_models(*log_probs)
        variables |= {
            "logit_diff": variable("prompt model", stack_models(*differences), "answer minus alternative", "logits"),
            "answer_logprob": variable("prompt model answer", stacked, "log-probability of the answers", "nats"),
            "answer_prob": variable("prompt model answer", stacked.exp(), "probability of the answers", "probability"),
        }
    return dataset(variables)


def kl(base: Trace, tuned: Trace) -> xr.Dataset:
    """KL(tuned || base), JS and entropy of the next-token distributions, prompt and response apart.

    `kl[prompt, pos]` is what the models predict after reading the prompt's tokens 0 to pos. `response_kl[prompt,
    source, draw, step]` is what they predict for response token `step` of the given continuation, so step 0 is the last
    prompt position's prediction.
    """
    batch = base.batch
    real = batch.attention_mask.cpu()
    values = torch.full((len(KINDS), *real.shape), torch.nan, dtype=torch.float64)
    values[:, real] = divergences(tuned.logits, base.logits, real, kept=base.kept)
    values = batch.to("cpu").aligned(values.permute(1, 2, 0)).permute(2, 0, 1)
    lengths = batch.prompt_lengths.cpu()[:, None]
    positions = torch.arange(values.shape[2])
    prompt_width = int(lengths.max())
    prompt = values[:, :, :prompt_width].masked_fill(positions[:prompt_width] >= lengths, torch.nan)
    variables = {
        "kl": variable("prompt pos", prompt[0], "KL(tuned || base) of the next token", "nats"),
        "js": variable("prompt pos", prompt[1], "Jensen-Shannon divergence of the next token", "nats"),
        "position_entropy": variable(
            "prompt model pos", stack_models(prompt[2], prompt[3]), "entropy of the next token by position", "nats"
        ),
    }
    steps = int((batch.lengths - batch.prompt_lengths).max())
    if steps:
        response = response_steps(values, batch.prompt_lengths.cpu(), batch.lengths.cpu(), steps)
        variables |= response_variables(response[:, :, None, None])
    return dataset(variables, pos=range(prompt_width), source=["given"], draw=[0], step=range(steps))


def response_steps(
    values: Float[Tensor, "kind row pos"], prompt_lengths: Int[Tensor, " row"], lengths: Int[Tensor, " row"], steps: int
) -> Float[Tensor, "kind row step"]:
    """Values at the positions that predict response tokens 0, 1, ...; NaN behind the response's end."""
    columns = prompt_lengths[:, None] - 1 + torch.arange(steps)
    inside = torch.arange(steps) < (lengths - prompt_lengths)[:, None]
    picked = values.gather(2, columns.clamp_max(values.shape[2] - 1).expand(len(values), -1, -1))
    return picked.masked_fill(~inside, torch.nan)


def response_variables(values: Float[Tensor, "kind prompt source draw step"]) -> dict[str, Variable]:
    """The variables `response_kl`, `response_js` and `response_entropy` out of what `divergences` gives."""
    dims = "prompt source draw step"
    return {
        "response_kl": variable(dims, values[0], "KL(tuned || base) by response token", "nats"),
        "response_js": variable(dims, values[1], "Jensen-Shannon divergence by response token", "nats"),
        "response_entropy": variable(
            "prompt source draw model step",
            torch.stack([values[2], values[3]], dim=3),
            "entropy of the next token by response token",
            "nats",
        ),
    }
