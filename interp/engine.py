"""Running measures: prompts in, one Dataset a tuned model out, base traced once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import xarray as xr

from interp.collect import Collector
from interp.errors import PromptError, TokenizerMismatch
from interp.hooks import Site
from interp.measures import TRACE_MEASURES, TraceMeasure
from interp.measures.answers import answers
from interp.measures.arrays import TokenTexts, as_variable, strings
from interp.measures.attention import attention_sites, pattern_examples
from interp.measures.completions import completions
from interp.measures.ov import ov_circuits
from interp.measures.shared import mass_outside
from interp.measures.weights import weights
from interp.models import Policy, RewardModel, Trace
from interp.models.offload import AllInMemory, InMemory, TracePair, give_back_free_memory
from interp.progress import Progress, no_progress
from interp.prompts import Batch, Prompts, TokenizedPrompts

EXAMPLES = 4
"""Prompts whose attention is kept to be looked at."""

CHANGED_HEADS = 5
"""Heads whose attention is kept, those whose pattern changed most."""

KEPT_BYTES = 2**25
"""Most that a model's patterns on the examples may take until all prompts say which heads are kept."""

TEXT_MEASURES = ("completions",)
"""Measures that need neither a shared vocabulary nor models of one shape."""


def check_lengths(tokens: TokenizedPrompts, policies: Sequence[Policy]) -> None:
    """Refuse a prompt that does not fit a model's context.

    Raises:
        PromptError: with the prompt's length and the limit.
    """
    rows = min(policy.parts.embedding().shape[0] for policy in policies)
    for index, ids in enumerate(tokens.prompt_ids):
        rest = tokens.response_ids[index] if tokens.response_ids is not None else ()
        if max((*ids, *rest), default=0) >= rows:
            raise TokenizerMismatch(
                f"prompt {index} has the token id {max((*ids, *rest))}, the models have {rows} tokens; pass the"
                " tokenizer that they were trained with (tokenizer=)"
            )
    limits = [policy.context_length for policy in policies if policy.context_length is not None]
    if not limits:
        return
    for index, length in enumerate(tokens.lengths):
        if length > min(limits):
            raise PromptError(f"prompt {index} has {length} tokens, the models read {min(limits)}; shorten it")


@dataclass(frozen=True)
class Settings:
    """How measures are taken.

    Attributes:
        measures: names from `interp.measures.MEASURES`.
        batch_size: prompts a forward pass.
        seed: seed of sampled responses.
        max_new_tokens: longest sampled response.
        reward: scores sampled responses.
        draws: responses sampled from each model to each prompt.
        turns: which models are in memory when.
        progress: told how far the work is.
        own_tokens: the models share no tokens, so that each reads the prompts with its own tokenizer; only measures of
            texts and weights can be taken then.
    """

    measures: tuple[str, ...]
    batch_size: int
    seed: int
    max_new_tokens: int
    reward: RewardModel | None
    draws: int = 1
    turns: InMemory = field(default_factory=AllInMemory)
    progress: Progress = no_progress
    own_tokens: bool = False


def run_measures(base: Policy, others: Sequence[Policy], prompts: Prompts, settings: Settings) -> list[xr.Dataset]:
    """Take the measures of base against each of `others`.

    Activations are freed when the measures of their batch are taken; what these say goes into arrays that hold all
    prompts.

    Args:
        base: base model.
        others: models compared with it.
        prompts: what they read.
        settings: which measures, and how.

    Returns:
        One Dataset for each of `others`.

    Raises:
        PromptError: see `Prompts.tokenize` and `check_lengths`.
    """
    apart = settings.own_tokens or set(settings.measures) <= set(TEXT_MEASURES)
    prompts = prompts.for_models([policy.tokenizer for policy in (base, *others)], apart=apart)
    if prompts.kind == "chat" and prompts.chat_template is None:
        settings = replace(settings, own_tokens=True)
    tokens = prompts.tokenize(base.tokenizer, decoder_start=base.decoder_start)
    check_lengths(tokens, [base, *others])
    give_back_free_memory()
    chosen = [TRACE_MEASURES[name] for name in settings.measures if name in TRACE_MEASURES]
    if chosen and base.parts.vocab is not None:
        chosen.append(TraceMeasure(mass_outside))
    sites: list[Site] = sorted({site for measure in chosen for site in measure.sites(base)})
    starts = range(0, len(tokens) if chosen else 0, settings.batch_size)
    pairs = settings.turns.pairs(base, others, tokens.batches(settings.batch_size) if chosen else (), sites)
    collectors = [Collector(len(tokens)) for _ in others]
    kept: dict[int, TracePair | None] = {}
    for done, pair in enumerate(pairs):
        for measure in chosen:
            collectors[pair.other].add(starts[pair.number], measure.function(pair.base, pair.tuned))
        if pair.number == 0 and "attention" in settings.measures:
            kept[pair.other] = _kept_examples(pair, len(tokens))
        settings.progress("prompts", done + 1, len(starts) * len(others))
        del pair  # or this batch's activations would stay until the next one's are there too
        give_back_free_memory()
    texts = _texts(base, prompts, tokens)
    results: list[xr.Dataset] = []
    of_base: dict[Any, Any] | None = {} if len(others) > 1 and not settings.own_tokens else None
    for index, other in enumerate(others):
        data = _finish(texts, collectors[index], chosen)
        theirs = _own_tokens(prompts, other) if settings.own_tokens else tokens
        results.append(_add_untraced(data, base, other, (tokens, theirs), settings, kept.get(index), of_base))
    return results


def _finish(texts: xr.Dataset, collected: Collector, chosen: Sequence[TraceMeasure]) -> xr.Dataset:
    """Join the texts with the measures' arrays, and take the choices that need all prompts."""
    data = xr.merge([texts, collected.dataset()], join="outer")
    for measure in chosen:
        if measure.finish is not None:
            data = measure.finish(data)
    return data


def _add_untraced(
    data: xr.Dataset,
    base: Policy,
    other: Policy,
    both: tuple[TokenizedPrompts, TokenizedPrompts],
    settings: Settings,
    kept: TracePair | None,
    of_base: dict[Any, Any] | None,
) -> xr.Dataset:
    """Add what no batch of traces gives: weights, attention to look at, whole answers, sampled responses."""
    turns, (tokens, theirs) = settings.turns, both
    if "weights" in settings.measures:
        settings.progress("weights", 0, 1)
        data = xr.merge([data, weights(base, other, between=lambda: turns.only(None), kept=of_base)])
        settings.progress("weights", 1, 1)
    if "attention" in settings.measures:
        heads = _changed_heads(data["pattern_js"])
        examples = kept or _trace_examples(base, other, tokens, heads, turns)
        patterns = pattern_examples(examples.base, examples.tuned, heads)
        patterns = patterns.assign_coords(example=range(patterns.sizes["example"]))
        data = xr.merge([data, patterns, ov_circuits(base, other, heads)])
    if "logit_diff" in settings.measures and tokens.answer_tokens is not None:
        data = xr.merge([data, answers(base, other, tokens, batch_size=settings.batch_size, turns=turns)])
    if "completions" in settings.measures:
        settings.progress("completions", 0, 1)
        drawn = completions(
            base,
            other,
            tokens.prompt_ids,
            encoder_ids=tokens.encoder_ids,
            tuned_ids=(theirs.prompt_ids, theirs.encoder_ids) if settings.own_tokens else None,
            reward=settings.reward,
            draws=settings.draws,
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
            seed=settings.seed,
            turns=turns,
            kept=of_base,
        )
        settings.progress("completions", 1, 1)
        # Given and sampled responses share their variables and differ in `source`.
        data = _fill(data.combine_first(drawn)) if "response_kl" in data else xr.merge([data, drawn])
    return data


def _own_tokens(prompts: Prompts, policy: Policy) -> TokenizedPrompts:
    """The prompts as a model's own tokenizer reads them."""
    tokens = prompts.tokenize(policy.tokenizer, decoder_start=policy.decoder_start)
    check_lengths(tokens, [policy])
    return tokens


def _fill(data: xr.Dataset) -> xr.Dataset:
    """What given and sampled responses do not share: no text, and no token."""
    text = [name for name, values in data.data_vars.items() if values.dtype == object]
    filled = data.assign({name: data[name].fillna("") for name in text})
    return filled.assign(response_id=filled["response_id"].fillna(-1).astype(np.int32))


def _texts(base: Policy, prompts: Prompts, tokens: TokenizedPrompts) -> xr.Dataset:
    count, width = len(prompts), max(map(len, tokens.prompt_ids))
    table = np.full((count, width), "", dtype=object)
    known = TokenTexts(base.tokenizer)
    for row, ids in enumerate(tokens.prompt_ids):
        table[row, : len(ids)] = [known[i] for i in ids]
    data = {"tokens": as_variable(("prompt", "pos"), strings(table), {"long_name": "prompt tokens"})}
    if prompts.continuations is not None:
        given = strings(list(prompts.continuations))
        data["continuation"] = as_variable(("prompt",), given, {"long_name": "given response"})
    groups = np.unique(np.array(prompts.groups, dtype=object), return_inverse=True)[1]
    coords = {
        "prompt": range(count),
        "pos": range(width),
        "text": as_variable(("prompt",), strings(list(tokens.texts)), {"long_name": "prompt"}),
        "group": ("prompt", groups, {"long_name": "prompts that are resampled together"}),
    }
    return xr.Dataset(data, coords=coords, attrs={"remarks": "\n".join(tokens.remarks)})


def _changed_heads(pattern_js: xr.DataArray) -> list[tuple[int, int]]:
    """(layer, head) of the heads whose pattern changed most, in the mean over all prompts."""
    change = pattern_js.mean("prompt").values
    order = np.argsort(-change, axis=None, kind="stable")[:CHANGED_HEADS]
    return [(int(layer), int(head)) for layer, head in zip(*np.unravel_index(order, change.shape), strict=True)]


def _kept_examples(pair: TracePair, prompts: int) -> TracePair | None:
    """The examples' patterns of every head, out of the first batch; None where it lacks some, or they are large.

    Which heads are shown is known only at the end.
    """
    few = slice(0, min(EXAMPLES, prompts))

    def of(trace: Trace) -> Trace:
        batch = trace.batch
        rows = {each.name: getattr(batch, each.name) for each in fields(batch)}
        first = replace(batch, **{name: value[few] for name, value in rows.items() if value is not None})
        patterns = {site: trace[site][few].clone() for site in attention_sites(trace.policy) if site.stack is None}
        return Trace(trace.policy, first, trace.logits[few, :0], patterns)

    size = sum(pair.base[site][few].nbytes for site in attention_sites(pair.base.policy))
    enough = len(pair.base.batch.input_ids) >= few.stop
    return TracePair(0, pair.other, of(pair.base), of(pair.tuned)) if enough and size <= KEPT_BYTES else None


def _trace_examples(
    base: Policy, other: Policy, tokens: TokenizedPrompts, heads: Sequence[tuple[int, int]], turns: InMemory
) -> TracePair:
    """Trace the examples by themselves, for the heads that are shown."""
    batch: Batch = next(replace(tokens, response_ids=None, answer_ids=None).batches(EXAMPLES))
    layers = {layer for layer, _ in heads}
    wanted = [site for site in attention_sites(base) if site.layer in layers and site.stack is None]
    return next(turns.pairs(base, [other], [batch], wanted))
