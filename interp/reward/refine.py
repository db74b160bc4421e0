"""Integration where rules of high degree are no help: halve the gaps whose error is largest, and keep every point.

Between two points a < b of a text's way the attributions of all tokens sum to F(b) - F(a), and F is known at every
point from the pass that gave the gradient there. So each gap states its own completeness error, at no further cost.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from interp.reward.quadrature import gaps

_TOGETHER = 4  # gaps that are halved at once
_SHARE = 1 / 4  # of the largest error that the others of them have at least


class Way:
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
