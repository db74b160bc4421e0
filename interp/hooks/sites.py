"""Sites in a model: their names, and the module and side of it at which each is read or changed."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import cast

from torch import nn

from interp.errors import MeasureError
from interp.families.parts import Parts, StackName

INSIDE_ATTENTION = ("q", "k", "v")
"""Sites that lie between an attention's projections and its dot product."""

# name -> (part, what of it is read). "in" is the first argument, "out" the output (its first element where the output
# is a tuple), "last" its last element. None is the block itself. `result` is what each head adds to the output of "o".
_BLOCK_SITES = {
    "resid_pre": (None, "in"),
    "resid_mid": ("resid_mid", "in"),
    "resid_post": (None, "out"),
    "attn_out": ("o", "out"),
    "q": ("attn", "q"),
    "k": ("attn", "k"),
    "v": ("attn", "v"),
    "pattern": ("attn", "last"),
    "z": ("o", "in"),
    "result": ("o", "in"),
    "mlp_post": ("mlp_down", "in"),
    "mlp_out": ("mlp_down", "out"),
}
_MODEL_SITES = ("embed", "pos_embed")
_CROSS_SITES = ("resid_mid", "attn_out", "q", "k", "v", "pattern", "z", "result")


@functools.total_ordering
@dataclass(frozen=True)
class Site:
    """A place in the network whose activation can be read and changed.

    Attributes:
        name: `embed`, `pos_embed` (no layer), or by layer `resid_pre`, `resid_mid`, `resid_post`, `attn_out`,
            `mlp_out`, `mlp_post` (neurons), `q` (by head, as it enters the dot product: rotated and normed where the
            family does so), `k` and `v` (the same by key-value head), `pattern` (attention probabilities), `z` (by
            head, before W_O), `result` (z W_O by head, without b_O and before a norm that follows).
        layer: index of the block, or None.
        stack: of an encoder-decoder, "encoder" for the encoder's sites and "cross" for those of the attention to it
            (`resid_mid`, `attn_out`, `q`, `k`, `v`, `pattern`, `z`, `result`); None is the decoder, and every other
            model's only stack.

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


def has_site(parts: Parts, site: Site) -> bool:
    """Whether the model has the site."""
    try:
        module_of(parts, site)
    except MeasureError:
        return False
    return True


def module_of(parts: Parts, site: Site) -> tuple[nn.Module, str]:
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
