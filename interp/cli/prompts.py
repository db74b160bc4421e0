"""Prompts out of the options of a command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import PromptError
from interp.io import os_reason

if TYPE_CHECKING:
    from interp.prompts import Prompts


def prompts_from(
    texts: list[str] | None,
    file: Path | None,
    *,
    column: str | None,
    answer: str | None,
    against: str | None,
    multi_token: str,
    chat_template: str | None,
    decoder_prefix: str | None,
) -> Prompts:
    """The prompts that the options name.

    Args:
        texts: values of --prompt.
        file: value of --prompts.
        column: value of --column.
        answer: value of --answer.
        against: value of --against.
        multi_token: value of --multi-token.
        chat_template: value of --chat-template: "base", "tuned", or the file of a template.
        decoder_prefix: value of --decoder-prefix.

    Raises:
        PromptError: there are none, both kinds are there, or options do not go together.
    """
    from interp.prompts import Prompts

    if not texts and file is None:
        raise PromptError("there are no prompts; give --prompt TEXT, or --prompts FILE")
    if texts and file is not None:
        raise PromptError(
            "--prompt and --prompts were both given; put all prompts into the file, or give --prompt alone"
        )
    if column is not None and file is None:
        raise PromptError("--column names a column of --prompts; give that file too")
    if (answer is None) != (against is None):
        raise PromptError("--answer and --against go together; give both or none")
    settings: dict[str, Any] = {"multi_token": multi_token, "decoder_prefixes": decoder_prefix}
    if answer is not None and against is not None:
        settings["answers"] = (answer, against)
    if chat_template is not None:
        settings["chat_template"] = _template(chat_template)
    if file is not None:
        return Prompts.from_file(file, column=column, **settings)
    return Prompts(texts or [], **settings)


def _template(value: str) -> str:
    if value in ("base", "tuned"):
        return value
    try:
        return Path(value).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = os_reason(error) if isinstance(error, OSError) else "it is not UTF-8 text"
        raise PromptError(
            f"cannot read the chat template {value} ({reason}); --chat-template is base, tuned or a jinja file"
        ) from error
