"""One row per architecture family: where its blocks, heads, MLPs, norms and unembedding are.

This is the only file that knows the name of a Hugging Face module. Everything else reads a model through `Parts`,
which is a row bound to one loaded model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.errors import UnknownFamily


@dataclass(frozen=True)
class Family:
    """Paths of the parts of a pre-norm transformer whose attention and MLP are applied one after the other.

    Paths of `embed` to `final_norm` start at the model, those from `attn_norm` on at a block.

    Attributes:
        name: name of the family.
        heads: for each architecture (class name in transformers), the path of the module that reads the final
            residual: the unembedding of a language model, the score head of a classifier.
        embed: token embedding.
        pos_embed: learned position embedding that is added to the residual, or None (rotary and the like).
        layers: list of blocks.
        final_norm: norm before the unembedding.
        attn_norm: norm whose output attention reads.
        attn: attention module; its output is (attn_out, pattern).
        q: query projection; the same path in `q`, `k` and `v` means one fused projection, split in that order.
        k: key projection.
        v: value projection.
        o: output projection; its input is every head's z side by side.
        mlp_norm: norm whose output the MLP reads; its input is resid_mid.
        mlp: MLP module.
        mlp_down: last projection of the MLP; its input is the neurons' activations.
    """

    name: str
    heads: Mapping[str, str]
    embed: str
    pos_embed: str | None
    layers: str
    final_norm: str
    attn_norm: str
    attn: str
    q: str
    k: str
    v: str
    o: str
    mlp_norm: str
    mlp: str
    mlp_down: str


GPT2 = Family(
    name="gpt2",
    heads=MappingProxyType({"GPT2LMHeadModel": "lm_head", "GPT2ForSequenceClassification": "score"}),
    embed="transformer.wte",
    pos_embed="transformer.wpe",
    layers="transformer.h",
    final_norm="transformer.ln_f",
    attn_norm="ln_1",
    attn="attn",
    q="attn.c_attn",
    k="attn.c_attn",
    v="attn.c_attn",
    o="attn.c_proj",
    mlp_norm="ln_2",
    mlp="mlp",
    mlp_down="mlp.c_proj",
)

LLAMA = Family(
    name="llama",
    heads=MappingProxyType({"LlamaForCausalLM": "lm_head", "LlamaForSequenceClassification": "score"}),
    embed="model.embed_tokens",
    pos_embed=None,
    layers="model.layers",
    final_norm="model.norm",
    attn_norm="input_layernorm",
    attn="self_attn",
    q="self_attn.q_proj",
    k="self_attn.k_proj",
    v="self_attn.v_proj",
    o="self_attn.o_proj",
    mlp_norm="post_attention_layernorm",
    mlp="mlp",
    mlp_down="mlp.down_proj",
)

FAMILIES: tuple[Family, ...] = (GPT2, LLAMA)


def family_of(architecture: str) -> Family:
    """The row that covers `architecture`, a class name of transformers.

    Raises:
        UnknownFamily: no row covers it.
    """
    for family in FAMILIES:
        if architecture in family.heads:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.heads)
    raise UnknownFamily(f"architecture {architecture} is not known yet; this version reads {known}")


def _linear(module: nn.Module) -> tuple[Float[Tensor, "d_in d_out"], Float[Tensor, " d_out"] | None]:
    """Weight (input first) and bias of a Linear, or of GPT-2's Conv1D, which stores its weight transposed."""
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    return (weight.T if isinstance(module, nn.Linear) else weight), bias  # type: ignore[return-value]


class Parts:
    """A family's row bound to one model: modules and weights by the field's names. Holds no copy of a weight.

    Args:
        model: a model of transformers whose class is in some row.

    Raises:
        UnknownFamily: no row covers the model's class.
    """

    def __init__(self, model: nn.Module) -> None:
        architecture = type(model).__name__
        self.model = model
        self.family = family_of(architecture)
        config: Any = model.config
        self.n_heads: int = config.num_attention_heads
        self.n_kv_heads: int = getattr(config, "num_key_value_heads", None) or self.n_heads
        self.d_model: int = config.hidden_size
        self.d_head: int = getattr(config, "head_dim", None) or self.d_model // self.n_heads
        self.readout_path = self.family.heads[architecture]

    def _at(self, path: str) -> nn.Module:
        return self.model.get_submodule(path)

    @cached_property
    def embed(self) -> nn.Module:
        """Token embedding."""
        return self._at(self.family.embed)

    @cached_property
    def pos_embed(self) -> nn.Module | None:
        """Learned position embedding, or None."""
        return self._at(self.family.pos_embed) if self.family.pos_embed else None

    @cached_property
    def blocks(self) -> tuple[nn.Module, ...]:
        """The transformer blocks, first to last."""
        return tuple(self._at(self.family.layers).children())

    @cached_property
    def final_norm(self) -> nn.Module:
        """The norm before the unembedding."""
        return self._at(self.family.final_norm)

    @cached_property
    def readout(self) -> nn.Module:
        """The unembedding of a language model, the score head of a classifier."""
        return self._at(self.readout_path)

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    def inside(self, layer: int, part: str) -> nn.Module:
        """The module of block `layer` that the row names under `part` (attn, o, mlp_norm ...)."""
        return self.blocks[layer].get_submodule(getattr(self.family, part))

    def mlp_weights(self, layer: int) -> list[Tensor]:
        """Every weight and bias of the MLP of block `layer`."""
        return list(self.inside(layer, "mlp").parameters())

    def _projection(self, layer: int, part: str, heads: int) -> Float[Tensor, "heads d_model d_head"]:
        weight, _ = _linear(self.inside(layer, part))
        if self.family.q == self.family.k == self.family.v:
            widths = [self.n_heads * self.d_head] + 2 * [self.n_kv_heads * self.d_head]
            weight = weight.split(widths, dim=1)["qkv".index(part)]
        return weight.reshape(self.d_model, heads, self.d_head).transpose(0, 1)

    def W_Q(self, layer: int) -> Float[Tensor, "head d_model d_head"]:
        """Query weights by head."""
        return self._projection(layer, "q", self.n_heads)

    def W_K(self, layer: int) -> Float[Tensor, "kv_head d_model d_head"]:
        """Key weights by key-value head."""
        return self._projection(layer, "k", self.n_kv_heads)

    def W_V(self, layer: int) -> Float[Tensor, "kv_head d_model d_head"]:
        """Value weights by key-value head."""
        return self._projection(layer, "v", self.n_kv_heads)

    def W_O(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """Output weights by head."""
        weight, _ = _linear(self.inside(layer, "o"))
        return weight.reshape(self.n_heads, self.d_head, self.d_model)

    def b_O(self, layer: int) -> Float[Tensor, " d_model"] | None:
        """Bias of the output projection, which belongs to no head, or None."""
        return _linear(self.inside(layer, "o"))[1]

    def logits(self, residual: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch out"]:
        """Read a residual as the model reads its last one: final norm, then unembedding; no gradients."""
        with torch.no_grad():
            return self.readout(self.final_norm(residual))

    def unembedding(self) -> tuple[Float[Tensor, "d_model out"], Float[Tensor, " out"] | None]:
        """Weight and bias of the readout."""
        return _linear(self.readout)


@dataclass(frozen=True)
class NormParameters:
    """What a norm does to one residual vector once its scale is frozen: y = (r - centre(r)) / scale * gain + shift.

    Attributes:
        gain: multiplier by dimension.
        shift: bias by dimension, or None.
        centred: whether the mean over dimensions is subtracted (LayerNorm) or not (RMSNorm).
        eps: the constant under the root.
    """

    gain: Float[Tensor, " d_model"]
    shift: Float[Tensor, " d_model"] | None
    centred: bool
    eps: float

    def centre(self, vectors: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Subtract the mean over dimensions where the norm does."""
        return vectors - vectors.mean(-1, keepdim=True) if self.centred else vectors

    def scale(self, residual: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch 1"]:
        """The number by which the norm divides: standard deviation (LayerNorm) or root mean square (RMSNorm)."""
        return (self.centre(residual).pow(2).mean(-1, keepdim=True) + self.eps).sqrt()


def norm_parameters(norm: nn.Module) -> NormParameters:
    """Read a LayerNorm or an RMSNorm, in float64.

    Raises:
        UnknownFamily: the module is neither.
    """
    if isinstance(norm, nn.LayerNorm):
        bias = norm.bias.detach().double() if norm.bias is not None else None
        return NormParameters(norm.weight.detach().double(), bias, True, norm.eps)
    if type(norm).__name__ == "LlamaRMSNorm":
        gain = norm.weight
        assert isinstance(gain, torch.Tensor)
        return NormParameters(gain.detach().double(), None, False, float(norm.variance_epsilon))  # type: ignore[arg-type]
    raise UnknownFamily(f"the norm {type(norm).__name__} is neither a LayerNorm nor a known RMSNorm")
