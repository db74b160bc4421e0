"""Running a model without a trace of it: mode, kernel and gradients are given back as they were."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from interp.sampling import evaluating


@contextlib.contextmanager
def as_found(model: nn.Module, *, eager: bool = False) -> Iterator[None]:
    """Run a model in eval mode without gradients, and give it back as it was found.

    Args:
        model: a model of transformers.
        eager: use eager attention meanwhile, the one kernel that returns its patterns.
    """
    config: Any = model.config
    kernel = config._attn_implementation
    try:
        if eager and kernel != "eager":
            model.set_attn_implementation("eager")  # type: ignore[operator]
        with evaluating(model), torch.no_grad():
            yield
    finally:
        if config._attn_implementation != kernel:
            model.set_attn_implementation(kernel)  # type: ignore[operator]
