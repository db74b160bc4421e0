"""Rewards: a reward model or any Python callable, checked at every call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from interp.errors import InterpError, TrainingError

RewardFunction = Callable[..., Sequence[float]]
"""Called as trlX calls it, with keywords: `f(samples=[...], prompts=[...], outputs=[...])`, one number a sample."""


@runtime_checkable
class TextScorer(Protocol):
    """What scores whole texts, such as `interp.models.RewardModel`."""

    def score(self, texts: Sequence[str], *, batch_size: int = ...) -> Any:
        """One number a text."""


class Reward:
    """The reward of sampled texts: one finite number each, or a `TrainingError`."""

    def __init__(self, source: TextScorer | RewardFunction, *, batch_size: int = 64) -> None:
        """Wrap a reward model (it sees prompt and response as one text) or a callable (see `RewardFunction`).

        Raises:
            TrainingError: `source` is neither.
        """
        if not isinstance(source, TextScorer) and not callable(source):
            raise TrainingError(f"a reward is a RewardModel or a callable, not a {type(source).__name__}; pass one")
        self.source = source
        self.batch_size = batch_size

    def __call__(
        self, samples: Sequence[str], prompts: Sequence[str], outputs: Sequence[str]
    ) -> Float[np.ndarray, " sample"]:
        """Scores of `samples` (prompt and response), float64.

        Raises:
            TrainingError: the reward raised, returned another count than was asked for, or something not finite.
        """
        try:
            if isinstance(self.source, TextScorer):
                raw: Any = self.source.score(list(samples), batch_size=self.batch_size)
            else:
                raw = self.source(samples=list(samples), prompts=list(prompts), outputs=list(outputs))
        except InterpError:
            raise
        except Exception as error:  # whatever a user's function raises, the run ends in one line that says where
            raise TrainingError(f"the reward function raised {type(error).__name__}: {error}; correct it") from error
        return self._checked(raw, len(samples))

    @staticmethod
    def _checked(raw: Any, count: int) -> Float[np.ndarray, " sample"]:
        try:
            scores = np.asarray(raw, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise TrainingError(f"the reward function must return numbers, not {type(raw).__name__}") from error
        if scores.shape != (count,):
            came = f"{scores.shape[0]} came" if scores.ndim == 1 else f"shape {scores.shape} came"
            raise TrainingError(f"the reward function must return {count} numbers, one a sample; {came}")
        bad = np.flatnonzero(~np.isfinite(scores))
        if bad.size:
            raise TrainingError(
                f"the reward function returned {scores[bad[0]]} for sample {bad[0]} ({bad.size} of {count} not finite)"
            )
        return scores
