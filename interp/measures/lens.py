"""Logit lens: what each layer's residual would predict if it were the last (nostalgebraist 2020)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from interp.divergences import kl_of_log_probs, log_probs
from interp.hooks import Site
from interp.measures.arrays import (
    TokenTexts,
    dataset,
    stack_models,
    variable,
)
from interp.measures.findings import (
    Cells,
    Row,
    Table,
    difference,
    sites_of,
)
from interp.measures.logit_diff import logit_difference, target_ids
from interp.measures.measure import Measure, Needs, Section
from interp.models import Policy, Trace

_MATRIX = 24 * 2**20  # numbers in a block of logits: enough rows for one product to be fast, and memory stays flat
_CACHED = 2**19  # numbers in a block of rows that are normalised at once: they stay in the processor's cache


def lens_sites(policy: Policy) -> list[Site]:
    """The residual before every layer, and after the last."""
    layers = policy.parts.n_layers
    return [Site("resid_pre", layer) for layer in range(layers)] + [Site("resid_post", layers - 1)]


def read(policy: Policy, residual: Float[Tensor, "*batch d_model"], width: int) -> Float[Tensor, "*batch vocab"]:
    """The first `width` logits of a residual through a model's own norm and unembedding, float32 or better."""
    device = next(policy.parts.readout.parameters()).device
    logits: Tensor = policy.parts.logits(residual.to(device))[..., :width]
    return logits if logits.dtype == torch.float64 else logits.float()


def lens(base: Trace, tuned: Trace) -> xr.Dataset:
    """Logit lens at each prompt's last token, each model through its own head: its final norm and unembedding.

    By layer: the logit difference and the probabilities of the two target tokens (see `target_ids`), the top token, and
    KL(tuned || base) of the two lenses.
    """
    sites = lens_sites(base.policy)
    found = lenses_by_site(base, tuned, (base, tuned))
    return dataset(
        {
            "lens_logit_diff": variable(
                "prompt model site", found["diff"], "logit lens: answer minus alternative", "logits"
            ),
            "lens_answer_prob": variable(
                "prompt model answer site", found["prob"], "logit lens: probability of the answers", "probability"
            ),
            "lens_top_token": variable(
                "prompt model site", TokenTexts(base.policy.tokenizer).of(found["top"]), "logit lens: likeliest token"
            ),
            "lens_kl": variable("prompt site", found["kl"], "logit lens: KL(tuned || base)", "nats"),
        },
        site=[str(site) for site in sites],
    )


def lenses_by_site(base: Trace, tuned: Trace, readers: tuple[Trace, Trace]) -> dict[str, Tensor]:
    """The lenses at the last token by `readers`' heads; the last dim of every tensor is the site."""
    targets, sites = target_ids(base, tuned).cpu(), lens_sites(base.policy)
    residuals = [torch.cat([trace.batch.at_last_prompt(trace[site]) for site in sites]) for trace in (base, tuned)]
    rows = compare_lenses_of_rows(readers, residuals, targets.repeat(len(sites), 1), key="lens")
    return {name: values.unflatten(0, (len(sites), -1)).movedim(0, -1) for name, values in rows.items()}


def compare_lenses_of_rows(
    readers: tuple[Trace, Trace],
    residuals: Sequence[Float[Tensor, "row d_model"]],
    targets: Int[Tensor, "row 2"] | None = None,
    *,
    key: str | None = None,
) -> dict[str, Tensor]:
    """The lenses of rows of residuals, a few rows at a time: `kl` and `top`, and with targets `diff` and `prob` too.

    Args:
        readers: by whose heads base's and tuned's residuals are read.
        residuals: of base and of tuned.
        targets: ids of the answer and of the alternative, by row.
        key: under which base's trace keeps base's lenses; None keeps none.

    Returns:
        Tensors whose first dim is the row; after it comes the model, where there are two.
    """
    vocab = readers[0].logits.shape[-1]
    step, base = max(1, _MATRIX // vocab), readers[0]
    blocks: list[dict[str, Tensor]] = []
    for start in range(0, len(residuals[0]), step):
        rows = slice(start, start + step)
        sides = [_lenses(*side) for side in zip(readers, (residual[rows] for residual in residuals), strict=True)]
        if key is not None and base.cache is not None:
            sides[0] = iter(base.once((key, start), partial(list, sides[0])))
        first = start
        for both in zip(*sides, strict=True):
            part = slice(first, first := first + len(both[0].log_p))
            blocks.append(_compare_lenses(both, None if targets is None else targets[part]))
    return {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}


@dataclass(frozen=True)
class _Lens:
    """One model's lens on some rows."""

    logits: Float[Tensor, "row vocab"]
    log_p: Float[Tensor, "row vocab"]
    top: Int[Tensor, " row"]


def _lenses(reader: Trace, residual: Float[Tensor, "row d_model"]) -> Iterator[_Lens]:
    """The lens of some rows, a few at a time that stay in the processor's cache, out of one product."""
    vocab = reader.logits.shape[-1]
    for logits in read(reader.policy, residual, vocab).cpu().split(max(1, _CACHED // vocab)):
        # NumPy's argmax is six times as fast as torch's, which would be a tenth of the lens.
        yield _Lens(logits, log_probs(logits), torch.from_numpy(logits.numpy().argmax(-1)))


def _compare_lenses(both: Sequence[_Lens], targets: Int[Tensor, "row 2"] | None) -> dict[str, Tensor]:
    """What `compare_lenses_of_rows` says of the lenses of base's and of tuned's residuals."""
    base, tuned = both
    found = {"kl": kl_of_log_probs(tuned.log_p, base.log_p), "top": torch.stack([base.top, tuned.top], dim=1)}
    if targets is not None:
        found |= {
            "diff": stack_models(*(logit_difference(each.logits, targets) for each in both)),
            "prob": stack_models(*(each.log_p.gather(1, targets).double().exp() for each in both)),
        }
    return found


def findings(table: Table) -> Iterator[Row]:
    """The steps from site to site at which the lenses part most."""
    sites = sites_of(table.data)
    steps = [f"from {a} to {b}" for a, b in zip(sites, sites[1:], strict=False)]
    change = difference("lens_logit_diff")

    def step(data: xr.Dataset) -> Cells:
        return Cells(np.diff(change(data), axis=1), steps)

    yield from table.largest("logit lens", lambda label, _: f"tuned minus base: change {label}", step, "logits")


LENS = Measure(
    name="lens",
    title="Logit lens",
    meaning="What each layer's residual stream would predict if it were the last, each model through its own head.",
    formula="unembedding(final norm(residual)) at the last prompt token",
    source="nostalgebraist 2020, interpreting GPT: the logit lens",
    units="logits, probability, nats",
    misleads=(
        "Early layers need not write in the last layer's basis: a read-out that says little is no proof that the "
        "information is absent."
    ),
    group="Layers",
    when="by default",
    needs=Needs(sites=lens_sites),
    arrays=("lens_logit_diff", "lens_answer_prob", "lens_top_token", "lens_kl"),
    per_batch=lens,
    findings=findings,
    sections=(
        Section(
            "lens",
            "At what depth the models part",
            "Logit lens",
            alt=(
                "Line charts over layers: logit difference of base and of tuned, and KL divergence between their "
                "read-outs."
            ),
            caption=(
                "Logit lens: the residual stream before every layer, read out with each model's own final norm and "
                "unembedding. Where the curves part is where the change becomes visible to the read-out. Tuned's "
                "stream read through base's head leaves the change of the head out. Lines are means over prompts."
            ),
            readings=(("logit lens", ""),),
        ),
    ),
)
