"""A pass, recorded block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.families import Parts
from interp.hooks import Site, capture
from interp.hooks.attention import listens
from interp.hooks.shapes import first
from interp.metrics import at_columns
from interp.models.running import forward_inputs, inference
from interp.prompts import Batch

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Recording:
    """What a model computed on a batch, block by block.

    Attributes:
        parts: the model.
        batch: tokens, on its device.
        calls: the arguments of each block of the main stack.
        attention: what each block's self-attention returned, a tuple.
        z: z of each block's self-attention, [batch, seq, head, d_head].
        final: the last residual, [batch, seq, d_model].
    """

    parts: Parts
    batch: Batch
    calls: tuple[Call, ...]
    attention: tuple[tuple[Any, ...], ...]
    z: tuple[Tensor, ...]
    final: Float[Tensor, "batch seq d_model"]

    def hidden(self, layer: int) -> Float[Tensor, "batch seq d_model"]:
        """What enters a block, or after the last one the last residual."""
        return first(*self.calls[layer]) if layer < len(self.calls) else self.final

    def at(self, columns: Int[Tensor, "batch column"]) -> Float[Tensor, "batch column d_model"]:
        """The last residual at some columns."""
        return at_columns(self.final, columns)

    @property
    def one_token_is_enough(self) -> bool:
        """Whether the last block can run on one token (an attention to an encoder takes biases for all of them)."""
        return self.attention_can_stand and self.parts.family.encoder is None

    @property
    def attention_can_stand(self) -> bool:
        """Whether what a self-attention returns can be put in its place (BLOOM's adds the residual to it)."""
        return listens(self.parts.inside(0, "attn"))


def record(parts: Parts, batch: Batch) -> Recording:
    """Run a model on a batch and keep what `replay` needs; logits are not computed where the family allows it."""
    calls: list[Call] = []
    attention: list[tuple[Any, ...]] = []
    handles = []
    layers = range(parts.n_layers)

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args, kwargs))

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        attention.append(output if isinstance(output, tuple) else (output,))

    sites = [*(Site("z", layer) for layer in layers), Site("resid_post", parts.n_layers - 1)]
    try:
        for layer in layers:
            handles.append(parts.block(layer).register_forward_pre_hook(before, with_kwargs=True))
            handles.append(parts.inside(layer, "attn").register_forward_hook(after))
        final, store = run_to_the_last_residual(parts, batch, sites)
    finally:
        for handle in handles:
            handle.remove()
    z = tuple(store[site] for site in sites[:-1])
    return Recording(parts, batch, tuple(calls), tuple(attention), z, final)


def run_to_the_last_residual(
    parts: Parts, batch: Batch, sites: Sequence[Site] = ()
) -> tuple[Float[Tensor, "batch seq d_model"], dict[Site, Tensor]]:
    """The last residual, and activations, of one pass; logits are not computed where the family allows it."""
    final = Site("resid_post", parts.n_layers - 1)
    eager = any(site.name == "pattern" for site in sites)
    model = parts.model if parts.family.encoder is not None else parts.backbone
    with inference(parts.model, eager=eager), capture(parts, {*sites, final}) as store:
        model(**forward_inputs(parts, batch))
    return store[final], {site: store[site] for site in sites}
