"""Remarks: what is legal in prompts and answers, and yet seldom meant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from interp.prompts.answers import AnswerPair
from interp.prompts.tokens import TokenizedPrompts


def remarks_on(
    tokens: TokenizedPrompts, contexts: Sequence[str], pairs: Sequence[AnswerPair] | None, tokenizer: Any
) -> tuple[str, ...]:
    """One sentence for each kind of oddity.

    Args:
        tokens: the prompts as they were read.
        contexts: the texts that answers follow.
        pairs: the answers, or None.
        tokenizer: their tokenizer.
    """
    found = (_spaces(contexts), _no_space(contexts, pairs or ()), _unknown(tokens, tokenizer), _shared(tokens))
    return tuple(sentence for sentence in found if sentence)


def _spaces(contexts: Sequence[str]) -> str:
    count = sum(text[-1:] in (" ", "\t") for text in contexts)
    return f"{_prompts(count, 'ends', 'end')} in a space: the next word's token usually carries it." if count else ""


def _no_space(contexts: Sequence[str], pairs: Sequence[AnswerPair]) -> str:
    """Words that run into each other; only where the script parts words by spaces."""
    glued = [
        text.split()[-1] + answer.split()[0]
        for text, pair in zip(contexts, pairs, strict=False)
        for answer in pair
        if _ascii_letter(text[-1:]) and _ascii_letter(answer[:1])
    ]
    if not glued:
        return ""
    return f"An answer without its leading space is read as part of the prompt's last word, as {glued[0]!r}."


def _ascii_letter(character: str) -> bool:
    return character.isascii() and character.isalpha()


def _unknown(tokens: TokenizedPrompts, tokenizer: Any) -> str:
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None or unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        return ""
    rows = tokens.encoder_ids if tokens.encoder_ids is not None else tokens.prompt_ids
    count = sum(unknown in ids for ids in rows)
    if not count:
        return ""
    return f"{_prompts(count, 'has', 'have')} characters that the tokenizer does not know ({tokenizer.unk_token})."


def _shared(tokens: TokenizedPrompts) -> str:
    count = sum(number > 0 for number in tokens.shared)
    if not count:
        return ""
    where = "1 prompt" if count == 1 else f"{count} prompts"
    return f"After {where} both answers begin alike; what they share is read as the prompt's end."


def _prompts(count: int, one: str, more: str) -> str:
    return f"1 prompt {one}" if count == 1 else f"{count} prompts {more}"
