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

from safetensors import SafetensorError
from torch import nn

from interp.errors import InterpError, LoadError
from interp.families import Parts
from interp.io import os_reason
from interp.loading import load_model

if TYPE_CHECKING:
    from interp.models.policy import Policy

_MAPPINGS = Path("/proc/self/smaps")


@dataclass(frozen=True)
class Pages:
    """Where a model's weights show a file that nobody has written over.

    Attributes:
        model: the model.
        ranges: first address of each mapping, and the address behind its last.
        share: how much of the weights lies there, by bytes.
    """

    model: nn.Module
    ranges: tuple[tuple[int, int], ...]
    share: float

    def release(self) -> None:
        """Give the memory back; it comes again when it is next read. Nobody may write to the weights in between.

        Weights that lie elsewhere stay.
        """
        if not self.ranges:
            return
        library = ctypes.CDLL(None, use_errno=True)
        for start, end in self.ranges:
            library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def pages_of(model: nn.Module) -> Pages:
    """Find the pages of a model. It takes some milliseconds; on other systems than Linux there are none."""
    storages = {s.data_ptr(): s.nbytes() for s in (weight.untyped_storage() for weight in model.parameters())}
    found, inside = [], 0
    for start, end in _unchanged_files():
        held = sum(size for address, size in storages.items() if start <= address and address + size <= end)
        if held:
            found.append((start, end))
            inside += held
    return Pages(model, tuple(found), inside / max(1, sum(storages.values())))


def _unchanged_files() -> Iterator[tuple[int, int]]:
    """The address ranges of this process that show a file, those left out that somebody wrote to."""
    if not _MAPPINGS.is_file():
        return
    start, end, inode = 0, 0, 0
    for line in _MAPPINGS.read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            start, end = (int(address, 16) for address in words[0].split("-"))
            inode = int(words[4])
        elif words[0] == "Anonymous:" and inode and int(words[1]) == 0:
            yield start, end


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
    pages = pages_of(policy.model)
    if pages.share < 0.9:
        if not own:
            raise LoadError(
                f'in_memory="one" reads models from their files, {name} is a loaded {type(policy.model).__name__};'
                " name its folder, or leave in_memory out"
            )
        model = _copied(policy.model)
        policy, pages = replace(policy, model=model, parts=Parts(model)), pages_of(model)
    pages.release()
    return policy


def _copied(model: nn.Module) -> nn.Module:
    """The same model, mapped from a copy in files that have no name any more."""
    try:
        with tempfile.TemporaryDirectory(prefix="interp-") as folder:
            model.save_pretrained(folder, max_shard_size=_SHARD)  # type: ignore[operator]
            return load_model(folder)
    except (OSError, SafetensorError) as error:
        reason = os_reason(error) if isinstance(error, OSError) else str(error)
        raise InterpError(
            f"cannot write weights to {tempfile.gettempdir()} ({reason}); make room there, or set TMPDIR to a"
            " folder on a larger disk"
        ) from error
