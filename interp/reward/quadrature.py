"""Nested quadrature on [0, 1]: each rule contains the points of the one before it, so that nothing is computed twice.

The points are a symmetric Leja sequence: 0, 1 and 1/2, then in turn the point (and its mirror image) at which the
product of the distances to all others is largest, with the weights that integrate every polynomial through them (Leja
1957; as a nested rule Narayan and Jakeman 2014). Like the points of Clenshaw and Curtis they crowd at the ends, but
their number grows by two where that doubles, so a text stops soon after it has enough. The ends are points, so the
score at the text costs no pass of its own, and texts of one length share the gradient at their baseline.

A score that is nearly linear along the path has a second family, which begins with one gradient besides that at 0: the
rule of Gauss and Radau with the points 0 and 2/3, exact for degree 2; its extension by two points, exact for degree 5;
then again a Leja sequence.

Where the score has kinks (a ReLU head), no rule of high degree gets far. There the path is cut into gaps at the points
that are known, each gap integrated by parabolas through its neighbours (`gaps`), and new points halve the worst gaps.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.polynomial import legendre

SIZES = (3, 5, 7, 9, 11, 15, 19, 25, 35, 49, 65)
"""Number of points of each rule."""

NEAR_SIZES = (2, 4, 6, 8, 11, 15, 19, 25, 35, 49, 65)
"""The same of the family for a score that is nearly linear."""

_GRID = 32769  # candidates for the next point, as dense at the ends as the points are


@dataclass(frozen=True)
class Rule:
    """One rule of the nested family.

    Attributes:
        points: points in [0, 1], those of the rule before it first, in its order; 0 comes first of all.
        weights: weight of each point; they sum to 1.
        new: how many of the last points the rule before it does not have.
    """

    points: np.ndarray
    weights: np.ndarray
    new: int


@functools.cache
def rules(*, nearly_linear: bool = False) -> tuple[Rule, ...]:
    """The rules of `SIZES`, smallest first, or those of `NEAR_SIZES`."""
    if nearly_linear:
        sizes, points = NEAR_SIZES, _leja([0.0, 2 / 3, *_extension()], NEAR_SIZES[-1], mirror=False)
    else:
        sizes, points = SIZES, _leja([0.0, 1.0, 0.5], SIZES[-1], mirror=True)
    fewer = (0, *sizes[:-1])
    return tuple(
        Rule(points[:size], _weights(points[:size]), size - before) for size, before in zip(sizes, fewer, strict=True)
    )


def _extension() -> list[float]:
    """The two points that extend 0 and 2/3 to degree 5.

    They are the roots of E = x^2 + b x + c for which x (x - 2/3) E is orthogonal to 1 and x (Kronrod 1965).
    """
    moment = [1 / (k + 1) for k in range(6)]

    def product(k: int) -> float:  # integral of x (x - 2/3) x^k
        return moment[k + 2] - 2 / 3 * moment[k + 1]

    b, c = np.linalg.solve([[product(1), product(0)], [product(2), product(1)]], [-product(2), -product(3)])
    return sorted(float(root.real) for root in np.roots([1, b, c]))


def _leja(first: list[float], count: int, *, mirror: bool) -> np.ndarray:
    """A Leja sequence that goes on from given points; with `mirror` each point is followed by its mirror image."""
    end = np.pi / 2 if mirror else np.pi
    candidates = (1 - np.cos(np.linspace(0, end, _GRID))) / 2
    points = list(first)
    with np.errstate(divide="ignore"):
        far = sum(np.log(np.abs(candidates - point)) for point in points)
        while len(points) < count:
            new = float(candidates[int(np.argmax(far))])
            for point in (new, 1 - new) if mirror else (new,):
                points.append(point)
                far = far + np.log(np.abs(candidates - point))
    return np.array(points)


def _weights(points: np.ndarray) -> np.ndarray:
    """Weights by which the points integrate every Legendre polynomial up to their number."""
    moments = np.zeros(len(points))
    moments[0] = 1.0
    return np.linalg.solve(legendre.legvander(2 * points - 1, len(points) - 1).T, moments)


def gaps(points: np.ndarray) -> np.ndarray:
    """Weights of the integral over each gap between neighbours, [gap, point]: exact for parabolas.

    A gap's integrand is the mean of the two parabolas through its ends and the point before or after it (Gill and
    Miller 1972 do the same with cubics); the first and the last gap have one.

    Args:
        points: three points or more, in order.
    """
    count = len(points) - 1
    widths = np.diff(points)
    out = np.zeros((count, count + 1))
    for own, other, ends in ((1, 0, (2, 0)), (0, 1, (0, 2))):  # the gap after the middle point, and that before it
        wide, beside = widths[own : count - 1 + own], widths[other : count - 1 + other]
        far = -(wide**3) / (6 * beside * (beside + wide))
        near = wide * (2 * wide + 3 * beside) / (6 * (beside + wide))
        row, first = np.arange(count - 1) + own, np.arange(count - 1)
        out[row, first + ends[0]] += near
        out[row, first + ends[1]] += far
        out[row, first + 1] += wide - near - far
    out[1:-1] /= 2  # every gap but the first and the last has two parabolas
    return out


_TOGETHER = 4  # gaps that are halved at once

_SHARE = 1 / 4  # of the largest error that the others of them have at least


class Path:
    """A text's way from its baseline, for one label: gradients and scores at the points that are known, in order.

    Attributes:
        points: places on the way, the first 0.
        gradients: [point, token], along the way.
        scores: F at the points.
    """

    def __init__(
        self,
        points: Float[np.ndarray, " point"],
        gradients: Float[np.ndarray, "point token"],
        scores: Float[np.ndarray, " point"],
    ) -> None:
        order = np.argsort(points)
        self.points, self.gradients, self.scores = points[order], gradients[order], scores[order]

    def __len__(self) -> int:
        return len(self.points)

    def add(self, point: float, gradient: Float[np.ndarray, " token"], score: float) -> None:
        """Take in a new point."""
        place = int(np.searchsorted(self.points, point))
        self.points = np.insert(self.points, place, point)
        self.gradients = np.insert(self.gradients, place, gradient, axis=0)
        self.scores = np.insert(self.scores, place, score)

    def sum(self) -> Float[np.ndarray, " token"]:
        """The attributions by the points that are known."""
        found: np.ndarray = gaps(self.points).sum(0) @ self.gradients
        return found

    def errors(self) -> Float[np.ndarray, " gap"]:
        """The completeness error of each gap, with its sign: sum of its attributions less the change of F over it."""
        found: np.ndarray = gaps(self.points) @ self.gradients.sum(1) - np.diff(self.scores)
        return found

    def wanted(self, most: int) -> list[float]:
        """The next points: the end, where it is not known; then the middles of the gaps of largest error.

        Args:
            most: how many points there may be in all.
        """
        room = most - len(self)
        if self.points[-1] < 1 or len(self) < 3:
            lacking = [point for point in (1.0, 0.5) if point not in self.points]
            return lacking[: max(0, room)]
        error = np.abs(self.errors())
        worst = np.argsort(-error, kind="stable")[: max(0, min(room, _TOGETHER))]
        middles = (self.points[:-1] + self.points[1:]) / 2
        return [float(middles[gap]) for gap in worst if error[gap] >= _SHARE * error[worst[0]] and error[gap] > 0]
