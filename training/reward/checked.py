"""A reward model or any Python callable, checked at every call."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from interp.errors import InterpError, TrainingError

RewardFunction = Callable[..., Sequence[float] | np.ndarray]
"""Called as trlX calls it, with keywords: `f(samples=[...], prompts=[...], outputs=[...])`, one number a sample."""


@runtime_checkable
class TextScorer(Protocol):
    """What scores whole texts, such as `interp.models.RewardModel`."""

    def score(self, texts: Sequence[str], *, batch_size: int = ...) -> Any:
        """One number a text."""


class Reward:
    """The reward of sampled texts: one finite number each, or a `TrainingError`.

    A response may be empty: a reward model then reads the prompt alone (or, where it reads responses, its own end token
    for want of any other), and a callable gets "".

    Attributes:
        source: the reward model or callable.
        batch_size: texts that a reward model scores at a time.
        reads: what a reward model reads: prompt and response as one text (`sample`), or the response (`output`).
        description: what a manifest says of it.
        truncated: texts so far that exceeded the reward model's context and were cut at their end.
    """

    def __init__(
        self,
        source: TextScorer | RewardFunction,
        *,
        batch_size: int = 64,
        reads: Literal["sample", "output"] = "sample",
        description: Mapping[str, Any] | None = None,
    ) -> None:
        """Wrap a reward model or a callable (see `RewardFunction`).

        Raises:
            TrainingError: `source` is neither.
        """
        if not isinstance(source, TextScorer) and not callable(source):
            raise TrainingError(f"a reward is a RewardModel or a callable, not a {type(source).__name__}; pass one")
        self.source = source
        self.batch_size = batch_size
        self.reads = reads
        self.description = dict(description or {})
        self.truncated = 0

    def __call__(
        self, samples: Sequence[str], prompts: Sequence[str], outputs: Sequence[str]
    ) -> Float[np.ndarray, " sample"]:
        """Scores of `samples` (prompt and response), float64.

        The first time that texts are cut to the reward model's context, a warning says so; `truncated` counts them all.

        Raises:
            TrainingError: the reward raised, returned another count than was asked for, or something not finite.
        """
        try:
            if isinstance(self.source, TextScorer):
                texts = list(samples if self.reads == "sample" else outputs)
                self._count_long(texts)
                raw: Any = self.source.score(texts, batch_size=self.batch_size)
            else:
                raw = self.source(samples=list(samples), prompts=list(prompts), outputs=list(outputs))
        except InterpError:
            raise
        except Exception as error:  # whatever a user's function raises, the run ends in one line that says where
            raise TrainingError(f"the reward function raised {type(error).__name__}: {error}; correct it") from error
        return self._checked(raw, len(samples))

    def _count_long(self, texts: list[str]) -> None:
        count: Callable[[list[str]], int] | None = getattr(self.source, "too_long", None)
        cut = count(texts) if count is not None else 0
        if cut and not self.truncated:
            warnings.warn(
                f"{cut} of {len(texts)} texts exceed the reward model's context and are scored by what fits into it;"
                " later ones are counted, not told",
                stacklevel=4,
            )
        self.truncated += cut

    @staticmethod
    def _checked(raw: Any, count: int) -> Float[np.ndarray, " sample"]:
        try:
            scores = np.asarray(raw, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise TrainingError(f"the reward function must return numbers, not {str(raw)[:60]}") from error
        if scores.shape != (count,):
            found = f"shape {scores.shape}" if scores.ndim else f"a {type(raw).__name__}"
            came = f"{scores.shape[0] if scores.ndim == 1 else found} came"
            raise TrainingError(f"the reward function must return {count} numbers, one a sample; {came}")
        bad = np.flatnonzero(~np.isfinite(scores))
        if bad.size:
            raise TrainingError(
                f"the reward function returned {scores[bad[0]]} for sample {bad[0]} ({bad.size} of {count} not finite)"
            )
        return scores
