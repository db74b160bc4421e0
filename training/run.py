"""`train`: from a config to a CheckpointPair, whole or not at all."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from interp.errors import ConfigError, TrainingError
from interp.io import atomic_folder, write_json
from interp.models import RewardModel, describe_source, load_model, load_tokenizer
from interp.pair import MANIFEST, CheckpointPair
from training.classifier import from_backbone, read_labelled, train_classifier
from training.config import RLHFConfig, expand
from training.evaluate import Evaluation, evaluate
from training.events import Progress
from training.native import PPO
from training.prompts import PromptSplit, load_prompts
from training.reward import Reward, RewardFunction
from training.rollouts import Sampler
from training.saving import prove, save, save_module
from training.seeding import derive


def train(
    config: RLHFConfig,
    out: str | os.PathLike[str],
    *,
    reward: RewardModel | RewardFunction | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> CheckpointPair:
    """Train a pair and its controls into the folder `out`.

    The folder appears when everything is done and proved; a run that fails or is killed leaves none.

    Args:
        config: the run.
        out: the pair's folder.
        reward: a reward model or a callable (see `training.reward`), for a config that names no reward.
        overwrite: replace an earlier pair.
        progress: called with one event after another (see `training.events`).

    Raises:
        ConfigError: the config does not fit together, or what it names cannot be read.
        TrainingError: the reward misbehaves, training diverges, or what was saved does not load again as it was.
        InterpError: a model cannot be loaded, or the folder cannot be written.
    """
    with atomic_folder(out, owned_by=MANIFEST, overwrite=overwrite) as folder:
        check(config, reward=reward)
        build(config, folder, reward=reward, progress=progress)
    return CheckpointPair.load(out)


def check(config: RLHFConfig, *, reward: Any = None) -> dict[str, str]:
    """Resolve everything a run needs short of loading weights, and train nothing.

    Returns:
        What each name in the recipe stands for: a count, a folder, or "not fetched" for what would come from the hub.

    Raises:
        ConfigError: a variable is not set, a file cannot be read, or the reward is missing or named twice.
    """
    found = {"model.base": _locate(config.model.base)}
    split = load_prompts(config.prompts, config.train.seed)
    found["prompts"] = f"{len(split.train)} to train on, {len(split.heldout)} held out"
    named = config.reward.model is not None or config.reward.classifier is not None
    if named and reward is not None:
        raise ConfigError("the recipe names a reward and another was passed; keep one")
    if not named and reward is None:
        raise ConfigError("no reward: set reward.model or reward.classifier in the recipe, or pass reward= in Python")
    if config.reward.model is not None:
        found["reward.model"] = _locate(config.reward.model)
    if config.reward.classifier is not None:
        texts, _, labels = read_labelled(config.reward.classifier)
        found["reward.classifier"] = f"{len(texts)} texts, labels {', '.join(labels)}"
        if config.reward.classifier.init is not None:
            found["reward.classifier.init"] = _locate(config.reward.classifier.init)
    return found


def _locate(source: str) -> str:
    expanded = expand(source)
    if Path(expanded).is_dir():
        return str(Path(expanded).resolve())
    if expanded.startswith((".", "/")) or expanded.count("/") > 1 or "${" in source:
        raise ConfigError(f"{source} stands for {expanded}, which is no folder; correct the path")
    return f"{expanded}: not fetched"


@dataclass(frozen=True)
class _Run:
    """What the tuned model and every control share."""

    config: RLHFConfig
    folder: Path
    base: nn.Module
    tokenizer: Any
    sampler: Sampler
    prompts: PromptSplit
    reward: Reward
    progress: Progress | None

    def tell(self, event: dict[str, Any]) -> None:
        if self.progress:
            self.progress(event)

    def evaluate(self, model: nn.Module, what: str) -> Evaluation:
        """Measure `model` against the base on the held-out prompts."""
        samples = self.config.train.eval_samples
        result = evaluate(model, self.base, self.sampler, self.prompts.heldout, self.reward, samples=samples)
        self.tell(
            {"stage": "evaluation", "model": what, "step": 1, "steps": 1, "reward_mean": result.reward, "kl": result.kl}
        )
        return result


def build(
    config: RLHFConfig,
    folder: Path,
    *,
    reward: RewardModel | RewardFunction | None = None,
    progress: Progress | None = None,
) -> CheckpointPair:
    """Everything that `train` does, into a folder that is there already and that `${PAIR}` stands for.

    Raises:
        InterpError: as `train`.
    """
    source = expand(config.model.base, pair=folder)
    base = load_model(source, revision=config.model.revision).float()
    tokenizer = load_tokenizer(source, revision=config.model.revision)
    scorer, reward_reference = _reward(config, folder, reward, progress)
    run = _Run(
        config,
        folder,
        base.requires_grad_(False),
        tokenizer,
        Sampler(base, tokenizer, config.generate, config.train.seed),
        load_prompts(config.prompts, config.train.seed, pair=folder),
        Reward(scorer, batch_size=config.reward.batch_size),
        progress,
    )
    if config.train.store_base:
        save(base, tokenizer, folder / "base")
        prove(base, folder / "base", torch.tensor([run.sampler.encode(run.prompts.heldout[:1])[0].ids]))
        base_reference: dict[str, Any] = {"path": "base"}
    else:
        base_reference = _reference(source, config.model.revision, folder)
    before = run.evaluate(base, "base")
    after, kl_at_step_0 = _tune(run, folder / "tuned", folder / "value_head.safetensors", folder / "metrics.jsonl")
    controls = _controls(run)
    write_json(folder / "heldout.json", _heldout(before, after, run.prompts.heldout))
    config.save(folder / "config.toml")
    manifest = {
        "engine": config.train.engine,
        "config": config.to_dict(),
        "seed": config.train.seed,
        "versions": versions(),
        "base": base_reference,
        "tuned": {"path": "tuned"},
        "reward": reward_reference,
        "value_head": {"path": "value_head.safetensors"},
        "controls": controls,
        "final": {**_final(before, after), "kl_at_step_0": kl_at_step_0, "heldout_prompts": len(run.prompts.heldout)},
    }
    return CheckpointPair.write(folder, manifest)


def _tune(
    run: _Run, out: Path, value_head: Path | None, metrics: Path, shuffle: int | None = None
) -> tuple[Evaluation, float]:
    """Train one policy from the base, save it, prove what was saved, and measure it."""
    model = copy.deepcopy(run.base).requires_grad_(True)
    ppo = PPO(model, run.base, run.sampler, run.config)
    stage = "ppo" if shuffle is None else "control"
    with metrics.open("w", encoding="utf-8") as lines:

        def log(row: dict[str, Any]) -> None:
            finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
            lines.write(json.dumps(finite) + "\n")
            lines.flush()

        kl_at_step_0 = ppo.run(
            run.prompts.train,
            run.reward,
            log=log,
            shuffle=shuffle,
            progress=lambda event: run.tell({**event, "stage": stage}),
        )
    # Two KLs of equal models differ by rounding at most: anything more means that the reference is not the base.
    if not abs(kl_at_step_0) < 1e-5:
        raise TrainingError(
            f"KL at step 0 is {kl_at_step_0:.3g} nats, not 0; the reference is not the base: report this"
        )
    model.requires_grad_(False)
    save(model, run.tokenizer, out)
    prove(model, out, torch.tensor([run.sampler.encode(run.prompts.heldout[:1])[0].ids]))
    if value_head is not None:
        save_module(ppo.value_head, value_head)
    return run.evaluate(model, "tuned" if shuffle is None else out.name), kl_at_step_0


def _controls(run: _Run) -> list[dict[str, Any]]:
    """Train the null runs: the pair's own seed throughout, so that they differ from it in the reward alone."""
    entries = []
    kinds = run.config.train.controls
    for place, kind in enumerate(kinds):
        number = kinds[:place].count(kind)
        path = f"controls/{kind}-{number}"
        (run.folder / path).mkdir(parents=True)
        shuffle = derive(run.config.train.seed, kind, number)
        result, _ = _tune(run, run.folder / path, None, run.folder / path / "metrics.jsonl", shuffle)
        final = {"reward": result.reward, "kl": result.kl, "distinct_2": result.distinct_2, "length": result.length}
        entries.append({"kind": kind, "path": path, "final": final})
    return entries


def _reward(config: RLHFConfig, folder: Path, given: Any, progress: Progress | None) -> tuple[Any, dict[str, Any]]:
    """The reward, and what the manifest says of it."""
    options: dict[str, Any] = {"label": config.reward.label, "output": config.reward.output}
    if config.reward.classifier is not None:
        init = config.reward.classifier.init
        source = expand(init if init is not None else config.model.base, pair=folder)
        revision = config.model.revision if init is None else None
        causal = load_model(source, revision=revision).float()
        tokenizer = load_tokenizer(source, revision=revision)
        texts, labels, names = read_labelled(config.reward.classifier, folder)
        model = from_backbone(causal, tokenizer, names, config.train.seed)
        card = train_classifier(
            model,
            tokenizer,
            texts,
            labels,
            folder / "reward",
            config=config.reward.classifier,
            seed=config.train.seed,
            progress=progress,
        )
        loaded = RewardModel.load(folder / "reward", **options)
        return loaded, {"path": "reward", **options, "accuracy": card["accuracy"]}
    if config.reward.model is not None:
        source = expand(config.reward.model, pair=folder)
        loaded = RewardModel.load(source, revision=config.reward.revision, **options)
        options["label"] = loaded.label
        if config.train.store_reward:
            save(loaded.model, loaded.tokenizer, folder / "reward")
            return loaded, {"path": "reward", **options}
        return loaded, {**_reference(source, config.reward.revision, folder), **options}
    if isinstance(given, RewardModel):
        return given, {**given.description}
    if given is None:
        raise ConfigError("no reward: set reward.model or reward.classifier in the recipe, or pass reward= in Python")
    return given, {"function": f"{getattr(given, '__module__', '?')}.{getattr(given, '__qualname__', repr(given))}"}


def _reference(source: str, revision: str | None, folder: Path) -> dict[str, Any]:
    """A reference to a model: within the pair's own folder a relative path, which moves with it."""
    path = Path(source)
    if path.is_dir() and path.resolve().is_relative_to(folder.resolve()):
        return {"path": path.resolve().relative_to(folder.resolve()).as_posix()}
    return dict(describe_source(source, revision=revision))


def _final(before: Evaluation, after: Evaluation) -> dict[str, float]:
    return {
        "reward": after.reward,
        "base_reward": before.reward,
        "reward_sd": after.reward_sd,
        "base_reward_sd": before.reward_sd,
        "kl": after.kl,
        "distinct_2": after.distinct_2,
        "base_distinct_2": before.distinct_2,
        "length": after.length,
        "base_length": before.length,
        "samples": len(after.scores),
    }


def _heldout(before: Evaluation, after: Evaluation, prompts: tuple[str, ...]) -> list[dict[str, Any]]:
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


def versions() -> Mapping[str, str]:
    """Versions of what decides a run's numbers."""
    names = ("torch", "transformers", "tokenizers", "numpy", "rlhf-interp")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
