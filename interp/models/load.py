"""Loading: a policy, a reward model or a pair, by folder, id, module or adapter; every option of loading is said here.

    model = interp.load("Qwen/Qwen2.5-0.5B", dtype="bfloat16")
    reward = interp.load_reward("my/reward", label="positive")
    pair = interp.load_pair("demo")

Whatever takes a model takes what these take, and loads it with the defaults (`as_policy`, `as_reward`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, get_args

import torch

from interp.errors import LoadError
from interp.models.policy import Policy
from interp.models.pretrained import DeviceMap, check_placement
from interp.models.reward_model import RewardModel
from interp.pair import CheckpointPair, InMemory

load = Policy.load
load_reward = RewardModel.load


def as_policy(source: Any, *, tokenizer: Any = None) -> Policy:
    """The policy that is meant, loaded with the defaults where it is not loaded.

    Args:
        source: what `interp.load` takes, or a `Policy`.
        tokenizer: of a loaded module, its tokenizer.

    Raises:
        LoadError: it is no policy, or cannot be loaded.
    """
    return Policy.load(source, tokenizer=tokenizer)


def as_reward(source: Any, *, label: str | None = None) -> RewardModel:
    """The reward model that is meant, loaded with the defaults where it is not loaded.

    Args:
        source: what `interp.load_reward` takes: a pair gives the reward that it was tuned toward.
        label: the label that is read of a model that is loaded here and has several; a `RewardModel` keeps its own.

    Raises:
        LoadError: it is no reward model, or cannot be loaded.
        MeasureError: it is a pair that was tuned toward a function or a sum.
    """
    return source if isinstance(source, RewardModel) else RewardModel.load(source, label=label)


def load_pair(
    source: str | os.PathLike[str] | CheckpointPair | None = None,
    *,
    base: Any = None,
    tuned: Any = None,
    controls: Sequence[Any] | None = None,
    replicates: Sequence[Any] | None = None,
    reward: Any = None,
    tokenizer: Any = None,
    in_memory: InMemory = "all",
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    device_map: DeviceMap = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> CheckpointPair:
    """A base model and its tuned version, with what belongs to both; nothing is loaded before it is needed.

    Args:
        source: a folder that `interp train` wrote, or "demo", the pair that comes with the package (a folder of that
            name is "./demo"); None: `base` and `tuned` name the models.
        base: what `interp.load` takes. Beside a `source`, this and the next four go before what its manifest says.
        tuned: the same; an adapter goes on base and shares its weights.
        controls: control runs (tuned toward a shuffled reward, say).
        replicates: runs of the same recipe with other seeds.
        reward: what `interp.load_reward` takes, or a function that scores texts.
        tokenizer: a tokenizer for all models, or "base" or "tuned"; None: each model's own.
        in_memory: "all" keeps every model in memory; "one" drops each before the next is loaded (traces wait in a
            scratch file; see `interp.models.offload`).
        dtype: dtype of the policies when loading; None keeps that of the files.
        device: device when loading; None is the CPU.
        device_map: where parts of a model go, instead of `device`; "auto" spreads them over the GPUs there are.
        trust_remote_code: run code that comes with a model.
        allow_pickle: accept pickled weights.

    Raises:
        LoadError: no two models are named, or an option is none of those above.
        FormatError: there is no pair in the folder, or a newer version wrote it.
    """
    check_placement(dtype, device, device_map)
    if in_memory not in get_args(InMemory):
        raise LoadError(f'in_memory is "all" or "one", not {in_memory!r}')
    named = {"base": base, "tuned": tuned, "controls": controls, "replicates": replicates, "reward": reward}
    models = {name: value for name, value in named.items() if value is not None}
    for name in ("controls", "replicates"):
        if isinstance(models.get(name), (str, os.PathLike)) or not isinstance(models.get(name, ()), Sequence):
            raise LoadError(f"{name} is a list of models, not one; put it in brackets")
    if source is None and not {"base", "tuned"} <= models.keys():
        raise LoadError('name a pair\'s folder, "demo", or both models: interp.load_pair(base=..., tuned=...)')
    pair = CheckpointPair(None, {}) if source is None else _pair(source)
    loading: dict[str, Any] = {"dtype": dtype, "device": device, "device_map": device_map}
    loading |= {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
    return CheckpointPair(
        pair.path,
        pair.manifest,
        {**pair.models, **models},
        pair.tokenizer if tokenizer is None else tokenizer,
        pair.in_memory if in_memory == "all" else in_memory,
        {**pair.loading, **{name: value for name, value in loading.items() if value}},
    )


def _pair(source: Any) -> CheckpointPair:
    if isinstance(source, CheckpointPair):
        return source
    if not isinstance(source, (str, os.PathLike)):
        raise LoadError(
            f"a pair is a folder or a name, not a {type(source).__name__}; name two models by base= and tuned="
        )
    return CheckpointPair.load(source)
