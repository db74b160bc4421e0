import numpy as np
import pytest
import torch

from interp.errors import TrainingError
from training.config import PPOConfig
from training.native.scores import Moments, scaled, seen

ROUNDS = [torch.tensor(x) for x in ([1.0, 3.0], [5.0, 7.0, 2.0], [-4.0, 0.5])]


def all_seen(count=3):
    moments = Moments()
    for scores in ROUNDS[:count]:
        moments = seen(moments, scores)
    return moments


def test_moments_are_those_of_all_scores_at_once():
    everything = np.concatenate([scores.numpy() for scores in ROUNDS])
    got = all_seen()
    assert got.count == 7 and got.mean == pytest.approx(everything.mean())
    assert got.spread == pytest.approx(everything.std(ddof=1)) and got.first == pytest.approx(np.sqrt(2))


def test_scaling():
    scores, first = ROUNDS[1], np.sqrt(2)
    assert scaled(scores, all_seen(2), PPOConfig(cliprange_reward=6.0)).tolist() == [5, 6, 2]
    ref = scaled(scores, all_seen(2), PPOConfig(scale_reward="ref"))
    assert ref.tolist() == pytest.approx((scores / first).tolist())
    given = scaled(scores, all_seen(2), PPOConfig(scale_reward="ref", ref_mean=1.0, ref_std=2.0))
    assert given.tolist() == [2, 3, 0.5]
    running = scaled(scores, all_seen(2), PPOConfig(scale_reward="running"))
    assert running.tolist() == pytest.approx((scores / np.std([1, 3, 5, 7, 2], ddof=1)).tolist())
    tight = scaled(scores, all_seen(2), PPOConfig(scale_reward="ref", cliprange_reward=2.0))
    assert tight.tolist() == pytest.approx([2, 2, 2 / first])


@pytest.mark.parametrize("mode", ["ref", "running"])
def test_no_scale(as_a_user, mode):
    moments = seen(Moments(), torch.ones(3))
    with pytest.raises(TrainingError, match="the reward is constant, ppo.scale_reward has no scale"):
        scaled(torch.ones(3), moments, PPOConfig(scale_reward=mode))


def test_rounds_of_one_number_are_counted():
    counts, moments = [], Moments()
    for scores in ([0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [1.0, 2.0], [2.0, 2.0], [2.0]):
        moments = seen(moments, torch.tensor(scores))
        counts.append(moments.constant)
    assert counts == [1, 2, 1, 0, 1, 2]
