"""The table that a person reads first: the findings of every measure, largest first, with how sure they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from interp.measures.findings import COLUMNS, Table
from interp.measures.measure import REMARKS
from interp.measures.registry import measures
from interp.stats import MIN_PROMPTS, SPLIT_PROMPTS


def summarise(
    data: xr.Dataset,
    controls: Sequence[xr.Dataset] = (),
    replicates: Sequence[xr.Dataset] = (),
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """Findings of every measure in `data`, largest first within a reading.

    Differences are tuned minus base. Where a finding is the largest of many (a head, a component), it is chosen on one
    half of the prompts and estimated on the other if there are 16 or more; its null is the largest of the control run's
    map, as a maximum must be compared with a maximum.

    Args:
        data: what `compare` computed.
        controls: the same for control runs.
        replicates: the same for other runs of the same recipe.
        seed: seed of the bootstrap.

    Returns:
        One row a finding: `reading`, `finding` (words), `estimate`, `estimate_low` and `estimate_high` (95 % interval
        over prompts, NaN under 8 prompts), `units`, `n` (prompts), `groups` (of prompts that are resampled together; as
        many as prompts where none were named), `control_low` and `control_high` (range of the control runs), `rank_p`
        (p of a change among the control runs, NaN under 19 of them), `replicate_low` and `replicate_high` (range of the
        replicates), `permuted_low`, `permuted_high` and `permutation_p` (middle 95 % of the permutations within
        prompts, and p, two-sided, for what joins the reward), `completeness` (mean |sum - logit difference|, for
        attributions).
    """
    table = Table(data, controls, replicates, seed)
    rows = [row for measure in measures().values() if measure.holds(data) for row in measure.rows(table)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def remarks_of(data: xr.Dataset) -> list[str]:
    """What the models, the prompts and the measures gave cause to remark."""
    return [remark for remark in str(data.attrs.get(REMARKS, "")).split("\n") if remark]


def interval_notes(data: xr.Dataset) -> list[str]:
    """What was remarked, and then what the number of prompts does not allow."""
    groups = len(np.unique(data["group"].values))
    said = remarks_of(data)
    if groups < data.sizes["prompt"]:
        said.append(f"n counts prompts; they are resampled in {groups} groups, the unit of the intervals.")
    if groups < MIN_PROMPTS:
        said.append(
            f"No intervals: {groups} different prompts or groups, and under {MIN_PROMPTS} a bootstrap says nothing."
        )
    if groups < SPLIT_PROMPTS:
        said.append(
            f"Under {SPLIT_PROMPTS} different prompts the largest of many are chosen and estimated on the same prompts,"
            " so expect them to shrink on others."
        )
    else:
        said.append(
            "Where n is about half: the largest of many are chosen on one half of the prompts, estimated on the other."
        )
    if "logit_diff" not in data and "answer_token" in data:
        said.append("No answers were given: the logits are those of tuned's top token minus base's likeliest other.")
    return said
