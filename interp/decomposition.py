"""Taking the last residual apart: what each component writes, and the direction by which each write is read.

Every norm on the way is linear once its scale is frozen at what this pass had, so a linear function of the normed last
residual (a logit difference, a head's pre-activation) is an exact sum over components of write . direction, plus a
constant. In a pre-norm model all components share one direction; where norms take sums (BERT, OPT-350m) each is read
through the norms that come after it. (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; frozen
norms as in TransformerLens.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.families import NormParameters, Parts, norm_parameters
from interp.families.parts import StackName
from interp.hooks import Site

Read = Callable[[Site], Tensor]
"""From a site to its activation at the rows in question, float64: [row, d_model], of z [row, head, d_head]."""


def residual_sites(parts: Parts, stack: StackName | None = None) -> list[Site]:
    """The terms of the last residual: embeddings, then by layer attention, attention to an encoder, and MLP."""
    found = [Site("embed", None, stack)]
    if stack is None and parts.pos_embed is not None:
        found.append(Site("pos_embed"))
    cross = stack is None and parts.layout().cross is not None
    for layer in range(parts.n_encoder_layers if stack == "encoder" else parts.n_layers):
        found.append(Site("attn_out", layer, stack))
        found += [Site("attn_out", layer, "cross")] if cross else []
        found.append(Site("mlp_out", layer, stack))
    return found


def decomposition_sites(parts: Parts) -> list[Site]:
    """What `directions` and `carried_terms` read: the terms, the sums that norms take, and the last residual."""
    sites = [*residual_sites(parts), Site("resid_post", parts.n_layers - 1)]
    return sites + [site for site, _ in _norms_of_sums(parts)]


def head_sites(parts: Parts) -> list[Site]:
    """Z of every head that writes into the last residual's stack."""
    stacks: list[StackName | None] = [None, "cross"] if parts.layout().cross is not None else [None]
    return [Site("z", layer, stack) for stack in stacks for layer in range(parts.n_layers)]


def _norms_of_sums(parts: Parts) -> Iterator[tuple[Site, NormParameters]]:
    """In the order of the pass, the norms that take a sum, the last one (which is the final norm) left out."""
    if not parts.layout().norm_of_sum:
        return
    for layer in range(parts.n_layers):
        for name, part in (("resid_mid", "attn_norm"), ("resid_post", "mlp_norm")):
            norm = parts.norm(layer, part)
            if norm is not None and (name, layer) != ("resid_post", parts.n_layers - 1):
                yield Site(name, layer), norm


def _normed_after(parts: Parts) -> Mapping[Site, Site]:
    """With norms of sums: for each term but the embeddings, the sum into which it goes."""
    pairs = {"attn_out": "resid_mid", "mlp_out": "resid_post"}
    return {Site(name, i): Site(total, i) for name, total in pairs.items() for i in range(parts.n_layers)}


@dataclass(frozen=True)
class Directions:
    """How one model's last residual is read, for each row; float64.

    Attributes:
        sites: for each term of the residual, the direction by which it is read.
        constant: what norms' shifts and the readout's bias add.
    """

    sites: Mapping[Site, Float[Tensor, "row d_model"]]
    constant: Float[Tensor, " row"]


def directions(parts: Parts, read: Read, target: Float[Tensor, "row d_model"]) -> Directions:
    """The direction by which each term of the residual is read, for a target direction of the normed last residual.

    With gain g, shift b and frozen scale s of a norm, v . norm(r) = r . centre(v * g / s) + v . b.

    Args:
        parts: the model.
        read: activations at the sites of `decomposition_sites`.
        target: for a logit, its column of `Parts.unembedding`; for a difference, the difference of columns.
    """
    target = target.double()
    final = Site("resid_post", parts.n_layers - 1)
    norm = norm_parameters(parts.final_norm)
    constant = torch.zeros(len(target), dtype=torch.float64, device=target.device)
    direction = _pull(norm, read(final).to(target.device), target)
    constant = constant + _shift(norm, target)
    found: dict[Site, Tensor] = {}
    norms = dict(_norms_of_sums(parts))
    sums = _normed_after(parts) if norms else {}
    for site in reversed(residual_sites(parts)):
        # Walking back, the direction changes where the term just passed was added to a sum that is normed.
        total = sums.get(site)
        if total is not None and total in norms:
            constant = constant + _shift(norms[total], direction)
            direction = _pull(norms[total], read(total).to(target.device), direction)
        found[site] = direction
    return Directions(found, constant)


def _pull(norm: NormParameters, into: Tensor, direction: Tensor) -> Tensor:
    norm = norm.to(direction.device)
    return norm.pull(direction, norm.scale(into))


def _shift(norm: NormParameters, direction: Tensor) -> Tensor:
    return torch.zeros_like(direction[:, 0]) if norm.shift is None else direction @ norm.shift.to(direction.device)


def attribute_terms(parts: Parts, read: Read, way: Directions) -> Float[Tensor, "row term"]:
    """What each term of `residual_sites` adds to the target: its write, dotted with its direction."""
    return torch.stack(
        [(read(site).to(way.constant.device) * way.sites[site]).sum(-1) for site in residual_sites(parts)], dim=1
    )


def attribute_heads(
    parts: Parts, read: Read, way: Directions, layer: int, stack: StackName | None = None
) -> tuple[Float[Tensor, "row head"], Float[Tensor, " row"]]:
    """What each head of an attention adds to the target, and what its output bias adds; together, its term.

    The direction is taken back through a norm after the sublayer (Gemma-2, OLMo-2), if there is one, and through W_O,
    so no head's write is ever made.

    Args:
        parts: the model.
        read: activations, z among them.
        way: directions of this model, or of another to see its writes through that one's reading.
        layer: index of the block.
        stack: None, or "cross".
    """
    z = read(Site("z", layer, stack)).to(way.constant.device)
    weight, bias = parts.W_O(layer, stack).detach().to(z), parts.b_O(layer, stack)
    bias = torch.zeros(weight.shape[-1]).to(z) if bias is None else bias.detach().to(z)
    direction = way.sites[Site("attn_out", layer, stack)]
    norm = parts.norm(layer, "attn_post_norm", stack)
    shift = torch.zeros_like(way.constant)
    if norm is not None:
        shift = _shift(norm, direction)
        direction = _pull(norm, (z.flatten(1) @ weight.flatten(0, 1)) + bias, direction)
    read_by_head = torch.einsum("hdm,rm->rhd", weight, direction)
    return (z * read_by_head).sum(-1), direction @ bias + shift


def neuron_direction(
    parts: Parts, read: Read, way: Directions, layer: int
) -> tuple[Float[Tensor, "row d_model"], Float[Tensor, " row"]]:
    """The direction by which the output of an MLP's last projection is read, and what norm and output bias add.

    A neuron's part is its activation times (its row of `Parts.W_down` . direction).

    Args:
        parts: the model.
        read: activations, `mlp_post` of the layer among them where a norm follows the MLP.
        way: directions.
        layer: index of the block.
    """
    direction = way.sites[Site("mlp_out", layer)]
    weight, bias = parts.W_down(layer)
    bias = torch.zeros(weight.shape[-1]).to(direction) if bias is None else bias.detach().to(direction)
    norm = parts.norm(layer, "mlp_post_norm")
    shift = torch.zeros_like(way.constant)
    if norm is not None:
        shift = _shift(norm, direction)
        output = read(Site("mlp_post", layer)).to(direction) @ weight.detach().to(direction) + bias
        direction = _pull(norm, output, direction)
    return direction, direction @ bias + shift


def carried_terms(parts: Parts, read: Read) -> Float[Tensor, "row term_and_shift d_model"]:
    """What is left of each term in the last residual (`resid_post` of the last block), and of all norms' shifts.

    In a pre-norm model the terms themselves; where norms take sums, after the norms that follow, scales frozen. The
    rows sum to the last residual.
    """
    norms, sums = dict(_norms_of_sums(parts)), _normed_after(parts)
    terms: list[Tensor] = []
    shift: Tensor | None = None
    for site in residual_sites(parts):
        write = read(site)
        shift = torch.zeros_like(write) if shift is None else shift.to(write.device)
        terms = [*(term.to(write.device) for term in terms), write]
        total = sums.get(site)
        if total is not None and total in norms:
            norm = norms[total].to(write.device)
            scale = norm.scale(read(total).to(write.device))
            terms = [norm.carry(term, scale) for term in terms]
            shift = norm.carry(shift, scale) + (0 if norm.shift is None else norm.shift)
    assert shift is not None
    return torch.stack([*terms, shift], dim=1)
