"""Which singular directions of a matrix moved: effective rank of its change, and where the change writes.

Singular values and vectors are the roots of the eigenvalues and the eigenvectors of the Gram matrix of the smaller
side, in float64. That keeps singular values down to some 1e-7 of the largest, which is all that float32 weights hold;
what is smaller is rounding and counts as 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

DIRECTIONS = 8
"""Leading singular directions that are kept."""

_ROWS = 8192  # rows that are held in float64 at once, so that an embedding is never copied whole


def effective_rank(values: Float[Tensor, " direction"]) -> float:
    """Exp of the entropy of the singular values divided by their sum (Roy and Vetterli 2007).

    1 for a matrix of rank 1, n for n equal singular values; 0 for the zero matrix.
    """
    if not (values > 0).any():
        return 0.0
    return float(torch.special.entr(values / values.sum()).sum().exp())


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a matrix and its leading left singular vectors, largest first, float64.

    Attributes:
        values: all singular values.
        left: leading left singular vectors, at most `DIRECTIONS`; those of singular value 0 are zero.
    """

    values: Float[Tensor, " rank"]
    left: Float[Tensor, "row direction"]


def spectrum(matrix: Float[Tensor, "row column"]) -> Spectrum:
    """Singular values and leading left singular vectors."""
    wide = matrix.shape[0] <= matrix.shape[1]
    squares, vectors = torch.linalg.eigh(_gram(matrix.T if wide else matrix))
    squares, vectors = squares.flip(0).clamp_min(0), vectors.flip(1)[:, :DIRECTIONS]
    floor = len(squares) * torch.finfo(torch.float64).eps * squares[0]
    values = squares.where(squares > floor, 0).sqrt()
    leading = values[:DIRECTIONS]
    left = vectors if wide else torch.cat([rows.double() @ vectors for rows in matrix.split(_ROWS)])
    scale = torch.ones_like(leading) if wide else leading
    return Spectrum(values, torch.where(leading > 0, left / scale.where(leading > 0, 1), 0))


def _gram(tall: Float[Tensor, "row column"]) -> Float[Tensor, "column column"]:
    total = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64, device=tall.device)
    for rows in tall.split(_ROWS):
        total += rows.double().T @ rows.double()
    return total


@dataclass(frozen=True)
class SpectralChange:
    """How a matrix changed, by singular directions of the change.

    Attributes:
        effective_rank: of the change; 0 where nothing changed.
        sizes: leading singular values of the change over the Frobenius norm of base's matrix; NaN beyond its rank.
        overlaps: squared length of each of the change's leading left singular vectors inside the span of base's, from
            0 to 1; by chance `DIRECTIONS` / rows. NaN where the change has no such direction.
    """

    effective_rank: float
    sizes: Float[Tensor, " direction"]
    overlaps: Float[Tensor, " direction"]


def size_and_directions(matrix: Float[Tensor, "row column"]) -> tuple[float, Float[Tensor, "row direction"]]:
    """Frobenius norm and leading left singular vectors of a matrix, float64."""
    return float(matrix.double().norm()), spectrum(matrix).left


def spectral_change(
    base: Float[Tensor, "row column"],
    tuned: Float[Tensor, "row column"],
    of_base: Callable[[], tuple[float, Float[Tensor, "row direction"]]] | None = None,
) -> SpectralChange:
    """Effective rank and leading singular directions of tuned minus base.

    Args:
        base: base's matrix.
        tuned: tuned's.
        of_base: gives what `size_and_directions` says of base's matrix; None: that is called.
    """
    change = tuned - base
    sizes, overlaps = torch.full((2, DIRECTIONS), torch.nan, dtype=torch.float64)
    count = min(DIRECTIONS, *base.shape)
    if not change.any():
        sizes[:count] = 0
        return SpectralChange(0.0, sizes, overlaps)
    size, left = size_and_directions(base) if of_base is None else of_base()
    moved = spectrum(change)
    sizes[:count] = (moved.values[:count] / size).cpu()
    inside = (left.T @ moved.left).pow(2).sum(0)
    overlaps[:count] = inside.where(moved.values[:count] > 0, torch.nan).clamp(0, 1).cpu()
    return SpectralChange(effective_rank(moved.values), sizes, overlaps)
