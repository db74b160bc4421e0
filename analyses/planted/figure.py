"""The benchmark's figure: AUROC against the plant-to-drift ratio, method by method."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.planted.results import column_name
from interp.plot.style import BASE, GREY, INK, PAGE, READOUT, SKY, TUNED, WRITE, house_style, sheet

PANELS: dict[str, dict[str, str]] = {
    "Comparing": {
        "weight change": "weight change",
        "attribution": "attribution",
        "attribution, written": "attribution, written",
        "pattern JS": "pattern JS",
        "activation change": "activation change",
        "activation change, relative": "activation, relative",
    },
    "Patching": {
        "patching, tuned into base": "exact, into base",
        "patching, base into tuned": "exact, into tuned",
        "attribution patching, tuned into base": "estimated, into base",
        "attribution patching, base into tuned": "estimated, into tuned",
    },
    "Circuits": {
        "EAP": "EAP",
        "EAP, net": "EAP, net",
        "EAP, touching": "EAP, touching",
        "EAP-IG": "EAP-IG",
        "EAP-IG, net": "EAP-IG, net",
        "EAP-IG, touching": "EAP-IG, touching",
    },
}
_COLOURS = (BASE, TUNED, WRITE, READOUT, SKY, INK)
_MARKS = ("o", "s", "^", "D", "v", "P")


def figure(means: xr.Dataset, *, width: float = PAGE) -> Figure:
    """A line a method with its interval's band, in three panels; one half is chance.

    Args:
        means: what `PlantedBenchmark.means` gives.
        width: in cm.
    """
    with house_style():
        found = sheet(width, 4.3)
        axes = found.subplots(1, 3, sharey=True)
        for ax, (title, methods) in zip(axes, PANELS.items(), strict=True):
            _panel(ax, means, {name: label for name, label in methods.items() if name in means["method"].values})
            ax.set_title(title)
        axes[0].set_ylabel(f"{means.attrs['of'].replace('auroc', 'AUROC')}, mean of {means.attrs['plants']} plants")
        axes[1].text(means.sizes["ratio"] - 1, 0.5, "chance", ha="right", va="bottom", color=GREY, fontsize=7)
        axes[1].set_xlabel("weight change of the plant over that of the drift (∞: no drift)")
        return found


def _panel(ax: Axes, means: xr.Dataset, methods: dict[str, str]) -> None:
    x = np.arange(means.sizes["ratio"])
    ax.axhline(0.5, color=GREY, linewidth=0.8, linestyle=":")
    for (name, label), colour, mark in zip(methods.items(), _COLOURS, _MARKS, strict=False):
        row = means.sel({"method": name})
        ax.plot(x, row["mean"], color=colour, marker=mark, markersize=3.6, label=label)
        ax.fill_between(x, row["low"], row["high"], color=colour, alpha=0.12, linewidth=0)
    ax.set_xticks(x, [column_name(float(ratio)).replace("no drift", "∞") for ratio in means["ratio"].values])
    ax.grid(axis="y")
    if methods:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=1)
