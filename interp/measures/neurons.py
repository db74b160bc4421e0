"""The MLP neurons whose direct logit attribution changed most."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from interp.decomposition import Directions, decomposition_sites, neuron_direction, residual_sites
from interp.hooks import Site
from interp.measures.arrays import (
    dataset,
    stack_models,
    variable,
)
from interp.measures.attribution import read_directions, split
from interp.measures.findings import (
    Cells,
    Row,
    Table,
    completeness_of,
    difference,
    parts_of,
)
from interp.measures.logit_diff import target_ids
from interp.measures.measure import Measure, Needs, Section
from interp.models import Policy, Trace
from interp.stats import selection_halves

TOP = 20
"""Neurons that are kept."""

EVERY = "every_neuron"  # what the batches hold until the whole set of prompts says which neurons are kept


def neuron_sites(policy: Policy) -> list[Site]:
    """The neurons and the output of every MLP, and the sums that norms on the way to the logits take."""
    terms = set(residual_sites(policy.parts))
    sums = [site for site in decomposition_sites(policy.parts) if site not in terms]
    layers = range(policy.parts.n_layers)
    return [*(Site(name, layer) for name in ("mlp_post", "mlp_out") for layer in layers), *sums]


def neuron_attribution(writer: Trace, way: Directions) -> Float[Tensor, "prompt layer neuron"]:
    """What every MLP neuron adds to the target at each prompt's last token, logits, float64, on the CPU.

    The activation of neuron i times W_down[i] . d, with d the direction by which the MLP's output is read, all norms'
    scales frozen (see `interp.decomposition`).

    Args:
        writer: activations and weights of the neurons.
        way: directions of the same model, or of another to see the writes through that one's reading.
    """
    found = []
    for layer in range(writer.policy.parts.n_layers):
        direction, _ = neuron_direction(writer.policy.parts, writer.last, way, layer)
        weight = writer.policy.parts.W_down(layer)[0].detach().to(direction)
        activation = writer.last(Site("mlp_post", layer)).to(direction.device)
        found.append((activation * (direction @ weight.T)).cpu())
    return torch.stack(found, dim=1)


def neuron_error(
    trace: Trace, way: Directions, by_neuron: Float[Tensor, "prompt layer neuron"]
) -> Float[Tensor, " prompt"]:
    """|sum of all neurons and of what is no neuron's - sum of the MLPs' attributions|, logits.

    No neuron's are the MLPs' output biases and the shifts of norms that follow them.
    """
    total = by_neuron.sum((1, 2))
    for layer in range(trace.policy.parts.n_layers):
        _, rest = neuron_direction(trace.policy.parts, trace.last, way, layer)
        site = Site("mlp_out", layer)
        whole = (trace.last(site).to(rest.device) * way.sites[site].to(rest.device)).sum(-1)
        total = total + (rest - whole).cpu()
    return total.abs()


def neurons(base: Trace, tuned: Trace) -> xr.Dataset:
    """Direct logit attribution of every neuron, float32, until `most_changed` chooses among them.

    In both models, and the change of what is written (see `interp.measures.attribution.split`), for the target of
    `attribution`. Until then a prompt takes 12 bytes a neuron of the model.
    """
    targets = target_ids(base, tuned).cpu()
    ways = [read_directions(trace, targets) for trace in (base, tuned)]
    (bb, bt), (tb, tt) = ([neuron_attribution(writer, way) for way in ways] for writer in (base, tuned))
    write, _ = split(bb, tt, bt, tb)
    errors = [neuron_error(*each) for each in zip((base, tuned), ways, (bb, tt), strict=True)]
    return dataset(
        {
            EVERY: variable("prompt kind layer every", torch.stack([bb, tt, write], dim=1).float(), "every neuron"),
            "neuron_completeness_error": variable(
                "prompt model", stack_models(*errors), "|sum of neurons and biases - MLPs' attribution|", "logits"
            ),
        }
    )


def most_changed(data: xr.Dataset) -> xr.Dataset:
    """Keep the `TOP` neurons with the largest |mean change|, largest first.

    They are chosen on the selecting half of the prompts (see `interp.stats.selection_halves`).

    Args:
        data: what `neurons` gave on all prompts, with the prompts' `group`.

    Returns:
        The same with `neuron_attribution[prompt, model, neuron]` and its split into `neuron_attribution_write` and
        `_readout` instead; `neuron` counts from 0, and its coordinates `neuron_layer` and `neuron_index` say which
        neuron it is.
    """
    every = data[EVERY].values
    select, _ = selection_halves(np.asarray(data["group"].values))
    change = np.abs((every[select, 1] - every[select, 0]).mean(0, dtype=np.float64))
    order = np.argsort(-change, axis=None, kind="stable")[:TOP]
    layers, indices = np.unravel_index(order, change.shape)
    base, tuned, write = (every[:, kind][:, layers, indices].astype(np.float64) for kind in range(3))
    name, both = "direct logit attribution by neuron", np.stack([base, tuned], axis=1)
    kept = dataset(
        {
            "neuron_attribution": variable("prompt model neuron", both, name, "logits"),
            "neuron_attribution_write": variable("prompt neuron", write, "change of what is written", "logits"),
            "neuron_attribution_readout": variable(
                "prompt neuron", tuned - base - write, "change of how it is read", "logits"
            ),
        },
        neuron=range(len(order)),
    )
    named = {"neuron_layer": ("neuron", layers), "neuron_index": ("neuron", indices)}
    return data.drop_vars(EVERY).merge(kept.assign_coords(named))


def findings(table: Table) -> Iterator[Row]:
    """The MLP neurons whose direct logit attribution changed most."""

    def labels(data: xr.Dataset) -> list[tuple[int, int]]:
        indices = (data["neuron_layer"].values, data["neuron_index"].values)
        return [(int(layer), int(index)) for layer, index in zip(*indices, strict=True)]

    def name(label: tuple[int, int], rows: np.ndarray) -> str:
        rank = labels(table.data).index(label)
        return f"L{label[0]}.mlp neuron {label[1]}: tuned minus base " + parts_of(
            table, "neuron_attribution", (rank,), rows
        )

    def cells(data: xr.Dataset) -> Cells:
        return Cells(difference("neuron_attribution")(data), labels(data))

    error = completeness_of(table, "neuron_completeness_error")
    yield from table.largest("attribution by neuron", name, cells, "logits", completeness=error)


NEURONS = Measure(
    name="neurons",
    title="MLP neurons",
    meaning="Which MLP neurons write the change of the answer's logit minus the alternative's.",
    formula="activation_i times W_down[i] . direction, the norms' scales frozen",
    source="Elhage et al. 2021, A Mathematical Framework for Transformer Circuits",
    units="logits",
    misleads="The neurons shown are the largest of very many, so expect them to shrink on other prompts.",
    group="Attribution",
    needs=Needs(sites=neuron_sites),
    arrays=(
        "neuron_attribution",
        "neuron_attribution_write",
        "neuron_attribution_readout",
        "neuron_completeness_error",
        EVERY,
    ),
    per_batch=neurons,
    finish=most_changed,
    findings=findings,
    sections=(
        Section(
            "neurons",
            "Which MLP neurons write the difference",
            "Neurons",
            alt="Dot chart of the attribution of the MLP neurons that changed most, and bars of tuned minus base.",
            caption=(
                "Direct logit attribution of single MLP neurons (layer.index), those whose mean attribution changed "
                "most. The shaded range reaches as far as the largest neuron of the control runs, each of which has "
                "neurons of its own."
            ),
            readings=(("attribution by neuron", ""),),
        ),
    ),
)
