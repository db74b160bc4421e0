"""Curves: the logit lens over depth, divergence over positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from interp.plot.style import (
    GREY,
    INK,
    LINES,
    WIDTH,
    Result,
    average,
    band_patch,
    has,
    house_style,
    index_ticks,
    need,
    quartiles,
    units,
    zero_line,
)
from interp.plot.text import drawable

_PLAIN = {"color": INK, "linestyle": "-", "marker": "o"}
_CONTROL: dict[str, Any] = {"color": GREY, "linestyle": "-", "linewidth": 0.9, "zorder": 1.5}


def lens(cmp: Result) -> Figure:
    """Logit lens over depth: both models' logit difference, and how far the two read-outs are apart.

    Raises:
        MeasureError: neither `lens_logit_diff` nor `lens_kl` was measured.
    """
    data = cmp.dataset
    names = need(data, ("lens_logit_diff", "lens_kl"), "lens")
    with house_style():
        figure, axes = _panels(len(names))
        for ax, name in zip(axes, names, strict=True):
            controls = [c[name] for c in cmp.controls if has(c, name)]
            if name == "lens_logit_diff":
                curves = {m: data[name].sel(model=m) for m in ("base", "tuned")}
                _curves(ax, curves, "site", [c.sel(model="tuned") for c in controls])
                ax.set_title(f"Logit difference\n{answer_words(data)}")
                ax.set_ylabel(f"logit difference [{units(data[name], 'logits')}]")
            else:
                _curves(ax, {"tuned from base": data[name]}, "site", controls)
                ax.set_title("Divergence of the two read-outs\nKL(tuned ‖ base)")
                ax.set_ylabel(f"KL [{units(data[name], 'nats')}]")
                ax.set_ylim(bottom=0)
            zero_line(ax)
            _site_axis(ax, [str(s) for s in data["site"].values])
        return figure


def kl(cmp: Result) -> Figure:
    """KL(tuned ‖ base) by prompt position and, apart from it, by response token.

    Raises:
        MeasureError: neither `kl` nor `response_kl` was measured.
    """
    data = cmp.dataset
    names = need(data, ("kl", "response_kl"), "kl")
    with house_style():
        figure, axes = _panels(len(names), sharey=True)
        for ax, name in zip(axes, names, strict=True):
            array = data[name]
            controls = [c[name] for c in cmp.controls if has(c, name)]
            if name == "kl":
                _curves(ax, {"tuned from base": array}, "pos", controls)
                ax.set_title("Prompt")
                ax.set_xlabel("position in the prompt (0: first token)")
            else:
                curves = {str(s): array.sel(source=s) for s in array["source"].values}
                _curves(ax, curves, "step", controls, label="text of {}")
                ax.set_title("Response")
                ax.set_xlabel("token of the response (0: first)")
            ax.set_ylabel(f"KL(tuned ‖ base) [{units(array, 'nats')}]")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[0].set_ylim(bottom=0)  # last, since it ends the scaling to what is drawn, and both panels share it
        return figure


def answer_words(data: xr.Dataset) -> str:
    """What is subtracted from what: the two tokens where all prompts share them, or else their roles."""
    if "answer_token" in data and "other_token" in data:
        pairs = set(zip(data["answer_token"].values.tolist(), data["other_token"].values.tolist(), strict=True))
        if len(pairs) == 1:
            answer, other = pairs.pop()
            return f"“{drawable(answer)}” minus “{drawable(other)}”"
    return "answer minus alternative" if "logit_diff" in data else "tuned's top token minus base's"


def _panels(count: int, *, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH if count > 1 else 4.8, 3.2), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False, sharey=sharey)[0]
    for ax in axes:
        ax.grid(axis="y")
        ax.tick_params(labelleft=True)
    return figure, list(axes)


def _curves(
    ax: Axes, curves: dict[str, xr.DataArray], along: str, controls: list[xr.DataArray], label: str = "{}"
) -> None:
    """Mean over prompts of every curve with its interquartile band, controls behind in grey."""
    handles: list[Any] = []
    band = False
    for array in controls:
        (line,) = ax.plot(average(array, along), label="controls", **_CONTROL)
        handles = [line]
    for name, array in curves.items():
        mean = average(array, along)
        known = np.flatnonzero(np.isfinite(mean))
        style: dict[str, Any] = LINES.get(name, _PLAIN)
        x = np.arange(len(mean))[: known[-1] + 1] if len(known) else np.arange(0)
        spread = quartiles(array, along)
        if spread is not None:
            low, high = (s[: len(x)] for s in spread)
            ax.fill_between(x, low, high, color=style["color"], alpha=0.16, linewidth=0)
            band = True
        every = max(1, len(x) // 16)
        ax.plot(x, mean[: len(x)], label=label.format(name), markevery=every, **style)
        handles.insert(len(handles) - bool(controls), ax.lines[-1])
    _legend(ax, handles, band)


def _legend(ax: Axes, handles: list[Line2D | Any], band: bool) -> None:
    """Below the axes, where no curve can run through it."""
    handles = [*handles, band_patch()] if band else handles
    ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, columnspacing=1.2)


def _site_axis(ax: Axes, sites: list[str]) -> None:
    """Depth: the stream before every layer by the layer's number, and after the last one."""
    last = len(sites) - 1
    ticks = [t for t in index_ticks(last, 12) if last - t > last / 14 or t == 0]
    ax.set_xticks([*ticks, last], [*(str(t) for t in ticks), "end"])
    ax.set_xlabel("layer entered (end: after the last)")
