"""How long the residual stream is in both models, and how far it turned, layer by layer."""

from __future__ import annotations

from functools import partial

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from interp.measures.arrays import dataset, stack_models, variable
from interp.measures.lens import lens_sites
from interp.measures.spans import mean_over, prompt_columns
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
