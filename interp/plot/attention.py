"""What heads attend to, read and write: classes of tokens, and OV circuits."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from interp.plot.registry import figure
from interp.plot.runs import marks
from interp.plot.style import (
    BASE,
    INK,
    LETTER,
    NARROW,
    PAGE,
    SKY,
    TUNED,
    Result,
    any_of,
    average,
    change,
    foot_legend,
    house_style,
    need,
    number,
    others,
    panels,
    sheet,
    zero_line,
)
from interp.plot.text import drawable

# from dark to light, so that a print in grey keeps them apart; hatches of lines, since one of dots makes a large file
CLASSES = {
    "bos": ("first token", "#2b4570", ""),
    "antecedent": ("the answer's earlier mentions", "#D55E00", "/////"),
    "punctuation": ("punctuation", SKY, "\\\\\\\\"),
    "content": ("other tokens", "#e8e4d8", ""),
}
_HEADS = 5


def shown_heads(data: xr.Dataset, count: int = _HEADS) -> list[tuple[int, int]]:
    """The heads whose patterns changed most, or whose attention moved most where those were not recorded."""
    if "changed_layer" in data.coords:
        pairs = zip(data["changed_layer"].values.tolist(), data["changed_head_index"].values.tolist(), strict=True)
        return list(pairs)[:count]
    moved = np.abs(average(change(data["attention_to"]), "layer", "head", "token_class")).sum(-1)
    order = np.argsort(-moved, axis=None, kind="stable")[:count]
    return [(int(a), int(b)) for a, b in zip(*np.unravel_index(order, moved.shape), strict=True)]


@figure("comparison", needs=any_of("attention_to"))
def attention_classes(cmp: Result, *, width: float = PAGE) -> Figure:
    """Share of the last token's attention by class of token, in both models, and how it moved, for the changed heads.

    Args:
        cmp: a comparison.
        width: of the figure in cm; under 12 the panels stand one above the other.

    Raises:
        MeasureError: `attention_to` was not measured.
    """
    data = cmp.dataset
    need(data, ("attention_to",), "attention")
    known = [c for c in CLASSES if c in data["token_class"].values]
    heads = shown_heads(data)
    array = data["attention_to"].sel(token_class=known)
    with house_style():
        figure, (left, right) = panels(2, width, 0.62 * len(heads) + 1.3, ratios=[1.25, 1.0])
        handles = _shares(left, average(array, "model", "layer", "head", "token_class"), heads, known)
        runs = {
            kind: [_of_heads(average(change(a.sel(token_class=known)), "layer", "head", "token_class"), heads)
                   for a in arrays]
            for kind, arrays in others(cmp, "attention_to").items()
        }  # fmt: skip
        delta = _of_heads(average(change(array), "layer", "head", "token_class"), heads)
        beside = _moved(right, delta, heads, known, runs)
        foot_legend(figure, [*handles, *beside])
        return figure


def _of_heads(values: np.ndarray, heads: list[tuple[int, int]]) -> np.ndarray:
    return np.stack([values[layer, head] for layer, head in heads])


def _shares(ax: Axes, values: np.ndarray, heads: list[tuple[int, int]], known: list[str]) -> list[Patch]:
    """Two stacked bars a head: base's above tuned's."""
    ticks, labels = [], []
    for place, (layer, head) in enumerate(heads):
        for index, model in enumerate(("base", "tuned")):
            row = place * 2.6 + index
            ticks.append(row)
            labels.append(f"L{layer}H{head} {model}" if index == 0 else model)
            start = 0.0
            for name, share in zip(known, values[index, layer, head], strict=True):
                _, colour, hatch = CLASSES[name]
                ax.barh(row, share, left=start, height=0.9, color=colour, hatch=hatch, edgecolor="white", linewidth=0)
                if share >= 0.14:
                    light = name == "content"
                    box = {"facecolor": colour, "edgecolor": "none", "pad": 0.8}
                    ax.text(
                        start + share / 2, row, f"{share:.2f}", ha="center", va="center", fontsize=8, bbox=box,
                        color=INK if light or name == "punctuation" else "white",
                    )  # fmt: skip
                start += share
    ax.set_yticks(ticks, labels)
    ax.set_ylim(max(ticks) + 0.8, -0.8)
    ax.set_xlim(0, 1)
    ax.tick_params(axis="y", length=0)
    ax.set(title="Attention of the last token", xlabel="share of attention")
    return [
        Patch(facecolor=CLASSES[n][1], hatch=CLASSES[n][2], edgecolor="white", linewidth=0, label=CLASSES[n][0])
        for n in known
    ]


def _moved(
    ax: Axes, delta: np.ndarray, heads: list[tuple[int, int]], known: list[str], runs: dict[str, list[np.ndarray]]
) -> list:
    rows = (np.arange(len(heads))[:, None] * (len(known) + 1) + np.arange(len(known))).ravel()
    zero_line(ax, vertical=True)
    for index, name in enumerate(known):
        _, colour, hatch = CLASSES[name]
        places = rows.reshape(delta.shape)[:, index]
        ax.barh(places, delta[:, index], height=0.62, color=colour, hatch=hatch, edgecolor="white", linewidth=0)
    handles = marks(ax, rows, {k: [v.ravel() for v in values] for k, values in runs.items()})
    centres = rows.reshape(delta.shape).mean(1)
    ax.set_yticks(centres, [f"L{a}H{b}" for a, b in heads])
    ax.set_ylim(rows.max() + 1, -1)
    ax.tick_params(axis="y", length=0)
    ax.set(title="What moved", xlabel="change of share, tuned minus base")
    return handles


@figure("comparison", needs=any_of("ov_singular_value"))
def ov_circuits(cmp: Result, *, directions: int = 1, width: float = PAGE) -> Figure:
    """What each changed head reads and writes: top tokens of the leading directions of its OV circuit, as a table.

    Args:
        cmp: a comparison.
        directions: leading singular directions a head, at most those that were kept.
        width: of the figure in cm; under 12 what is written stands under what is read.

    Raises:
        MeasureError: `ov_singular_value` was not measured.
    """
    data = cmp.dataset
    need(data, ("ov_singular_value",), "attention")
    lines = list(_ov_lines(data, directions, width))
    with house_style():
        figure = sheet(width, 0.2 * len(lines) + 0.25)
        figure.set_layout_engine("none")
        ax = figure.add_axes((0, 0, 1, 1))
        ax.set_axis_off()
        ax.set(xlim=(0, width), ylim=(len(lines) + 0.4, -0.85))
        for row, cells in enumerate(lines):
            for x, text, look in cells:
                ax.text(x, row, text, va="center", fontsize=8, **look)
            if cells and cells[0][1].startswith("L"):
                ax.axhline(row - 0.5, color="#cccccc", linewidth=0.6)
        return figure


Cells = list[tuple[float, str, dict]]


def _ov_lines(data: xr.Dataset, directions: int, width: float) -> Iterator[Cells]:
    narrow = width < NARROW
    bold = {"fontweight": "bold"}
    left = 3.4 if narrow else 4.2
    column = (width - left - 0.2) / (1 if narrow else 2)
    head = [(0.2, "head", bold), (1.4, "model", bold)]
    if narrow:
        yield [*head, (left, "reads, and below it writes", bold)]
    else:
        yield [*head, (2.7, "σ", bold), (left, "reads (input tokens)", bold), (left + column, "writes (output)", bold)]
    for index, (layer, number_) in enumerate(shown_heads(data, data.sizes["changed_head"])):
        for direction, (model, colour) in itertools.product(range(directions), (("base", BASE), ("tuned", TUNED))):
            part = data.isel(changed_head=index, ov_direction=direction).sel(model=model)
            reads, writes = (_fit(part[f"ov_{side}"].values.tolist(), column) for side in ("reads", "writes"))
            first = direction == 0 and model == "base"
            cells: Cells = [(0.2, f"L{layer}H{number_}" if first else "", bold), (1.4, model, {"color": colour})]
            sigma = number(float(part["ov_singular_value"]))
            if narrow:
                yield [*cells, (left, reads, {})]
                yield [(1.4, f"σ {sigma}", {}), (left - 0.42, f"→ {writes}", {})]
            else:
                yield [*cells, (2.7, sigma, {}), (left, reads, {}), (left + column - 0.42, f"→ {writes}", {})]


def _fit(tokens: list[str], room: float) -> str:
    """As many tokens as `room` cm hold."""
    shown, length = [], 0.0
    for token in (drawable(str(t), 14) for t in tokens):
        length += (len(token) + 2) * LETTER
        if length > room:
            break
        shown.append(token)
    return "  ".join(shown)
