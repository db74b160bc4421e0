"""Maps over layers and heads: attribution, attention patterns, weights."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from interp.plot.bars import completeness_words
from interp.plot.registry import figure
from interp.plot.runs import marks
from interp.plot.style import (
    DIVERGING,
    GREY,
    HALO,
    INK,
    NARROW,
    PAGE,
    SEQUENTIAL,
    SKY,
    TUNED,
    Result,
    any_of,
    average,
    change,
    has,
    house_style,
    index_ticks,
    need,
    number,
    others,
    sheet,
    units,
)

_NUMBERED = 5
_FINE = 400  # cells; a finer map becomes a picture inside the figure, which is smaller and drawn faster
_PATTERNS = {  # words beside other stacks, and alone
    "pattern_js": ("Decoder,\nmean over queries", "Mean over query positions"),
    "pattern_js_last": ("Decoder,\nlast query", "Last query position"),
    "cross_pattern_js": ("Decoder to encoder,\nmean over queries", "Decoder to encoder"),
    "cross_pattern_js_last": ("Decoder to encoder,\nlast query", "Decoder to encoder, last query"),
    "encoder_pattern_js": ("Encoder,\nmean over queries", "Encoder"),
}
_ENTROPIES = {
    "pattern_entropy": "Decoder:\n",
    "cross_pattern_entropy": "Decoder to encoder:\n",
    "encoder_pattern_entropy": "Encoder:\n",
}
_ABREAST = 3
Runs = dict[str, list[np.ndarray]]


@figure("comparison", needs=any_of("head_attribution"))
def heads(cmp: Result, *, width: float = PAGE) -> Figure:
    """Tuned minus base of every head's direct logit attribution, whole and split in write and readout.

    Args:
        cmp: a comparison.
        width: of the figure in cm; under 12 the maps stand one above the other.

    Raises:
        MeasureError: `head_attribution` was not measured.
    """
    data = cmp.dataset
    need(data, ("head_attribution",), "attribution")
    names = [n for n in ("head_attribution", "cross_head_attribution") if has(data, n)]
    stacks = dict(zip(names, ("", "To the encoder: "), strict=False))
    maps: dict[str, np.ndarray] = {}
    for name, stack in stacks.items():
        maps[f"{stack}difference\nof the two models"] = _by_head(change(data[name]))
        for part, title in (("write", "change of\nwhat is written"), ("readout", "change of\nhow it is read out")):
            if has(data, f"{name}_{part}"):
                maps[f"{stack}{title}"] = _by_head(data[f"{name}_{part}"])
    runs = {k: [_by_head(change(a)) for a in v] for k, v in others(cmp, "head_attribution").items()}
    bound = _bound([*maps.values(), *_all(runs)])
    label = f"tuned minus base [{units(data['head_attribution'], 'logits')}]"
    with house_style():
        figure, axes = _grid(next(iter(maps.values())).shape, len(maps), width)
        words, meshes = {}, []
        for ax, (title, values) in zip(axes, maps.items(), strict=True):
            norm = Normalize(-bound, bound)
            meshes.append(head_map(ax, values, title[0].upper() + title[1:], norm, DIVERGING))
            if "difference" in title:
                words["Largest, to the encoder" if title.startswith("To") else "Largest"] = _mark(
                    ax, values, signed=True
                )
        _scale(figure, meshes[0], axes, label, runs, width)
        key(figure, words, runs, width, more=[w for w in (completeness_words(data),) if w])
        return figure


@figure("comparison", needs=any_of(*_PATTERNS))
def attention_change(cmp: Result, *, width: float = PAGE) -> Figure:
    """Jensen-Shannon divergence of every head's attention pattern, over all query positions and at the last.

    Args:
        cmp: a comparison.
        width: of the figure in cm; under 12 the maps stand one above the other.

    Raises:
        MeasureError: neither `pattern_js` nor `pattern_js_last` was measured.
    """
    data = cmp.dataset
    names = need(data, tuple(_PATTERNS), "attention")
    label = f"JS divergence [{units(data[names[0]], 'nats')}]"
    several = any(n.startswith(("encoder", "cross")) for n in names)
    words = {n: _PATTERNS[n][0] if several else _PATTERNS[n][1] for n in names}
    with house_style():
        return _sequential_maps({words[n]: _by_head(data[n]) for n in names}, _joined(cmp, names), label, width)


@figure("comparison", needs=any_of(*_ENTROPIES))
def attention_entropy(cmp: Result, *, width: float = PAGE) -> Figure:
    """Entropy of every head's attention pattern: base's, and tuned minus base.

    Args:
        cmp: a comparison.
        width: of the figure in cm; under 12 the maps stand one above the other.

    Raises:
        MeasureError: `pattern_entropy` was not measured.
    """
    data = cmp.dataset
    need(data, tuple(_ENTROPIES), "attention")
    names = [n for n in _ENTROPIES if has(data, n)]
    bases = [_by_head(data[n].sel(model="base")) for n in names]
    changes = [_by_head(change(data[n])) for n in names]
    runs: Runs = {k: [_by_head(change(a)) for a in v] for k, v in others(cmp, names[0]).items()}
    bound = _bound([*changes, *_all(runs)])
    unit = units(data[names[0]], "nats")
    with house_style():
        figure, axes = _grid(bases[0].shape, 2 * len(names), width, even=True, abreast=2)
        words = {}
        for index, (name, base, delta) in enumerate(zip(names, bases, changes, strict=True)):
            stack = _ENTROPIES[name] if len(names) > 1 else ""
            left, right = axes[2 * index], axes[2 * index + 1]
            first = head_map(left, base, f"{stack}Base", Normalize(0, _bound(bases)), SEQUENTIAL)
            second = head_map(right, delta, f"{stack}Tuned minus base", Normalize(-bound, bound), DIVERGING)
            words[f"{stack}largest change" if stack else "Largest change"] = _mark(right, delta, signed=True)
        _scale(figure, first, axes[::2], f"entropy [{unit}]", {}, width)
        _scale(figure, second, axes[1::2], f"change [{unit}]", runs, width)
        key(figure, words, runs, width)
        return figure


@figure("comparison", needs=any_of("qk_change", "ov_change", "mlp_change"))
def weights(cmp: Result, *, width: float = PAGE) -> Figure:
    """Relative Frobenius norm of the change of every head's QK and OV circuit and of every MLP.

    Args:
        cmp: a comparison.
        width: of the figure in cm; under 12 the panels stand one above the other.

    Raises:
        MeasureError: none of the three was measured.
    """
    data = cmp.dataset
    names = need(data, ("qk_change", "ov_change", "mlp_change"), "weights")
    titles = {"qk_change": "QK circuit", "ov_change": "OV circuit"}
    circuits = tuple(n for n in names if n in titles)
    maps = {titles[n]: _by_head(data[n]) for n in circuits}
    with house_style():
        if not maps:
            figure = sheet(min(width, 11.0), 3.2)
            ax = figure.subplots()
            _mlp_bars(ax, cmp)
            ax.set_ylabel("layer")
            return figure
        mlp = cmp if "mlp_change" in names else None
        return _sequential_maps(maps, _joined(cmp, circuits), "relative change", width, mlp)


def _joined(cmp: Result, names: Sequence[str]) -> Runs:
    """Cells of other runs, those of every name together: the largest of them is the run's largest."""
    found: Runs = {}
    for name in names:
        for kind, arrays in others(cmp, name).items():
            maps = [_by_head(a).ravel() for a in arrays]
            before = found.get(kind)
            found[kind] = maps if before is None else [np.concatenate(p) for p in zip(before, maps, strict=True)]
    return found


def _by_head(array: xr.DataArray) -> np.ndarray:
    """Mean over prompts, by layer of whichever stack and by head."""
    return average(array, "encoder_layer" if "encoder_layer" in array.dims else "layer", "head")


def _all(runs: Runs) -> list[np.ndarray]:
    return [array for arrays in runs.values() for array in arrays]


def _sequential_maps(
    maps: dict[str, np.ndarray], runs: Runs, label: str, width: float, mlp: Result | None = None
) -> Figure:
    """Maps of something that is never negative on one scale from zero, and the MLPs beside them."""
    bound = _bound([*maps.values(), *_all(runs)])
    figure, axes = _grid(next(iter(maps.values())).shape, len(maps) + (mlp is not None), width, even=True)
    drawn = axes[: len(maps)]
    meshes = [
        head_map(ax, v, t, Normalize(0, bound), SEQUENTIAL) for ax, (t, v) in zip(drawn, maps.items(), strict=True)
    ]
    _scale(figure, meshes[0], drawn, label, runs, width)
    words = {t: _mark(ax, v, signed=False) for ax, (t, v) in zip(drawn, maps.items(), strict=True)}
    if mlp is not None:
        _mlp_bars(axes[-1], mlp)
    key(figure, words, runs, width, bars=mlp is not None)
    return figure


def _bound(arrays: Sequence[np.ndarray]) -> float:
    """The largest magnitude; 1 where everything is zero, since a scale needs a length."""
    return max((abs(_extreme(a)) for a in arrays), default=0.0) or 1.0


def _extreme(values: np.ndarray) -> float:
    """The value of largest magnitude, with its sign."""
    known = values[np.isfinite(values)]
    return float(known[np.abs(known).argmax()]) if known.size else 0.0


def _grid(
    shape: tuple[int, ...], count: int, width: float, *, even: bool = False, abreast: int = _ABREAST
) -> tuple[Figure, list[Axes]]:
    """Panels of one height, some abreast, the first the widest unless `even`; one above the other where narrow."""
    height = float(np.clip(0.21 * shape[0], 1.7, 4.6))
    if width < NARROW:
        figure = sheet(width, count * (height + 0.75) + 1.1)
        return figure, list(figure.subplots(count, 1, squeeze=False)[:, 0])
    columns = min(count, abreast)
    rows = -(-count // columns)
    figure = sheet(width if count > 1 else 11.0, rows * (height + 0.75) + 0.75)
    ratios = None if even else [1.35] + [1.0] * (columns - 1)
    axes = list(figure.subplots(rows, columns, squeeze=False, width_ratios=ratios).ravel())
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]


def head_map(ax: Axes, values: np.ndarray, title: str, norm: Normalize, cmap: str) -> QuadMesh:
    """One map, layer 0 on top; cells that were not measured stay white."""
    layers, heads_ = values.shape
    line = 0.6 if max(values.shape) <= 16 else 0
    mesh = ax.pcolormesh(
        np.arange(heads_ + 1) - 0.5, np.arange(layers + 1) - 0.5, np.ma.masked_invalid(values),
        norm=norm, cmap=cmap, edgecolors="white" if line else "face", linewidth=line or 0.1,
        rasterized=values.size > _FINE,
    )  # fmt: skip
    ax.set_ylim(layers - 0.5, -0.5)
    ax.set_xticks(index_ticks(heads_, 8))
    ax.set_yticks(index_ticks(layers, 16))
    ax.tick_params(length=2)
    ax.set(title=title, xlabel="head", ylabel="layer")
    return mesh


def _mark(ax: Axes, values: np.ndarray, *, signed: bool) -> list[str]:
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
    return words or ["every cell is zero"]


def _scale(figure: Figure, mesh: QuadMesh, axes: Sequence[Axes], label: str, runs: Runs, width: float) -> None:
    """The colours' scale, with the largest value of every other run on it."""
    flat = width < NARROW
    slender = 7.5 * figure.get_figheight()
    place: dict[str, Any] = {"location": "top", "aspect": 34} if flat else {"location": "right"}
    bar = figure.colorbar(mesh, ax=list(axes), label=label, pad=0.015, **({"aspect": slender} | place))
    bar.outline.set_visible(False)
    line = bar.ax.axvline if flat else bar.ax.axhline
    for kind, arrays in runs.items():
        for value in map(_extreme, arrays):
            line(value, color=GREY if kind == "control runs" else TUNED, linewidth=2.4)
            line(value, color="white", linewidth=0.8, linestyle=":" if kind == "control runs" else "-")


def key(
    figure: Figure, lines: dict[str, list[str]], runs: Runs, width: float, *, bars: bool = False,
    more: Sequence[str] = (),
) -> None:  # fmt: skip
    """What the numbers in the cells and the lines on the scale stand for, under the maps."""
    rows = []
    for title, words in lines.items():
        rows += _wrapped(
            f"{title}:  ".replace("\n", " ") + "   ".join(word.replace(" ", "\xa0") for word in words), width
        )
    names = {"control runs": "Grey, dotted", "replicates": "Orange"}
    for kind in runs:
        text = f"{names[kind]} on the scale: largest value of each of the {kind}"
        rows += _wrapped(text + ("; on a bar, its value" if bars and kind == "control runs" else ""), width)
    figure.supxlabel("\n".join([*rows, *more]), x=0.01, ha="left", fontsize=8, linespacing=1.5)


def _wrapped(text: str, width: float) -> list[str]:
    lines = textwrap.wrap(text, 50 if width < NARROW else 110, subsequent_indent="    ")
    return [line.replace("\xa0", " ") for line in lines]


def _mlp_bars(ax: Axes, cmp: Result) -> None:
    values = average(cmp.dataset["mlp_change"], "layer")
    rows = np.arange(len(values))
    ax.barh(rows, values, color=SKY, height=0.56)
    marks(ax, rows, {k: [average(a, "layer") for a in v] for k, v in others(cmp, "mlp_change").items()})
    ax.set_ylim(len(values) - 0.5, -0.5)
    ax.set_yticks(index_ticks(len(values), 16))
    ax.set(title="MLP", xlabel="relative change")
    ax.set_xlim(left=0)
