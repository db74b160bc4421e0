"""Over positions: divergence and entropy in the prompt and, apart from it, along the response."""

from __future__ import annotations

from typing import Any

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from interp.plot.lines import curves, legend
from interp.plot.registry import figure
from interp.plot.style import NARROW, PAGE, Result, any_of, has, house_style, need, others, panels, sheet, units

_PROMPT, _RESPONSE = "position in the prompt (0: first token)", "token of the response (0: first)"
_SAYS = {"kl": "KL(tuned ‖ base)", "js": "JS"}


@figure("comparison", needs=any_of("kl", "response_kl"))
def kl(cmp: Result, *, width: float = PAGE) -> Figure:
    """KL(tuned ‖ base) and JS by prompt position and, apart from it, by response token.

    Args:
        cmp: a comparison.
        width: of the figure in cm; under 12 the panels stand one above the other.

    Raises:
        MeasureError: neither `kl` nor `response_kl` was measured.
    """
    data = cmp.dataset
    columns = need(data, ("kl", "response_kl"), "kl")
    rows = [tuple(n for n in columns)]
    if has(data, "js") or has(data, "response_js"):
        rows.append(tuple(n.replace("kl", "js") for n in columns))
    with house_style():
        figure, grid = _grid(len(rows), len(columns), width)
        handles: list[Any] = []
        for names, axes in zip(rows, grid, strict=True):
            for ax, name in zip(axes, names, strict=True):
                handles += _divergence(ax, cmp, name)
            # last, since it ends the scaling to what is drawn
            top = max(ax.get_ylim()[1] for ax in axes) or 1.0
            for ax in axes:
                ax.set_ylim(0, top)
        legend(figure, handles)
        return figure


def _grid(rows: int, columns: int, width: float) -> tuple[Figure, list[list[Axes]]]:
    """Rows of axes; in a narrow figure all of them one above the other."""
    if width < NARROW:
        figure = sheet(width, 2.6 * rows * columns + 0.6)
        flat = list(figure.subplots(rows * columns, 1, squeeze=False)[:, 0])
        return figure, [flat[i * columns : (i + 1) * columns] for i in range(rows)]
    figure = sheet(width if columns > 1 else width * 0.66, 2.6 * rows + 0.5)
    return figure, [list(row) for row in figure.subplots(rows, columns, squeeze=False)]


def _divergence(ax: Axes, cmp: Result, name: str) -> list[Any]:
    data, kind = cmp.dataset, name.removeprefix("response_")
    array, runs = data[name], others(cmp, name)
    if name == kind:
        handles = curves(ax, {"prompt": array}, "pos", runs)
        _axis(ax, "Prompt", _PROMPT)
    else:
        sources = {str(s): array.sel(source=s) for s in array["source"].values}
        sources = {s: a for s, a in sources.items() if bool(a.notnull().any())}
        handles = curves(ax, sources, "step", {k: [_own(r) for r in v] for k, v in runs.items()}, label="text of {}")
        _axis(ax, "Response", _RESPONSE)
    ax.set_title(f"{_SAYS[kind]}: {ax.get_title(loc='left').lower()}")
    ax.set_ylabel(f"{_SAYS[kind]} [{units(array, 'nats')}]")
    return handles


def _own(array: xr.DataArray) -> xr.DataArray:
    """Along the text of tuned where it was sampled, or of the first source there is."""
    sources = [str(s) for s in array["source"].values]
    return array.sel(source="tuned" if "tuned" in sources else sources[0])


@figure("comparison", needs=any_of("position_entropy", "response_entropy"))
def entropy(cmp: Result, *, width: float = PAGE) -> Figure:
    """Entropy of both models' next-token prediction by prompt position and along the response.

    Args:
        cmp: a comparison.
        width: of the figure in cm; under 12 the panels stand one above the other.

    Raises:
        MeasureError: neither `position_entropy` nor `response_entropy` was measured.
    """
    data = cmp.dataset
    names = need(data, ("position_entropy", "response_entropy"), "kl")
    with house_style():
        figure, axes = panels(len(names), width, 2.9)
        handles: list[Any] = []
        for ax, name in zip(axes, names, strict=True):
            response = name == "response_entropy"

            def reduced(array: xr.DataArray, model: str, response: bool = response) -> xr.DataArray:
                return (_own(array) if response else array).sel(model=model)

            runs = {k: [reduced(r, "tuned") for r in v] for k, v in others(cmp, name).items()}
            both = {m: reduced(data[name], m) for m in ("base", "tuned")}
            handles += curves(ax, both, "step" if response else "pos", runs)
            words = _source_words(data[name]) if response else ""
            _axis(ax, f"Response{words}" if response else "Prompt", _RESPONSE if response else _PROMPT)
            ax.set_ylabel(f"entropy [{units(data[name], 'nats')}]")
        top = max(ax.get_ylim()[1] for ax in axes)
        for ax in axes:
            ax.set_ylim(0, top)
        legend(figure, handles)
        return figure


def _source_words(array: xr.DataArray) -> str:
    source = str(_own(array)["source"].item())
    return {"tuned": ": text of tuned", "base": ": text of base"}.get(source, ": text given")


def _axis(ax: Axes, title: str, label: str) -> None:
    ax.set_title(title)
    ax.set_xlabel(label)
    ax.grid(axis="y")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
