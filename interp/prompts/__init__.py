"""Prompts: texts, chats or token ids, the answers that are contrasted after them, and their tokens."""

from typing import TYPE_CHECKING

from interp.lazy import submodules
from interp.prompts.prompts import Prompts
from interp.prompts.tokens import (
    AnswerTokens,
    Batch,
    TokenizedPrompts,
    check_same_vocabulary,
    encode,
    encode_after,
    make_batch,
    positions,
    response_ends,
    response_texts,
    token_text,
)

__all__ = [
    "AnswerTokens",
    "Batch",
    "Prompts",
    "TokenizedPrompts",
    "check_same_vocabulary",
    "encode",
    "encode_after",
    "make_batch",
    "positions",
    "response_ends",
    "response_texts",
    "token_text",
]

if not TYPE_CHECKING:
    __getattr__ = submodules(__name__)
