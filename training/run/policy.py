"""One policy of a run: tuned by an engine, watched, saved, proved and measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from interp.errors import ConfigError, TrainingError
from interp.io import write_json
from training.config import RLHFConfig
from training.evaluate import Evaluation, evaluate
from training.events import Progress
from training.job import Job, Outcome, engine, state_step
from training.prompts import PromptSplit
from training.reward import Reward
from training.rollouts import Sampler
from training.run.records import Lines, write_completions
from training.run.team import Team
from training.run.trackers import Trackers
from training.run.workshop import note, write_note
from training.saving import prove, save, save_module

KL_OF_EQUALS = 1e-5
"""Two KLs of equal models differ by rounding at most: anything more means that the reference is not the base."""


@dataclass(frozen=True)
class Run:
    """What the tuned model and every model beside it share."""

    config: RLHFConfig
    folder: Path
    source: str
    base: nn.Module
    tokenizer: Any
    prompts: PromptSplit
    reward: Reward
    team: Team
    progress: Progress | None
    resume: bool

    def tell(self, event: Mapping[str, Any]) -> None:
        """Hand an event on to whoever looks on."""
        if self.progress and self.team.main:
            self.progress(dict(event))

    def sampler(self, seed: int) -> Sampler:
        """A sampler with the recipe's settings."""
        return Sampler(self.base, self.tokenizer, self.config.generate, seed)

    def evaluate(self, model: nn.Module, what: str, *, seed: int | None = None) -> Evaluation:
        """Measure `model` against the base on the held-out prompts, by the pair's own reward."""
        samples = self.config.train.eval_samples
        sampler = self.sampler(self.config.train.seed if seed is None else seed)
        result = evaluate(model, self.base, sampler, self.prompts.heldout, self.reward, samples=samples)
        figures = {"reward_mean": result.reward, "kl": result.kl}
        self.tell({"stage": "evaluation", "model": what, "step": 1, "steps": 1, **figures})
        return result


@dataclass(frozen=True)
class Part:
    """One policy to be made.

    Attributes:
        name: of the part: "tuned", "controls/shuffled-0", "replicates/seed-1".
        config: the recipe with this policy's seed.
        reward: what it learns from.
        shuffle: see `Job`.
        stop_at_kl: see `Job`.
        stage: what its events are called.
    """

    name: str
    config: RLHFConfig
    reward: Reward
    shuffle: int | None = None
    stop_at_kl: float | None = None
    stage: str = "control"

    @property
    def main(self) -> bool:
        """Whether this is the pair's own policy."""
        return self.name == "tuned"


@dataclass
class Recorder:
    """The `Watch` of one policy: writes figures, and at the recipe's intervals completions and checkpoints."""

    run: Run
    part: Part
    trackers: Trackers
    _last: int = 0
    _metrics: Lines | None = field(init=False, default=None)
    _evaluations: Lines | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Begin the files, or go on with them where the engine's stored state ends."""
        if not self.run.team.main:
            return
        done = state_step(self.part.config.train.engine, self.run.folder / self.part.name) if self.run.resume else None
        self._last = done or 0
        home = self.run.folder if self.part.main else self.run.folder / self.part.name
        self._metrics = Lines(home / "metrics.jsonl", after=done)
        if self.part.main:
            self._evaluations = Lines(home / "evaluations.jsonl", after=None if done is None else done + 1)

    @property
    def begins(self) -> bool:
        """Whether this process writes and nothing of the policy has been trained yet."""
        return self.run.team.main and self._last == 0

    def log(self, row: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl, and of the trackers."""
        if self._metrics is not None:
            self._metrics.add(row)
            self.trackers.log(row, prefix="" if self.part.main else self.part.name + "/")

    def progress(self, event: Mapping[str, Any]) -> None:
        """An event of the engine, under this part's name."""
        self.run.tell({**event, "stage": self.part.stage})

    def stepped(self, step: int, model: nn.Module) -> None:
        """Evaluate and store the policy where an interval has passed since the last call."""
        train, before = self.part.config.train, self._last
        self._last = step
        if not self.run.team.main or not self.part.main or step >= train.total_steps:
            return  # after the last step the policy is evaluated and saved in any case
        if train.eval_interval and step // train.eval_interval > before // train.eval_interval:
            self.evaluated(step, self.run.evaluate(model, f"step {step}"))
        if train.checkpoint_interval and step // train.checkpoint_interval > before // train.checkpoint_interval:
            folder = self.run.folder / "checkpoints" / f"step-{step:06d}"
            save_policy(self.run, model, folder)

    def evaluated(self, step: int, result: Evaluation) -> None:
        """Write what an evaluation found."""
        assert self._evaluations is not None
        row = {"step": step, **figures(result)}
        self._evaluations.add(row)
        self.trackers.log({f"heldout_{key}": value for key, value in row.items() if key != "step"} | {"step": step})
        write_completions(self.run.folder / "completions", step, result)


def figures(result: Evaluation) -> dict[str, float]:
    """The figures of an evaluation, without its texts."""
    names = ("reward", "reward_sd", "kl", "distinct_2", "length")
    return {name: getattr(result, name) for name in names} | {"samples": len(result.scores)}


def save_policy(run: Run, model: nn.Module, folder: Path) -> None:
    """Save a policy or its adapter, and prove that it loads again as it is."""
    ids = run.sampler(0).encode(run.prompts.heldout[:1])[0].ids
    save(model, run.tokenizer, folder, base=run.source)
    prove(model, folder, torch.tensor([ids]), base=run.base)


def tune_part(run: Run, part: Part, trackers: Trackers, before: Evaluation | None = None) -> dict[str, Any]:
    """Tune, save, prove and measure one policy, or take what an earlier process noted of it.

    Args:
        run: what all policies share.
        part: the policy.
        trackers: where its figures go.
        before: the evaluation of the base, which the pair's own completions begin with.

    Returns:
        `final` (figures of the evaluation), `kl_at_step_0`, `steps`, `reached_kl`, and whether it is an `adapter`.

    Raises:
        TrainingError: as `train`.
    """
    known = note(run.folder, part.name.replace("/", "-")) if run.resume else None
    if known is not None:
        return dict(known)
    out = run.folder / part.name
    if run.team.main:
        out.mkdir(parents=True, exist_ok=True)
    run.team.wait()
    recorder = Recorder(run, part, trackers)
    if before is not None and recorder.begins:
        recorder.evaluated(0, before)
    sampler = run.sampler(part.config.train.seed)
    outcome = engine(part.config.train.engine)(
        Job(
            part.config, run.base, run.tokenizer, sampler, run.prompts.train, part.reward, out, recorder,
            shuffle=part.shuffle, stop_at_kl=part.stop_at_kl,
        )
    )  # fmt: skip
    if not abs(outcome.kl_at_step_0) < KL_OF_EQUALS:
        raise TrainingError(
            f"KL at step 0 is {outcome.kl_at_step_0:.3g} nats, not 0; the reference is not the base: report this"
        )
    if run.team.main:
        _settle(run, part, outcome, recorder, before)
    run.team.wait()
    return dict(note(run.folder, part.name.replace("/", "-")))


def _settle(run: Run, part: Part, outcome: Outcome, recorder: Recorder, before: Evaluation | None) -> None:
    """Save, prove and measure what an engine made, and note what the rest of the run needs to know of it."""
    model = outcome.model.requires_grad_(False)
    save_policy(run, model, run.folder / part.name)
    if part.main and outcome.value_head is not None:
        save_module(outcome.value_head, run.folder / "value_head.safetensors")
    after = run.evaluate(model, part.name)
    if part.main:
        recorder.evaluated(outcome.steps, after)
        assert before is not None
        write_json(run.folder / "heldout.json", _side_by_side(before, after, run.prompts.heldout))
    found = {
        "final": figures(after),
        "kl_at_step_0": outcome.kl_at_step_0,
        "steps": outcome.steps,
        "reached_kl": outcome.reached_kl,
        "adapter": is_adapter(model),
        "value_head": outcome.value_head is not None,
    }
    write_note(run.folder, part.name.replace("/", "-"), found)


def is_adapter(model: nn.Module) -> bool:
    """Whether the model is a PeftModel, whose adapter alone is saved."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def check_resumable(config: RLHFConfig, folder: Path) -> None:
    """Refuse to resume what an engine has begun that keeps no state; before that (a reward model trains) any can.

    Raises:
        ConfigError: naming the one that does.
    """
    if config.train.engine != "native" and (folder / "tuned").is_dir():
        raise ConfigError(f"the engine {config.train.engine} keeps no state to resume from; start anew (--overwrite)")


def _side_by_side(before: Evaluation, after: Evaluation, prompts: tuple[str, ...]) -> list[dict[str, Any]]:
    """The first sample of each held-out prompt by base and by tuned, drawn with the same random numbers."""
    return [
        {
            "prompt": prompt,
            **{
                name: {"completion": result.texts.outputs[row], "reward": float(result.scores[row])}
                for name, result in (("base", before), ("tuned", after))
            },
        }
        for row, prompt in enumerate(prompts)
    ]
