"""The loop of supervised training, and predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.errors import TrainingError
from interp.sampling import evaluating
from training.batches import by_length, pad_right
from training.events import Progress
from training.optim import AdamW
from training.seeding import derive, seeded

Loss = Callable[[list[int]], Tensor]
"""The loss of the rows with these indices, a scalar."""


def fit(
    model: nn.Module,
    lengths: Sequence[int],
    loss_of: Loss,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    seed: int,
    progress: Progress | None = None,
    stepped: Callable[[int], None] | None = None,
) -> int:
    """Train `model` in place: AdamW, linear warm-up over a tenth, linear decay, gradients clipped to norm 1.

    Args:
        model: what is trained.
        lengths: length of each row, by which batches are put together.
        loss_of: the mean loss of some rows.
        epochs: passes over all rows.
        batch_size: rows in a step.
        learning_rate: its peak.
        weight_decay: decoupled weight decay.
        seed: seed of order and dropout.
        progress: told of the loss, averaged since the last telling.
        stepped: called after each step with its number, from 1.

    Returns:
        The number of steps.

    Raises:
        TrainingError: the loss is not finite.
    """
    steps = epochs * -(-len(lengths) // batch_size)
    optimizer = AdamW(model, rate=learning_rate, weight_decay=weight_decay, steps=steps, warmup=0.1)
    done, recent = 0, []
    with seeded(derive(seed, "classifier dropout")):
        model.train()
        for epoch in range(epochs):
            for batch in by_length(lengths, batch_size, derive(seed, "classifier order", epoch)):
                loss = loss_of(batch)
                if not torch.isfinite(loss):
                    raise TrainingError(
                        f"the classifier's loss is {loss.item()} at step {done}; lower its learning_rate"
                    )
                optimizer.step(loss)
                done += 1
                recent.append(loss.item())
                if progress and (done % 10 == 0 or done == steps):
                    progress({"stage": "classifier", "step": done, "steps": steps, "loss": sum(recent) / len(recent)})
                    recent.clear()
                if stepped:
                    stepped(done)
    model.eval()
    return done


def predict(
    model: nn.Module, rows: Sequence[Sequence[int]], pad_id: int, *, batch_size: int = 128
) -> Float[Tensor, "text label"]:
    """Logits, float64; rows of like length are read together."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    parts = []
    with evaluating(model), torch.no_grad():
        for start in range(0, len(order), batch_size):
            ids, mask = pad_right([rows[index] for index in order[start : start + batch_size]], pad_id)
            parts.append(model(input_ids=ids, attention_mask=mask).logits.double())
    logits = torch.cat(parts)
    return logits[torch.tensor(order).argsort()]
