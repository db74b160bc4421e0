"""What is trained: a copy of the base, whole, with its first blocks frozen, or under a LoRA adapter."""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from interp.errors import ConfigError, MissingExtra
from interp.families import Parts
from training.config import LoraConfig, ModelConfig
from training.seeding import derive, seeded


def make_policy(base: nn.Module, config: ModelConfig, seed: int) -> nn.Module:
    """The policy that starts equal to `base`: a model of its class, or a PeftModel around one.

    Weights that stay frozen are not copied: policy and base share their tensors.

    Args:
        base: the model to start from, which is not changed.
        config: the recipe's section `model`.
        seed: of the adapter's first values.

    Returns:
        The policy in evaluation mode; what is trained requires gradients, and nothing else does.

    Raises:
        UnknownFamily: blocks are to be frozen, and no family row says where the model's blocks are.
        ConfigError: PEFT knows no place for the adapter.
        MissingExtra: the recipe asks for LoRA and PEFT is not installed.
    """
    names = trained_names(base, config)
    shared = {id(p): p for name, p in base.named_parameters() if name not in names}
    policy = copy.deepcopy(base, shared).eval()
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(name in names)
    return policy if config.lora is None else _with_adapter(policy, config.lora, seed).eval()


def trained_names(model: nn.Module, config: ModelConfig) -> set[str]:
    """Names of the model's own parameters that are trained; with LoRA none is.

    With `num_layers_unfrozen` = n these are the last n blocks, the final norm and the head. All else is frozen: the
    embeddings, the blocks before, an encoder. A head that is tied to the embedding is the embedding's own matrix, so it
    is frozen with it.
    """
    every = {name for name, _ in model.named_parameters()}
    if config.lora is not None:
        return set()
    if config.num_layers_unfrozen == -1:
        return every
    causal: Any = model
    stack = Parts(model).stack
    blocks: Any = model.get_submodule(stack.layers)
    modules = list(blocks[max(0, len(blocks) - config.num_layers_unfrozen) :])
    modules += [model.get_submodule(stack.final_norm)] if stack.final_norm is not None else []
    modules += [causal.get_output_embeddings()]
    trained = {id(parameter) for module in modules for parameter in module.parameters()}
    trained -= {id(parameter) for parameter in causal.get_input_embeddings().parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in trained}


def _with_adapter(model: nn.Module, config: LoraConfig, seed: int) -> nn.Module:
    try:
        import peft
    except ImportError as error:
        raise MissingExtra("lora", "a recipe with model.lora") from error
    inner: Any = model
    settings = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.target_modules) or None,
        task_type="SEQ_2_SEQ_LM" if inner.config.is_encoder_decoder else "CAUSAL_LM",
        # GPT-2's Conv1D stores its weight transposed.
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),
    )
    try:
        with warnings.catch_warnings(), seeded(derive(seed, "adapter")):
            # PEFT reads an attribute that transformers has renamed; nothing that a user could mend.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            adapted: nn.Module = peft.get_peft_model(inner, settings)
    except ValueError as error:
        raise ConfigError(f"no adapter fits {type(model).__name__}: {error}; set model.lora.target_modules") from error
    return adapted


@contextlib.contextmanager
def adapter_dropout(model: nn.Module, seed: int) -> Iterator[None]:
    """Within the block an adapter's dropout is at work, with random numbers of its own; the rest stays as it is.

    The model's own dropout is never on: the ratio of new to old probabilities would differ from 1 before any update.
    """
    dropouts = [
        module
        for name, module in model.named_modules()
        if "lora_dropout" in name and isinstance(module, nn.Dropout) and module.p > 0
    ]
    with seeded(seed):
        for module in dropouts:
            module.train()
        try:
            yield
        finally:
            for module in dropouts:
                module.eval()


@contextlib.contextmanager
def fused_activations(model: nn.Module) -> Iterator[None]:
    """Within the block GPT-2's GELU is torch's own (its tanh form) in place of eight operations one after the other.

    The function is the same, within rounding; a small model's update spends a quarter of its time there.
    """
    modules: list[Any] = [module for module in model.modules() if type(module).__name__ == "NewGELUActivation"]
    for module in modules:
        module.forward = functools.partial(nn.functional.gelu, approximate="tanh")
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def arithmetic(model: nn.Module, dtype: str) -> contextlib.AbstractContextManager[Any]:
    """The forward pass in `dtype` within the block; weights, log-probabilities, KL and the value head stay float32."""
    if dtype == "float32":
        return contextlib.nullcontext()
    device = next(model.parameters()).device.type
    return torch.autocast(device, dtype=torch.bfloat16)
