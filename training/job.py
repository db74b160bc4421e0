"""The contract between a run and the engines: a `Job` goes in, an `Outcome` comes out.

An engine tunes one policy and does nothing else. What is common to all of them (data, rewards, evaluations,
checkpoints on disk, null runs, the pair's manifest) is the run's.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import nn

from interp.errors import MissingExtra
from training.config import RLHFConfig
from training.reward import Reward
from training.rollouts import Sampler


@runtime_checkable
class Watch(Protocol):
    """What an engine tells the run."""

    def log(self, row: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl: the figures of one round of optimiser steps, `step` among them."""

    def progress(self, event: Mapping[str, Any]) -> None:
        """The same figures for whoever looks on; more often if that helps."""

    def stepped(self, step: int, model: nn.Module) -> None:
        """The weights after `step` optimiser steps; the run evaluates and stores them where the recipe asks.

        `model` is the plain model of transformers, or the PeftModel around it.
        """


@dataclass(frozen=True)
class Job:
    """One policy to be tuned.

    Attributes:
        config: the recipe; its seed is this policy's own.
        base: the model to start from, frozen; an engine copies it and never changes it.
        tokenizer: base's own tokenizer.
        sampler: samples with the recipe's settings, end tokens and seed.
        prompts: texts to learn from.
        reward: the reward, checked at every call.
        folder: this policy's own folder; an engine that can go on after a crash keeps its state in `state/` there.
        watch: what the engine tells the run.
        shuffle: seed by which scores are permuted among the samples of each round (a null run); None leaves them.
        stop_at_kl: stop after the first round whose KL reaches this, nats per response token; None never does.
    """

    config: RLHFConfig
    base: nn.Module
    tokenizer: Any
    sampler: Sampler
    prompts: tuple[str, ...]
    reward: Reward
    folder: Path
    watch: Watch
    shuffle: int | None = None
    stop_at_kl: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What an engine made of a job.

    Attributes:
        model: the tuned policy: a model of base's own class, or a PeftModel around one where the recipe asks for LoRA.
        kl_at_step_0: KL(policy || base) before the first update, nats per response token; 0 to rounding.
        steps: optimiser steps taken.
        value_head: the value head, of PPO.
        reached_kl: whether `stop_at_kl` was reached; None where none was asked for.
    """

    model: nn.Module
    kl_at_step_0: float
    steps: int
    value_head: nn.Module | None = None
    reached_kl: bool | None = None


Engine = Callable[[Job], Outcome]

_ENGINES = {"native": "training.native", "trlx": "training.trlx", "trl": "training.trl"}


def engine(name: str) -> Engine:
    """The engine of that name: `tune` of its package, imported when it is asked for."""
    found: Engine = importlib.import_module(_ENGINES[name]).tune
    return found


def require(name: str) -> None:
    """Refuse an engine whose library is not installed, before any work is done.

    Raises:
        MissingExtra: with the command that installs it.
    """
    if name == "trl" and importlib.util.find_spec("trl") is None:
        raise MissingExtra("trl", "the engine trl")
    if name == "trlx" and importlib.util.find_spec("trlx") is None:
        raise importlib.import_module("training.trlx.compat").MissingTrlx


def state_step(name: str, folder: Path) -> int | None:
    """Optimiser steps taken in the state that the engine stored in a policy's folder; None where it stored none."""
    module = importlib.import_module(_ENGINES[name])
    found: int | None = module.state_step(folder) if hasattr(module, "state_step") else None
    return found
