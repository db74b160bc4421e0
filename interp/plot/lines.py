"""Curves over layers or positions; over depth the logit lens, and the residual stream's size and direction."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from interp.plot.registry import figure
from interp.plot.runs import Runs, bands
from interp.plot.style import (
    INK,
    LINES,
    PAGE,
    Result,
    any_of,
    average,
    band_patch,
    foot_legend,
    has,
    house_style,
    index_ticks,
    need,
    others,
    panels,
    quartiles,
    units,
    zero_line,
)
from interp.plot.text import drawable

_LENSES = {"lens_logit_diff": "lens_base_head_logit_diff", "lens_kl": "lens_base_head_kl"}
_STEEP = 20  # a norm that grows more than this is drawn on a logarithmic axis

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


@figure("comparison", needs=any_of(*_LENSES))
def lens(cmp: Result, *, width: float = PAGE) -> Figure:
    """Logit lens over depth: both models' logit difference, and how far the two read-outs are apart.

    Where it was measured, tuned's residual read through base's final norm and unembedding is a third line: what lies
    between it and tuned's own is the change of the read-out.

    Args:
        cmp: a comparison.
        width: of the figure in cm; under 12 the panels stand one above the other.

    Raises:
        MeasureError: neither `lens_logit_diff` nor `lens_kl` was measured.
    """
    data = cmp.dataset
    names = need(data, tuple(_LENSES), "lens")
    with house_style():
        figure, axes = panels(len(names), width, 3.1)
        handles: list[Any] = []
        for ax, name in zip(axes, names, strict=True):
            through_base = {"tuned through base's head": data[_LENSES[name]]} if has(data, _LENSES[name]) else {}
            runs = others(cmp, name)
            if name == "lens_logit_diff":
                both = {m: data[name].sel(model=m) for m in ("base", "tuned")}
                handles += curves(
                    ax, both | through_base, "site", {k: [r.sel(model="tuned") for r in v] for k, v in runs.items()}
                )
                ax.set_title(f"Logit difference\n{answer_words(data)}")
                ax.set_ylabel(f"logit difference [{units(data[name], 'logits')}]")
                zero_line(ax)
            else:
                handles += curves(ax, {"each through its own head": data[name]} | through_base, "site", runs)
                ax.set_title("How far apart they read\nKL(tuned ‖ base)")
                ax.set_ylabel(f"KL [{units(data[name], 'nats')}]")
                ax.set_ylim(bottom=0)
            ax.grid(axis="y")
            site_axis(ax, [str(s) for s in data["site"].values])
        legend(figure, handles)
        return figure


@figure("comparison", needs=any_of("resid_norm", "resid_cosine"))
def residual(cmp: Result, *, width: float = PAGE) -> Figure:
    """Norm of both models' residual stream by layer, and the cosine between the two.

    Args:
        cmp: a comparison.
        width: of the figure in cm; under 12 the panels stand one above the other.

    Raises:
        MeasureError: neither `resid_norm` nor `resid_cosine` was measured.
    """
    data = cmp.dataset
    names = need(data, ("resid_norm", "resid_cosine"), "residual")
    with house_style():
        figure, axes = panels(len(names), width, 3.1)
        handles: list[Any] = []
        for ax, name in zip(axes, names, strict=True):
            runs = others(cmp, name)
            if name == "resid_norm":
                tuned = {k: [r.sel(model="tuned") for r in v] for k, v in runs.items()}
                handles += curves(ax, {m: data[name].sel(model=m) for m in ("base", "tuned")}, "site", tuned)
                ax.set_title("Size of the stream\nmean over prompt tokens")
                ax.set_ylabel(f"norm ‖r‖ [{units(data[name], '1')}]" if units(data[name], "1") != "1" else "norm ‖r‖")
                _norm_scale(ax, average(data[name], "model", "site"))
            else:
                lines = {"mean over prompt tokens": data[name]}
                if has(data, "resid_cosine_last"):
                    lines["last prompt token"] = data["resid_cosine_last"]
                handles += curves(ax, lines, "site", runs)
                ax.set_title("Direction of the stream\ntuned against base")
                ax.set_ylabel("cosine (1: same direction)")
                low, _ = ax.get_ylim()
                ax.set_ylim(min(low, 0.99), 1 + 0.04 * (1 - min(low, 0.99)))
            ax.grid(axis="y")
            site_axis(ax, [str(s) for s in data["site"].values])
        legend(figure, handles)
        return figure


def _norm_scale(ax: Any, values: np.ndarray) -> None:
    known = values[np.isfinite(values) & (values > 0)]
    if known.size and known.max() > _STEEP * known.min():
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0)


def answer_words(data: xr.Dataset) -> str:
    """What is subtracted from what: the two tokens where all prompts share them, or else their roles."""
    if "answer_token" in data and "other_token" in data:
        pairs = set(zip(data["answer_token"].values.tolist(), data["other_token"].values.tolist(), strict=True))
        if len(pairs) == 1:
            answer, other = pairs.pop()
            return f"“{drawable(answer)}” minus “{drawable(other)}”"
    return "answer minus alternative" if "logit_diff" in data else "tuned's top token minus base's"
