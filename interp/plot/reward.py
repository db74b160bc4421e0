"""Figures of a reward model's reading: by component, by layer, and what the score holds on to."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from interp.errors import MeasureError
from interp.plot.registry import figure as registered
from interp.plot.style import (
    BASE,
    GREY,
    INK,
    NARROW,
    PAGE,
    SKY,
    TUNED,
    Result,
    foot_legend,
    house_style,
    number,
    panels,
    sheet,
    zero_line,
)
from interp.plot.text import drawable

_ROW = 0.21  # inches
_MOST = 60  # bars


class Words(Result, Protocol):
    """A result that has a number for each word of a text."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels."""

    def words(self, prompt: int) -> pd.DataFrame:
        """One row a word: `word`, and a column a label."""


@registered("reward_attribution", needs=("token_attribution",))
def reward_words(result: Words, *, prompt: int = 0, label: str | None = None, width: float = PAGE) -> Figure:
    """The words of one text, each with its attribution as a bar, in the order of the text.

    Args:
        result: an `interp.reward.Attribution`.
        prompt: index of the text.
        label: which label; None is the first.
        width: of the figure in cm.
    """
    table = result.words(prompt).head(_MOST)
    chosen = label if label is not None else result.labels[0]
    if chosen not in result.labels:
        raise MeasureError(f"the attribution has no label {chosen!r}; name one of {', '.join(result.labels)}")
    values = table[chosen].to_numpy()
    with house_style():
        figure = sheet(width, 0.9 + _ROW * len(table))
        ax = figure.subplots()
        zero_line(ax, vertical=True)
        rows = np.arange(len(table))
        for side, colour, hatch in ((values > 0, TUNED, "/////"), (values <= 0, BASE, "")):
            ax.barh(rows[side], values[side], color=colour, hatch=hatch, edgecolor="white", linewidth=0, height=0.65)
        _named(ax, [drawable(word, 24, token=False) for word in table["word"]])
        cell = result.dataset.sel(label=chosen).isel(prompt=prompt)
        ax.set_title(f"{drawable(chosen, token=False)}: score {number(float(cell['score']))}")
        ax.set_xlabel(f"attribution [{result.dataset.attrs['units']}]")
        return figure


def _named(ax: Axes, names: list[str]) -> None:
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)


@registered("reward_direct_attribution", needs=("component_attribution",))
def reward_components(result: Result, *, label: str | None = None, width: float = PAGE) -> Figure:
    """Direct attribution by component beside what taking the component out does, means over texts.

    Args:
        result: a `interp.reward.DirectAttribution`.
        label: which label; None is the first.
        width: of the figure in cm; under 12 the panels stand one above the other.
    """
    data = result.dataset
    data = data.sel(label=label if label is not None else data["label"].values[0])
    names = [str(name) for name in data["component"].values][:_MOST]
    shown = [("component_attribution", "written into the logit", SKY)]
    if "patching_effect" in data:
        shown.append(("patching_effect", "lost when put at its mean", GREY))
    with house_style():
        figure, axes = panels(len(shown), width, 0.9 + _ROW * len(names), sharey=width >= NARROW)
        for ax, (variable, title, colour) in zip(axes, shown, strict=True):
            values = data[variable].values[:, : len(names)]
            zero_line(ax, vertical=True)
            mean = values.mean(0)
            known = np.isfinite(mean)
            ax.barh(np.arange(len(names))[known], mean[known], color=colour, height=0.65)
            low, high = np.quantile(values[:, known], (0.25, 0.75), axis=0)
            ax.hlines(np.arange(len(names))[known], low, high, color=INK, linewidth=1.1)
            _named(ax, names)
            ax.set_title(title)
            ax.set_xlabel("logits")
        handles: list[Any] = [Line2D([], [], color=INK, linewidth=1.1, label="middle half of texts")]
        if "patching_rank_correlation" in data:
            rank = data["patching_rank_correlation"].values
            mean_rank = number(float(np.nanmean(rank))) if np.isfinite(rank).any() else "–"
            handles.append(Patch(alpha=0, label=f"rank correlation of the two, mean over texts: {mean_rank}"))
        foot_legend(figure, handles)
        return figure


@registered("reward_lens", needs=("lens_score",))
def reward_lens(result: Result, *, label: str | None = None, most: int = 200, width: float = PAGE) -> Figure:
    """The score read off every layer, a line a text, coloured by the side on which it ends.

    Args:
        result: a `interp.reward.Lens`.
        label: which label; None is the first.
        most: texts that are drawn, evenly spaced.
        width: of the figure in cm.
    """
    data = result.dataset
    data = data.sel(label=label if label is not None else data["label"].values[0])
    scores, threshold = data["lens_score"].values, float(data.attrs["threshold"])
    chosen = np.unique(np.linspace(0, len(scores) - 1, min(most, len(scores))).astype(int))
    steps = np.arange(scores.shape[1])
    with house_style():
        figure = sheet(width, 3.4)
        ax = figure.subplots()
        ends = scores[:, -1] > threshold
        for row in chosen:
            ax.plot(steps, scores[row], color=TUNED if ends[row] else BASE, linewidth=0.7, alpha=0.35)
        styles: tuple[tuple[bool, str, Any, str], ...] = (
            (True, TUNED, "-", "ends above"),
            (False, BASE, "--", "ends below"),
        )
        handles = []
        for side, colour, line, words in styles:
            count = int((ends == side).sum())
            if count:
                ax.plot(steps, scores[ends == side].mean(0), color=colour, linestyle=line, linewidth=2.4)
                handles.append(Line2D([], [], color=colour, linestyle=line, label=f"mean of {count} texts: {words}"))
        ax.axhline(threshold, color=INK, linewidth=0.7)
        ax.set_xticks(steps, [str(site) for site in data["site"].values], rotation=0 if len(steps) < 8 else 45)
        ax.set(ylabel=f"score [{data.attrs['units']}]", xlabel="residual that is read")
        ax.set_title(f"{drawable(str(data['label'].item()), token=False)}: the score by layer")
        foot_legend(figure, handles)
        return figure


@registered("spurious", needs=("effect",))
def spurious(result: Result, *, width: float = PAGE) -> Figure:
    """What moves the score, in its standard deviations: every edit and feature with its interval, grey where too small.

    Args:
        result: a `interp.reward.Spurious`.
        width: of the figure in cm; under 12 the panels stand one above the other.
    """
    table = result.summary()
    ways = {way: table[(table["way"] == way) & table["effect"].notna()] for way in ("edits", "regression")}
    with house_style():
        longest = max(map(len, ways.values()))
        figure, axes = panels(2, width, 0.8 + _ROW * longest)
        for ax, (way, rows) in zip(axes, ways.items(), strict=True):
            zero_line(ax, vertical=True)
            for place, row in enumerate(rows.to_dict("records")):
                colour = (TUNED if row["effect"] > 0 else BASE) if row["goes_by"] else GREY
                ax.plot([row["effect_low"], row["effect_high"]], [place, place], color=colour, linewidth=1.6)
                ax.plot(row["effect"], place, "o" if row["goes_by"] else "x", color=colour, markersize=4)
            _named(ax, [drawable(str(name), 42, token=False) for name in rows["what" if way == "edits" else "feature"]])
            ax.set_ylim(longest - 0.5, -0.5)
            ax.set_title(way)
            ax.set_xlabel("effect [SD]")
        handles: list[Any] = [
            Line2D([], [], color=TUNED, marker="o", label="raises the score"),
            Line2D([], [], color=BASE, marker="o", label="lowers it"),
            Line2D([], [], color=GREY, marker="x", label="too little, or may be chance"),
        ]
        foot_legend(figure, handles)
        return figure
