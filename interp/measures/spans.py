"""Which columns of a batch are prompt tokens, and means over them."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.prompts import Batch


def prompt_columns(batch: Batch) -> Bool[Tensor, "batch seq"]:
    """True at the columns of prompt tokens, False at padding and response."""
    columns = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
    return (columns >= batch.first[:, None]) & (columns <= batch.last_prompt[:, None])


def mean_over(
    inside: Bool[Tensor, "batch seq"], values: Float[Tensor, "batch *part seq"]
) -> Float[Tensor, " batch *part"]:
    """Mean over the columns of `inside`, whatever stands in the others; float64, on the CPU."""
    mask = inside.to(values.device).reshape(len(inside), *[1] * (values.ndim - 2), -1)
    return (values.masked_fill(~mask, 0).sum(-1, dtype=torch.float64) / mask.sum(-1)).cpu()
