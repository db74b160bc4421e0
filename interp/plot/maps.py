"""Maps over layers and heads: attribution, attention patterns, weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from interp.plot.style import (
    DIVERGING,
    GREY,
    HALO,
    INK,
    SEQUENTIAL,
    WIDTH,
    Result,
    average,
    change,
    has,
    house_style,
    index_ticks,
    need,
    number,
    units,
)

_NUMBERED = 5


def heads(cmp: Result) -> Figure:
    """Tuned minus base of every head's direct logit attribution, whole and split in write and readout.

    Raises:
        MeasureError: `head_attribution` was not measured.
    """
    data = cmp.dataset
    need(data, ("head_attribution",), "attribution")
    whole = average(change(data["head_attribution"]), "layer", "head")
    maps = {"Difference\nof the two models": whole}
    for part, title in (("write", "Change of\nwhat is written"), ("readout", "Change of\nhow it is read out")):
        if has(data, f"head_attribution_{part}"):
            maps[title] = average(data[f"head_attribution_{part}"], "layer", "head")
    controls = [
        average(change(c["head_attribution"]), "layer", "head") for c in cmp.controls if has(c, "head_attribution")
    ]
    bound = _bound([*maps.values(), *controls])
    label = f"tuned minus base [{units(data['head_attribution'], 'logits')}]"
    with house_style():
        figure, axes = _grid(whole.shape, len(maps))
        meshes = [
            _map(ax, values, title, Normalize(-bound, bound), DIVERGING)
            for ax, (title, values) in zip(axes, maps.items(), strict=True)
        ]
        _scale(figure, meshes[0], axes, label, [_extreme(c) for c in controls])
        _key(figure, {"Largest": _mark(axes[0], whole, signed=True)}, bool(controls))
        return figure


def attention_change(cmp: Result) -> Figure:
    """Jensen-Shannon divergence of every head's attention pattern, over all query positions and at the last.

    Raises:
        MeasureError: neither `pattern_js` nor `pattern_js_last` was measured.
    """
    data = cmp.dataset
    names = need(data, ("pattern_js", "pattern_js_last"), "attention")
    titles = {"pattern_js": "Mean over query positions", "pattern_js_last": "Last query position"}
    label = f"JS divergence [{units(data[names[0]], 'nats')}]"
    maps = {titles[n]: average(data[n], "layer", "head") for n in names}
    controls = [average(c[n], "layer", "head") for c in cmp.controls for n in names if has(c, n)]
    with house_style():
        return _sequential_maps(maps, controls, label)


def weights(cmp: Result) -> Figure:
    """Relative Frobenius norm of the change of every head's QK and OV circuit and of every MLP.

    Raises:
        MeasureError: none of the three was measured.
    """
    data = cmp.dataset
    names = need(data, ("qk_change", "ov_change", "mlp_change"), "weights")
    titles = {"qk_change": "QK circuit", "ov_change": "OV circuit"}
    maps = {titles[n]: average(data[n], "layer", "head") for n in names if n in titles}
    controls = [average(c[n], "layer", "head") for c in cmp.controls for n in names if n in titles and has(c, n)]
    with house_style():
        if not maps:
            figure = Figure(figsize=(4.8, 3.2), layout="constrained")
            ax = figure.subplots()
            _mlp_bars(ax, cmp)
            ax.set_ylabel("layer")
            return figure
        return _sequential_maps(maps, controls, "relative change", cmp if "mlp_change" in names else None)


def _sequential_maps(
    maps: dict[str, np.ndarray], controls: Sequence[np.ndarray], label: str, mlp: Result | None = None
) -> Figure:
    """Maps of something that is never negative on one scale from zero, and the MLPs beside them."""
    bound = _bound([*maps.values(), *controls])
    figure, axes = _grid(next(iter(maps.values())).shape, len(maps) + (mlp is not None), even=True)
    drawn = axes[: len(maps)]
    meshes = [_map(ax, v, t, Normalize(0, bound), SEQUENTIAL) for ax, (t, v) in zip(drawn, maps.items(), strict=True)]
    _scale(figure, meshes[0], drawn, label, [_extreme(c) for c in controls])
    key = {t: _mark(ax, v, signed=False) for ax, (t, v) in zip(drawn, maps.items(), strict=True)}
    if mlp is not None:
        _mlp_bars(axes[-1], mlp)
    _key(figure, key, bool(controls), bars=mlp is not None)
    return figure


def _bound(arrays: Sequence[np.ndarray]) -> float:
    """The largest magnitude; 1 where everything is zero, since a scale needs a length."""
    return max((abs(_extreme(a)) for a in arrays), default=0.0) or 1.0


def _extreme(values: np.ndarray) -> float:
    """The value of largest magnitude, with its sign."""
    known = values[np.isfinite(values)]
    return float(known[np.abs(known).argmax()]) if known.size else 0.0


def _grid(shape: tuple[int, ...], count: int, *, even: bool = False) -> tuple[Figure, list[Axes]]:
    """Panels of one height; the first of several is the widest unless `even`."""
    layers = shape[0]
    height = float(np.clip(0.21 * layers, 1.7, 4.6)) + 1.5
    figure = Figure(figsize=(WIDTH if count > 1 else 4.6, height), layout="constrained")
    ratios = None if even else [1.35] + [1.0] * (count - 1)
    return figure, list(figure.subplots(1, count, squeeze=False, width_ratios=ratios)[0])


def _map(ax: Axes, values: np.ndarray, title: str, norm: Normalize, cmap: str) -> QuadMesh:
    """One map, layer 0 on top; cells that were not measured stay white."""
    layers, heads_ = values.shape
    line = 0.6 if max(values.shape) <= 16 else 0
    mesh = ax.pcolormesh(
        np.arange(heads_ + 1) - 0.5, np.arange(layers + 1) - 0.5, np.ma.masked_invalid(values),
        norm=norm, cmap=cmap, edgecolors="white" if line else "face", linewidth=line or 0.1,
    )  # fmt: skip
    ax.set_ylim(layers - 0.5, -0.5)
    ax.set_xticks(index_ticks(heads_, 8))
    ax.set_yticks(index_ticks(layers, 16))
    ax.tick_params(length=2)
    ax.set(title=title, xlabel="head", ylabel="layer")
    return mesh


def _mark(ax: Axes, values: np.ndarray, *, signed: bool) -> str:
    """Outline and number the cells of largest magnitude; returns the words of the key."""
    sizes = np.where(np.isfinite(values), np.abs(values), 0).ravel()
    order = [int(i) for i in np.argsort(-sizes, kind="stable")[:_NUMBERED] if sizes[i] > 0]
    words = []
    small = max(values.shape) > 16
    for rank, flat in enumerate(order, 1):
        layer, head = divmod(flat, values.shape[1])
        ax.add_patch(Rectangle((head - 0.5, layer - 0.5), 1, 1, fill=False, edgecolor=INK, linewidth=1.1, zorder=3))
        # beside the cell where it is too small to hold a digit, on the side that has room
        side = (1 if head < values.shape[1] / 2 else -1) if small else 0
        label = ax.annotate(
            str(rank), (head + side * 0.5, layer), xytext=(side * 2, 0), textcoords="offset points", fontsize=8,
            ha={0: "center", 1: "left", -1: "right"}[side], va="center", fontweight="bold", color="black", zorder=4,
        )  # fmt: skip
        label.set_path_effects(HALO)
        words.append(f"{rank} L{layer}H{head} {number(float(values[layer, head]), signed=signed)}")
    return "   ".join(words) or "every cell is zero"


def _scale(figure: Figure, mesh: QuadMesh, axes: Sequence[Axes], label: str, controls: Sequence[float]) -> None:
    bar = figure.colorbar(mesh, ax=list(axes), label=label, aspect=24, pad=0.015)
    bar.outline.set_visible(False)
    for value in controls:
        bar.ax.axhline(value, color=GREY, linewidth=2.4)
        bar.ax.axhline(value, color="white", linewidth=0.8, linestyle=":")


def _key(figure: Figure, lines: dict[str, str], controls: bool, *, bars: bool = False) -> None:
    """What the numbers in the cells stand for, under the maps."""
    text = "\n".join(f"{title}:  {words}" for title, words in lines.items())
    if controls:
        text += "\nGrey lines are controls: on the scale, the largest value of each" + ("; on a bar, its value" * bars)
    figure.supxlabel(text, x=0.01, ha="left", fontsize=8, linespacing=1.5)


def _mlp_bars(ax: Axes, cmp: Result) -> None:
    values = average(cmp.dataset["mlp_change"], "layer")
    ax.barh(range(len(values)), values, color="#56B4E9", height=0.7)
    controls: list[xr.DataArray] = [c["mlp_change"] for c in cmp.controls if has(c, "mlp_change")]
    for array in controls:
        ends = np.arange(len(values))
        ax.vlines(average(array, "layer"), ends - 0.35, ends + 0.35, color=GREY, linewidth=1.2, path_effects=HALO)
    ax.set_ylim(len(values) - 0.5, -0.5)
    ax.set_yticks(index_ticks(len(values), 16))
    ax.set(title="MLP", xlabel="relative change")
    ax.set_xlim(left=0)
