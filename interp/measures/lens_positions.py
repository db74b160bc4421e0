"""Logit lens at every position of the prompt."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import xarray as xr

from interp.measures.arrays import (
    TokenTexts,
    dataset,
    variable,
)
from interp.measures.findings import (
    Row,
    Table,
    at_sites,
)
from interp.measures.lens import compare_lenses_of_rows, lens_sites
from interp.measures.measure import Measure, Needs, Section
from interp.models import Trace


def lens_positions(base: Trace, tuned: Trace) -> xr.Dataset:
    """Logit lens at every position of the prompt, each model through its own head: top token, and KL(tuned || base).

    Padding and responses are NaN and empty.
    """
    batch, sites = base.batch, lens_sites(base.policy)
    lengths = batch.prompt_lengths
    width = int(lengths.max())
    real = torch.arange(width, device=lengths.device) < lengths[:, None]
    shape = (len(lengths), len(sites), width)
    kls, tops = torch.full(shape, torch.nan, dtype=torch.float64), torch.full((2, *shape), -1)
    for index, site in enumerate(sites):
        rows = [batch.aligned(trace[site])[:, :width][real.to(trace[site].device)] for trace in (base, tuned)]
        found = compare_lenses_of_rows((base, tuned), rows)
        kls[:, index][real.cpu()] = found["kl"]
        for model in (0, 1):
            tops[model, :, index][real.cpu()] = found["top"][:, model]
    tops = tops.movedim(0, 1)
    return dataset(
        {
            "lens_pos_kl": variable("prompt site pos", kls, "logit lens by position: KL(tuned || base)", "nats"),
            "lens_pos_top_token": variable(
                "prompt model site pos",
                TokenTexts(base.policy.tokenizer).of(tops),
                "logit lens by position: likeliest token",
            ),
        },
        site=[str(site) for site in sites],
        pos=range(width),
    )


def findings(table: Table) -> Iterator[Row]:
    """The sites whose lenses lie furthest apart over the whole prompt."""

    def mean(data: xr.Dataset) -> np.ndarray:
        return np.nanmean(data["lens_pos_kl"].values, axis=2)

    def name(site: str, _: np.ndarray) -> str:
        return f"{site}: KL(tuned || base) of the lenses, mean over prompt tokens"

    yield from table.largest("logit lens", name, at_sites(mean), "nats")


LENS_POSITIONS = Measure(
    name="lens_positions",
    title="Logit lens by position",
    meaning="At what depth and position of the prompt the two models' read-outs part.",
    formula="unembedding(final norm(residual)) at every prompt token",
    source="nostalgebraist 2020, interpreting GPT: the logit lens",
    units="nats",
    misleads="The figure shows the first prompt only; the summary has the mean over all.",
    group="Layers",
    needs=Needs(sites=lens_sites),
    arrays=("lens_pos_kl", "lens_pos_top_token"),
    per_batch=lens_positions,
    findings=findings,
    sections=(
        Section(
            "lens_positions",
            "At what depth and position they part",
            "Lens by position",
            alt="Heat map over layers and positions of the KL divergence between the two models' logit lenses.",
            caption=(
                "The logit lens at every token of the first prompt. Bright: the two models' read-outs are far apart "
                "there. Where there is room a cell holds tuned's likeliest token, in bold where it is not base's."
            ),
            readings=(("logit lens", "mean over prompt tokens"),),
        ),
    ),
)
