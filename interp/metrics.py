"""What a patch, a circuit or a sample is judged by: one number a prompt, or one a sampled text.

A metric is a name or a function. `resolve_metric` says which is meant and refuses what does not fit. It is then read
from logits at each prompt's last token (`metric_of_logits`), or from the last residual, of which only what is needed
is unembedded (`reading`). `call_reward` scores texts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.errors import InterpError, MeasureError
from interp.families import Parts
from interp.models import Policy, RewardModel
from interp.models.load import as_reward
from interp.pair import CheckpointPair
from interp.prompts import Batch, Prompts

CustomMetric = Callable[[Tensor, Tensor], Tensor]
"""From logits at each prompt's last token [row, vocab], of a reward model those of its labels [row, label], and the
rows' prompts [row] to one number a row."""

Metric = str | CustomMetric
"""`"logit_diff"` (answer minus alternative, logits), `"kl"` (KL(source ‖ this run) of the next token, nats),
`"logprob"` (of the prompts' continuations, nats), of a reward model `"score"` or `"kl"` (over its labels), or a
function."""

POLICY_METRICS = ("logit_diff", "kl", "logprob")
REWARD_METRICS = ("score", "kl")
UNITS = {"logit_diff": "logits", "kl": "nats", "logprob": "nats"}
LABELS = {"logit_diff": "logit difference", "kl": "KL", "logprob": "log-probability"}


def metric_name(metric: Metric) -> str:
    """The metric's name; of a function its own."""
    return metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")


def metric_label(metric: Metric) -> str:
    """The metric as a figure writes it."""
    return LABELS.get(metric_name(metric), metric_name(metric))


def metric_units(metric: Metric, model: Policy | RewardModel | None = None) -> str:
    """The metric's units, of a function ""; a score has those of the reward model's output."""
    if metric == "score" and isinstance(model, RewardModel):
        return model.units
    return UNITS.get(metric_name(metric), "")


def resolve_metric(
    metric: Metric | None,
    prompts: Prompts,
    model: Policy | RewardModel | None = None,
    *,
    names: Sequence[str] = POLICY_METRICS,
) -> Metric:
    """The metric that is meant, checked: where none is named, `logit_diff` if the prompts have answers, else `kl`.

    Args:
        metric: a name, a function or None.
        prompts: what it is of.
        model: the model that it is read from; of a reward model None means `score`.
        names: those that a policy may have here.

    Raises:
        MeasureError: it is unknown, it does not fit the model, or the prompts lack what it needs.
    """
    if isinstance(model, RewardModel):
        return _resolve_of_reward(metric, model)
    if metric is None:
        return "logit_diff" if prompts.answers is not None else "kl"
    if callable(metric):
        return metric
    if metric == "score":
        raise MeasureError(
            f"score is a reward model's; of a policy take {', '.join(names)} or a function of logits and rows"
        )
    if metric not in names:
        raise MeasureError(f"metric is {', '.join(names)} or a function of logits and rows, not {metric!r}")
    if metric == "logit_diff" and prompts.answers is None:
        raise MeasureError("logit_diff needs answers: Prompts(..., answers=(' bad', ' good')); metric='kl' needs none")
    if metric == "logprob" and prompts.continuations is None:
        raise MeasureError("logprob needs the texts whose probability is meant: Prompts(..., continuations=[...])")
    return metric


def _resolve_of_reward(metric: Metric | None, model: RewardModel) -> Metric:
    if metric is None or callable(metric):
        return metric or "score"
    if metric in POLICY_METRICS and metric not in REWARD_METRICS:
        raise MeasureError(f"{metric} is of next tokens, which a reward model does not predict; take 'score'")
    if metric not in REWARD_METRICS:
        raise MeasureError(
            f"metric is {' or '.join(REWARD_METRICS)}, or a function of logits by label and rows, not {metric!r}"
        )
    if metric == "kl" and model.squash != "softmax":
        raise MeasureError(
            f"kl needs a softmax over the labels, and the reward model gives a {model.squash}; take 'score', or load it"
            " with output='softmax'"
        )
    return metric


def metric_of_logits(
    metric: Metric,
    logits: Float[Tensor, "row output"],
    numbers: Int[Tensor, " row"],
    *,
    answers: Int[Tensor, "row 2"] | None = None,
    source: Float[Tensor, "row output"] | None = None,
) -> Float[Tensor, " row"]:
    """The metric of each row of logits at a prompt's last token, in their dtype; gradients pass.

    logit_diff = logit of the answer - logit of the alternative; kl = sum p (log p - log q) with p the source's
    distribution and q the row's.

    Args:
        metric: `logit_diff`, `kl` or a function, as `resolve_metric` gives it.
        logits: of the run that is judged.
        numbers: each row's prompt among all, for a function.
        answers: ids of answer and alternative of each row, for `logit_diff`.
        source: log-probabilities of the run that `kl` is measured from.

    Raises:
        MeasureError: a function gave something else than one number a row, or none with a gradient where one is wanted.
    """
    if metric == "logit_diff":
        assert answers is not None
        both = logits.gather(1, answers.to(logits.device))
        return both[:, 0] - both[:, 1]
    if metric == "kl":
        assert source is not None
        log_probs, expected = logits.log_softmax(-1), source.to(logits.device)
        return (expected.exp() * (expected - log_probs)).sum(-1)
    assert callable(metric)
    values: Any = metric(logits, numbers.to(logits.device))
    if not isinstance(values, Tensor) or values.shape != numbers.shape:
        raise MeasureError(
            f"the metric {metric_name(metric)} returned {getattr(values, 'shape', type(values).__name__)}; it takes"
            f" logits [row, vocab or label] and prompts [row] and returns one number a row, here {len(numbers)}"
        )
    if logits.requires_grad and not values.requires_grad:
        raise MeasureError(
            f"the metric {metric_name(metric)} cannot be differentiated, which gradients of it need; return a tensor"
            " computed from the logits"
        )
    return values if values.is_floating_point() else values.to(logits.dtype)


# Reading a metric from the last residual


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
            batch, to the metric [row], float64; gradients pass.
    """

    columns: Int[Tensor, "batch column"]
    read: Callable[[Parts, Float[Tensor, "row column d_model"], Int[Tensor, " row"]], Float[Tensor, " row"]]

    def by_copy(self, parts: Parts, residual: Float[Tensor, "row column d_model"]) -> Float[Tensor, "copy prompt"]:
        """The metric of rows that are the batch's prompts, once or several times over, without gradients, on the CPU.

        Args:
            parts: the model whose norm and head read.
            residual: the last residual at `columns`.
        """
        count = len(self.columns)
        rows = torch.arange(len(residual), device=residual.device) % count
        with torch.no_grad():
            return self.read(parts, residual, rows).reshape(-1, count).cpu()

    def of_run(self, parts: Parts, final: Float[Tensor, "batch seq d_model"]) -> np.ndarray:
        """The metric of an unchanged run of the batch, from its last residual: [prompt], float64."""
        return self.by_copy(parts, at_columns(final, self.columns))[0].numpy()


def readings(
    metric: Metric,
    model: Policy | RewardModel,
    source: Parts,
    batches: tuple[Batch, Batch],
    final: Float[Tensor, "batch seq d_model"],
    numbers: Sequence[int],
) -> tuple[Reading, Reading]:
    """How `metric` is read in what the recipient reads and in what the source reads.

    Args:
        metric: as `resolve_metric` gives it.
        model: the recipient.
        source: what reads the source's last residual.
        batches: what recipient and source read.
        final: the source's last residual.
        numbers: see `reading`.
    """
    log_probs = None
    if metric == "kl":
        residual = at_columns(final, read_columns(source, batches[1]))[:, 0]
        log_probs = source.logits(residual).double().log_softmax(-1)
    reward = model if isinstance(model, RewardModel) else None
    here, there = (reading(metric, batch, numbers, source=log_probs, reward=reward) for batch in batches)
    return here, there


def reading(
    metric: Metric,
    batch: Batch,
    numbers: Sequence[int],
    *,
    source: Float[Tensor, "batch output"] | None = None,
    reward: RewardModel | None = None,
) -> Reading:
    """How `metric` is read in a batch.

    Args:
        metric: as `resolve_metric` gives it.
        batch: tokens that the model reads.
        numbers: each prompt's number among all, for a function.
        source: the source's log-probabilities at each prompt's last token (of a reward model, of its labels), for `kl`.
        reward: the reward model whose score is meant, and which says at which token it is read; None of a policy.
    """
    last = batch.last_prompt[:, None] if reward is None else read_columns(reward.parts, batch)
    if metric == "logprob":
        return _log_probability(batch)
    if metric == "score":
        assert reward is not None
        output, column = reward.output_of, reward.labels.index(reward.label)

        def score(parts: Parts, residual: Tensor, rows: Tensor) -> Tensor:
            return output(_logits(parts, residual[:, 0]).double())[:, column]

        return Reading(last, score)
    if metric == "logit_diff":
        assert batch.answer_ids is not None
        answers = batch.answer_ids

        def difference(parts: Parts, residual: Tensor, rows: Tensor) -> Tensor:
            both = parts.logits_of(residual[:, 0], answers.to(residual.device)[rows]).double()  # these two tokens alone
            return both[:, 0] - both[:, 1]

        return Reading(last, difference)
    among = torch.tensor(list(numbers), dtype=torch.long)

    def whole(parts: Parts, residual: Tensor, rows: Tensor) -> Tensor:
        logits = _logits(parts, residual[:, 0])
        logits = logits.double() if metric == "kl" else logits.float()
        expected = None if source is None else source.to(logits.device)[rows]
        return metric_of_logits(metric, logits, among.to(rows.device)[rows], source=expected).double()

    return Reading(last, whole)


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
        tokens = log_probs.gather(-1, following.to(residual.device)[rows][..., None])[..., 0]
        return (tokens * inside.to(residual.device)[rows]).sum(-1)

    return Reading(columns, total)


# Scoring texts


RewardFunction = Callable[..., Sequence[float] | np.ndarray]
"""Called as trlX calls it, with keywords: `f(samples=[...], prompts=[...], outputs=[...])`, one number a sample."""

Reward = RewardModel | RewardFunction


def resolve_reward(reward: Any) -> Reward:
    """A reward model, loaded with the defaults where a source came, or the function itself.

    Raises:
        LoadError: it cannot be loaded.
        MeasureError: it is neither.
    """
    if isinstance(reward, (RewardModel, CheckpointPair, nn.Module, str, os.PathLike)):
        return as_reward(reward)
    if callable(reward):
        return reward
    raise MeasureError(
        f"a reward is a reward model (interp.load_reward), its folder or hub id, a pair, or a function of samples,"
        f" prompts and outputs, not a {type(reward).__name__}"
    )


def reward_units(reward: Reward) -> str:
    """Units of what a reward gives."""
    return reward.units if isinstance(reward, RewardModel) else "reward"


def call_reward(
    reward: Reward,
    samples: Sequence[str],
    prompts: Sequence[str],
    outputs: Sequence[str],
    *,
    reads: str = "sample",
    batch_size: int = 64,
) -> Float[np.ndarray, " sample"]:
    """The reward of each sampled text, float64.

    Args:
        reward: a reward model, or a function that is called as trlX calls it: `f(samples=, prompts=, outputs=)`.
        samples: prompts with what was written after them, each as one text (`interp.prompts.response_texts` gives all
            three).
        prompts: the prompts.
        outputs: what was written.
        reads: what a reward model reads: `sample`, the whole text, or `output` alone. A function gets all three.
        batch_size: texts that a reward model scores at a time.

    Raises:
        MeasureError: `reads` is neither, the function raised, or it gave another count or something not finite.
    """
    if reads not in ("sample", "output"):
        raise MeasureError(f'reads is "sample" (prompt and response) or "output" (the response), not {reads!r}')
    if isinstance(reward, RewardModel):
        return reward.score(list(samples if reads == "sample" else outputs), batch_size=batch_size)
    name = getattr(reward, "__name__", type(reward).__name__)
    try:
        raw = reward(samples=list(samples), prompts=list(prompts), outputs=list(outputs))
        scores = np.asarray(raw, dtype=np.float64)
    except InterpError:
        raise
    except Exception as error:  # whatever a user's function raises, or returns in place of numbers
        raise MeasureError(
            f"the reward function {name} failed ({type(error).__name__}: {error}); it is called as"
            " f(samples=[...], prompts=[...], outputs=[...]) and returns one number a sample"
        ) from error
    if scores.shape != (len(samples),) or not np.isfinite(scores).all():
        came = "not all of them finite" if scores.shape == (len(samples),) else f"shape {scores.shape}"
        raise MeasureError(
            f"the reward function {name} returns {len(samples)} finite numbers, one a sample; came: {came}"
        )
    return scores


# Refusing numbers that mean nothing, before and after the work


def check_whole(low: int = 1, /, **settings: object) -> None:
    """Refuse settings that are no whole numbers from `low` on.

    Raises:
        MeasureError: naming the first that is not.
    """
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low:
            raise MeasureError(f"{name} is a whole number from {low} on, not {value!r}")


def check_finite(metric: str, **runs: np.ndarray) -> None:
    """Refuse a metric that is not finite, [prompt] or [prompt, site], rather than average what is left.

    Raises:
        MeasureError: naming the run and the first such prompt.
    """
    for name, values in runs.items():
        wrong = ~np.isfinite(values).reshape(len(values), -1).all(1)
        if wrong.any():
            first = int(np.argmax(wrong))
            raise MeasureError(
                f"{metric} of the {name} run is not finite at prompt {first}; check it for 0 / 0 and the"
                " weights for NaN"
            )
