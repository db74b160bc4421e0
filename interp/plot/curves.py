"""Curves over layers or positions: mean over prompts, spread over prompts, other runs behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from interp.plot.runs import Runs, bands
from interp.plot.style import INK, LINES, average, band_patch, foot_legend, index_ticks, quartiles

PLAIN: dict[str, Any] = {"color": INK, "linestyle": "-", "marker": "o"}
_MARKED = 60  # points; beyond it marks would run into one another
_WINDOW = 40  # a running mean spans this part of a long curve


def curves(
    ax: Axes, arrays: dict[str, xr.DataArray], along: str, runs: dict[str, list[xr.DataArray]], label: str = "{}"
) -> list[Any]:
    """Draw the mean over prompts of every array with the middle half of the prompts, and other runs behind.

    A curve of more than 60 points is thin and has its running mean on top; what lies behind it is a running mean too.

    Args:
        ax: where to.
        arrays: by name; a name of `interp.plot.style.LINES` has that look.
        along: the dimension of the x axis.
        runs: arrays of other runs, by kind.
        label: the legend's words for a name.

    Returns:
        What the legend shows.
    """
    spread_shown = False
    lines: list[Any] = []
    ends = []
    for name, array in arrays.items():
        mean = average(array, along)
        known = np.flatnonzero(np.isfinite(mean))
        x = np.arange(known[-1] + 1 if len(known) else 0)
        ends.append(len(x))
        style = dict(LINES.get(name, PLAIN))
        spread = quartiles(array, along)
        if spread is not None:
            low, high = (_calm(s[: len(x)]) for s in spread)
            ax.fill_between(x, low, high, color=style["color"], alpha=0.16, linewidth=0)
            spread_shown = True
        lines += _line(ax, x, mean[: len(x)], label.format(name), style)
    others: Runs = {
        kind: [_calm(average(a, along)[: max(ends, default=0)]) for a in arrays_] for kind, arrays_ in runs.items()
    }
    handles = [*lines, *bands(ax, others)]
    return [*handles, band_patch()] if spread_shown else handles


def _line(ax: Axes, x: np.ndarray, mean: np.ndarray, label: str, style: dict[str, Any]) -> list[Any]:
    if len(x) <= _MARKED:
        every = max(1, len(x) // 16)
        return ax.plot(x, mean, label=label, markevery=every, **style)
    look = {k: v for k, v in style.items() if not k.startswith("marker")}
    ax.plot(x, mean, label=label, **{**look, "linewidth": 0.5, "linestyle": "-"}, alpha=0.55)
    smooth = ax.plot(x, _calm(mean), **{**look, "linewidth": 1.5}, zorder=3)
    smooth[0].set_label(f"{label}, running mean of {_window(len(x))}")
    return smooth


def _window(points: int) -> int:
    return points // _WINDOW | 1


def _calm(values: np.ndarray) -> np.ndarray:
    """The running mean of a long curve; a short one as it is."""
    return values if len(values) <= _MARKED else running_mean(values, _window(len(values)))


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the `window` values centred on each, fewer at the ends; NaN is left out."""
    half = window // 2
    known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    start = np.maximum(np.arange(len(values)) - half, 0)
    stop = np.minimum(np.arange(len(values)) + half + 1, len(values))
    number = counts[stop] - counts[start]
    return np.where(number > 0, (sums[stop] - sums[start]) / np.maximum(number, 1), np.nan)


def legend(figure: Figure, handles: list[Any]) -> None:
    """One legend for all panels; an entry that two panels share stands once, what lies behind the curves last."""
    known = {str(handle.get_label()): handle for handle in handles}
    order = sorted(known, key=lambda label: label.startswith(("control run", "replicate", "middle half")))
    foot_legend(figure, [known[label] for label in order])


def site_axis(ax: Axes, sites: list[str]) -> None:
    """Depth: the stream before every layer by the layer's number, and after the last one."""
    last = len(sites) - 1
    ticks = [t for t in index_ticks(last, 12) if last - t > last / 14 or t == 0]
    ax.set_xticks([*ticks, last], [*(str(t) for t in ticks), "end"])
    ax.set_xlabel("layer entered (end: after the last)")
