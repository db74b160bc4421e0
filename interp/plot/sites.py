"""The logit lens at every layer and position of a prompt."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from interp.errors import MeasureError
from interp.plot.registry import figure
from interp.plot.style import (
    PAGE,
    SEQUENTIAL,
    Result,
    any_of,
    average,
    house_style,
    index_ticks,
    need,
    sheet,
    units,
)
from interp.plot.text import drawable

_CELL = 0.62  # cm of a figure's width that a cell needs for its label, and so the fewest that a token's text needs
_LETTER = 0.17  # cm of a letter at 8 pt
_MARGIN = 3.4  # cm beside the map: labels of the layers, scale
_FINE = 800


@figure("comparison", needs=any_of("lens_pos_kl"))
def lens_positions(cmp: Result, *, prompt: int | None = 0, width: float = PAGE) -> Figure:
    """KL(tuned ‖ base) of the two models' logit lenses at every layer and position.

    Where the cells are wide enough they hold tuned's likeliest token, in bold where it is not base's.

    Args:
        cmp: a comparison.
        prompt: which prompt, by place; None is the mean over prompts, position by position.
        width: of the figure in cm.

    Raises:
        MeasureError: `lens_pos_kl` was not measured.
    """
    data = cmp.dataset
    need(data, ("lens_pos_kl",), "lens_positions")
    count = data.sizes["prompt"]
    if prompt is not None and not -count <= prompt < count:
        raise MeasureError(f"there is no prompt {prompt}; this comparison has {count}, from 0 on")
    part = data if prompt is None else data.isel(prompt=[prompt])
    values = average(part["lens_pos_kl"], "site", "pos")
    known = np.flatnonzero(np.isfinite(values).any(0))
    values = values[:, : known[-1] + 1] if len(known) else values[:, :1]
    sites, positions = values.shape
    cell = (width - _MARGIN) / positions
    letters = int(min(cell, 3.0) / _LETTER) - 1
    written = part if prompt is not None and letters >= 3 and "lens_pos_top_token" in part else None
    row = 0.24 if written is not None else float(np.clip(3.2 / sites, 0.06, 0.2))
    with house_style():
        figure = sheet(width, sites * row + 2.1)
        ax = figure.subplots()
        mesh = _cells(ax, values)
        if written is not None:
            _write(ax, written, values, mesh, letters)
        _axes(ax, data, part, positions, prompt, cell)
        bar = figure.colorbar(mesh, ax=ax, label=f"KL [{units(data['lens_pos_kl'], 'nats')}]", aspect=24, pad=0.015)
        bar.outline.set_visible(False)
        return figure


def _cells(ax: Axes, values: np.ndarray) -> QuadMesh:
    sites, positions = values.shape
    top = float(np.nanmax(values)) if np.isfinite(values).any() else 0.0
    line = 0.5 if max(values.shape) <= 24 else 0
    return ax.pcolormesh(
        np.arange(positions + 1) - 0.5, np.arange(sites + 1) - 0.5, np.ma.masked_invalid(values),
        norm=Normalize(0, top or 1.0), cmap=SEQUENTIAL, edgecolors="white" if line else "face", linewidth=line or 0.1,
        rasterized=values.size > _FINE,
    )  # fmt: skip


def _write(ax: Axes, part: xr.Dataset, values: np.ndarray, mesh: QuadMesh, letters: int) -> None:
    tokens = part["lens_pos_top_token"].isel(prompt=0).transpose("model", "site", "pos")
    base, tuned = (tokens.sel(model=m).values for m in ("base", "tuned"))
    for site, pos in zip(*np.nonzero(np.isfinite(values)), strict=True):
        red, green, blue, _ = mesh.cmap(mesh.norm(values[site, pos]))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
        ax.text(
            pos, site, drawable(str(tuned[site, pos]), letters), ha="center", va="center", fontsize=8,
            color="white" if dark else "black",
            fontweight="bold" if tuned[site, pos] != base[site, pos] else "normal",
        )  # fmt: skip


def _axes(ax: Axes, data: xr.Dataset, part: xr.Dataset, positions: int, prompt: int | None, cell: float) -> None:
    sites = data.sizes["site"]
    ax.set_ylim(sites - 0.5, -0.5)
    ticks = [t for t in index_ticks(sites - 1, 12) if sites - 1 - t > sites / 14 or t == 0]
    ax.set_yticks([*ticks, sites - 1], [*map(str, ticks), "end"])
    ax.set_ylabel("layer entered")
    ax.tick_params(length=2)
    if prompt is not None and "tokens" in part and cell >= _CELL * 0.6:
        words = [drawable(str(t), 12) for t in part["tokens"].isel(prompt=0).values[:positions]]
        upright = max(map(len, words)) * _LETTER > cell
        ax.set_xticks(range(positions), words, rotation=90 if upright else 0)
        ax.set_xlabel("token read")
    else:
        ax.set_xticks(index_ticks(positions, 12))
        ax.set_xlabel("position in the prompt (0: first token)")
    where = f"prompt {prompt}" if prompt is not None else f"mean over {data.sizes['prompt']} prompts"
    ax.set_title(f"How far apart they read\n{where}")
