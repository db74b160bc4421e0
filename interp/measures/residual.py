"""How long the residual stream is in both models, and how far it turned, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from interp.measures.arrays import (
    dataset,
    mean_over,
    prompt_columns,
    stack_models,
    variable,
)
from interp.measures.findings import (
    Row,
    Table,
    at_sites,
    difference,
)
from interp.measures.lens import lens_sites
from interp.measures.measure import Measure, Needs, Section
from interp.models import Trace


def products(a: Float[Tensor, "*batch d_model"], b: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
    """Dot products of vectors, float32 or better, summed in float64."""
    precision = torch.promote_types(a.dtype, torch.float32)
    return (a.to(precision) * b.to(a.device, precision)).sum(-1, dtype=torch.float64)


def cosine(
    ab: Float[Tensor, "*batch"], aa: Float[Tensor, "*batch"], bb: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """a.b / sqrt(a.a b.b), exactly 1 where a equals b; 1 where both are zero and 0 where one is.

    Args:
        ab: product of both vectors.
        aa: product of the first with itself.
        bb: product of the second with itself.
    """
    size = (aa * bb).sqrt()
    value = (ab / size.where(size > 0, 1)).clamp(-1, 1)
    return torch.where(size > 0, value, (aa == bb).double())


def residual(base: Trace, tuned: Trace) -> xr.Dataset:
    """Norm of the residual in both models and cosine between the two, by site.

    ||r||_2 and cos(r_base, r_tuned), each the mean over the prompt's positions; `_last` is the value at the last prompt
    token. Padding and responses are left out.
    """
    batch, sites = base.batch, lens_sites(base.policy)
    inside = prompt_columns(batch)
    norms: dict[str, list[Tensor]] = {"mean": [], "last": []}
    cosines: dict[str, list[Tensor]] = {"mean": [], "last": []}
    for site in sites:
        b, t = base[site], tuned[site].to(base[site].device)
        bb, tt = base.once(("squares", site), partial(products, b, b)), products(t, t)
        turned = cosine(products(b, t), bb, tt)
        for kind, reduce in (("mean", lambda v: mean_over(inside, v)), ("last", batch.at_last_prompt)):
            norms[kind].append(stack_models(reduce(bb.sqrt()), reduce(tt.sqrt())))
            cosines[kind].append(reduce(turned).cpu())
    variables = {}
    for kind, end, where in (("mean", "", "mean over the prompt"), ("last", "_last", "at the last prompt token")):
        norm, turned = torch.stack(norms[kind], -1), torch.stack(cosines[kind], -1)
        variables[f"resid_norm{end}"] = variable(
            "prompt model site", norm, f"norm of the residual, {where}", "activation"
        )
        variables[f"resid_cosine{end}"] = variable(
            "prompt site", turned, f"cosine of base's and tuned's residual, {where}", "1"
        )
    return dataset(variables, site=[str(site) for site in sites])


def findings(table: Table) -> Iterator[Row]:
    """Where the residual turned most, and where its length changed most."""

    def turned(data: xr.Dataset) -> np.ndarray:
        return np.asarray(1 - data["resid_cosine"].values)

    def longer(data: xr.Dataset) -> np.ndarray:
        base = data["resid_norm"].sel(model="base").values
        return difference("resid_norm")(data) / np.where(base > 0, base, np.nan)

    names = ("1 - cosine of base's and tuned's residual", "relative change of the residual's norm")
    for values, what, count in ((turned, names[0], 2), (longer, names[1], 1)):

        def name(site: str, _: np.ndarray, what: str = what) -> str:
            return f"{site}: {what}"

        yield from table.largest("residual", name, at_sites(values), "1", count=count)


RESIDUAL = Measure(
    name="residual",
    title="Residual stream",
    meaning="How much longer the residual stream is in tuned, and how far it turned, layer by layer.",
    formula="||r||_2, and cos(r_base, r_tuned) on the same tokens",
    units="activation; cosine has none",
    misleads="A change of length alone is undone by the next norm; a change of direction is not.",
    group="Layers",
    when="by default",
    needs=Needs(sites=lens_sites),
    arrays=("resid_norm", "resid_cosine", "resid_norm_last", "resid_cosine_last"),
    per_batch=residual,
    findings=findings,
    sections=(
        Section(
            "residual",
            "How the residual stream turned",
            "Residual",
            alt=(
                "Line charts over layers of the norm of both models' residual stream and of the cosine between the two."
            ),
            caption=(
                "Left: how long the residual stream is in each model. Right: the cosine between the two models' "
                "streams on the same tokens; 1 is the same direction. A change of length alone is undone by the "
                "next norm, a change of direction is not."
            ),
            readings=(("residual", ""),),
        ),
    ),
)
