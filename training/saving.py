"""Saving a model, and the proof that what was saved is what was in memory."""

from __future__ import annotations

import contextlib
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


def save(model: nn.Module, tokenizer: Any, folder: Path) -> None:
    """Write the model as safetensors with its config, and the tokenizer beside it."""
    saver: Any = model
    with _without_bars():
        saver.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def prove(model: nn.Module, folder: Path, ids: Int[Tensor, "sample pos"]) -> None:
    """Load what was saved into the same class and compare it with the model in memory.

    Raises:
        TrainingError: a key is missing, unexpected or of another shape, or the logits of `ids` differ at all.
    """
    kind: Any = type(model)
    with _without_bars():
        loaded, report = kind.from_pretrained(folder, output_loading_info=True, dtype=next(model.parameters()).dtype)
    for name in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if report.get(name):
            found = ", ".join(sorted(map(str, report[name]))[:3])
            raise TrainingError(f"{folder.name} does not load again: {name.replace('_', ' ')} {found}; report this")
    loaded.to(next(model.parameters()).device)
    with evaluating(model), evaluating(loaded), torch.no_grad():
        ids = ids.to(next(model.parameters()).device)
        before, after = model(input_ids=ids).logits, loaded(input_ids=ids).logits
    if not torch.equal(before, after):
        gap = float((before - after).abs().max())
        raise TrainingError(f"{folder.name} loads with other logits (largest difference {gap:.3g}); report this")


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
