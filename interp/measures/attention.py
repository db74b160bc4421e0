"""How far the attention patterns of two models lie apart, head by head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from interp.divergences import js_divergence
from interp.hooks import Site
from interp.measures.arrays import MODELS, dataset, stack_models, variable
from interp.models import Policy, Trace
from interp.prompts import Batch


def attention_sites(policy: Policy) -> list[Site]:
    """The pattern of every layer."""
    return [Site("pattern", layer) for layer in range(policy.parts.n_layers)]


def prompt_queries(batch: Batch) -> Float[Tensor, "batch 1 query"]:
    """1 at the columns of prompt tokens, 0 at padding and response."""
    columns = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
    inside = (columns >= batch.first[:, None]) & (columns <= batch.last_prompt[:, None])
    return inside[:, None].double()


def attention(base: Trace, tuned: Trace) -> xr.Dataset:
    """Jensen-Shannon divergence over key positions of the two models' patterns, by head.

    `pattern_js` is its mean over the prompt's query positions, `pattern_js_last` its value at the last one.
    """
    batch = base.batch
    weights = prompt_queries(batch)
    means, lasts = [], []
    for site in attention_sites(base.policy):
        js = js_divergence(base[site].float(), tuned[site].float().to(base[site].device))
        means.append((js * weights).sum(-1) / weights.sum(-1))
        lasts.append(batch.at_last_prompt(js.transpose(1, 2)))
    parts = base.policy.parts
    return dataset(
        {
            "pattern_js": variable(
                "prompt layer head", torch.stack(means, 1), "JS of attention patterns, mean over queries", "nats"
            ),
            "pattern_js_last": variable(
                "prompt layer head", torch.stack(lasts, 1), "JS of attention patterns at the last query", "nats"
            ),
        },
        layer=range(parts.n_layers),
        head=range(parts.n_heads),
    )


def pattern_examples(base: Trace, tuned: Trace, heads: Sequence[tuple[int, int]]) -> xr.Dataset:
    """The patterns of some heads on the prompts of a batch, to be looked at.

    Args:
        base: trace that holds the patterns.
        tuned: the same of the tuned model.
        heads: (layer, head) of each.

    Returns:
        `pattern` with dims example, model, changed_head, query, key; NaN outside the prompt.
    """
    batch = base.batch
    length = int(batch.prompt_lengths.max())
    inside = torch.arange(length) < batch.prompt_lengths.cpu()[:, None]
    real = (inside[:, :, None] & inside[:, None, :])[:, None]

    def of(trace: Trace) -> Tensor:
        chosen = torch.stack([trace[Site("pattern", layer)][:, head] for layer, head in heads], dim=1).float()
        by_query = batch.aligned(chosen.transpose(1, 2)).transpose(1, 2)
        by_key = batch.aligned(by_query.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return by_key[:, :, :length, :length].cpu().masked_fill(~real, torch.nan)

    values = stack_models(of(base), of(tuned))
    return xr.Dataset(
        {"pattern": variable("example model changed_head query key", values, "attention pattern", "probability")},
        coords={
            "model": list(MODELS),
            "changed_layer": ("changed_head", [layer for layer, _ in heads]),
            "changed_head_index": ("changed_head", [head for _, head in heads]),
        },
    )
