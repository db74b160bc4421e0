"""Tokens and prompts made fit to be shown: whitespace visible, control characters escaped, no missing glyph."""

from __future__ import annotations

import unicodedata
from functools import cache

from matplotlib.font_manager import findfont
from matplotlib.ft2font import FT2Font

FONT = "DejaVu Sans"  # comes with matplotlib, so a figure looks the same on every machine

_MARKS = {" ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥"}
_BIDI = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F}


def _escape(char: str) -> str:
    code = ord(char)
    if code > 0xFFFF:
        return f"\\U{code:08x}"
    return f"\\u{code:04x}" if code > 0xFF else f"\\x{code:02x}"


def clean(text: str) -> str:
    r"""Escape what would harm the page around `text`, as `\x00` or `\u202e`.

    That is control characters, lone surrogates (they cannot be encoded) and marks that turn the writing direction.
    Spaces, tabs and newlines stay.
    """
    return "".join(
        _escape(c) if (unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t") or ord(c) in _BIDI else c
        for c in text
    )


def visible(token: str) -> str:
    """A token with its whitespace drawn: " bad" becomes "␣bad", a newline "↵", the empty string "(empty)"."""
    if token == "":
        return "(empty)"
    marked = (_MARKS.get(c) or (_escape(c) if unicodedata.category(c).startswith("Z") else c) for c in token)
    return clean("".join(marked))


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters, the last of them an ellipsis where something was cut."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(FT2Font(findfont(FONT)).get_charmap())


def drawable(text: str, limit: int = 18, *, token: bool = True) -> str:
    r"""`text` as matplotlib can draw it: characters that the font lacks as `\u4f60`, dollars without mathtext.

    Args:
        text: a token, or running text with `token=False`, whose single spaces stay spaces.
        limit: the most characters to keep.
        token: show every space.
    """
    shown = visible(text) if token else clean(text.replace("\n", "↵").replace("\t", " "))
    known = "".join(c if ord(c) in _glyphs() else _escape(c) for c in shown)
    return shorten(known, limit).replace("$", r"\$")
