"""What a run goes on from after a crash: weights, optimiser, and where it stands.

A state is a file of tensors and `state.json`, which names that file and is replaced last, in one stroke: at any moment
there is a whole state or none.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from interp.errors import FormatError, InterpError, TrainingError
from interp.io import atomic_file, read_json, write_json
from training.config import RLHFConfig
from training.native.learner import Learner
from training.native.scores import Moments

FOLDER, MANIFEST, FORMAT = "state", "state.json", 1
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Standing:
    """Where a run stands between two rounds.

    Attributes:
        round: rounds done.
        step: optimiser steps taken.
        kl_coef: weight of the KL penalty in the next round.
        first_kl: KL at step 0, nats per response token.
        moments: of the scores so far.
    """

    round: int
    step: int
    kl_coef: float
    first_kl: float
    moments: Moments = field(default_factory=Moments)


def digest(config: RLHFConfig, shuffle: int | None) -> str:
    """What a state must agree with: the recipe, and the seed of a null run's permutation."""
    return hashlib.sha256(json.dumps([config.to_dict(), shuffle], sort_keys=True).encode()).hexdigest()


def tensors_of(learner: Learner) -> dict[str, Tensor]:
    """Everything that training changes, by name, on the CPU."""
    found = {f"policy.{name}": p for name, p in learner.model.named_parameters() if p.requires_grad}
    found |= {f"value_head.{name}": p for name, p in learner.value_head.named_parameters()}
    for number, parameter in enumerate(learner.parameters):
        moments = learner.optimizer.state.get(parameter, {})
        found |= {f"optimizer.{number}.{name}": moments[name] for name in MOMENTS if name in moments}
    return {name: value.detach().cpu().contiguous() for name, value in found.items()}


def store(folder: Path, learner: Learner, standing: Standing, recipe: str) -> None:
    """Write the state of a run into `folder`/state; the one before it goes last.

    Args:
        folder: the policy's own folder.
        learner: what learns.
        standing: where it stands.
        recipe: `digest` of what it learns by.

    Raises:
        InterpError: the folder cannot be written or the disk is full; the state before it is still whole then.
    """
    home, name = folder / FOLDER, f"round-{standing.round:06d}.safetensors"
    with atomic_file(home / name) as file:
        try:
            save_file(tensors_of(learner), file)
        except SafetensorError as error:
            raise InterpError(f"cannot write {home / name}: {error}; is the disk full?") from error
    content = {"format": FORMAT, "recipe": recipe, "tensors": name, **asdict(standing)}
    write_json(home / MANIFEST, content)
    for other in home.glob("round-*.safetensors"):
        if other.name != name:
            other.unlink(missing_ok=True)


def state_step(folder: Path) -> int | None:
    """Optimiser steps taken in the state that `folder` holds; None where it holds none.

    Raises:
        FormatError: there is a state that cannot be read.
    """
    found = _manifest(folder)
    return None if found is None else int(found["step"])


def restore(folder: Path, learner: Learner, recipe: str) -> Standing | None:
    """Bring `learner` to where the stored state was; None where there is none.

    Raises:
        TrainingError: the state belongs to another recipe.
        FormatError: it cannot be read.
    """
    found = _manifest(folder)
    if found is None:
        return None
    if found["recipe"] != recipe:
        raise TrainingError(f"{folder / FOLDER} is the state of another recipe; go on with that one, or remove it")
    file = folder / FOLDER / found["tensors"]
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise FormatError(f"cannot read {file}: {error}; remove {folder / FOLDER} and start anew") from error
    with torch.no_grad():
        for prefix, module in (("policy", learner.model), ("value_head", learner.value_head)):
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(tensors[f"{prefix}.{name}"])
    for number, tensor in enumerate(learner.parameters):
        names = [name for name in MOMENTS if f"optimizer.{number}.{name}" in tensors]
        if names:
            values: dict[str, Any] = {name: tensors[f"optimizer.{number}.{name}"].to(tensor.device) for name in names}
            learner.optimizer.state[tensor] = values
    numbers = {name: found[name] for name in ("round", "step", "kl_coef", "first_kl")}
    return Standing(**numbers, moments=Moments(**found["moments"]))


def _manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / FOLDER / MANIFEST
    if not path.is_file():
        return None
    found = read_json(path)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise FormatError(f"{path} is no state that this version reads; remove {path.parent} and start anew")
    return found
