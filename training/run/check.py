"""`check`: everything a run needs is resolved, and nothing is trained."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interp.errors import ConfigError
from interp.io import read_json
from training.classifier import read_labelled
from training.config import PromptsConfig, RewardConfig, RLHFConfig, TermConfig, expand
from training.prompts import load_prompts, not_fetched
from training.reward import load_function

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
    absent = not_installed(NEEDS[config.train.engine])
    found = {
        "engine": f"{config.train.engine}, {config.algorithm}"
        + (f"; {', '.join(absent)} not installed" if absent else "")
    }
    found["model.base"] = _locate(config.model.base)
    _fits(config, Path(found["model.base"]) / "config.json")
    for name in not_installed(config.train.trackers):
        raise ConfigError(f"train.trackers: {name} is not installed; pip install {name}, or leave it out")
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
    named = config.model is not None or any((config.classifier, config.function, config.terms))
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
        load_function(config.function)
        found["reward.function"] = config.function
    for name, term in (config.terms or {}).items():
        if term.function is not None:
            load_function(term.function)
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


def not_installed(names: Sequence[str]) -> list[str]:
    """Those packages that are not there to be imported."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def _fits(config: RLHFConfig, file: Path) -> None:
    """What a base's own config says against the recipe; nothing where it has not been fetched."""
    if not file.is_file():
        return
    base = read_json(file)
    both = bool(base.get("is_encoder_decoder"))
    if both and config.train.engine == "trl":
        raise ConfigError("the engine trl trains causal models only; set train.engine to native or trlx for this base")
    context = next((base[key] for key in ("max_position_embeddings", "n_positions") if base.get(key)), None)
    if context and not both and config.generate.max_new_tokens >= context:
        raise ConfigError(
            f"generate.max_new_tokens ({config.generate.max_new_tokens}) leaves no room for a prompt in the base's "
            f"context of {context} tokens; lower it"
        )
    layers = next((base[key] for key in ("num_decoder_layers", "num_hidden_layers", "n_layer") if base.get(key)), None)
    if layers and config.model.num_layers_unfrozen > layers:
        raise ConfigError(
            f"model.num_layers_unfrozen is {config.model.num_layers_unfrozen}, the base has {layers} layers; "
            "-1 trains everything"
        )


def _locate(source: str) -> str:
    if not source.strip():
        raise ConfigError("a model's name is empty; give a folder or a hub id")
    expanded = expand(source)
    if Path(expanded).is_dir():
        return str(Path(expanded).resolve())
    if expanded.startswith((".", "/")) or expanded.count("/") > 1 or "${" in source:
        stands = f"{source} stands for {expanded}, which" if source != expanded else expanded
        raise ConfigError(f"{stands} is no folder; correct the path")
    return f"{expanded}: no folder here, so a hub id, {NOT_FETCHED}"
