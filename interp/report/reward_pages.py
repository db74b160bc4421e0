"""Pages of what `interp.reward` returns: texts coloured by attributions, findings as bars, and the token join."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from markupsafe import Markup

from interp.errors import MeasureError
from interp.plot.style import number, span
from interp.result.pages import resource, template
from interp.reward.attribution import METHOD_WORDS
from interp.reward.joins import records, token_join_of

if TYPE_CHECKING:
    from interp.reward import Attribution, Counterexamples, Spurious, TokenJoin


_NOTHING = 5e-5  # an effect below it is rounding


def _filled(part: str, **values: Any) -> str:
    """One part of the template as an HTML document that needs nothing else; the same values give the same bytes."""
    return template("reward.html").render(kind=part, number=number, signed=_signed, **values)


def _signed(value: float) -> str:
    return number(0.0 if abs(value) < _NOTHING else value, signed=True)


def shades(values: np.ndarray, most: float) -> list[str]:
    """A background for each value: vermilion above 0, blue below, its strength the share of `most`."""
    colours = []
    for value in values:
        share = 0.0 if not np.isfinite(value) or most == 0 else min(1.0, abs(float(value)) / most)
        colours.append(f"rgba({'213,94,0' if value > 0 else '0,114,178'},{0.75 * share:.3f})")
    return colours


def pieces(text: str, spans: list[tuple[int, int]], values: np.ndarray, most: float) -> list[dict[str, str]]:
    """A text cut at spans, each piece with its shade and its value; what lies between has none."""
    cut, at = [], 0
    for (start, end), value, shade in zip(spans, values, shades(values, most), strict=True):
        if start < at or end <= start:  # one character in several tokens stands once, with the first
            continue
        cut += [{"text": text[at:start], "shade": "", "value": ""}] if start > at else []
        cut.append({"text": text[start:end], "shade": shade, "value": _signed(float(value))})
        at = end
    return [*cut, {"text": text[at:], "shade": "", "value": ""}] if at < len(text) else cut


def render_attribution(result: Attribution) -> str:
    """The page of an attribution: its texts coloured, one scale a label."""
    data = result.dataset
    measured = "patching_rank_correlation" in data
    items = []
    for label in result.labels:
        values = data["token_attribution"].sel(label=label).values
        most = float(np.nanmax(np.abs(np.where(data["added"].values, 0, np.nan_to_num(values))), initial=0.0))
        for row in range(data.sizes["prompt"]):
            tokens = result.tokens(row)
            spans = list(zip(tokens["start"], tokens["end"], strict=True))
            cell = data.sel(label=label).isel(prompt=row)
            rank = cell["patching_rank_correlation"].item() if measured else float("nan")
            names = ("score", "baseline_score", "completeness_error", "points", "converged")
            items.append(
                {
                    "label": label,
                    "pieces": pieces(result.text(row), spans, tokens[label].to_numpy(), most),
                    **{name: cell[name].item() for name in names},
                    "patching": rank if np.isfinite(rank) else None,
                }
            )
    attrs: Mapping[Any, Any] = data.attrs
    integrated = attrs["method"] == "integrated_gradients"
    return _filled(
        "attribution", items=items, about=dict(attrs), method=METHOD_WORDS[attrs["method"]], integrated=integrated,
        agreement=result.beside_patching() if attrs["method"] != "leave_one_out" else [],
    )  # fmt: skip


def render_spurious(result: Spurious) -> str:
    """The page of `spurious`: its findings, each as a bar with its interval."""
    table = result.summary()
    ends = table[["effect", "effect_low", "effect_high"]].to_numpy()
    most = float(np.nanmax(np.abs(ends), initial=1e-12))
    ways = {
        way: [{**row, "bar": _bar(row, most)} for row in table[table["way"] == way].to_dict("records")]
        for way in ("edits", "regression")
    }
    neutral = table[(table["way"] == "edits") & (table["feature"] == "none")]["effect"].abs().max()
    return _filled(
        "spurious", ways=ways, features=result.features, about=dict(result.dataset.attrs), neutral=float(neutral),
        prefix=result.neutral.replace("-", "−"), texts=result.dataset.sizes["prompt"],
    )  # fmt: skip


def _bar(row: Mapping[Any, Any], most: float) -> dict[str, str] | None:
    """Where a bar from 0 and its interval lie, in percent of a scale from -most to most."""
    if not np.isfinite(row["effect"]):
        return None

    def place(value: float) -> float:
        return 50 + 50 * value / most

    low, high = sorted((place(0.0), place(row["effect"])))
    bar = {"left": f"{low:.1f}", "width": f"{high - low:.1f}", "side": "up" if row["effect"] > 0 else "down"}
    if np.isfinite(row["effect_low"]):
        bar |= {
            "low": f"{place(row['effect_low']):.1f}",
            "reach": f"{place(row['effect_high']) - place(row['effect_low']):.1f}",
        }
    return bar


def render_counterexamples(result: Counterexamples) -> str:
    """The page of `counterexamples`: its three tables."""
    tables = {name: getattr(result, name).to_dict("records") for name in ("at_odds", "pairs", "swaps")}
    return _filled("counterexamples", about=dict(result.dataset.attrs), **tables)


TEXTS_SHOWN = 40
_WORD = re.compile(r"\s+|\S+")
_COLUMNS = (
    ("finding", "finding"),
    ("estimate", "num estimate"),
    ("95 % interval", "span"),
    ("permuted", "span"),
    ("p", "num"),
    ("texts", "num"),
)


def render_tokens(result: TokenJoin, *, texts: int = TEXTS_SHOWN) -> str:
    """The page as one HTML document that needs nothing else. The same result gives the same bytes.

    Each span of characters stands twice, one above the other: coloured by its reward attribution, and by how far the
    tuned model's log-probability of it moved. What only one of the two models reads as a token is grey.

    Args:
        result: a `TokenJoin`.
        texts: how many are shown, from the first on.

    Raises:
        MeasureError: it is another result.
    """
    data = result.dataset
    if "signed_spearman" not in data:
        raise MeasureError(
            "this page shows the result of token_join, whose signed_spearman is not here; pass that result"
        )
    frame = result.summary()
    return template("tokens.html").render(
        css=Markup(resource("page.css")),
        coloured=Markup(resource("coloured.css")),
        verdict=_verdict(frame),
        columns=_COLUMNS,
        rows=[_cells(row) for row in frame.to_dict("records")],
        note=(
            "Rank correlations within each text in the mean over texts, and over all spans. “permuted” is the middle"
            f" 95 % of {data.attrs['permutations']} permutations of the attributions within each text, p is two-sided."
            " It is a correlation over tokens: the reward was paid for whole responses."
        ),
        **_coloured(data, texts),
    )


def coloured_texts(data: xr.Dataset, *, texts: int = 6) -> dict[str, Any] | None:
    """The first texts of a comparison's token join, ready to be coloured; None where it has none.

    Args:
        data: the comparison's dataset.
        texts: how many are shown.
    """
    if "token_join" not in records(data):
        return None
    return _coloured(token_join_of(data).dataset, texts)


def _coloured(data: xr.Dataset, texts: int) -> dict[str, Any]:
    """Colours of the first texts that have any."""
    scales = {name: _scale(data[name]) for name in ("attribution", "log_ratio")}
    known = np.flatnonzero((data["start"].values >= 0).any(1))[:texts]
    return {
        "scales": {name: _legend(size, data[name]) for name, size in scales.items()},
        "texts": [_text(data.isel(prompt=int(index)), int(index), scales) for index in known],
        "shown": (
            f"{len(known)} of {data.sizes['prompt']} texts. A span's own numbers show where the pointer rests on it."
            " Colours are cut at the 98th percentile of sizes."
        ),
    }


def _verdict(frame: pd.DataFrame) -> str:
    row = frame.iloc[0]
    ends = _range(row, "estimate_low", "estimate_high") or "no interval: too few texts"
    value = f"{number(float(row['estimate']))} ({ends})"
    chance = f"permuted attributions give {_range(row, 'null_low', 'null_high')}"
    return f"Reward attribution and the log-ratio of the same characters correlate by {value}; {chance}."


def _range(row: Any, low: str, high: str) -> str:
    return span(float(row[low]), float(row[high])) if np.isfinite(row[low]) else ""


def _cells(row: dict[Any, Any]) -> list[str]:
    ranges = [_range(row, "estimate_low", "estimate_high"), _range(row, "null_low", "null_high")]
    return [str(row["finding"]), number(float(row["estimate"])), *ranges, number(float(row["p"])), str(row["n"])]


def _scale(values: xr.DataArray) -> float:
    """The size at which a colour is full."""
    sizes = np.abs(values.values[np.isfinite(values.values)])
    return float(np.quantile(sizes, 0.98)) or 1.0


def _legend(size: float, values: xr.DataArray) -> dict[str, str]:
    words = "reward attribution" if values.name == "attribution" else "log π tuned − log π base [nats]"
    return {"low": number(-size), "high": number(size, signed=True), "words": words}


def _text(row: xr.Dataset, index: int, scales: dict[str, float]) -> dict[str, Any]:
    """A text cut into what is coloured and what lies between."""
    text = str(row["text"].item())
    spearman = float(row["signed_spearman"])
    pieces: list[dict[str, Any]] = []
    end = 0
    columns = (row[name].values.tolist() for name in ("start", "end", "attribution", "log_ratio"))
    for start, stop, above, below in zip(*columns, strict=True):
        if start < 0:
            break
        _add_gap(pieces, text[end:start])
        title = f"attribution {number(above, signed=True)}, log-ratio {number(below, signed=True)}"
        colours = {"above": _colour(above, scales["attribution"]), "below": _colour(below, scales["log_ratio"])}
        pieces.append({"text": text[start:stop], "title": title, "ends": False, "space": 0, **colours})
        end = stop
    _add_gap(pieces, text[end:])
    return {"number": index + 1, "pieces": pieces, "spearman": number(spearman) if np.isfinite(spearman) else ""}


def _add_gap(pieces: list[dict[str, Any]], text: str) -> None:
    """Add what lies between coloured spans, word by word; white space belongs to what stands before it.

    So lines can break anywhere between words, and none begins with a space.
    """
    for match in _WORD.finditer(text):
        found = match.group()
        if found.isspace() and pieces:
            pieces[-1].update(ends="\n" in found, space=min(len(found), 8))
        elif not found.isspace():
            pieces.append({"text": found, "title": "", "ends": False, "space": 0})


def _colour(value: float, full: float) -> dict[str, str]:
    return {"side": "up" if value > 0 else "down", "size": f"{min(1.0, abs(value) / full):.3f}"}
