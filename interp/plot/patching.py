"""Figures of patching: maps of recovery, sets beside random sets, dose curves, the search, the value head."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from interp.errors import MeasureError
from interp.plot.registry import figure as registered
from interp.plot.style import (
    BAND,
    BASE,
    DIVERGING,
    GREY,
    HALO,
    INK,
    NARROW,
    PAGE,
    TUNED,
    WRITE,
    Result,
    foot_legend,
    house_style,
    index_ticks,
    number,
    panels,
    sheet,
    units,
    zero_line,
)
from interp.stats import MIN_PROMPTS

LEVEL = 0.05


class Patching(Result, Protocol):
    """What these figures need of an `interp.patching.Patching`."""

    def map(self, name: str, variable: str = "recovery", *, stack: str | None = None) -> xr.DataArray:
        """A variable of all sites of one name."""

    def summary(self, *, least: int = ...) -> pd.DataFrame:
        """One row a site."""


def _maps(data: xr.Dataset) -> list[tuple[str, str]]:
    """Names and stacks of sites that were patched at several heads, neurons or tokens, one by one."""
    table = pd.DataFrame({name: data[name].values for name in ("name", "stack", "layer", "unit", "pos")})
    single = table[table["layer"] >= 0]
    several = single.groupby(["name", "stack"], sort=False)[["unit", "pos"]].nunique()
    return [key for key, counts in several.iterrows() if sorted(counts)[0] == 1 < sorted(counts)[1]]


@registered("patching", needs=lambda data: bool(_maps(data)))
def recovery_map(
    result: Patching, name: str | None = None, *, stack: str | None = None, tokens: Sequence[str] | None = None,
    width: float = PAGE,
) -> Figure:  # fmt: skip
    """Recovery of every patch of one site as a map: layer by head, or layer by position.

    A dot marks cells whose p (sign-flip max-T over the whole map) is under 0.05. Where the two runs do not differ
    enough for a recovery, the mean effect is drawn instead. A cell whose token only some prompts have stays blank
    where these are under 8.

    Args:
        result: of `interp.patching.activation_patching`.
        name: the site; None is the first of which there is a map.
        stack: of an encoder-decoder "encoder" or "cross".
        tokens: what stands at each position, for a map by position of prompts that share their tokens there.
        width: of the figure in cm.

    Raises:
        MeasureError: the site was not patched by itself, or by layer alone.
    """
    if name is None:
        maps = _maps(result.dataset)
        if not maps:
            raise MeasureError("no site was patched head by head or token by token; draw bars of it")
        name, stack = maps[0][0], stack or maps[0][1] or None
    values, label = _values(result, name, stack)
    dims = [dim for dim in values.dims if dim != "layer"]
    if len(dims) != 1:
        raise MeasureError(f"{name} was patched by layer alone; draw bars(result), or patch positions='each'")
    (across,) = map(str, dims)
    table = values.transpose("layer", across).values.astype(float)
    p, prompts = (result.map(name, what, stack=stack).transpose("layer", across).values for what in ("p", "prompts"))
    blank = (prompts < MIN_PROMPTS) & (prompts < result.dataset.sizes["prompt"])
    table, p = np.where(blank, np.nan, table), np.where(blank, np.nan, p)
    finite = np.abs(table[np.isfinite(table)])
    bound = float(finite.max(initial=0.0)) or 1.0
    with house_style():
        height = float(np.clip(0.3 * table.shape[0] + 1.75, 2.9, 5.6))
        figure = sheet(min(width, max(9.0, 0.85 * table.shape[1] + 5.5)), height)
        ax = figure.subplots()
        mesh = ax.pcolormesh(
            np.arange(table.shape[1] + 1) - 0.5, np.arange(table.shape[0] + 1) - 0.5, np.ma.masked_invalid(table),
            norm=Normalize(-bound, bound), cmap=DIVERGING, edgecolors="white",
            linewidth=0.6 if max(table.shape) <= 16 else 0, rasterized=table.size > 400,
        )  # fmt: skip
        ax.set_ylim(table.shape[0] - 0.5, -0.5)
        for axis, dim, size in ((ax.yaxis, "layer", table.shape[0]), (ax.xaxis, across, table.shape[1])):
            ticks = index_ticks(size, 16)
            axis.set_ticks(ticks, [str(values[dim].values[tick]) for tick in ticks])
        if tokens is not None and across == "pos":
            ax.set_xticks(range(len(tokens)), [repr(token) for token in tokens], rotation=40, ha="right")
        ax.tick_params(length=2)
        ax.set(xlabel={"pos": "position"}.get(across, across.replace("_", " ")), ylabel="layer")
        ax.set_title(f"{_words(name)}: {label[0]}")
        _marks(ax, table, p)
        figure.colorbar(mesh, ax=ax, label=label[1], pad=0.02).outline.set_visible(False)
        if np.isfinite(p).any():
            text = "Dot: p < 0.05, the largest of the whole map taken into account (sign flips over prompts)"
        else:
            text = f"No significance: fewer than {MIN_PROMPTS} groups of prompts"
        if blank.any():
            text += f". Blank: fewer than {MIN_PROMPTS} prompts have the token"
        figure.supxlabel(_fit(text, figure), x=0.01, ha="left", fontsize=8)
        return figure


def _values(result: Patching, name: str, stack: str | None) -> tuple[xr.DataArray, tuple[str, str]]:
    if "recovery" in result.dataset:
        values = result.map(name, "recovery", stack=stack)
        if np.isfinite(values.values).any():
            return values, ("recovery", "share of the gap")
    unit = units(result.dataset["effect"], "")
    mean = result.map(name, "effect", stack=stack).mean("prompt")
    return mean, ("mean effect", f"patched minus recipient\n[{unit}]" if unit else "patched minus recipient")


def _words(name: str) -> str:
    known = {
        "z": "Heads (z)",
        "result": "Heads (result)",
        "resid_pre": "Residual",
        "attn_out": "Attention",
        "mlp_out": "MLP",
    }
    return known.get(name, name)


def _marks(ax: Axes, table: np.ndarray, p: np.ndarray) -> None:
    """Dots where it is significant, numbers in the three largest cells."""
    for layer, column in zip(*np.nonzero(np.nan_to_num(p, nan=1.0) < LEVEL), strict=True):
        dot = ax.plot(column + 0.36, layer - 0.32, ".", color=INK, markersize=2.6, zorder=3)
        dot[0].set_path_effects(HALO)
    sizes = np.nan_to_num(np.abs(table), nan=0.0).ravel()
    for flat in np.argsort(-sizes, kind="stable")[:3]:
        if sizes[flat] == 0:
            continue
        layer, column = divmod(int(flat), table.shape[1])
        ax.add_patch(Rectangle((column - 0.5, layer - 0.5), 1, 1, fill=False, edgecolor=INK, linewidth=1.0, zorder=3))
        if table.shape[1] <= 16:
            text = ax.annotate(
                number(float(table[layer, column]), signed=True), (column, layer), ha="center", va="center",
                fontsize=6.5 if table.shape[1] > 8 else 7.5, zorder=4,
            )  # fmt: skip
            text.set_path_effects(HALO)


@registered("patching")
def bars(result: Patching, *, most: int = 16, width: float = PAGE) -> Figure:
    """Recovery of each patch with its interval, the largest first; random sets of the same size as ticks beside it.

    Args:
        result: of `interp.patching.activation_patching`, of `reward_patching` or of `ablation`.
        most: patches that are drawn, those with the largest effects.
        width: of the figure in cm.
    """
    data = result.dataset
    has = "recovery" in data and bool(np.isfinite(data["recovery"].values).any())
    frame = result.summary().head(most)
    names = [str(name) for name in frame["site"]]
    what = "recovery" if has else "effect"
    value, low, high = (frame[name].to_numpy(dtype=float) for name in (what, f"{what}_low", f"{what}_high"))
    with house_style():
        narrow = width < NARROW
        figure = sheet(min(width, PAGE), (2.2 if narrow else 1.35) + 0.25 * max(3, len(names)))
        ax = figure.subplots()
        rows = np.arange(len(names))
        for row in rows[::2]:
            ax.axhspan(row - 0.5, row + 0.5, color=BAND, linewidth=0, zorder=0)
        ax.barh(rows, value, color=TUNED, height=0.55, zorder=2)
        _whiskers(ax, rows, low, high)
        drawn = _random_ticks(ax, rows, data, names)
        zero_line(ax, vertical=True)
        ax.set_yticks(rows, [_short(name, 20 if narrow else 34) for name in names])
        ax.tick_params(axis="y", length=0)
        ax.set_ylim(len(names) - 0.5, -0.5)
        unit = units(data["effect"], "")
        ax.set_xlabel("recovery: share of the gap" if has else f"effect [{unit}]" if unit else "effect")
        metric = str(data.attrs["metric"]).replace("_", " ")
        title = f"What each patch brings: {metric}"
        if narrow:  # the names leave no room above the axes
            figure.suptitle(title, x=0.02, ha="left", fontsize=9.5, fontweight="bold")
        else:
            ax.set_title(title)
        if "readout_recovery" in data and has and np.isfinite(float(data["readout_recovery"])):
            ax.axvline(float(data["readout_recovery"]), color=WRITE, linewidth=1.1, linestyle=":", zorder=1)
            drawn.append(Line2D([], [], color=WRITE, linestyle=":", label="readout alone"))
        whisker = [Line2D([], [], color=INK, label="95 % interval over prompts")] if np.isfinite(low).any() else []
        foot_legend(figure, [Patch(facecolor=TUNED, label="patched"), *whisker, *drawn])
        return figure


def _whiskers(ax: Axes, rows: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    real = np.isfinite(low) & np.isfinite(high)
    ax.hlines(rows[real], low[real], high[real], color=INK, linewidth=1.1, zorder=3)


def _random_ticks(ax: Axes, rows: np.ndarray, data: xr.Dataset, names: Sequence[str]) -> list[Any]:
    if "random_recovery" not in data:
        return []
    labels = data["label"].values.tolist()
    for row, name in zip(rows, names, strict=True):
        known = data["random_recovery"].values[labels.index(name)]
        known = known[np.isfinite(known)]
        ticks = ax.plot(known, np.full(len(known), row), "|", color=INK, markersize=8, markeredgewidth=1.0, zorder=4)
        ticks[0].set_path_effects(HALO)
    return [Line2D([], [], color=INK, marker="|", linewidth=0, label="random sets of the same size")]


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


@registered("steering")
def dose_curve(result: Result, *, width: float = PAGE) -> Figure:
    """The metric by dose of a difference vector, with its interval, beside random directions of the same norm.

    Args:
        result: of `interp.patching.steering`.
        width: of the figure in cm.
    """
    data = result.dataset
    doses = data["dose"].values
    with house_style():
        figure, (ax,) = panels(1, width, 3.2)
        if data.sizes["draw"]:
            for draw in data["random_metric"].values:
                ax.plot(doses, draw, color=GREY, linewidth=0.6, alpha=0.55, zorder=1)
        ax.axhline(float(data["recipient"].mean()), color=BASE, linestyle="--", linewidth=1.0, zorder=1)
        ax.axhline(float(data["source"].mean()), color=TUNED, linewidth=1.0, zorder=1)
        ax.fill_between(doses, data["mean_low"].values, data["mean_high"].values, color=INK, alpha=0.18, linewidth=0)
        ax.plot(doses, data["mean"].values, color=INK, marker="o", zorder=3)
        unit = data.attrs["units"]
        metric = str(data.attrs["metric"]).replace("_", " ")
        ax.set(xlabel="dose (multiples of the difference)", ylabel=f"{metric} [{unit}]" if unit else metric)
        ax.set_title(f"Steering at {data.attrs['site']}")
        handles = [
            Line2D([], [], color=INK, marker="o", label="difference vector, 95 % interval"),
            Line2D([], [], color=GREY, linewidth=0.8, label="random directions"),
            Line2D([], [], color=BASE, linestyle="--", label="recipient"),
            Line2D([], [], color=TUNED, label="source"),
        ]
        foot_legend(figure, handles)
        return figure


@registered("smallest_set")
def search(result: Result, *, width: float = PAGE) -> Figure:
    """Recovery over the size of the set that a greedy search took, on the prompts that judge, beside random sets.

    Args:
        result: of `interp.patching.smallest_set`.
        width: of the figure in cm.
    """
    data = result.dataset
    sizes = data["size"].values
    with house_style():
        figure = sheet(width, 3.5)
        ax = figure.subplots()
        for row, size in enumerate(sizes):
            known = data["random_recovery"].values[row]
            known = known[np.isfinite(known)]
            ax.plot(np.full(len(known), size), known, "_", color=GREY, markersize=9, markeredgewidth=0.9, zorder=1)
        ax.axhline(float(data.attrs["target"]), color=WRITE, linestyle=":", linewidth=1.2)
        ax.fill_between(
            sizes, data["recovery_low"].values, data["recovery_high"].values, color=INK, alpha=0.18, linewidth=0
        )
        ax.plot(sizes, data["recovery"].values, color=INK, marker="o", zorder=3)
        ax.plot(sizes, data["selected"].values, color=TUNED, linestyle="--", linewidth=1.1, zorder=2)
        names = ["+ " + str(added).replace("_out", "").replace("z.", "") for added in data["added"].values]
        crowded = width < NARROW or len(names) > 8
        ax.set_xticks(sizes, names, rotation=45 if crowded else 25, ha="right", rotation_mode="anchor")
        ax.set(ylabel="recovery", xlabel="taken in this order")
        ax.set_title("The smallest set that brings the behaviour")
        judged = "same prompts" if data.attrs["same_prompts"] else "other prompts, 95 % interval"
        handles = [
            Line2D([], [], color=INK, marker="o", label=judged),
            Line2D([], [], color=TUNED, linestyle="--", label="prompts that chose"),
            Line2D([], [], color=GREY, marker="_", linewidth=0, label="random sets of that size"),
            Line2D([], [], color=WRITE, linestyle=":", label="target"),
        ]
        foot_legend(figure, handles)
        return figure


@registered("value_reading")
def value(result: Result, *, width: float = PAGE) -> Figure:
    """What the value head expects by token, and how far that goes along with the final reward.

    Args:
        result: of `interp.patching.value_reading`.
        width: of the figure in cm; under 12 the panels stand one above the other.
    """
    data = result.dataset
    steps = data["step"].values
    reached = np.isfinite(data["value"].values).sum((0, 1))
    steps = steps[reached >= max(min(8, reached[0]), reached[0] // 10)]  # few long samples make the curve's end noise
    with house_style():
        figure, (left, right) = panels(2, width, 2.9)
        left.fill_between(
            steps, data["mean_low"].values[: len(steps)], data["mean_high"].values[: len(steps)],
            color=TUNED, alpha=0.2, linewidth=0,
        )  # fmt: skip
        left.plot(steps, data["mean"].values[: len(steps)], color=TUNED, marker="s", markersize=3)
        left.axhline(float(data["reward"].mean()), color=INK, linewidth=1.0, linestyle=":")
        left.set(xlabel="tokens of the continuation read", ylabel="value and reward")
        left.set_title("What the value head expects")
        right.plot(steps, data["correlation"].values[: len(steps)], color=INK, marker="o", markersize=3)
        zero_line(right)
        right.set(xlabel="tokens of the continuation read", ylabel="correlation", ylim=(-1.05, 1.05))
        right.set_title("Value against final reward")
        handles = [
            Line2D([], [], color=TUNED, marker="s", markersize=3, label="mean value, 95 % interval"),
            Line2D([], [], color=INK, linestyle=":", label="mean reward"),
            Line2D([], [], color=INK, marker="o", markersize=3, label="correlation over samples"),
        ]
        foot_legend(figure, handles)
        return figure


def _fit(text: str, figure: Figure) -> str:
    return "\n".join(textwrap.wrap(text, max(30, int(figure.get_figwidth() * 2.54 / 0.152))))
