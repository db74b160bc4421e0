"""Traces kept in a file between two models' turns in memory."""

from __future__ import annotations

import tempfile
from types import TracebackType
from typing import IO, Any

import torch
from torch import Tensor

from interp.errors import InterpError
from interp.hooks import Site
from interp.io import os_reason
from interp.models import Policy, Trace
from interp.prompts import Batch

SCRATCH_BYTES = 2 * 2**30
"""Most that the scratch files of a comparison hold at once, in bytes."""

_Stored = tuple[int, torch.dtype, tuple[int, ...]]  # where a tensor begins, and what it is


class TraceFile:
    """Traces of one model, in a file of the system's temporary folder (TMPDIR).

    The file has no name: the system takes it back when it is closed, or when the process ends, however it ends.
    """

    def __init__(self) -> None:
        self._batches: list[tuple[Batch, dict[Site | None, _Stored], Tensor | None]] = []
        self.size = 0
        self.largest = 0
        try:
            self._file: IO[bytes] = tempfile.TemporaryFile(prefix="interp-", buffering=0)
        except OSError as error:
            raise _unwritable(error) from error

    def __enter__(self) -> TraceFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def write(self, trace: Trace) -> None:
        """Append a trace.

        Raises:
            InterpError: the disk is full.
        """
        before = self.size
        index: dict[Site | None, _Stored] = {None: self._append(trace.logits)}
        for site, tensor in trace.activations.items():
            index[site] = self._append(tensor)
        self._batches.append((trace.batch, index, trace.outside))
        self.largest = max(self.largest, self.size - before)

    def _append(self, tensor: Tensor) -> _Stored:
        values = tensor.detach().cpu().contiguous()
        place: _Stored = (self.size, values.dtype, tuple(values.shape))
        data = memoryview(_bytes(values))
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise _unwritable(error) from error
        self.size += values.nbytes
        return place

    def read(self, number: int, policy: Policy) -> Trace:
        """One of the traces.

        Args:
            number: which, in the order in which they were written.
            policy: the model that made them.
        """
        batch, index, outside = self._batches[number]
        tensors = {name: self._load(place).to(policy.device) for name, place in index.items()}
        logits = tensors.pop(None)
        activations = {site: tensor for site, tensor in tensors.items() if site is not None}
        return Trace(policy, batch, logits, activations, outside)

    def _load(self, place: _Stored) -> Tensor:
        start, dtype, shape = place
        values = torch.empty(shape, dtype=dtype)
        self._file.seek(start)
        into = memoryview(_bytes(values))
        while into:
            count = self._file.readinto(into)  # type: ignore[attr-defined]
            if not count:
                raise InterpError("a scratch file was cut off while it was in use; compare again")
            into = into[count:]
        return values


def _bytes(values: Tensor) -> Any:
    return values.view(-1).view(torch.uint8).numpy()


def _unwritable(error: OSError) -> InterpError:
    return InterpError(
        f"cannot write a scratch file in {tempfile.gettempdir()} ({os_reason(error)}); make room there, or set TMPDIR"
        " to a folder on a larger disk"
    )
