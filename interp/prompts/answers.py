"""Answers: pairs of strings to token ids in the context of their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from interp.errors import PromptError
from interp.prompts.kinds import check_text
from interp.prompts.tokens import AnswerTokens, TokenizedPrompts, encode_after_all, token_text

AnswerPair = tuple[str, str]
_LISTED = 12


def answer_pairs(answers: Any, count: int) -> tuple[AnswerPair, ...] | None:
    """One pair for each of `count` prompts out of what a user gave: one tuple for all, or one pair for each.

    Raises:
        PromptError: something is no pair of non-empty strings, or their number is another.
    """
    if answers is None:
        return None
    if isinstance(answers, tuple) and len(answers) == 2 and all(isinstance(a, str) for a in answers):
        return (_checked(answers),) * count
    pairs = list(answers) if isinstance(answers, Sequence) and not isinstance(answers, str) else [answers]
    for pair in pairs:
        if (
            isinstance(pair, str)
            or not isinstance(pair, Sequence)
            or len(pair) != 2
            or not all(isinstance(a, str) for a in pair)
        ):
            raise PromptError(f"an answer is a pair of strings, as (' bad', ' good'), not {str(pair)[:80]!r}")
    if len(pairs) != count:
        raise PromptError(
            f"{count} prompts but {len(pairs)} answer pairs; give one pair for each prompt,"
            " or a single tuple, as answers=(' bad', ' good'), for all"
        )
    known: dict[AnswerPair, AnswerPair] = {}
    for first, second in pairs:
        if (first, second) not in known:
            known[first, second] = _checked((first, second))
    return tuple(known[first, second] for first, second in pairs)


def _checked(pair: Sequence[str]) -> AnswerPair:
    for answer in pair:
        if not answer:
            raise PromptError(f"an answer of the pair {tuple(pair)!r} is empty; give both, as (' bad', ' good')")
        check_text(answer, f"the answer {answer!r}")
    return pair[0], pair[1]


def read_answers(
    tokenizer: Any,
    contexts: Sequence[str],
    befores: Sequence[list[int]],
    pairs: Sequence[AnswerPair],
    bos: bool | None,
) -> list[AnswerTokens]:
    """Ids of both answers of every prompt, each in the context of its prompt, whose own ids are `befores`.

    Raises:
        PromptError: an answer has no tokens, or the tokenizer's unknown token stands for a part of it.
    """
    sides = []
    unknown = getattr(tokenizer, "unk_token_id", None)
    for side in (0, 1):
        texts = [pair[side] for pair in pairs]
        rows = encode_after_all(tokenizer, contexts, texts, bos, befores=befores)
        for text, ids in zip(texts, rows, strict=True):
            if not ids:
                raise PromptError(f"the answer {text!r} has no tokens; give another")
            if unknown in ids and str(tokenizer.unk_token) not in text:
                raise PromptError(
                    f"the tokenizer does not know the answer {text!r} and reads {tokenizer.unk_token} in it;"
                    " give one in its vocabulary"
                )
        sides.append([tuple(ids) for ids in rows])
    return list(zip(*sides, strict=True))


def with_answers(
    tokens: TokenizedPrompts, answers: Sequence[AnswerTokens], pairs: Sequence[AnswerPair], mode: str, tokenizer: Any
) -> TokenizedPrompts:
    """Add the two ids that are contrasted after each prompt, and with mode "sum" whole answers.

    With "sum" the tokens that the two answers share at their beginning move to the end of the prompt, so that the
    contrast is at the first difference: log P(s a) - log P(s b) = log P(a | s) - log P(b | s).

    Raises:
        PromptError: with "error", an answer of several tokens; the two do not differ where they are contrasted; or
            with "sum", answers share tokens and continuations are there, which would follow them.
    """
    if mode != "sum":
        for pair, ids in zip(pairs, answers, strict=True):
            _check_first_tokens(pair, ids, mode, tokenizer)
        first = [[each[0] for each in ids] for ids in answers]
        return replace(tokens, answer_ids=torch.tensor(first))
    shared = []
    for (answer, alternative), ids in zip(pairs, answers, strict=True):
        count = next((i for i, (a, b) in enumerate(zip(*ids, strict=False)) if a != b), min(map(len, ids)))
        if count == min(map(len, ids)):
            raise PromptError(
                f"of the answers {short(answer)} and {short(alternative)} one is the beginning of the other; choose two"
                " that part"
            )
        shared.append(count)
    if any(shared) and tokens.response_ids is not None:
        row = next(index for index, count in enumerate(shared) if count)
        raise PromptError(
            f"the answers {pairs[row][0]!r} and {pairs[row][1]!r} share their first token, which is read as the end of"
            " the prompt, where the continuation begins too; leave out continuations or the answers"
        )
    prompt_ids = tuple(p + ids[0][:n] for p, ids, n in zip(tokens.prompt_ids, answers, shared, strict=True))
    contrasted = [[each[n] for each in ids] for ids, n in zip(answers, shared, strict=True)]
    return replace(
        tokens,
        prompt_ids=prompt_ids,
        answer_ids=torch.tensor(contrasted),
        answer_tokens=tuple(answers),
        answer_texts=tuple(pairs),
        shared=tuple(shared),
    )


def short(text: str, most: int = 60) -> str:
    """A text as an error quotes it: at most `most` characters of it."""
    return repr(text) if len(text) <= most else f"{text[:most]!r}..."


def _check_first_tokens(pair: AnswerPair, ids: AnswerTokens, mode: str, tokenizer: Any) -> None:
    for answer, found in zip(pair, ids, strict=True):
        if len(found) > 1 and mode == "error":
            tokens = ", ".join(repr(token_text(tokenizer, i)) for i in found[:_LISTED])
            more = ", ..." if len(found) > _LISTED else ""
            raise PromptError(
                f"the answer {short(answer)} is {len(found)} tokens ({tokens}{more}), not one; choose a one-token"
                ' answer, or pass multi_token="first" (--multi-token first) to contrast first tokens, "sum" for whole'
                " answers"
            )
    if ids[0][0] == ids[1][0]:
        several = ', or pass multi_token="sum" (--multi-token sum)' if ids[0] != ids[1] else ""
        raise PromptError(
            f"the answers {short(pair[0])} and {short(pair[1])} share their first token; choose two that"
            f" differ{several}"
        )
