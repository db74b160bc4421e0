"""`train` and `build`: from a config to a CheckpointPair."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from interp.errors import ConfigError, TrainingError
from interp.models import RewardModel, load_model, load_tokenizer
from interp.pair import CheckpointPair
from training.config import RLHFConfig, expand
from training.evaluate import Evaluation
from training.events import Progress
from training.job import require
from training.prompts import load_prompts
from training.reward import Reward, RewardFunction, build_reward, reference, unrelated
from training.run.check import check
from training.run.policy import Part, Run, check_resumable, figures, save_policy, tune_part
from training.run.records import draw_curves, read_lines
from training.run.team import Team, team
from training.run.trackers import Trackers
from training.run.versions import versions
from training.run.workshop import RECIPE, finish, note, unfinished, workshop, write_note
from training.seeding import derive


def train(
    config: RLHFConfig | None,
    out: str | os.PathLike[str],
    *,
    reward: RewardModel | RewardFunction | None = None,
    prompts: Any = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> CheckpointPair:
    """Train a pair, its null runs and its replicates into the folder `out`.

    The folder appears when everything is done and proved. Until then the run works in `out.unfinished`, which stays
    where the run is killed or stopped, or fails after it has stored something, and from which `resume` goes on, in
    whatever folder it is called: with the native engine to the same bytes as if nothing had happened.

    Args:
        config: the run; None with `resume`, which finds it in the unfinished run.
        out: the pair's folder.
        reward: a reward model or a callable (see `training.reward`), for a config that names no reward.
        prompts: texts, or a `datasets.Dataset`, for a config that names no prompts; they are cut and split as it says.
        overwrite: replace an earlier pair or an unfinished run.
        resume: go on with the unfinished run toward `out`.
        progress: called with one event after another (see `training.events`).

    Raises:
        ConfigError: the config does not fit together, what it names cannot be read, or there is nothing to resume.
        TrainingError: the reward misbehaves, training diverges, or what was saved does not load again as it was.
        InterpError: a model cannot be loaded, or the folder cannot be written.
    """
    if resume:
        config = _stored_config(out, config)
    if config is None:
        raise ConfigError("training needs a config; pass one, or resume=True with an unfinished run")
    config = config.anchored()
    crew = team()
    if not crew.main:
        crew.wait()  # until the main process has made the folder
        build(config, unfinished(out), reward=reward, prompts=prompts, crew=crew, resume=resume)
        crew.wait()
        return CheckpointPair.load(Path(out))
    with workshop(out, overwrite=overwrite, resume=resume) as folder:
        config.save(folder / RECIPE)  # first of all: from here on the run can be resumed
        check(config, reward=reward, prompts=prompts)
        require(config.train.engine)
        crew.wait()
        build(config, folder, reward=reward, prompts=prompts, progress=progress, crew=crew, resume=resume)
    crew.wait()
    return CheckpointPair.load(Path(out))


def _stored_config(out: str | os.PathLike[str], given: RLHFConfig | None) -> RLHFConfig:
    """The config of an unfinished run.

    Raises:
        ConfigError: another was given, or the engine keeps no state of what it has begun.
    """
    file = unfinished(out) / RECIPE
    if not file.is_file():
        with workshop(out, overwrite=False, resume=True):  # says what is amiss
            raise ConfigError(f"{file} is missing, so there is nothing to resume; start anew with overwrite")
    stored = RLHFConfig.load(file)
    if given is not None and given.anchored() != stored:
        raise ConfigError(f"the unfinished run has another config ({file}); leave the config out, or start anew")
    check_resumable(stored, unfinished(out))
    return stored


def build(
    config: RLHFConfig,
    folder: Path,
    *,
    reward: RewardModel | RewardFunction | None = None,
    prompts: Any = None,
    progress: Progress | None = None,
    crew: Team | None = None,
    resume: bool = False,
) -> CheckpointPair | None:
    """Everything that `train` does, into a folder that is there already and that `${PAIR}` stands for.

    Returns:
        The pair; None in a process that is not the main one.

    Raises:
        InterpError: as `train`.
    """
    crew = crew if crew is not None else team()
    source = expand(config.model.base, pair=folder)
    base = load_model(source, revision=config.model.revision).float().to(crew.device).requires_grad_(False)
    tokenizer = _tokenizer(config, source, folder)
    scorer, reward_reference = _scorer(config, folder, reward, progress, crew)
    split = load_prompts(config.prompts, config.train.seed, pair=folder, dataset=prompts)
    run = Run(config, folder, source, base, tokenizer, split, scorer, crew, progress, resume)
    trackers = Trackers(config, folder, main=crew.main)
    base_reference = _base(run)
    before = _before(run) if crew.main else None
    tuned = tune_part(run, Part("tuned", config, scorer, stage=config.algorithm), trackers, before)
    controls = _nulls(run, trackers, float(tuned["final"]["kl"]))
    replicates = _replicates(run, trackers)
    trackers.close()
    if not crew.main:
        return None
    assert before is not None
    manifest = {
        "engine": config.train.engine,
        "config": config.to_dict(),
        "seed": config.train.seed,
        "versions": versions(config.train.engine, lora=config.model.lora is not None),
        "base": base_reference,
        "tuned": {"path": "tuned", **({"adapter": True} if tuned["adapter"] else {})},
        "reward": reward_reference,
        **({"value_head": {"path": "value_head.safetensors"}} if tuned["value_head"] else {}),
        "checkpoints": _checkpoints(folder),
        "controls": controls,
        "replicates": replicates,
        "final": _final(before, tuned, len(split.heldout)),
    }
    return _finished(config, folder, manifest)


def _before(run: Run) -> Evaluation:
    """The evaluation of the base.

    Raises:
        TrainingError: it says nothing at all, so that there is nothing to reward.
    """
    found = run.evaluate(run.base, "base")
    if not any(text.strip() for text in found.texts.outputs):
        raise TrainingError(
            f"the base answers all {len(found.scores)} samples of the held-out prompts with nothing: it ends at once; "
            "give other prompts, or set generate.ignore_end"
        )
    return found


def _tokenizer(config: RLHFConfig, source: str, folder: Path) -> Any:
    """Base's own tokenizer, or the one that the recipe names."""
    if config.model.tokenizer is not None:
        return load_tokenizer(expand(config.model.tokenizer, pair=folder))
    return load_tokenizer(source, revision=config.model.revision)


def _finished(config: RLHFConfig, folder: Path, manifest: Mapping[str, Any]) -> CheckpointPair:
    """Write what is written last, and remove what served the run only."""
    config.save(folder / RECIPE)
    draw_curves(folder / "curves.png", read_lines(folder / "metrics.jsonl"), read_lines(folder / "evaluations.jsonl"))
    finish(folder)
    return CheckpointPair.write(folder, manifest)


def _scorer(
    config: RLHFConfig, folder: Path, given: Any, progress: Progress | None, crew: Team
) -> tuple[Reward, dict[str, Any]]:
    """The reward and what the manifest says of it; one that is trained here is trained by the main process, once."""
    known = note(folder, "reward")
    if config.reward.classifier is not None and known is None and not crew.main:
        crew.wait()
        known = note(folder, "reward")
    if config.reward.classifier is not None and known is not None:
        stored = replace(config.reward, classifier=None, model=str(folder / "reward"))
        return build_reward(stored, folder)[0], dict(known)
    scorer, described = build_reward(
        config.reward, folder, given, base=config.model, seed=config.train.seed, store=config.train.store_reward,
        progress=progress,
    )  # fmt: skip
    if config.reward.classifier is not None and crew.main:
        write_note(folder, "reward", described)
        crew.wait()
    return scorer, described


def _base(run: Run) -> dict[str, Any]:
    """Store the base where the recipe asks for it; returns what the manifest says of it."""
    if run.config.train.store_base:
        if run.team.main:
            save_policy(run, run.base, run.folder / "base")
        return {"path": "base"}
    found = reference(run.source, run.config.model.revision, run.folder)
    known = note(run.folder, "base")
    if known is not None and known != found:
        raise ConfigError(f"{run.source} is not what the unfinished run began with; put it back, or start anew")
    if run.team.main and known is None and run.config.train.engine == "native":
        write_note(run.folder, "base", found)
    return found


def _nulls(run: Run, trackers: Trackers, kl: float) -> list[dict[str, Any]]:
    """Train the null runs: with the pair's own seed, so that they differ from it in the reward alone.

    Each stops at the pair's KL; one that does not reach it in the pair's number of steps is marked by `reached_kl`.
    """
    config, seed = run.config, run.config.train.seed
    makers: dict[str, tuple[int, Callable[[int], Part]]] = {
        "shuffled": (
            config.nulls.shuffled,
            lambda n: Part(f"controls/shuffled-{n}", config, run.reward, derive(seed, "shuffled", n), kl),
        ),
        "unrelated": (
            config.nulls.unrelated,
            lambda n: Part(f"controls/unrelated-{n}", config, unrelated(run.reward, n, seed), stop_at_kl=kl),
        ),
    }
    entries = []
    for kind, (count, make) in makers.items():
        for number in range(count):
            part = make(number)
            found = tune_part(run, part, trackers)
            entries.append({"kind": kind, "path": part.name, **_entry(found), "reached_kl": found["reached_kl"]})
            if kind == "unrelated":
                entries[-1]["reward"] = part.reward.description
    return entries


def _replicates(run: Run, trackers: Trackers) -> list[dict[str, Any]]:
    """Train the same recipe with other seeds, on the pair's own split of the prompts."""
    entries = []
    for number in range(1, run.config.nulls.replicates + 1):
        seed = run.config.train.seed + number
        config = replace(run.config, train=replace(run.config.train, seed=seed))
        part = Part(f"replicates/seed-{seed}", config, run.reward, stage="replicate")
        entries.append({"seed": seed, "path": part.name, **_entry(tune_part(run, part, trackers))})
    return entries


def _entry(found: Mapping[str, Any]) -> dict[str, Any]:
    adapter = {"adapter": True} if found["adapter"] else {}
    return {**adapter, "final": dict(found["final"]), "steps": found["steps"]}


def _checkpoints(folder: Path) -> list[dict[str, Any]]:
    found = sorted((folder / "checkpoints").glob("step-*"))
    return [{"step": int(path.name.removeprefix("step-")), "path": f"checkpoints/{path.name}"} for path in found]


def _final(before: Evaluation, tuned: Mapping[str, Any], heldout: int) -> dict[str, float]:
    base = {f"base_{name}": value for name, value in figures(before).items() if name not in ("kl", "samples")}
    return {
        **tuned["final"],
        **base,
        "kl_at_step_0": tuned["kl_at_step_0"],
        "steps": tuned["steps"],
        "heldout_prompts": heldout,
    }
