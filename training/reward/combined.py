"""Rewards made of others: a weighted sum, and the unrelated rewards of null runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from interp.errors import TrainingError
from interp.models import RewardModel
from training.reward.checked import Reward
from training.seeding import derive, permutation

LETTERS = "etaoinshrdlu"
"""The letters that are frequent in English: each has a share that a policy can raise or lower."""


@dataclass(frozen=True)
class WeightedSum:
    """The reward sum_k weight_k reward_k.

    Attributes:
        terms: weight and reward of each term, by name.
    """

    terms: Mapping[str, tuple[float, Reward]]

    def parts(
        self, samples: Sequence[str], prompts: Sequence[str], outputs: Sequence[str]
    ) -> dict[str, Float[np.ndarray, " sample"]]:
        """Each term's own score, not weighted.

        Raises:
            TrainingError: a term misbehaves; its name is said.
        """
        scores = {}
        for name, (_, reward) in self.terms.items():
            try:
                scores[name] = reward(samples, prompts, outputs)
            except TrainingError as error:
                raise TrainingError(f"reward.terms.{name}: {error}") from error
        return scores

    def __call__(
        self, *, samples: Sequence[str], prompts: Sequence[str], outputs: Sequence[str]
    ) -> Float[np.ndarray, " sample"]:
        """The weighted sum, float64."""
        scores = self.parts(samples, prompts, outputs)
        return sum((weight * scores[name] for name, (weight, _) in self.terms.items()), np.zeros(len(samples)))


@dataclass(frozen=True)
class LetterShare:
    """The share of one letter among the letters of each response, 0 for a response without letters."""

    letter: str

    def __call__(self, *, outputs: Sequence[str], **_: Any) -> Float[np.ndarray, " sample"]:
        """The shares, whatever the case."""
        counts = [(text.lower().count(self.letter), sum(map(str.isalpha, text))) for text in outputs]
        return np.array([own / max(1, every) for own, every in counts], dtype=np.float64)


def unrelated(reward: Reward, number: int, seed: int) -> Reward:
    """A reward that has nothing to do with `reward`, for a null run.

    Where `reward` is one label of a classifier of three labels or more, it is another label of that classifier. Of two
    labels the other is the same reward with its sign turned, so there, and once the labels are used up, it is the share
    of one frequent letter among the response's letters. The seed draws the order; every number has its own.

    Args:
        reward: the pair's reward.
        number: number of the null run, from 0.
        seed: seed of the order.

    Raises:
        TrainingError: there are not so many.
    """
    source = reward.source
    others: list[str] = []
    if isinstance(source, RewardModel) and len(source.labels) >= 3:
        others = [label for label in source.labels if label != source.label]
    others = [others[i] for i in permutation(len(others), derive(seed, "unrelated labels"))]
    letters = [LETTERS[i] for i in permutation(len(LETTERS), derive(seed, "unrelated letters"))]
    if number >= len(others) + len(letters):
        raise TrainingError(
            f"there are {len(others) + len(letters)} unrelated rewards, number {number} is asked for; ask for fewer"
        )
    if number >= len(others):
        letter = letters[number - len(others)]
        described = {"function": f"share of the letter {letter} among the response's letters"}
        return Reward(LetterShare(letter), batch_size=reward.batch_size, description=described)
    assert isinstance(source, RewardModel)
    changed = replace(source, label=others[number], description={**source.description, "label": others[number]})
    described = {**reward.description, "label": others[number]}
    return Reward(changed, batch_size=reward.batch_size, reads=reward.reads, description=described)
