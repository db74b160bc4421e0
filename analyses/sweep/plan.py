"""Which cells a sweep has, and what decides each of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analyses.sweep.cells import Cell, Store, file_hash, model_hash
from analyses.sweep.config import SweepConfig, folder_name
from interp.errors import ConfigError
from interp.pair import CheckpointPair
from interp.reward.checkpoints import folder_steps, pair_steps
from training.config import RLHFConfig, expand
from training.config.places import changed
from training.prompts import load_prompts

BASE = "base"


def pair_folder(config: SweepConfig, root: Path, name: str) -> Path:
    """Where the pair `name` lies: a folder that was given, or one in the sweep."""
    given = (config.given or {}).get(name)
    return Path(expand(given)) if given is not None else root / "pairs" / folder_name(name)


def pair_cells(config: SweepConfig, root: Path) -> list[Cell]:
    """A cell for each pair.

    Raises:
        ConfigError: the recipe cannot be read, a file is missing, or a given folder holds no pair.
    """
    found = []
    for name, (emotion, seed) in config.pairs().items():
        folder = pair_folder(config, root, name)
        how: dict[str, Any] = {"folder": str(folder), "emotion": emotion, "seed": seed}
        if name in (config.given or {}):
            pair = CheckpointPair.load(folder)
            label = (pair.manifest.get("reward") or {}).get("label")
            if label not in (None, emotion):
                raise ConfigError(
                    f"given: the pair {folder} was tuned toward {label!r}, not {name!r}; correct the folder"
                )
            inputs: dict[str, Any] = {"given": pair.manifest["files"]}
        else:
            recipe = config.training(emotion, seed)
            files = [file_hash(_file(path)) for path in recipe.prompts.files]
            models = {"base": model_hash(expand(recipe.model.base)), "reward": model_hash(reward_of(recipe))}
            inputs = {"recipe": _without_folders(recipe), "files": files, "models": models}
            how |= {"recipe": recipe.to_dict()}
        found.append(Cell(f"{folder_name(name)}.pair", "pair", name, inputs, how))
    return found


def _without_folders(recipe: RLHFConfig) -> dict[str, Any]:
    """The recipe with every place by its last name only: what lies there decides a pair, not where it lies."""
    values: dict[str, Any] = changed(RLHFConfig, recipe.to_dict(), lambda text, _: text.rsplit("/", 1)[-1])
    return values


def reward_of(recipe: RLHFConfig) -> str:
    """Folder or hub id of the reward model.

    Raises:
        ConfigError: the recipe rewards by something else.
    """
    if recipe.reward.model is None:
        raise ConfigError("the sweep needs a reward model with the emotions as labels; set reward, or the recipe's")
    return expand(recipe.reward.model)


def _file(path: str) -> Path:
    found = Path(expand(path))
    if not found.is_file():
        stands = "" if str(found) == path else f" stands for {found}, which"
        raise ConfigError(f"{path}{stands} is no file; correct the path")
    return found


def shared_settings(config: SweepConfig) -> dict[str, Any]:
    """What all cells of all pairs have in common: base, reward, prompts, texts.

    Raises:
        ConfigError: something cannot be read.
    """
    recipe = config.training(config.emotions[0])
    if config.prompts:
        from interp.prompts import Prompts

        prompts = list(Prompts.from_file(_file(config.prompts)).texts)
    else:
        prompts = list(load_prompts(recipe.prompts, recipe.train.seed).heldout)
    return {
        "base": expand(recipe.model.base),
        "reward": reward_of(recipe),
        "output": recipe.reward.output,
        "reads": recipe.reward.reads,
        "max_new_tokens": recipe.generate.max_new_tokens,
        "prompts": [str(text) for text in prompts[: config.prompt_limit]],
        "texts": config.held_out_texts(),
        "samples": config.samples,
        "permutations": config.permutations,
        "seed": config.seed,
        "circuit_prompts": str(_file(config.circuit_prompts)) if config.circuit_prompts else "",
        "labelled": config.labelled_texts() if "probes" in config.cells else [],
        "probe_texts": config.probe_texts,
    }


_USES: Mapping[str, tuple[str, ...]] = {
    "labels": ("reward", "texts"),
    "comparison": ("base", "prompts", "max_new_tokens", "seed"),
    "states": ("base", "prompts"),
    "patching": ("base", "prompts", "seed"),
    "reading": ("reward", "texts", "seed"),
    "implicit": ("base", "reward", "output", "reads", "prompts", "max_new_tokens", "samples", "permutations", "seed"),
    "tokens": ("base", "reward", "prompts", "max_new_tokens", "permutations", "seed"),
    "circuit": ("base", "circuit_prompts"),
    "probes": ("base", "reward", "labelled", "probe_texts", "seed"),
}
"""Settings that each kind of cell depends on."""

OF_EMOTION = ("reading",)
"""Kinds that are about the reward model alone, and are the same for every seed."""

OF_BASE = ("states", "circuit")
"""Kinds that are also computed of base, once."""


def shared_cells(config: SweepConfig, settings: Mapping[str, Any]) -> list[Cell]:
    """Cells that need no pair: labels, base's own, and the readings of the reward model."""
    cells = [_cell("labels", "labels", "", settings, {"emotions": list(config.emotions)})]
    cells += [_cell(f"{BASE}.{kind}", kind, "", settings, {"of": BASE}) for kind in OF_BASE if kind in config.cells]
    if "reading" in config.cells:
        cells += [
            _cell(f"{folder_name(name)}.reading", "reading", "", settings, {"emotion": name, "form": 3})
            for name in config.emotions
        ]
    return cells


def derived_cells(config: SweepConfig, settings: Mapping[str, Any], pairs: Mapping[str, CheckpointPair]) -> list[Cell]:
    """The cells of the pairs that are there."""
    cells = []
    for kind in (kind for kind in config.cells if kind not in OF_EMOTION):
        for name, (emotion, _) in config.pairs().items():
            if name not in pairs:
                continue
            pair = pairs[name]
            about: dict[str, Any] = {"emotion": emotion, "tuned": model_hash(pair.tuned)}
            if kind == "implicit":
                about["optimised"] = pair.manifest["config"].get("ppo", {})
            how: dict[str, Any] = {"tuned": pair.tuned, "folder": str(pair.path)}
            if kind == "probes":
                courses = {"policy": policy_steps(pair), "reward": folder_steps(settings["reward"])}
                about["courses"] = {
                    of: {str(step): model_hash(place) for step, place in steps.items()} for of, steps in courses.items()
                }
                how["courses"] = courses
            cells.append(_cell(f"{folder_name(name)}.{kind}", kind, name, settings, about, how))
    return cells


def policy_steps(pair: CheckpointPair) -> dict[int, str]:
    """Base, the checkpoints that the run kept, and tuned, by optimiser step; without checkpoints the two ends."""
    if pair.checkpoints:
        return pair_steps(pair)
    config: Any = pair.manifest.get("config", {})
    return {0: pair.base, int(config.get("train", {}).get("total_steps", 1)): pair.tuned}


def _cell(
    name: str, kind: str, pair: str, settings: Mapping[str, Any], about: Mapping[str, Any], how: Mapping[str, Any] = {}
) -> Cell:
    used = {key: settings[key] for key in _USES[kind]}
    inputs = {key: _content(key, value) for key, value in used.items()} | dict(about)
    own = {key: value for key, value in settings.items() if key in used or key != "labelled"}  # which is large
    return Cell(name, kind, pair, inputs, {**own, **about, **how})


def _content(key: str, value: Any) -> Any:
    """A setting as what decides a result: models and files by their hash."""
    if key in ("base", "reward"):
        return model_hash(value)
    if key == "labelled":
        return hashlib.sha256(json.dumps([[text, sorted(labels)] for text, labels in value]).encode()).hexdigest()
    return file_hash(Path(value)) if key == "circuit_prompts" else value


def all_cells(config: SweepConfig, root: Path) -> list[Cell]:
    """Every cell of the sweep that can be named yet: those of a pair only where the pair is there."""
    settings = shared_settings(config)
    return [*pair_cells(config, root), *shared_cells(config, settings), *derived_of(config, root, settings)]


def derived_of(config: SweepConfig, root: Path, settings: dict[str, object]) -> list[Cell]:
    """The cells that read a pair, of the pairs that are there."""
    store = Store(root)
    done = {cell.pair for cell in pair_cells(config, root) if store.record(cell) is not None}
    pairs = {name: CheckpointPair.load(pair_folder(config, root, name)) for name in config.pairs() if name in done}
    return derived_cells(config, settings, pairs)
