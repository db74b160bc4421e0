import numpy as np
import pytest

from interp.errors import PromptError, TrainingError
from training.reward import Reward

TEXTS = (["a b", "c d"], ["a", "c"], [" b", " d"])


class Model:
    def score(self, texts, *, batch_size=64):
        self.seen, self.batch_size = texts, batch_size
        return np.arange(len(texts), dtype=np.float64)


def test_a_model_scores_whole_samples():
    model = Model()
    assert Reward(model, batch_size=3)(*TEXTS).tolist() == [0, 1]
    assert (model.seen, model.batch_size) == (TEXTS[0], 3)


def test_a_callable_is_called_as_trlx_calls_it():
    def reward(samples, prompts, outputs):
        assert (samples, prompts, outputs) == TEXTS
        return [1, 2.5]

    assert Reward(reward)(*TEXTS).tolist() == [1, 2.5]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([1.0], "must return 2 numbers, one a sample; 1 came"),
        ([[1.0, 2.0]], "shape \\(1, 2\\) came"),
        (3.0, "one a sample; a float came"),
        ([1.0, float("nan")], "returned nan for sample 1 \\(1 of 2 not finite\\)"),
        ([float("inf"), 0.0], "returned inf for sample 0"),
        (["x", "y"], "must return numbers, not \\['x', 'y'"),
        (None, "must return 2 numbers, one a sample; a NoneType came"),
    ],
)
def test_bad_returns(value, words):
    with pytest.raises(TrainingError, match=words):
        Reward(lambda **_: value)(*TEXTS)


def test_what_raises_is_named():
    def reward(**_):
        raise KeyError("joy")

    with pytest.raises(TrainingError, match="the reward function raised KeyError: 'joy'") as caught:
        Reward(reward)(*TEXTS)
    assert isinstance(caught.value.__cause__, KeyError)


def test_our_own_errors_pass_as_they_are():
    def reward(**_):
        raise PromptError("mine")

    with pytest.raises(PromptError, match="mine"):
        Reward(reward)(*TEXTS)


def test_no_reward_at_all(as_a_user):
    with pytest.raises(TrainingError, match="RewardModel or a callable, not a int"):
        Reward(3)
