"""Saving a model, and the proof that what was saved is what was in memory."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.utils import logging as hf_logging

from interp.errors import TrainingError
from interp.sampling import evaluating


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Transformers' progress bars off within the block: the run has one of its own."""
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()


def save(model: nn.Module, tokenizer: Any, folder: Path, *, base: str | None = None) -> None:
    """Write the model as safetensors with its config, and the tokenizer beside it.

    Of a PeftModel the adapter is written, with `base` as the name of the model that it belongs to.
    """
    saver: Any = model
    if base is not None and hasattr(model, "peft_config"):
        for adapter in saver.peft_config.values():
            adapter.base_model_name_or_path = base
    with _without_bars():
        saver.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def prove(model: nn.Module, folder: Path, ids: Int[Tensor, "sample pos"], *, base: nn.Module | None = None) -> None:
    """Load what was saved into the same class and compare it with the model in memory.

    Args:
        model: what was saved.
        folder: where.
        ids: tokens that both read.
        base: the model that an adapter is put on; needed for a PeftModel only.

    Raises:
        TrainingError: a key is missing, unexpected or of another shape, or the logits of `ids` differ at all.
    """
    loaded, report = _load_again(model, folder, base)
    for name in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if report.get(name):
            found = ", ".join(sorted(map(str, report[name]))[:3])
            raise TrainingError(f"{folder.name} does not load again: {name.replace('_', ' ')} {found}; report this")
    device = next(model.parameters()).device
    loaded.to(device)
    config: Any = model.config
    inputs = {"input_ids": ids.to(device)}
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with evaluating(model), evaluating(loaded), torch.no_grad():
        before, after = _logits(model, inputs), _logits(loaded, inputs)
    if not torch.equal(before, after):
        gap = float((before - after).abs().max())
        raise TrainingError(f"{folder.name} loads with other logits (largest difference {gap:.3g}); report this")


def _logits(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """Logits by copies of the weights, which begin at aligned addresses.

    Those that are mapped from a file begin anywhere, and there the kernels add in another order.
    """
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    logits: Tensor = torch.func.functional_call(model, weights, (), inputs).logits
    return logits


def _load_again(model: Any, folder: Path, base: nn.Module | None) -> tuple[nn.Module, dict[str, Any]]:
    """What is stored in `folder`, and the report on its keys."""
    if hasattr(model, "peft_config"):
        from peft import PeftModel, get_peft_model_state_dict

        with _without_bars():
            wrapped = PeftModel.from_pretrained(copy.deepcopy(base), folder)
        stored = load_file(folder / "adapter_model.safetensors")
        own = get_peft_model_state_dict(wrapped)
        return wrapped, {"missing_keys": own.keys() - stored.keys(), "unexpected_keys": stored.keys() - own.keys()}
    with _without_bars():
        loaded, report = type(model).from_pretrained(
            folder, output_loading_info=True, dtype=next(model.parameters()).dtype
        )
    return loaded, report


def save_module(module: nn.Module, file: Path) -> None:
    """Write a plain module's tensors as safetensors and compare them with what is read back.

    Raises:
        TrainingError: they differ.
    """
    tensors = {name: value.detach().contiguous().cpu() for name, value in module.state_dict().items()}
    save_file(tensors, file)
    stored = load_file(file)
    if stored.keys() != tensors.keys() or any(not torch.equal(stored[name], tensors[name]) for name in tensors):
        raise TrainingError(f"{file.name} reads back with other values; check the disk")
