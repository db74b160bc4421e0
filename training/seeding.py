"""Independent random streams from one seed."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def derive(seed: int, *names: object) -> int:
    """A seed of its own for each purpose: the first 63 bits of SHA-256 of the seed and the names."""
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's global generators seeded within the block and put back afterwards, for code that knows no other."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread within the block, and on as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def permutation(count: int, seed: int) -> list[int]:
    """The numbers 0 to count - 1 in random order."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
