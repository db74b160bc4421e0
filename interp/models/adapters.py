"""A model with an adapter: a second tree of modules over the same weights, whose adapted modules know the change.

An adapted module's `weight` is its effective one: V = W + B A alpha / r (Hu et al. 2021, "LoRA", eq. 3), or in DoRA
m V / ||V||, where m are the trained norms by output (Liu et al. 2024, eq. 5). So whatever reads weights reads the right
ones; the parameters stay those of the base.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from interp.errors import LoadError
from interp.models.adapter_files import MERGE, Adapter, Change, single

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


def has_adapter(model: nn.Module) -> bool:
    """Whether an adapter of ours, or a layer of peft's, is somewhere in the model."""
    return any(is_adapted(m) or _of_peft(m) for m in model.modules())


def _of_peft(module: nn.Module) -> bool:
    return type(module).__module__.startswith("peft.")


def without_adapter(model: nn.Module) -> nn.Module:
    """The base of a model with adapters: a new tree over the same weights; a model without any is returned as it is.

    Raises:
        LoadError: an adapter of peft is merged into the weights, or changed biases in place.
    """
    return _stripped(model, keep=False) if has_adapter(model) else model


def unwrap(model: nn.Module) -> nn.Module:
    """A model that peft wrapped, or put layers into, as a tree of plain modules with the active adapters on.

    The tree is new and its weights are the wrapped model's; a model without any of peft is returned as it is.

    Raises:
        LoadError: an adapter is no LoRA, or of a variant that is not W + B A or DoRA.
    """
    return _stripped(model, keep=True) if any(map(_of_peft, model.modules())) else model


def _stripped(model: nn.Module, *, keep: bool) -> nn.Module:
    inner: Any = model
    while _of_peft(inner):  # PeftModel around LoraModel around the model
        if not hasattr(inner, "get_base_model") and not hasattr(inner, "model"):
            raise LoadError(f"a {type(inner).__name__} cannot be read; {MERGE}")
        config = getattr(inner, "active_peft_config", None)
        if config is not None and getattr(config, "is_prompt_learning", False):
            raise LoadError(f"a {config.peft_type.value} adapter changes no weight that could be compared; use LoRA")
        inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner.model
    trained = [c for c in (getattr(inner, "peft_config", None) or {}).values() if getattr(c, "bias", "none") != "none"]
    if trained and not keep:
        raise LoadError("an adapter trained biases in place, so base's own are gone; load the base anew")
    tree = shared_copy(inner)
    wrapped = [(path, m) for path, m in tree.named_modules() if _is_layer(m)]
    for path, layer in wrapped:
        plain, change = _unwrap_layer(path, layer, keep)
        tree.set_submodule(path, plain)
        if change is not None:
            attach(plain, path, change, Adapter("the adapter", None, {}, {}))
    if not keep:
        detach_adapters(tree)
    return tree


def _is_layer(module: nn.Module) -> bool:
    return hasattr(module, "base_layer") or hasattr(module, "modules_to_save")


def _unwrap_layer(path: str, layer: Any, keep: bool) -> tuple[nn.Module, Change | None]:
    """The plain module inside one of peft's layers, and what the active adapters do to it."""
    if hasattr(layer, "modules_to_save"):
        name = layer.active_adapters[0] if layer.active_adapters else None
        trained = keep and not layer.disable_adapters and name in layer.modules_to_save
        return (layer.modules_to_save[name] if trained else layer.original_module), None
    if layer.merged_adapters:
        if keep:
            return layer.base_layer, None
        raise LoadError(f"an adapter is merged into {path}, so base's own weights are gone; call unmerge_adapter()")
    if not keep or layer.disable_adapters:
        return layer.base_layer, None
    if not hasattr(layer, "lora_A"):
        raise LoadError(f"{path} is peft's {type(layer).__name__}, no LoRA; {MERGE}")
    changes = [_layer_change(path, layer, name) for name in layer.active_adapters if name in layer.scaling]
    if not changes:
        return layer.base_layer, None
    if len(changes) == 1:
        return layer.base_layer, changes[0]
    if any(change.magnitude is not None for change in changes):
        raise LoadError(f"{path} has several adapters on it, one with DoRA; {MERGE}")
    biases = [change.bias for change in changes if change.bias is not None]
    joined = Change(torch.cat([c.A for c in changes]), torch.cat([c.B for c in changes], dim=1))
    return layer.base_layer, replace(joined, bias=torch.stack(biases).sum(0) if biases else None)


def _layer_change(path: str, layer: Any, name: str) -> Change:
    variant = layer.lora_variant.get(name) if hasattr(layer, "lora_variant") else None
    if variant is not None and not type(variant).__name__.startswith("Dora"):
        raise LoadError(f"{path} uses {type(variant).__name__}, which is more than W + B A; {MERGE}")
    scaling = layer.scaling[name]
    if name in layer.lora_embedding_A:
        return Change(
            single(layer.lora_embedding_A[name].detach()), single(layer.lora_embedding_B[name].detach()) * scaling
        )
    out = layer.lora_B[name]
    magnitude = layer.lora_magnitude_vector[name].weight.detach().flatten() if variant is not None else None
    return Change(
        single(layer.lora_A[name].weight.detach()),
        single(out.weight.detach()) * scaling,
        None if out.bias is None else out.bias.detach() * scaling,
        magnitude,
    )
