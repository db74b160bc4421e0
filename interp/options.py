"""The arguments of compare() that are no model and no prompt, checked, and the reward that they name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from interp.errors import MeasureError, PromptError
from interp.measures import as_names, check_measures
from interp.measures import measures as known_measures
from interp.models import RewardModel
from interp.models.optimised import Optimised
from interp.models.pretrained import DeviceMap
from interp.pair import CheckpointPair
from interp.progress import Progress
from interp.prompts import Prompts
from interp.reward.courses import pair_at, pair_reward


@dataclass(frozen=True)
class Options:
    """The arguments of `compare` that are no model, and no prompt."""

    measures: Iterable[str] | None = None
    reward: Any = None
    optimised: Any = None
    tokenizer: Any = None
    batch_size: int = 16
    dtype: torch.dtype | str | None = None
    device: torch.device | str | None = None
    device_map: DeviceMap = None
    trust_remote_code: bool = False
    seed: int = 0
    max_new_tokens: int = 24
    draws: int | None = None
    allow_pickle: bool = False
    in_memory: str = "all"
    progress: Progress | None = None

    def loading(self) -> dict[str, Any]:
        """How reward models are loaded."""
        names = ("device", "device_map", "trust_remote_code", "allow_pickle")
        return {name: getattr(self, name) for name in names}

    def checked(self, prompts: Prompts) -> tuple[str, ...]:
        """The measures to take.

        Raises:
            MeasureError: they do not fit the arguments.
            PromptError: an argument is out of its range.
        """
        asked = None if self.measures is None else as_names(self.measures)
        pair = pair_of(self.reward)
        kept = pair is not None and bool(pair.checkpoints)
        names = check_measures(asked, with_reward=self.reward is not None, with_checkpoints=kept)
        numbers = {name: getattr(self, name) for name in ("batch_size", "max_new_tokens", "seed")}
        check_settings(**numbers, **({} if self.draws is None else {"draws": self.draws}))
        unanswered = [name for name in asked or () if name != "all" and known_measures()[name].needs.answers]
        if unanswered and prompts.answers is None:
            raise MeasureError(
                f"{unanswered[0]} needs answers: Prompts(..., answers=(' bad', ' good')), or --answer and --against"
            )
        for name in (each for each in asked or () if each != "all"):
            least = known_measures()[name].needs.samples
            if self.draws is not None and self.draws < least:
                raise MeasureError(f"{name} needs {least} draws or more, not {self.draws}; leave draws out")
        if self.in_memory not in ("all", "one"):
            raise PromptError(f'in_memory is "all" or "one", not {self.in_memory!r}')
        if self.optimised is not None and self.reward is None:
            raise MeasureError("optimised says what was made of a reward's score; pass reward= too")
        return names


def pair_of(given: Any) -> CheckpointPair | None:
    """The pair that is meant, if one is."""
    if isinstance(given, (str, os.PathLike)):
        return pair_at(given)
    return given if isinstance(given, CheckpointPair) else None


def scorer_of(options: Options) -> RewardModel | None:
    """The reward model, loaded."""
    if options.reward is None:
        return None
    pair = pair_of(options.reward)
    if pair is not None:
        return pair_reward(pair, **options.loading())
    return RewardModel.load(options.reward, **options.loading())


def transform_of(options: Options) -> Callable[..., Any] | None:
    """What makes the optimised reward of a raw score.

    Raises:
        MeasureError: it is neither a function nor a pair, or the pair does not say.
    """
    given = options.optimised if options.optimised is not None else pair_of(options.reward)
    if given is None:
        return None
    pair = pair_of(given)
    if pair is not None:
        return Optimised.of(pair)
    if not callable(given):
        what = repr(given) if isinstance(given, (str, os.PathLike)) else f"a {type(given).__name__}"
        raise MeasureError(f"optimised is an Optimised, a function of scores or a pair's folder, not {what}")
    return given


def check_settings(**settings: Any) -> None:
    """Refuse numbers out of range before any model is loaded.

    Raises:
        PromptError: naming the range.
    """
    for name, value in settings.items():
        low = 0 if name == "seed" else 1
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 2**63:
            raise PromptError(f"{name} is a whole number from {low} on, not {value!r}")
