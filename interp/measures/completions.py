"""What both models say: sampled responses side by side, and how far the models lie apart along them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor

from interp.divergences import KINDS, divergences
from interp.measures.arrays import (
    MODELS,
    Variable,
    dataset,
    strings,
    variable,
)
from interp.measures.findings import (
    ByPrompt,
    Row,
    Table,
)
from interp.measures.kl import response_steps, response_variables
from interp.measures.measure import Context, Measure, Needs, Section
from interp.models import Policy, RewardModel
from interp.models.offload import KEPT_BYTES, AllInMemory, InMemory
from interp.prompts import Batch, make_batch, response_texts
from interp.sampling import Sampling, end_ids, sample

Ids = Sequence[Sequence[int]]


def completions(
    base: Policy,
    tuned: Policy,
    prompt_ids: Ids,
    *,
    encoder_ids: Ids | None = None,
    tuned_ids: tuple[Ids, Ids | None] | None = None,
    reward: RewardModel | None = None,
    sampling: Sampling = Sampling(),
    batch_size: int = 16,
    seed: int = 0,
    in_memory: InMemory | None = None,
    kept: dict[Any, Any] | None = None,
) -> xr.Dataset:
    """Sample responses to each prompt from each model, with the same random numbers.

    `response_kl[prompt, source, draw, step]` is KL(tuned || base) where response token `step` of the model `source` is
    predicted; its mean over the real steps of tuned's own samples is the KL in nats per response token.
    `response_logprob` is each model's log-probability of that very token, and `response_id` the token, -1 behind the
    response; an end token is part of it.

    Args:
        base: base model.
        tuned: tuned model.
        prompt_ids: token ids of each prompt; for an encoder-decoder model what the decoder reads.
        encoder_ids: for an encoder-decoder model what the encoder reads.
        tuned_ids: both of these as tuned's own tokenizer gives them, where it is another one; the texts and rewards can
            then be compared, but there is no `response_kl`.
        reward: scores prompt and response together, as text.
        sampling: how they are sampled; None samples are 1, and the first is the same however many are asked for.
            Prompts that leave less room in the context get shorter responses.
        batch_size: prompts a forward pass.
        seed: seed of the samples.
        in_memory: which model is in memory when; None: both all the time.
        kept: what base said in an earlier call with the same arguments but `tuned`, which is taken from here and put
            here.
    """
    count, in_memory = len(prompt_ids), in_memory or AllInMemory()
    draws, longest = sampling.samples or 1, sampling.max_new_tokens
    max_new_tokens = min([longest, *(p.context_length for p in (base, tuned) if p.context_length is not None)])
    own = [_repeated(draws, *ids) for ids in ((prompt_ids, encoder_ids), tuned_ids or (prompt_ids, encoder_ids))]
    texts, before, ids, scores, values = [], [], [], [], []
    for policy, prompts in zip((base, tuned), own, strict=True):
        known = None if kept is None or policy is not base else kept.get(max_new_tokens)
        if known is None:
            in_memory.only(policy)
            responses = _responses(policy, prompts, replace(sampling, max_new_tokens=max_new_tokens), batch_size, seed)
            samples, heads, said = response_texts(policy.tokenizer, prompts.before(), responses)
            score = None
            if reward is not None:
                in_memory.only(None)
                score = reward.score(samples)
            known = responses, heads[:count], said, score
            if kept is not None and policy is base:
                kept[max_new_tokens] = known
        responses, heads, said, score = known
        before.append(heads)
        ids.append(_padded(responses, max_new_tokens))
        texts.append(said)
        if score is not None:
            scores.append(score)
        if tuned_ids is None:
            # What base predicts along its own samples is the same for every tuned model.
            own_logits = None if kept is None or policy is not base else kept.setdefault(("along", max_new_tokens), {})
            along = _along((base, tuned), prompts, responses, max_new_tokens, batch_size, in_memory, own_logits)
            values.append(along.unflatten(1, (draws, count)).transpose(1, 2))
    variables = _response_variables(torch.stack(values, dim=2)) if values else {}
    tokens = _by_prompt(np.stack(ids), draws, count)
    variables["response_id"] = variable("prompt source draw step", tokens, "response token, -1 behind the last")
    variables["completion_prompt"] = variable("prompt", strings(before[0]), "what a response follows, as text")
    sampled = _by_prompt(strings(texts), draws, count)
    variables["completion"] = variable("prompt source draw", sampled, "sampled response")
    if reward is not None:
        variables["completion_reward"] = _rewards(reward, _by_prompt(np.stack(scores), draws, count))
    return dataset(variables, source=list(MODELS), draw=range(draws), step=range(max_new_tokens))


def _padded(responses: Ids, steps: int) -> np.ndarray:
    """Token ids, -1 behind a response's last."""
    table = np.full((len(responses), steps), -1, dtype=np.int32)
    for row, ids in enumerate(responses):
        table[row, : len(ids)] = ids
    return table


def _response_variables(values: Float[Tensor, "kind prompt source draw step"]) -> dict[str, Variable]:
    """What `_along` found, by name."""
    dims, log_prob = "prompt source draw model step", torch.stack([*values[len(KINDS) :]], dim=3)
    found = response_variables(values[: len(KINDS)])
    return found | {
        "response_logprob": variable(dims, log_prob, "log-probability of the response token", "nats"),
    }


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

    def before(self) -> Ids:
        """What was read before each response, by the encoder too."""
        read = self.encoder_ids or [()] * len(self.prompt_ids)
        return [[*e, *p] for e, p in zip(read, self.prompt_ids, strict=True)]


def _repeated(draws: int, prompt_ids: Ids, encoder_ids: Ids | None) -> _Repeated:
    return _Repeated(tuple(prompt_ids) * draws, None if encoder_ids is None else tuple(encoder_ids) * draws)


def _shared(ids: Sequence[int], vocab: int) -> list[int]:
    """A response up to its first token that only one of the models has, and that the other cannot read."""
    return list(itertools.takewhile(lambda token: token < vocab, ids))


def _by_prompt(values: np.ndarray, draws: int, count: int) -> np.ndarray:
    """From [source, draw * prompt, ...] to [prompt, source, draw, ...]."""
    return np.moveaxis(values.reshape(len(values), draws, count, *values.shape[2:]), 2, 0)


def _responses(policy: Policy, prompts: _Repeated, sampling: Sampling, batch_size: int, seed: int) -> list[list[int]]:
    ends, limit = end_ids(policy.model, policy.tokenizer), policy.context_length
    max_new_tokens = sampling.max_new_tokens
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
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                indices=chosen,
                end_ids=ends,
                pad_id=0,
                encoder=None if prompts.encoder_ids is None else [prompts.encoder_ids[row] for row in chosen],
            )
            found = zip(chosen, drawn.response_ids.cpu(), drawn.response_mask.cpu(), strict=True)
            for row, ids, mask in found:
                responses[row] = ids[mask].tolist()
    return responses


def _along(
    models: tuple[Policy, Policy],
    prompts: _Repeated,
    responses: Ids,
    steps: int,
    batch_size: int,
    in_memory: InMemory,
    kept: dict[int, Tensor] | None,
) -> Float[Tensor, "kind prompt step"]:
    """Where response tokens are predicted: what `KINDS` names, and each model's log-probability of the token.

    NaN behind the response. `kept` holds base's logits there by batch, taken from an earlier call and put for a later
    one.
    """
    readable = [_shared(ids, models[0].vocab_size) for ids in responses]

    def batches() -> Iterator[Batch]:
        for start in range(0, len(prompts.prompt_ids), batch_size):
            ids, encoder = prompts.rows(start, batch_size)
            yield make_batch(ids, readable[start : start + batch_size], encoder=encoder)

    pieces = []
    for batch, wanted, of_base, of_tuned in _logits_along(models, batches(), in_memory, kept):
        values = torch.full((len(KINDS) + 2, *wanted.shape), torch.nan, dtype=torch.float64)
        if wanted.any():
            targets = batch.input_ids.roll(-1, 1)[wanted]
            every = torch.ones(len(targets), dtype=torch.bool)
            values[:, wanted] = divergences(of_tuned, of_base, every, targets=targets)
        pieces.append(response_steps(values, batch.prompt_lengths, batch.lengths, steps))
    return torch.cat(pieces, dim=1)


def _logits_along(
    models: tuple[Policy, Policy], batches: Iterator[Batch], in_memory: InMemory, kept: dict[int, Tensor] | None
) -> Iterator[tuple[Batch, Bool[Tensor, "batch seq"], Float[Tensor, "row vocab"], Float[Tensor, "row vocab"]]]:
    """Of each batch: its tokens, which of them predict response tokens, and base's and tuned's logits at those."""
    base, tuned = models
    if kept is None or not isinstance(in_memory, AllInMemory):
        for pair in in_memory.pairs(base, [tuned], batches, []):
            batch = pair.base.batch.to("cpu")
            wanted = _predicting(batch)
            first, second = (trace.logits[wanted.to(trace.logits.device)] for trace in (pair.base, pair.tuned))
            yield batch, wanted, first, second
        return
    for number, batch in enumerate(batches):
        wanted = _predicting(batch)
        known = kept.get(number)
        if known is None:
            known = base.trace(batch).logits[wanted.to(base.device)]
            if sum(each.nbytes for each in kept.values()) + known.nbytes <= KEPT_BYTES:
                kept[number] = known
        yield batch, wanted, known, tuned.trace(batch).logits[wanted.to(tuned.device)]


def _predicting(batch: Batch) -> Bool[Tensor, "batch seq"]:
    """Where a response token is predicted: from the prompt's last token to the response's last but one."""
    columns = torch.arange(batch.input_ids.shape[1])
    return (columns >= batch.prompt_lengths[:, None] - 1) & (columns < batch.lengths[:, None] - 1)


def sampled(context: Context) -> xr.Dataset:
    """What `completions` gives of the two models of a comparison."""
    settings, theirs = context.settings, context.tuned_tokens
    return completions(
        context.base,
        context.tuned,
        context.tokens.prompt_ids,
        encoder_ids=context.tokens.encoder_ids,
        tuned_ids=(theirs.prompt_ids, theirs.encoder_ids) if settings.own_tokens else None,
        reward=settings.reward,
        sampling=settings.sampling,
        batch_size=settings.batch_size,
        seed=settings.seed,
        in_memory=settings.in_memory,
        kept=context.of_base,
    )


def findings(table: Table) -> Iterator[Row]:
    """Rewards of the sampled responses; how far the models lie apart along them is said with the divergence."""
    if "completion_reward" in table.data:
        yield from _rewarded(table)


def _rewarded(table: Table) -> Iterator[Row]:
    """Rewards of the sampled responses."""
    rewards = table.data["completion_reward"]
    units, name = str(rewards.attrs.get("units", "")), str(rewards.attrs.get("long_name", "reward"))

    def of(source: str) -> ByPrompt:
        return lambda data: data["completion_reward"].sel(source=source).mean("draw").values

    def change(data: xr.Dataset) -> np.ndarray:
        return of("tuned")(data) - of("base")(data)

    yield table.row("reward", f"{name}: tuned's samples minus base's", change, units)
    yield table.row("reward", f"{name}: base's samples", of("base"), units, of="base")
    yield table.row("reward", f"{name}: tuned's samples", of("tuned"), units, of="tuned")


COMPLETIONS = Measure(
    name="completions",
    title="Completions",
    meaning="What both models say to each prompt, with the same random numbers, and how the reward scores it.",
    formula="continuations sampled from each model; KL(tuned || base) where each of their tokens is predicted",
    units="nats; the reward's own units",
    misleads="A few samples are an anecdote: the figures of the summary are means over prompts.",
    group="Text",
    when="with a reward",
    needs=Needs(samples=1, shared_vocabulary=False, same_shape=False),
    arrays=("completion", "completion_prompt", "completion_reward", "response_id", "response_logprob"),
    whole=sampled,
    findings=findings,
    sections=(
        Section(
            "samples",
            "Sample completions",
            "Completions",
            drawn_by="page",
        ),
    ),
)
