"""What a training left on disk: its checkpoints by step, its reward model, the prompts that it was judged on."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from interp.errors import LoadError, MeasureError
from interp.families import family_of
from interp.io import read_json
from interp.models import Policy, RewardModel
from interp.models.reward_model import Output
from interp.models.source import locate
from interp.pair import CheckpointPair, pair_at
from interp.prompts import Prompts

Place = str | os.PathLike[str]
"""A folder or a hub id."""

Model = Policy | RewardModel | Callable[[], Policy | RewardModel] | Place | nn.Module
"""A model, its folder or id (of a policy or a reward model), or a function that loads it when its turn comes."""

Training = CheckpointPair | Place | Mapping[int, Model]
"""A model over its training: a pair or its folder, a reward model's folder, or models by optimiser step."""

_STEP = re.compile(r"step-(\d+)")


def pair_steps(pair: CheckpointPair) -> dict[int, str]:
    """Base, the stored checkpoints and tuned by optimiser step.

    Raises:
        MeasureError: no checkpoint was stored.
    """
    if not pair.checkpoints:
        config: Any = pair.manifest.get("config", {})
        steps = config.get("train", {}).get("total_steps")
        interval = max(1, steps // 8) if isinstance(steps, int) else 20
        raise MeasureError(
            f"the pair {pair.path} kept no checkpoints, and base and tuned alone show no course; train it again with"
            f" --set train.checkpoint_interval={interval} (8 of them, each as large as the model), or pass models by"
            " step"
        )
    last = int(pair.manifest["final"].get("steps", 1 + max(pair.checkpoints)))
    return {0: pair.base, **pair.checkpoints, last: pair.tuned}


def pair_prompts(pair: CheckpointPair) -> Prompts:
    """The held-out prompts that the pair was judged on: those of its samples at step 0.

    Raises:
        MeasureError: it kept no samples.
    """
    files = sorted((pair.folder / "completions").glob("step-*.parquet"))
    if not files:
        raise MeasureError(f"the pair {pair.path} kept no samples that say which prompts were held out; pass prompts=")
    import pandas as pd

    return Prompts(list(dict.fromkeys(pd.read_parquet(files[0], columns=["prompt"])["prompt"])))


def pair_reads(pair: object) -> Literal["sample", "output"]:
    """What the pair's reward model read; "sample" where it is no pair or does not say."""
    how: Any = (pair.manifest.get("reward") or {}) if isinstance(pair, CheckpointPair) else {}
    return "output" if how.get("reads") == "output" else "sample"


def pair_setting(pair: object, section: str, key: str, otherwise: Any) -> Any:
    """A key of the pair's recipe, or `otherwise` where it is no pair or its recipe lacks the key."""
    config: Any = pair.manifest.get("config", {}) if isinstance(pair, CheckpointPair) else {}
    return config.get(section, {}).get(key, otherwise)


def folder_steps(place: Place) -> dict[int, str]:
    """The checkpoints of a trained model by step, itself the last; empty where it kept none.

    Args:
        place: a folder that `interp train-reward` wrote, with `checkpoints/step-000500` and so on in it.
    """
    folder = Path(place)
    found = {
        int(match[1]): str(path)
        for path in sorted((folder / "checkpoints").glob("step-*"))
        if (match := _STEP.fullmatch(path.name)) and path.is_dir()
    }
    if not found:
        return {}
    card = read_json(folder / "card.json") if (folder / "card.json").is_file() else {}
    return found | {int(card.get("steps", 1 + max(found))): str(folder)}


def load_any(source: Place | nn.Module) -> Policy | RewardModel:
    """A policy or a reward model, whichever the architecture says it is; of a reward model any label will do.

    Raises:
        LoadError: it cannot be loaded.
    """
    if isinstance(source, nn.Module):
        return Policy.load(source)
    found = locate(source)
    if found.folder is not None and not (found.folder / "config.json").is_file():
        return Policy.load(source)  # an adapter, or a folder of which the error speaks
    import transformers

    try:
        config: Any = transformers.AutoConfig.from_pretrained(found.name, **found.options)
        (architecture,) = config.architectures
        kind = family_of(architecture).heads[architecture].kind
    except (OSError, ValueError, TypeError, LoadError):  # what is wrong with the config, loading says in one sentence
        return Policy.load(source)
    if kind != "classifier":
        return Policy.load(source)
    return RewardModel.load(source, label=str(config.id2label[0]), output="logit")


def load_gold(source: Place, *, label: str | None, output: Output) -> RewardModel:
    """A second reward model by folder or id.

    Raises:
        LoadError: it cannot be loaded, or lacks the label.
    """
    try:
        return RewardModel.load(source, label=label, output=output)
    except LoadError as error:
        said = str(error).replace("label= (--label)", "interp.load_reward(..., label=...) as gold=")
        raise LoadError(f"gold: {said}") from error


def same_reward(first: object, second: object) -> bool:
    """Whether two rewards are one: the same function, or one label of models of the same weights."""
    if first is second:
        return True
    if not (isinstance(first, RewardModel) and isinstance(second, RewardModel)):
        return False
    if first.label != second.label:
        return False
    ours, theirs = (each.model.state_dict() for each in (first, second))
    return ours.keys() == theirs.keys() and all(
        ours[name].shape == theirs[name].shape and torch.equal(ours[name], theirs[name].to(ours[name].device))
        for name in ours
    )


def trainings_of(
    models: CheckpointPair | Place | Mapping[str, Training],
) -> tuple[dict[str, Mapping[int, Model]], list[str]]:
    """Models by name and step, and what has to be said of them.

    Raises:
        MeasureError: there is no model, or one has fewer than two checkpoints.
    """
    found: dict[str, Mapping[int, Model]] = {}
    notes = []
    if isinstance(models, (CheckpointPair, str, os.PathLike)):
        pair = pair_at(models)
        if pair is None:
            found["reward model"] = _training("the model", models)
        else:
            found["policy"] = pair_steps(pair)
            if (place := pair.reward) and (kept := folder_steps(place)):
                found["reward model"] = kept
            elif place:
                notes.append(
                    f"the reward model {place} kept no checkpoints; to see its training too, train it with"
                    " --set train.checkpoint_interval=500"
                )
    else:
        for name, each in models.items():
            if not isinstance(name, str):
                raise MeasureError("name each model that is given by steps: {'policy': {0: ..., 100: ...}}")
            found[name] = _training(name, each)
    if not found:
        raise MeasureError("there is no model to probe; give at least one by name, with its checkpoints by step")
    for name, steps in found.items():
        if len(steps) < 2:
            raise MeasureError(
                f"{name} has {len(steps)} checkpoint; give its model at two steps or more, the first untrained"
            )
        if min(steps) > 0:
            notes.append(
                f"{name}: the first checkpoint is that of step {min(steps)} of {max(steps)}; what was learned before it"
                " is not seen, and gains are over it"
            )
    return found, notes


def _training(name: str, given: Training) -> Mapping[int, Model]:
    if isinstance(given, Mapping):
        return given
    if isinstance(given, CheckpointPair):
        return pair_steps(given)
    if (pair := pair_at(given)) is not None:
        return pair_steps(pair)
    steps = folder_steps(given)
    if not steps:
        raise MeasureError(
            f"{name}: {given} is no pair's folder and holds no checkpoints/step-...; train it with"
            " --set train.checkpoint_interval=500, or give its models by step"
        )
    return steps


def load_model(model: Model) -> Policy | RewardModel:
    """A model whose turn has come."""
    if isinstance(model, (Policy, RewardModel)):
        return model
    return load_any(model) if isinstance(model, (str, os.PathLike, nn.Module)) else model()
