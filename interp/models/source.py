"""Where a model comes from, a folder, a hub id with its revision or a loaded module, and whether it is all there."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from interp.errors import FormatError, LoadError
from interp.families import effective
from interp.io import read_json, sha256
from interp.models.adapter_files import CONFIG as ADAPTER_CONFIG
from interp.models.adapter_files import is_adapter
from interp.models.memo import facts

Source = str | os.PathLike[str] | nn.Module

HUB_TIMEOUT = 10.0
"""Seconds within which the hub must answer whether it has a model, before anything is asked of it in earnest."""

_ADAPTER_FILES = [ADAPTER_CONFIG, "adapter_model.safetensors", "tokenizer*", "special_tokens_map.json"]


@dataclass(frozen=True)
class Located:
    """A source that is known to exist.

    Attributes:
        name: what `from_pretrained` takes.
        folder: the folder, or None where files come from the hub or its cache.
        options: further arguments of `from_pretrained`.
    """

    name: str
    folder: Path | None
    options: Mapping[str, Any]


def split_revision(source: str | os.PathLike[str], revision: str | None = None) -> tuple[str, str | None]:
    """A hub id and its revision, out of "id@revision".

    Raises:
        LoadError: there are two revisions.
    """
    name, _, named = os.fspath(source).partition("@")
    if named and revision is not None and named != revision:
        raise LoadError(f"{os.fspath(source)!r} names one revision and revision={revision!r} another; give one")
    return name, named or revision


def local_folder(source: str | os.PathLike[str]) -> Path | None:
    """The folder that `source` names, or None where it is a hub id.

    Raises:
        LoadError: it looks like a path but no folder is there.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise LoadError(f"a model is a folder, a hub id or a loaded module, not a {type(source).__name__}")
    text = os.fspath(source)
    if not text.strip() or "\0" in text:
        raise LoadError(f"{text!r} names no folder and no model of the hub; check the path")
    try:
        path = Path(source).expanduser()
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, RuntimeError) as error:  # too long a name, a home of nobody
        raise LoadError(f"{text[:60]!r} cannot be a folder ({str(error)[:60]}); check the path") from error
    if is_folder:
        return path
    if exists:
        raise LoadError(f"{text} is a file; name the folder that holds config.json and model.safetensors")
    if text.startswith((".", "/", "~")) or text.count("/") > 1 or "\\" in text:
        raise LoadError(f"there is no folder {text!r}; check the path")
    return None


def locate(source: str | os.PathLike[str], revision: str | None = None) -> Located:
    """Find a source, without waiting for a hub that cannot be reached.

    The hub is asked once, with `HUB_TIMEOUT` and no second try; what is in its cache serves where it does not answer.

    Raises:
        LoadError: there is no such folder, and the hub has no such model, does not let us have it or does not answer;
            or a revision of a folder is asked for.
    """
    folder = local_folder(source)
    if folder is not None:
        if revision is not None:
            raise LoadError(
                f"{folder} is a folder, and a folder has no revisions; leave revision (--revision) out, or name a model"
                " of the hub"
            )
        return Located(str(folder), folder, {})
    name, revision = split_revision(source, revision)
    try:
        files = _files_on_hub(name, revision)
    except (ConnectionError, _Unreachable) as error:
        return _in_cache(name, revision, error)
    options = {"revision": revision} if revision else {}
    if "config.json" not in files and ADAPTER_CONFIG in files:
        from huggingface_hub import snapshot_download

        downloaded = Path(snapshot_download(name, revision=revision, allow_patterns=_ADAPTER_FILES))
        return Located(str(downloaded), downloaded, {})
    return Located(name, None, options)


class _Unreachable(Exception):
    """The hub did not answer."""


def _files_on_hub(name: str, revision: str | None) -> set[str]:
    """Names of the files of a model on the hub."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi().model_info(name, revision=revision, timeout=HUB_TIMEOUT)
    except HFValidationError as error:
        raise LoadError(f"{name!r} is neither a folder here nor a possible name on the hub; check the path") from error
    except GatedRepoError as error:
        raise LoadError(f"the hub wants you to accept the terms of {name!r} first; do so there, then log in") from error
    except RepositoryNotFoundError as error:
        raise LoadError(
            f"there is no folder {name!r} here and no such model on the hub; check the path, or log in if it is private"
        ) from error
    except RevisionNotFoundError as error:
        raise LoadError(f"{name!r} has no revision {revision!r} on the hub; check it") from error
    except ConnectionError:  # offline mode
        raise
    except Exception as error:  # the client of the hub has kinds of network errors of its own
        raise _Unreachable(str(error)) from error
    return {file.rfilename for file in info.siblings or ()}


def _in_cache(name: str, revision: str | None, error: Exception) -> Located:
    from huggingface_hub import try_to_load_from_cache

    for file in ("config.json", ADAPTER_CONFIG):
        file_path = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(file_path, str):
            options = {"local_files_only": True, **({"revision": revision} if revision else {})}
            adapter = Path(file_path).parent if file == ADAPTER_CONFIG else None
            return Located(str(adapter or name), adapter, {} if adapter else options)
    reason = "is switched off by HF_HUB_OFFLINE" if "offline mode" in str(error) else "cannot be reached"
    raise LoadError(
        f"there is no folder {name!r} here, and the hub {reason}; check the path, or the connection"
    ) from error


def describe_source(source: Any, *, revision: str | None = None, known: dict[str, Any] | None = None) -> dict[str, Any]:
    """A reference to where a model comes from, with its content's hash where that can be known.

    A hash is taken once for one content of a module, and once for one state of a file.

    Args:
        source: a folder, a hub id or a loaded module.
        revision: revision of a hub id.
        known: what is remembered of the module (`interp.models.memo.facts`), where the caller has it at hand.

    Returns:
        `{"folder", "sha256": {file: hash}}` of config and weights for a folder (of an adapter, of its files), `{"id",
        "revision"}` for a hub id, `{"object", "sha256"}` of the parameters for a loaded module.
    """
    if isinstance(source, nn.Module):
        known = facts(source) if known is None else known
        if "sha256" not in known:
            known["sha256"] = _module_hash(source)
        return {"object": type(source).__name__, "sha256": known["sha256"]}
    folder = local_folder(source)
    if folder is None:
        name, revision = split_revision(source, revision)
        return {"id": name, "revision": revision}
    wanted = (ADAPTER_CONFIG,) if is_adapter(folder) else ("config.json",)
    names = sorted(p for p in folder.iterdir() if p.name in wanted or p.suffix in (".safetensors", ".bin"))
    return {"folder": str(folder.resolve()), "sha256": {p.name: _file_hash(p) for p in names}}


def _module_hash(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items(), key=lambda item: item[0]):
        if isinstance(tensor, torch.Tensor):
            digest.update(name.encode())
            # With an adapter the state dict holds base's weights, and the adapter's own tensors are left out.
            values = effective(module, name).detach().cpu().contiguous().view(-1)
            digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()


_HASHES: dict[Path, tuple[tuple[int, ...], str]] = {}
"""SHA-256 of files by their real path, with the state that they were in."""

_SETTLED = 2 * 10**9
"""Nanoseconds after which a change of a file shows in its times, however coarsely the file system keeps them."""


def _file_hash(path: Path) -> str:
    """SHA-256 of a file, read again only where its place on disk, its size or one of its times is another."""
    real, stat = path.resolve(), path.stat()
    state = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    before = _HASHES.get(real)
    if before is not None and before[0] == state:
        return before[1]
    digest = sha256(path)
    if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > _SETTLED:
        _HASHES[real] = (state, digest)
    return digest


def source_name(description: Mapping[str, Any]) -> str:
    """Where a model comes from, in a word: its folder, its hub id, or its class."""
    return str(description.get("folder") or description.get("id") or description.get("object"))


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
            ("pair.json", "a pair, not a model; name its tuned/, or what its pair.json calls base or reward"),
            ("result.nc", "a saved result, not a model; open it with `interp report` or interp.load_result"),
            ("comparison.nc", "a saved result, not a model; open it with `interp report` or interp.load_result"),
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
        name = aliases.get(key, key)
        if name not in written and key not in written:
            raise LoadError(f"{file} does not give {name}; write it as the model was trained with, or copy it again")
