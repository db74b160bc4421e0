"""What the shared vocabulary of two models leaves out."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import xarray as xr

from interp.measures.arrays import (
    dataset,
    stack_models,
    variable,
)
from interp.measures.findings import (
    Row,
    Table,
    of_model,
)
from interp.measures.measure import Measure, Section
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


def findings(table: Table) -> Iterator[Row]:
    """Probability of the tokens that only one of the models has."""
    for model in ("base", "tuned"):
        if float(table.data["mass_outside"].sel(model=model).max()) > 0 or model == "tuned":
            name, values = f"{model}'s probability outside the shared vocabulary", of_model("mass_outside", model)
            of = "base" if model == "base" else "tuned"
            yield table.row("next token", name, values, "probability", of=of)  # type: ignore[arg-type]


MASS_OUTSIDE = Measure(
    name="mass_outside",
    title="Probability of tokens that only one model has",
    meaning="How much probability each model gives to tokens that the other lacks.",
    formula="sum of the probabilities at the last prompt token, over the tokens that only one of the models has",
    units="probability",
    misleads="All other measures are on the shared tokens, renormalised; where this is large they leave much out.",
    group="Next token",
    when="where vocabularies differ",
    per_batch=mass_outside,
    findings=findings,
    sections=(
        Section(
            "mass_outside",
            "Probability of tokens that base does not have",
            "Added tokens",
            alt="Points of the probability outside the shared vocabulary, prompt by prompt.",
            caption=(
                "Tuned's vocabulary is base's with tokens added. All other readings are on the shared tokens, "
                "renormalised; this is the probability that they leave out."
            ),
            readings=(("next token", "outside"),),
            optional=True,
        ),
    ),
)
