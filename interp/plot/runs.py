"""What other runs give, drawn behind a result: the range of the control runs, and of the replicates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from interp.plot.style import GREY, TUNED

Runs = Mapping[str, Sequence[np.ndarray]]
_FILL: dict[str, dict[str, Any]] = {
    "control runs": {"facecolor": GREY, "alpha": 0.25, "linewidth": 0},
    "replicates": {"facecolor": TUNED, "alpha": 0.13, "linewidth": 0},
}
# along a curve, where the spread over prompts is a plain grey band
_HATCHED: dict[str, dict[str, Any]] = {
    "control runs": {"facecolor": "none", "edgecolor": "#b5b5b5", "hatch": "/////", "linewidth": 0},
    "replicates": _FILL["replicates"],
}
_EDGE: dict[str, dict[str, Any]] = {
    "control runs": {"color": GREY, "linestyle": "-", "linewidth": 0.9, "zorder": 0.7},
    "replicates": {"color": TUNED, "linestyle": ":", "linewidth": 1.1, "zorder": 0.8},
}


def bands(ax: Axes, runs: Runs) -> list[Artist]:
    """The range over each kind of runs along a curve: a line for one run, a faint band for several.

    Args:
        ax: where the curve is drawn.
        runs: by kind, one curve a run.

    Returns:
        What the legend shows.
    """
    handles: list[Artist] = []
    for kind, curves in runs.items():
        low, high = _range(curves)
        x = np.arange(len(low))
        for ends in (low, high) if len(curves) > 1 else (low,):
            ax.plot(x, ends, label=kind, **_EDGE[kind])
        if len(curves) > 1:
            ax.fill_between(x, low, high, zorder=0.5, **_HATCHED[kind])
        handles.append(_key(kind, len(curves), hatch=_HATCHED[kind].get("hatch", "")))
    return handles


def marks(ax: Axes, rows: np.ndarray, runs: Runs, *, reach: float = 0.46) -> list[Artist]:
    """The range over each kind of runs behind horizontal bars: a tick for one run, a faint bar for several.

    Both reach farther up and down than a bar does, so that they are seen behind it.

    Args:
        ax: where the bars are drawn.
        rows: place of each bar.
        runs: by kind, one value a bar for every run.
        reach: half the height of a tick.

    Returns:
        What the legend shows.
    """
    handles: list[Artist] = []
    for kind, values in runs.items():
        low, high = _range(values)
        look = {**_EDGE[kind], "linewidth": 1.2 if len(values) > 1 else 1.6}
        for ends in (low, high) if len(values) > 1 else (low,):
            ax.vlines(ends, rows - reach, rows + reach, label=kind, **look)
        if len(values) > 1:
            ax.barh(rows, high - low, left=low, height=2 * reach, zorder=0.5, **_FILL[kind])
        handles.append(_key(kind, len(values), upright=True))
    return handles


def _range(values: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest of the runs at every point, NaN where none has a value."""
    longest = max(len(v) for v in values)
    stacked = np.full((len(values), longest), np.nan)
    for row, value in zip(stacked, values, strict=True):
        row[: len(value)] = value
    known = np.isfinite(stacked).any(0)
    low, high = np.full((2, longest), np.nan)
    low[known], high[known] = np.nanmin(stacked[:, known], 0), np.nanmax(stacked[:, known], 0)
    return low, high


def _key(kind: str, count: int, *, upright: bool = False, hatch: str = "") -> Artist:
    edge = {k: v for k, v in _EDGE[kind].items() if k != "zorder"}
    if count == 1:
        label = kind.removesuffix("s")
        if upright:
            return Line2D([], [], marker="|", markersize=8, color=edge["color"], linestyle="", label=label)
        return Line2D([], [], label=label, **edge)
    fill = (1.0, 1.0, 1.0, 0.0) if hatch else (*_rgb(_FILL[kind]["facecolor"]), _FILL[kind]["alpha"])
    edge["edgecolor"] = edge.pop("color")
    return Patch(facecolor=fill, hatch=hatch, label=f"{kind}, range of {count}", **edge)


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
