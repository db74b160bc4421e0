"""The token join: does a token's reward attribution tell how far the tuned model's probability of it moved?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import xarray as xr

from interp.errors import MeasureError, PromptError, renamed
from interp.measures.arrays import dataset, strings, variable
from interp.models import Policy, Source, as_policy
from interp.prompts import TokenizedPrompts, check_same_vocabulary, encode
from interp.result import Result, number
from interp.reward.fixed_effects import centred, permutations_within, unit_ranks
from interp.reward.responses import Responses, response_log_probs
from interp.reward.texts import check_texts
from interp.stats import bootstrap_mean, permutation_p

Span = tuple[int, int]

Valued = Sequence[tuple[int, int, float]]
"""Characters [start, end) of a text, and what is attributed to them."""

_NAN = float("nan")


@dataclass(frozen=True, eq=False, repr=False)
class TokenJoin(Result):
    """Reward attribution and log-ratio on the same characters (see `token_join`).

    Attributes:
        dataset: by [prompt, token] `start`, `end` (characters; -1 behind the last), `piece`, `attribution`,
            `log_ratio` and `surprise`; for each of `READINGS` the rank correlation by prompt, its mean with bounds,
            the pooled one, and their nulls by permutation.
    """

    kind: ClassVar[str] = "token_join"
    title: ClassVar[str] = "Token join"

    def summary(self) -> pd.DataFrame:
        """The findings, one a row, with their intervals and what permuted attributions give."""
        return token_findings(self.dataset)

    def headline(self) -> str:
        """How many texts, and the rank correlation within them."""
        value = float(self.dataset["signed_spearman_mean"])
        return (
            f"{self.dataset.sizes['prompt']} texts: a token's reward attribution and its log-ratio have the rank"
            f" correlation {number(value)}, mean within texts."
        )

    def notes(self) -> list[str]:
        """What the null is, and where the coloured texts are."""
        permutations = self.dataset.attrs["permutations"]
        return [
            f"null: {permutations} permutations of the attributions within texts",
            '.report("tokens.html") colours the texts',
        ]


@renamed(permutations="pass draws=...")
def token_join(
    base: Source | Policy,
    tuned: Source | Policy,
    texts: Sequence[str],
    attribution: Any,
    *,
    label: str | None = None,
    starts: Sequence[int] | None = None,
    groups: Sequence[str] | None = None,
    draws: int = 999,
    seed: int = 0,
    batch_size: int = 16,
) -> TokenJoin:
    """Lay a reward's token attribution over what the tuning did to the same tokens' probability.

    The policy and the reward model cut a text differently, so both are summed over the smallest spans of characters
    that no token of either straddles: sums of attributions are attributions, sums of log-ratios are log-ratios of the
    longer piece. The log-ratio of a token is log pi_tuned(token | before) - log pi_base(token | before). A span that
    begins with the very first token, where there is no BOS before it, has none and is left out.

    The rank correlation is Spearman's within each text, in the mean over texts, and pooled over all spans. The null
    permutes the attributions among the spans of each text. Three readings: with signs; of sizes; of sizes with the
    rank of base's surprise (-log pi_base) taken out of both, as rare words have large attributions and large
    log-ratios whatever the tuning did. It is a correlation over tokens: PPO rewards whole responses, nothing makes it
    move the very tokens that the reward model reads, and a policy may raise a reward by words that stand before them.

    Args:
        base: base model, causal.
        tuned: tuned model, of the same vocabulary.
        texts: texts, such as sampled responses with their prompts.
        attribution: for each text (start, end, value) of characters, or what has a `.dataset` with `start`, `end` and
            `token_attribution`, one row a text.
        label: which label's attribution, where the dataset has several.
        starts: character at which each response begins; spans before it are left out. None: none is.
        groups: texts of one group are resampled together. None: each is its own.
        draws: permutations of the null.
        seed: seed of intervals and null.
        batch_size: texts a forward pass.

    Raises:
        PromptError: a text is empty or too long, or there are not as many attributions, starts or groups as texts.
        MeasureError: a span lies outside its text, a label is missing, or the model is no causal one.
        TokenizerMismatch: the models do not share one vocabulary.
    """
    said = check_texts(texts)
    first, second = as_policy(base), as_policy(tuned)
    check_same_vocabulary(first.tokenizer, second.tokenizer)
    spans = spans_of(attribution, label=label)
    for name, given in (("attributions", spans), ("starts", starts), ("groups", groups)):
        if given is not None and len(given) != len(said):
            raise PromptError(f"{len(said)} texts but {len(given)} {name}; give one for each text")
    _check_spans(said, spans)
    moved = _policy_spans(first, second, said, batch_size)
    names = list(groups) if groups is not None else [str(index) for index in range(len(said))]
    owners = np.unique(np.asarray(names), return_inverse=True)[1]
    return join_spans(said, spans, moved, starts=starts, groups=owners, draws=draws, seed=seed)


def join_spans(
    texts: Sequence[str],
    attributed: Sequence[Valued],
    moved: Sequence[Sequence[tuple[Any, ...]]],
    *,
    starts: Sequence[int] | None = None,
    groups: np.ndarray,
    draws: int = 999,
    seed: int = 0,
) -> TokenJoin:
    """Join attributions and log-ratios that are there already (see `token_join`).

    Args:
        texts: the texts.
        attributed: for each text (start, end, attribution) of the reward model's tokens.
        moved: for each text (start, end, log-ratio, base's surprise) of the policies' tokens.
        starts: character at which each response begins.
        groups: group of each text.
        draws: permutations of the null.
        seed: seed of intervals and null.

    Raises:
        MeasureError: there is no text of three spans or more.
    """
    rows = []
    for index, text in enumerate(texts):
        begin = starts[index] if starts is not None else 0
        rows.append([row for row in _joined(text, attributed[index], moved[index]) if row[0] >= begin])
    return correlate(texts, rows, groups, draws, seed)


def spans_of(attribution: Any, *, label: str | None = None) -> list[Valued]:
    """Character spans with their attribution, one list a text, out of an attribution's dataset or plain lists.

    Raises:
        MeasureError: the dataset lacks a variable or the label, or has several labels and none is named.
    """
    data = getattr(attribution, "dataset", attribution)
    if not isinstance(data, xr.Dataset):
        return [[(int(a), int(b), float(value)) for a, b, value in row] for row in attribution]
    missing = [name for name in ("start", "end", "token_attribution") if name not in data]
    if missing:
        raise MeasureError(f"the attribution's dataset lacks {', '.join(missing)}; pass (start, end, value) lists")
    values = data["token_attribution"]
    for dim in [d for d in values.dims if d not in data["start"].dims]:
        names = [str(each) for each in values[dim].values]
        if len(names) > 1 and (dim != "label" or label is None):
            raise MeasureError(f"the attribution has the {dim}s {', '.join(names)}; select one of them")
        if dim == "label" and label is not None and label not in names:
            raise MeasureError(f"the attribution has no label {label!r}, but {', '.join(names)}; pass one of them")
        values = values.isel({dim: names.index(label) if dim == "label" and label is not None else 0})
    text, token = data["start"].dims
    columns = [each.transpose(text, token).values for each in (data["start"], data["end"], values)]
    return [
        [(int(a), int(b), float(v)) for a, b, v in zip(*row, strict=True) if np.isfinite(v) and b > a]
        for row in zip(*columns, strict=True)
    ]


def _check_spans(texts: Sequence[str], spans: Sequence[Valued]) -> None:
    for index, (text, row) in enumerate(zip(texts, spans, strict=True)):
        for start, end, value in row:
            if not 0 <= start <= end <= len(text):
                raise MeasureError(f"text {index} has {len(text)} characters, an attribution spans {start} to {end}")
            if not np.isfinite(value):
                raise MeasureError(f"text {index}: the attribution of characters {start} to {end} is {value}; drop it")


def _policy_spans(first: Policy, second: Policy, texts: Sequence[str], batch_size: int) -> list[list[tuple[Any, ...]]]:
    """For each text (start, end, log-ratio, base's surprise) of every token; NaN for one that nothing stands before."""
    tokenizer = first.tokenizer
    if first.decoder_start is not None:
        raise MeasureError("the token join reads texts by causal models; of an encoder-decoder use implicit_reward")
    if not getattr(tokenizer, "is_fast", False):
        raise MeasureError(
            f"the tokenizer {type(tokenizer).__name__} does not tell which characters a token covers; load the policy"
            " with a tokenizer of the tokenizers library (a tokenizer.json)"
        )
    limits = [policy.context_length for policy in (first, second) if policy.context_length is not None]
    ids, offsets = [], []
    for index, text in enumerate(texts):
        own = encode(tokenizer, text)
        read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        found = [(int(a), int(b)) for a, b in read["offset_mapping"]]
        if limits and len(own) > min(limits):
            raise PromptError(f"text {index} has {len(own)} tokens, the models read {min(limits)}; shorten it")
        ids.append(own)
        offsets.append([*[(0, 0)] * (len(own) - len(found)), *found])
    heads = TokenizedPrompts(tuple((own[0],) for own in ids), None, None)
    blank = ("",) * len(ids)
    said = Responses(tuple(range(len(ids))), tuple(tuple(own[1:]) for own in ids), blank, blank, blank)
    before, after = (response_log_probs(policy, heads, said, batch_size=batch_size) for policy in (first, second))
    return [
        [(*places[0], _NAN, _NAN)]
        + [(*span, float(t - b), float(-b)) for span, b, t in zip(places[1:], low, high, strict=True)]
        for places, low, high in zip(offsets, before, after, strict=True)
    ]


def _joined(text: str, first: Valued, second: Sequence[tuple[Any, ...]]) -> list[tuple[int, int, float, float, float]]:
    """(start, end, attribution, log-ratio, surprise) of the spans in which both have tokens, all of them predicted."""
    out = []
    for start, end, ours, theirs in common_spans(text, [s[:2] for s in first], [(s[0], s[1]) for s in second]):
        if ours and theirs:
            total = [sum(second[i][column] for i in theirs) for column in (2, 3)]
            if np.isfinite(total[0]):
                out.append((start, end, sum(first[i][2] for i in ours), total[0], total[1]))
    return out


def common_spans(
    text: str, first: Sequence[Span], second: Sequence[Span]
) -> list[tuple[int, int, list[int], list[int]]]:
    """The smallest spans of characters that no token of two tokenizers straddles.

    White space at a token's ends counts for neither, as one tokenizer puts it before a word and another drops it; a
    token of nothing else is left out.

    Args:
        text: the text.
        first: characters [start, end) of one tokenizer's tokens.
        second: those of the other's.

    Returns:
        start, end, and which tokens of each lie in it, from left to right.
    """
    items = []
    for side, spans in enumerate((first, second)):
        for index, (start, end) in enumerate(spans):
            inside = text[start:end]
            low, high = start + len(inside) - len(inside.lstrip()), start + len(inside.rstrip())
            if low < high:
                items.append((low, high, side, index))
    out: list[tuple[int, int, list[int], list[int]]] = []
    for low, high, side, index in sorted(items):
        if not out or low >= out[-1][1]:
            out.append((low, high, [], []))
        start, end, *members = out[-1]
        members[side].append(index)
        out[-1] = (start, max(end, high), members[0], members[1])
    return out


def correlate(
    texts: Sequence[str],
    rows: Sequence[Sequence[tuple[int, int, float, float, float]]],
    groups: np.ndarray,
    draws: int = 999,
    seed: int = 0,
) -> TokenJoin:
    """Rank correlations of attributions and log-ratios that are there already (see `token_join`).

    Args:
        texts: the texts.
        rows: for each text (start, end, attribution, log-ratio, base's surprise) of its spans.
        groups: group of each text.
        draws: permutations of the null.
        seed: seed of intervals and null.

    Raises:
        MeasureError: there is no text of three spans or more, or no permutation is asked for.
    """
    if draws < 1:
        raise MeasureError(f"draws must be at least 1, not {draws}; 999 give p down to 0.001")
    if max(map(len, rows), default=0) < 3:
        raise MeasureError("a rank correlation needs three tokens or more, and no text has them; give longer texts")
    index = np.repeat(np.arange(len(rows)), list(map(len, rows)))
    attributions, ratios, surprises = np.array([row[2:] for each in rows for row in each]).T
    found: dict[str, Any] = {}
    for name, (x, y) in _ranked(attributions, ratios, surprises, index).items():
        found |= _reading(name, x, y, index, groups, draws, seed)
    width = max(map(len, rows))
    places = np.full((3, len(rows), width), np.nan)
    bounds, pieces = np.full((2, len(rows), width), -1), np.full((len(rows), width), "", dtype=object)
    for place, each in enumerate(rows):
        for column, (start, end, *values) in enumerate(each):
            bounds[:, place, column], places[:, place, column] = (start, end), values
            pieces[place, column] = texts[place][start:end]
    dims = "prompt token"
    found |= {
        "text": variable("prompt", strings(list(texts)), "text"),
        "start": variable(dims, bounds[0], "first character"),
        "end": variable(dims, bounds[1], "character behind the last"),
        "piece": variable(dims, strings(pieces), "span that no token of either tokenizer straddles"),
        "attribution": variable(dims, places[0], "reward attribution", "reward"),
        "log_ratio": variable(dims, places[1], "log pi_tuned - log pi_base", "nats"),
        "surprise": variable(dims, places[2], "-log pi_base", "nats"),
    }
    data = dataset(found, prompt=range(len(rows)), token=range(width))
    data.attrs.update(permutations=draws, seed=seed)
    return TokenJoin(data.assign_coords(group=("prompt", groups)))


def _ranked(
    attribution: np.ndarray, ratio: np.ndarray, surprise: np.ndarray, index: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Two columns for each of `READINGS`, whose ranks are correlated."""
    sizes = np.abs(attribution), np.abs(ratio)
    held = unit_ranks(surprise, index)
    held = np.where(np.isfinite(held), held, 0.0)
    free = []
    for values in sizes:
        ranks = unit_ranks(values, index)
        left = ranks - held * np.bincount(index, weights=np.nan_to_num(ranks * held))[index]
        free.append(left)
    return {"signed": (attribution, ratio), "size": sizes, "size_given_surprise": (free[0], free[1])}


def _unit(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Values centred and of length 1 in every group; NaN where all are equal."""
    own = centred(values, index)
    length = np.sqrt(np.bincount(index, weights=own**2))
    length[~(length > 1e-9)] = np.nan
    return np.asarray(own / length[index])


def _reading(
    name: str, x: np.ndarray, y: np.ndarray, index: np.ndarray, groups: np.ndarray, count: int, seed: int
) -> dict[str, Any]:
    """Mean over texts and pooled correlation, with interval and null."""
    # What is left of ranks once another's are taken out is no rank any more, and correlated as it is.
    partial = name == "size_given_surprise"
    within = [(_unit if partial else unit_ranks)(values, index) for values in (x, y)]
    whole = np.zeros(len(index), dtype=int)
    known = np.isfinite(x) & np.isfinite(y)
    pooled = [_unit(np.where(known, v, 0.0), whole) if partial else unit_ranks(v, whole) for v in (x, y)]
    by_text = np.full(len(groups), np.nan)
    by_text[: index.max() + 1] = np.bincount(index, weights=within[0] * within[1])
    by_text[np.bincount(index, minlength=len(groups)) < 3] = np.nan
    nulls = np.empty((2, count))
    for draw, order in enumerate(permutations_within(index, count, seed=seed)):
        each = np.bincount(index, weights=within[0][order] * within[1])
        nulls[:, draw] = _mean(each), float(pooled[0][order] @ pooled[1])
    mean = bootstrap_mean(by_text, groups, seed=seed)
    said = f"rank correlation of {READINGS[name]}"
    out = {f"{name}_spearman": variable("prompt", by_text, f"{said} within a text")}
    for end, value in zip(("mean", "low", "high"), mean, strict=True):
        out[f"{name}_spearman_{end}"] = variable("", value, f"{said}: mean over texts")
    out[f"{name}_pooled"] = variable("", float(pooled[0] @ pooled[1]), f"{said} over all spans")
    for end, row in zip(("spearman", "pooled"), nulls, strict=True):
        out[f"null_{name}_{end}"] = variable("permutation", row, f"{said}, attributions permuted within texts")
    return out


def _mean(values: Iterable[float]) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else _NAN


READINGS = {
    "signed": "attribution and log-ratio",
    "size": "|attribution| and |log-ratio|",
    "size_given_surprise": "|attribution| and |log-ratio|, base's surprise held fixed",
}
"""What is correlated, by the beginning of its variables' names."""

_WORDS = {**READINGS, "size_given_surprise": "base's surprise held fixed, |attribution| and |log-ratio|"}


def token_findings(data: xr.Dataset) -> pd.DataFrame:
    """The findings of a token join, one a row, with intervals and what permuted attributions give."""
    rows = []
    spans = int(np.isfinite(data["attribution"].values).sum())
    for name in READINGS:
        kinds = (
            (f"{name}_spearman_mean", "spearman", "texts"),
            (f"{name}_pooled", "pooled", "spans"),
        )
        for key, end, over in kinds:
            drawn = data[f"null_{name}_{end}"].values
            real = len(drawn) and np.isfinite(drawn).all()
            ends = np.quantile(drawn, (0.025, 0.975)) if real else (_NAN, _NAN)
            bounds = [f"{name}_spearman_{each}" for each in ("low", "high")] if end == "spearman" else []
            low, high = [float(data[bound]) for bound in bounds] or (_NAN, _NAN)
            value = float(data[key])
            rows.append(
                {
                    "finding": f"{_WORDS[name]}: Spearman, {'mean over texts' if bounds else f'{spans} spans'}",
                    "over": over,
                    "estimate": value,
                    "estimate_low": low,
                    "estimate_high": high,
                    "null_low": float(ends[0]),
                    "null_high": float(ends[1]),
                    "p": permutation_p(value, drawn),
                    "units": "",
                    "n": data.sizes["prompt"],
                }
            )
    return pd.DataFrame(rows)
