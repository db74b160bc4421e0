"""What the next token is: top tokens, the logit difference, and how far the two distributions lie apart."""

from __future__ import annotations

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from interp.divergences import js_divergence, kl_divergence
from interp.measures.arrays import Variable, dataset, stack_models, strings, variable
from interp.models import Trace
from interp.prompts import token_text

TOP = 10
_BLOCK = 64  # positions whose distributions are held at once; their arrays stay in the cache


def divergences(
    tuned: Float[Tensor, "row vocab"], base: Float[Tensor, "row vocab"]
) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
    """KL(tuned || base) and JS of rows of logits, in nats, a few rows at a time."""
    kl_rows, js_rows = [], []
    for t, b in zip(tuned.split(_BLOCK), base.to(tuned.device).split(_BLOCK), strict=True):
        kl_rows.append(kl_divergence(t, b))
        js_rows.append(js_divergence(t.softmax(-1), b.softmax(-1)))
    return torch.cat(kl_rows).cpu(), torch.cat(js_rows).cpu()


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
    """The likeliest next tokens of both models after each prompt, and the probability and entropy of the prediction."""
    count = min(TOP, base.logits.shape[-1])
    tokens, probs, entropies = [], [], []
    for trace in (base, tuned):
        log_probs = trace.last_logits.double().log_softmax(-1)
        top = log_probs.topk(count, dim=-1)
        probs.append(top.values.exp())
        texts = [[token_text(base.policy.tokenizer, i) for i in row] for row in top.indices.tolist()]
        tokens.append(texts)
        entropies.append(-torch.special.xlogy(log_probs.exp(), log_probs.exp()).sum(-1))
    by_prompt = [list(pair) for pair in zip(*tokens, strict=True)]
    return dataset(
        {
            "top_token": variable("prompt model rank", strings(by_prompt), "likeliest next tokens"),
            "top_prob": variable(
                "prompt model rank", stack_models(*probs), "probability of the next token", "probability"
            ),
            "entropy": variable("prompt model", stack_models(*entropies), "entropy of the next token", "nats"),
        },
        rank=range(count),
    )


def logit_diff(base: Trace, tuned: Trace) -> xr.Dataset:
    """Logit of the answer minus logit of the alternative after each prompt, and the probability of both.

    Without answers there is none, and the Dataset has the two target tokens only.
    """
    targets = target_ids(base, tuned).cpu()
    names = [[token_text(base.policy.tokenizer, i) for i in row] for row in targets.tolist()]
    variables = {
        "answer_token": variable("prompt", strings([pair[0] for pair in names]), "answer, or tuned's top token"),
        "other_token": variable(
            "prompt", strings([pair[1] for pair in names]), "alternative, or base's likeliest other"
        ),
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
    """KL(tuned || base) and JS of the next-token distributions, prompt and response apart.

    `kl[prompt, pos]` is what the models predict after reading the prompt's tokens 0 to pos. `response_kl[prompt,
    source, draw, step]` is what they predict for response token `step` of the given continuation, so step 0 is the last
    prompt position's prediction.
    """
    batch = base.batch
    logits = [batch.aligned(trace.logits) for trace in (tuned, base)]
    rows, width = logits[0].shape[:2]
    positions = torch.arange(width, device=logits[0].device).expand(rows, width)
    real = positions < batch.lengths[:, None]
    values = torch.full((2, rows, width), torch.nan, dtype=torch.float64)
    values[:, real.cpu()] = torch.stack(divergences(logits[0][real], logits[1][real]))
    lengths = batch.prompt_lengths.cpu()[:, None]
    positions = positions.cpu()
    prompt_width = int(lengths.max())
    prompt = values[:, :, :prompt_width].masked_fill(positions[:, :prompt_width] >= lengths, torch.nan)
    variables = {
        "kl": variable("prompt pos", prompt[0], "KL(tuned || base) of the next token", "nats"),
        "js": variable("prompt pos", prompt[1], "Jensen-Shannon divergence of the next token", "nats"),
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
    """The variables `response_kl` and `response_js` out of both divergences."""
    dims = "prompt source draw step"
    return {
        "response_kl": variable(dims, values[0], "KL(tuned || base) by response token", "nats"),
        "response_js": variable(dims, values[1], "Jensen-Shannon divergence by response token", "nats"),
    }
