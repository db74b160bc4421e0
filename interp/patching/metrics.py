"""What a patch is judged by: one number a prompt, read from the last residual."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import MeasureError
from interp.families import Parts
from interp.prompts import Batch

OwnMetric = Callable[[Tensor, Tensor], Tensor]
"""From logits at each prompt's last token [row, vocab] and the rows' prompts [row] to one number a row."""

Metric = str | OwnMetric
NAMES = ("logit_diff", "kl", "logprob")
UNITS = {"logit_diff": "logits", "kl": "nats", "logprob": "nats"}


@dataclass(frozen=True)
class Reading:
    """How a metric is read, for one batch of prompts.

    Attributes:
        columns: at which columns of the sequence the last residual is needed, [batch, column].
        read: from a model, the residuals there [row, column, d_model], and for each row its prompt's place in the
            batch, to the metric [row], float64.
    """

    columns: Int[Tensor, "batch column"]
    read: Callable[[Parts, Float[Tensor, "row column d_model"], Int[Tensor, " row"]], Float[Tensor, " row"]]

    @property
    def one_column(self) -> bool:
        """Whether one token a prompt is enough."""
        return self.columns.shape[1] == 1


def name_of(metric: Metric) -> str:
    """The metric as a person reads it."""
    return metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")


def check_metric(metric: Metric | None, *, answers: bool, continuations: bool) -> Metric:
    """The metric that is meant, `logit_diff` where prompts have answers and none is named, else `kl`.

    Raises:
        MeasureError: it is unknown, or the prompts lack what it needs.
    """
    if metric is None:
        return "logit_diff" if answers else "kl"
    if callable(metric):
        return metric
    if metric not in NAMES:
        raise MeasureError(f"metric is {', '.join(NAMES)} or a function of logits and rows, not {metric!r}")
    if metric == "logit_diff" and not answers:
        raise MeasureError("logit_diff needs answers: Prompts(..., answers=(' bad', ' good'))")
    if metric == "logprob" and not continuations:
        raise MeasureError("logprob needs the texts whose probability is meant: Prompts(..., continuations=[...])")
    return metric


def reading(metric: Metric, batch: Batch, first: int, source: Float[Tensor, "batch vocab"] | None) -> Reading:
    """How `metric` is read in a batch.

    Args:
        metric: as `check_metric` gives it.
        batch: tokens that the model reads.
        first: number of the batch's first prompt among all, for a metric of the user's own.
        source: the source's log-probabilities at each prompt's last token, for `kl`.
    """
    last = batch.last_prompt[:, None]
    if metric == "logit_diff":
        assert batch.answer_ids is not None
        ids = batch.answer_ids

        def difference(parts: Parts, residual: Tensor, rows: Tensor) -> Tensor:
            both = parts.logits_of(residual[:, 0], ids.to(residual.device)[rows]).double()
            return both[:, 0] - both[:, 1]

        return Reading(last, difference)
    if metric == "kl":
        assert source is not None

        def divergence(parts: Parts, residual: Tensor, rows: Tensor) -> Tensor:
            own = _logits(parts, residual[:, 0]).double().log_softmax(-1)
            expected = source.to(own.device)[rows]
            return (expected.exp() * (expected - own)).sum(-1)

        return Reading(last, divergence)
    if metric == "logprob":
        return _log_probability(batch)
    assert callable(metric)
    function: Any = metric

    def own(parts: Parts, residual: Tensor, rows: Tensor) -> Tensor:
        values = function(_logits(parts, residual[:, 0]).float(), rows + first)
        if not isinstance(values, Tensor) or values.shape != rows.shape:
            raise MeasureError(
                f"the metric {name_of(function)} returned {getattr(values, 'shape', type(values).__name__)}; it takes"
                f" logits [row, vocab] and prompts [row] and returns one number a row, here {len(rows)}"
            )
        return values.double()

    return Reading(last, own)


def _logits(parts: Parts, residual: Tensor) -> Tensor:
    return parts.logits(residual, gradients=torch.is_grad_enabled())


def _log_probability(batch: Batch) -> Reading:
    """The log-probability of each response, summed over its tokens."""
    longest = int((batch.lengths - batch.prompt_lengths).max())
    steps = torch.arange(longest, device=batch.input_ids.device)
    columns = (batch.last_prompt[:, None] + steps).clamp_max(batch.input_ids.shape[1] - 1)
    inside = steps < (batch.lengths - batch.prompt_lengths)[:, None]
    following = batch.input_ids.gather(1, (columns + 1).clamp_max(batch.input_ids.shape[1] - 1))

    def total(parts: Parts, residual: Tensor, rows: Tensor) -> Tensor:
        log_probs = _logits(parts, residual).double().log_softmax(-1)
        own = log_probs.gather(-1, following.to(residual.device)[rows][..., None])[..., 0]
        return (own * inside.to(residual.device)[rows]).sum(-1)

    return Reading(columns, total)
