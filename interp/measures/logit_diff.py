"""How much each model prefers the answer to its alternative: the logit difference, and that of whole answers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from interp.measures.arrays import (
    TokenTexts,
    dataset,
    stack_models,
    strings,
    variable,
)
from interp.measures.findings import (
    Row,
    Table,
    difference,
    of_model,
    same_or,
)
from interp.measures.measure import Context, Measure, Needs, Section
from interp.models import Policy, Trace
from interp.models.offload import AllInMemory, InMemory
from interp.prompts import TokenizedPrompts, make_batch


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
    base: Policy, tuned: Policy, tokens: TokenizedPrompts, *, batch_size: int = 16, in_memory: InMemory | None = None
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
        in_memory: which model is in memory when; None: both all the time.
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
        (in_memory or AllInMemory()).only(policy)
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


def whole_answers(context: Context) -> xr.Dataset:
    """What `answers` gives, where answers have several tokens; nothing otherwise."""
    if context.tokens.answer_tokens is None:
        return xr.Dataset()
    settings = context.settings
    return answers(
        context.base, context.tuned, context.tokens, batch_size=settings.batch_size, in_memory=settings.in_memory
    )


def _pair_name(data: xr.Dataset) -> str:
    return f"{same_or(data['answer_token'], 'answer')} - {same_or(data['other_token'], 'alternative')}"


def _change_and_levels(table: Table, reading: str, what: str, name: str, units: str) -> Iterator[Row]:
    yield table.row(reading, f"{what}: tuned minus base", difference(name), units)
    yield table.row(reading, f"{what}: base", of_model(name, "base"), units, of="base")
    yield table.row(reading, f"{what}: tuned", of_model(name, "tuned"), units, of="tuned")


def findings(table: Table) -> Iterator[Row]:
    """Change and levels of the answers' logit difference, of their probabilities, and of whole answers."""
    if "logit_diff" in table.data:
        yield from _logit_diff(table)
    if "logprob_diff" in table.data:
        yield from _whole_answers(table)


def _logit_diff(table: Table) -> Iterator[Row]:
    """The answers' logit difference and their probabilities."""
    reading = "logit difference"
    yield from _change_and_levels(table, reading, _pair_name(table.data), "logit_diff", "logits")
    for answer, token in (("answer", "answer_token"), ("alternative", "other_token")):
        name = same_or(table.data[token], answer)
        change = difference("answer_prob", answer=answer)
        yield table.row(reading, f"P({name}): tuned minus base", change, "probability")


def _whole_answers(table: Table) -> Iterator[Row]:
    """The difference of the whole answers' log-probabilities, where answers have several tokens."""
    answer, alternative = same_or(table.data["answer_text"], "answer"), same_or(table.data["alternative_text"], "other")
    what = f"log P({answer}) - log P({alternative})"
    yield from _change_and_levels(table, "answers", what, "logprob_diff", "nats")


LOGIT_DIFF = Measure(
    name="logit_diff",
    title="Preference for the answer",
    meaning="How much more each model prefers the answer to its alternative after the prompt.",
    formula=(
        "logit(answer) - logit(alternative) at the last prompt token; of answers of several tokens log P(answer | "
        "prompt) - log P(alternative | prompt)"
    ),
    source="Wang et al. 2022, Interpretability in the Wild",
    units="logits; of whole answers nats",
    misleads=(
        "It says nothing of tokens other than the two; both can rise or fall together, so read the probabilities."
    ),
    group="Next token",
    when="by default",
    needs=Needs(answers=True),
    arrays=(
        "logit_diff",
        "answer_token",
        "other_token",
        "answer_logprob",
        "answer_prob",
        "answer_logprob_sum",
        "logprob_diff",
        "answer_text",
        "alternative_text",
    ),
    per_batch=logit_diff,
    whole=whole_answers,
    findings=findings,
    sections=(
        Section(
            "answers",
            "Preference for the answer, prompt by prompt",
            "Answers",
            alt=(
                "Scatter plot of tuned's preference for the answer against base's, one point a prompt, with the "
                "diagonal."
            ),
            caption=(
                "A point is a prompt: base's preference for the answer over its alternative to the right, tuned's "
                "upward. Above the diagonal tuned prefers the answer more than base does; above the dotted line at "
                "0 it prefers the answer to the alternative."
            ),
            readings=(("logit difference", ""), ("answers", "")),
            optional=True,
        ),
    ),
)
