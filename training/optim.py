"""The optimiser of supervised training."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AdamW:
    """AdamW with linear warm-up, linear decay to zero, and gradients clipped to 2-norm 1."""

    def __init__(self, model: nn.Module, *, rate: float, weight_decay: float, steps: int, warmup: float) -> None:
        """Set up `steps` steps with the peak learning rate `rate` after the fraction `warmup` of them."""
        self.parameters = list(model.parameters())
        self._inner = torch.optim.AdamW(self.parameters, lr=rate, weight_decay=weight_decay)
        rising = max(1, int(steps * warmup))
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._inner, lambda step: min((step + 1) / rising, (steps - step) / max(1, steps - rising))
        )

    def step(self, loss: Tensor) -> None:
        """One step down the gradient of `loss`."""
        self._inner.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self._inner.step()
        self._schedule.step()
