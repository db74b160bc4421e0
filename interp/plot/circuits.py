"""Circuits: faithfulness over size, two models' circuits side by side, one as a graph, paths and parts of heads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, Patch

from interp.errors import MeasureError
from interp.plot.registry import figure
from interp.plot.style import (
    BASE,
    DIVERGING,
    GREY,
    HALO,
    INK,
    LINES,
    PAGE,
    TUNED,
    foot_legend,
    house_style,
    index_ticks,
    panels,
    sheet,
    zero_line,
)

UP, DOWN = BASE, TUNED  # corrupting the edge lowers, or raises, the metric
_STATES = {
    "strengthened": "#009E73",
    "weakened": "#a8dccb",
    "re-wired": "#CC79A7",
    "new": "#F0E442",
    "gone": "#6b6b6b",
    "no evidence of a change": "#e3e3e3",
}
_DARK = ("#009E73", "#6b6b6b")


STRONGEST = 40
"""Edges that are drawn of scores where none are named."""


@runtime_checkable
class Tabled(Protocol):
    """What can be drawn from its arrays alone."""

    @property
    def dataset(self) -> xr.Dataset:
        """What the verb gives."""


@runtime_checkable
class Graphed(Protocol):
    """What can be drawn as a graph: edge scores or a circuit."""

    @property
    def dataset(self) -> xr.Dataset:
        """`score` [prompt, edge], or `in_circuit` and `strength` [edge]."""

    @property
    def graph(self) -> Any:
        """The graph whose edges these are (`interp.circuits.Graph`)."""


@runtime_checkable
class Compared(Protocol):
    """Two models' circuits."""

    @property
    def dataset(self) -> xr.Dataset:
        """What `interp.circuits.compare` gives."""

    @property
    def size(self) -> int:
        """Edges of the verdict's circuits."""

    @property
    def circuits(self) -> Any:
        """Each model's circuit of that size."""


@figure("faithfulness")
def faithfulness(curve: Tabled, *, width: float = PAGE) -> Figure:
    """The share of a model's behaviour that its strongest edges carry, over their number, beside random circuits.

    Args:
        curve: of `interp.circuits.faithfulness_curve`.
        width: of the figure in cm.

    Raises:
        MeasureError: faithfulness was refused; the message gives the reason.
    """
    data = curve.dataset
    if not np.isfinite(data["faithfulness"]).any():
        raise MeasureError(f"there is no faithfulness to draw: {data.attrs['reason']}")
    with house_style():
        figure, (ax,) = panels(1, width, 3.2)
        _random(ax, data["size"].values, data["random"])
        _line(ax, data, LINES["tuned"] | {"color": INK, "marker": "o"}, "strongest edges")
        _size_axis(ax, data["size"].values)
        ax.set_ylabel("share of the behaviour")
        ax.set_title("What a circuit carries\nall other edges ablated")
        foot_legend(figure, _handles(ax, bool(data["random"].size)))
        return figure


@figure("circuit_comparison")
def comparison(result: Compared, *, width: float = PAGE) -> Figure:
    """Two models' circuits over their size: what each carries in each model, and how far they overlap.

    Args:
        result: of `interp.circuits.compare`.
        width: of the figure in cm; under 12 the panels stand one above the other.
    """
    data = result.dataset
    sizes = data["size"].values
    with house_style():
        figure, axes = panels(3, width, 3.3)
        for ax, model in zip(axes, ("base", "tuned"), strict=False):
            _random(ax, sizes, data["random_faithfulness"].sel(model=model))
            for circuit in ("base", "tuned"):
                part = data.sel(circuit=circuit, model=model)
                _line(ax, part, LINES[circuit], f"{circuit}'s circuit")
            ax.set_title(f"Carried in {model}\nshare of behaviour")
            ax.axvline(result.size, color=GREY, linewidth=0.7, linestyle=":")
        axes[0].set_ylabel("faithfulness")
        _overlap(axes[2], data)
        for ax in axes:
            _size_axis(ax, sizes)
        names = [("base's circuit", "base"), ("tuned's circuit", "tuned")]
        handles: list[Any] = [Line2D([], [], label=text, **LINES[name]) for text, name in names]
        handles += [
            Line2D([], [], color=INK, marker="o", label="base and tuned"),
            Patch(facecolor="#c8c8c8", label="base and tuned, halves of the prompts"),
            Line2D([], [], color=INK, linestyle=":", label="one model, halves of the prompts"),
            Line2D([], [], color=GREY, marker=".", linewidth=0, label="random circuits"),
        ]
        foot_legend(figure, handles)
        return figure


def _overlap(ax: Axes, data: xr.Dataset) -> None:
    sizes = data["size"].values
    half = data["half_overlap"]
    between = half.sel(pair="base-tuned").quantile([0.025, 0.975], "split")
    ax.fill_between(sizes, *between.values, color="#c8c8c8", linewidth=0)
    within = half.sel(pair=["base-base", "tuned-tuned"]).mean(("pair", "split"))
    ax.plot(sizes, within.values, color=INK, linestyle=":")
    ax.plot(sizes, data["edge_overlap"].values, color=INK, marker="o")
    _random(ax, sizes, data["random_edge_overlap"])
    ax.set_title("Edges in common\nJaccard")
    ax.set_ylabel("overlap")
    ax.set_ylim(0, 1.04)


def _line(ax: Axes, data: xr.Dataset, style: dict[str, Any], label: str) -> None:
    sizes, values = data["size"].values, data["faithfulness"].values
    low, high = data["faithfulness_low"].values, data["faithfulness_high"].values
    ax.fill_between(sizes, low, high, color=style["color"], alpha=0.16, linewidth=0)
    ax.plot(sizes, values, label=label, clip_on=False, zorder=3, **style)


def _random(ax: Axes, sizes: np.ndarray, values: xr.DataArray) -> None:
    for row in values.transpose("draw", "size").values:
        ax.plot(sizes, row, color=GREY, marker=".", markersize=4, linewidth=0, alpha=0.8, zorder=2)


def _handles(ax: Axes, random: bool) -> list[Any]:
    handles: list[Any] = list(ax.get_legend_handles_labels()[0])
    handles.append(Patch(facecolor="#bbbbbb", alpha=0.6, label="95 % interval over prompts"))
    if random:
        handles.append(Line2D([], [], color=GREY, marker=".", linewidth=0, label="random circuits"))
    return handles


def _size_axis(ax: Axes, sizes: np.ndarray) -> None:
    ax.set_xscale("log")
    every = max(1, -(-len(sizes) // 5))
    shown = [int(size) for size in sizes[::-1][::every]]
    ax.set_xticks(shown, [f"{size:,}".replace(",", "\N{THIN SPACE}") for size in shown])
    ax.minorticks_off()
    ax.set_xlabel("edges")
    ax.grid(axis="y")
    zero_line(ax)


@figure("edge_scores")
@figure("circuit", needs=("strength",))
def graph(
    result: Graphed,
    edges: int | Iterable[int] | None = None,
    *,
    states: xr.DataArray | None = None,
    title: str = "",
    width: float = PAGE,
) -> Figure:
    """A circuit as a graph: layers from bottom to top, heads side by side, MLPs at the right, edges as wide as strong.

    Blue edges hold the metric up (corrupting them lowers it), vermilion ones hold it down. Only nodes on a path from an
    input to the logits are named; an edge into a query, key or value is marked so where it enters, when there is room.

    Args:
        result: of `interp.circuits.edge_attribution` or `interp.circuits.choose`.
        edges: which edges, by index, or how many of the strongest; None is the circuit's own, or the 40 strongest.
            Those on no path are left out.
        states: what became of each component (`state` of a comparison's dataset), as the colour of nodes.
        title: above the drawing.
        width: of the figure in cm.

    Raises:
        MeasureError: no edge is on a path from an input to the logits.
    """
    whole, strength = result.graph, _strength(result.dataset)
    shown = whole.connected(_edges(result.dataset, edges, strength))
    if not len(shown):
        raise MeasureError("no edge lies on a path from an input to the logits; take a larger circuit")
    places, rows = _layout(whole, shown)
    # A row says which layer its heads are of: many abreast need no more than their number.
    most = max(len(each.nodes) for each in whole.writings)
    short = width * 0.72 / 1.16 / most < 1.15
    strength = strength[shown]
    with house_style():
        figure = sheet(width, 0.9 + 0.52 * len(rows))
        ax = figure.subplots()
        _rows(ax, rows)
        order = np.argsort(np.abs(strength), kind="stable")
        for index in order:
            _draw_edge(ax, whole, int(shown[index]), float(strength[index]), float(np.abs(strength).max()), places)
        _draw_nodes(ax, places, states, short=short)
        ax.set_xlim(-0.13, 1.06)
        ax.set_ylim(-0.6, len(rows) - 0.4)
        ax.set_axis_off()
        if title:
            ax.set_title(title)
        foot_legend(figure, _graph_handles(states, places, strength))
        return figure


def _strength(data: xr.Dataset) -> np.ndarray:
    """A number an edge: what a circuit was chosen by, or the mean score over prompts."""
    if "strength" in data:
        return np.asarray(data["strength"].values)
    weights = data["prompts"].values / data["prompts"].values.sum()
    return np.asarray(np.einsum("p,pe->e", weights, data["score"].values, dtype=np.float64))


def _edges(data: xr.Dataset, edges: int | Iterable[int] | None, strength: np.ndarray) -> np.ndarray:
    if edges is None and "in_circuit" in data:
        return np.flatnonzero(data["in_circuit"].values)
    if edges is None or isinstance(edges, int):
        return np.argsort(-np.abs(strength), kind="stable")[: STRONGEST if edges is None else edges]
    return np.asarray(list(edges), dtype=int)


def _layout(whole: Any, shown: np.ndarray) -> tuple[dict[str, tuple[float, float]], list[str]]:
    """Where each node stands, and what each row is called, from the bottom."""
    named = sorted({int(node) for node in whole.edges[shown, 0]})
    rows: list[str] = []
    places: dict[str, tuple[float, float]] = {}
    for writing in whole.writings:
        present = [node for node in named if node in writing.nodes]
        if not present:
            continue
        stack = f"{writing.stack} " if writing.stack else ""
        words = {
            "input": f"{stack}input",
            "heads": f"{stack}heads {writing.layer}",
            "mlp": f"{stack}MLP {writing.layer}",
        }
        rows.append(words[writing.kind])
        for node in present:
            share = (node - writing.nodes.start + 0.5) / len(writing.nodes)
            across = {"input": 0.5, "heads": 0.02 + 0.72 * share, "mlp": 0.9}[writing.kind]
            places[whole.nodes[node]] = (across, float(len(rows) - 1))
    rows.append("logits")
    places["logits"] = (0.5, float(len(rows) - 1))
    return places, rows


def _rows(ax: Axes, rows: list[str]) -> None:
    for height, name in enumerate(rows):
        if height % 2:
            ax.axhspan(height - 0.5, height + 0.5, color="#f6f6f6", linewidth=0, zorder=0)
        ax.text(-0.13, height, name, fontsize=7.5, color="#777777", va="center", ha="left", zorder=1)


def _draw_edge(ax: Axes, whole: Any, edge: int, strength: float, largest: float, places: dict[str, Any]) -> None:
    source, destination = whole.edges[edge]
    begin = places[whole.nodes[source]]
    name = whole.destinations[destination]
    share = abs(strength) / largest
    targets = [whole.nodes[node] for node in whole.feeds[destination]] or ["logits"]
    for target in targets:
        if target not in places:
            continue
        end = places[target]
        part = name.split(".")[-1]
        shift = {"q": -0.012, "k": 0.0, "v": 0.012}.get(part, 0.0)
        bend = 0.10 if abs(begin[0] - end[0]) < 0.03 and end[1] - begin[1] > 1 else 0.03
        arrow = FancyArrowPatch(
            (begin[0], begin[1] + 0.17),
            (end[0] + shift, end[1] - 0.2),
            connectionstyle=f"arc3,rad={bend}",
            arrowstyle="-",
            linewidth=0.4 + 5.2 * share,
            color=UP if strength < 0 else DOWN,
            alpha=0.3 + 0.6 * share**0.5,
            capstyle="round",
            zorder=2,
        )
        ax.add_patch(arrow)
        if part in ("q", "k", "v"):
            ax.text(
                end[0] + shift, end[1] - 0.24, part, fontsize=5.5, ha="center", va="top", path_effects=HALO, zorder=4
            )


def _draw_nodes(ax: Axes, places: dict[str, tuple[float, float]], states: xr.DataArray | None, *, short: bool) -> None:
    known = {} if states is None else dict(zip(states["component"].values, states.values, strict=True))
    for name, (across, height) in places.items():
        colour = _STATES.get(str(known.get(name, "")), "white")
        dark = colour in _DARK
        text = name.split(".", 1)[1] if name.startswith(("encoder.", "cross.")) else name
        if short and "H" in text:
            text = text[text.index("H") :]
        ax.text(
            across,
            height,
            text,
            fontsize=7.5,
            ha="center",
            va="center",
            color="white" if dark else INK,
            zorder=5,
            bbox={"boxstyle": "round,pad=0.28", "facecolor": colour, "edgecolor": "#555555", "linewidth": 0.7},
        )


def _graph_handles(states: xr.DataArray | None, places: dict[str, Any], strength: np.ndarray) -> list[Any]:
    handles: list[Any] = [Line2D([], [], color=UP, linewidth=3, label="holds the metric up")]
    if (strength > 0).any():
        handles.append(Line2D([], [], color=DOWN, linewidth=3, label="holds it down"))
    if states is not None:
        there = {str(states.sel(component=name).item()) for name in places if name != "logits"}
        handles += [
            Patch(facecolor=colour, edgecolor="#555555", label=name)
            for name, colour in _STATES.items()
            if name in there
        ]
    return handles


@figure("path_patching", needs=("effect",))
def paths(result: Tabled, *, width: float = PAGE) -> Figure:
    """What each sender (a row) tells each receiver (a column), as a share of the gap between the two runs.

    Where the runs do not differ enough for a share, the mean effect is drawn. White: there is no such path.

    Args:
        result: of `interp.circuits.path_patching`.
        width: of the figure in cm.
    """
    data = result.dataset
    table, label = data["recovery"].values, "share of the gap"
    if not np.isfinite(table).any():
        table, label = data["effect"].mean("prompt").values, f"{data.attrs['metric']}, patched less recipient"
    drawn = np.flatnonzero(np.isfinite(table).any(1))
    with house_style():
        names = data["component"].values[drawn], data["site"].values
        return _map(table[drawn], names, f"Paths: {label}", "receiver", width)


@figure("head_changes", needs=("recovery",))
def parts(result: Tabled, *, width: float = PAGE) -> Figure:
    """How much of the metric each part of a head, taken from tuned, brings back: heads as rows, parts as columns.

    Args:
        result: of `interp.circuits.head_changes`.
        width: of the figure in cm.
    """
    data = result.dataset
    with house_style():
        names = data["label"].values, data["part"].values
        return _map(data["recovery"].values, names, "Parts of heads: share of the gap", "taken from tuned", width)


def _map(table: np.ndarray, names: tuple[np.ndarray, np.ndarray], title: str, xlabel: str, width: float) -> Figure:
    """A table as colours about 0, with its numbers where there is room."""
    rows, columns = table.shape
    bound = float(np.nanmax(np.abs(table), initial=0.0)) or 1.0
    figure = sheet(min(width, 4.5 + 1.5 * columns), float(np.clip(0.28 * rows + 1.6, 2.4, 8.5)))
    ax = figure.subplots()
    mesh = ax.pcolormesh(np.ma.masked_invalid(table), norm=Normalize(-bound, bound), cmap=DIVERGING, rasterized=True)
    ax.set_ylim(rows, 0)
    shown, across = index_ticks(rows, 26), index_ticks(columns, 14)
    ax.set_yticks(np.array(shown) + 0.5, names[0][shown])
    ax.set_xticks(np.array(across) + 0.5, names[1][across])
    ax.tick_params(length=2)
    ax.set_xlabel(xlabel)
    ax.set_title(title)
    if rows <= 26 and columns <= 8:
        for (row, column), value in np.ndenumerate(table):
            if np.isfinite(value):
                colour = "white" if abs(value) > 0.6 * bound else INK
                ax.text(column + 0.5, row + 0.5, f"{value:.2g}", ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(mesh, ax=ax, pad=0.02).outline.set_visible(False)
    return figure


@figure("circuit_comparison")
def circuit(result: Compared, model: Literal["base", "tuned"] = "tuned", *, width: float = PAGE) -> Figure:
    """One model's circuit of a comparison as a graph, nodes coloured by what became of them.

    Args:
        result: of `interp.circuits.compare`.
        model: whose circuit.
        width: of the figure in cm.
    """
    title = f"{model}'s circuit\nits {result.size} strongest edges, those on a path"
    return graph(result.circuits[model], states=result.dataset["state"], title=title, width=width)
