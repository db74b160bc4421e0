"""What a circuit is for: one number a prompt, read from the logits at its last token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import MeasureError, PromptError
from interp.models import Policy
from interp.prompts import Batch, Prompts, TokenizedPrompts

Metric = Literal["logit_diff", "kl"] | Callable[[Tensor, Tensor], Tensor]
"""`"logit_diff"` (answer minus alternative, logits), `"kl"` (of the next token, KL(clean run ‖ this run), nats), or a
function of the logits [row, vocab] at the last prompt tokens and the prompts' indices [row] to one number a row."""


@dataclass(frozen=True)
class Judge:
    """A metric that fits the prompts.

    Attributes:
        metric: what is computed.
    """

    metric: Metric

    @property
    def units(self) -> str:
        """Units of the values."""
        return {"logit_diff": "logits", "kl": "nats"}.get(str(self.metric), "")

    @property
    def label(self) -> str:
        """How figures call it."""
        named = {"logit_diff": "logit difference", "kl": "KL(clean ‖ run)"}
        return named.get(str(self.metric)) or str(getattr(self.metric, "__name__", "metric"))

    def __call__(
        self,
        logits: Float[Tensor, "batch vocab"],
        clean: Float[Tensor, "batch vocab"],
        batch: Batch,
        rows: Int[Tensor, " batch"],
    ) -> Float[Tensor, " batch"]:
        """The metric of a batch.

        Args:
            logits: of the run that is judged.
            clean: of the clean run.
            batch: the clean prompts.
            rows: indices of the prompts.

        Raises:
            MeasureError: a metric of one's own gave something else than one number a row.
        """
        if self.metric == "logit_diff":
            assert batch.answer_ids is not None
            both = logits.gather(1, batch.answer_ids.to(logits.device))
            return both[:, 0] - both[:, 1]
        if self.metric == "kl":
            target, found = clean.log_softmax(-1), logits.log_softmax(-1)
            return (target.exp() * (target - found)).sum(-1)
        assert callable(self.metric)
        values: Any = self.metric(logits, rows)
        if not isinstance(values, Tensor) or values.shape != rows.shape or not values.is_floating_point():
            seen = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise MeasureError(
                f"a metric takes (logits [row, vocab], rows [row]) and returns one number a row, {tuple(rows.shape)};"
                f" it gave {seen}"
            )
        return values


def judge(metric: Metric, prompts: Prompts) -> Judge:
    """Check a metric against the prompts.

    Raises:
        MeasureError: there is no such metric, or it needs answers and there are none.
    """
    if not callable(metric) and metric not in ("logit_diff", "kl"):
        raise MeasureError(f'a metric is "logit_diff", "kl" or a function of (logits, rows), not {metric!r}')
    if metric == "logit_diff" and prompts.answers is None:
        raise MeasureError(
            'the metric "logit_diff" contrasts answers, and the prompts have none; pass Prompts(..., answers=...) or'
            ' metric="kl"'
        )
    return Judge(metric)


def clean_and_corrupt(policy: Policy, pairs: Prompts) -> tuple[TokenizedPrompts, TokenizedPrompts]:
    """Token ids of clean and corrupted prompts; continuations are left out, as everything is read before them.

    Raises:
        PromptError: there are no corrupted prompts, or one is the same as its prompt.
    """
    corrupted = replace(pairs.corrupt, continuations=None)  # an error now if there are none
    tokens = replace(pairs, continuations=None).tokenize(policy.tokenizer, decoder_start=policy.decoder_start)
    assert tokens.corrupt is not None and len(corrupted) == len(tokens)
    ours, theirs = (each.encoder_ids or each.prompt_ids for each in (tokens, tokens.corrupt))
    for index, (clean, other) in enumerate(zip(ours, theirs, strict=True)):
        if clean == other:
            raise PromptError(
                f"prompt {index} and its corrupted counterpart are the same tokens ({tokens.texts[index][:60]!r});"
                " change what the answer depends on"
            )
    return tokens, tokens.corrupt


def take(tokens: TokenizedPrompts, rows: np.ndarray) -> TokenizedPrompts:
    """Some of the prompts, for batches: ids and answers alone."""
    chosen = rows.tolist()
    encoder = None if tokens.encoder_ids is None else tuple(tokens.encoder_ids[row] for row in chosen)
    answers = None if tokens.answer_ids is None else tokens.answer_ids[chosen]
    return TokenizedPrompts(tuple(tokens.prompt_ids[row] for row in chosen), None, answers, encoder)


def row_indices(start: int, batch: Batch) -> Int[Tensor, " batch"]:
    """Indices of a batch's prompts, whose first is `start`."""
    return torch.arange(start, start + len(batch.input_ids), device=batch.input_ids.device)
