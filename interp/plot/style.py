"""What all figures share: the house style, colours, and how an array is reduced to what is drawn."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from typing import Any, Protocol, runtime_checkable

import matplotlib.style
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import AbstractPathEffect, withStroke

from interp.errors import MeasureError
from interp.plot.text import FONT

PAGE, COLUMN = 17.0, 8.5  # cm: widths of a page and of a column, so that 8 pt stay 8 pt in print
NARROW = 12.0  # cm: below it panels stand one above the other
LETTER = 0.152  # cm of a letter at 8 pt, on average
_CM = 1 / 2.54  # inches
BASE, TUNED = "#0072B2", "#D55E00"  # Okabe and Ito, told apart with any colour vision
WRITE, READOUT = "#009E73", "#CC79A7"
SKY = "#56B4E9"  # a single quantity of both
GREY, INK, BAND = "#7d7d7d", "#222222", "#f3f3f3"
HALO: list[AbstractPathEffect] = [
    withStroke(linewidth=2.6, foreground="white")
]  # keeps a thin mark visible on any colour
DIVERGING, SEQUENTIAL = "RdBu_r", "viridis"

LINES: dict[str, dict[str, Any]] = {
    "base": {"color": BASE, "linestyle": "--", "marker": "o", "markerfacecolor": "white"},
    "tuned": {"color": TUNED, "linestyle": "-", "marker": "s"},
    "given": {"color": INK, "linestyle": "-.", "marker": "^"},
    "tuned through base's head": {"color": WRITE, "linestyle": "-.", "marker": "^"},
    "last prompt token": {"color": INK, "linestyle": "--", "marker": "o", "markerfacecolor": "white"},
}

_RC: dict[str, Any] = {
    "font.family": [FONT],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.edgecolor": "#666666",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.color": "#e2e2e2",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "text.color": INK,
    "axes.labelcolor": INK,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.columnspacing": 1.4,
    "legend.handlelength": 1.8,
    "legend.handletextpad": 0.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "hatch.linewidth": 0.6,
    "figure.constrained_layout.h_pad": 0.07,
    "figure.constrained_layout.w_pad": 0.07,
    "figure.dpi": 110,
    "savefig.dpi": 200,
}


@runtime_checkable
class Result(Protocol):
    """What can be drawn: a dataset of measures, those of its controls, and a table of findings."""

    @property
    def dataset(self) -> xr.Dataset:
        """Measures of base and tuned."""

    @property
    def controls(self) -> tuple[xr.Dataset, ...]:
        """The same measures of base and every control run."""

    def summary(self) -> pd.DataFrame:
        """One row a finding."""


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Draw in the house style whatever the caller's own settings are; those come back afterwards."""
    with matplotlib.style.context(["default", _RC]):
        yield


def has(data: xr.Dataset, name: str) -> bool:
    """Whether `name` was measured and holds at least one number."""
    return name in data and bool(np.isfinite(data[name].values).any())


def any_of(*names: str) -> Callable[[xr.Dataset], bool]:
    """What a figure needs that can be drawn of any of these variables."""
    return lambda data: any(has(data, name) for name in names)


def joined(name: str) -> Callable[[xr.Dataset], bool]:
    """What a figure needs that shows what a measure joined to a comparison."""
    return lambda data: name in json.loads(data.attrs.get("joins", "{}"))


def need(data: xr.Dataset, names: tuple[str, ...], measure: str, *, without: str | None = None) -> tuple[str, ...]:
    """Those of `names` that were measured.

    Args:
        data: a comparison's dataset.
        names: variables of which one is needed.
        measure: what gives them.
        without: why they may be absent though the measure was taken, with the remedy.

    Raises:
        MeasureError: none was; the message names the measure to ask for, or says `without`.
    """
    found = tuple(name for name in names if has(data, name))
    if not found:
        remedy = without or f"ask for it: compare(..., measures=[{measure!r}, ...])"
        raise MeasureError(f"this comparison has no {' or '.join(names)}; {remedy}")
    return found


def other_runs(cmp: Result, name: str) -> dict[str, list[xr.Dataset]]:
    """The runs that measured `name`: "control runs", and "replicates" where the result has any."""
    kinds = {"control runs": cmp.controls, "replicates": getattr(cmp, "replicates", ())}
    return {kind: found for kind, runs in kinds.items() if (found := [run for run in runs if has(run, name)])}


def others(cmp: Result, name: str) -> dict[str, list[xr.DataArray]]:
    """What other runs give for the variable `name`, by kind of run."""
    return {kind: [run[name] for run in runs] for kind, runs in other_runs(cmp, name).items()}


def units(array: xr.DataArray, default: str) -> str:
    """The unit that the array carries, or `default`."""
    return str(array.attrs.get("units") or default)


def change(array: xr.DataArray) -> xr.DataArray:
    """Tuned minus base."""
    return array.sel(model="tuned", drop=True) - array.sel(model="base", drop=True)


def average(array: xr.DataArray, *keep: str) -> np.ndarray:
    """Mean over every dimension but `keep`, ignoring padding."""
    others = [d for d in array.dims if d not in keep]
    return array.mean(others).transpose(*keep).values.astype(float)


def quartiles(array: xr.DataArray, along: str) -> tuple[np.ndarray, np.ndarray] | None:
    """First and third quartile over prompts at every point of `along`; None where there is but one prompt."""
    if "prompt" not in array.dims or array.sizes["prompt"] < 2:
        return None
    others = [d for d in array.dims if d not in ("prompt", along)]
    values = array.mean(others).transpose("prompt", along).values.astype(float)
    low, high = np.full((2, values.shape[1]), np.nan)
    for i, column in enumerate(values.T):
        known = column[np.isfinite(column)]
        if len(known) > 1:
            low[i], high[i] = np.quantile(known, (0.25, 0.75))
    return low, high


def number(value: float, *, signed: bool = False) -> str:
    """Three significant digits with a true minus sign; NaN is a dash."""
    if not np.isfinite(value):
        return "–"
    digits = max(0, 2 - int(np.floor(np.log10(abs(value))))) if value and abs(value) >= 1e-3 else 0
    text = f"{value:.{min(digits, 3)}f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"
    sign = "+" if signed and value > 0 else ""
    return sign + text.replace("-", "−")


def span(low: float, high: float) -> str:
    """A range in words; one number where both ends read the same."""
    ends = [number(low), number(high)]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


class NotebookFigure(Figure):
    """A figure that a notebook shows as the last line of a cell, with no pyplot and no `%matplotlib inline`."""

    def _repr_png_(self) -> bytes:
        memory = BytesIO()
        self.savefig(memory, format="png")
        return memory.getvalue()


def sheet(width: float, height: float) -> Figure:
    """An empty figure, `width` in cm and `height` in inches."""
    return NotebookFigure(figsize=(width * _CM, height), layout="constrained")


def panels(
    count: int, width: float, height: float, *, ratios: list[float] | None = None, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """`count` axes abreast, or one above the other where the figure is narrow; one alone takes two thirds of a page."""
    if width < NARROW:
        figure = sheet(width, height * count)
        return figure, list(figure.subplots(count, 1, squeeze=False)[:, 0])
    figure = sheet(width if count > 1 else width * 0.66, height)
    return figure, list(figure.subplots(1, count, squeeze=False, sharey=sharey, width_ratios=ratios)[0])


def foot_legend(figure: Figure, handles: Sequence[Any]) -> None:
    """One legend for all panels under them, where no curve can run through it, in as many columns as fit."""
    longest = max((len(str(handle.get_label())) for handle in handles), default=1)
    columns = max(1, min(4, int((figure.get_figwidth() / _CM - 0.4) / (longest * LETTER + 1.3))))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def zero_line(ax: Axes, *, vertical: bool = False) -> None:
    """A thin line at zero."""
    (ax.axvline if vertical else ax.axhline)(0, color=INK, linewidth=0.7, zorder=1)


def band_patch() -> Patch:
    """The legend's entry for a shaded band."""
    return Patch(facecolor="#bbbbbb", alpha=0.5, linewidth=0, label="middle half of prompts")


def index_ticks(count: int, most: int = 13) -> list[int]:
    """Evenly spaced indices, first one included, at most `most` of them."""
    step = -(-count // most)
    if step > 2:  # steps that a reader counts in
        step = next(s for s in (4, 5, 8, 10, 16, 20, 32, 50, 64, 100, 128, 256, 512, 1024) if s >= step)
    return list(range(0, count, step))
