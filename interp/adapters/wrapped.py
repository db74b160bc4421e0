"""Models that peft wrapped or put layers into, read as trees of plain modules; the model itself is not changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from interp.adapters.files import MERGE, Adapter, Change, single
from interp.adapters.modules import attach, detach_adapters, is_adapted, shared_copy
from interp.errors import LoadError


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
        chosen = keep and not layer.disable_adapters and name in layer.modules_to_save
        return (layer.modules_to_save[name] if chosen else layer.original_module), None
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
