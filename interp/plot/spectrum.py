"""In which directions weights moved: effective rank and singular values of every matrix's change."""

from __future__ import annotations

import re

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from interp.plot.registry import figure
from interp.plot.runs import marks
from interp.plot.style import NARROW, PAGE, SEQUENTIAL, SKY, Result, any_of, has, house_style, need, others, sheet

_ROWS = 16


@figure("comparison", needs=any_of("effective_rank"))
def singular_directions(cmp: Result, *, rows: int = _ROWS, width: float = PAGE) -> Figure:
    """Effective rank of the matrices that changed most, and how large and how new its leading directions are.

    Args:
        cmp: a comparison.
        rows: how many matrices, those with the largest relative change.
        width: of the figure in cm; under 12 the panels stand one above the other.

    Raises:
        MeasureError: `effective_rank` was not measured.
    """
    data = cmp.dataset
    need(data, ("effective_rank",), "weights")
    rank = data["effective_rank"].values
    size = data["param_change"].values if "param_change" in data else rank
    known = np.flatnonzero(np.isfinite(rank))
    chosen = known[np.argsort(-np.nan_to_num(size[known], posinf=np.inf), kind="stable")][:rows]
    names = [short_name(str(n)) for n in data["param"].values[chosen]]
    maps = {
        "Change along its\nleading directions": ("singular_change", "share of ‖base‖"),
        "Lies in base's\nleading directions": ("singular_overlap", "overlap (0 to 1)"),
    }
    maps = {title: pair for title, pair in maps.items() if has(data, pair[0])}
    with house_style():
        figure, axes = _sheets(1 + len(maps), len(names), width)
        _ranks(
            axes[0], rank[chosen], {k: [a.values[chosen] for a in v] for k, v in others(cmp, "effective_rank").items()}
        )
        for ax, (title, (name, label)) in zip(axes[1:], maps.items(), strict=True):
            values = data[name].isel(param=chosen).transpose("param", "weight_direction").values
            top = 1.0 if name == "singular_overlap" else float(np.nanmax(values, initial=0.0)) or 1.0
            mesh = _map(ax, values, title, top)
            bar = figure.colorbar(mesh, ax=ax, label=label, location="bottom", aspect=16, pad=0.02)
            bar.outline.set_visible(False)
        for ax in axes:
            ax.set_yticks(range(len(names)), names)
            ax.tick_params(axis="y", length=0, labelleft=ax is axes[0] or width < NARROW)
        return figure


def _sheets(count: int, rows: int, width: float) -> tuple[Figure, list[Axes]]:
    height = max(1.3, rows * 0.19)
    if width < NARROW:
        figure = sheet(width, count * (height + 1.3))
        return figure, list(figure.subplots(count, 1, squeeze=False)[:, 0])
    figure = sheet(width, height + 1.7)
    return figure, list(figure.subplots(1, count, squeeze=False, width_ratios=[1.2] + [1] * (count - 1))[0])


def _ranks(ax: Axes, values: np.ndarray, runs: dict[str, list[np.ndarray]]) -> None:
    rows = np.arange(len(values))
    ax.barh(rows, values, color=SKY, height=0.56)
    handles = marks(ax, rows, runs)
    ax.set_ylim(len(values) - 0.5, -0.5)
    ax.set_xlim(left=0)
    ax.set(title="Effective rank\nof the change", xlabel="directions (exp entropy)")
    if handles:
        ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.6 / max(1.3, len(values) * 0.19)))


def _map(ax: Axes, values: np.ndarray, title: str, top: float) -> QuadMesh:
    rows, directions = values.shape
    mesh = ax.pcolormesh(
        np.arange(directions + 1) - 0.5, np.arange(rows + 1) - 0.5, np.ma.masked_invalid(values),
        norm=Normalize(0, top), cmap=SEQUENTIAL, edgecolors="white", linewidth=0.5,
    )  # fmt: skip
    ax.set_ylim(rows - 0.5, -0.5)
    ax.set_xticks(range(directions), [str(i + 1) for i in range(directions)])
    ax.set(title=title, xlabel="direction of the change")
    ax.tick_params(length=2)
    return mesh


def short_name(name: str) -> str:
    """A parameter's name without what all of them share: "model.layers.3.mlp.up_proj.weight" is "3.mlp.up_proj"."""
    return re.sub(r"^(?:[a-z_]+\.)*?(?:layers?|blocks?|h)\.(?=\d)", "", name).removesuffix(".weight")
