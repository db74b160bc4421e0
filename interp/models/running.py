"""Running a model: its inputs from a batch, what is captured on the way, and the model given back as it was found."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from interp.families import Parts
from interp.hooks import Site, capture
from interp.hooks.attention import KERNEL
from interp.prompts import Batch
from interp.sampling import evaluating


@contextlib.contextmanager
def inference(model: nn.Module, *, eager: bool = False) -> Iterator[None]:
    """Run a model in eval mode without gradients, and give it back as it was found.

    Args:
        model: a model of transformers.
        eager: use eager attention meanwhile, the one kernel that returns its patterns.
    """
    config: Any = model.config
    kernel = config._attn_implementation
    try:
        if eager and kernel not in ("eager", KERNEL):
            model.set_attn_implementation("eager")  # type: ignore[operator]
        with evaluating(model), torch.no_grad():
            yield
    finally:
        if config._attn_implementation != kernel:
            model.set_attn_implementation(kernel)  # type: ignore[operator]


def forward_inputs(parts: Parts, batch: Batch) -> dict[str, Any]:
    """The keyword arguments by which the model reads a batch: no cache, positions that count real tokens only."""
    mask = batch.attention_mask.long()
    if parts.family.encoder is not None:
        assert batch.encoder_ids is not None and batch.encoder_mask is not None
        return {
            "input_ids": batch.encoder_ids,
            "attention_mask": batch.encoder_mask.long(),
            "decoder_input_ids": batch.input_ids,
            "decoder_attention_mask": mask,
            "use_cache": False,
        }
    inputs = {"input_ids": batch.input_ids, "attention_mask": mask}
    if parts.takes_positions:
        inputs["position_ids"] = batch.position_ids + parts.family.position_offset(parts.model.config)
    return {**inputs, "use_cache": False} if parts.family.causal else inputs


def run(
    parts: Parts, batch: Batch, sites: Iterable[Site] = (), *, eager: bool = False
) -> tuple[Tensor, dict[Site, Tensor]]:
    """Run a model and capture `sites`.

    A head that reads one token is read at the column we know: the model itself would find it by pad id, or take
    column 0, and be wrong where padding stands there.

    Args:
        parts: the model.
        batch: tokens, on the model's device.
        sites: what to capture; a `pattern` brings eager attention.
        eager: use eager attention without a pattern too.

    Returns:
        Logits, [batch, seq, vocab] or of a classifier [batch, label], and the activations by site.
    """
    wanted = list(sites)
    eager = eager or any(site.name == "pattern" for site in wanted)
    final = Site("resid_post", parts.n_layers - 1)
    one_token = parts.head.reads != "every"
    with inference(parts.model, eager=eager):
        with capture(parts, {*wanted, final} if one_token else wanted) as store:
            output = (parts.backbone if one_token else parts.model)(**forward_inputs(parts, batch))
        # Read once the hooks are gone: the head of some families runs a module that they sit on.
        logits = parts.logits(at_read_token(parts, batch, store[final])) if one_token else output.logits
    return logits, {site: store[site] for site in wanted}


def at_read_token(
    parts: Parts, batch: Batch, values: Shaped[Tensor, "batch seq *rest"]
) -> Shaped[Tensor, " batch *rest"]:
    """The value at the token from which a classifier reads its score."""
    columns = batch.first if parts.head.reads == "first" else batch.first + batch.lengths - 1
    return values[torch.arange(len(values), device=values.device), columns.to(values.device)]
