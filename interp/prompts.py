"""Prompts: texts, the answers that are contrasted after them, the responses that may follow, and their tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from interp.errors import PromptError, TokenizerMismatch

AnswerPair = tuple[str, str]


@dataclass(frozen=True)
class Prompts:
    """Texts to compare two models on.

    Attributes:
        texts: the prompts.
        answers: for each prompt the pair (answer, alternative) whose logits are contrasted at its last token; one
            pair alone holds for all prompts. None: no logit difference, and attribution's target is tuned's top token
            minus base's likeliest other.
        continuations: for each prompt the response that follows it, or None.
        multi_token: what to do with an answer of several tokens: "error", or "first" to contrast first tokens.
        groups: for each prompt the name of the template it was made from: prompts of one group are resampled together
            in intervals. None: prompts with the same text form a group.
        bos: put the tokenizer's BOS token before each prompt: None, the tokenizer's own habit; True, always;
            False, never. Never twice.

    Raises:
        PromptError: no prompts, an empty one, or answers or continuations that do not fit them.
    """

    texts: Sequence[str]
    answers: AnswerPair | Sequence[AnswerPair] | None = field(default=None, kw_only=True)
    continuations: Sequence[str] | None = field(default=None, kw_only=True)
    multi_token: Literal["error", "first"] = field(default="error", kw_only=True)
    bos: bool | None = field(default=None, kw_only=True)
    groups: Sequence[str] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        set_field(self, "texts", _strings(self.texts, "texts"))
        if not self.texts:
            raise PromptError("there are no prompts; give at least one text, as Prompts(['This movie was really'])")
        for index, text in enumerate(self.texts):
            if not text.strip():
                raise PromptError(f"prompt {index} is empty; drop it or give it a text")
            if not text.isprintable() and any("\ud800" <= c <= "\udfff" for c in text):
                raise PromptError(f"prompt {index} is no valid Unicode (a lone surrogate); read its file as UTF-8")
        if self.multi_token not in ("error", "first"):
            raise PromptError(f'multi_token is "error" or "first", not {self.multi_token!r}')
        set_field(self, "answers", _answer_pairs(self.answers, len(self.texts)))
        for name in ("continuations", "groups"):
            value = getattr(self, name)
            if value is not None:
                set_field(self, name, _strings(value, name))
                if len(value) != len(self.texts):
                    raise PromptError(f"{len(self.texts)} prompts but {len(value)} {name}; give one for each prompt")
        if self.groups is None:
            set_field(self, "groups", self.texts)

    def __len__(self) -> int:
        return len(self.texts)

    def tokenize(self, tokenizer: Any) -> TokenizedPrompts:
        """Tokenise every prompt, answer and continuation once.

        An answer or continuation is tokenised in the context of its prompt, so that a leading space means the same
        for every kind of tokenizer.

        Args:
            tokenizer: a tokenizer of transformers.

        Raises:
            PromptError: an answer is not one token (its tokens are listed), the two answers of a pair share their
                token, or a prompt has no tokens.
        """
        prompt_ids, response_ids, pairs = [], [], []
        for index, text in enumerate(self.texts):
            ids = encode(tokenizer, text, self.bos)
            if not ids:
                raise PromptError(f"prompt {index} ({text!r}) has no tokens; drop it or pass bos=True")
            prompt_ids.append(ids)
            if self.continuations is not None:
                response_ids.append(encode_after(tokenizer, text, self.continuations[index], self.bos))
            if self.answers is not None:
                pairs.append(self._answer_ids(tokenizer, text, cast(AnswerPair, self.answers[index])))
        return TokenizedPrompts(
            prompt_ids=tuple(map(tuple, prompt_ids)),
            response_ids=tuple(map(tuple, response_ids)) if self.continuations is not None else None,
            answer_ids=torch.tensor(pairs) if self.answers is not None else None,
        )

    def _answer_ids(self, tokenizer: Any, text: str, pair: AnswerPair) -> list[int]:
        first = []
        for answer in pair:
            ids = encode_after(tokenizer, text, answer, self.bos)
            if not ids:
                raise PromptError(f"the answer {answer!r} has no tokens; give another")
            if len(ids) > 1 and self.multi_token == "error":
                tokens = ", ".join(repr(token_text(tokenizer, i)) for i in ids)
                raise PromptError(
                    f"the answer {answer!r} is {len(ids)} tokens ({tokens}), not one; choose a one-token answer"
                    f' or pass multi_token="first" (--multi-token first) to contrast first tokens'
                )
            first.append(ids[0])
        if first[0] == first[1]:
            raise PromptError(
                f"the answers {pair[0]!r} and {pair[1]!r} share their first token; choose two that differ"
            )
        return first


def _strings(value: Any, name: str) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(v, str) for v in value):
        raise PromptError(f"{name} must be a list of strings, not {type(value).__name__} {str(value)[:40]!r}")
    return tuple(value)


def _answer_pairs(answers: Any, count: int) -> tuple[AnswerPair, ...] | None:
    if answers is None:
        return None
    if isinstance(answers, tuple) and len(answers) == 2 and all(isinstance(a, str) for a in answers):
        return (answers,) * count
    pairs = list(answers) if isinstance(answers, Sequence) and not isinstance(answers, str) else [answers]
    for pair in pairs:
        if (
            isinstance(pair, str)
            or not isinstance(pair, Sequence)
            or len(pair) != 2
            or not all(isinstance(a, str) for a in pair)
        ):
            raise PromptError(f"an answer is a pair of strings, as (' bad', ' good'), not {pair!r}")
    if len(pairs) != count:
        raise PromptError(
            f"{count} prompts but {len(pairs)} answer pairs; give one pair for each prompt,"
            " or a single tuple, as answers=(' bad', ' good'), for all"
        )
    return tuple((pair[0], pair[1]) for pair in pairs)


def encode(tokenizer: Any, text: str, bos: bool | None = None) -> list[int]:
    """Token ids of `text`, with BOS by the rule of `Prompts.bos`, and never an end token after it.

    Raises:
        PromptError: bos=True and the tokenizer has no BOS token.
    """
    ids: list[int] = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    start = tokenizer.bos_token_id
    if bos is None:
        habit = list(tokenizer("a")["input_ids"])
        bos = start is not None and bool(habit) and habit[0] == start
    if not bos:
        return ids
    if start is None:
        raise PromptError("bos=True, but the tokenizer has no BOS token; pass bos=None or set tokenizer.bos_token")
    return ids if ids[:1] == [start] else [start, *ids]


def encode_after(tokenizer: Any, text: str, rest: str, bos: bool | None = None) -> list[int]:
    """Token ids that `rest` adds when it follows `text`.

    Where the two would merge into one token at the seam, `rest` is tokenised alone.
    """
    before, whole = encode(tokenizer, text, bos), encode(tokenizer, text + rest, bos)
    if whole[: len(before)] == before:
        return whole[len(before) :]
    return list(tokenizer(rest, add_special_tokens=False)["input_ids"])


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
        prompt_ids: ids of each prompt.
        response_ids: ids of each continuation, or None.
        answer_ids: ids of (answer, alternative) for each prompt, or None.
    """

    prompt_ids: tuple[tuple[int, ...], ...]
    response_ids: tuple[tuple[int, ...], ...] | None
    answer_ids: Int[Tensor, "prompt 2"] | None

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def batches(self, size: int, *, padding_side: Literal["right", "left"] = "right") -> Iterator[Batch]:
        """The prompts in batches of at most `size`, in their order."""
        for start in range(0, len(self), size):
            rows = range(start, min(start + size, len(self)))
            prompts = [self.prompt_ids[row] for row in rows]
            responses = [self.response_ids[row] if self.response_ids is not None else () for row in rows]
            answers = self.answer_ids[list(rows)] if self.answer_ids is not None else None
            yield make_batch(prompts, responses, answers=answers, padding_side=padding_side)


def positions(mask: Bool[Tensor, "batch seq"]) -> Int[Tensor, "batch seq"]:
    """Position ids that count from each row's first real token; 0 on padding."""
    return (mask.long().cumsum(-1) - 1).clamp_min(0)


@dataclass(frozen=True)
class Batch:
    """Padded token ids.

    Attributes:
        input_ids: ids of prompt and response; padding holds id 0, which the mask hides.
        attention_mask: True at real tokens.
        prompt_lengths: number of prompt tokens of each row.
        answer_ids: ids of (answer, alternative) of each row, or None.
    """

    input_ids: Int[Tensor, "batch seq"]
    attention_mask: Bool[Tensor, "batch seq"]
    prompt_lengths: Int[Tensor, " batch"]
    answer_ids: Int[Tensor, "batch 2"] | None = None

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
        answers = self.answer_ids.to(device) if self.answer_ids is not None else None
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), self.prompt_lengths.to(device), answers)

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
    padding_side: Literal["right", "left"] = "right",
) -> Batch:
    """Pad ids to one length.

    Args:
        prompts: ids of each prompt.
        responses: ids of what follows each prompt.
        answers: ids of (answer, alternative) of each prompt.
        padding_side: where the padding goes.
    """
    rows = [[*p, *r] for p, r in zip(prompts, responses or [()] * len(prompts), strict=True)]
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        span = slice(0, len(row)) if padding_side == "right" else slice(width - len(row), width)
        ids[index, span] = torch.tensor(row)
        mask[index, span] = True
    return Batch(ids, mask, torch.tensor([len(p) for p in prompts]), answers)
