"""What a reward model reads: texts checked and tokenised, each token tied to its characters, and their activations."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp import models
from interp.errors import InterpError, LoadError, MeasureError, PromptError
from interp.families import Parts
from interp.hooks import Site
from interp.models import Policy, RewardModel
from interp.models.running import at_read_token, run
from interp.models.source import describe_source, locate, source_name
from interp.pair import CheckpointPair, pair_at
from interp.prompts import Batch, encode, make_batch, token_text

RewardLike = RewardModel | CheckpointPair | nn.Module | str | os.PathLike[str]
"""What `interp.load_reward` takes: a reward model, its folder or hub id, or a pair that was tuned toward one."""


def as_reward(model: RewardLike, labels: Sequence[str] | str | None = None) -> RewardModel:
    """The reward model that is meant, loaded with the defaults where it is not loaded.

    Args:
        model: what `interp.load_reward` takes.
        labels: what will be read of it; the first of them becomes the label of a model that is loaded here.

    Raises:
        MeasureError: a model of several labels is to be loaded and none is named.
        LoadError: it is no reward model, or cannot be loaded.
    """
    if isinstance(model, RewardModel) or pair_at(model) is not None:
        return models.as_reward(model)
    names = _label_names(model)
    if labels is None and len(names) > 1:
        raise MeasureError(
            f"{source_name(describe_source(model))} has {len(names)} labels and none is named; pass"
            f" interp.load_reward(..., label=...), one of {', '.join(names)}"
        )
    wanted = [labels] if isinstance(labels, str) else list(labels or ())
    # A label that the model lacks is refused when it is read.
    return models.as_reward(model, label=next((name for name in [*wanted[:1], *names] if name in names), None))


def _label_names(model: Any) -> list[str]:
    """Names of a model's labels by its config; none where it has no config that can be read."""
    config = getattr(model, "config", None)
    if isinstance(model, (str, os.PathLike)):
        import transformers

        try:
            place = locate(model)
            config = transformers.AutoConfig.from_pretrained(place.name, **place.options)
        except (LoadError, OSError, ValueError):  # loading says in one sentence what is wrong
            return []
    return [str(name) for _, name in sorted(getattr(config, "id2label", {}).items())]


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


Pooling = Literal["mean", "read"]


def activations(
    model: Policy | RewardModel, texts: Sequence[str], *, pooling: Pooling = "mean", batch_size: int = 32
) -> Float[np.ndarray, "layer prompt d_model"]:
    """The residual of each text at every layer, one vector a text.

    Args:
        model: a policy or a reward model.
        texts: the texts.
        pooling: its mean over the real tokens, or the token from which the model's output is read.
        batch_size: texts a forward pass.

    Returns:
        Layer 0 is what enters the first block, layer k what leaves the k-th; of an encoder-decoder, the encoder's.

    Raises:
        PromptError: a text is too long for the model.
    """
    parts = Parts(model.model)
    both = parts.family.encoder is not None
    stack: Literal["encoder"] | None = "encoder" if both else None
    layers = parts.n_encoder_layers if both else parts.n_layers
    sites = [Site("resid_pre", 0, stack), *(Site("resid_post", layer, stack) for layer in range(layers))]
    ids = [_ids(model, text) for text in texts]
    limit = getattr(parts.model.config, "max_position_embeddings", None)
    room = None if limit is None else limit - parts.family.position_offset(parts.model.config)
    for number, own in enumerate(ids):
        if room is not None and len(own) > room:
            raise PromptError(f"text {number} has {len(own)} tokens, a model reads {room}; shorten it or leave it out")
    out = np.empty((len(sites), len(texts), parts.d_model))
    order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    device = next(parts.embed.parameters()).device
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        chosen = [ids[row] for row in rows]
        starts = [[model.decoder_start or 0]] * len(rows) if both and isinstance(model, Policy) else chosen
        batch = make_batch(starts, encoder=chosen if both else None).to(device)
        _, store = run(parts, batch, sites)
        for layer, site in enumerate(sites):
            out[layer, rows] = _pooled(parts, batch, store[site], pooling).double().cpu().numpy()
    return out


def _ids(model: Policy | RewardModel, text: str) -> list[int]:
    if isinstance(model, RewardModel) or model.decoder_start is not None:
        return list(model.tokenizer(text, verbose=False)["input_ids"])
    return encode(model.tokenizer, text)


def _pooled(parts: Parts, batch: Batch, values: Tensor, pooling: Pooling) -> Tensor:
    both = batch.encoder_mask is not None
    mask = batch.encoder_mask if batch.encoder_mask is not None else batch.attention_mask
    if pooling == "mean":
        weight = mask.to(values.device).double()[:, :, None]
        return (values.double() * weight).sum(1) / weight.sum(1)
    if parts.head.reads == "first":
        return at_read_token(parts, batch, values)
    lengths = mask.sum(-1) if both else batch.first + batch.lengths
    return values[torch.arange(len(values), device=values.device), (lengths - 1).to(values.device)]
