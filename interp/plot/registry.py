"""Which figures there are, and of which results each can be drawn.

To add a figure, write a function that takes a result and returns a matplotlib Figure, and decorate it:

    @figure("patching", needs=("recovery",))
    def recovery_map(result, *, width=PAGE): ...

It is then `result.plot.recovery_map()` of every result of that kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import xarray as xr
from matplotlib.figure import Figure as Drawing

Draw = TypeVar("Draw", bound=Callable[..., Drawing])
Needs = tuple[str, ...] | Callable[[xr.Dataset], bool]


@dataclass(frozen=True)
class Figure:
    """A figure that results of a kind can draw.

    Attributes:
        name: its name in `result.plot`.
        draw: from a result, and options of its own, to a matplotlib Figure.
        needs: variables that the result's dataset must hold, or a function of the dataset that says whether it can be
            drawn.
    """

    name: str
    draw: Callable[..., Drawing]
    needs: Needs = ()

    def can_be_drawn(self, data: xr.Dataset) -> bool:
        """Whether a dataset holds what the figure shows."""
        return self.needs(data) if callable(self.needs) else all(name in data for name in self.needs)


_FIGURES: dict[str, dict[str, Figure]] = {}


def figure(*kinds: str, needs: Needs = (), name: str | None = None) -> Callable[[Draw], Draw]:
    """Register a function as a figure of results of some kinds, and give it back unchanged.

    Args:
        kinds: `Result.kind` of the results that can draw it.
        needs: see `Figure`.
        name: in `result.plot`; None is the function's own name.
    """

    def register(draw: Draw) -> Draw:
        for kind in kinds:
            register_figure(kind, Figure(name or draw.__name__, draw, needs))
        return draw

    return register


def register_figure(kind: str, new: Figure) -> None:
    """Make a figure known to results of a kind; one of the same name is replaced."""
    _FIGURES.setdefault(kind, {})[new.name] = new


def forget_figure(kind: str, name: str) -> None:
    """Undo `register_figure`."""
    _FIGURES.get(kind, {}).pop(name, None)


def figures_of(kind: str) -> dict[str, Figure]:
    """The figures of results of a kind, by name."""
    return dict(_FIGURES.get(kind, {}))


def drawable(kind: str, data: Any) -> list[str]:
    """Names of the figures that a dataset holds enough for."""
    return [name for name, known in figures_of(kind).items() if known.can_be_drawn(data)]
