"""Logit lens of tuned's residual through base's head: what the residual alone changed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr

from interp.measures.arrays import (
    dataset,
    variable,
)
from interp.measures.findings import (
    Row,
    Table,
)
from interp.measures.lens import lens_sites, lenses_by_site
from interp.measures.measure import Measure, Needs
from interp.models import Trace


def lens_base_head(base: Trace, tuned: Trace) -> xr.Dataset:
    """Logit lens of tuned's residual through base's head, at each prompt's last token.

    Both residuals are read alike then, so that `lens_base_head_kl` = KL(tuned's residual || base's residual) is all the
    residual's doing, as is `lens_base_head_logit_diff` less base's own logit difference.
    """
    sites, found = lens_sites(base.policy), lenses_by_site(base, tuned, (base, base))
    through = "logit lens of tuned's residual through base's head"
    diff = found["diff"][:, 1]
    return dataset(
        {
            "lens_base_head_logit_diff": variable(
                "prompt site", diff, f"{through}: answer minus alternative", "logits"
            ),
            "lens_base_head_kl": variable("prompt site", found["kl"], f"{through}: KL to that of base's", "nats"),
        },
        site=[str(site) for site in sites],
    )


def findings(table: Table) -> Iterator[Row]:
    """What the residual alone changed: both models' last residuals read by base's head."""
    both = "both last residuals read by base's head"

    def last_kl(data: xr.Dataset) -> np.ndarray:
        return np.asarray(data["lens_base_head_kl"].isel(site=-1).values)

    def through_base(data: xr.Dataset) -> np.ndarray:
        base = data["lens_logit_diff"].sel(model="base", drop=True)
        return np.asarray((data["lens_base_head_logit_diff"] - base).isel(site=-1).values)

    yield table.row("logit lens", f"KL(tuned || base), {both}", last_kl, "nats")
    if "lens_logit_diff" in table.data:
        yield table.row("logit lens", f"tuned minus base, {both}", through_base, "logits")


LENS_BASE_HEAD = Measure(
    name="lens_base_head",
    title="Logit lens through base's head",
    meaning="What both models' residual streams predict if base's final norm and unembedding read both.",
    formula="unembedding_base(final norm_base(residual)) at the last prompt token",
    source="nostalgebraist 2020, interpreting GPT: the logit lens",
    units="logits, nats",
    misleads="Where the tuning turned residual and head together, base's head reads what tuned never shows it.",
    group="Layers",
    needs=Needs(sites=lens_sites),
    arrays=("lens_base_head_logit_diff", "lens_base_head_kl"),
    per_batch=lens_base_head,
    findings=findings,
)
