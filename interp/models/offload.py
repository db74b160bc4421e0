"""Which models are in memory when: all at once, or one at a time.

transformers maps safetensors files when it loads them on the CPU in the dtype they have. Pages of such a mapping that
nobody wrote to can go at any time; the next read brings them back. So a model leaves memory by giving its pages back,
and traces that are needed together wait in a scratch file.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from interp.errors import InterpError, LoadError
from interp.families import Parts
from interp.hooks import Site
from interp.io import os_reason
from interp.models.policy import Policy, Trace
from interp.models.pretrained import load_model
from interp.prompts import Batch

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
    mapped, inside = [], 0
    for start, end in _unchanged_files():
        taken = sum(size for address, size in storages.items() if start <= address and address + size <= end)
        if taken:
            mapped.append((start, end))
            inside += taken
    return Pages(model, tuple(mapped), inside / max(1, sum(storages.values())))


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


def offloaded(policy: Policy, name: str, *, sole: bool) -> Policy:
    """A policy whose weights are mapped from a file and not in memory until they are next read.

    Weights that are no mapping already (another dtype was asked for, or they came pickled) are copied to a temporary
    folder and mapped from there; the copy has no name any more when this returns, and goes with the process.

    Args:
        policy: a policy on the CPU.
        name: how an error calls it.
        sole: nobody else holds the module, so that its memory can go.

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
        if not sole:
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


@dataclass(frozen=True)
class TracePair:
    """Both models' traces of one batch.

    Attributes:
        number: index of the batch.
        other: index of the model that is compared with base.
        base: trace of base.
        tuned: trace of that model.
    """

    number: int
    other: int
    base: Trace
    tuned: Trace


@runtime_checkable
class InMemory(Protocol):
    """How models share the memory."""

    def only(self, policy: Policy | None) -> None:
        """Make room for one model: what the others hold in memory may go."""

    def pairs(
        self, base: Policy, others: Sequence[Policy], batches: Iterable[Batch], sites: Sequence[Site]
    ) -> Iterator[TracePair]:
        """Trace base and each of the others on each batch."""


@dataclass(frozen=True)
class AllInMemory:
    """All models stay in memory. Base is traced once a batch for all the others, and nothing is written anywhere."""

    def only(self, policy: Policy | None) -> None:
        """Nothing goes."""

    def pairs(
        self, base: Policy, others: Sequence[Policy], batches: Iterable[Batch], sites: Sequence[Site]
    ) -> Iterator[TracePair]:
        """Batch by batch, base against each of the others."""
        for number, batch in enumerate(batches):
            trace = base.trace(batch, sites)
            if len(others) > 1 and _to_keep(trace) <= KEPT_BYTES:
                trace = replace(trace, cache={})
            for index, other in enumerate(others):
                yield TracePair(number, index, trace, other.trace(batch, sites))
            del trace  # or it would stay until the next batch's is there too


KEPT_BYTES = 2**29
"""Most that measures may keep of base's part of a batch, for the second model and those after it, in bytes."""


def _to_keep(trace: Trace) -> int:
    """What the measures of one batch would keep of base: normalised logits, and a lens a layer; in bytes."""
    rows, vocab = len(trace.logits), trace.logits.shape[-1]
    return 2 * trace.logits.nbytes + 8 * (trace.policy.parts.n_layers + 1) * rows * vocab


@dataclass(frozen=True)
class OneInMemory:
    """One model in memory at a time.

    The weights are mapped from their files (see `interp.models.offload`), so that a model leaves memory by giving its
    pages back and comes again by being read. Prompts go chunk by chunk: base is traced into a scratch file and leaves,
    each other model is traced into another and leaves, and the measures read both files; of the models they touch the
    unembedding and the heads' output weights only. A chunk is as many batches as fit half of `scratch_bytes`, one at
    least; each chunk reads every model once more.

    Attributes:
        pages: of every model that takes a turn.
        scratch_bytes: most that both scratch files hold, in bytes.
    """

    pages: tuple[Pages, ...]
    scratch_bytes: int = SCRATCH_BYTES

    @classmethod
    def of(cls, models: Iterable[nn.Module], scratch_bytes: int = SCRATCH_BYTES) -> OneInMemory:
        """InMemory of these models."""
        return cls(tuple(map(pages_of, models)), scratch_bytes)

    def only(self, policy: Policy | None) -> None:
        """Give back the pages of every model but that of `policy`."""
        for pages in self.pages:
            if policy is None or pages.model is not policy.model:
                pages.release()

    def pairs(
        self, base: Policy, others: Sequence[Policy], batches: Iterable[Batch], sites: Sequence[Site]
    ) -> Iterator[TracePair]:
        """Chunk by chunk, model by model, batch by batch."""
        waiting, done = iter(batches), 0
        while chunk := list(islice(waiting, 1)):
            with TraceFile() as of_base:
                self.only(base)
                of_base.write(base.trace(chunk[0], sites))
                while of_base.size + of_base.largest <= self.scratch_bytes // 2 and (more := list(islice(waiting, 1))):
                    of_base.write(base.trace(more[0], sites))
                    chunk += more
                for index, other in enumerate(others):
                    with TraceFile() as of_other:
                        self.only(other)
                        for batch in chunk:
                            of_other.write(other.trace(batch, sites))
                        self.only(None)
                        for row in range(len(chunk)):
                            yield TracePair(done + row, index, of_base.read(row, base), of_other.read(row, other))
            done += len(chunk)
        self.only(None)


def give_back_free_memory() -> None:
    """Return freed memory to the system, where the C library is glibc; elsewhere nothing is done.

    glibc keeps the gaps that batches of different lengths leave in its heap. After hundreds of them these are as large
    as all the results.
    """
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
