"""What must be true of a folder before its weights are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from interp.errors import FormatError, LoadError
from interp.io import read_json

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# Without these a config falls back on those of some released model, which may fit the weights and be wrong.
_SHAPE_KEYS = ("num_hidden_layers", "num_attention_heads", "hidden_size")


def check_folder(folder: Path, *, allow_pickle: bool = False) -> None:
    """Refuse a folder that does not hold a whole model.

    Raises:
        LoadError: config.json or weights are absent, a safetensors file is cut off, or only pickles are there.
    """
    if not (folder / "config.json").is_file():
        for file, what in (
            ("pair.json", "a pair, not a model; name its tuned/, or what its pair.json calls base"),
            ("comparison.nc", "a saved comparison, not a model; open it with `interp report` or Comparison.load"),
        ):
            if (folder / file).is_file():
                raise LoadError(f"{folder} is {what}")
        raise LoadError(f"{folder} has no config.json; name a folder that save_pretrained wrote")
    _check_config(folder / "config.json")
    if (folder / "adapter_config.json").is_file():
        raise LoadError(
            f"{folder} holds a model and a LoRA adapter, and which is meant cannot be known; move the adapter_* files"
            " or the model's to a folder of their own"
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = sorted({folder / name for name in _weight_map(index).values()})
    else:
        files = sorted(folder.glob("model.safetensors"))
    if not files:
        pickles = sorted(p.name for pattern in _PICKLES for p in folder.glob(pattern))
        if not pickles:
            raise LoadError(f"{folder} has a config.json but no weights; copy model.safetensors into it")
        if not allow_pickle:
            raise LoadError(
                f"{folder} holds pickled weights only ({pickles[0]}), which can run code when loaded; save them as"
                " safetensors (save_pretrained), or pass allow_pickle=True (--allow-pickle) if you trust the file"
            )
    for weights in files:
        if not weights.is_file():
            raise LoadError(f"{weights} is listed in {index.name} but absent; copy the whole folder again")
        try:
            with safe_open(weights, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise LoadError(f"{weights} is cut off or damaged ({error}); copy it again") from error


def _object(file: Path) -> dict[str, Any]:
    """A JSON file that must hold an object."""
    try:
        value = read_json(file)
    except FormatError as error:
        raise LoadError(str(error)) from error
    if not isinstance(value, dict):
        raise LoadError(f"{file} holds a JSON {type(value).__name__}, not an object; copy the folder again")
    return value


def _weight_map(index: Path) -> dict[str, str]:
    names = _object(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise LoadError(f"{index} has no weight_map; copy the whole folder again")
    return names


def _check_config(file: Path) -> None:
    config = _object(file)
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise LoadError(f"{file} has no model_type; write the one that its model was saved with, as gpt2 or llama")
    named = config.get("architectures")
    if not isinstance(named, list) or not named or not all(isinstance(name, str) for name in named):
        raise LoadError(
            f'{file} does not say which class the model is; write it under "architectures", as ["LlamaForCausalLM"]'
        )


def check_shape_keys(file: Path, config: Any) -> None:
    """Refuse a config.json that leaves out how many layers or heads there are, or how wide they are.

    Raises:
        LoadError: naming the key.
    """
    written, aliases = _object(file), getattr(config, "attribute_map", {})
    if "text_config" in written or not hasattr(config, "hidden_size"):
        return
    for key in _SHAPE_KEYS:
        own = aliases.get(key, key)
        if own not in written and key not in written:
            raise LoadError(f"{file} does not give {own}; write it as the model was trained with, or copy it again")
