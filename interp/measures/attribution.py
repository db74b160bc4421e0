"""Direct logit attribution: what each component writes straight into a logit difference.

With the norms' scales frozen, the difference of two logits is an exact sum over components of write . direction, plus a
constant that forms the component `bias` (`interp.decomposition`). Each model is read through its own norms and
unembedding. Where a soft cap follows (Gemma-2), the sum is that of the logits before the cap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from interp.decomposition import (
    Directions,
    attribute_heads,
    attribute_terms,
    decomposition_sites,
    directions,
    head_sites,
    residual_sites,
)
from interp.hooks import Site
from interp.measures.arrays import (
    Variable,
    dataset,
    stack_models,
    variable,
)
from interp.measures.findings import (
    Cells,
    Label,
    Row,
    Table,
    by_head,
    completeness_of,
    difference,
    parts_of,
)
from interp.measures.logit_diff import logit_difference, target_ids
from interp.measures.measure import Measure, Needs, Section
from interp.models import Policy, Trace


def attribution_sites(policy: Policy) -> list[Site]:
    """The residual's terms, the sums that norms take, every head's z, and the final residual."""
    return [*decomposition_sites(policy.parts), *head_sites(policy.parts)]


def read_directions(
    trace: Trace, targets: Int[Tensor, "prompt 2"], slope: Float[Tensor, "prompt 2"] | None = None
) -> Directions:
    """How each term is read at each prompt's last token, for the logit of targets[:, 0] minus that of targets[:, 1].

    Args:
        trace: activations at the sites of `decomposition_sites`.
        targets: ids of the two tokens.
        slope: what each of the two logits is multiplied by, where it is not 1.

    Returns:
        Directions, whose `constant` holds the norms' shifts and the unembedding's bias.
    """
    weight, bias = trace.policy.parts.unembedding()
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64, device=weight.device)
    signs = signs.expand(len(targets), 2) if slope is None else signs * slope.to(weight.device)
    columns = weight.detach().T[targets.to(weight.device)].double()
    way = directions(trace.policy.parts, trace.last, (signs[..., None] * columns).sum(1))
    if bias is None:
        return way
    offsets = bias.detach().double()[targets.to(bias.device)].to(signs.device)
    return Directions(way.sites, way.constant + (signs * offsets).sum(1).to(way.constant.device))


@dataclass(frozen=True)
class Parted:
    """One model's writes seen through one model's reading, in logits; float64, on the CPU.

    Attributes:
        terms: each term of the residual.
        heads: each head, by layer; of attention to an encoder in `cross_heads`.
        attn_bias: output bias (and a norm's shift) of each attention, by layer.
        cross_heads: heads of the attention to an encoder, or None.
    """

    terms: Float[Tensor, "prompt term"]
    heads: Float[Tensor, "prompt layer head"]
    attn_bias: Float[Tensor, "prompt layer"]
    cross_heads: Float[Tensor, "prompt layer head"] | None


def part(writer: Trace, way: Directions) -> Parted:
    """What the parts of `writer`'s model write at each prompt's last token, read in the directions `way`."""
    parts = writer.policy.parts
    layers = range(parts.n_layers)
    own = [attribute_heads(parts, writer.last, way, layer) for layer in layers]
    cross = None
    if parts.layout().cross is not None:
        cross = torch.stack([attribute_heads(parts, writer.last, way, i, "cross")[0] for i in layers], dim=1).cpu()
    return Parted(
        attribute_terms(parts, writer.last, way).cpu(),
        torch.stack([heads for heads, _ in own], dim=1).cpu(),
        torch.stack([bias for _, bias in own], dim=1).cpu(),
        cross,
    )


def split(
    base: Float[Tensor, "*part"],
    tuned: Float[Tensor, "*part"],
    base_by_tuned: Float[Tensor, "*part"],
    tuned_by_base: Float[Tensor, "*part"],
) -> tuple[Float[Tensor, "*part"], Float[Tensor, "*part"]]:
    """Split tuned minus base exactly into the change of what is written and the change of how it is read.

    w_t . r_t - w_b . r_b = (w_t - w_b) . (r_t + r_b) / 2 + (w_t + w_b) / 2 . (r_t - r_b).

    Args:
        base: base's writes read by base, w_b . r_b.
        tuned: tuned's writes read by tuned, w_t . r_t.
        base_by_tuned: base's writes read by tuned, w_b . r_t.
        tuned_by_base: tuned's writes read by base, w_t . r_b.

    Returns:
        (write, readout), which sum to tuned minus base.
    """
    crossed = tuned_by_base - base_by_tuned
    return ((tuned - base) + crossed) / 2, ((tuned - base) - crossed) / 2


def component_names(policy: Policy) -> list[str]:
    """Labels of the dim `component`: embeddings, attention and MLP of each layer, and `bias`."""
    short = {"attn_out": "attn", "mlp_out": "mlp"}

    def name(site: Site) -> str:
        if site.layer is None:
            return site.name
        return f"L{site.layer}.{'cross' if site.stack == 'cross' else short[site.name]}"

    return [*map(name, residual_sites(policy.parts)), "bias"]


def linear_difference(trace: Trace, targets: Int[Tensor, "prompt 2"]) -> Float[Tensor, " prompt"]:
    """The logit difference before a soft cap: the last quantity that is linear in the residual; float64, on the CPU."""
    parts = trace.policy.parts
    if parts.head.after is None:
        return logit_difference(trace.last_logits, targets).cpu()
    residual = trace.batch.at_last_prompt(trace[Site("resid_post", parts.n_layers - 1)])
    with torch.no_grad():
        return logit_difference(parts.linear_output(residual), targets).cpu()


def attribution(base: Trace, tuned: Trace) -> xr.Dataset:
    """Direct logit attribution of both models at each prompt's last token, by component and by head.

    The target is the prompts' answers, or tuned's top token minus base's likeliest other. `completeness_error` is
    |sum of all components - logit difference| by model (before a soft cap); heads and `attn_bias_attribution` sum to
    their attention's component. The write and readout parts sum to tuned minus base. With a soft cap,
    `attribution_capped` is the gradient-linearised attribution of the capped logits, and `linearisation_error` by how
    much its sum misses them.
    """
    targets = target_ids(base, tuned).cpu()
    asked = targets.numpy().tobytes()
    ways = [trace.once(("directions", asked), partial(read_directions, trace, targets)) for trace in (base, tuned)]
    bb = base.once(("attribution", asked), partial(part, base, ways[0]))
    bt, tb, tt = part(base, ways[1]), part(tuned, ways[0]), part(tuned, ways[1])
    constants = [way.constant.cpu() for way in ways]
    components = [torch.cat([own.terms, c[:, None]], dim=1) for own, c in zip((bb, tt), constants, strict=True)]
    exact = [linear_difference(trace, targets) for trace in (base, tuned)]
    errors = [(total.sum(1) - value).abs() for total, value in zip(components, exact, strict=True)]
    write, readout = split(bb.terms, tt.terms, bt.terms, tb.terms)
    # The bias has no activation: norms' shifts and the unembedding are all readout.
    write = torch.cat([write, torch.zeros(len(write), 1, dtype=write.dtype)], dim=1)
    readout = torch.cat([readout, (constants[1] - constants[0])[:, None]], dim=1)
    head_write, head_readout = split(bb.heads, tt.heads, bt.heads, tb.heads)
    name, change = "direct logit attribution", ("change of what is written", "change of how it is read")
    variables = {
        "attribution": variable("prompt model component", stack_models(*components), name, "logits"),
        "attribution_write": variable("prompt component", write, change[0], "logits"),
        "attribution_readout": variable("prompt component", readout, change[1], "logits"),
        "completeness_error": variable("prompt model", stack_models(*errors), "|sum - logit difference|", "logits"),
        "head_attribution": variable(
            "prompt model layer head", stack_models(bb.heads, tt.heads), f"{name} by head", "logits"
        ),
        "head_attribution_write": variable("prompt layer head", head_write, change[0], "logits"),
        "head_attribution_readout": variable("prompt layer head", head_readout, change[1], "logits"),
        "attn_bias_attribution": variable(
            "prompt model layer", stack_models(bb.attn_bias, tt.attn_bias), f"{name} of b_O", "logits"
        ),
    }
    if bb.cross_heads is not None and tt.cross_heads is not None:
        variables["cross_head_attribution"] = variable(
            "prompt model layer head",
            stack_models(bb.cross_heads, tt.cross_heads),
            f"{name} by head of the attention to the encoder",
            "logits",
        )
    if base.policy.parts.head.after is not None:
        variables |= _capped((base, tuned), targets)
    return dataset(
        variables,
        component=component_names(base.policy),
        layer=range(base.policy.parts.n_layers),
        head=range(base.policy.parts.n_heads),
    )


def _capped(traces: tuple[Trace, Trace], targets: Int[Tensor, "prompt 2"]) -> dict[str, Variable]:
    """Attribution of the capped logits: each of the two logits' directions times the cap's slope at it."""
    totals, errors = [], []
    for trace in traces:
        parts = trace.policy.parts
        residual = trace.batch.at_last_prompt(trace[Site("resid_post", parts.n_layers - 1)])
        with torch.no_grad():
            raw = parts.linear_output(residual).double().gather(1, targets.to(residual.device))
        with torch.enable_grad():
            raw.requires_grad_(True)
            assert parts.head.after is not None
            capped = parts.head.after(parts.model, raw)
            (slope,) = torch.autograd.grad(capped.sum(), raw)
        way = read_directions(trace, targets, slope)
        terms = attribute_terms(parts, trace.last, way)
        totals.append(torch.cat([terms, way.constant[:, None]], dim=1).cpu())
        difference = (capped[:, 0] - capped[:, 1]).detach().cpu()
        errors.append((totals[-1].sum(1) - difference).abs())
    name = "attribution of the capped logits, gradient-linearised"
    return {
        "attribution_capped": variable("prompt model component", stack_models(*totals), name, "logits"),
        "linearisation_error": variable(
            "prompt model", stack_models(*errors), "|sum - difference of the capped logits|", "logits"
        ),
    }


def findings(table: Table) -> Iterator[Row]:
    """The components and the heads whose direct logit attribution changed most."""
    if "attribution" in table.data:
        yield from _components(table)
    if "head_attribution" in table.data:
        yield from _heads(table)
    if "cross_head_attribution" in table.data:
        yield from _cross_heads(table)


def _components(table: Table) -> Iterator[Row]:
    """The components whose direct logit attribution changed most."""
    components = [str(name) for name in table.data["component"].values]
    change, error = difference("attribution"), completeness_of(table)

    def name(component: str, rows: np.ndarray) -> str:
        sides = parts_of(table, "attribution", (components.index(component),), rows)
        return f"{component}: tuned minus base {sides}"

    def cells(data: xr.Dataset) -> Cells:
        return Cells(change(data), components)

    def all_readout(run: xr.Dataset) -> np.ndarray:
        return np.asarray(run["attribution_readout"].values.sum(1))

    yield from table.largest("attribution", name, cells, "logits", completeness=error)
    yield table.row("attribution", "all components: change of the readout", all_readout, "logits", completeness=error)


def _heads(table: Table) -> Iterator[Row]:
    """The heads whose direct logit attribution changed most."""

    def name(label: Label, rows: np.ndarray) -> str:
        return f"L{label[0]}H{label[1]}: tuned minus base {parts_of(table, 'head_attribution', label, rows)}"

    cells = by_head(difference("head_attribution"))
    yield from table.largest("attribution by head", name, cells, "logits", completeness=completeness_of(table))


def _cross_heads(table: Table) -> Iterator[Row]:
    """The same of the heads that attend to an encoder."""
    cells = by_head(difference("cross_head_attribution"))
    yield from table.largest(
        "attribution by head",
        lambda label, _: f"L{label[0]}H{label[1]} of the attention to the encoder: tuned minus base",
        cells,
        "logits",
        completeness=completeness_of(table),
    )


ATTRIBUTION = Measure(
    name="attribution",
    title="Direct logit attribution",
    meaning="What each component and each head writes straight into the answer's logit minus the alternative's.",
    formula=(
        "write . direction, the norms' scales frozen; tuned minus base split into the change of what is written, at "
        "the mean read-out, and the change of the read-out, at the mean write"
    ),
    source="Elhage et al. 2021, A Mathematical Framework for Transformer Circuits",
    units="logits",
    misleads="These are direct effects: what a component does through later ones is not in them. Patch to see causes.",
    group="Attribution",
    when="by default",
    needs=Needs(sites=attribution_sites),
    arrays=(
        "attribution",
        "attribution_write",
        "attribution_readout",
        "completeness_error",
        "head_attribution",
        "head_attribution_write",
        "head_attribution_readout",
        "attn_bias_attribution",
        "cross_head_attribution",
        "attribution_capped",
        "linearisation_error",
    ),
    per_batch=attribution,
    findings=findings,
    sections=(
        Section(
            "attribution",
            "Which components write the difference",
            "Components",
            alt=(
                "Dot chart of every component's attribution in both models, and bars of tuned minus base split in "
                "two parts."
            ),
            caption=(
                "Direct logit attribution: what embedding, attention, MLP and biases add to the answer's logit "
                "minus the alternative's. Right: the change, split exactly into a change of what the component "
                "writes and a change of how the final norm and unembedding read it. These are direct effects only."
            ),
            readings=(("attribution", ""),),
        ),
        Section(
            "heads",
            "Which heads write the difference",
            "Heads",
            alt=(
                "Heat map over layers and heads of direct logit attribution, tuned minus base, with its two parts "
                "beside it."
            ),
            caption=(
                "Red: the head pushes more toward the answer in tuned than in base; blue: less. The change is split "
                "into what the head writes and how it is read out. The five largest cells are outlined; they are "
                "the largest of many, so expect some to shrink on other prompts."
            ),
            readings=(("attribution by head", ""),),
        ),
    ),
)
