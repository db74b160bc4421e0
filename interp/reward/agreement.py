"""How far an attribution agrees with patching, as a table and in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from interp.stats import bootstrap_mean

LEAST_AGREEMENT = 0.2
"""Least rank correlation with patching of an attribution that is called one."""


def patching_table(data: xr.Dataset) -> pd.DataFrame:
    """The columns of `Attribution.patching`, out of a dataset's `patching_rank_correlation`."""
    rows = []
    for label in data["label"].values if "patching_rank_correlation" in data else ():
        values = data["patching_rank_correlation"].sel(label=label).values
        mean, low, high = bootstrap_mean(values)
        tells = mean >= LEAST_AGREEMENT and not low <= 0
        rows.append((str(label), int(np.isfinite(values).sum()), mean, low, high, tells))
    return pd.DataFrame(
        rows, columns=["label", "n", "rank_correlation", "rank_correlation_low", "rank_correlation_high", "tells"]
    )


UNMEASURED = "rank correlation with patching: not measured (patched_texts=8 of attribute, or against_patching)"


def agreement(labels: Sequence[str], row: Any, what: str = "token") -> str:
    """How far an attribution agrees with patching, for one row of its `patching()`.

    Args:
        labels: of the attribution.
        row: the row.
        what: what it is over, tokens or components.
    """
    name = f"{row.label}: " if len(labels) > 1 else ""
    if row.n == 0:
        return f"{name}rank correlation with patching: not defined, no text has three {what}s and more than one value"
    low, high = row.rank_correlation_low, row.rank_correlation_high
    interval = f"[{low:.2f}, {high:.2f}]" if np.isfinite(low) else "[no interval under 8 texts]"
    over = f"{row.n} text{'' if row.n == 1 else 's'}"
    sentence = f"{name}rank correlation with patching over {over}: {row.rank_correlation:.2f} {interval}"
    if row.tells:
        return sentence
    return f"{sentence}; the attribution does not tell here what the model would do without a {what}"


def agreement_in_short(patching: pd.DataFrame, sentences: list[str]) -> list[str]:
    """How far an attribution agrees with patching, in one sentence for all labels.

    Args:
        patching: a row a label.
        sentences: of the labels.
    """
    ranks = patching["rank_correlation"]
    if len(patching) < 2 or ranks.isna().any():
        return sentences[:1]
    return [
        f"rank correlation with patching: {ranks.min():.2f} to {ranks.max():.2f} over {len(ranks)} labels; for"
        f" {int((~patching['tells']).sum())} of them the attribution does not tell what patching does: .patching()"
    ]


def about_texts(count: int, labels: Sequence[str]) -> str:
    """How many texts and labels there are, in words; a single label by its name."""
    texts = f"{count} text{'' if count == 1 else 's'}"
    return f"{texts}, {f'label {labels[0]}' if len(labels) == 1 else f'{len(labels)} labels'}"
