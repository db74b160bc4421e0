"""Sections of the page with a line for each emotion: what its score holds on to, and what probes read of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analyses.sweep.figures import value_words
from analyses.sweep.tables import Tables
from analyses.sweep.work import FEWEST_PROBED
from interp.plot.style import number

MOST_HELD = 3
"""Features of a score that are named; the others are counted."""


_WHO = {"policy": "policy", "reward": "reward model"}


def section(name: str, title: str, alt: str = "", **given: Any) -> dict[str, Any]:
    """A section of the page, of which not all must be given."""
    found: dict[str, Any] = {"name": name, "title": title, "alt": alt, "rows": [], "columns": [], "classes": []}
    return found | {"notes": [], "figure": None} | given


def readings(tables: Tables) -> dict[str, Any]:
    """A line for each emotion's score: the layers that decide it, and what it holds on to."""
    frame, rows = tables.readings, []
    passes = tables.emotions["passes"] if "passes" in tables.emotions else pd.Series(dtype=bool)
    for name, row in frame.iterrows():
        sites = [column.removeprefix("decided at ") for column in frame if column.startswith("decided at ")]
        last = float(row[f"decided at {sites[-1]}"])
        before = float(row[f"rank at {sites[-2]}"]) if len(sites) > 1 else float("nan")
        held = [each for each in str(row["holds on to"]).split(", ") if each and each != "nan"]
        more = f" and {len(held) - MOST_HELD} more" if len(held) > MOST_HELD else ""
        cells = [
            str(name),
            f"{last:.0%}",
            number(before),
            ", ".join(held[:MOST_HELD]) + more if held else "nothing that was tried",
        ]
        rows.append({"cells": cells, "off": not bool(passes.get(name, True))})
    return section(
        "readings",
        "What each score is made of",
        rows=rows,
        columns=["emotion", "decided by the last layer", "rank correlation before it", "holds on to"],
        classes=["", "num", "num", "finding"],
        notes=[
            "Reward lens: the score read off every layer's residual. First the share of the texts that reach their"
            " final side of the median score in the last layer (half of them, where the layers before know nothing);"
            " then Spearman's correlation, over the texts, of the score before that layer with the final one; every"
            " layer is in tables/readings.csv. Held on to: features of the text that move the score in a"
            " regression of all together or in minimal edits (Holm over features); the strongest first."
        ],
    )


def probed(tables: Tables) -> dict[str, Any]:
    """A line for each pair: how far policy and reward model came to make the emotion easier to read, and when."""
    rows: list[dict[str, Any]] = []
    models: dict[str, str] = {}
    if not tables.probes.empty:
        there = set(tables.probes["model"])
        models = {model: words for model, words in _WHO.items() if model in there}
        for name, both in tables.probes.groupby("pair", sort=False):
            cells = [str(name)]
            for model in models:
                found = both[both["model"] == model]
                cells += _course(found.iloc[0]) if len(found) else ["–", "–"]
            rows.append({"cells": cells, "off": not bool(both["passes"].iloc[0])})
    one = ["read, first to last", "gain"]
    return section(
        "probes",
        "Who learns what, when?",
        rows=rows,
        columns=["pair", *(f"{who}: {what}" for who in models.values() for what in one)],
        classes=["", *["span"] * (len(one) * len(models))],
        notes=[
            "Linear probes for the emotion on labelled held-out texts, cross-validated; balanced accuracy, of which 0.5"
            " is chance, and in brackets the largest on shuffled labels. The layer that gained most is chosen on half"
            " of the texts, its gain over step 0 estimated on the other half, with 95 % bootstrap intervals over texts,"
            " not corrected over pairs. Where the gain is above 0 and checkpoints were kept: the share of the training"
            " at which half of it was there.",
            "A probe finds what a linear map can read, not what the model uses; two trainings are two clocks. Labels"
            f" that fewer than {FEWEST_PROBED} texts bear are left out, and the reward model where it kept no"
            " checkpoint of step 0.",
        ],
    )


def _course(row: pd.Series) -> list[str]:
    half = float(row["half_gain"])
    when = f"; half at {half:.0%}" if np.isfinite(half) and row["checkpoints"] > 2 else ""
    return [
        f"L{row['layer']}: {row['first']:.2f} to {row['last']:.2f} ({row['null']:.2f})",
        value_words(float(row["final_gain"]), float(row["final_gain_low"]), float(row["final_gain_high"])) + when,
    ]
