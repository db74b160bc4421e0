"""What TRL's trainer tells while it trains, in the run's own words."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from torch import nn

from interp.errors import TrainingError
from training.job import Job

NAMES = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "clip_ratio/region_mean": "clip_fraction",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
}
"""Figures of TRL's that are kept, and what they are called here."""


class Follower:
    """Joins the figures of the samples with those of the steps, writes rows, and says when to stop."""

    def __init__(self, job: Job, policy: nn.Module) -> None:
        """Follow one policy."""
        self.job, self.policy = job, policy
        self.reached_kl = False
        self._figures: dict[str, float] = {}
        self._samples, self._since = 0, time.perf_counter()

    def sampled(self, figures: Mapping[str, float], count: int) -> None:
        """The figures of freshly drawn samples, before they are learned from.

        Raises:
            TrainingError: their KL exceeds the limit.
        """
        kl, limit = figures["kl"], self.job.config.train.kl_limit
        if not kl <= limit:
            raise TrainingError(
                f"the policy diverged: KL {kl:.3g} nats per response token exceeds train.kl_limit ({limit:g}); lower "
                "train.learning_rate or raise beta"
            )
        self._figures, self._samples = dict(figures), self._samples + count
        self.reached_kl |= self.job.stop_at_kl is not None and kl >= self.job.stop_at_kl

    def logged(self, step: int, logs: Mapping[str, Any]) -> None:
        """The trainer's own figures after a step.

        Raises:
            TrainingError: the loss is not finite.
        """
        if "loss" not in logs:
            return  # the summary at the end
        if not math.isfinite(float(logs["loss"])):
            raise TrainingError(f"the policy diverged at step {step}: loss {logs['loss']}; lower train.learning_rate")
        row: dict[str, Any] = {"step": step - 1, **self._figures}
        row |= {ours: float(logs[theirs]) for theirs, ours in NAMES.items() if theirs in logs}
        if self.job.config.train.timings and self._samples:
            now = time.perf_counter()
            row["samples_per_s"] = self._samples / (now - self._since)
            self._samples, self._since = 0, now
        self.job.watch.log(row)
        self.job.watch.progress({"stage": "trl", "steps": self.job.config.train.total_steps, **row, "step": step})


def follow(follower: Follower) -> Any:
    """The follower as a callback of transformers' trainer."""
    from transformers import TrainerCallback

    class Callback(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            follower.logged(state.global_step, logs or {})

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            follower.job.watch.stepped(state.global_step, follower.policy)
            control.should_training_stop |= follower.reached_kl
            return control

    return Callback()
