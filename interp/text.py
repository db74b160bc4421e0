"""A comparison in words: its headline, its summary as columns of text, and what a reader must know to read it."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from interp.models import source_name
from interp.stats import MIN_PROMPTS, SPLIT_PROMPTS


def headline(data: xr.Dataset) -> str:
    """What is compared with what, in one line."""
    base, tuned = (source_name(json.loads(data.attrs[name])) for name in ("base", "tuned"))
    count = data.sizes["prompt"]
    prompts = "1 prompt" if count == 1 else f"{count} prompts"
    return f"{tuned} (tuned) against {base} (base), {prompts}; differences are tuned minus base"


def text_rows(frame: pd.DataFrame) -> list[tuple[str, ...]]:
    """The summary as rows of text, the header first; columns without any value are left out."""
    optional = {"95 % interval": "lower", "null runs": "control_low"}
    shown = [name for name, column in optional.items() if frame[column].notna().any()]
    lines = [("reading", "finding", "estimate", *shown, "units", "n")]
    for row in frame.itertuples():
        ranges = {
            "95 % interval": _range(row.lower, row.upper),
            "null runs": _range(row.control_low, row.control_high),
        }
        lines.append(
            (row.reading, row.finding, f"{row.estimate:.4g}", *(ranges[n] for n in shown), row.units, str(row.n or ""))
        )
    return lines


def _range(low: float, high: float) -> str:
    if np.isnan(low):
        return ""
    return f"{low:.4g}" if low == high else f"[{low:.4g}, {high:.4g}]"


def columns_text(lines: Sequence[tuple[str, ...]]) -> str:
    """Rows of text as aligned columns."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    right = {"estimate", "95 % interval", "null runs", "n"}
    rows = []
    for line in lines:
        cells = [c.rjust(w) if h in right else c.ljust(w) for c, w, h in zip(line, widths, lines[0], strict=True)]
        rows.append("  ".join(cells).rstrip())
    return "\n".join(rows)


def interval_notes(data: xr.Dataset) -> list[str]:
    """What the number of prompts does not allow."""
    groups = len(np.unique(data["group"].values))
    found = []
    if groups < MIN_PROMPTS:
        found.append(f"No intervals: {groups} different prompts, and under {MIN_PROMPTS} a bootstrap says nothing.")
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
