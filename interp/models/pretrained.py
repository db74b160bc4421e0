"""Loading weights and tokenizers: the right class, every key accounted for, safetensors unless asked otherwise."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import nn
from transformers.utils import logging as hf_logging

from interp.errors import InterpError, LoadError, MissingExtra
from interp.families import family_of
from interp.models.adapter_files import is_adapter, read_adapter, read_config
from interp.models.adapters import unwrap, with_adapter, without_adapter
from interp.models.source import (
    Located,
    Source,
    check_folder,
    check_shape_keys,
    locate,
)

Head = Literal["causal", "classifier"]
DeviceMap = str | Mapping[str, Any] | None
_KINDS = {"causal": "language model", "classifier": "classifier"}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


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


def _failed(error: Exception, source: str, what: str) -> LoadError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "trust_remote_code" in str(error):
        reason, remedy = "it comes with code of its own", "pass trust_remote_code=True if you trust that code"
    elif isinstance(error, torch.OutOfMemoryError):
        remedy = 'choose a smaller dtype, or spread it over several GPUs with device_map="auto"'
    elif Path(source).is_dir():
        remedy = "copy the folder again" if what == "tokenizer" else "mend its config.json, or copy the folder again"
    else:
        remedy = "check the connection and the model's files on the hub"
    return LoadError(f"cannot load the {what} of {source!r} ({reason[:160]}); {remedy}")


def check_placement(
    dtype: torch.dtype | str | None, device: torch.device | str | None, device_map: DeviceMap = None
) -> None:
    """Refuse a dtype or device before anything is read from disk.

    Raises:
        LoadError: naming what there is.
        MissingExtra: device_map needs accelerate.
    """
    known = (isinstance(dtype, str) and dtype in _DTYPES) or dtype in _DTYPES.values()
    if dtype is not None and not known:
        raise LoadError(f"dtype is float32, bfloat16, float16 or float64, not {dtype!r}")
    if device is not None:
        if device_map is not None:
            raise LoadError("device puts the model on one device, device_map on several; give one of them")
        try:
            place = torch.empty(0, device=device).device
        except (RuntimeError, AssertionError, TypeError) as error:
            raise LoadError(f"there is no device {device!r} on this machine; use cpu, or cuda with a GPU") from error
        if place.type == "meta":
            raise LoadError("the device meta holds no weights; use cpu, or cuda with a GPU")
    if device_map is not None and find_spec("accelerate") is None:
        raise MissingExtra("lora", "device_map")


def _check_keys(name: str, report: dict[str, Any]) -> None:
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            example = sorted(map(str, report[kind]))[0]
            raise LoadError(
                f"{name}: {len(report[kind])} {kind.replace('_', ' ')} (as {example}), so part of the model would be"
                " random or dropped; save it again with save_pretrained from the class in its config"
            )


def _check_weights(name: str, model: nn.Module) -> None:
    """Refuse NaN, and weights that are not there to be read."""
    for key, weight in model.named_parameters():
        if weight.is_meta:
            raise LoadError(
                f"{name}: device_map leaves {key} on disk or on the CPU beside GPUs, where it cannot be read;"
                " use a smaller dtype, more GPUs, or the CPU alone"
            )
        if weight.numel() and not all(bool(torch.isfinite(bound)) for bound in torch.aminmax(weight.detach())):
            raise LoadError(f"{name}: {key} holds NaN or infinity; the training diverged or the file is damaged")


def check_head(architecture: str, head: Head, name: str) -> None:
    """Refuse a classifier where a language model is wanted, and the other way round.

    Raises:
        UnknownFamily: no row of `interp.families` covers the architecture.
        LoadError: it has the wrong head.
    """
    if family_of(architecture).heads[architecture].kind != _KINDS[head]:
        wanted = (
            "a language model that predicts the next token" if head == "causal" else "a classifier with a score head"
        )
        raise LoadError(f"{name} is a {architecture}, not {wanted}; name another model")


def load_model(
    source: str | os.PathLike[str],
    *,
    head: Head = "causal",
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    device_map: DeviceMap = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    base: Source | None = None,
) -> nn.Module:
    """Load a model of transformers by the class that its config names, in eval mode, with every key accounted for.

    The class comes from `config.architectures`, never from model_type: a classifier opened as a bare model of its type
    would get a random score head without a word. Weights are mapped from their file, not copied, unless dtype or device
    asks for it. A folder that holds a LoRA adapter gives its base with the adapter on (see `interp.models.adapters`).

    Args:
        source: folder, or hub id, with its revision as "id@revision".
        head: what the model must have: a language-model head or a score head.
        dtype: dtype of the weights; None keeps that of the files.
        device: device; None is the CPU.
        device_map: where parts go, as transformers takes it; "auto" spreads them over the GPUs there are.
        revision: revision of a hub id.
        trust_remote_code: run code that comes with the model.
        allow_pickle: accept pickled weights.
        base: what an adapter is put on, a loaded module (which then shares its weights and is not changed) or where it
            lies; None: what the adapter's config names.

    Raises:
        LoadError: no such folder or id, dtype or device; no whole weights; the wrong kind of head; NaN; missing,
            unexpected or mismatched keys; or an adapter that does not fit its base.
        UnknownFamily: no row of `interp.families` covers the architecture.
        MissingExtra: device_map needs accelerate.
    """
    check_placement(dtype, device, device_map)
    located = locate(source, revision)
    options: dict[str, Any] = {"dtype": dtype, "device": device, "device_map": device_map}
    options |= {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
    if located.folder is not None and is_adapter(located.folder):
        return _load_adapter(located.folder, base, head=head, **options)
    if base is not None:
        raise LoadError(f"{located.name} is a whole model, no adapter; leave base out")
    return _load_whole(located, head, **options)


def _load_adapter(folder: Path, base: Source | None, *, head: Head, allow_pickle: bool, **options: Any) -> nn.Module:
    """An adapter on its base, whose weights it shares."""
    adapter = read_adapter(folder, allow_pickle=allow_pickle)
    if not isinstance(base, nn.Module):
        named = adapter_base(folder, base)
        try:
            base = load_model(named, head=head, allow_pickle=allow_pickle, **options)
        except LoadError as error:
            raise LoadError(f"the base of the adapter {folder}: {error}") from error
    plain = without_adapter(base)
    check_head(type(plain).__name__, head, f"the base of {folder}")
    return with_adapter(plain, adapter)


def adapter_folder(source: str | os.PathLike[str], revision: str | None = None) -> Path | None:
    """The folder of the adapter that `source` names, or None where it names a whole model."""
    folder = locate(source, revision).folder
    return folder if folder is not None and is_adapter(folder) else None


def adapter_base(folder: Path, base: str | os.PathLike[str] | None = None) -> str:
    """Where the base of an adapter lies: `base`, or what its config names.

    Raises:
        LoadError: neither names one.
    """
    if base is not None:
        return os.fspath(base)
    config = read_config(folder)
    named = config.get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise LoadError(f"the adapter {folder} does not name its base; pass base=")
    revision = config.get("revision")
    return f"{named}@{revision}" if isinstance(revision, str) and revision and not Path(named).is_dir() else named


def _load_whole(
    located: Located,
    head: Head,
    *,
    dtype: torch.dtype | str | None,
    device: torch.device | str | None,
    device_map: DeviceMap,
    trust_remote_code: bool,
    allow_pickle: bool,
) -> nn.Module:
    name = located.name
    if located.folder is not None:
        check_folder(located.folder, allow_pickle=allow_pickle)
    with _quiet():
        config = _load_config(located, trust_remote_code)
        architecture = (getattr(config, "architectures", None) or [type(config).__name__])[0]
        check_head(architecture, head, name)
        kind = getattr(transformers, architecture, None)
        if kind is None:  # code that comes with the model, which AutoConfig has asked for trust in
            kind = (
                transformers.AutoModelForCausalLM
                if head == "causal"
                else transformers.AutoModelForSequenceClassification
            )
        trusted = {"trust_remote_code": True} if trust_remote_code and not hasattr(transformers, architecture) else {}
        try:
            model, report = kind.from_pretrained(
                name,
                config=config,
                dtype=(_DTYPES[dtype] if isinstance(dtype, str) else dtype) or "auto",
                use_safetensors=None if allow_pickle else True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that they are in the report, and refused by their names
                **({} if device_map is None else {"device_map": device_map}),
                **trusted,
                **located.options,
            )
        except Exception as error:  # transformers raises whatever its classes stumble over in an odd config
            raise _failed(error, name, "weights") from error
    _check_keys(name, report)
    _check_weights(name, model)
    model.eval()
    try:
        return model.to(device) if device is not None else model
    except torch.OutOfMemoryError as error:
        raise _failed(error, name, "weights") from error


def _load_config(located: Located, trust_remote_code: bool) -> Any:
    try:
        config = transformers.AutoConfig.from_pretrained(
            located.name, trust_remote_code=trust_remote_code, **located.options
        )
    except Exception as error:  # as above
        raise _failed(error, located.name, "config") from error
    if located.folder is not None:
        check_shape_keys(located.folder / "config.json", config)
    return config


def load_tokenizer(
    source: str | os.PathLike[str], *, revision: str | None = None, trust_remote_code: bool = False
) -> Any:
    """Load the tokenizer of a folder or hub id; that of an adapter without one is its base's.

    Raises:
        LoadError: there is none.
    """
    located = locate(source, revision)
    folder = located.folder
    if folder is not None and not _holds_tokenizer(folder):
        if is_adapter(folder):
            return load_tokenizer(adapter_base(folder), trust_remote_code=trust_remote_code)
        raise LoadError(f"{folder} holds no tokenizer; save one into it, or pass tokenizer=")
    with _quiet():
        try:
            loaded = transformers.AutoTokenizer.from_pretrained(
                located.name, trust_remote_code=trust_remote_code, **located.options
            )
        except InterpError:
            raise
        except Exception as error:  # tokenizers raises bare Exception on a damaged file
            raise _failed(error, located.name, "tokenizer") from error
    _remember_less(loaded)
    return loaded


def _remember_less(tokenizer: Any) -> None:
    """Bound what a byte-pair encoder remembers of what it has read.

    Its cache takes 10,000 entries, and where a text is not split into words first an entry is a whole text: tens of
    megabytes that nothing reads again. With 1,000 it is a fifth slower and reads the same ids.
    """
    resize = getattr(getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None), "_resize_cache", None)
    if resize is not None:
        resize(1000)


def _holds_tokenizer(folder: Path) -> bool:
    return any((folder / f).is_file() for f in ("tokenizer.json", "tokenizer_config.json", "vocab.json"))


def as_tokenizer(tokenizer: Any, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """A tokenizer, loaded where a folder or hub id is given."""
    if not isinstance(tokenizer, (str, os.PathLike)):
        return tokenizer
    return load_tokenizer(tokenizer, revision=revision, trust_remote_code=trust_remote_code)


def refuse_options(name: str, **options: Any) -> None:
    """Refuse what only loading could do, for a model that is loaded.

    Raises:
        LoadError: naming the option.
    """
    for option, value in options.items():
        if value is not None:
            raise LoadError(f"{name} is loaded already, so {option} cannot be heeded; leave it out, or load it anew")


def load_both(
    source: Source,
    tokenizer: Any,
    *,
    revision: str | None,
    trust_remote_code: bool,
    head: Head = "causal",
    base: Source | None = None,
    otherwise: Any = None,
    **options: Any,
) -> tuple[nn.Module, Any]:
    """A model and its tokenizer.

    Args:
        source: folder, hub id, or a loaded module, which is taken as it is; one that peft wrapped is read as plain
            modules over the same weights, with its active adapters on.
        tokenizer: a tokenizer, or where to load one from; None: the one at `source`.
        revision: revision of a hub id, and of the tokenizer there; a tokenizer elsewhere is named with its own.
        trust_remote_code: run code that comes with the model.
        head: what the model must have.
        base: what an adapter is put on (see `load_model`).
        otherwise: the tokenizer of an adapter that has none; None: its base's.
        options: what else `load_model` takes.

    Raises:
        LoadError: see `load_model` and `load_tokenizer`; or a loaded module came without a tokenizer.
    """
    hub: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if isinstance(source, nn.Module):
        loading = {name: options.get(name) for name in ("dtype", "device", "device_map")}
        refuse_options(f"the {type(source).__name__}", base=base, revision=revision, **loading)
        if tokenizer is None:
            raise LoadError(f"a loaded {type(source).__name__} comes without a tokenizer; pass tokenizer= as well")
        model = unwrap(source)
        check_head(type(model).__name__, head, "the loaded module")
    else:
        model = load_model(source, head=head, base=base, **hub, **options)
        if tokenizer is None:
            folder = adapter_folder(source, revision)
            if folder is not None and not _holds_tokenizer(folder):
                tokenizer = base if otherwise is None and isinstance(base, (str, os.PathLike)) else otherwise
            tokenizer = source if tokenizer is None else tokenizer
    return model, as_tokenizer(tokenizer, **(hub if tokenizer is source else {**hub, "revision": None}))
