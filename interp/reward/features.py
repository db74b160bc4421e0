"""What a reward model should not go by, counted in a text: length, punctuation, capitals, names, flattery and so on.

A feature is one number a text. The word lists are short and English on purpose: they are to be read, not trusted; a
list of your own goes into `Feature`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")

POSITIVE = frozenset(
    """amazing awesome beautiful best brilliant cool delightful enjoy enjoyed excellent fantastic fun glad good great
    happy hilarious incredible like liked lovely love loved nice perfect pleasant pretty thanks wonderful wow""".split()
)
NEGATIVE = frozenset(
    """angry annoying awful bad boring cruel disgusting dull fail failed hate hated horrible hurt lame mess nasty poor
    sad scared sorry stupid terrible ugly unfortunately upset waste weak worse worst wrong""".split()
)
FIRST_PERSON = frozenset("i i'm i've i'd i'll me my mine myself we we're we've us our ours ourselves".split())
NAMES = frozenset(
    """alex alice amy andrew anna anthony ben charles chris daniel david donald elizabeth emily emma eric george hannah
    james jane jason jennifer jessica john jonathan joseph josh julia karen kate kevin laura lisa maria mark mary matt
    michael mike nancy nick oliver paul peter rachel richard robert ryan sam sarah scott sophia steve steven susan
    thomas tim tom tyler william""".split()
)
FLATTERY = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\byou(?:'|’)?\s?(?:are|re)\s+(?:so\s+|very\s+|really\s+|such\s+an?\s+)?"
        r"(?:amazing|awesome|brilliant|clever|genius|great|kind|right|smart|sweet|the best|wise|wonderful)\b",
        r"\b(?:great|good|excellent|brilliant|smart)\s+(?:question|point|idea|work|job)\b",
        r"\byour\s+(?:brilliant|great|excellent|wonderful|amazing)\b",
        r"\bas you (?:rightly|wisely|correctly)\b",
    )
)


@dataclass(frozen=True)
class Feature:
    """One number of a text.

    Attributes:
        name: its name.
        words: what it counts, for a reader.
        count: from a text to the number.
    """

    name: str
    words: str
    count: Callable[[str], float]


def text_words(text: str) -> list[str]:
    """The words of a text, letters and apostrophes, as they are written."""
    return _WORD.findall(text)


def _share(text: str, of: Callable[[str], bool]) -> float:
    own = [char for char in text if not char.isspace()]
    return sum(map(of, own)) / max(1, len(own))


def _is_mark(char: str) -> bool:
    return not char.isalnum() and not char.isspace()


def _word_length(text: str) -> float:
    found = text_words(text)
    return sum(map(len, found)) / max(1, len(found))


def _capitals(text: str) -> float:
    letters = [char for char in text if char.isalpha()]
    return sum(char.isupper() for char in letters) / max(1, len(letters))


def _repetition(text: str) -> float:
    found = [word.lower() for word in text_words(text)]
    return 1 - len(set(found)) / max(1, len(found))


def _listed(words: frozenset[str]) -> Callable[[str], float]:
    return lambda text: float(sum(word.lower().replace("’", "'") in words for word in text_words(text)))


def _names(text: str) -> float:
    return float(sum(word[0].isupper() and word.lower() in NAMES for word in text_words(text)) + text.count("[NAME]"))


def _flattery(text: str) -> float:
    return float(sum(len(pattern.findall(text)) for pattern in FLATTERY))


FEATURES: tuple[Feature, ...] = (
    Feature("length", "number of words, log(1 + n)", lambda text: float(np.log1p(len(text.split())))),
    Feature("word length", "letters a word", _word_length),
    Feature("exclamation marks", "number of !", lambda text: float(text.count("!"))),
    Feature("question marks", "number of ?", lambda text: float(text.count("?"))),
    Feature(
        "other punctuation",
        "share of characters that are marks but ! and ?",
        lambda text: _share(text, lambda char: _is_mark(char) and char not in "!?"),
    ),
    Feature("capitals", "share of letters that are capitals", _capitals),
    Feature("repetition", "share of words that were there before", _repetition),
    Feature("positive words", f"number of words of a list of {len(POSITIVE)}", _listed(POSITIVE)),
    Feature("negative words", f"number of words of a list of {len(NEGATIVE)}", _listed(NEGATIVE)),
    Feature("first person", "number of I, me, my, we, our ...", _listed(FIRST_PERSON)),
    Feature("names", f"number of first names of a list of {len(NAMES)}, and of [NAME]", _names),
    Feature(
        "flattery",
        "number of phrases that praise the reader",
        lambda t: float(sum(len(p.findall(t)) for p in FLATTERY)),
    ),
)
"""The features that `spurious` looks at."""


def measure(texts: Sequence[str], features: Sequence[Feature] = FEATURES) -> np.ndarray:
    """Every feature of every text, [text, feature]."""
    return np.array([[feature.count(text) for feature in features] for text in texts], dtype=np.float64)
