"""Figures across emotions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.cluster.hierarchy
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analyses.sweep.similarity import order_of
from analyses.sweep.tables import Likeness, Tables
from interp.errors import MeasureError
from interp.plot.style import (
    DIVERGING,
    GREY,
    INK,
    NARROW,
    PAGE,
    SEQUENTIAL,
    TUNED,
    foot_legend,
    house_style,
    number,
    sheet,
)
from interp.plot.text import drawable

_ROW = 0.2  # inches of a row of names

NAMED = 12
"""Most points of a scatter plot, and columns of a map, that are named."""
_CM = 1 / 2.54


def reward_and_kl(tables: Tables, *, width: float = PAGE) -> Figure:
    """Reward gained and KL beside each other, a row with its intervals for each pair.

    Args:
        tables: of a sweep.
        width: of the figure in cm.

    Raises:
        MeasureError: no pair has both.
    """
    frame = tables.emotions
    if "gain" not in frame or "kl" not in frame or frame[["gain", "kl"]].dropna().empty:
        raise MeasureError("no pair has both a comparison and an implicit reward; add the two cells to the sweep")
    frame = frame[frame["gain"].notna() & frame["kl"].notna()]
    return _by_row(frame, width)


def _handles() -> list[Line2D]:
    return [
        Line2D([], [], color=TUNED, marker="o", linestyle="", label="label passes the gate"),
        Line2D([], [], color=GREY, marker="o", markerfacecolor="white", linestyle="", label="it does not"),
        Line2D([], [], color=TUNED, marker="s", linestyle="", label="second seed"),
    ]


def _by_row(frame: pd.DataFrame, width: float) -> Figure:
    """A row for each pair, as the names of points in one plane would stand on one another."""
    frame = frame.sort_values("gain")
    with house_style():
        figure = sheet(width, 1.3 + _ROW * len(frame))
        both = figure.subplots(1, 2, sharey=True)
        for place, (_, row) in enumerate(frame.iterrows()):
            colour = TUNED if row["passes"] else GREY
            for ax, (_, key) in zip(both, reversed(_AXES), strict=True):
                low, high = row[f"{key}_low"], row[f"{key}_high"]
                if np.isfinite([low, high]).all():
                    ax.plot([low, high], [place, place], color=colour, linewidth=0.8)
                marker = "o" if row.name == row["emotion"] else "s"
                ax.plot(row[key], place, marker, color=colour, markerfacecolor=colour if row["passes"] else "white")
                ax.grid(axis="both")
        both[0].set_yticks(range(len(frame)), [drawable(str(name)) for name in frame.index])
        both[0].set_ylim(-0.7, len(frame) - 0.3)
        both[0].axvline(0, color=INK, linewidth=0.8)
        both[1].set_xlim(left=0)
        both[0].set_xlabel("reward gained\n[probability]")
        both[1].set_xlabel("KL(tuned ‖ base)\n[nats per token]")
        foot_legend(figure, _handles())
        return figure


_AXES = (("xerr", "kl"), ("yerr", "gain"))


def likeness(found: Likeness, words: str, *, width: float = PAGE) -> Figure:
    """The similarity of the changes as a clustered heat map, beside that of the labels in the same order.

    Args:
        found: likeness in one respect.
        words: that respect, as "activations".
        width: of the figure in cm; under 12 the maps stand one above the other.
    """
    names = list(found.labels.index) or list(found.cosines.index)
    seconds = [name for name in found.cosines.index if name not in names]
    order, tree = order_of(found.cosines.loc[names, names].to_numpy())
    ordered = [names[index] for index in order]
    rows = [*ordered, *seconds]
    narrow = width < NARROW
    tall = max(2.4, 1.15 + _ROW * len(rows))
    with house_style():
        figure = sheet(width, 2 * tall + 0.7 if narrow else tall + 0.7)
        left, right = figure.subplots(*((2, 1) if narrow else (1, 2)))
        mesh = _square(left, found.cosines.loc[rows, rows])
        left.set_title(f"Change of the {words},\nmean over emotions taken out", pad=26)
        if tree is not None:
            _tree(left, tree, len(ordered) / len(rows))
        _square(right, found.labels.loc[ordered, ordered])
        right.set_title("The reward model's labels,\non held-out texts", pad=26)
        figure.colorbar(mesh, ax=[left, right], location="bottom", shrink=0.5, aspect=40, label="similarity")
        return figure


def _tree(ax: Axes, tree: np.ndarray, share: float) -> None:
    """The tree above the columns that it orders, which take this share of the axes."""
    top = ax.inset_axes((0, 1.01, share, 0.09))
    top.axis("off")
    scipy.cluster.hierarchy.dendrogram(tree, ax=top, no_labels=True, link_color_func=lambda _: INK)


def _square(ax: Axes, table: pd.DataFrame) -> Any:
    names = [drawable(str(name)) for name in table.index]
    norm = TwoSlopeNorm(0, -1, 1)
    mesh = ax.pcolormesh(table.to_numpy(float), cmap=DIVERGING, norm=norm, edgecolors="white", linewidth=0.5)
    ax.invert_yaxis()
    places = np.arange(len(names)) + 0.5
    ax.set_xticks(places, names, rotation=90) if len(names) <= NAMED else ax.set_xticks([])
    ax.set_yticks(places, names)
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    if len(names) <= NAMED:
        for (row, column), value in np.ndenumerate(table.to_numpy(float)):
            if row != column and np.isfinite(value):
                colour = "white" if abs(value) > 0.6 else INK
                said = f"{value:.1f}".replace("-", "−") if abs(value) >= 0.05 else "0"
                ax.text(column + 0.5, row + 0.5, said, ha="center", va="center", fontsize=6, color=colour)
    return mesh


def parts(tables: Tables, *, width: float = PAGE) -> Figure:
    """What each head and MLP of tuned, put into base, brings back of each pair; a dot where it serves the emotion.

    Args:
        tables: of a sweep.
        width: of the figure in cm; under 12 heads and MLPs stand one above the other.

    Raises:
        MeasureError: nothing was patched, or tuned differs from base nowhere.
    """
    recovery = tables.recovery
    if recovery.empty:
        raise MeasureError("no pair was patched, or none differs from base; add the cell patching to the sweep")
    kinds = {
        "heads": [c for c in recovery.columns if ".z" in c],
        "MLPs": [c for c in recovery.columns if ".z" not in c],
    }
    narrow = width < NARROW
    tall = 1.0 + _ROW * len(recovery)
    with house_style():
        figure = sheet(width, 2 * tall + 0.6 if narrow else tall + 0.6)
        ratios = [max(2.5, len(each) / 6) for each in kinds.values()]
        axes = (
            figure.subplots(2, 1) if narrow else figure.subplots(1, 2, width_ratios=[max(ratios), 0.45 * max(ratios)])
        )
        for ax, (title, columns) in zip(axes, kinds.items(), strict=True):
            _map(figure, ax, recovery[columns], tables.served, title)
        handles = [Line2D([], [], marker="o", color=INK, linestyle="", markersize=3.5, label="serves this emotion")]
        foot_legend(figure, handles)
        return figure


def _map(figure: Figure, ax: Axes, table: pd.DataFrame, served: pd.DataFrame, title: str) -> None:
    values = table.to_numpy(float)
    high = max(1e-6, float(np.nanmax(values)))
    mesh = ax.pcolormesh(np.clip(values, 0, None), cmap=SEQUENTIAL, vmin=0, vmax=high)
    ax.invert_yaxis()
    ax.set_yticks(np.arange(len(table)) + 0.5, [drawable(str(name)) for name in table.index])
    layers = [int(str(name).split(".")[0][1:]) for name in table.columns]
    starts = [index for index, layer in enumerate(layers) if index == 0 or layer != layers[index - 1]]
    ends = [*starts[1:], len(layers)]
    ax.set_xticks([(a + b) / 2 for a, b in zip(starts, ends, strict=True)], [f"{layers[a]}" for a in starts])
    for start in starts[1:]:
        ax.axvline(start, color="white", linewidth=0.8)
    ax.tick_params(length=0)
    ax.set_xlabel("layer (within it, head by head)" if title == "heads" else "layer")
    ax.set_title(f"{title}: recovery")
    for row, name in enumerate(table.index):
        for column, part in enumerate(table.columns):
            if name in served.index and bool(served.loc[name, part]):
                light = values[row, column] > 0.6 * high
                ax.plot(column + 0.5, row + 0.5, "o", color=INK if light else "white", markersize=2.6)
    figure.colorbar(mesh, ax=ax, location="right", aspect=22, pad=0.02, fraction=0.05)


def names_of(items: Sequence[str]) -> str:
    """Items as words, the last after "and"."""
    found = list(items)
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])} and {found[-1]}" if found else "none"


def value_words(value: float, low: float, high: float) -> str:
    """A number with its interval."""
    return f"{number(value)} [{number(low)}, {number(high)}]" if np.isfinite(low) else number(value)
