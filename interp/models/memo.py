"""What is remembered of a loaded module for as long as it does not change, so that nothing costly is done twice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

_CHUNK = 2**16
"""Words of 8 bytes that go into one sum: what is read twice stays in the processor's cache."""

_FACTS: WeakKeyDictionary[nn.Module, tuple[bytes, dict[str, Any]]] = WeakKeyDictionary()


def facts(module: nn.Module, *, refresh: bool = False) -> dict[str, Any]:
    """What is remembered of a module in the state that it is in; write there what is to be remembered.

    The dictionary is empty for a module that came for the first time, or has changed since by whatever way: it is
    looked up by the object itself, through a weak reference, and by `fingerprint`.

    Args:
        module: the module.
        refresh: forget what is known.
    """
    state = fingerprint(module)
    known = _FACTS.get(module)
    if known is None or known[0] != state or refresh:
        known = _FACTS[module] = (state, {})
    return known[1]


def fingerprint(module: nn.Module) -> bytes:
    """A digest of all that a forward pass in eval mode depends on.

    It covers every parameter and buffer (name, place, shape, dtype, version counter, and a checksum of all its bytes,
    as a write through `.data` moves no counter), the modules' classes, hooks and plain attributes (an adapter's scaling
    and whether it is active or merged, a norm's epsilon), and the config. Whether the module is in training mode is
    left out: what is measured of it is measured in eval mode.
    """
    digest = hashlib.blake2b(digest_size=16)
    sums: dict[tuple[Any, ...], bytes] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        digest.update(f"{path} {type(part).__module__}.{type(part).__qualname__} {id(type(part))}".encode())
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is not None:
                place = (tensor.device, tensor.dtype, tensor.shape, tensor.stride(), tensor.data_ptr())
                if place not in sums:
                    sums[place] = _checksum(tensor)
                version = 0 if tensor.is_inference() else tensor._version
                digest.update(f"{name} {place} {version}".encode())
                digest.update(sums[place])
        digest.update(repr([*_attributes(part), *_hooks(part)]).encode())
    config: Any = getattr(module, "config", None)
    kernel = getattr(config, "_attn_implementation", None)
    digest.update(repr((kernel, config.to_dict() if hasattr(config, "to_dict") else config)).encode())
    return digest.digest()


def _checksum(tensor: Tensor) -> bytes:
    """Sums of a tensor's words, each times an odd number of its place, modulo 2^64.

    A change of one word moves its sum for certain, a change of several all but certainly: it is a check against what
    happens, not against an attack. It runs at the speed of the memory, about ten times that of SHA-256.
    """
    raw = tensor.detach().contiguous().view(-1).view(torch.uint8)
    whole = len(raw) // 8 * 8
    words, rest = raw[:whole].view(torch.int64), raw[whole:].cpu().numpy().tobytes()
    if tensor.device.type != "cpu":
        odd = torch.from_numpy(_ODD).to(tensor.device)
        sums = [(chunk * odd[: len(chunk)]).sum() for chunk in words.split(_CHUNK)]
        return (torch.stack(sums).cpu().numpy().tobytes() if sums else b"") + rest
    array = words.numpy()
    chunks = (array[start : start + _CHUNK] for start in range(0, len(array), _CHUNK))
    return np.array([np.dot(chunk, _ODD[: len(chunk)]) for chunk in chunks], dtype=np.int64).tobytes() + rest


_ODD = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, _CHUNK, dtype=np.int64) | 1


def _attributes(part: nn.Module) -> Iterable[str]:
    """The plain attributes of one module, as `name=value`; containers of plain values are plain."""
    return (
        f"{name}={value!r}"
        for name, value in sorted(vars(part).items())
        if name not in _BOOKS and name != "training" and _is_plain(value)
    )


_BOOKS = frozenset(vars(nn.Module()))
"""Where a module of torch keeps its parameters, buffers, parts and hooks."""


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, complex, str, bytes, torch.dtype, torch.device))


def _hooks(part: nn.Module) -> Iterable[str]:
    """What somebody has hung into one module: forward hooks, and a forward of its own."""
    books = (part._forward_hooks, part._forward_pre_hooks)
    yield from (f"{number} {id(hook)}" for book in books for number, hook in book.items())
    yield from (f"{name} {id(value)}" for name, value in vars(part).items() if name == "forward")
