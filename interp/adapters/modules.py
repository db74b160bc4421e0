"""A model with an adapter: a second tree of modules over the same weights, whose adapted modules know the change.

An adapted module's `weight` is its effective one: V = W + B A alpha / r (Hu et al. 2021, "LoRA", eq. 3), or in DoRA
m V / ||V||, where m are the trained norms by output (Liu et al. 2024, eq. 5). So whatever reads weights reads the right
ones; the parameters stay those of the base.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from interp.adapters.files import MERGE, Adapter, Change
from interp.errors import LoadError

_BUFFERS = ("lora_A", "lora_B", "lora_bias", "lora_magnitude")


class _Effective(nn.Module):
    """A module whose `weight` and `bias` are the effective ones; its parameters stay those of the base."""

    lora_A: Tensor
    lora_B: Tensor
    lora_bias: Tensor | None
    lora_magnitude: Tensor | None

    @property
    def weight(self) -> Tensor:
        plain, delta = self._parameters["weight"], self.lora_B @ self.lora_A
        assert plain is not None
        rows_out = isinstance(self, nn.Linear)  # Conv1D and embeddings store their weight input first
        if self.lora_magnitude is None:
            return plain + (delta if rows_out else delta.T)
        whole = (plain if rows_out else plain.T) + delta
        whole = whole * (self.lora_magnitude / whole.norm(dim=1))[:, None]
        return whole if rows_out else whole.T

    @property
    def bias(self) -> Tensor | None:
        plain = self._parameters.get("bias")
        if self.lora_bias is None:
            return plain
        return self.lora_bias if plain is None else plain + self.lora_bias

    def low_rank(self, output: Tensor, x: Tensor) -> Tensor:
        """The plain module's output, and what the low rank adds to it."""
        change = nn.functional.linear(nn.functional.linear(x.to(self.lora_A.dtype), self.lora_A), self.lora_B)
        return output + change.to(output.dtype)


class _Linear(_Effective):
    def forward(self, x: Tensor) -> Tensor:
        plain = self._parameters["weight"]
        assert plain is not None
        bias = self.bias if self.bias is None else self.bias.to(plain.dtype)
        return self.low_rank(nn.functional.linear(x, plain, bias), x)


class _Conv1D(_Effective):
    def forward(self, x: Tensor) -> Tensor:
        plain, bias = self._parameters["weight"], self.bias
        assert plain is not None
        output = x @ plain
        return self.low_rank(output if bias is None else output + bias.to(plain.dtype), x)


class _Embedding(_Effective):
    def forward(self, ids: Tensor) -> Tensor:
        plain = self._parameters["weight"]
        assert plain is not None
        output = nn.functional.embedding(ids, plain)
        change = nn.functional.linear(nn.functional.embedding(ids, self.lora_A.T), self.lora_B)
        return output + change.to(output.dtype)


_FAST: dict[type[nn.Module], type[_Effective]] = {nn.Linear: _Linear, Conv1D: _Conv1D, nn.Embedding: _Embedding}


@functools.cache
def _adapted_class(kind: type[nn.Module], fast: bool) -> type[nn.Module]:
    """A subclass that keeps the name; where there is no fast path, its own forward runs on the effective weight."""
    return type(kind.__name__, (_FAST[kind] if fast else _Effective, kind), {"plain_class": kind})


def shared_copy(model: nn.Module) -> nn.Module:
    """A second tree of modules over the same tensors; gradients and their flags are not shared."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in model.parameters()}
    memo |= {id(buffer): buffer for buffer in model.buffers()}
    return copy.deepcopy(model, memo)


def with_adapter(model: nn.Module, adapter: Adapter) -> nn.Module:
    """`model` with an adapter on it: a new tree over the same weights. `model` itself is not changed.

    Raises:
        LoadError: the adapter does not fit the model.
    """
    adapted = shared_copy(model)
    _replace_parameters(adapted, adapter)
    for path, change in adapter.changes.items():
        try:
            module = adapted.get_submodule(path)
        except AttributeError as error:
            raise LoadError(
                f"{adapter.name} adapts {path}, which {_name(model)} does not have; {_other_base(adapter)}"
            ) from error
        attach(module, path, change, adapter)
    for path, module in model.named_modules():
        if isinstance(module, tuple(_FAST)) and adapter.adapts(path) and path not in adapter.changes:
            raise LoadError(f"{adapter.name} lacks the tensors of {path}, which its config adapts; copy it again")
    return adapted


def attach(module: nn.Module, path: str, change: Change, adapter: Adapter) -> None:
    """Make a module an adapted one, in place.

    Raises:
        LoadError: it is no linear map or embedding, or of another shape.
    """
    kind = type(module)
    if not isinstance(module, tuple(_FAST)) or not isinstance(module._parameters.get("weight"), Tensor):
        raise LoadError(f"{adapter.name} adapts {path}, a {kind.__name__}, which cannot be read with LoRA on; {MERGE}")
    if isinstance(module, nn.Embedding) and change.magnitude is not None:
        raise LoadError(f"{adapter.name} puts DoRA on the embedding {path}, which cannot be read; {MERGE}")
    weight = module._parameters["weight"]
    assert weight is not None
    shape = tuple(weight.shape) if isinstance(module, nn.Linear) else tuple(weight.shape)[::-1]
    if (len(change.B), change.A.shape[1]) != shape:
        raise LoadError(
            f"{adapter.name} expects {path} of {len(change.B)} by {change.A.shape[1]}, the model's is {shape[0]} by"
            f" {shape[1]}; {_other_base(adapter)}"
        )
    module.__class__ = _adapted_class(kind, kind in _FAST and change.magnitude is None)  # type: ignore[arg-type]
    tensors = (change.A, change.B, change.bias, change.magnitude)
    for name, tensor in zip(_BUFFERS, tensors, strict=True):
        module.register_buffer(name, None if tensor is None else tensor.to(weight.device), persistent=False)


def _replace_parameters(model: nn.Module, adapter: Adapter) -> None:
    """Put whole parameters of the adapter in place of the model's; embeddings may bring rows for added tokens."""
    for name, tensor in adapter.replaced.items():
        path, _, leaf = name.rpartition(".")
        try:
            module = model.get_submodule(path)
            old = module._parameters[leaf]
        except (AttributeError, KeyError) as error:
            raise LoadError(
                f"{adapter.name} brings {name}, which {_name(model)} does not have; {_other_base(adapter)}"
            ) from error
        assert old is not None
        grown = old.ndim == 2 and old.shape[1:] == tensor.shape[1:] and isinstance(module, (nn.Linear, nn.Embedding))
        if old.shape != tensor.shape and not (grown and _is_vocabulary(model, module)):
            raise LoadError(
                f"{adapter.name} brings {name} of shape {tuple(tensor.shape)}, the model's is {tuple(old.shape)};"
                f" {_other_base(adapter)}"
            )
        new = tensor.to(old.device, old.dtype)
        if old.shape == new.shape and torch.equal(old, new):
            continue  # peft stores whole embeddings beside their adapter; one that did not change stays shared
        parameter = nn.Parameter(new, requires_grad=False)
        holders = [module]
        if old.shape != new.shape:
            holders = [m for m in model.modules() if m._parameters.get(leaf) is old]  # tied ones grow together
            model.config.vocab_size = len(new)  # type: ignore[union-attr]
        for holder in holders:
            holder._parameters[leaf] = parameter
            setattr(holder, "num_embeddings" if isinstance(holder, nn.Embedding) else "out_features", len(new))


def _is_vocabulary(model: Any, module: nn.Module) -> bool:
    return module in (model.get_input_embeddings(), model.get_output_embeddings())


def _other_base(adapter: Adapter) -> str:
    named = f", {adapter.base}" if adapter.base else ""
    return f"load it on the base that it was made for{named}"


def _name(model: nn.Module) -> str:
    return f"this {type(model).__name__}"


def is_adapted(module: nn.Module) -> bool:
    """Whether a module carries a change of an adapter of ours."""
    return isinstance(module, _Effective)


def detach_adapters(model: nn.Module) -> None:
    """Make every adapted module of a tree the plain one again."""
    for module in [m for m in model.modules() if isinstance(m, _Effective)]:
        module.__class__ = module.plain_class  # type: ignore[assignment]
        for name in _BUFFERS:
            delattr(module, name)


def effective(model: nn.Module, name: str) -> Tensor:
    """A parameter by its name, with what an adapter adds to it."""
    path, _, leaf = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(path), leaf)
    return tensor


def named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter under its name in the base, with what an adapter adds to it."""
    for name, _ in model.named_parameters():
        yield name, effective(model, name)
