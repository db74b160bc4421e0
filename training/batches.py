"""Batches of texts of like length, padded on the right."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from training.seeding import derive, permutation

WINDOW = 20


def by_length(lengths: Sequence[int], size: int, seed: int) -> list[list[int]]:
    """Indices of all texts in batches of at most `size`, in random order.

    Texts are shuffled, sorted by length within windows of 20 batches and cut into batches, which are shuffled again:
    nearly random, and little padding.
    """
    order = permutation(len(lengths), seed)
    windows = [order[start : start + WINDOW * size] for start in range(0, len(order), WINDOW * size)]
    ordered = [index for window in windows for index in sorted(window, key=lambda i: lengths[i])]
    batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    return [batches[i] for i in permutation(len(batches), derive(seed, "batches"))]


def pad_right(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Int[Tensor, "text pos"], Int[Tensor, "text pos"]]:
    """Token ids as one tensor and its attention mask (1 at real tokens)."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask
