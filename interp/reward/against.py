"""How far an attribution agrees with patching: tokens put at the baseline one by one."""

from __future__ import annotations

import numpy as np

from interp.errors import MeasureError
from interp.measures.arrays import as_variable
from interp.models import RewardModel
from interp.reward.attribution import Attribution, rank_correlations
from interp.reward.baselines import baseline_vector
from interp.reward.erase import leave_one_out
from interp.reward.forward import at_rest
from interp.reward.texts import check_finite, read_texts


def against_patching(model: RewardModel, found: Attribution, *, texts: int | None = None) -> Attribution:
    """The attribution with `patching_effect` and `patching_rank_correlation` beside it.

    The embedding of each token is patched with the baseline's, the others left as they are: `patching_effect` is what
    the score loses by it, `patching_rank_correlation` Spearman's of attribution and effect over a text's own tokens.
    A forward pass for each token of the texts that are patched.

    Args:
        model: the reward model that was attributed.
        found: what `attribute` gave for it.
        texts: how many texts are patched, evenly spread; the others are NaN. None: all of them.

    Raises:
        MeasureError: fewer texts than one are asked for.
        InterpError: a score is not finite.
    """
    if texts is not None and texts < 1:
        raise MeasureError(f"texts is how many are patched, 1 or more; got {texts}")
    data = found.dataset
    count = data.sizes["prompt"]
    rows = np.unique(np.linspace(0, count - 1, min(count, texts or count)).round().astype(int))
    read = read_texts(model, [found.text(int(row)) for row in rows])
    columns = [model.labels.index(label) for label in found.labels]
    named = data.attrs["baseline"]
    effect = np.full(data["token_attribution"].shape, np.nan)
    with at_rest(model):
        vector = None if named == "delete" else baseline_vector(model, "mean" if named == "none" else named)
        for row, lost in zip(rows, leave_one_out(model, read, columns, vector=vector), strict=True):
            effect[row, : len(lost)] = lost
    own = (data["start"].values >= 0) & ~data["added"].values & (data["end"].values >= 0)
    if named != "delete":  # the only token of a text cannot be deleted
        check_finite(np.array([effect[row][own[row]].sum() for row in rows]), read.texts, "score without a token")
    agree = rank_correlations(data["token_attribution"].values, effect, own)
    lost_by = {"long_name": "score lost when the token is put at the baseline", "units": data.attrs["units"]}
    ranks = {"long_name": "Spearman's rank correlation of attribution and patching over tokens", "units": "1"}
    return Attribution(
        data.assign(
            patching_effect=as_variable(("prompt", "pos", "label"), effect, lost_by),
            patching_rank_correlation=as_variable(("prompt", "label"), agree, ranks),
        ).assign_attrs(patched_texts=len(rows))
    )
