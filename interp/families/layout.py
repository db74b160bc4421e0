"""What a row says: the layout of an architecture family, in paths of modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

Kind = Literal["language model", "masked language model", "classifier"]


@dataclass(frozen=True)
class Head:
    """What reads the last residual.

    Attributes:
        linear: modules applied one after the other, whose output is the last quantity that is linear in the normed
            residual: the unembedding of a language model, the score head of a GPT-2 classifier, the pooler of BERT.
            One that the model does not have is left out.
        reads: the tokens that are read: "every", the "first", or the "last" that is no padding.
        kind: "language model", "masked language model" or "classifier".
        after: from the model and that output to the logits; None where they are the same.
        scale: from the config to the number that multiplies the normed residual before it is read.
    """

    linear: tuple[str, ...]
    reads: Literal["every", "first", "last"] = "every"
    kind: Kind = "language model"
    after: Callable[[Any, Tensor], Tensor] | None = None
    scale: Callable[[Any], float] | None = None


@dataclass(frozen=True)
class Attention:
    """Paths inside a block of one attention.

    Attributes:
        module: the attention; the last element of its output is the pattern.
        q: query projection; the same path in `q`, `k` and `v` means one fused projection.
        k: key projection.
        v: value projection.
        o: output projection; its input is every head's z side by side.
        fused: how a fused projection lies: "blocks" (all q, then all k, then all v) or "heads" (q, k, v of each head).
        post_norm: norm between `o` and the sum with the residual, or None.
    """

    module: str
    q: str
    k: str
    v: str
    o: str
    fused: Literal["blocks", "heads"] = "blocks"
    post_norm: str | None = None


@dataclass(frozen=True)
class Stack:
    """Paths of a stack of blocks; `layers` and `final_norm` start at the model, the others at a block.

    Attributes:
        layers: list of blocks.
        attention: self-attention.
        mlp: modules whose parameters are the MLP's.
        mlp_down: last projection of the MLP; its input is the neurons' activations.
        resid_mid: module whose input is the residual between attention and what follows it; None in parallel blocks.
        final_norm: norm before the readout; None where the model has none, or where it is the last block's `mlp_norm`
            (`norm_of_sum`).
        attn_norm: norm whose output attention reads, or, with `norm_of_sum`, the norm of residual plus attention.
        mlp_norm: the same of the MLP.
        mlp_post_norm: norm between `mlp_down` and the sum with the residual, or None.
        norm_of_sum: each norm takes the sum of residual and sublayer (BERT), not the sublayer's input.
        cross: attention over an encoder's output, or None.
        cross_resid_mid: module whose input is the residual between cross-attention and MLP.
        flat_mlp: the MLP runs on [batch * seq, d], as in OPT.
    """

    layers: str
    attention: Attention
    mlp: tuple[str, ...]
    mlp_down: str
    resid_mid: str | None
    final_norm: str | None
    attn_norm: str | None = None
    mlp_norm: str | None = None
    mlp_post_norm: str | None = None
    norm_of_sum: bool = False
    cross: Attention | None = None
    cross_resid_mid: str | None = None
    flat_mlp: bool = False


@dataclass(frozen=True)
class Family:
    """One row: a family of architectures.

    Attributes:
        name: name of the family.
        heads: for each architecture (class name in transformers), what reads the last residual.
        embed: token embedding.
        stack: the blocks whose last residual is read (a decoder's, or an encoder's where there is no decoder).
        pos_embed: learned position embedding that is added to the residual as it is, or None: then what enters the
            first block counts as one term, `embed`.
        embed_out: with `pos_embed`, modules whose output is the token's term, the first that the model has; the
            embedding itself where there is none.
        encoder: the encoder's blocks, for an encoder-decoder.
        causal: a token sees only those before it (in a decoder); False for encoders alone.
        position_offset: from the config to the position id of the first token.
        adapt: from the config to what differs in `stack`, as a mapping of `Stack`'s fields.
    """

    name: str
    heads: Mapping[str, Head]
    embed: str
    stack: Stack
    pos_embed: str | None = None
    embed_out: tuple[str, ...] = ()
    encoder: Stack | None = None
    causal: bool = True
    position_offset: Callable[[Any], int] = field(default=lambda config: 0)
    adapt: Callable[[Any], Mapping[str, Any]] = field(default=lambda config: {})

    def stack_of(self, config: Any) -> Stack:
        """The main stack, as this config has it."""
        return replace(self.stack, **self.adapt(config))
