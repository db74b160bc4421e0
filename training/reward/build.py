"""From a recipe, or a pair's manifest, to a reward."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interp.errors import ConfigError, LoadError
from interp.models import RewardModel
from interp.models.pretrained import load_model, load_tokenizer
from interp.models.source import describe_source
from interp.pair import CheckpointPair
from training.classifier import from_backbone, read_labelled, train_classifier
from training.config import ModelConfig, RewardConfig, TermConfig, expand
from training.events import Progress
from training.reward.checked import Reward, RewardFunction
from training.reward.combined import WeightedSum
from training.saving import save

Described = tuple[Reward, dict[str, Any]]


def build_reward(
    config: RewardConfig,
    folder: Path,
    given: RewardModel | RewardFunction | None = None,
    *,
    base: ModelConfig | None = None,
    seed: int = 0,
    store: bool = False,
    progress: Progress | None = None,
) -> Described:
    """The reward of a run, and what the pair's manifest says of it.

    Args:
        config: the section reward of the recipe.
        folder: the pair's folder, where a reward model that is trained first, or copied, goes.
        given: a reward model or a callable, where the recipe names no reward.
        base: the section model, whose base a classifier to be trained starts from unless it says otherwise.
        seed: seed of the training of a classifier.
        store: copy the reward model into the folder.
        progress: told of the training of a classifier.

    Raises:
        ConfigError: there is no reward, or a function cannot be imported.
        LoadError: a reward model cannot be loaded or has no such label; those it has are listed.
        TrainingError: the training of the classifier fails.
    """
    options: dict[str, Any] = {"batch_size": config.batch_size, "reads": config.reads}
    if config.classifier is not None:
        accuracy = _train_classifier(config, folder, base, seed, progress)
        own = {"label": config.label, "output": config.output}
        model = RewardModel.load(folder / "reward", label=config.label, output=config.output)  # type: ignore[arg-type]
        return _described(model, {"path": "reward", **own, "reads": config.reads, "accuracy": accuracy}, options)
    if config.model is not None:
        model, described = _stored(config, folder, folder / "reward" if store else None)
        return _described(model, {**described, "reads": config.reads}, options)
    if config.function is not None:
        return _described(load_function(config.function), {"function": config.function}, options)
    if config.terms:
        return _sum(config, folder, store, options)
    if isinstance(given, RewardModel):
        return _described(given, {**given.description, "reads": config.reads}, options)
    if given is None:
        raise ConfigError(
            "no reward: set reward.model, reward.classifier, reward.function or reward.terms in the recipe, or pass "
            "reward= in Python"
        )
    name = f"{getattr(given, '__module__', '?')}.{getattr(given, '__qualname__', type(given).__name__)}"
    return _described(given, {"function": name}, options)


def _described(source: Any, described: dict[str, Any], options: Mapping[str, Any]) -> Described:
    return Reward(source, description=described, **options), described


def _stored(config: RewardConfig | TermConfig, folder: Path, copy: Path | None) -> tuple[RewardModel, dict[str, Any]]:
    """A reward model from a folder or the hub, copied to `copy` if that is given."""
    assert config.model is not None
    source = expand(config.model, pair=folder)
    model = RewardModel.load(
        source,
        revision=config.revision,
        label=config.label,
        output=config.output,  # type: ignore[arg-type]
    )
    own = {"label": model.label, "output": config.output}
    if copy is None:
        return model, {**reference(source, config.revision, folder), **own}
    save(model.model, model.tokenizer, copy)
    return model, {"path": copy.relative_to(folder).as_posix(), **own}


def _sum(config: RewardConfig, folder: Path, store: bool, options: dict[str, Any]) -> Described:
    terms, described = {}, {}
    for name, term in (config.terms or {}).items():
        if term.function is not None:
            source: Any = load_function(term.function)
            own: dict[str, Any] = {"function": term.function}
        else:
            source, own = _stored(term, folder, folder / "reward" / name if store else None)
        terms[name] = (term.weight, Reward(source, description=own, **options))
        described[name] = {"weight": term.weight, **own}
    return _described(WeightedSum(terms), {"terms": described, "reads": config.reads}, options)


def _train_classifier(
    config: RewardConfig, folder: Path, base: ModelConfig | None, seed: int, progress: Progress | None
) -> float:
    """Train the recipe's own classifier into `folder`/reward; its held-out accuracy."""
    assert config.classifier is not None
    if config.classifier.init is not None:
        source, revision = expand(config.classifier.init, pair=folder), None
    elif base is not None:
        source, revision = expand(base.base, pair=folder), base.revision
    else:
        raise ConfigError("reward.classifier needs a model to start from; set reward.classifier.init")
    causal = load_model(source, revision=revision).float()
    tokenizer = load_tokenizer(source, revision=revision)
    texts, labels, names = read_labelled(config.classifier, folder)
    model = from_backbone(causal, tokenizer, names, seed)
    out = folder / "reward"
    card = train_classifier(
        model, tokenizer, texts, labels, out, config=config.classifier, seed=seed, progress=progress
    )
    return float(card["accuracy"])


def reference(source: str, revision: str | None, folder: Path) -> dict[str, Any]:
    """A reference to a model: within the pair's own folder a relative path, which moves with it."""
    path = Path(source)
    if path.is_dir() and path.resolve().is_relative_to(folder.resolve()):
        return {"path": path.resolve().relative_to(folder.resolve()).as_posix()}
    return dict(describe_source(source, revision=revision))


def load_function(name: str) -> RewardFunction:
    """The function that `package.module:name` names.

    The module lies in the folder that is written before it, as in `FOLDER/package.module:name`, else in the working
    directory, else it is installed.

    Raises:
        ConfigError: the name has another form, the module cannot be imported, or has no such function.
    """
    where, colon, attribute = expand(name).rpartition(":")
    folder, module_name = os.path.split(where)
    if not (module_name and colon and attribute):
        raise ConfigError(f"reward.function is package.module:name, not {name!r}")
    here = folder or os.getcwd()
    sys.path.insert(0, here)  # a console script's path does not begin with the working directory, python -m's does
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises while it is imported
        raise ConfigError(
            f"reward.function: cannot import {module_name} ({type(error).__name__}: {error}); correct its name, or the"
            " module"
        ) from error
    finally:
        sys.path.remove(here)
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        state = "no" if found is None else f"a {type(found).__name__}, no function,"
        raise ConfigError(f"reward.function: the module {module_name} has {state} {attribute}; correct the name")
    return found


def reward_of_pair(pair: CheckpointPair) -> Reward | None:
    """The reward of a pair that was trained earlier, or None where it is not known or cannot be loaded again.

    Raises:
        LoadError: its reward model is gone or damaged.
        ConfigError: its function cannot be imported.
    """
    described = pair.manifest.get("reward")
    if not described:
        return None
    return _again(pair, described, described.get("reads", "sample"))


def _again(pair: CheckpointPair, described: Mapping[str, Any], reads: str) -> Reward | None:
    if "terms" in described:
        parts = {name: (each["weight"], _again(pair, each, reads)) for name, each in described["terms"].items()}
        whole = {name: (weight, part) for name, (weight, part) in parts.items() if part is not None}
        return Reward(WeightedSum(whole), description=described) if len(whole) == len(parts) else None
    if "function" in described:
        if ":" not in described["function"]:
            return None  # a callable that was passed in Python: no name leads back to it
        return Reward(load_function(described["function"]), description=described)
    where = pair.resolve(described)
    if "folder" in described and not Path(where).is_dir():
        raise LoadError(f"the pair's reward model lay in {where}, which is no folder now; put it back")
    model = RewardModel.load(where, label=described.get("label"), output=described.get("output", "probability"))
    return Reward(model, reads=reads, description=described)  # type: ignore[arg-type]
