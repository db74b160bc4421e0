"""One vector a text at every layer of a model: what probes read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import PromptError
from interp.families import Parts
from interp.hooks import Site
from interp.models import Policy, RewardModel
from interp.models.running import at_read_token, run
from interp.prompts import Batch, encode, make_batch

Pooling = Literal["mean", "read"]


def activations(
    model: Policy | RewardModel, texts: Sequence[str], *, pooling: Pooling = "mean", batch_size: int = 32
) -> Float[np.ndarray, "layer prompt d_model"]:
    """The residual of each text at every layer, one vector a text.

    Args:
        model: a policy or a reward model.
        texts: the texts.
        pooling: its mean over the real tokens, or the token from which the model's output is read.
        batch_size: texts a forward pass.

    Returns:
        Layer 0 is what enters the first block, layer k what leaves the k-th; of an encoder-decoder, the encoder's.

    Raises:
        PromptError: a text is too long for the model.
    """
    parts = Parts(model.model)
    both = parts.family.encoder is not None
    stack: Literal["encoder"] | None = "encoder" if both else None
    layers = parts.n_encoder_layers if both else parts.n_layers
    sites = [Site("resid_pre", 0, stack), *(Site("resid_post", layer, stack) for layer in range(layers))]
    ids = [_ids(model, text) for text in texts]
    limit = getattr(parts.model.config, "max_position_embeddings", None)
    room = None if limit is None else limit - parts.family.position_offset(parts.model.config)
    for number, own in enumerate(ids):
        if room is not None and len(own) > room:
            raise PromptError(f"text {number} has {len(own)} tokens, a model reads {room}; shorten it or leave it out")
    out = np.empty((len(sites), len(texts), parts.d_model))
    order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    device = next(parts.embed.parameters()).device
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        chosen = [ids[row] for row in rows]
        starts = [[model.decoder_start or 0]] * len(rows) if both and isinstance(model, Policy) else chosen
        batch = make_batch(starts, encoder=chosen if both else None).to(device)
        _, store = run(parts, batch, sites)
        for layer, site in enumerate(sites):
            out[layer, rows] = _pooled(parts, batch, store[site], pooling).double().cpu().numpy()
    return out


def _ids(model: Policy | RewardModel, text: str) -> list[int]:
    if isinstance(model, RewardModel) or model.decoder_start is not None:
        return list(model.tokenizer(text, verbose=False)["input_ids"])
    return encode(model.tokenizer, text)


def _pooled(parts: Parts, batch: Batch, values: Tensor, pooling: Pooling) -> Tensor:
    both = batch.encoder_mask is not None
    mask = batch.encoder_mask if batch.encoder_mask is not None else batch.attention_mask
    if pooling == "mean":
        weight = mask.to(values.device).double()[:, :, None]
        return (values.double() * weight).sum(1) / weight.sum(1)
    if parts.head.reads == "first":
        return at_read_token(parts, batch, values)
    lengths = mask.sum(-1) if both else batch.first + batch.lengths
    return values[torch.arange(len(values), device=values.device), (lengths - 1).to(values.device)]
