"""Bars: attribution by component and by MLP neuron."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from interp.plot.lines import answer_words
from interp.plot.registry import figure
from interp.plot.runs import marks
from interp.plot.style import (
    BAND,
    BASE,
    GREY,
    INK,
    NARROW,
    PAGE,
    READOUT,
    SKY,
    TUNED,
    WRITE,
    Result,
    any_of,
    average,
    change,
    foot_legend,
    has,
    house_style,
    need,
    number,
    others,
    panels,
    quartiles,
    units,
    zero_line,
)

ROW = 0.19  # inches: the least that 8 pt labels need
_MOST_LABELLED = 40  # components; above that a label names a layer, not a component


@figure("comparison", needs=any_of("attribution"))
def attribution(cmp: Result, *, width: float = PAGE) -> Figure:
    """Direct logit attribution by component: both models' values, and their difference split in write and readout.

    Args:
        cmp: a comparison.
        width: of the figure in cm; under 12 the panels stand one above the other.

    Raises:
        MeasureError: `attribution` was not measured.
    """
    data = cmp.dataset
    need(data, ("attribution",), "attribution")
    known = np.isfinite(average(data["attribution"], "component"))
    data = data.isel(component=np.flatnonzero(known))
    names = [str(c) for c in data["component"].values]
    dense = len(names) > _MOST_LABELLED
    height = max(2.4, len(names) * (0.115 if dense else ROW) + 1.6)
    with house_style():
        figure, (left, right) = panels(2, width, height, sharey=True)
        for ax in (left, right):
            _component_axis(ax, names, dense)
            zero_line(ax, vertical=True)
            ax.set_xlabel(f"attribution [{units(data['attribution'], 'logits')}]")
        right.tick_params(labelleft=width < NARROW)
        models = _values(left, data["attribution"], "component")
        left.set_title(f"Both models\n{answer_words(data)}")
        runs = {
            kind: [average(change(a).reindex(component=data["component"].values), "component") for a in arrays]
            for kind, arrays in others(cmp, "attribution").items()
        }
        parts = _difference(right, data, runs)
        right.set_title("Difference\ntuned minus base")
        foot_legend(figure, [*models, *parts])
        if completeness_words(data):
            left.set_xlabel(f"{left.get_xlabel()}\n{completeness_words(data)}")
        return figure


def completeness_words(data: xr.Dataset) -> str:
    """How far the parts of the attribution are from the whole; empty where that was not measured."""
    if not has(data, "completeness_error"):
        return ""
    error = data["completeness_error"]
    words = f"completeness error {number(float(error.mean()))} {units(error, 'logits')}"
    if has(data, "linearisation_error"):
        capped = number(float(data["linearisation_error"].mean()))
        words += f" before the soft cap; linearised through it, off by {capped}"
    return words


def _component_axis(ax: Axes, names: list[str], dense: bool) -> None:
    """Components top down in the order of computation; every second layer on a grey band."""
    layers = [int(n[1:].split(".")[0]) if n[:1] == "L" and n[1:2].isdigit() else -1 for n in names]
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    for layer in sorted({n for n in layers if n >= 0 and n % 2 == 0}):
        rows = [i for i, n in enumerate(layers) if n == layer]
        ax.axhspan(min(rows) - 0.5, max(rows) + 0.5, color=BAND, linewidth=0, zorder=0)
    labels = {i: n.replace(".", " ").replace("_", " ") for i, n in enumerate(names)}
    if dense:
        labels = {i: labels[i] for i, n in enumerate(layers) if n < 0}
        for layer in sorted(set(layers) - {-1}):
            rows = [i for i, n in enumerate(layers) if n == layer]
            labels[float(np.mean(rows))] = f"L{layer} attn, mlp"  # type: ignore[index]
    ax.set_yticks(list(labels), list(labels.values()))


def _values(ax: Axes, array: xr.DataArray, along: str) -> Sequence[Line2D]:
    """Both models' means, joined by a line; returns what the legend shows."""
    base, tuned = (average(array.sel(model=m), along) for m in ("base", "tuned"))
    rows = np.arange(len(base))
    ax.hlines(rows, base, tuned, color=GREY, linewidth=1, zorder=2)
    ax.plot(base, rows, "o", color=BASE, markerfacecolor="white", markersize=4.5, label="base")
    ax.plot(tuned, rows, "s", color=TUNED, markersize=4, label="tuned")
    return ax.lines[-2:]


def _difference(ax: Axes, data: xr.Dataset, runs: Mapping[str, Sequence[np.ndarray]]) -> list[Artist]:
    """Bars of the two parts, their sum, the spread over prompts and other runs; returns what the legend shows."""
    delta = change(data["attribution"])
    total = average(delta, "component")
    rows = np.arange(len(total))
    handles: list[Artist] = []
    if has(data, "attribution_write") and has(data, "attribution_readout"):
        parts = [average(data[f"attribution_{p}"], "component") for p in ("write", "readout")]
        # parts of one sign stack, parts of opposite sign stand on either side of zero
        starts = [np.zeros_like(total), np.where(parts[0] * parts[1] > 0, parts[0], 0)]
        looks = [("what is written", WRITE, ""), ("how it is read out", READOUT, "/////")]
        for part, start, (label, colour, hatch) in zip(parts, starts, looks, strict=True):
            bars = ax.barh(
                rows, part, left=start, height=0.5, color=colour, hatch=hatch, edgecolor="white", linewidth=0
            )
            bars.set_label(label)
            handles.append(Patch(facecolor=colour, hatch=hatch, edgecolor="white", linewidth=0, label=label))
    spread = quartiles(delta, "component")
    if spread is not None:
        ax.hlines(rows, *spread, color=INK, linewidth=0.9, zorder=3)
    beside = marks(ax, rows, runs)
    ax.plot(total, rows, "D", color=INK, markersize=3.2, zorder=4, label="sum")
    handles.append(Line2D([], [], color=INK, marker="D", markersize=3.2, linestyle="", label="sum"))
    if spread is not None:
        handles.append(Line2D([], [], color=INK, linewidth=0.9, label="middle half of prompts"))
    return [*handles, *beside]


@figure("comparison", needs=any_of("neuron_attribution"))
def neurons(cmp: Result, *, width: float = PAGE) -> Figure:
    """Direct logit attribution of the MLP neurons that changed most: both models' values, and tuned minus base.

    Args:
        cmp: a comparison.
        width: of the figure in cm; under 12 the panels stand one above the other.

    Raises:
        MeasureError: `neuron_attribution` was not measured.
    """
    data = cmp.dataset
    need(data, ("neuron_attribution",), "neurons")
    places = zip(data["neuron_layer"].values.tolist(), data["neuron_index"].values.tolist(), strict=True)
    names = [f"L{layer}.{index}" for layer, index in places]
    rows = np.arange(len(names))
    with house_style():
        figure, (left, right) = panels(2, width, max(2.2, len(names) * ROW + 1.4), sharey=True)
        for ax in (left, right):
            zero_line(ax, vertical=True)
            ax.set_yticks(rows, names)
            ax.set_ylim(len(names) - 0.5, -0.5)
            ax.tick_params(axis="y", length=0)
            ax.spines["left"].set_visible(False)
            ax.grid(axis="y")
            ax.set_xlabel(f"attribution [{units(data['neuron_attribution'], 'logits')}]")
        left.set_ylabel("neuron (layer.index)")
        right.tick_params(labelleft=width < NARROW)
        models = _values(left, data["neuron_attribution"], "neuron")
        left.set_title(f"Both models\n{answer_words(data)}")
        delta = change(data["neuron_attribution"])
        right.barh(rows, average(delta, "neuron"), color=SKY, height=0.5, label="mean")
        spread = quartiles(delta, "neuron")
        handles: list[Artist] = [*models, Patch(color=SKY, label="tuned minus base")]
        if spread is not None:
            right.hlines(rows, *spread, color=INK, linewidth=0.9, zorder=3)
            handles.append(Line2D([], [], color=INK, linewidth=0.9, label="middle half of prompts"))
        handles += _largest(right, {k: [change(a) for a in v] for k, v in others(cmp, "neuron_attribution").items()})
        right.set_title("Difference\ntuned minus base")
        foot_legend(figure, handles)
        return figure


def _largest(ax: Axes, runs: Mapping[str, Sequence[xr.DataArray]]) -> list[Artist]:
    """The largest neuron of every other run, on either side of zero: each run has neurons of its own."""
    handles: list[Artist] = []
    for kind, arrays in runs.items():
        reach = max(float(np.abs(average(a, "neuron")).max()) for a in arrays)
        look: dict[str, Any] = {"color": GREY if kind == "control runs" else TUNED, "linewidth": 1.1}
        look["linestyle"] = "-" if kind == "control runs" else ":"
        for x in (-reach, reach):
            ax.axvline(x, zorder=0.7, **look)
        ax.axvspan(-reach, reach, color=look["color"], alpha=0.12, linewidth=0, zorder=0.5)
        handles.append(Line2D([], [], label=f"largest of the {kind}", **look))
    return handles
