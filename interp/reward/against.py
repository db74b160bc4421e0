"""How far an attribution agrees with patching: tokens put at the baseline one by one."""

from __future__ import annotations

import numpy as np

from interp.measures.arrays import as_variable
from interp.models import RewardModel
from interp.reward.attributing import attribute
from interp.reward.attribution import Attribution, rank_correlation


def against_patching(model: RewardModel, found: Attribution) -> Attribution:
    """The attribution with `patching_effect` and `patching_rank_correlation` beside it.

    The embedding of each token is patched with the baseline's, the others left as they are: `patching_effect` is what
    the score loses by it, `patching_rank_correlation` Spearman's of attribution and effect over a text's own tokens.

    Args:
        model: the reward model that was attributed.
        found: what `attribute` gave for it.
    """
    data = found.dataset
    baseline = data.attrs["baseline"] if data.attrs["baseline"] != "none" else "mean"
    effect = attribute(
        model, [str(text) for text in data["text"].values], method="leave_one_out", labels=found.labels,
        baseline=baseline,
    )  # fmt: skip
    agree = rank_correlation(found, effect)
    attrs = {"long_name": "score lost when the token is put at the baseline", "units": data.attrs["units"]}
    return Attribution(
        data.assign(
            patching_effect=as_variable(
                ("prompt", "pos", "label"), np.asarray(effect["token_attribution"].values), attrs
            ),
            patching_rank_correlation=as_variable(agree.dims, agree.values, agree.attrs),
        )
    )
