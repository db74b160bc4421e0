"""The metrics that patching and circuits share, on cases worked out by hand, and how a reward is called."""

import numpy as np
import pytest
import torch

from interp.errors import MeasureError
from interp.metrics import (
    call_reward,
    check_finite,
    check_whole,
    metric_label,
    metric_of_logits,
    metric_units,
    resolve_metric,
    resolve_reward,
)
from interp.prompts import Prompts

ROWS = torch.arange(2)


def test_logit_diff_is_answer_minus_alternative() -> None:
    logits = torch.tensor([[1.0, 4.0, 0.0], [2.0, 2.0, 9.0]])
    values = metric_of_logits("logit_diff", logits, ROWS, answers=torch.tensor([[1, 0], [2, 1]]))
    assert values.tolist() == [3.0, 7.0]


def test_kl_is_from_the_source() -> None:
    source = torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=torch.float64).log()
    values = metric_of_logits("kl", torch.zeros(2, 2, dtype=torch.float64), ROWS, source=source)
    expected = 0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5)
    assert values.numpy() == pytest.approx([0.0, expected], abs=1e-15)


def test_a_function_gets_logits_and_prompts() -> None:
    values = metric_of_logits(lambda logits, rows: logits[:, 0] + rows, torch.ones(2, 3), torch.tensor([4, 7]))
    assert values.tolist() == [5.0, 8.0]
    with pytest.raises(MeasureError, match="one number a row, here 2"):
        metric_of_logits(lambda logits, rows: logits, torch.ones(2, 3), ROWS)
    with pytest.raises(MeasureError, match="returned float"):
        metric_of_logits(lambda logits, rows: 1.0, torch.ones(2, 3), ROWS)  # type: ignore[arg-type, return-value]


def test_a_function_without_a_gradient_is_refused_where_one_is_needed() -> None:
    logits = torch.ones(2, 3, requires_grad=True)
    with pytest.raises(MeasureError, match="cannot be differentiated"):
        metric_of_logits(lambda logits, rows: logits.argmax(-1), logits, ROWS)
    assert metric_of_logits(lambda logits, rows: logits.argmax(-1), logits.detach(), ROWS).tolist() == [0, 0]


def test_which_metric_is_meant() -> None:
    plain, answered = Prompts(["a"]), Prompts(["a"], answers=(" b", " c"))
    assert resolve_metric(None, plain) == "kl"
    assert resolve_metric(None, answered) == "logit_diff"
    for metric, prompts, words in (
        ("logit_diff", plain, "needs answers"),
        ("logprob", plain, "continuations"),
        ("score", plain, "a reward model's"),
        ("loss", plain, "not 'loss'"),
    ):
        with pytest.raises(MeasureError, match=words):
            resolve_metric(metric, prompts)
    with pytest.raises(MeasureError, match="metric is logit_diff, kl or a function"):
        resolve_metric("logprob", answered, names=("logit_diff", "kl"))
    assert (metric_label("logit_diff"), metric_units("logit_diff")) == ("logit difference", "logits")
    assert (metric_label(len), metric_units(len)) == ("len", "")  # type: ignore[arg-type]


def test_a_reward_function_is_called_with_keywords() -> None:
    def reward(samples: list[str], prompts: list[str], outputs: list[str]) -> list[float]:
        return [len(s) - len(p) - len(o) for s, p, o in zip(samples, prompts, outputs, strict=True)]

    scores = call_reward(resolve_reward(reward), ["ab c", "d"], ["ab", "d"], [" c", ""])
    assert scores.dtype == np.float64 and scores.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda texts: [1.0], "is called as"),
        (lambda **_: [1.0, 2.0], "shape"),
        (lambda **_: [float("nan")], "finite"),
        (lambda **_: "good", "could not convert"),
    ],
)
def test_a_reward_function_that_does_something_else(function: object, words: str) -> None:
    with pytest.raises(MeasureError, match=words):
        call_reward(resolve_reward(function), ["a"], ["a"], [""])


def test_what_is_no_reward() -> None:
    with pytest.raises(MeasureError, match="not a int"):
        resolve_reward(3)
    with pytest.raises(MeasureError, match="reads is"):
        call_reward(lambda **_: [0.0], ["a"], ["a"], [""], reads="prompt")


def test_settings_and_values_that_mean_nothing() -> None:
    check_whole(steps=3)
    with pytest.raises(MeasureError, match="batch_size is a whole number from 1 on, not 0"):
        check_whole(batch_size=0)
    with pytest.raises(MeasureError, match="seed"):
        check_whole(0, seed=True)
    with pytest.raises(MeasureError, match="of the source run is not finite at prompt 1"):
        check_finite("kl", recipient=np.zeros(2), source=np.array([0.0, np.nan]))
