"""Adapters on disk: what peft's `save_pretrained` writes, read with every tensor accounted for. peft is not needed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from interp.errors import FormatError, LoadError
from interp.io import read_json

MERGE = "merge it (peft: merge_and_unload), save the whole model and name that"
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"

# Variants of LoRA that compute something else than W + B A, by the field of adapter_config.json that switches them on.
_VARIANTS = """use_qalora alora_invocation_tokens arrow_config trainable_token_indices target_parameters
layer_replication use_bdlora monteclora_config velora_config kasa_config""".split()
# Initialisations that leave the base's weights alone; the others (PiSSA, OLoRA, LoftQ ...) change them before training.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
_LORA_KEY = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A|lora_embedding_B"
    r"|lora_magnitude_vector)(\.weight)?"
)


@dataclass(frozen=True)
class Change:
    """What an adapter does to one module.

    Attributes:
        A: the map into the low rank.
        B: the map out of it, times alpha / r.
        bias: added to the output, or None.
        magnitude: DoRA's norm of each output's weights, or None.
    """

    A: Float[Tensor, "rank d_in"]
    B: Float[Tensor, "d_out rank"]
    bias: Float[Tensor, " d_out"] | None = None
    magnitude: Float[Tensor, " d_out"] | None = None


@dataclass(frozen=True)
class Adapter:
    """An adapter as read from a folder.

    Attributes:
        name: where it comes from.
        base: the model that it was made for, as its config names it, or None.
        changes: what it does to each module, by the module's path.
        replaced: whole parameters that it brings along, by name (`modules_to_save`, trained biases).
        config: its adapter_config.json, which says what modules it adapts.
    """

    name: str
    base: str | None
    changes: Mapping[str, Change]
    replaced: Mapping[str, Tensor]
    config: Mapping[str, Any] = field(default_factory=dict)

    def adapts(self, path: str) -> bool:
        """Whether the config names the module at `path`, as peft reads `target_modules` and its neighbours."""
        if not _named(self.config.get("target_modules"), path) or _named(self.config.get("exclude_modules"), path):
            return False
        layers = self.config.get("layers_to_transform")
        if layers is None:
            return True
        numbers = [int(number) for number in re.findall(r"\.(\d+)\.", path)]
        return bool(numbers) and numbers[0] in ([layers] if isinstance(layers, int) else layers)


def _named(targets: Any, path: str) -> bool:
    """Whether a regular expression fits a path, or a list names the path's end."""
    if isinstance(targets, str):
        return targets != "all-linear" and re.fullmatch(targets, path) is not None
    return any(path == target or path.endswith(f".{target}") for target in targets or ())


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model of its own."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def read_adapter(folder: str | os.PathLike[str], *, allow_pickle: bool = False) -> Adapter:
    """Read a LoRA adapter as peft's `save_pretrained` writes it.

    Args:
        folder: holds adapter_config.json and adapter_model.safetensors.
        allow_pickle: accept adapter_model.bin.

    Raises:
        LoadError: it is damaged, no LoRA, or a variant that is not W + B A or DoRA.
    """
    path = Path(folder)
    config = read_config(path)
    tensors = _read_tensors(path, allow_pickle)
    parts: dict[str, dict[str, Tensor]] = {}
    replaced = {}
    for key, tensor in tensors.items():
        name = key.removeprefix("base_model.model.")
        match = _LORA_KEY.fullmatch(name)
        if match:
            parts.setdefault(match["module"], {})[match["part"].removesuffix(".weight")] = tensor
        elif ".lora_" in name:
            raise LoadError(f"{path}: the tensor {key} is of no kind of LoRA that is read here; {MERGE}")
        else:
            replaced[name.replace(".base_layer", "").replace(".modules_to_save", "")] = tensor
    if not tensors:
        raise LoadError(f"{path / WEIGHTS} holds no tensor; save the adapter again with save_pretrained")
    changes = {module: _change(path, config, module, part) for module, part in parts.items()}
    for name in config.get("modules_to_save") or ():
        if not any(f".{name}." in f".{key}" for key in replaced):
            raise LoadError(f"{path} lacks {name}, which its config saves whole; save the adapter again")
    return Adapter(str(path), config.get("base_model_name_or_path"), changes, replaced, config)


def read_config(folder: Path) -> dict[str, Any]:
    """The content of adapter_config.json.

    Raises:
        LoadError: it is no JSON object, no LoRA, or a variant that is not W + B A or DoRA.
    """
    file = folder / CONFIG
    try:
        config = read_json(file)
    except FormatError as error:
        raise LoadError(str(error)) from error
    if not isinstance(config, dict):
        raise LoadError(f"{file} is a JSON {type(config).__name__}, not an object; save the adapter again")
    kind = config.get("peft_type")
    if kind != "LORA":
        raise LoadError(f"{folder} is an adapter of type {kind}, only LORA can be read; {MERGE}")
    on = [name for name in _VARIANTS if config.get(name)]
    if on:
        raise LoadError(f"{folder} uses {on[0]}, which is more than W + B A; {MERGE}")
    start = config.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        raise LoadError(f"{folder} was initialised by {start!r}, which changes the base's own weights; {MERGE}")
    for name in ("r", "lora_alpha"):
        value = config.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            raise LoadError(f"{file} says {name} = {value!r}, not a number above 0; save the adapter again")
    return config


def _read_tensors(folder: Path, allow_pickle: bool) -> dict[str, Tensor]:
    file, pickle = folder / WEIGHTS, folder / PICKLE
    if file.is_file():
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise LoadError(f"{file} is cut off or damaged ({error}); copy it again") from error
    if not pickle.is_file():
        raise LoadError(f"{folder} has an {CONFIG} but no {WEIGHTS}; copy it there, or save the adapter again")
    if not allow_pickle:
        raise LoadError(
            f"{pickle} is a pickle, which can run code when loaded; save the adapter as safetensors (save_pretrained),"
            " or pass allow_pickle=True (--allow-pickle) if you trust the file"
        )
    return torch.load(pickle, map_location="cpu", weights_only=True)


def _change(folder: Path, config: Mapping[str, Any], module: str, parts: Mapping[str, Tensor]) -> Change:
    pair = ("lora_embedding_A", "lora_embedding_B") if "lora_embedding_A" in parts else ("lora_A", "lora_B")
    missing = [name for name in pair if name not in parts]
    if missing:
        raise LoadError(f"{folder} lacks {module}.{missing[0]}; save the adapter again")
    A, B = (parts[name] for name in pair)
    if A.ndim != 2 or B.ndim != 2 or len(A) != B.shape[1]:
        raise LoadError(
            f"{folder}: {module} has A of shape {tuple(A.shape)} and B of {tuple(B.shape)}, no low-rank pair;"
            " save the adapter again"
        )
    promised = {"use_dora": "lora_magnitude_vector", "lora_bias": "lora_B.bias"}
    lacking = [name for switch, name in promised.items() if config.get(switch) and name not in parts]
    if lacking and pair[0] == "lora_A":
        raise LoadError(f"{folder} lacks {module}.{lacking[0]}, which its config promises; save the adapter again")
    wanted = _by_pattern(config.get("rank_pattern"), module, config["r"])
    if len(A) != wanted or not (A.is_floating_point() and B.is_floating_point()):
        raise LoadError(
            f"{folder}: {module} has rank {len(A)} in {A.dtype}, its config says rank {wanted}; save the adapter again"
        )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in parts.values()):
        raise LoadError(f"{folder}: the adapter of {module} holds NaN or infinity; train or copy it again")
    rank = len(A)
    alpha = float(_by_pattern(config.get("alpha_pattern"), module, config["lora_alpha"]))
    scaling = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
    bias = parts.get("lora_B.bias")
    return Change(
        single(A), single(B) * scaling, None if bias is None else bias * scaling, parts.get("lora_magnitude_vector")
    )


def single(tensor: Tensor) -> Tensor:
    """In float32 or better: a low rank is cheap, and its digits are what changed."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, otherwise: Any) -> Any:
    """The value of the first pattern that the module's path ends in, as peft reads `alpha_pattern`."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return otherwise
