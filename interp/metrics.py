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
from interp.models import Policy, RewardModel
from interp.prompts import Batch, Prompts

OwnMetric = Callable[[Tensor, Tensor], Tensor]
"""From logits at each prompt's last token [row, vocab], of a reward model those of its labels [row, label], and the
rows' prompts [row] to one number a row."""

Metric = str | OwnMetric
NAMES = ("logit_diff", "kl", "logprob")
REWARD_NAMES = ("score", "kl")
UNITS = {"logit_diff": "logits", "kl": "nats", "logprob": "nats"}


def at_columns(values: Float[Tensor, "row seq *rest"], columns: Int[Tensor, "row column"]) -> Tensor:
    """The values at each row's columns."""
    rows = torch.arange(len(values), device=values.device)[:, None]
    return values[rows, columns.to(values.device)]


def read_columns(parts: Parts, batch: Batch) -> Int[Tensor, "batch 1"]:
    """The column that a head reads: of a policy, and of a causal classifier, the last of a prompt; else [CLS]'s."""
    column = batch.first if parts.head.reads == "first" else batch.last_prompt
    return column[:, None]


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


def units_of(metric: Metric, model: Policy | RewardModel) -> str:
    """The metric's units, of a metric of the user's own ""; a score has those of the reward model's output."""
    if metric == "score" and isinstance(model, RewardModel):
        return model.units
    return UNITS.get(name_of(metric), "")


def chosen_metric(metric: Metric | None, prompts: Prompts, model: Policy | RewardModel) -> Metric:
    """The metric that is meant for a recipient: of a reward model `score` where none is named (see `check_metric`).

    Raises:
        MeasureError: it is unknown, it does not fit the model, or the prompts lack what it needs.
    """
    if not isinstance(model, RewardModel):
        answers, continuations = prompts.answers is not None, prompts.continuations is not None
        return check_metric(metric, answers=answers, continuations=continuations)
    if metric is None or callable(metric):
        return metric or "score"
    if metric in NAMES and metric not in REWARD_NAMES:
        raise MeasureError(f"{metric} is of next tokens, which a reward model does not predict; take 'score'")
    if metric not in REWARD_NAMES:
        raise MeasureError(
            f"metric is {' or '.join(REWARD_NAMES)}, or a function of logits by label and rows, not {metric!r}"
        )
    if metric == "kl" and model.squash != "softmax":
        raise MeasureError(
            f"kl needs a softmax over the labels, and the reward model gives a {model.squash}; take 'score', or load it"
            " with output='softmax'"
        )
    return metric


def check_metric(metric: Metric | None, *, answers: bool, continuations: bool) -> Metric:
    """The metric that is meant, `logit_diff` where prompts have answers and none is named, else `kl`.

    Raises:
        MeasureError: it is unknown, or the prompts lack what it needs.
    """
    if metric is None:
        return "logit_diff" if answers else "kl"
    if callable(metric):
        return metric
    if metric == "score":
        raise MeasureError(
            "score is a reward model's; of a policy take logit_diff, kl, logprob or a function of logits"
        )
    if metric not in NAMES:
        raise MeasureError(f"metric is {', '.join(NAMES)} or a function of logits and rows, not {metric!r}")
    if metric == "logit_diff" and not answers:
        raise MeasureError("logit_diff needs answers: Prompts(..., answers=(' bad', ' good'))")
    if metric == "logprob" and not continuations:
        raise MeasureError("logprob needs the texts whose probability is meant: Prompts(..., continuations=[...])")
    return metric


def readings(
    metric: Metric,
    model: Policy | RewardModel,
    source: Parts,
    batches: tuple[Batch, Batch],
    final: Float[Tensor, "batch seq d_model"],
    first: int,
) -> tuple[Reading, Reading]:
    """How `metric` is read in what the recipient reads and in what the source reads.

    Args:
        metric: as `chosen_metric` gives it.
        model: the recipient.
        source: what reads the source's last residual.
        batches: what recipient and source read.
        final: the source's last residual.
        first: see `reading`.
    """
    log_probs = None
    if metric == "kl":
        residual = at_columns(final, read_columns(source, batches[1]))[:, 0]
        log_probs = source.logits(residual).double().log_softmax(-1)
    reward = model if isinstance(model, RewardModel) else None
    here, there = (reading(metric, each, first, log_probs, reward=reward) for each in batches)
    return here, there


def reading(
    metric: Metric,
    batch: Batch,
    first: int,
    source: Float[Tensor, "batch output"] | None,
    *,
    reward: RewardModel | None = None,
) -> Reading:
    """How `metric` is read in a batch.

    Args:
        metric: as `check_metric` gives it.
        batch: tokens that the model reads.
        first: number of the batch's first prompt among all, for a metric of the user's own.
        source: the source's log-probabilities at each prompt's last token (of a reward model, of its labels), for `kl`.
        reward: the reward model whose score is meant, and which says at which token it is read; None of a policy.
    """
    last = batch.last_prompt[:, None] if reward is None else read_columns(reward.parts, batch)
    if metric == "score":
        assert reward is not None
        output, column = reward.output_of, reward.labels.index(reward.label)

        def score(parts: Parts, residual: Tensor, rows: Tensor) -> Tensor:
            return output(_logits(parts, residual[:, 0]).double())[:, column]

        return Reading(last, score)
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
                f" logits [row, vocab or label] and prompts [row] and returns one number a row, here {len(rows)}"
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
