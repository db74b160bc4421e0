"""A family's row bound to one loaded model: modules and weights by the field's names."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.errors import MeasureError, UnknownFamily
from interp.families.layout import Attention, Head, Stack
from interp.families.norms import NormParameters, norm_parameters
from interp.families.rows import family_of

StackName = Literal["encoder", "cross"]


def effective(model: nn.Module, name: str) -> Tensor:
    """A parameter by its name, with what an adapter adds to it."""
    path, _, leaf = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(path), leaf)
    return tensor


def named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter under its name in the base, with what an adapter adds to it."""
    for name, _ in model.named_parameters():
        yield name, effective(model, name)


def _linear(module: nn.Module) -> tuple[Float[Tensor, "d_in d_out"], Float[Tensor, " d_out"] | None]:
    """Weight (input first) and bias of a Linear, or of GPT-2's Conv1D, which stores its weight transposed."""
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    return (weight.T if isinstance(module, nn.Linear) else weight), bias  # type: ignore[return-value]


def _run(module: nn.Module, value: Tensor) -> Tensor:
    """Run a module where its weights are: those of a model that is spread over devices lie apart."""
    weight = next(module.parameters(), value)
    value = value.to(weight)  # dtype too: a model may read another's residual
    if type(module) is nn.Linear and value.device.type == "cpu" and len(weight) > 4 * _COLUMNS:
        if not torch.is_grad_enabled() and value.dtype == weight.dtype:
            return _by_columns(module, value)
    return module(value)


_COLUMNS = 1024
"""Outputs of a vocabulary that are computed at once: their weights and results stay in the processor's cache."""


def _by_columns(module: nn.Linear, value: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
    """A linear map onto a whole vocabulary, some columns at a time; for a few rows a third faster than at once."""
    rows = value.flatten(0, -2)
    out = rows.new_empty(len(rows), module.out_features)
    for start in range(0, module.out_features, _COLUMNS):
        part = slice(start, start + _COLUMNS)
        torch.mm(rows, module.weight[part].T, out=out[:, part])
    if module.bias is not None:
        out += module.bias
    return out.unflatten(0, value.shape[:-1])


class Parts:
    """A family's row bound to one model: modules and weights by the field's names. Holds no copy of a weight.

    `stack` is None for the blocks whose last residual is read (of a T5, the decoder's), "encoder" for an encoder's, and
    "cross" for the attention of the former to the latter.

    Args:
        model: a model of transformers whose class is in some row.

    Raises:
        UnknownFamily: no row covers the model's class.
    """

    def __init__(self, model: nn.Module) -> None:
        architecture = type(model).__name__
        self.model = model
        self.vocab: int | None = None  # how many logits are read, where that is not all of them
        self.family = family_of(architecture)
        config: Any = model.config
        self.stack = self.family.stack_of(config)
        self.n_heads: int = config.num_attention_heads
        self.n_kv_heads: int = getattr(config, "num_key_value_heads", None) or self.n_heads
        self.d_model: int = config.hidden_size
        self.d_head: int = getattr(config, "head_dim", None) or self.d_model // self.n_heads
        self.head: Head = self.family.heads[architecture]
        self.takes_positions = "position_ids" in inspect.signature(model.forward).parameters and (
            self.family.encoder is None
        )

    def limited(self, vocab: int) -> Parts:
        """The same parts, of whose logits only the first `vocab` are read."""
        parts = copy.copy(self)
        parts.vocab = vocab
        return parts

    def _at(self, path: str, root: nn.Module | None = None, part: str = "") -> nn.Module:
        try:
            return (root or self.model).get_submodule(path)
        except AttributeError as error:
            name, where = type(self.model).__name__, f" ({part})" if part else ""
            raise UnknownFamily(
                f"the row {self.family.name} names {path!r}{where}, which a {name} does not have; correct the row"
            ) from error

    def _present(self, paths: Sequence[str]) -> list[nn.Module]:
        found = []
        for path in paths:
            owner, _, name = path.rpartition(".")
            module = getattr(self._at(owner), name, None)
            if module is not None:
                found.append(module)
        return found

    @cached_property
    def embed(self) -> nn.Module:
        """Token embedding."""
        return self._at(self.family.embed)

    @cached_property
    def embed_out(self) -> nn.Module:
        """With a position embedding: the module whose output is the token's term of the residual."""
        return (self._present(self.family.embed_out) or [self.embed])[0]

    @cached_property
    def pos_embed(self) -> nn.Module | None:
        """Learned position embedding, or None."""
        return self._at(self.family.pos_embed) if self.family.pos_embed else None

    @cached_property
    def blocks(self) -> tuple[nn.Module, ...]:
        """The transformer blocks whose last residual is read, first to last."""
        return tuple(self._at(self.stack.layers).children())

    @cached_property
    def encoder_blocks(self) -> tuple[nn.Module, ...]:
        """The blocks of the encoder of an encoder-decoder; none otherwise."""
        return tuple(self._at(self.family.encoder.layers).children()) if self.family.encoder else ()

    @cached_property
    def final_norm(self) -> nn.Module:
        """The norm before the readout; the last block's second norm where norms take sums."""
        if self.stack.norm_of_sum:
            return self.inside(self.n_layers - 1, "mlp_norm")
        assert self.stack.final_norm is not None
        return self._at(self.stack.final_norm)

    @cached_property
    def linear_readout(self) -> tuple[nn.Module, ...]:
        """What turns the normed residual into the last quantity that is linear in it."""
        return tuple(self._present(self.head.linear))

    @property
    def readout(self) -> nn.Module:
        """The unembedding of a language model, the score head of a causal classifier: the last linear module."""
        return self.linear_readout[-1]

    @cached_property
    def readout_scale(self) -> float:
        """What the normed residual is multiplied by before it is read (T5)."""
        return float(self.head.scale(self.model.config)) if self.head.scale else 1.0

    @property
    def backbone(self) -> nn.Module:
        """The model without its head."""
        return self._at(str(self.model.base_model_prefix))

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def n_encoder_layers(self) -> int:
        """Number of the encoder's blocks, 0 without an encoder."""
        return len(self.encoder_blocks)

    @property
    def stacks(self) -> tuple[StackName | None, ...]:
        """The stacks that have attention: None, and for an encoder-decoder also "encoder" and "cross"."""
        return (None, "encoder", "cross") if self.family.encoder else (None,)

    def layout(self, stack: StackName | None = None) -> Stack:
        """The paths of a stack's blocks.

        Raises:
            MeasureError: the model has no such stack.
        """
        if stack is None or (stack == "cross" and self.stack.cross is not None):
            return self.stack
        if stack == "encoder" and self.family.encoder is not None:
            return self.family.encoder
        raise MeasureError(f"a {self.family.name} model has no {stack} stack; leave stack out")

    def attention(self, stack: StackName | None = None) -> Attention:
        """The paths of an attention of a stack."""
        layout = self.layout(stack)
        found = layout.cross if stack == "cross" else layout.attention
        assert found is not None
        return found

    def block(self, layer: int, stack: StackName | None = None) -> nn.Module:
        """A block.

        Raises:
            MeasureError: there is no such layer or stack.
        """
        self.layout(stack)
        blocks = self.encoder_blocks if stack == "encoder" else self.blocks
        if not 0 <= layer < len(blocks):
            raise MeasureError(f"the model has layers 0 to {len(blocks) - 1}, not {layer}")
        return blocks[layer]

    def inside(self, layer: int, part: str, stack: StackName | None = None) -> nn.Module:
        """The module of block `layer` that the row names under `part` (attn, q, o, attn_norm, mlp_norm, mlp_down ...).

        Raises:
            MeasureError: the family has no such part.
        """
        path = self.path(part, stack)
        if path is None:
            raise MeasureError(f"a {self.family.name} model has no {part} of its own")
        return self._at(path, self.block(layer, stack), part)

    def path(self, part: str, stack: StackName | None = None) -> str | None:
        """Where in a block a part is, or None: "attn", "q", "k", "v", "o", "attn_post_norm", or a field of `Stack`."""
        attention = self.attention(stack)
        if part in ("q", "k", "v", "o"):
            return str(getattr(attention, part))
        if part == "attn":
            return attention.module
        if part == "attn_post_norm":
            return attention.post_norm
        return getattr(self.layout(stack), part)

    def norm(self, layer: int, part: str, stack: StackName | None = None) -> NormParameters | None:
        """The norm that the row names under `part`, or None."""
        return norm_parameters(self.inside(layer, part, stack)) if self.path(part, stack) else None

    def mlp_weights(self, layer: int, stack: StackName | None = None) -> list[Tensor]:
        """Every weight and bias of the MLP of block `layer`."""
        block = self.block(layer, stack)
        return [w for path in self.layout(stack).mlp for _, w in named_weights(self._at(path, block, "mlp"))]

    def _projection(
        self, layer: int, part: str, heads: int, stack: StackName | None
    ) -> Float[Tensor, "heads d_model d_head"]:
        weight, _ = _linear(self.inside(layer, part, stack))
        row = self.attention(stack)
        if row.q == row.k == row.v:
            index = "qkv".index(part)
            if row.fused == "heads":
                weight = weight.unflatten(1, (self.n_heads, 3, self.d_head))[:, :, index].flatten(1)
            else:
                widths = [self.n_heads * self.d_head] + 2 * [self.n_kv_heads * self.d_head]
                weight = weight.split(widths, dim=1)[index]
        return weight.reshape(self.d_model, heads, self.d_head).transpose(0, 1)

    def of_projection(
        self, output: Float[Tensor, "batch seq width"], part: str, stack: StackName | None = None
    ) -> Float[Tensor, "batch seq heads d_head"]:
        """The part ("q", "k" or "v") of the output of its projection, by head (q) or key-value head."""
        start, width, heads = self._columns(part, stack)
        if self._by_head(stack):
            return output.unflatten(-1, (self.n_heads, 3, self.d_head))[..., "qkv".index(part), :]
        return output[..., start : start + width].unflatten(-1, (heads, self.d_head))

    def in_projection(
        self,
        output: Float[Tensor, "batch seq width"],
        value: Float[Tensor, "batch seq heads d_head"],
        part: str,
        stack: StackName | None = None,
    ) -> Float[Tensor, "batch seq width"]:
        """The output of a projection with another `part`: what `of_projection` reads, put back."""
        start, width, _ = self._columns(part, stack)
        if self._by_head(stack):
            split = list(output.unflatten(-1, (self.n_heads, 3, self.d_head)).unbind(-2))
            split["qkv".index(part)] = value
            return torch.stack(split, dim=-2).flatten(-3)
        return torch.cat([output[..., :start], value.flatten(-2), output[..., start + width :]], dim=-1)

    def _by_head(self, stack: StackName | None) -> bool:
        row = self.attention(stack)
        return row.q == row.k == row.v and row.fused == "heads"

    def _columns(self, part: str, stack: StackName | None) -> tuple[int, int, int]:
        """First column and number of columns of a part in its projection's output, and its number of heads."""
        heads = self.n_heads if part == "q" else self.n_kv_heads
        row, width = self.attention(stack), heads * self.d_head
        if not row.q == row.k == row.v:
            return 0, width, heads
        own, shared = self.n_heads * self.d_head, self.n_kv_heads * self.d_head
        return {"q": 0, "k": own, "v": own + shared}[part], width, heads

    def W_Q(self, layer: int, stack: StackName | None = None) -> Float[Tensor, "head d_model d_head"]:
        """Query weights by head."""
        return self._projection(layer, "q", self.n_heads, stack)

    def W_K(self, layer: int, stack: StackName | None = None) -> Float[Tensor, "kv_head d_model d_head"]:
        """Key weights by key-value head."""
        return self._projection(layer, "k", self.n_kv_heads, stack)

    def W_V(self, layer: int, stack: StackName | None = None) -> Float[Tensor, "kv_head d_model d_head"]:
        """Value weights by key-value head."""
        return self._projection(layer, "v", self.n_kv_heads, stack)

    def W_O(self, layer: int, stack: StackName | None = None) -> Float[Tensor, "head d_head d_model"]:
        """Output weights by head."""
        weight, _ = _linear(self.inside(layer, "o", stack))
        return weight.reshape(self.n_heads, self.d_head, self.d_model)

    def b_O(self, layer: int, stack: StackName | None = None) -> Float[Tensor, " d_model"] | None:
        """Bias of the output projection, which belongs to no head, or None."""
        return _linear(self.inside(layer, "o", stack))[1]

    def W_down(
        self, layer: int, stack: StackName | None = None
    ) -> tuple[Float[Tensor, "neuron d_model"], Float[Tensor, " d_model"] | None]:
        """Output weights of the MLP's neurons, and the MLP's output bias, which belongs to no neuron, or None."""
        return _linear(self.inside(layer, "mlp_down", stack))

    def embedding(self) -> Float[Tensor, "vocab d_model"]:
        """What each token puts into the residual, up to a factor and a norm."""
        weight = self.embed.weight
        assert isinstance(weight, Tensor)
        for module in self._present(self.family.embed_out):
            weight = weight @ _linear(module)[0]
        return weight

    def linear_output(self, residual: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch out"]:
        """The last quantity linear in the normed residual: logits before a soft cap, a head's pre-activation."""
        value = _run(self.final_norm, residual) * self.readout_scale
        for module in self.linear_readout:
            value = _run(module, value)
        return value.to(residual.device)

    def logits(
        self, residual: Float[Tensor, "*batch d_model"], *, gradients: bool = False
    ) -> Float[Tensor, "*batch out"]:
        """Read a residual as the model reads its last one: final norm, then the head."""
        with torch.set_grad_enabled(gradients):
            linear = self.linear_output(residual)
            values: Tensor = self.head.after(self.model, linear) if self.head.after else linear
            return values[..., : self.vocab]

    def logits_of(
        self, residual: Float[Tensor, "row d_model"], ids: Int[Tensor, "row choice"]
    ) -> Float[Tensor, "row choice"]:
        """The logits of a few tokens a row, as `logits` has them, without computing the rest; with gradients.

        Args:
            residual: last residuals.
            ids: tokens.
        """
        value = _run(self.final_norm, residual) * self.readout_scale
        for module in self.linear_readout[:-1]:
            value = _run(module, value)
        weight, bias = _linear(self.linear_readout[-1])
        value = value.to(weight)
        columns = weight.T[ids.to(weight.device)]
        linear = torch.einsum("rd,rcd->rc", value, columns)
        if bias is not None:
            linear = linear + bias[ids.to(bias.device)]
        # What comes after is a soft cap, which takes each logit by itself, where it is a language model.
        whole: Tensor = self.head.after(self.model, linear) if self.head.after else linear
        return whole.to(residual.device)

    @property
    def n_outputs(self) -> int:
        """Number of logits before any non-linearity: the vocabulary, or the width of what is read."""
        width = _linear(self.readout)[0].shape[1]
        return width if self.vocab is None else min(width, self.vocab)

    def unembedding(self) -> tuple[Float[Tensor, "d_model out"], Float[Tensor, " out"] | None]:
        """Weight and bias that turn the normed residual into the last quantity linear in it (scale included)."""
        weight, bias = _linear(self.linear_readout[0])
        for module in self.linear_readout[1:]:
            after, own = _linear(module)
            weight = weight @ after
            bias = own if bias is None else bias @ after + (0 if own is None else own)
        if self.vocab is not None:
            weight, bias = weight[:, : self.vocab], None if bias is None else bias[: self.vocab]
        return (weight * self.readout_scale if self.readout_scale != 1.0 else weight), bias
