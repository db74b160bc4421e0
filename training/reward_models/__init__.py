"""Reward models trained from labelled texts or from preferences."""

from training.reward_models.train import CARD, TrainedReward, check_reward, train_reward

__all__ = ["CARD", "TrainedReward", "check_reward", "train_reward"]
