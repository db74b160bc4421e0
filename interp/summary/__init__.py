"""The table that a person reads first: the findings of every reading, largest first, with how sure they are."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import xarray as xr

from interp.summary import behaviour, inside, joins, parameters
from interp.summary.table import COLUMNS, Table

__all__ = ["COLUMNS", "summarise"]

READINGS = (
    ("logit_diff", behaviour.logit_diff),
    ("logprob_diff", behaviour.logprob_diff),
    ("top_token", behaviour.next_token),
    ("mass_outside", behaviour.mass_outside),
    ("kl", behaviour.divergence),
    ("response_kl", behaviour.responses),
    ("lens_logit_diff", inside.lens),
    ("lens_base_head_kl", inside.lens_base_head),
    ("lens_pos_kl", inside.lens_positions),
    ("resid_cosine", inside.residual),
    ("attribution", inside.attribution),
    ("head_attribution", inside.heads),
    ("cross_head_attribution", inside.cross_heads),
    ("neuron_attribution", inside.neurons),
    ("pattern_js", inside.patterns),
    ("attention_to", inside.attention_moved),
    ("ov_change", parameters.circuits),
    ("effective_rank", parameters.ranks),
    ("completion_reward", behaviour.reward),
    ("implicit_slope", joins.implicit_reward),
    ("join_signed_spearman", joins.token_join),
    ("group", joins.over_training),
)
"""The variable that a reading needs, and what makes rows of it, in the summary's order."""


def summarise(
    data: xr.Dataset,
    controls: Sequence[xr.Dataset] = (),
    replicates: Sequence[xr.Dataset] = (),
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """Findings of every reading in `data`, largest first within a reading.

    Differences are tuned minus base. Where a finding is the largest of many (a head, a component), it is chosen on one
    half of the prompts and estimated on the other if there are 16 or more; its null is the largest of the null run's
    map, as a maximum must be compared with a maximum.

    Args:
        data: what `compare` computed.
        controls: the same for null runs.
        replicates: the same for other runs of the same recipe.
        seed: seed of the bootstrap.

    Returns:
        One row a finding: `reading`, `finding` (words), `estimate`, `lower` and `upper` (95 % interval over prompts,
        NaN under 8 prompts), `units`, `n` (prompts), `control_low` and `control_high` (range of the null runs),
        `rank_p` (p of a change among the null runs, NaN under 19 of them), `replicate_low` and `replicate_high` (range
        of the replicates), `permuted_low`, `permuted_high` and `permutation_p` (middle 95 % of the permutations within
        prompts, and p, two-sided, for what joins the reward), `completeness` (mean |sum - logit difference|, for
        attributions).
    """
    table = Table(data, controls, replicates, seed)
    rows = [row for needed, reading in READINGS if needed in data for row in reading(table)]
    return pd.DataFrame(rows, columns=list(COLUMNS))
