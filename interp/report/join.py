"""The token join as one self-contained page: a text coloured by reward attribution above, by log-ratio below."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import xarray as xr
from markupsafe import Markup

from interp.errors import InterpError, MeasureError
from interp.io import write_text
from interp.plot.style import number, span
from interp.result.pages import resource, template
from interp.reward.flat import records
from interp.reward.joining import token_join_of

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


@runtime_checkable
class Joined(Protocol):
    """A token join: its arrays and its findings."""

    @property
    def dataset(self) -> xr.Dataset:
        """Its arrays."""

    def summary(self) -> pd.DataFrame:
        """One row a finding."""


def render_tokens(result: Joined, *, texts: int = TEXTS_SHOWN) -> str:
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


def write_tokens(result: Joined, path: str | os.PathLike[str], *, texts: int = TEXTS_SHOWN) -> Path:
    """Write the page to `path`, whole or not at all.

    Raises:
        InterpError: the file cannot be written, or its name does not end in .html.
    """
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise InterpError(f"the page is HTML; name a file that ends in .html, not {os.fspath(path)!r}")
    return write_text(path, render_tokens(result, texts=texts))


def _verdict(frame: pd.DataFrame) -> str:
    row = frame.iloc[0]
    value = f"{number(float(row['estimate']))} ({_range(row, 'lower', 'upper') or 'no interval: too few texts'})"
    chance = f"permuted attributions give {_range(row, 'null_low', 'null_high')}"
    return f"Reward attribution and the log-ratio of the same characters correlate by {value}; {chance}."


def _range(row: Any, low: str, high: str) -> str:
    return span(float(row[low]), float(row[high])) if np.isfinite(row[low]) else ""


def _cells(row: dict[Any, Any]) -> list[str]:
    ranges = [_range(row, "lower", "upper"), _range(row, "null_low", "null_high")]
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
