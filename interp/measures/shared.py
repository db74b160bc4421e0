"""What the shared vocabulary of two models leaves out."""

from __future__ import annotations

import torch
import xarray as xr

from interp.measures.arrays import dataset, stack_models, variable
from interp.models import Trace


def mass_outside(base: Trace, tuned: Trace) -> xr.Dataset:
    """Probability, at each prompt's last token, of the tokens that the two models do not share.

    Every other measure of distributions is taken on the shared tokens, renormalised.
    """
    zero = torch.zeros(len(base.batch.input_ids), dtype=torch.float64)
    outside = [zero if trace.outside is None else trace.outside for trace in (base, tuned)]
    return dataset(
        {
            "mass_outside": variable(
                "prompt model", stack_models(*outside), "probability outside the shared vocabulary", "probability"
            )
        }
    )
