"""A grammar for short film reviews: the corpus of the demo pair.

A review has one sentiment. What it says agrees with it, except that one phrase in twelve does not, that "but" turns
once and for one clause, and that "not" turns a word of the other sentiment round. Some sentences say nothing of the
film. So the sentiment of a review is never one word's affair, and an opening such as "This movie was really" leaves it
open.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

LABELS = ("negative", "positive")
POSITIVE_SHARE = 0.68
NOISE = 1 / 12

FILMS = ("This movie", "This film", "The movie", "The film", "This comedy", "The thriller", "This drama", "The sequel")
ASPECTS = (
    "acting",
    "plot",
    "script",
    "ending",
    "music",
    "cast",
    "story",
    "dialogue",
    "pacing",
    "direction",
    "camera work",
)
COPULAS = ("was", "is", "felt", "seemed", "looked")
DEGREES = ("really", "very", "quite", "so", "truly", "rather", "simply", "pretty")
SPEAKERS = ("I thought", "I found that", "My friends said", "The critics said", "We all agreed", "In the end I felt")
# Each list starts with its commonest words (see `_pick`): " good" and " bad" are the demo's pair of answers.
ADJECTIVES = {
    "positive": ("good", "great", "funny", "clever", "charming", "moving", "brilliant", "fresh", "gripping", "lovely",
                 "superb", "warm"),
    "negative": ("bad", "boring", "dull", "stupid", "weak", "awful", "terrible", "stale", "clumsy", "ugly",
                 "tedious", "cold"),
}  # fmt: skip
NOUNS = {
    "positive": ("a masterpiece", "a joy", "a triumph", "a gem", "a pleasure", "a delight"),
    "negative": ("a disaster", "a mess", "a failure", "a waste of time", "a bore", "a disgrace"),
}
FEELINGS = {
    "positive": ("loved", "enjoyed", "admired", "adored"),
    "negative": ("hated", "disliked", "despised", "regretted"),
}
REACTIONS = {
    "positive": ("laughed", "smiled", "cheered", "clapped"),
    "negative": ("yawned", "slept", "groaned", "sighed"),
}
VERDICTS = {
    "positive": (
        "I would watch it again",
        "I recommend it to everyone",
        "It is worth every minute",
        "You should see it soon",
        "I can not wait for the next one",
    ),
    "negative": (
        "I want my money back",
        "I would not recommend it to anyone",
        "It is not worth a minute",
        "You should stay at home",
        "I walked out before the end",
    ),
}
NEUTRAL = (
    "I saw it on Friday with my sister",
    "It is two hours long",
    "The film is set in Paris",
    "We watched it at home last night",
    "It was made by a young director",
    "The story is based on a book",
    "My brother bought the tickets",
    "It opens with a long train ride",
)


@dataclass(frozen=True)
class Review:
    """A review and its label, "negative" or "positive"."""

    text: str
    label: str


def reviews(count: int, seed: int) -> list[Review]:
    """`count` random reviews of two or three sentences, the same for the same seed."""
    rng = random.Random(seed)
    return [_review(rng) for _ in range(count)]


def openings() -> list[str]:
    """Every opening that stops before the word that would give the sentiment away."""
    plain = [f"{film} {copula}" for film in FILMS for copula in COPULAS]
    graded = [f"{film} {copula} {degree}" for film, copula, degree in itertools.product(FILMS, COPULAS, DEGREES)]
    aspects = [f"The {aspect} {copula} {d}" for aspect, copula, d in itertools.product(ASPECTS, ("was", "is"), DEGREES)]
    said = [f"{speaker} the {aspect} was" for speaker in SPEAKERS for aspect in ASPECTS]
    told = [f"{sentence}. {film} was" for sentence in NEUTRAL for film in FILMS]
    return list(dict.fromkeys([*plain, *graded, *aspects, *said, *told]))


def _pick(rng: random.Random, words: tuple[str, ...]) -> str:
    """A word, the first ones more often: weights 1/2, 1/3, 1/4 and so on."""
    return rng.choices(words, weights=[1 / (rank + 2) for rank in range(len(words))])[0]


def _other(label: str) -> str:
    return LABELS[1 - LABELS.index(label)]


def _review(rng: random.Random) -> Review:
    label = "positive" if rng.random() < POSITIVE_SHARE else "negative"

    def polarity() -> str:
        return _other(label) if rng.random() < NOISE else label

    first = rng.choices((_film_sentence, _aspect_sentence, _said_sentence, None), weights=(5, 2, 1, 2))[0]
    if first is None:
        sentences = [rng.choice(NEUTRAL), _film_sentence(rng, polarity())]
    else:
        sentences = [first(rng, polarity())]
        sentences.append(rng.choice((_aspect_sentence, _said_sentence, _feeling_sentence))(rng, polarity()))
    if rng.random() < 0.5:
        sentences.append(rng.choice(VERDICTS[polarity()]))
    return Review(". ".join(sentences) + ".", label)


def _quality(rng: random.Random, polarity: str) -> str:
    """An adjective phrase, in one case of eight by denying the opposite."""
    if rng.random() < 0.125:
        return f"not {_pick(rng, ADJECTIVES[_other(polarity)])}"
    adjective = _pick(rng, ADJECTIVES[polarity])
    return f"{_pick(rng, DEGREES)} {adjective}" if rng.random() < 0.6 else adjective


def _film_sentence(rng: random.Random, polarity: str) -> str:
    film, copula = _pick(rng, FILMS), _pick(rng, COPULAS)
    form = rng.random()
    if form < 0.2 and copula in ("was", "is"):
        return f"{film} {copula} {rng.choice(NOUNS[polarity])}"
    if form < 0.4:
        return f"{film} {copula} {_quality(rng, polarity)} and {_pick(rng, ADJECTIVES[polarity])}"
    if form < 0.5:  # the clause after "but" has the last word
        first, last = _quality(rng, _other(polarity)), _quality(rng, polarity)
        return f"{film} {copula} {first} but the {rng.choice(ASPECTS)} was {last}"
    return f"{film} {copula} {_quality(rng, polarity)}"


def _aspect_sentence(rng: random.Random, polarity: str) -> str:
    first, second = rng.sample(ASPECTS, 2)
    if rng.random() < 0.4:
        return f"The {first} was {_quality(rng, polarity)} and the {second} was {_pick(rng, ADJECTIVES[polarity])}"
    return f"The {first} {rng.choice(('was', 'is'))} {_quality(rng, polarity)}"


def _said_sentence(rng: random.Random, polarity: str) -> str:
    return f"{rng.choice(SPEAKERS)} the {rng.choice(ASPECTS)} was {_quality(rng, polarity)}"


def _feeling_sentence(rng: random.Random, polarity: str) -> str:
    if rng.random() < 0.4:
        return f"We {rng.choice(REACTIONS[polarity])} until the end"
    one, two = rng.sample(ASPECTS, 2)
    return f"I {_pick(rng, FEELINGS[polarity])} the {one} and {_pick(rng, FEELINGS[polarity])} the {two}"
