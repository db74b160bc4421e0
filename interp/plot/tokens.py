"""The next token: the likeliest ones of both models, those that moved most, and the answers prompt by prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from interp.plot.bars import ROW
from interp.plot.lines import answer_words
from interp.plot.registry import figure
from interp.plot.runs import marks
from interp.plot.style import (
    BASE,
    GREY,
    INK,
    NARROW,
    PAGE,
    TUNED,
    Result,
    any_of,
    foot_legend,
    house_style,
    need,
    number,
    other_runs,
    others,
    panels,
    sheet,
    units,
    zero_line,
)
from interp.plot.text import drawable

_MANY = 100  # points; more become a picture inside the figure, which is smaller


@figure("comparison", needs=any_of("top_prob"))
def top_tokens(cmp: Result, *, prompts: Sequence[int] = (0, 1, 2), ranks: int = 5, width: float = PAGE) -> Figure:
    """The likeliest next tokens of both models, prompt by prompt.

    Args:
        cmp: a comparison.
        prompts: which prompts, by place; those beyond the last are left out.
        ranks: how many tokens each.
        width: of the figure in cm; under 12 the two models stand one above the other.

    Raises:
        MeasureError: `top_prob` was not measured.
    """
    data = cmp.dataset
    need(data, ("top_prob",), "next_token")
    chosen = [p for p in prompts if p < data.sizes["prompt"]]
    abreast = 1 if width < NARROW else 2
    with house_style():
        figure = sheet(width, len(chosen) * (ranks * ROW + 0.75) * 2 / abreast + 0.2)
        grid = figure.subplots(len(chosen) * 2 // abreast, abreast, squeeze=False).reshape(len(chosen), 2)
        widest = float(data["top_prob"].isel(prompt=chosen, rank=slice(ranks)).max())
        for axes, index in zip(grid, chosen, strict=True):
            row = data.isel(prompt=index, rank=slice(ranks))
            axes[0].set_title(_title(row, index, width))
            for ax, model in zip(axes, ("base", "tuned"), strict=True):
                _token_bars(ax, row.sel(model=model), model, widest)
        return figure


def _title(row: xr.Dataset, index: int, width: float) -> str:
    limit = 34 if width < NARROW else 76
    return drawable(str(row["text"].item()), limit, token=False) if "text" in row else f"prompt {index}"


def _token_bars(ax: Axes, row: xr.Dataset, model: str, widest: float) -> None:
    probs = row["top_prob"].values
    probs = probs[np.isfinite(probs)]
    tokens = [drawable(str(t)) for t in row["top_token"].values[: len(probs)]]
    colour, hatch = (BASE, "") if model == "base" else (TUNED, "/////")
    ax.barh(range(len(probs)), probs, color=colour, hatch=hatch, edgecolor="white", linewidth=0, height=0.7)
    for i, p in enumerate(probs):
        ax.text(p + widest * 0.015, i, number(float(p)), va="center", fontsize=8)
    _rows(ax, tokens)
    ax.set_xlim(0, widest * 1.16)
    ax.set_xlabel(f"{model}: probability")


def _rows(ax: Axes, names: Sequence[str]) -> None:
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(max(len(names), 1) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)


@figure("comparison", needs=any_of("mover_change"))
def movers(cmp: Result, *, prompts: Sequence[int] | None = None, ranks: int = 8, width: float = PAGE) -> Figure:
    """The tokens whose probability moved most, as bars to either side of zero.

    Args:
        cmp: a comparison.
        prompts: one panel for each of these prompts, by place; None is one panel for all prompts together. There a
            token's change is its sum over the prompts that list it among their movers, over the number of all prompts,
            so what it changed by elsewhere counts as 0.
        ranks: how many tokens each way.
        width: of the figure in cm; under 12 the panels stand one above the other.

    Raises:
        MeasureError: `mover_change` was not measured.
    """
    data = cmp.dataset
    need(data, ("mover_change",), "next_token")
    count = data.sizes["prompt"]
    chosen = [[p] for p in prompts if p < count] if prompts is not None else [list(range(count))]
    with house_style():
        height = 2 * ranks * ROW + 1.0
        figure, axes = panels(len(chosen), width, height)
        for ax, rows in zip(axes, chosen, strict=True):
            part = data.isel(prompt=rows)
            runs = {
                kind: [moved(run.isel(prompt=rows))[0] for run in listed]
                for kind, listed in other_runs(cmp, "mover_change").items()
            }
            handles = _mover_bars(ax, part, ranks, runs, width)
            alone = len(rows) == 1
            ax.set_title(_title(part.isel(prompt=0), rows[0], width) if alone else f"All {count} prompts")
            ax.set_xlabel("change of probability, tuned minus base")
        if handles:
            foot_legend(figure, handles)
        return figure


def moved(data: xr.Dataset) -> tuple[dict[str, float], Counter[str]]:
    """Mean change of every token that some prompt lists among its movers, and how many prompts list it."""
    total: dict[str, float] = {}
    listed: Counter[str] = Counter()
    tokens, changes = (data[n].values.ravel().tolist() for n in ("mover_token", "mover_change"))
    for token, value in zip(tokens, changes, strict=True):
        if np.isfinite(value) and value:
            total[token] = total.get(token, 0.0) + value
            listed[token] += 1
    return {token: value / data.sizes["prompt"] for token, value in total.items()}, listed


def _mover_bars(ax: Axes, data: xr.Dataset, ranks: int, runs: dict[str, list[dict[str, float]]], width: float) -> list:
    changes, listed = moved(data)
    order = sorted(changes, key=lambda token: -changes[token])
    up = [t for t in order if changes[t] > 0][:ranks]
    down = [t for t in order if changes[t] < 0][-ranks:]
    names = [*up, *down]
    values = np.array([changes[t] for t in names])
    zero_line(ax, vertical=True)
    rows = np.arange(len(names))
    for chosen, colour, hatch in ((values > 0, TUNED, "/////"), (values < 0, BASE, "")):
        ax.barh(rows[chosen], values[chosen], color=colour, hatch=hatch, edgecolor="white", linewidth=0, height=0.56)
    beside = {k: [np.array([r.get(n, 0.0) for n in names]) for r in v] for k, v in runs.items()}
    handles = marks(ax, rows, beside) if len(names) else []
    _rows(ax, [drawable(n) for n in names])
    if not names:
        ax.text(0.5, 0.5, "no token moved", transform=ax.transAxes, ha="center", fontsize=8)
    every = np.concatenate([values, *(v for arrays in beside.values() for v in arrays), [0.0]])
    low, high = float(every.min()), float(every.max())
    ax.xaxis.set_major_locator(MaxNLocator(2 if width < NARROW else 4))
    ax.set_xlim(low - 0.02 * (high - low or 1), high + 0.02 * (high - low or 1))
    words = [_mover_words(v, listed[n], data.sizes["prompt"]) for n, v in zip(names, values, strict=True)]
    for row, text in enumerate(words):  # beside the axes, where no bar and no range can run through it
        ax.annotate(
            text, (1, row), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=8,
        )  # fmt: skip
    return handles


def _mover_words(value: float, listed: int, prompts: int) -> str:
    words = number(float(value), signed=True)
    return f"{words}  in {listed} of {prompts}" if prompts > 1 else words


@figure("comparison", needs=any_of("logit_diff", "logprob_diff"))
def answers(cmp: Result, *, width: float = PAGE) -> Figure:
    """Preference for the answer, prompt by prompt: tuned against base; above the diagonal tuned prefers it more.

    Args:
        cmp: a comparison.
        width: of the figure in cm; under 12 the panels stand one above the other.

    Raises:
        MeasureError: neither `logit_diff` nor `logprob_diff` was measured.
    """
    data = cmp.dataset
    names = need(
        data,
        ("logit_diff", "logprob_diff"),
        "logit_diff",
        without='give the prompts answers, Prompts(texts, answers=(" bad", " good")), and measure "logit_diff"',
    )
    says = {"logit_diff": "logit difference", "logprob_diff": "log-probability difference"}
    with house_style():
        figure, axes = panels(len(names), width, 3.6)
        for ax, name in zip(axes, names, strict=True):
            unit = units(data[name], "logits" if name == "logit_diff" else "nats")
            runs = others(cmp, name)
            values = _pairs(data[name])
            every = [values, *(_pairs(r) for arrays in runs.values() for r in arrays)]
            _diagonal(ax, np.concatenate(every))
            for kind, colour, marker in (("control runs", GREY, "x"), ("replicates", INK, "+")):
                for i, array in enumerate(runs.get(kind, [])):
                    x, y = _pairs(array).T
                    label = "" if i else kind if len(runs[kind]) > 1 else kind.removesuffix("s")
                    ax.plot(
                        x, y, marker, color=colour, markersize=4, label=label or None, zorder=2,
                        rasterized=len(runs[kind]) * len(x) > _MANY,
                    )  # fmt: skip
            ax.plot(*values.T, "s", color=TUNED, markersize=4, alpha=0.8, label="tuned, one prompt", zorder=3)
            ax.set_title(answer_words(data))
            ax.set(xlabel=f"base: {says[name]} [{unit}]", ylabel=f"tuned: {says[name]} [{unit}]")
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
        return figure


def _pairs(array: xr.DataArray) -> np.ndarray:
    values = array.transpose("prompt", "model").sel(model=["base", "tuned"]).values.astype(float)
    return values[np.isfinite(values).all(1)]


def _diagonal(ax: Axes, values: np.ndarray) -> None:
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    pad = 0.06 * (high - low) or 1.0
    ends = (low - pad, high + pad)
    ax.plot(ends, ends, color=INK, linewidth=0.8, label="equal")
    ax.axhline(0, color=GREY, linewidth=0.6, linestyle=":")
    ax.axvline(0, color=GREY, linewidth=0.6, linestyle=":")
    ax.set(xlim=ends, ylim=ends, aspect="equal")


@figure("comparison", needs=any_of("mass_outside"))
def mass_outside(cmp: Result, *, width: float = PAGE) -> Figure:
    """Probability outside the shared vocabulary by prompt, prompts in the order of tuned's.

    Args:
        cmp: a comparison.
        width: of the figure in cm.

    Raises:
        MeasureError: `mass_outside` was not measured.
    """
    data = cmp.dataset
    need(data, ("mass_outside",), "next_token", without="both models have the same tokens, so nothing lies outside")
    values = {m: data["mass_outside"].sel(model=m).values.astype(float) for m in ("base", "tuned")}
    order = np.argsort(-np.nan_to_num(values["tuned"]), kind="stable")
    with house_style():
        figure, (ax,) = panels(1, width, 3.0)
        rows = np.arange(len(order))
        dense = len(order) > 60
        for model, colour, look in (("base", BASE, "o"), ("tuned", TUNED, "s")):
            ax.plot(
                rows, values[model][order], "-" if dense else look, color=colour, markersize=4, label=model,
                markerfacecolor="white" if model == "base" else colour,
            )  # fmt: skip
        ax.set_ylim(bottom=0)
        ax.grid(axis="y")
        ax.set(xlabel="prompts, by tuned's", ylabel="probability outside the shared tokens")
        ax.set_title("Probability of added tokens")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
        return figure
