"""Sites in a model, and the context manager that captures what passes through them.

Sites carry TransformerLens's names: `Site("z", 3)` is `blocks.3.attn.hook_z`. Hooks are plain forward hooks of torch;
they are gone when the context ends, however it ends.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from interp.errors import MeasureError
from interp.families.parts import Parts, StackName

# name -> (part, what of it is read). "in" is the first argument, "out" the output (its first element where the output
# is a tuple), "last" its last element. None is the block itself.
_BLOCK_SITES = {
    "resid_pre": (None, "in"),
    "resid_mid": ("resid_mid", "in"),
    "resid_post": (None, "out"),
    "attn_out": ("o", "out"),
    "pattern": ("attn", "last"),
    "z": ("o", "in"),
    "mlp_post": ("mlp_down", "in"),
    "mlp_out": ("mlp_down", "out"),
}
_MODEL_SITES = ("embed", "pos_embed")
_CROSS_SITES = ("resid_mid", "attn_out", "pattern", "z")


@functools.total_ordering
@dataclass(frozen=True)
class Site:
    """A place in the network whose activation can be read.

    Attributes:
        name: `embed`, `pos_embed` (no layer), or by layer `resid_pre`, `resid_mid`, `resid_post`, `attn_out`,
            `mlp_out`, `mlp_post` (neurons), `z` (by head, before W_O), `pattern` (attention probabilities).
        layer: index of the block, or None.
        stack: of an encoder-decoder, "encoder" for the encoder's sites and "cross" for those of the attention to it
            (`resid_mid`, `attn_out`, `pattern`, `z`); None is the decoder, and every other model's only stack.

    `attn_out` and `mlp_out` are what is added to the residual: after a norm that follows the sublayer (Gemma-2,
    OLMo-2). Where norms take sums (BERT), `resid_mid` and `resid_post` are the sums, before their norm. Parallel
    blocks (GPT-NeoX) have no `resid_mid`.
    """

    name: str
    layer: int | None = None
    stack: StackName | None = None

    def __post_init__(self) -> None:
        if self.stack not in (None, "encoder", "cross"):
            raise MeasureError(f'a site\'s stack is "encoder", "cross" or None, not {self.stack!r}')
        if self.name in _MODEL_SITES:
            valid = self.layer is None and (self.stack is None or (self.stack, self.name) == ("encoder", "embed"))
        else:
            valid = self.name in _BLOCK_SITES and self.layer is not None
            valid = valid and (self.stack != "cross" or self.name in _CROSS_SITES)
        if not valid:
            names = ", ".join([*_MODEL_SITES, *_BLOCK_SITES])
            raise MeasureError(
                f"no site {self.name!r} at layer {self.layer}{f' of {self.stack}' if self.stack else ''}; sites are"
                f" {names}, the first two without a layer; of cross-attention {', '.join(_CROSS_SITES)}"
            )

    def __str__(self) -> str:
        stack = f"{self.stack}." if self.stack else ""
        return stack + (self.name if self.layer is None else f"L{self.layer}.{self.name}")

    def __lt__(self, other: Site) -> bool:
        return self._key < other._key

    @property
    def _key(self) -> tuple[str, int, str]:
        return self.name, -1 if self.layer is None else self.layer, self.stack or ""


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
            handles += _attach(parts, site, store)
        yield store
    finally:
        for handle in handles:
            handle.remove()


def has_site(parts: Parts, site: Site) -> bool:
    """Whether the model has the site."""
    try:
        _module_of(parts, site)
    except MeasureError:
        return False
    return True


def _module_of(parts: Parts, site: Site) -> tuple[nn.Module, str]:
    """The module to hook, and what of it is read.

    Raises:
        MeasureError: the model has no such site.
    """
    if site.name == "pos_embed" and parts.pos_embed is None:
        raise MeasureError(f"the family {parts.family.name} adds no position embedding to the residual")
    if site.name == "pos_embed":
        return cast(nn.Module, parts.pos_embed), "out"
    if site.name == "embed":
        # Without a position embedding, whatever enters the first block: a scaled or normed embedding counts as it is.
        whole = parts.pos_embed is None or site.stack is not None
        return (parts.block(0, site.stack), "in") if whole else (parts.embed_out, "out")
    layer, stack = cast(int, site.layer), site.stack
    part, side = _BLOCK_SITES[site.name]
    layout = parts.layout(stack)
    post_norm = {"attn_out": "attn_post_norm", "mlp_out": "mlp_post_norm"}.get(site.name)
    if post_norm is not None and parts.path(post_norm, stack):
        part = post_norm
    elif site.name == "resid_mid" and stack == "cross":
        part = "cross_resid_mid"
    elif site.name == "resid_post" and layout.norm_of_sum:
        part, side = "mlp_norm", "in"
    return (parts.block(layer, stack) if part is None else parts.inside(layer, part, stack)), side


def _attach(parts: Parts, site: Site, store: dict[Site, Tensor]) -> list[RemovableHandle]:
    module, side = _module_of(parts, site)
    handles, shape = _shaper(parts, site)
    if side == "in":

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            store[site] = shape((args[0] if args else kwargs["hidden_states"]).detach())

        return [*handles, module.register_forward_pre_hook(before, with_kwargs=True)]

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        if side == "last":
            if not isinstance(output, tuple) or output[-1] is None:
                raise MeasureError("attention patterns need eager attention; trace through Policy.trace, which sets it")
            store[site] = output[-1].detach()
        else:
            store[site] = shape((output[0] if isinstance(output, tuple) else output).detach())

    return [*handles, module.register_forward_hook(after)]


def _shaper(parts: Parts, site: Site) -> tuple[list[RemovableHandle], Callable[[Tensor], Tensor]]:
    """How an activation is brought into the layout [batch, seq, ...], and the hooks that this needs."""
    if site.name == "z":
        return [], lambda t: t.unflatten(-1, (parts.n_heads, parts.d_head))
    if site.layer is None or not parts.layout(site.stack).flat_mlp:
        return [], lambda t: t
    lead: list[torch.Size] = []  # batch and seq, which the MLP of OPT does not see

    def remember(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        lead[:] = [(args[0] if args else kwargs["hidden_states"]).shape[:2]]

    handle = parts.block(site.layer, site.stack).register_forward_pre_hook(remember, with_kwargs=True)
    return [handle], lambda t: t.unflatten(0, lead[0]) if t.ndim == 2 else t
