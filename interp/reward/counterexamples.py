"""What a reward model gets wrong: texts at odds with their label, near pairs apart, and words that raise the score."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import scipy.sparse
import scipy.stats
import torch
import xarray as xr

from interp.errors import MeasureError
from interp.measures.arrays import dataset, strings, variable
from interp.models import RewardModel
from interp.models.source import source_name
from interp.progress import Progress, no_progress
from interp.prompts import make_batch, token_text
from interp.result import Result
from interp.reward.forward import at_rest, batches, embeddings, gradients, tokens_a_pass
from interp.reward.texts import RewardLike, Texts, as_reward, read_texts

_TABLES = {
    "at_odds": ("text", "labelled", "score", "rank", "odds"),
    "pairs": ("high", "low", "high_score", "low_score", "difference", "overlap"),
    "swaps": ("text", "step", "removed", "put", "start", "score", "gain", "swapped"),
}
"""Columns of each table; in the dataset the column COLUMN of the table TABLE is the array TABLE_COLUMN."""

_TEXTS = ("text", "high", "low", "removed", "put", "swapped")  # columns of texts and tokens


@dataclass(frozen=True, eq=False, repr=False)
class Counterexamples(Result):
    """A reward model's most counter-intuitive results, by three tables: `at_odds`, `pairs` and `swaps`.

    In the dataset the column `score` of `at_odds` is the array `at_odds_score`, and so on; model, label, units,
    threshold and number of texts are attributes.
    """

    kind: ClassVar[str] = "counterexamples"
    title: ClassVar[str] = "Counterexamples of a reward"

    @property
    def at_odds(self) -> pd.DataFrame:
        """Texts whose score is most at odds with their label, largest first.

        Columns: `text`, `labelled`, `score`, `rank` (the share of texts that score lower) and `odds` (how far the rank
        is from the label's end, 0 to 1).
        """
        return self._table("at_odds")

    @property
    def pairs(self) -> pd.DataFrame:
        """Texts that share most of their tokens and whose scores lie on two sides of the threshold.

        Columns: `high`, `low`, `high_score`, `low_score`, `difference` (largest first), `overlap` (Jaccard).
        """
        return self._table("pairs")

    @property
    def swaps(self) -> pd.DataFrame:
        """Greedy swaps of one token for another.

        Columns: `text` (the first), `step`, `removed`, `put`, `start`, `score`, `gain`, `swapped` (the text after it).
        """
        return self._table("swaps")

    def _table(self, name: str) -> pd.DataFrame:
        table = pd.DataFrame({column: self.dataset[f"{name}_{column}"].values for column in _TABLES[name]})
        return table.astype({column: str for column in _TABLES[name] if column in _TEXTS})

    def headline(self) -> str:
        """The model, and how many of each kind there are."""
        attrs = self.dataset.attrs
        return (
            f"{attrs['model']}, {attrs['label']}: {attrs['texts']} labelled texts, scores in {attrs['units']};"
            f" {len(self.at_odds)} at odds with their label, {len(self.pairs)} near pairs on two sides of"
            f" {attrs['threshold']:g}, {len(self.swaps)} swaps of a token."
        )

    def notes(self) -> list[str]:
        """Where each kind has all its columns."""
        return ["all columns: .at_odds, .pairs, .swaps"]

    def summary(self) -> pd.DataFrame:
        """One row a counterexample, of each kind in turn the largest.

        Columns: `kind`; `text`, its `score`, and what it is laid beside: of a pair the text that scores low, of a swap
        the token and the one in its place, else whether the text has the label; `other_score`, of the pair's other text
        or before the swap.
        """
        words = {True: "has the label", False: "lacks the label"}
        kinds = [
            [("at odds", row.text, row.score, words[bool(row.labelled)], np.nan) for row in self.at_odds.itertuples()],
            [("near pair", row.high, row.high_score, row.low, row.low_score) for row in self.pairs.itertuples()],
            [
                ("swap", row.swapped, row.score, f"{row.removed} \N{RIGHTWARDS ARROW} {row.put}", row.start)
                for row in self.swaps.itertuples()
            ],
        ]
        rows = [row for turn in itertools.zip_longest(*kinds) for row in turn if row is not None]
        return pd.DataFrame(rows, columns=["kind", "text", "score", "beside", "other_score"])


def counterexamples(
    model: RewardLike,
    texts: Sequence[str],
    labels: Sequence[bool | int],
    *,
    count: int = 10,
    overlap: float = 0.5,
    threshold: float | None = None,
    swaps: int = 3,
    swapped_texts: int = 4,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Counterexamples:
    """The texts of a labelled set by which a reward model can be seen to be wrong.

    A text's rank is the share of texts that score lower. It is at odds with its label by 1 - rank where it has the
    label, by rank where it has not, so no threshold is needed. Near pairs have a Jaccard index of their token sets of
    `overlap` or more. Swaps are greedy: of each text's tokens and the whole vocabulary the exchanges with the largest
    first-order gain (Ebrahimi et al. 2018, "HotFlip") are scored exactly, and the best is made, if it raises the score
    and the swapped text is tokenised as it was meant.

    Args:
        model: a reward model, of whose own label the score is taken; a folder or id where it has one label.
        texts: the texts.
        labels: whether each text has the label, as True and False or 1 and 0.
        count: how many of each kind.
        overlap: least overlap of a near pair.
        threshold: what divides high from low; None is 0 for logits, one half for a sigmoid, 1 / labels for a softmax.
        swaps: most swaps of one text.
        swapped_texts: in how many texts tokens are swapped: those whose scores are lowest.
        batch_size: texts a pass.
        progress: told of the "texts" in which tokens are swapped.

    Raises:
        PromptError: a text is empty or longer than the context.
        MeasureError: texts and labels are not of one number, a label is neither true nor false, or all are the same.
        InterpError: a score is not finite.
    """
    model = as_reward(model)
    truth = _truth(labels)
    read = read_texts(model, texts)
    if truth.shape != (len(read),):
        raise MeasureError(f"there are {len(read)} texts and {truth.size} labels; give one label a text")
    if truth.all() or not truth.any():
        raise MeasureError("every text has the same label; give texts with and without it")
    if threshold is None:
        threshold = {"logit": 0.0, "sigmoid": 0.5, "softmax": 1 / len(model.labels)}[model.squash]
    score = model.score(list(read.texts), batch_size=batch_size)
    lowest = np.argsort(score, kind="stable")[:swapped_texts]
    told, steps = progress or no_progress, []
    with at_rest(model):
        for done, row in enumerate(lowest):
            told("texts", done, len(lowest))
            steps += _greedy(model, read.texts[row], float(score[row]), swaps)
    told("texts", len(lowest), len(lowest))
    tables = {
        "at_odds": _at_odds(read, truth, score, count),
        "pairs": _pairs(read, score, count, overlap, threshold),
        "swaps": pd.DataFrame(steps, columns=list(_TABLES["swaps"])),
    }
    return Counterexamples(
        _as_dataset(tables).assign_attrs(
            model=source_name(dict(model.description)), label=model.label, units=model.units,
            threshold=float(threshold), texts=len(read),
        )
    )  # fmt: skip


def _as_dataset(tables: Mapping[str, pd.DataFrame]) -> xr.Dataset:
    arrays = {}
    for name, table in tables.items():
        for column in table:
            values = table[column].to_numpy()
            if column in _TEXTS:
                values = strings(values)
            elif not len(values):
                values = values.astype(np.int64 if column == "step" else np.float64)
            arrays[f"{name}_{column}"] = variable(name, values, f"{column.replace('_', ' ')} of {name}")
    return dataset(arrays)


def _truth(labels: Sequence[bool | int]) -> np.ndarray:
    """Labels as truth values; "0" is a string, and a string that is not empty would be true."""
    found = np.asarray(labels)
    for each in found.ravel().tolist():
        if not isinstance(each, (bool, int, float)) or each not in (0, 1):
            raise MeasureError(f"a label says whether its text has it, True or False (or 1 or 0), not {each!r}")
    return found.astype(bool)


def _at_odds(texts: Texts, labelled: np.ndarray, score: np.ndarray, count: int) -> pd.DataFrame:
    rank = (scipy.stats.rankdata(score) - 1) / (len(score) - 1)
    odds = np.where(labelled, 1 - rank, rank)
    top = np.argsort(-odds, kind="stable")[:count]
    return pd.DataFrame(
        {
            "text": [texts.texts[row] for row in top], "labelled": labelled[top], "score": score[top],
            "rank": rank[top], "odds": odds[top],
        }
    )  # fmt: skip


def _pairs(texts: Texts, score: np.ndarray, count: int, overlap: float, threshold: float) -> pd.DataFrame:
    """Near pairs on two sides of the threshold; overlaps of all pairs as one sparse product."""
    own = [
        sorted({token for token, mark in zip(ids, marks, strict=True) if not mark})
        for ids, marks in zip(texts.ids, texts.special, strict=True)
    ]
    sizes = np.array([len(each) for each in own])
    rows, columns = np.repeat(np.arange(len(own)), sizes), np.concatenate([np.array(each) for each in own])
    has = scipy.sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(own), int(columns.max()) + 1))
    high, low = np.flatnonzero(score > threshold), np.flatnonzero(score <= threshold)
    shared = (has[high] @ has[low].T).tocoo()
    first, second = high[shared.coords[0]], low[shared.coords[1]]
    jaccard = shared.data / (sizes[first] + sizes[second] - shared.data)
    near = jaccard >= overlap
    first, second, jaccard = first[near], second[near], jaccard[near]
    difference = score[first] - score[second]
    top = np.lexsort((second, first, -difference))[:count]
    return pd.DataFrame(
        {
            "high": [texts.texts[row] for row in first[top]], "low": [texts.texts[row] for row in second[top]],
            "high_score": score[first[top]], "low_score": score[second[top]], "difference": difference[top],
            "overlap": jaccard[top],
        }
    )  # fmt: skip


_TRIED = 64  # exchanges of largest first-order gain that are scored exactly


def _greedy(model: RewardModel, text: str, start: float, swaps: int) -> list[dict[str, object]]:
    """The swaps of one text, each the best of those tried."""
    steps: list[dict[str, object]] = []
    current, score = text, start
    for step in range(1, swaps + 1):
        read = read_texts(model, [current])
        options = _options(model, read)
        if not options:
            break
        scores = _scored(model, [ids for ids, _, _ in options])
        best = int(np.argmax(scores))
        if scores[best] <= score:
            break
        ids, place, changed = options[best]
        steps.append(
            {
                "text": text, "step": step, "removed": read.tokens[0][place],
                "put": token_text(model.tokenizer, ids[place]), "start": score, "score": float(scores[best]),
                "gain": float(scores[best] - score), "swapped": changed,
            }
        )  # fmt: skip
        current, score = changed, float(scores[best])
    return steps


def _options(model: RewardModel, read: Texts) -> list[tuple[list[int], int, str]]:
    """Exchanges of largest first-order gain whose text is read as those ids: ids, place, text."""
    ids, special = list(read.ids[0]), read.special[0]
    batch = read.batch([0]).to(model.device)
    embedded = embeddings(model, batch)
    _, gradient = gradients(model, batch, embedded, [model.labels.index(model.label)])
    own = [place for place, mark in enumerate(special) if not mark]
    slope = gradient[0, own, :, 0]
    table = _vocabulary(model)
    gain = (slope @ table.T) - (slope * embedded[0, own]).sum(-1, keepdim=True)
    banned = [i for i in set(model.tokenizer.all_special_ids) if i < gain.shape[1]]
    gain[:, banned] = -torch.inf
    gain[torch.arange(len(own)), torch.tensor([ids[place] for place in own])] = -torch.inf
    found: list[tuple[list[int], int, str]] = []
    # Many tokens are no whole word, and the text that they make is read otherwise: more are looked at than are scored.
    for flat in gain.flatten().topk(min(8 * _TRIED, gain.numel())).indices.tolist():
        place, token = own[flat // gain.shape[1]], flat % gain.shape[1]
        changed = [*ids[:place], token, *ids[place + 1 :]]
        text = _with_token(model, read, place, token)
        if list(model.tokenizer(text, verbose=False)["input_ids"]) == changed:
            found.append((changed, place, text))
        if len(found) == _TRIED:
            break
    return found


def _with_token(model: RewardModel, read: Texts, place: int, token: int) -> str:
    """The text with the characters of one token replaced by those of another; the rest stays as it was written."""
    text, (start, end) = read.texts[0], read.spans[0][place]
    put = token_text(model.tokenizer, token)
    # Whether a token covers the space before it differs among tokenizers; the space itself stays.
    lead = len(text[start:end]) - len(text[start:end].lstrip())
    return text[: start + lead] + put.strip() + text[end:]


def _vocabulary(model: RewardModel) -> torch.Tensor:
    """Every token's embedding, as the embedding module gives it."""
    size = next(model.parts.embed.parameters()).shape[0]
    with torch.no_grad():
        found: torch.Tensor = model.parts.embed(torch.arange(min(size, len(model.tokenizer)), device=model.device))
    return found


def _scored(model: RewardModel, ids: Sequence[Sequence[int]]) -> np.ndarray:
    column = model.labels.index(model.label)
    out = np.empty(len(ids))
    for rows in batches([len(each) for each in ids], 4 * tokens_a_pass(model)):
        out[rows] = model.trace(make_batch([ids[row] for row in rows])).scores[:, column].cpu().numpy()
    return out
