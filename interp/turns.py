"""Which models are in memory when: all at once, or one at a time with traces kept in a scratch file between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol, runtime_checkable

from torch import nn

from interp.hooks import Site
from interp.models import Policy, Trace
from interp.models.mapped import Pages, pages_of
from interp.prompts import Batch
from interp.scratch import SCRATCH_BYTES, TraceFile


@dataclass(frozen=True)
class Pair:
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
class Turns(Protocol):
    """How models share the memory."""

    def only(self, policy: Policy | None) -> None:
        """Make room for one model: what the others hold in memory may go."""

    def pairs(
        self, base: Policy, others: Sequence[Policy], batches: Iterable[Batch], sites: Sequence[Site]
    ) -> Iterator[Pair]:
        """Trace base and each of the others on each batch."""


@dataclass(frozen=True)
class Together:
    """All models stay in memory. Base is traced once a batch for all the others, and nothing is written anywhere."""

    def only(self, policy: Policy | None) -> None:
        """Nothing goes."""

    def pairs(
        self, base: Policy, others: Sequence[Policy], batches: Iterable[Batch], sites: Sequence[Site]
    ) -> Iterator[Pair]:
        """Batch by batch, base against each of the others."""
        for number, batch in enumerate(batches):
            trace = base.trace(batch, sites)
            if len(others) > 1 and _to_keep(trace) <= KEPT_BYTES:
                trace = replace(trace, kept={})
            for index, other in enumerate(others):
                yield Pair(number, index, trace, other.trace(batch, sites))
            del trace  # or it would stay until the next batch's is there too


KEPT_BYTES = 2**29
"""Most that measures may keep of base's part of a batch, for the second model and those after it, in bytes."""


def _to_keep(trace: Trace) -> int:
    """What the measures of one batch would keep of base: normalised logits, and a lens a layer; in bytes."""
    rows, vocab = len(trace.logits), trace.logits.shape[-1]
    return 2 * trace.logits.nbytes + 8 * (trace.policy.parts.n_layers + 1) * rows * vocab


@dataclass(frozen=True)
class InTurn:
    """One model in memory at a time.

    The weights are mapped from their files (see `interp.models.mapped`), so that a model leaves memory by giving its
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
    def of(cls, models: Iterable[nn.Module], scratch_bytes: int = SCRATCH_BYTES) -> InTurn:
        """Turns of these models."""
        return cls(tuple(map(pages_of, models)), scratch_bytes)

    def only(self, policy: Policy | None) -> None:
        """Give back the pages of every model but that of `policy`."""
        for each in self.pages:
            if policy is None or each.model is not policy.model:
                each.release()

    def pairs(
        self, base: Policy, others: Sequence[Policy], batches: Iterable[Batch], sites: Sequence[Site]
    ) -> Iterator[Pair]:
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
                            yield Pair(done + row, index, of_base.read(row, base), of_other.read(row, other))
            done += len(chunk)
        self.only(None)
