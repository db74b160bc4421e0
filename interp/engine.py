"""Running measures: prompts in, one Dataset a tuned model out, base traced once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from interp.errors import PromptError
from interp.hooks import Site
from interp.measures import TRACE_MEASURES
from interp.measures.arrays import strings
from interp.measures.attention import attention_sites, pattern_examples
from interp.measures.completions import completions
from interp.measures.weights import weights
from interp.models import Policy, RewardModel
from interp.prompts import Batch, Prompts, TokenizedPrompts, token_text

EXAMPLES = 4
"""Prompts whose attention is kept to be looked at."""

CHANGED_HEADS = 5
"""Heads whose attention is kept, those whose pattern changed most."""


def check_lengths(tokens: TokenizedPrompts, policies: Sequence[Policy]) -> None:
    """Refuse a prompt that does not fit a model's context.

    Raises:
        PromptError: with the prompt's length and the limit.
    """
    limits = [policy.context_length for policy in policies if policy.context_length is not None]
    if not limits:
        return
    for index, ids in enumerate(tokens.prompt_ids):
        length = len(ids) + (len(tokens.response_ids[index]) if tokens.response_ids is not None else 0)
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
    """

    measures: tuple[str, ...]
    batch_size: int
    seed: int
    max_new_tokens: int
    reward: RewardModel | None


def run_measures(base: Policy, others: Sequence[Policy], prompts: Prompts, settings: Settings) -> list[xr.Dataset]:
    """Take the measures of base against each of `others`.

    A batch of base's activations is traced once and freed when every other model has been measured against it.

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
    tokens = prompts.tokenize(base.tokenizer)
    check_lengths(tokens, [base, *others])
    chosen = [TRACE_MEASURES[name] for name in settings.measures if name in TRACE_MEASURES]
    sites: list[Site] = sorted({site for measure in chosen for site in measure.sites(base)})
    pieces: list[list[xr.Dataset]] = [[] for _ in others]
    for batch in tokens.batches(settings.batch_size) if chosen else ():
        trace = base.trace(batch, sites)
        for index, other in enumerate(others):
            tuned = other.trace(batch, sites)
            pieces[index].append(xr.merge([measure.function(trace, tuned) for measure in chosen]))
    texts = _texts(base, prompts, tokens)
    traced = [xr.merge([texts, concatenate(piece)], join="outer") if piece else texts for piece in pieces]
    return [_add_untraced(data, base, other, tokens, settings) for data, other in zip(traced, others, strict=True)]


def _add_untraced(
    data: xr.Dataset, base: Policy, other: Policy, tokens: TokenizedPrompts, settings: Settings
) -> xr.Dataset:
    """Add what no batch of traces gives: weights, attention to look at, sampled responses."""
    if "weights" in settings.measures:
        data = xr.merge([data, weights(base, other)])
    if "attention" in settings.measures:
        data = xr.merge([data, _examples(base, other, tokens, data["pattern_js"])])
    if "completions" in settings.measures:
        drawn = completions(
            base,
            other,
            tokens.prompt_ids,
            reward=settings.reward,
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
            seed=settings.seed,
        )
        # Given and sampled responses share their variables and differ in `source`.
        data = _fill_strings(data.combine_first(drawn)) if "response_kl" in data else xr.merge([data, drawn])
    return data


def concatenate(pieces: Sequence[xr.Dataset]) -> xr.Dataset:
    """Put batches one after the other on `prompt`; shorter ones are filled with NaN and empty strings."""
    joined = xr.concat(
        list(pieces), dim="prompt", join="outer", data_vars="minimal", coords="minimal", compat="override"
    )
    return _fill_strings(joined)


def _fill_strings(data: xr.Dataset) -> xr.Dataset:
    text = [name for name, values in data.data_vars.items() if values.dtype == object]
    return data.assign({name: data[name].fillna("") for name in text})


def _texts(base: Policy, prompts: Prompts, tokens: TokenizedPrompts) -> xr.Dataset:
    count, width = len(prompts), max(map(len, tokens.prompt_ids))
    table = np.full((count, width), "", dtype=object)
    for row, ids in enumerate(tokens.prompt_ids):
        table[row, : len(ids)] = [token_text(base.tokenizer, i) for i in ids]
    attrs: dict[str, Any] = {"long_name": "prompt"}
    data = {"tokens": (("prompt", "pos"), strings(table), {"long_name": "prompt tokens"})}
    if prompts.continuations is not None:
        data["continuation"] = (("prompt",), strings(list(prompts.continuations)), {"long_name": "given response"})  # type: ignore[assignment]
    groups = np.unique(np.array(prompts.groups, dtype=object), return_inverse=True)[1]
    coords = {
        "prompt": range(count),
        "pos": range(width),
        "text": ("prompt", strings(list(prompts.texts)), attrs),
        "group": ("prompt", groups, {"long_name": "prompts that are resampled together"}),
    }
    return xr.Dataset(data, coords=coords)


def _examples(base: Policy, other: Policy, tokens: TokenizedPrompts, pattern_js: xr.DataArray) -> xr.Dataset:
    """Trace a few prompts again for the heads that changed most: which they are is known only at the end."""
    change = pattern_js.mean("prompt").values
    order = np.argsort(-change, axis=None, kind="stable")[:CHANGED_HEADS]
    heads = [(int(layer), int(head)) for layer, head in zip(*np.unravel_index(order, change.shape), strict=True)]
    batch: Batch = next(TokenizedPrompts(tokens.prompt_ids, None, None).batches(EXAMPLES))
    wanted = [site for site in attention_sites(base) if site.layer in {layer for layer, _ in heads}]
    return pattern_examples(base.trace(batch, wanted), other.trace(batch, wanted), heads).assign_coords(
        example=range(len(batch.input_ids))
    )
