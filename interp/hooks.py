"""Sites in a model, and the context manager that captures what passes through them.

Sites carry TransformerLens's names: `Site("z", 3)` is `blocks.3.attn.hook_z`. Hooks are plain forward hooks of torch;
they are gone when the context ends, however it ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from interp.errors import MeasureError
from interp.families import Parts

# name -> (part of the block, what of it is read). "in" is the first argument, "out" the output (its first element
# where the output is a tuple), "out1" the second element.
_BLOCK_SITES = {
    "resid_pre": (None, "in"),
    "resid_mid": ("mlp_norm", "in"),
    "resid_post": (None, "out"),
    "attn_out": ("attn", "out"),
    "pattern": ("attn", "out1"),
    "z": ("o", "in"),
    "mlp_post": ("mlp_down", "in"),
    "mlp_out": ("mlp", "out"),
}
_MODEL_SITES = ("embed", "pos_embed")


@dataclass(frozen=True, order=True)
class Site:
    """A place in the network whose activation can be read.

    Attributes:
        name: `embed`, `pos_embed` (no layer), or by layer `resid_pre`, `resid_mid`, `resid_post`, `attn_out`,
            `mlp_out`, `mlp_post` (neurons), `z` (by head, before W_O), `pattern` (attention probabilities).
        layer: index of the block, or None.
    """

    name: str
    layer: int | None = None

    def __post_init__(self) -> None:
        if self.name in _MODEL_SITES:
            valid = self.layer is None
        else:
            valid = self.name in _BLOCK_SITES and self.layer is not None
        if not valid:
            names = ", ".join([*_MODEL_SITES, *_BLOCK_SITES])
            raise MeasureError(
                f"no site {self.name!r} at layer {self.layer}; sites are {names}, the first two without a layer"
            )

    def __str__(self) -> str:
        return self.name if self.layer is None else f"L{self.layer}.{self.name}"


@contextlib.contextmanager
def capture(parts: Parts, sites: Iterable[Site]) -> Iterator[dict[Site, Tensor]]:
    """Record the activation of every site in `sites` during the forward passes made inside the context.

    The tensors are the model's own, detached, in the layout [batch, seq, ...]: residuals, attn_out and mlp_out
    [batch, seq, d_model]; mlp_post [batch, seq, neuron]; z [batch, seq, head, d_head]; pattern [batch, head, query,
    key]. `pattern` needs eager attention (see `Policy.trace`).

    Yields:
        A dictionary that a forward pass fills.
    """
    store: dict[Site, Tensor] = {}
    handles: list[RemovableHandle] = []
    try:
        for site in sites:
            handles.append(_attach(parts, site, store))
        yield store
    finally:
        for handle in handles:
            handle.remove()


def _module_of(parts: Parts, site: Site) -> tuple[nn.Module, str]:
    if site.layer is None:
        module = parts.embed if site.name == "embed" else parts.pos_embed
        if module is None:
            raise MeasureError(f"the family {parts.family.name} adds no position embedding to the residual")
        return module, "out"
    if not 0 <= site.layer < parts.n_layers:
        raise MeasureError(f"the model has layers 0 to {parts.n_layers - 1}, not {site.layer}")
    part, side = _BLOCK_SITES[site.name]
    return (parts.blocks[site.layer] if part is None else parts.inside(site.layer, part)), side


def _attach(parts: Parts, site: Site, store: dict[Site, Tensor]) -> RemovableHandle:
    module, side = _module_of(parts, site)
    shape: Callable[[Tensor], Tensor] = (
        (lambda t: t.unflatten(-1, (parts.n_heads, parts.d_head))) if site.name == "z" else (lambda t: t)
    )
    if side == "in":

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            store[site] = shape((args[0] if args else kwargs["hidden_states"]).detach())

        return module.register_forward_pre_hook(before, with_kwargs=True)

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        if side == "out1":
            if output[1] is None:
                raise MeasureError("attention patterns need eager attention; trace through Policy.trace, which sets it")
            store[site] = output[1].detach()
        else:
            store[site] = (output[0] if isinstance(output, tuple) else output).detach()

    return module.register_forward_hook(after)
