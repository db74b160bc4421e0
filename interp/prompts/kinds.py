"""What a prompt may be: a text, a chat, or token ids; and how each becomes the text that a model reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any, Literal

from interp.errors import PromptError

Kind = Literal["text", "chat", "ids"]
Message = Mapping[str, Any]
Prompt = str | Sequence[Message] | Sequence[int]

ROLES = ("system", "developer", "user", "assistant", "tool")
_IN_WORDS = {"text": "a text", "chat": "a chat", "ids": "token ids"}
_SHOWN = 40


def check_prompt(value: Any, where: str) -> tuple[Kind, Prompt]:
    """Say what a prompt is, and give it back in plain Python types.

    Args:
        value: a string, a list of messages, a list of whole numbers, or an array of either.
        where: how an error names it, as "prompt 3".

    Raises:
        PromptError: it is none of these, is empty, has an unknown role, or is no valid Unicode.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, str):
        if not value.strip():
            raise PromptError(f"{where} is empty; drop it or give it a text")
        return "text", check_text(value, where)
    if not isinstance(value, Sequence) or isinstance(value, (bytes, bytearray)):
        raise PromptError(
            f"{where} is {_seen(value)}; a prompt is a text, a chat (a list of messages) or a list of token ids,"
            " and one chat alone goes into a list of its own, as Prompts([chat])"
        )
    if not value:
        raise PromptError(f"{where} is an empty list; give it messages or token ids, or drop it")
    if all(isinstance(each, Integral) and not isinstance(each, bool) for each in value):
        if min(value) < 0:
            raise PromptError(f"{where} holds the token id {min(value)}; ids count from 0")
        return "ids", tuple(map(int, value))
    if all(isinstance(each, Mapping) for each in value):
        return "chat", _check_chat(value, where)
    odd = next((each for each in value if not isinstance(each, (Integral, Mapping)) or isinstance(each, bool)), None)
    found = f"a list with {_seen(odd)}" if odd is not None else "a list of both messages and token ids"
    raise PromptError(f"{where} is {found}; a list holds messages, as {{'role': 'user', 'content': ...}}, or token ids")


def check_text(text: str, where: str) -> str:
    """Refuse what no tokenizer can read.

    Raises:
        PromptError: the text holds a lone surrogate.
    """
    if not text.isprintable() and any("\ud800" <= c <= "\udfff" for c in text):
        raise PromptError(f"{where} is no valid Unicode (a lone surrogate); read its file as UTF-8")
    return text


def _check_chat(messages: Sequence[Message], where: str) -> tuple[dict[str, Any], ...]:
    for number, message in enumerate(messages):
        here = f"{where}, message {number}"
        lacking = [key for key in ("role", "content") if key not in message]
        if lacking:
            raise PromptError(
                f"{here} has no {' and no '.join(map(repr, lacking))}; a message is {{'role': 'user', 'content': ...}}"
            )
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise PromptError(f"{here} has the role {role!r}; a role is one of {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise PromptError(f"{here} has {_seen(content)} for its content; these models read text, so give a string")
        check_text(content, here)
    if not any(message["content"].strip() for message in messages):
        raise PromptError(f"{where} is a chat in which nothing is said; give a message some content, or drop it")
    return tuple(map(dict, messages))


def same_kind(kinds: Sequence[Kind], where: Callable[[int], str] = "prompt {}".format) -> Kind:
    """The one kind of all prompts; `where` names a prompt by its index.

    Raises:
        PromptError: there are two kinds, naming the first prompt that differs.
    """
    for index, kind in enumerate(kinds):
        if kind != kinds[0]:
            raise PromptError(
                f"{where(0)} is {_IN_WORDS[kinds[0]]} and {where(index)} is {_IN_WORDS[kind]};"
                " compare texts, chats and token ids one kind at a time"
            )
    return kinds[0]


def render_chats(tokenizer: Any, chats: Sequence[Any], template: str | None) -> list[str]:
    """Chats as the texts that a model reads, up to where its answer begins.

    After a last message of the assistant the model goes on with that message; else a new answer begins.

    Args:
        tokenizer: a tokenizer of transformers.
        chats: messages of each chat.
        template: a jinja template; None is the tokenizer's own.

    Raises:
        PromptError: there is no template, or it does not take such a chat.
    """
    if template is None:
        own_template(tokenizer, "the")
    texts = []
    for index, chat in enumerate(chats):
        goes_on = chat[-1]["role"] == "assistant"
        try:
            text = tokenizer.apply_chat_template(
                list(chat),
                chat_template=template,
                tokenize=False,
                add_generation_prompt=not goes_on,
                continue_final_message=goes_on,
            )
        except Exception as error:  # a template is a program of its own, and raises what it likes
            raise PromptError(
                f"the chat template does not take prompt {index}: {str(error)[:200]}; change its messages or pass"
                " another chat_template="
            ) from error
        texts.append(text)
    return texts


def own_template(tokenizer: Any, whose: str) -> str:
    """A tokenizer's own chat template; where it has several by name, the one for plain chats.

    Raises:
        PromptError: it has none.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise PromptError(
            f"the prompts are chats, and {whose} tokenizer has no chat template; pass chat_template= (--chat-template):"
            ' a jinja template, or "base" or "tuned" for that model\'s own; or give the prompts as texts'
        )
    template: str = tokenizer.get_chat_template()
    return template


def check_template(value: Any) -> None:
    """Refuse what is no chat template.

    Raises:
        PromptError: it is neither None, "base", "tuned" nor a jinja template.
    """
    if value is None or value in ("base", "tuned"):
        return
    if not isinstance(value, str) or "{" not in value:
        raise PromptError(
            f'chat_template is "base", "tuned", or a jinja template, which has braces, not {str(value)[:_SHOWN]!r}'
        )


def _seen(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:_SHOWN]!r}"
