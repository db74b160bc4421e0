"""Loading weights and tokenizers: the right class, every key accounted for, safetensors unless asked otherwise."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import logging as hf_logging

from interp.errors import InterpError, LoadError
from interp.families import family_of
from interp.io import read_json, sha256

Head = Literal["causal", "classifier"]
Source = str | os.PathLike[str] | nn.Module
_HEAD_SUFFIX = {"causal": ("LMHeadModel", "ForCausalLM"), "classifier": ("ForSequenceClassification",)}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' bars and load report; what is wrong in it is raised as an error instead."""
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hub = logging.getLogger("huggingface_hub")
    hub_level = hub.level
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    hub.setLevel(logging.ERROR)
    try:
        yield
    finally:
        hub.setLevel(hub_level)
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


def local_folder(source: str | os.PathLike[str]) -> Path | None:
    """The folder that `source` names, or None where it is a hub id.

    Raises:
        LoadError: it looks like a path but no folder is there.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise LoadError(f"a model is a folder, a hub id or a loaded module, not a {type(source).__name__}")
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    text = os.fspath(source)
    if path.exists():
        raise LoadError(f"{text} is a file; name the folder that holds config.json and model.safetensors")
    if text.startswith((".", "/", "~")) or text.count("/") > 1 or "\\" in text or not text.strip():
        raise LoadError(f"there is no folder {text!r}; check the path")
    return None


def check_folder(folder: Path, *, allow_pickle: bool = False) -> None:
    """Refuse a folder that does not hold a whole model.

    Raises:
        LoadError: config.json or weights are absent, a safetensors file is cut off, or only pickles are there.
    """
    if not (folder / "config.json").is_file():
        if (folder / "pair.json").is_file():
            raise LoadError(f"{folder} is a pair, not a model; name its tuned/, or what its pair.json calls base")
        if (folder / "adapter_config.json").is_file():
            raise LoadError(
                f"{folder} holds a LoRA adapter, not a model; merge it (peft: merge_and_unload) and save that"
            )
        raise LoadError(f"{folder} has no config.json; name a folder that save_pretrained wrote")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = sorted({folder / name for name in read_json(index)["weight_map"].values()})
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
    for file in files:
        if not file.is_file():
            raise LoadError(f"{file} is listed in {index.name} but absent; copy the whole folder again")
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise LoadError(f"{file} is cut off or damaged ({error}); copy it again") from error


def _failed(error: Exception, source: str, what: str) -> LoadError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    local = Path(source).is_dir()
    remedy = "copy the folder again" if local else f"there is no folder {source!r} here, and the hub did not give it"
    return LoadError(f"cannot load the {what} of {source!r} ({reason[:160]}); {remedy}")


_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def check_placement(dtype: torch.dtype | str | None, device: torch.device | str | None) -> None:
    """Refuse a dtype or device before anything is read from disk.

    Raises:
        LoadError: naming what there is.
    """
    if dtype is not None and dtype not in _DTYPES and dtype not in _DTYPES.values():
        raise LoadError(f"dtype is float32, bfloat16, float16 or float64, not {dtype!r}")
    if device is not None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise LoadError(
                f"there is no device {str(device)!r} on this machine; use cpu, or cuda with a GPU"
            ) from error


def _check_keys(name: str, report: dict[str, Any]) -> None:
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            example = sorted(map(str, report[kind]))[0]
            raise LoadError(
                f"{name}: {len(report[kind])} {kind.replace('_', ' ')} (as {example}), so part of the model would be"
                " random or dropped; save it again with save_pretrained from the class in its config"
            )


def load_model(
    source: str | os.PathLike[str],
    *,
    head: Head = "causal",
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> nn.Module:
    """Load a model of transformers by the class that its config names, in eval mode, with every key accounted for.

    The class comes from `config.architectures`, never from model_type: a classifier opened as a bare model of its type
    would get a random score head without a word.

    Args:
        source: folder or hub id.
        head: what the model must have: a language-model head or a score head.
        dtype: dtype of the weights; None keeps that of the files.
        device: device; None is the CPU.
        revision: revision of a hub id.
        trust_remote_code: handed to transformers for the config.
        allow_pickle: accept pickled weights.

    Raises:
        LoadError: no such folder or id, dtype or device; no whole weights; the wrong kind of head; or missing,
            unexpected or mismatched keys.
        UnknownFamily: no row of `interp.families` covers the architecture.
    """
    check_placement(dtype, device)
    folder = local_folder(source)
    if folder is not None:
        check_folder(folder, allow_pickle=allow_pickle)
    name = str(folder or source)
    options: dict[str, Any] = {"revision": revision} if folder is None and revision else {}
    with _quiet():
        try:
            config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, **options)
        except (OSError, ValueError, KeyError) as error:
            raise _failed(error, name, "config") from error
        architecture = (getattr(config, "architectures", None) or [type(config).__name__])[0]
        family_of(architecture)
        if not architecture.endswith(_HEAD_SUFFIX[head]):
            wanted = "a language model" if head == "causal" else "a classifier with a score head"
            raise LoadError(f"{name} is a {architecture}, not {wanted}; name another model")
        try:
            model, report = getattr(transformers, architecture).from_pretrained(
                name,
                config=config,
                dtype=(_DTYPES[dtype] if isinstance(dtype, str) else dtype) or "auto",
                use_safetensors=None if allow_pickle else True,
                output_loading_info=True,
                **options,
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise _failed(error, name, "weights") from error
    _check_keys(name, report)
    model.eval()
    return model.to(device) if device is not None else model


def load_tokenizer(
    source: str | os.PathLike[str], *, revision: str | None = None, trust_remote_code: bool = False
) -> Any:
    """Load the tokenizer of a folder or hub id.

    Raises:
        LoadError: there is none.
    """
    folder = local_folder(source)
    name = str(folder or source)
    if folder is not None and not any(
        (folder / f).is_file() for f in ("tokenizer.json", "tokenizer_config.json", "vocab.json")
    ):
        raise LoadError(f"{folder} holds no tokenizer; save one into it, or pass tokenizer=")
    options: dict[str, Any] = {"revision": revision} if folder is None and revision else {}
    with _quiet():
        try:
            return transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, **options)
        except InterpError:
            raise
        except Exception as error:  # tokenizers raises bare Exception on a damaged file
            raise _failed(error, name, "tokenizer") from error


def load_both(
    source: Source, tokenizer: Any, *, revision: str | None, trust_remote_code: bool, **options: Any
) -> tuple[nn.Module, Any]:
    """A model and its tokenizer.

    Args:
        source: folder, hub id, or a loaded module, which is taken as it is.
        tokenizer: a tokenizer, or where to load one from; None: the one at `source`.
        revision: revision of a hub id.
        trust_remote_code: handed to transformers.
        options: what else `load_model` takes.

    Raises:
        LoadError: see `load_model` and `load_tokenizer`; or a loaded module came without a tokenizer.
    """
    hub: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if isinstance(source, nn.Module):
        if tokenizer is None:
            raise LoadError(f"a loaded {type(source).__name__} comes without a tokenizer; pass tokenizer= as well")
        model = source
    else:
        model = load_model(source, **hub, **options)
        tokenizer = source if tokenizer is None else tokenizer
    return model, load_tokenizer(tokenizer, **hub) if isinstance(tokenizer, (str, os.PathLike)) else tokenizer


def describe_source(source: Any, *, revision: str | None = None) -> dict[str, Any]:
    """A reference to where a model comes from, with its content's hash where that can be known.

    Returns:
        `{"folder", "sha256": {file: hash}}` of config and weights for a folder, `{"id", "revision"}` for a hub id,
        `{"object", "sha256"}` of the parameters for a loaded module.
    """
    if isinstance(source, nn.Module):
        digest = hashlib.sha256()
        for name, tensor in sorted(source.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return {"object": type(source).__name__, "sha256": digest.hexdigest()}
    folder = local_folder(source)
    if folder is None:
        return {"id": os.fspath(source), "revision": revision}
    names = sorted(p for p in folder.iterdir() if p.name == "config.json" or p.suffix in (".safetensors", ".bin"))
    return {"folder": str(folder.resolve()), "sha256": {p.name: sha256(p) for p in names}}


def source_name(description: Mapping[str, Any]) -> str:
    """Where a model comes from, in a word: its folder, its hub id, or its class."""
    return str(description.get("folder") or description.get("id") or description.get("object"))
