"""A comparison in words: its headline, its summary as columns of text, and what a reader must know to read it."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from interp.models import source_name
from interp.stats import MIN_PROMPTS, SPLIT_PROMPTS

RANGES = {
    "95 % interval": ("estimate_low", "estimate_high"),
    "null runs": ("control_low", "control_high"),
    "replicates": ("replicate_low", "replicate_high"),
    "permuted": ("permuted_low", "permuted_high"),
}
"""Columns that show a range, and the columns of the summary that hold its ends."""

SINGLE = {"p": "rank_p", "permutation p": "permutation_p", "completeness": "completeness"}
"""Columns of single numbers beside the estimate, and the columns of the summary that hold them."""

RIGHT = ("estimate", *RANGES, *SINGLE, "n")
"""Columns of numbers, which stand to the right."""


_FINDING = 76  # characters of a finding in one line


def headline(data: xr.Dataset) -> str:
    """What is compared with what, in one line."""
    base, tuned = (source_name(json.loads(data.attrs[name])) for name in ("base", "tuned"))
    count = data.sizes["prompt"]
    prompts = "1 prompt" if count == 1 else f"{count} prompts"
    return f"{tuned} (tuned) against {base} (base), {prompts}; differences are tuned minus base"


def text_rows(frame: pd.DataFrame) -> list[tuple[str, ...]]:
    """The summary as rows of text, the header first; columns without any value are left out."""
    ranges = {name: ends for name, ends in RANGES.items() if _any(frame, ends[0])}
    single = {name: column for name, column in SINGLE.items() if _any(frame, column)}
    lines: list[tuple[str, ...]] = [("reading", "finding", "estimate", *ranges, *single, "units", "n")]
    for row in frame.to_dict("records"):
        cells = [_range(row[low], row[high]) for low, high in ranges.values()]
        cells += ["" if np.isnan(row[column]) else f"{row[column]:.2g}" for column in single.values()]
        estimate, count = f"{row['estimate']:.4g}", str(row["n"] or "")
        lines.append((row["reading"], row["finding"], estimate, *cells, row["units"], count))
    return lines


def _any(frame: pd.DataFrame, column: str) -> bool:
    return column in frame and bool(frame[column].notna().any())


def _range(low: float, high: float) -> str:
    if np.isnan(low):
        return ""
    return f"{low:.4g}" if low == high else f"[{low:.4g}, {high:.4g}]"


def columns_text(lines: Sequence[tuple[str, ...]]) -> str:
    """Rows of text as aligned columns; a long finding goes on in the lines under it."""
    lines = [part for line in lines for part in _folded(line)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rows = []
    for line in lines:
        cells = [c.rjust(w) if h in RIGHT else c.ljust(w) for c, w, h in zip(line, widths, lines[0], strict=True)]
        rows.append("  ".join(cells).rstrip())
    return "\n".join(rows)


def _folded(line: tuple[str, ...]) -> list[tuple[str, ...]]:
    first, *rest = textwrap.wrap(line[1], _FINDING, subsequent_indent="  ", break_long_words=False) or [""]
    empty = ("",) * (len(line) - 2)
    return [(line[0], first, *line[2:]), *(("", part, *empty) for part in rest)]


def interval_notes(data: xr.Dataset) -> list[str]:
    """What the number of prompts does not allow."""
    groups = len(np.unique(data["group"].values))
    found = [remark for remark in str(data.attrs.get("remarks", "")).split("\n") if remark]
    if groups < MIN_PROMPTS:
        found.append(
            f"No intervals: {groups} different prompts or groups, and under {MIN_PROMPTS} a bootstrap says nothing."
        )
    if groups < SPLIT_PROMPTS:
        found.append(
            f"Under {SPLIT_PROMPTS} different prompts the largest of many are chosen and estimated on the same prompts,"
            " so expect them to shrink on others."
        )
    else:
        found.append(
            "Where n is about half: the largest of many are chosen on one half of the prompts, estimated on the other."
        )
    if "logit_diff" not in data and "answer_token" in data:
        found.append("No answers were given: the logits are those of tuned's top token minus base's likeliest other.")
    return found


def notes(frame: pd.DataFrame, data: xr.Dataset) -> list[str]:
    """What a reader must know to read the summary rightly."""
    found = interval_notes(data)
    if frame["control_low"].isna().all():
        found.append("No null runs: this shows that the two models differ here, not that the reward did it (control=).")
    return found
