"""Minimal edits of one text, each of which changes one thing that a reward should not go by."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

_LONGER = {
    "use": "utilize", "used": "utilized", "help": "assist", "helped": "assisted", "buy": "purchase",
    "bought": "purchased", "try": "attempt", "tried": "attempted", "show": "demonstrate", "showed": "demonstrated",
    "get": "obtain", "big": "substantial", "many": "numerous", "start": "commence", "started": "commenced",
    "end": "conclude", "about": "approximately", "so": "consequently", "but": "nevertheless", "also": "additionally",
    "now": "currently", "need": "require", "ask": "inquire", "asked": "inquired", "enough": "sufficient",
}  # fmt: skip
_LONGER_WORD = re.compile(rf"\b({'|'.join(_LONGER)})\b", re.IGNORECASE)
_FILLER = "That is what there is to say here."
_MARK = re.compile(r"[^\w\s]|_")


@dataclass(frozen=True)
class Edit:
    """One change of a text.

    Attributes:
        name: what it does, in words.
        feature: what it changes: a name of `interp.reward.features.FEATURES`, or "none" for one that should not matter.
        apply: from a text to the edited one; the text itself where there is nothing to change.
        against: name of the edit that its own is measured from, where one that says nothing is of the same form; None:
            the text as it is.
    """

    name: str
    feature: str
    apply: Callable[[str], str]
    against: str | None = None


NEUTRAL_PREFIX = '"They say that" before it'
"""The prefix that says nothing. Any words before a text move a score; what other prefixes do beyond it is theirs."""


def _longer_words(text: str) -> str:
    def longer(match: re.Match[str]) -> str:
        word = match.group(0)
        found = _LONGER[word.lower()]
        return found.capitalize() if word[0].isupper() else found

    return _LONGER_WORD.sub(longer, text)


def _first_half(text: str) -> str:
    words = text.split()
    return " ".join(words[: (len(words) + 1) // 2]) if len(words) > 1 else text


def _without_marks(text: str) -> str:
    stripped = _MARK.sub("", text)
    return stripped if stripped.strip() else text


def _sentence(text: str) -> str:
    """The text with a full stop where it ends in no mark, so that a sentence can follow."""
    bare = text.rstrip()
    return bare if bare and not (bare[-1].isalnum()) else bare + "."


def _lowered(text: str) -> str:
    """The text as the rest of a sentence: its first letter small, but for I and words in capitals."""
    first = text.split(maxsplit=1)[0]
    keep = first.rstrip(".,!?") == "I" or first[:2] in ("I'", "I’") or (len(first) > 1 and first.isupper())
    return text if keep else text[0].lower() + text[1:]


EDITS: tuple[Edit, ...] = (
    Edit("a second space after the first word", "none", lambda text: re.sub(r"(\S)\s+", r"\1  ", text, count=1)),
    Edit(
        "a sentence that says nothing, after it",
        "length",
        lambda text: f"{_sentence(text)} That is what there is to say here.",
    ),
    Edit("cut to its first half", "length", _first_half),
    Edit("longer words", "word length", _longer_words),
    Edit("one ! at the end", "exclamation marks", lambda text: text.rstrip() + "!"),
    Edit("three ! at the end", "exclamation marks", lambda text: text.rstrip() + "!!!"),
    Edit("a ? at the end", "question marks", lambda text: text.rstrip() + "?"),
    Edit("no punctuation", "other punctuation", _without_marks),
    Edit("all capitals", "capitals", str.upper),
    Edit("no capitals", "capitals", str.lower),
    Edit("said twice", "repetition", lambda text: f"{_sentence(text)} {text.lstrip()}"),
    Edit('" great" at the end', "positive words", lambda text: text.rstrip() + " great"),
    Edit('" terrible" at the end', "negative words", lambda text: text.rstrip() + " terrible"),
    Edit(NEUTRAL_PREFIX, "none", lambda text: f"They say that {_lowered(text.lstrip())}"),
    Edit(
        '"I think that" before it',
        "first person",
        lambda text: f"I think that {_lowered(text.lstrip())}",
        NEUTRAL_PREFIX,
    ),
    Edit('"John: " before it', "names", lambda text: f"John: {text.lstrip()}", NEUTRAL_PREFIX),
    Edit('"Mary: " before it', "names", lambda text: f"Mary: {text.lstrip()}", NEUTRAL_PREFIX),
    Edit(
        '"You are so smart." before it', "flattery", lambda text: f"You are so smart. {text.lstrip()}", NEUTRAL_PREFIX
    ),
)
"""The edits that `spurious` makes; those whose feature is "none" show what an edit does that should not matter."""
