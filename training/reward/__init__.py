"""Rewards: a reward model, any Python callable, or a weighted sum of them."""

from training.reward.build import build_reward, load_function, reference, reward_of_pair
from training.reward.checked import Reward, RewardFunction, TextScorer
from training.reward.combined import LetterShare, WeightedSum, unrelated

__all__ = [
    "LetterShare",
    "Reward",
    "RewardFunction",
    "TextScorer",
    "WeightedSum",
    "build_reward",
    "load_function",
    "reference",
    "reward_of_pair",
    "unrelated",
]
