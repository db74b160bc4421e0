"""What a head reads and writes: the leading singular directions of its OV circuit, as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.families import Parts, norm_parameters
from interp.measures.arrays import MODELS, TokenTexts, dataset, variable
from interp.measures.next_token import TOP
from interp.measures.weights import ov_factors
from interp.models import Policy

DIRECTIONS = 3
"""Leading singular directions of each head that are shown."""

_ROWS = 16384  # rows of the vocabulary that are held in float32 at once


@dataclass(frozen=True)
class Directions:
    """Leading singular directions of a head's W_V W_O, largest first.

    Attributes:
        values: singular values.
        reads: left vectors, on the side of the residual that is read.
        writes: right vectors, on the side that is written.
    """

    values: Float[Tensor, " direction"]
    reads: Float[Tensor, "d_model direction"]
    writes: Float[Tensor, "d_model direction"]


def singular_directions(value: Float[Tensor, "d_model d_head"], output: Float[Tensor, "d_head d_model"]) -> Directions:
    """Singular value decomposition of value @ output without the product: of R_V R_O^T, where QR = V and QR = O^T."""
    left, right = torch.linalg.qr(value), torch.linalg.qr(output.mT)
    u, values, vh = torch.linalg.svd(left.R @ right.R.mT)
    return Directions(values[:DIRECTIONS], left.Q @ u[:, :DIRECTIONS], right.Q @ vh.mT[:, :DIRECTIONS])


def scores(
    vocabulary: Float[Tensor, "vocab d_model"], directions: Float[Tensor, "d_model direction"]
) -> Float[Tensor, "vocab direction"]:
    """Product of each token's vector with each direction, float32, some rows at a time."""
    rows = vocabulary.detach().split(_ROWS)
    wanted = directions.to(vocabulary.device, torch.float32)
    return torch.cat([(row.float() @ wanted).cpu() for row in rows])


def read_and_written(
    parts: Parts, layer: int, head: int
) -> tuple[Float[Tensor, " direction"], Int[Tensor, "side direction rank"]]:
    """What `circuits` says of one head."""
    return circuits(parts, [(layer, head)])[0]


def circuits(
    parts: Parts, heads: Sequence[tuple[int, int]]
) -> list[tuple[Float[Tensor, " direction"], Int[Tensor, "side direction rank"]]]:
    """For each (layer, head) the singular values of its OV circuit, and the tokens of its directions.

    A token's embedding is multiplied with the left singular vector, and the right one with the unembedding, each
    through the gain of the norm that lies between. The sign of a pair of vectors is chosen so that the written logit
    that is largest in size is positive.

    Returns:
        (singular values, token ids of what is read and of what is written), the largest product first.
    """
    found = [_through_norms(parts, layer, head) for layer, head in heads]
    # The vocabulary is read once for all heads, which is what takes the time.
    reads, writes = (torch.cat([each[side] for each in found], dim=1) for side in (1, 2))
    embedding, into = parts.embed.weight, parts.embed_out
    assert isinstance(embedding, Tensor)
    embedding = embedding[: parts.vocab]
    if into is not parts.embed and isinstance(into, nn.Linear):  # a narrower embedding, as in OPT-350m
        reads = into.weight.detach().to(reads).T @ reads
    read, written = scores(embedding, reads), scores(parts.unembedding()[0].T, writes)
    sign = written.gather(0, written.abs().argmax(0, keepdim=True)).sign()
    count = min(TOP, len(written), len(read))
    tops = torch.stack([(side * sign).topk(count, dim=0).indices.T for side in (read, written)])
    sizes = [values for values, _, _ in found]
    return list(zip(sizes, tops.split([len(values) for values in sizes], dim=1), strict=True))


def _through_norms(
    parts: Parts, layer: int, head: int
) -> tuple[Float[Tensor, " direction"], Float[Tensor, "d_model direction"], Float[Tensor, "d_model direction"]]:
    """Singular values and directions of a head, as the embedding and the unembedding meet them behind the norms."""
    values, outputs = ov_factors(parts, layer)
    found = singular_directions(values[head], outputs[head])
    writes = found.writes
    for norm in (parts.norm(layer, "attn_post_norm"), norm_parameters(parts.final_norm)):
        writes = writes if norm is None else norm.to(writes.device).carry(writes.T, torch.ones(1).to(writes)).T
    reads, before = found.reads, None if parts.layout().norm_of_sum else parts.norm(layer, "attn_norm")
    if before is not None:
        reads = before.to(reads.device).pull(reads.T, torch.ones(1).to(reads)).T
    return found.values.cpu(), reads, writes


def ov_circuits(base: Policy, tuned: Policy, heads: Sequence[tuple[int, int]]) -> xr.Dataset:
    """What some heads read and write in both models, by the leading singular directions of W_V W_O.

    (Millidge and Black 2022, "The Singular Value Decompositions of Transformer Weight Matrices are Highly
    Interpretable".) Directions are ordered by singular value in each model by itself, so that near-equal ones may swap.

    Args:
        base: base model.
        tuned: tuned model.
        heads: (layer, head) of each.
    """
    pairs = list(zip(*(circuits(policy.parts, heads) for policy in (base, tuned)), strict=True))
    sizes = torch.stack([torch.stack([values for values, _ in pair]) for pair in pairs])
    ids = torch.stack([torch.stack([tokens for _, tokens in pair]) for pair in pairs])
    texts = TokenTexts(base.tokenizer).of(ids)
    dims = "changed_head model ov_direction"
    return dataset(
        {
            "ov_singular_value": variable(dims, sizes, "singular value of the head's W_V W_O", "1"),
            "ov_reads": variable(f"{dims} rank", texts[:, :, 0], "tokens that the head's OV circuit reads"),
            "ov_writes": variable(f"{dims} rank", texts[:, :, 1], "tokens that the head's OV circuit writes"),
        },
        model=list(MODELS),
        ov_direction=range(sizes.shape[-1]),
        rank=range(ids.shape[-1]),
    )
