"""Token ids: texts to ids and back, and padded batches of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from interp.errors import PromptError, TokenizerMismatch

AnswerTokens = tuple[tuple[int, ...], tuple[int, ...]]
"""Ids of an answer and of its alternative."""


def encode(tokenizer: Any, text: str, bos: bool | None = None) -> list[int]:
    """Token ids of `text`, with BOS by the rule of `Prompts.bos`, and never an end token after it.

    Raises:
        PromptError: bos=True and the tokenizer has no BOS token.
    """
    return encode_all(tokenizer, [text], bos)[0]


def encode_all(tokenizer: Any, texts: Sequence[str], bos: bool | None = None) -> list[list[int]]:
    """`encode` of many texts."""
    # verbose=False: a text beyond the context is refused later in our own words.
    # One at a time: many at once are no faster for short texts, and the tokenizer's threads keep kilobytes for each.
    encoded = (tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts)
    known: dict[int, int] = {}  # one object an id, however many texts it stands in
    rows = [[known.setdefault(token, token) for token in ids] for ids in encoded]
    start = tokenizer.bos_token_id
    if bos is None:
        habit = list(tokenizer("a")["input_ids"])
        bos = start is not None and bool(habit) and habit[0] == start
    if not bos:
        return rows
    if start is None:
        raise PromptError("bos=True, but the tokenizer has no BOS token; pass bos=None or set tokenizer.bos_token")
    return [ids if ids[:1] == [start] else [start, *ids] for ids in rows]


def encode_after(tokenizer: Any, text: str, rest: str, bos: bool | None = None) -> list[int]:
    """Token ids that `rest` adds when it follows `text`.

    Where the two would merge into one token at the seam (a prompt that ends in a space, say), `rest` is tokenised
    after something else, so that no space appears or goes where they meet.
    """
    return encode_after_all(tokenizer, [text], [rest], bos)[0]


def encode_after_all(
    tokenizer: Any,
    texts: Sequence[str],
    rests: Sequence[str],
    bos: bool | None = None,
    *,
    befores: Sequence[list[int]] | None = None,
) -> list[list[int]]:
    """`encode_after` of many texts, whose own ids are `befores` where they are known."""
    if befores is None:
        befores = encode_all(tokenizer, texts, bos)
    wholes = encode_all(tokenizer, [text + rest for text, rest in zip(texts, rests, strict=True)], bos)
    rows = []
    for rest, before, whole in zip(rests, befores, wholes, strict=True):
        fits = whole[: len(before)] == before
        rows.append(whole[len(before) :] if fits else _after_a_seam(tokenizer, rest, before, whole))
    return rows


_ANCHORS = ("\n", ".", "a", "")
"""Texts after which the rest of a merged seam is tokenised; the last is nothing at all."""


def _after_a_seam(tokenizer: Any, rest: str, before: list[int], whole: list[int]) -> list[int]:
    """Ids of `rest` such that `before` and they decode to what `whole` does; where none do, those of `rest` alone."""
    wanted, ids = _decode(tokenizer, whole), []
    for anchor in _ANCHORS:
        start, both = encode_all(tokenizer, [anchor, anchor + rest], bos=False)
        ids = both[len(start) :]
        if both[: len(start)] == start and _decode(tokenizer, [*before, *ids]) == wanted:
            return ids
    return ids


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
    return text


def token_text(tokenizer: Any, token_id: int) -> str:
    """One token as a person reads it, its leading space kept."""
    raw = tokenizer.convert_ids_to_tokens(int(token_id))
    if raw is None:
        return f"<{int(token_id)}>"
    if raw.startswith("\N{LOWER ONE EIGHTH BLOCK}"):  # SentencePiece's mark for a space
        return raw.replace("\N{LOWER ONE EIGHTH BLOCK}", " ")
    return tokenizer.decode([int(token_id)], clean_up_tokenization_spaces=False)


def check_same_vocabulary(base: Any, tuned: Any, name: str = "tuned") -> None:
    """Refuse two tokenizers that give one token different ids.

    Raises:
        TokenizerMismatch: with the sizes and the first difference.
    """
    first, second = base.get_vocab(), tuned.get_vocab()
    if first == second:
        return
    differing = min(first.items() ^ second.items(), key=lambda item: (item[1], item[0]))
    raise TokenizerMismatch(
        f"base has {len(first)} tokens, {name} {len(second)}, and they differ from id {differing[1]}"
        f" ({differing[0]!r}) on; token-level measures need one vocabulary: compare checkpoints of the same tokenizer,"
        ' or pass tokenizer="base" where tuned\'s is a mistaken copy'
    )


@dataclass(frozen=True)
class TokenizedPrompts:
    """The ids of a set of prompts.

    Attributes:
        prompt_ids: ids of each prompt; for encoder-decoder models what the decoder reads: its start token and prefix.
        response_ids: ids of each continuation, or None.
        answer_ids: ids of (answer, alternative) for each prompt, or None.
        encoder_ids: ids that the encoder of an encoder-decoder model reads for each prompt, or None.
        answer_tokens: with `multi_token="sum"` all ids of (answer, alternative) after each prompt, or None.
        answer_texts: (answer, alternative) of each prompt as they were given, where `answer_tokens` are.
        shared: how many of each prompt's last ids are the beginning that its two answers share; () is none of any.
        texts: each prompt as a person reads it.
        remarks: what a person should know of how the prompts were read, one sentence each.
        corrupt: the corrupted prompts, of the same lengths, or None.
    """

    prompt_ids: tuple[tuple[int, ...], ...]
    response_ids: tuple[tuple[int, ...], ...] | None
    answer_ids: Int[Tensor, "prompt 2"] | None
    encoder_ids: tuple[tuple[int, ...], ...] | None = None
    answer_tokens: tuple[AnswerTokens, ...] | None = field(default=None, kw_only=True)
    answer_texts: tuple[tuple[str, str], ...] | None = field(default=None, kw_only=True)
    shared: tuple[int, ...] = field(default=(), kw_only=True)
    texts: tuple[str, ...] = field(default=(), kw_only=True)
    remarks: tuple[str, ...] = field(default=(), kw_only=True)
    corrupt: TokenizedPrompts | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.prompt_ids)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Most tokens that a causal model or a decoder reads of each prompt, with its continuation or an answer."""
        after = [len(ids) for ids in self.response_ids] if self.response_ids is not None else [0] * len(self)
        if self.answer_tokens is not None:
            longest = (max(map(len, ids)) - n for ids, n in zip(self.answer_tokens, self.shared, strict=True))
            after = [max(each) for each in zip(after, longest, strict=True)]
        return tuple(len(ids) + more for ids, more in zip(self.prompt_ids, after, strict=True))

    def batches(self, size: int, *, padding_side: Literal["right", "left"] = "right") -> Iterator[Batch]:
        """The prompts in batches of at most `size`, in their order."""
        for start in range(0, len(self), size):
            rows = range(start, min(start + size, len(self)))
            prompts = [self.prompt_ids[row] for row in rows]
            responses = [self.response_ids[row] if self.response_ids is not None else () for row in rows]
            answers = self.answer_ids[list(rows)] if self.answer_ids is not None else None
            encoder = [self.encoder_ids[row] for row in rows] if self.encoder_ids is not None else None
            yield make_batch(prompts, responses, answers=answers, encoder=encoder, padding_side=padding_side)


def positions(mask: Bool[Tensor, "batch seq"]) -> Int[Tensor, "batch seq"]:
    """Position ids that count from each row's first real token; 0 on padding."""
    return (mask.long().cumsum(-1) - 1).clamp_min(0)


@dataclass(frozen=True)
class Batch:
    """Padded token ids.

    In a batch for an encoder-decoder model everything but the `encoder_` fields is the decoder's.

    Attributes:
        input_ids: ids of prompt and response; padding holds id 0, which the mask hides.
        attention_mask: True at real tokens.
        prompt_lengths: number of prompt tokens of each row.
        answer_ids: ids of (answer, alternative) of each row, or None.
        encoder_ids: what the encoder of an encoder-decoder model reads, padded with id 0; None for other models.
        encoder_mask: True at the encoder's real tokens.
    """

    input_ids: Int[Tensor, "batch seq"]
    attention_mask: Bool[Tensor, "batch seq"]
    prompt_lengths: Int[Tensor, " batch"]
    answer_ids: Int[Tensor, "batch 2"] | None = None
    encoder_ids: Int[Tensor, "batch encoder_seq"] | None = None
    encoder_mask: Bool[Tensor, "batch encoder_seq"] | None = None

    @property
    def position_ids(self) -> Int[Tensor, "batch seq"]:
        """Positions counted from the first real token, as padding must not move them."""
        return positions(self.attention_mask)

    @property
    def first(self) -> Int[Tensor, " batch"]:
        """Column of each row's first real token."""
        return self.attention_mask.long().argmax(-1)

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """Number of real tokens of each row."""
        return self.attention_mask.sum(-1)

    @property
    def last_prompt(self) -> Int[Tensor, " batch"]:
        """Column of each row's last prompt token, whose logits predict the first response token."""
        return self.first + self.prompt_lengths - 1

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return replace(self, **{name: value.to(device) for name, value in values.items() if value is not None})

    def at_last_prompt(self, values: Shaped[Tensor, "batch seq *rest"]) -> Shaped[Tensor, " batch *rest"]:
        """The value at each row's last prompt token."""
        return values[torch.arange(len(values), device=values.device), self.last_prompt.to(values.device)]

    def aligned(self, values: Shaped[Tensor, "batch seq *rest"]) -> Shaped[Tensor, "batch pos *rest"]:
        """Shift each row so that column 0 is its first real token; what lies behind its last one is arbitrary."""
        columns = self.first.to(values.device)[:, None] + torch.arange(values.shape[1], device=values.device)
        columns = columns.clamp_max(values.shape[1] - 1)
        return values[torch.arange(len(values), device=values.device)[:, None], columns]


def make_batch(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]] | None = None,
    *,
    answers: Int[Tensor, "batch 2"] | None = None,
    encoder: Sequence[Sequence[int]] | None = None,
    padding_side: Literal["right", "left"] = "right",
) -> Batch:
    """Pad ids to one length.

    Args:
        prompts: ids of each prompt; for an encoder-decoder model those that the decoder reads.
        responses: ids of what follows each prompt.
        answers: ids of (answer, alternative) of each prompt.
        encoder: ids that the encoder reads for each prompt.
        padding_side: where the padding goes, in the encoder too.
    """
    rows = [[*p, *r] for p, r in zip(prompts, responses or [()] * len(prompts), strict=True)]
    ids, mask = _pad(rows, padding_side)
    lengths = torch.tensor([len(p) for p in prompts])
    if encoder is None:
        return Batch(ids, mask, lengths, answers)
    return Batch(ids, mask, lengths, answers, *_pad(encoder, padding_side))


def _pad(
    rows: Sequence[Sequence[int]], side: Literal["right", "left"]
) -> tuple[Int[Tensor, "batch seq"], Bool[Tensor, "batch seq"]]:
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        span = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[index, span] = torch.tensor(list(row), dtype=torch.long)
        mask[index, span] = True
    return ids, mask


def response_texts(
    tokenizer: Any, before: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
) -> tuple[list[str], list[str], list[str]]:
    """What was read and said, as text without special tokens.

    A response is decoded after what stands before it, as some tokenizers drop a text's first space.

    Args:
        tokenizer: the tokenizer.
        before: ids of what each response follows.
        responses: ids of each response.

    Returns:
        (both as one text, what stood before, the response) of each.
    """
    options: dict[str, Any] = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}

    def decoded(rows: Iterable[Sequence[int]]) -> list[str]:
        return [tokenizer.decode(list(ids), **options) for ids in rows]

    whole = decoded([*first, *rest] for first, rest in zip(before, responses, strict=True))
    heads, alone = decoded(before), decoded(responses)
    texts = [
        both[len(head) :] if both.startswith(head) else said
        for both, head, said in zip(whole, heads, alone, strict=True)
    ]
    return whole, heads, texts


def response_ends(tokenizer: Any, ids: Sequence[int], text: str) -> list[int | None]:
    """The character of a response's text after the last that each token covers; None inside a character.

    Args:
        tokenizer: the tokenizer.
        ids: the response's tokens.
        text: the response, as `response_texts` gives it.

    Returns:
        One a token; all None where the text is not what the tokens say.
    """
    options: dict[str, Any] = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    said = [tokenizer.decode(list(ids[: place + 1]), **options) for place in range(len(ids))]
    whole = said[-1] if said else ""
    if not text.endswith(whole):
        return [None] * len(ids)
    dropped = len(text) - len(whole)  # a first space that only shows after the prompt
    return [dropped + len(each) if whole.startswith(each) else None for each in said]
