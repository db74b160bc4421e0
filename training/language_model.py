"""Training a small causal language model from nothing, with its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from interp.errors import TrainingError
from training.batches import by_length, pad_right
from training.events import Progress
from training.optim import AdamW
from training.seeding import derive

END_OF_TEXT = "<|endoftext|>"


def byte_level_tokenizer(texts: Sequence[str], *, vocab_size: int) -> Any:
    """A byte-level BPE tokenizer trained on `texts`, in GPT-2's manner.

    Every byte is a token, so every text can be encoded. Its one special token, `<|endoftext|>` (id 0), ends texts and
    pads. It puts nothing before a text.

    Args:
        texts: what the merges are learned from.
        vocab_size: most tokens; fewer where the texts hold no further pair.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def train_language_model(
    model: nn.Module,
    rows: Sequence[Sequence[int]],
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    progress: Progress | None = None,
) -> float:
    """Train `model` in place to predict each next token of the rows, by cross-entropy in nats.

    AdamW (weight decay 0.01), linear warm-up over a twentieth of the steps and linear decay, gradients clipped to norm
    1, evaluation mode (no dropout).

    Args:
        model: a causal language model of transformers.
        rows: token ids of each text, end token included.
        epochs: passes over the rows.
        batch_size: rows in a step.
        learning_rate: peak learning rate.
        seed: seed of the order.
        progress: called every ten steps.

    Returns:
        The mean loss of the last tenth of the steps.

    Raises:
        TrainingError: the loss is not finite.
    """
    steps = epochs * -(-len(rows) // batch_size)
    optimizer = AdamW(model, rate=learning_rate, weight_decay=0.01, steps=steps, warmup=0.05)
    model.eval()
    losses: list[float] = []
    for epoch in range(epochs):
        for batch in by_length([len(row) for row in rows], batch_size, derive(seed, "language model", epoch)):
            loss = _loss(model, [rows[i] for i in batch])
            losses.append(loss.item())
            if not torch.isfinite(loss):
                raise TrainingError(f"the language model's loss is {losses[-1]} at step {len(losses)}; lower the rate")
            optimizer.step(loss)
            if progress and (len(losses) % 10 == 0 or len(losses) == steps):
                progress({"stage": "language model", "step": len(losses), "steps": steps, "loss": losses[-1]})
    last = losses[-max(1, steps // 10) :]
    return sum(last) / len(last)


def _loss(model: nn.Module, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    ids, mask = pad_right(rows, 0)  # what stands in the padding is masked from attention and from the loss
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    target = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), target.flatten(), ignore_index=-100)


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text with the end token after it."""
    return [[*ids, tokenizer.eos_token_id] for ids in tokenizer(list(texts))["input_ids"]]
