"""The texts that a reward model reads: checked, tokenised, and tied to the characters that each token covers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from interp.errors import InterpError, MeasureError, PromptError
from interp.models import RewardModel
from interp.prompts import Batch, make_batch, token_text

Span = tuple[int, int]

_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Texts:
    """Texts as a reward model reads them.

    Attributes:
        texts: the texts.
        ids: token ids of each text, those that the tokenizer adds among them.
        special: for each token, whether the tokenizer added it ([CLS], an end token).
        spans: for each token, the characters of its text that it covers; (0, 0) for what the tokenizer added.
        tokens: for each token, how a person reads it.
    """

    texts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    special: tuple[tuple[bool, ...], ...]
    spans: tuple[tuple[Span, ...], ...]
    tokens: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.texts)

    def batch(self, rows: Sequence[int]) -> Batch:
        """The texts `rows`, padded on the right."""
        return make_batch([self.ids[row] for row in rows])

    def some(self, rows: Sequence[int]) -> Texts:
        """The texts `rows` alone."""
        columns = (self.texts, self.ids, self.special, self.spans, self.tokens)
        return Texts(*(tuple(column[row] for row in rows) for column in columns))  # type: ignore[arg-type]

    def by_length(self) -> list[int]:
        """Indices of the texts, shortest first, so that little padding is computed."""
        return sorted(range(len(self)), key=lambda row: len(self.ids[row]))

    def width(self) -> int:
        """Tokens of the longest text."""
        return max(map(len, self.ids))


def check_texts(texts: Sequence[str]) -> tuple[str, ...]:
    """The texts as a tuple.

    Raises:
        PromptError: there is none, they are one string, or one of them is empty.
    """
    if isinstance(texts, str):
        raise PromptError("texts is a list of texts, not one string; pass [text]")
    found = tuple(texts)
    if not found:
        raise PromptError("there is no text to read; pass at least one")
    for index, text in enumerate(found):
        if not isinstance(text, str):
            raise PromptError(f"text {index} is a {type(text).__name__}, not a string; pass texts")
        if not text.strip():
            raise PromptError(f"text {index} is empty, so there is no token to read; leave it out")
    return found


def read_texts(model: RewardModel, texts: Sequence[str]) -> Texts:
    """Tokenise texts for a reward model.

    Raises:
        PromptError: a text is empty or longer than the model's context.
        MeasureError: the tokenizer does not tell which characters a token covers.
    """
    found = check_texts(texts)
    tokenizer = model.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise MeasureError(
            f"the tokenizer {type(tokenizer).__name__} does not tell which characters a token covers; load the reward"
            " model with a tokenizer of the tokenizers library (a tokenizer.json)"
        )
    ids, special, spans, tokens = [], [], [], []
    for index, text in enumerate(found):
        read = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
        limit = model.context_length
        if limit is not None and len(read["input_ids"]) > limit:
            raise PromptError(
                f"text {index} ({text[:40]!r}...) has {len(read['input_ids'])} tokens and the reward model reads"
                f" {limit}; shorten it or leave it out"
            )
        marks = [bool(mark) for mark in read["special_tokens_mask"]]
        if all(marks):
            raise PromptError(f"text {index} ({text[:40]!r}) has no token of its own; leave it out")
        ids.append(tuple(int(token) for token in read["input_ids"]))
        special.append(tuple(marks))
        spans.append(tuple((int(a), int(b)) for a, b in read["offset_mapping"]))
        tokens.append(tuple(token_text(tokenizer, token) for token in ids[-1]))
    return Texts(found, tuple(ids), tuple(special), tuple(spans), tuple(tokens))


def chosen_labels(model: RewardModel, labels: Sequence[str] | str | None) -> tuple[str, ...]:
    """The labels to read: None is the model's own, "all" every one.

    Raises:
        MeasureError: the model lacks one; the message lists those it has.
    """
    if labels is None:
        return (model.label,)
    if isinstance(labels, str):
        labels = model.labels if labels == "all" and "all" not in model.labels else (labels,)
    found = tuple(labels)
    missing = [label for label in found if label not in model.labels]
    if missing or not found:
        what = f"no label {missing[0]!r}" if missing else "to be asked for one label at least"
        raise MeasureError(f"the reward model has {what}; its labels are {', '.join(map(str, model.labels))}")
    if len(set(found)) < len(found):
        raise MeasureError("a label is named twice; name each once")
    return found


def words(text: str) -> list[Span]:
    """Characters of each word: what white space parts."""
    return [match.span() for match in _WORD.finditer(text)]


def word_of_tokens(text: str, spans: Sequence[Span]) -> np.ndarray:
    """Index of the word in which each token's first letter stands, -1 for a token that covers none."""
    found = words(text)
    starts, ends = np.array([a for a, _ in found]), np.array([b for _, b in found])
    out = np.full(len(spans), -1)
    for index, (start, end) in enumerate(spans):
        inside = text[start:end]
        letter = start + len(inside) - len(inside.lstrip())
        if start < end and letter < end:
            out[index] = int(np.flatnonzero((starts <= letter) & (letter < ends))[0])
    return out


def check_finite(values: np.ndarray, texts: Sequence[str], what: str) -> None:
    """Refuse numbers that are not finite.

    Raises:
        InterpError: naming the first text whose number is not.
    """
    bad = ~np.isfinite(values).reshape(len(texts), -1).all(1)
    if bad.any():
        text = texts[int(np.argmax(bad))]
        raise InterpError(f"the reward model's {what} of {text[:60]!r} is not finite; check its weights for NaN")
