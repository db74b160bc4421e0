"""Bars: attribution by component, the likeliest next tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from interp.plot.lines import answer_words
from interp.plot.style import (
    BAND,
    BASE,
    GREY,
    HALO,
    INK,
    READOUT,
    TUNED,
    WIDTH,
    WRITE,
    Result,
    average,
    change,
    has,
    house_style,
    need,
    number,
    quartiles,
    units,
    zero_line,
)
from interp.plot.text import drawable

_ROW = 0.19  # inches: the least that 8 pt labels need
_MOST_LABELLED = 40  # components; above that a label names a layer, not a component


def attribution(cmp: Result) -> Figure:
    """Direct logit attribution by component: both models' values, and their difference split in write and readout.

    Raises:
        MeasureError: `attribution` was not measured.
    """
    data = cmp.dataset
    need(data, ("attribution",), "attribution")
    known = np.isfinite(average(data["attribution"], "component"))
    data = data.isel(component=np.flatnonzero(known))
    names = [str(c) for c in data["component"].values]
    dense = len(names) > _MOST_LABELLED
    height = max(2.4, len(names) * (0.115 if dense else _ROW) + 1.5)
    with house_style():
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for ax in (left, right):
            _component_axis(ax, names, dense)
            zero_line(ax, vertical=True)
            ax.set_xlabel(f"attribution [{units(data['attribution'], 'logits')}]")
        right.tick_params(labelleft=False)
        models = _values(left, data["attribution"])
        left.set_title(f"Both models\n{answer_words(data)}")
        parts = _difference(right, data, [c for c in cmp.controls if has(c, "attribution")])
        right.set_title("Difference\ntuned minus base")
        handles = [*models, *parts]
        figure.legend(handles=handles, loc="outside lower center", ncols=4)
        return figure


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


def _values(ax: Axes, array: xr.DataArray) -> Sequence[Line2D]:
    """Both models' means, joined by a line; returns what the legend shows."""
    base, tuned = (average(array.sel(model=m), "component") for m in ("base", "tuned"))
    rows = np.arange(len(base))
    ax.hlines(rows, base, tuned, color=GREY, linewidth=1, zorder=2)
    ax.plot(base, rows, "o", color=BASE, markerfacecolor="white", markersize=4.5, label="base")
    ax.plot(tuned, rows, "s", color=TUNED, markersize=4, label="tuned")
    return ax.lines[-2:]


def _difference(ax: Axes, data: xr.Dataset, controls: Sequence[xr.Dataset]) -> list[Patch | Line2D]:
    """Bars of the two parts, their sum, the spread over prompts and the controls; returns what the legend shows."""
    delta = change(data["attribution"])
    total = average(delta, "component")
    rows = np.arange(len(total))
    handles: list[Patch | Line2D] = []
    if has(data, "attribution_write") and has(data, "attribution_readout"):
        parts = [average(data[f"attribution_{p}"], "component") for p in ("write", "readout")]
        # parts of one sign stack, parts of opposite sign stand on either side of zero
        starts = [np.zeros_like(total), np.where(parts[0] * parts[1] > 0, parts[0], 0)]
        looks = [("what is written", WRITE, ""), ("how it is read out", READOUT, "/////")]
        for part, start, (label, colour, hatch) in zip(parts, starts, looks, strict=True):
            bars = ax.barh(
                rows, part, left=start, height=0.62, color=colour, hatch=hatch, edgecolor="white", linewidth=0
            )
            bars.set_label(label)
            handles.append(Patch(facecolor=colour, hatch=hatch, edgecolor="white", linewidth=0, label=label))
    spread = quartiles(delta, "component")
    if spread is not None:
        ax.hlines(rows, *spread, color=INK, linewidth=0.9, zorder=3)
    for control in controls:
        ax.plot(
            average(change(control["attribution"]).reindex(component=data["component"].values), "component"),
            rows, "|", color=GREY, markersize=8, markeredgewidth=1.2, zorder=3.5, label="controls", path_effects=HALO,
        )  # fmt: skip
    ax.plot(total, rows, "D", color=INK, markersize=3.2, zorder=4, label="sum")
    handles.append(Line2D([], [], color=INK, marker="D", markersize=3.2, linestyle="", label="sum"))
    if spread is not None:
        handles.append(Line2D([], [], color=INK, linewidth=0.9, label="middle half of prompts"))
    if controls:
        handles.append(Line2D([], [], color=GREY, marker="|", markersize=8, linestyle="", label="controls"))
    return handles


def top_tokens(cmp: Result, *, prompts: Sequence[int] = (0, 1, 2), ranks: int = 5) -> Figure:
    """The likeliest next tokens of both models, prompt by prompt.

    Args:
        cmp: a comparison.
        prompts: which prompts, by place; those beyond the last are left out.
        ranks: how many tokens each.

    Raises:
        MeasureError: `top_prob` was not measured.
    """
    data = cmp.dataset
    need(data, ("top_prob",), "next_token")
    chosen = [p for p in prompts if p < data.sizes["prompt"]]
    with house_style():
        figure = Figure(figsize=(WIDTH, len(chosen) * (ranks * _ROW + 0.75) + 0.2), layout="constrained")
        rows = figure.subplots(len(chosen), 2, squeeze=False)
        widest = float(data["top_prob"].isel(prompt=chosen, rank=slice(ranks)).max())
        for axes, index in zip(rows, chosen, strict=True):
            row = data.isel(prompt=index, rank=slice(ranks))
            title = drawable(str(row["text"].item()), 76, token=False) if "text" in data else f"prompt {index}"
            axes[0].set_title(title)
            for ax, model in zip(axes, ("base", "tuned"), strict=True):
                _token_bars(ax, row.sel(model=model), model, widest)
        return figure


def _token_bars(ax: Axes, row: xr.Dataset, model: str, widest: float) -> None:
    probs = row["top_prob"].values
    probs = probs[np.isfinite(probs)]
    tokens = [drawable(str(t)) for t in row["top_token"].values[: len(probs)]]
    colour, hatch = (BASE, "") if model == "base" else (TUNED, "/////")
    ax.barh(range(len(probs)), probs, color=colour, hatch=hatch, edgecolor="white", linewidth=0, height=0.7)
    for i, p in enumerate(probs):
        ax.text(p + widest * 0.015, i, number(float(p)), va="center", fontsize=8)
    ax.set_yticks(range(len(probs)), tokens)
    ax.set_ylim(len(probs) - 0.5, -0.5)
    ax.set_xlim(0, widest * 1.16)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(f"{model}: probability")
