"""Reward and policy joined: the implicit reward, over-optimisation, the token join, probes over training."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from interp.errors import MeasureError
from interp.plot.registry import figure
from interp.plot.style import (
    BASE,
    GREY,
    INK,
    PAGE,
    READOUT,
    SKY,
    TUNED,
    WRITE,
    Result,
    foot_legend,
    house_style,
    number,
    panels,
    span,
    zero_line,
)
from interp.plot.text import drawable

_MANY = 400  # points; more become a picture inside the figure, which is smaller
_LOOKS: tuple[dict[str, Any], ...] = (
    {"color": BASE, "linestyle": "--", "marker": "o", "markerfacecolor": "white"},
    {"color": TUNED, "linestyle": "-", "marker": "s"},
    {"color": WRITE, "linestyle": "-.", "marker": "^"},
    {"color": READOUT, "linestyle": ":", "marker": "D"},
)


def _arrays(result: Result, name: str, by: str) -> xr.Dataset:
    """The dataset that holds `name`: the result's own, or that of what was joined to a comparison."""
    if name in result.dataset:
        return result.dataset
    if not hasattr(result, by):
        raise MeasureError(f"this figure draws the result of {by}, whose {name} is not here; pass that result")
    data: xr.Dataset = getattr(result, by).dataset
    return data


@figure("implicit_reward", needs=("log_ratio_within",))
@figure("comparison", needs=("implicit_log_ratio_within",))
def implicit_reward(result: Result, *, width: float = PAGE) -> Figure:
    """The policy's shift against the reward within prompts, and the slope beside those of permuted rewards.

    Args:
        result: of `interp.reward`, or a comparison that it was joined to.
        width: of the figure in cm; under 12 the panels stand one above the other.

    Raises:
        MeasureError: it is another result, or a comparison without it.
    """
    data = _arrays(result, "log_ratio_within", "implicit_reward")
    with house_style():
        sheet, (left, right) = panels(2, width, 3.3, ratios=[1.5, 1.0])
        handles: list[Any] = []
        for source, colour, marker in (("base", BASE, "o"), ("tuned", TUNED, "s")):
            own = data.sel(source=source)
            x, y = (own[name].values.ravel() for name in ("reward_within", "log_ratio_within"))
            face = "none" if source == "base" else colour
            look: dict[str, Any] = {"marker": marker, "edgecolors": colour, "facecolors": face, "linewidths": 0.6}
            left.scatter(x, y, s=9, alpha=0.55, rasterized=len(x) > _MANY, **look)
            handles.append(
                Line2D(
                    [], [], color=colour, marker=marker, markerfacecolor=face, linestyle="", label=f"{source}'s samples"
                )
            )
        slope, low, high = (float(data[f"slope{end}"]) for end in ("", "_low", "_high"))
        ends = np.array(left.get_xlim())
        handles += left.plot(ends, slope * ends, color=INK, linewidth=1.4, label="fit", zorder=3)
        if np.isfinite(low):
            left.fill_between(ends, low * ends, high * ends, color=INK, alpha=0.15, linewidth=0)
        left.set_xlim(*ends)
        zero_line(left)
        zero_line(left, vertical=True)
        left.set_title("Shift against reward\nwithin prompts, length taken out")
        left.set_xlabel("reward minus its prompt's mean")
        left.set_ylabel("log-ratio, the same [nats]")
        handles += _against_null(right, data["null_slope"].values, (slope, low, high), "permuted rewards")
        beta = float(data.attrs.get("beta", np.nan))
        if np.isfinite(beta) and beta > 0:
            right.axvline(1 / beta, color=WRITE, linestyle="-.", linewidth=1.4)
            handles.append(Line2D([], [], color=WRITE, linestyle="-.", label="the recipe's 1 / beta"))
        right.set_title(f"Slope {number(slope)}\n{_interval(low, high)}")
        right.set_xlabel("log-ratio per unit of reward [nats]")
        foot_legend(sheet, handles)
        return sheet


def _interval(low: float, high: float) -> str:
    return f"95 % interval {span(low, high)}" if np.isfinite(low) else "no interval: too few prompts"


def _against_null(ax: Axes, null: np.ndarray, value: tuple[float, float, float], what: str) -> list[Any]:
    """How often the null gives which value, and the value found with its interval."""
    finite = null[np.isfinite(null)]
    ax.hist(finite, bins=min(30, max(5, len(finite) // 12)), color=GREY, alpha=0.55)
    found, low, high = value
    ax.axvline(found, color=TUNED, linewidth=1.6)
    if np.isfinite(low):
        ax.axvspan(low, high, color=TUNED, alpha=0.18, linewidth=0)
    zero_line(ax, vertical=True)
    ax.set_ylabel("permutations")
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    handles: list[Any] = [Patch(facecolor=GREY, alpha=0.55, label=f"null: {what}")]
    return [*handles, Line2D([], [], color=TUNED, linewidth=1.6, label="found, with its 95 % interval")]


@figure("over_optimisation", needs=("reward_gain",))
@figure("comparison", needs=("over_reward_gain",))
def over_optimisation(result: Result, *, width: float = PAGE) -> Figure:
    """Gain of the optimised and of the gold reward against the square root of KL, and how far gold is behind by step.

    Without a gold reward the second panel is KL over the training.

    Args:
        result: of `interp.reward`, or a comparison that it was joined to.
        width: of the figure in cm; under 12 the panels stand one above the other.

    Raises:
        MeasureError: it is another result, or a comparison without it.
    """
    data = _arrays(result, "reward_gain", "over_optimisation")
    names = [name for name in ("reward", "gold") if f"{name}_gain" in data]
    with house_style():
        sheet, (left, right) = panels(2, width, 3.3, ratios=[1.5, 1.0])
        handles: list[Any] = []
        distance = data["distance"].values
        for name, look in zip(names, (_LOOKS[1], _LOOKS[2]), strict=False):
            words = {"reward": "optimised reward", "gold": "gold reward"}[name]
            handles += _banded(left, distance, data, f"{name}_gain", words, look)
            if float(data[f"{name}_peak"]) != data["step"].values[-1] and name == "gold":
                at = int(np.flatnonzero(data["step"].values == float(data["gold_peak"]))[0])
                left.plot(distance[at], data["gold_gain"].values[at], "o", ms=11, mfc="none", mec=INK)
                handles.append(Line2D([], [], marker="o", ms=9, mfc="none", mec=INK, ls="", label="gold's peak"))
        zero_line(left)
        left.set_title("Reward against distance from base")
        left.set_xlabel("√KL from base per response [√nats]")
        left.set_ylabel("gain over base [sd of base]")
        left.grid(axis="y")
        steps = data["step"].values
        look = {"color": INK, "linestyle": "-", "marker": "o"}
        right.set_xlabel("optimiser step")
        if "gap" in data:
            _banded(right, steps, data, "gap", "", look)
            zero_line(right)
            right.set_title("Gold minus optimised")
            right.set_ylabel("difference in gain [sd]")
        else:
            _banded(right, steps, data, "kl_token", "", look)
            right.set_title("Distance over training")
            right.set_ylabel("KL [nats per token]")
            right.set_ylim(bottom=0)
        right.grid(axis="y")
        foot_legend(sheet, handles)
        return sheet


def _banded(ax: Axes, x: np.ndarray, data: xr.Dataset, name: str, label: str, look: dict[str, Any]) -> list[Any]:
    """A curve with its intervals, and what the legend shows of it."""
    mean, low, high = (data[f"{name}{end}"].values.astype(float) for end in ("", "_low", "_high"))
    if np.isfinite(low).any():
        ax.fill_between(x, low, high, color=look["color"], alpha=0.16, linewidth=0)
    return list(ax.plot(x, mean, label=label, **look))


@figure("token_join", needs=("signed_spearman",))
@figure("comparison", needs=("join_signed_spearman",))
def token_join(result: Result, *, width: float = PAGE) -> Figure:
    """Log-ratio against reward attribution, span by span, and the rank correlation beside those of permuted ones.

    Args:
        result: of `interp.reward`, or a comparison that it was joined to.
        width: of the figure in cm; under 12 the panels stand one above the other.

    Raises:
        MeasureError: it is another result, or a comparison without it.
    """
    data = _arrays(result, "signed_spearman", "token_join")
    with house_style():
        sheet, (left, right) = panels(2, width, 3.3, ratios=[1.5, 1.0])
        x, y = (data[name].values.ravel() for name in ("attribution", "log_ratio"))
        known = np.isfinite(x) & np.isfinite(y)
        left.scatter(x[known], y[known], s=8, color=SKY, alpha=0.6, linewidths=0, rasterized=known.sum() > _MANY)
        zero_line(left)
        zero_line(left, vertical=True)
        left.margins(0.12)
        sheet.draw_without_rendering()  # the room that a name takes is known once the panels have their size
        _name_extremes(left, data, known)
        left.set_title("Log-ratio against reward attribution\none point a span of characters")
        left.set_xlabel("reward attribution")
        left.set_ylabel("log π tuned − log π base [nats]")
        value, low, high = (float(data[f"signed_spearman_{end}"]) for end in ("mean", "low", "high"))
        handles = _against_null(right, data["null_signed_spearman"].values, (value, low, high), "permuted attributions")
        right.set_title(f"Spearman within texts {number(value)}\n{_interval(low, high)}")
        right.set_xlabel("mean rank correlation within texts")
        foot_legend(sheet, handles)
        return sheet


def _name_extremes(ax: Axes, data: xr.Dataset, known: np.ndarray, most: int = 3) -> None:
    """The spans that lie farthest out on either axis, each word once, and none over another's name."""
    x, y = (np.where(known, data[name].values.ravel(), 0.0) for name in ("attribution", "log_ratio"))
    pieces, shown = data["piece"].values.ravel(), set()
    taken: list[Bbox] = []
    for values in (x, y):
        kept = 0
        for place in np.argsort(-np.abs(values), kind="stable"):
            word = str(pieces[place])
            if word in shown or not known[place] or kept == most:
                continue
            side = "right" if x[place] > 0 and values is x else "left"
            box = _named(ax, (x[place], y[place]), drawable(word, 14), side, taken)
            if box is not None:
                shown.add(word)
                taken.append(box)
                kept += 1


def _named(ax: Axes, at: tuple[float, float], word: str, side: str, taken: list[Bbox]) -> Bbox | None:
    """Write a word above a point, or below it; the room that it takes, None where there is none left."""
    for rise, level in ((3, "bottom"), (-3, "top")):
        offset = (-4 if side == "right" else 4, rise)
        text = ax.annotate(word, at, offset, textcoords="offset points", fontsize=8, ha=side, va=level)
        box = text.get_window_extent()
        if not any(box.overlaps(other) for other in taken):
            return box
        text.remove()
    return None


@figure("probes", needs=("half_gain",))
@figure("comparison", needs=("probes_half_gain",))
def probes(result: Result, *, width: float = PAGE) -> Figure:
    """Gain of the best layer over the training of each model, and accuracy by depth before and after.

    Args:
        result: of `interp.reward`, or a comparison that it was joined to.
        width: of the figure in cm; under 12 the panels stand one above the other.

    Raises:
        MeasureError: it is another result, or a comparison without it.
    """
    data = _arrays(result, "half_gain", "probes")
    with house_style():
        sheet, (left, right) = panels(2, width, 3.3)
        handles: list[Any] = []
        for name, look in zip(data["model"].values, _LOOKS, strict=False):
            own = data.sel(model=name)
            own = own.isel(step=np.flatnonzero(np.isfinite(own["trained"].values)))
            own = own.isel(layer=slice(0, int(own["layers"]) + 1))
            layer = int(own["best_layer"])
            label = f"{name}, layer {layer} of {int(own['layers'])}"
            handles += _banded(left, own["fraction"].values, own.sel(layer=layer), "gain", label, look)
            depth = np.linspace(0, 1, own.sizes["layer"])
            first = {**look, "alpha": 0.4, "linewidth": 1.0, "markersize": 3}
            right.plot(depth, own["accuracy"].isel(step=0).values, **first)
            _banded(right, depth, own.isel(step=-1), "accuracy", str(name), look)
        nulls = data["null_accuracy"].values
        if np.isfinite(nulls).any():
            right.axhspan(np.nanmin(nulls), np.nanmax(nulls), color=GREY, alpha=0.2, linewidth=0)
            handles.append(Patch(facecolor=GREY, alpha=0.3, label="shuffled labels"))
        handles.append(Line2D([], [], color=GREY, alpha=0.6, linewidth=1.0, label="faint: at step 0"))
        right.axhline(0.5, color=INK, linewidth=0.7)
        zero_line(left)
        left.set_title("What was learned, and when\nlayer of the largest gain")
        left.set_xlabel("share of each model's training")
        left.set_ylabel("accuracy gained over step 0")
        right.set_title("Where it can be read\nat the last checkpoint")
        right.set_xlabel("depth (0: embeddings, 1: last block)")
        right.set_ylabel("balanced accuracy, held out")
        for ax in (left, right):
            ax.grid(axis="y")
        foot_legend(sheet, handles)
        return sheet
