"""Weights that are mapped from their file: memory that can be given back, as the file still holds it.

transformers maps safetensors files when it loads them on the CPU in the dtype they have. Pages of such a mapping that
nobody wrote to can go at any time; the next read brings them back.
"""

from __future__ import annotations

import ctypes
import mmap
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from interp.errors import InterpError, LoadError
from interp.families import Parts
from interp.io import os_reason
from interp.loading import load_model

if TYPE_CHECKING:
    from interp.models.policy import Policy

_MAPPINGS = Path("/proc/self/smaps")


@dataclass(frozen=True)
class _Mapping:
    """A range of addresses that shows a file.

    Attributes:
        start: first address.
        end: the address behind the last.
        clean: nobody wrote to it, so the file holds all that it shows.
    """

    start: int
    end: int
    clean: bool


def _file_mappings() -> Iterator[_Mapping]:
    """The file mappings of this process; none where the system does not tell (it is Linux that does)."""
    if not _MAPPINGS.is_file():
        return
    start, end, inode = 0, 0, 0
    for line in _MAPPINGS.read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            start, end = (int(address, 16) for address in words[0].split("-"))
            inode = int(words[4])
        elif words[0] == "Anonymous:" and inode:
            yield _Mapping(start, end, int(words[1]) == 0)


def _clean_mappings(model: nn.Module) -> tuple[list[_Mapping], int, int]:
    """The clean file mappings that hold weights of `model`, and the bytes of its weights inside and in all."""
    storages = {s.data_ptr(): s.nbytes() for s in (weight.untyped_storage() for weight in model.parameters())}
    found, inside = [], 0
    for each in _file_mappings():
        held = sum(size for address, size in storages.items() if each.start <= address and address + size <= each.end)
        if held and each.clean:
            found.append(each)
            inside += held
    return found, inside, sum(storages.values())


def is_mapped(model: nn.Module, *, share: float = 0.9) -> bool:
    """Whether at least `share` of a model's weights, by bytes, is mapped from files and unchanged since."""
    _, inside, total = _clean_mappings(model)
    return inside >= share * total


def release(model: nn.Module) -> None:
    """Give back the memory of weights that are mapped from a file; they come back when they are next read.

    Nothing changes but memory and time: weights that are not mapped, or that somebody wrote to, stay.
    """
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    library = ctypes.CDLL(None, use_errno=True)
    for each in _clean_mappings(model)[0]:
        library.madvise(ctypes.c_void_p(each.start), ctypes.c_size_t(each.end - each.start), mmap.MADV_DONTNEED)


_SHARD = "200MB"
"""Size of the files into which weights are copied: writing one takes as much memory again."""


def out_of_memory(policy: Policy, name: str, *, own: bool) -> Policy:
    """A policy whose weights are mapped from a file and not in memory until they are next read.

    Weights that are no mapping already (another dtype was asked for, or they came pickled) are copied to a temporary
    folder and mapped from there; the copy has no name any more when this returns, and goes with the process.

    Args:
        policy: a policy on the CPU.
        name: how an error calls it.
        own: nobody else holds the module, so that its memory can go.

    Raises:
        LoadError: somebody else holds it, or it is not on the CPU.
        InterpError: the disk is full.
    """
    if policy.device.type != "cpu":
        raise LoadError(
            f'in_memory="one" saves the memory of the CPU, {name} is on {policy.device}; leave one of them out'
        )
    if not is_mapped(policy.model):
        if not own:
            raise LoadError(
                f'in_memory="one" reads models from their files, {name} is a loaded {type(policy.model).__name__};'
                " name its folder, or leave in_memory out"
            )
        model = _copied(policy.model)
        policy = replace(policy, model=model, parts=Parts(model))
    release(policy.model)
    return policy


def _copied(model: nn.Module) -> nn.Module:
    """The same model, mapped from a copy in files that have no name any more."""
    try:
        with tempfile.TemporaryDirectory(prefix="interp-") as folder:
            model.save_pretrained(folder, max_shard_size=_SHARD)  # type: ignore[operator]
            return load_model(folder)
    except OSError as error:
        raise InterpError(
            f"cannot write weights to {tempfile.gettempdir()} ({os_reason(error)}); make room there, or set TMPDIR to a"
            " folder on a larger disk"
        ) from error
