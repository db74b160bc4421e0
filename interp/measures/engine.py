"""Running measures: prompts in, one Dataset a tuned model out, base traced once for all of them."""

from __future__ import annotations

import json
from collections.abc import Collection, Hashable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from interp.errors import MeasureError, PromptError, TokenizerMismatch
from interp.measures.arrays import TokenTexts, as_variable, strings
from interp.measures.measure import RECORDS, REMARKS, Context, Measure, Settings
from interp.measures.registry import measures
from interp.models import Policy
from interp.models.offload import give_back_free_memory
from interp.prompts import Prompts, TokenizedPrompts

SINGLE = frozenset({"head", "pos", "rank", "site"})
"""Tables over these dims are kept in float32, as activations are: they are nearly all of a result's memory."""


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


def run_measures(
    base: Policy,
    others: Sequence[Policy],
    prompts: Prompts,
    settings: Settings,
    *,
    of_the_pair: Collection[int] | None = None,
) -> list[xr.Dataset]:
    """Take the measures of base against each of `others`.

    Activations are freed when the measures of their batch are taken; what these say goes into arrays that hold all
    prompts.

    Args:
        base: base model.
        others: models compared with it.
        prompts: what they read.
        settings: which measures, and how.
        of_the_pair: which of `others`, by index, stand for a pair, so that its checkpoints belong to them; the rest are
            control runs and replicates. None: all.

    Returns:
        One Dataset for each of `others`.

    Raises:
        PromptError: see `Prompts.tokenize` and `check_lengths`.
    """
    wanted = [measures()[name] for name in settings.measures]
    apart = settings.own_tokens or not any(measure.needs.shared_vocabulary for measure in wanted)
    prompts = prompts.for_models([policy.tokenizer for policy in (base, *others)], apart=apart)
    if prompts.kind == "chat" and prompts.chat_template is None:
        settings = replace(settings, own_tokens=True)
    tokens = prompts.tokenize(base.tokenizer, decoder_start=base.decoder_start)
    check_lengths(tokens, [base, *others])
    give_back_free_memory()
    traced = [measure for measure in wanted if measure.per_batch is not None]
    if traced and base.parts.vocab is not None:
        traced += [each for each in measures().values() if each.when == "where vocabularies differ"]
    collected, first = _trace_batches(base, others, tokens, traced, settings)
    texts = _texts(base, prompts, tokens)
    of_base: dict[Any, Any] | None = {} if len(others) > 1 and not settings.own_tokens else None
    results: list[xr.Dataset] = []
    for index, other in enumerate(others):
        data = _finished(texts, collected[index], traced)
        theirs = _own_tokens(prompts, other) if settings.own_tokens else tokens
        context = Context(base, other, prompts, tokens, theirs, data, settings, of_base=of_base)
        for measure in (each for each in wanted if each.whole is not None):
            if _to_be_taken(measure, context, of_the_pair is None or index in of_the_pair):
                own = replace(context, data=data, first=first.get((measure.name, index)))
                data = _with(data, _whole(measure, own))
        results.append(data)
    return results


def _trace_batches(
    base: Policy, others: Sequence[Policy], tokens: TokenizedPrompts, traced: Sequence[Measure], settings: Settings
) -> tuple[list[Collector], dict[tuple[str, int], Any]]:
    """What the measures of traces give, and what they keep of the first batch, by measure and model."""
    assert all(measure.per_batch is not None for measure in traced)
    sites = sorted({site for measure in traced for site in measure.needs.sites(base)})
    starts = range(0, len(tokens) if traced else 0, settings.batch_size)
    batches = tokens.batches(settings.batch_size) if traced else ()
    collected = [Collector(len(tokens)) for _ in others]
    first: dict[tuple[str, int], Any] = {}
    for done, pair in enumerate(settings.in_memory.pairs(base, others, batches, sites)):
        for measure in traced:
            if measure.per_batch is not None:
                collected[pair.other].add(starts[pair.number], measure.per_batch(pair.base, pair.tuned))
            if pair.number == 0 and measure.first_batch is not None:
                first[measure.name, pair.other] = measure.first_batch(pair, len(tokens))
        settings.progress("prompts", done + 1, len(starts) * len(others))
        del pair  # or this batch's activations would stay until the next one's are there too
        give_back_free_memory()
    return collected, first


def _finished(texts: xr.Dataset, collected: Collector, traced: Sequence[Measure]) -> xr.Dataset:
    """Join the texts with the measures' arrays, and take the choices that need all prompts."""
    data = xr.merge([texts, collected.dataset()], join="outer")
    for measure in traced:
        if measure.finish is not None:
            data = measure.finish(data)
    return data


def _to_be_taken(measure: Measure, context: Context, of_the_pair: bool) -> bool:
    """Whether a measure of whole models has something to read: checkpoints of this pair, or answers."""
    needs = measure.needs
    return (of_the_pair or not needs.checkpoints) and (context.prompts.answers is not None or not needs.answers)


def _whole(measure: Measure, context: Context) -> xr.Dataset:
    """What a measure of whole models gives; one that joins a reward and cannot be taken of these samples says why."""
    assert measure.whole is not None
    progress = context.settings.progress
    progress(measure.title.lower(), 0, 1)
    try:
        return measure.whole(context)
    except MeasureError as error:
        if not measure.needs.reward:
            raise
        return xr.Dataset(attrs={REMARKS: f"{measure.name} was left out: {error}"})
    finally:
        progress(measure.title.lower(), 1, 1)


def _with(data: xr.Dataset, more: xr.Dataset) -> xr.Dataset:
    """A Dataset with a measure's arrays, remarks and records.

    Given and sampled responses share their variables and differ in `source`.
    """
    remarks = "\n".join(filter(None, (str(each.attrs.get(REMARKS, "")) for each in (data, more))))
    records = json.loads(data.attrs.get(RECORDS, "{}")) | json.loads(more.attrs.get(RECORDS, "{}"))
    if set(data.data_vars) & set(more.data_vars):
        joined = _filled(data.combine_first(more))
    else:
        joined = xr.merge([data, more], combine_attrs="override", compat="override", join="outer")
    attrs = {**data.attrs, REMARKS: remarks, **({RECORDS: json.dumps(records)} if records else {})}
    return joined.drop_attrs(deep=False).assign_attrs(attrs)


def _filled(data: xr.Dataset) -> xr.Dataset:
    """What given and sampled responses do not share: no text, and no token."""
    text = [name for name, values in data.data_vars.items() if values.dtype == object]
    filled = data.assign({name: data[name].fillna("") for name in text})
    return filled.assign(response_id=filled["response_id"].fillna(-1).astype(np.int32))


def _own_tokens(prompts: Prompts, policy: Policy) -> TokenizedPrompts:
    """The prompts as a model's own tokenizer reads them."""
    tokens = prompts.tokenize(policy.tokenizer, decoder_start=policy.decoder_start)
    check_lengths(tokens, [policy])
    return tokens


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


class Collector:
    """One Dataset out of batches, whose first dim is `prompt`.

    Arrays for all prompts are made when a variable first comes, so that nothing is copied again at the end. Where a
    later batch is longer on another dim, the array grows; what a batch does not reach is NaN, or an empty string.

    Args:
        prompts: number of prompts.
    """

    def __init__(self, prompts: int) -> None:
        self._prompts = prompts
        self._values: dict[Hashable, np.ndarray] = {}
        self._described: dict[Hashable, tuple[tuple[Hashable, ...], dict[Any, Any]]] = {}
        self._coords: dict[Hashable, xr.DataArray] = {}
        self._strings: dict[str, int] = {"": 0}
        self._texts: set[Hashable] = set()

    def add(self, first: int, data: xr.Dataset) -> None:
        """Write the variables of a batch whose first prompt is `first`."""
        for name, label in data.coords.items():
            if name != "prompt" and (name not in self._coords or label.size > self._coords[name].size):
                self._coords[name] = label
        for name, array in data.data_vars.items():
            values = np.asarray(array.values)
            if array.dims[0] != "prompt":
                raise ValueError(f"{name} has the dims {array.dims}; the first dim of a measure is prompt")
            self._described.setdefault(name, (array.dims, dict(array.attrs)))
            if values.dtype == object:
                self._texts.add(name)
                values = self._numbered(values)
            if values.dtype == np.float64 and not SINGLE.isdisjoint(map(str, array.dims)):
                values = values.astype(np.float32)
            held = self._room(name, values)
            held[(slice(first, first + len(values)), *map(slice, values.shape[1:]))] = values

    def _numbered(self, texts: np.ndarray) -> np.ndarray:
        """Strings by their number in the order in which they first came, which takes half the room of an object."""
        known = self._strings
        numbers = [known.setdefault(text, len(known)) for text in texts.ravel()]
        return np.array(numbers, dtype=np.int32).reshape(texts.shape)

    def _room(self, name: Hashable, values: np.ndarray) -> np.ndarray:
        """The array of a variable, large enough for `values`."""
        held = self._values.get(name)
        inner = values.shape[1:]
        if held is None:
            held = np.full((self._prompts, *inner), *self._filling(name, values.dtype))
        elif any(size > there for size, there in zip(inner, held.shape[1:], strict=True)):
            larger = np.full((self._prompts, *map(max, inner, held.shape[1:])), *self._filling(name, held.dtype))
            larger[tuple(map(slice, held.shape))] = held
            held = larger
        self._values[name] = held
        return held

    def _filling(self, name: Hashable, dtype: np.dtype) -> tuple[Any, np.dtype]:
        """What stands where no batch wrote, and a dtype that can hold it beside values of `dtype`."""
        if name in self._texts:
            return self._strings[""], dtype
        return np.nan, dtype if np.issubdtype(dtype, np.floating) else np.dtype(np.float64)

    def dataset(self) -> xr.Dataset:
        """Everything that was added; to be called once, as it gives its arrays away."""
        texts = np.array(list(self._strings), dtype=object)
        variables = {}
        for name, (dims, attrs) in self._described.items():
            values = self._values.pop(name)
            variables[name] = as_variable(dims, texts[values] if name in self._texts else values, attrs)
        return xr.Dataset(variables, coords=self._coords)
