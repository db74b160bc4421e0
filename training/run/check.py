"""`check`: everything a run needs is resolved, and nothing is trained."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from interp.errors import ConfigError
from interp.io import read_json
from training.classifier import read_labelled
from training.config import PromptsConfig, RewardConfig, RLHFConfig, TermConfig, expand
from training.prompts import load_prompts, not_fetched

NOT_FETCHED = "not fetched"
NEEDS = {"native": ("torch",), "trlx": ("trlx",), "trl": ("trl", "datasets")}
"""Packages that an engine imports, beside those that the toolkit itself does."""


def check(config: RLHFConfig, *, reward: Any = None, prompts: Any = None) -> dict[str, str]:
    """Resolve everything a run needs short of loading weights, and train nothing.

    Args:
        config: the run.
        reward: see `train`.
        prompts: see `train`.

    Returns:
        What each name in the recipe stands for: a count, a folder, or "not fetched" for what would come from the hub.

    Raises:
        ConfigError: a variable is not set, a file cannot be read, a label is not one of a stored reward model's, or the
            reward is missing or named twice.
    """
    absent = [name for name in NEEDS[config.train.engine] if importlib.util.find_spec(name) is None]
    found = {
        "engine": f"{config.train.engine}, {config.algorithm}"
        + (f"; {', '.join(absent)} not installed" if absent else "")
    }
    found["model.base"] = _locate(config.model.base)
    if config.model.tokenizer is not None:
        found["model.tokenizer"] = _locate(config.model.tokenizer)
    if config.model.tokenizer is not None:
        found["model.tokenizer"] = _locate(config.model.tokenizer)
    found["prompts"] = _prompts(config.prompts, config.train.seed, prompts)
    if config.dpo is not None:
        for file in config.dpo.files:
            if not Path(expand(file)).is_file():
                raise ConfigError(f"dpo.files: {file} stands for {expand(file)}, which is no file; correct the path")
        found["dpo.files"] = f"{len(config.dpo.files)} files of preference pairs"
    return found | _reward(config.reward, reward)


def _prompts(config: PromptsConfig, seed: int, given: Any) -> str:
    absent = not_fetched(config)
    if absent is not None:
        return absent
    split = load_prompts(config, seed, dataset=given)
    return f"{len(split.train)} to train on, {len(split.heldout)} held out"


def _reward(config: RewardConfig, given: Any) -> dict[str, str]:
    """What the reward stands for."""
    named = any((config.model, config.classifier, config.function, config.terms))
    if named and given is not None:
        raise ConfigError("the recipe names a reward and another was passed; keep one")
    if not named and given is None:
        raise ConfigError(
            "no reward: set reward.model, reward.classifier, reward.function or reward.terms in the recipe, or pass "
            "reward= in Python"
        )
    found = {}
    if config.model is not None:
        found["reward.model"] = _model(config, "reward")
    if config.function is not None:
        found["reward.function"] = config.function
    for name, term in (config.terms or {}).items():
        where = f"reward.terms.{name}"
        found[where] = f"{term.weight:g} x {_model(term, where) if term.model is not None else term.function}"
    if config.classifier is not None:
        texts, _, labels = read_labelled(config.classifier)
        found["reward.classifier"] = f"{len(texts)} texts, labels {', '.join(labels)}"
        if config.classifier.init is not None:
            found["reward.classifier.init"] = _locate(config.classifier.init)
    return found


def _model(config: RewardConfig | TermConfig, where: str) -> str:
    """Where a reward model lies; the label is looked up where its config is there to be read."""
    assert config.model is not None
    found = _locate(config.model)
    file = Path(found) / "config.json"
    if file.is_file():
        labels = [str(name) for name in read_json(file).get("id2label", {}).values()]
        if config.label is not None and labels and config.label not in labels:
            raise ConfigError(f"{where}.label {config.label!r} is no label of {found}; it has {', '.join(labels)}")
        if config.label is None and len(labels) > 1:
            raise ConfigError(f"{where}.label is missing; {found} has {', '.join(labels)}")
    return f"{found}, label {config.label}" if config.label is not None else found


def _locate(source: str) -> str:
    expanded = expand(source)
    if Path(expanded).is_dir():
        return str(Path(expanded).resolve())
    if expanded.startswith((".", "/")) or expanded.count("/") > 1 or "${" in source:
        raise ConfigError(f"{source} stands for {expanded}, which is no folder; correct the path")
    return f"{expanded}: {NOT_FETCHED}"
