"""PPO of our own for causal language models.

Each round samples `num_rollouts` responses, places each score on the response's last token, adds the per-token KL
penalty to the frozen copy of the base, estimates advantages, and takes `ppo_epochs` passes of clipped updates
(Ziegler et al. 2019; Schulman et al. 2017). The model stays in evaluation mode: dropout would make the ratio of new to
old probabilities differ from 1 before any update.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.errors import TrainingError
from training.config import RLHFConfig
from training.events import Progress
from training.losses import (
    distinct_n,
    explained_variance,
    gae,
    logprobs_of,
    masked_mean,
    per_token_kl_penalty,
    place_reward,
    ppo_policy_loss,
    value_loss,
    whiten,
)
from training.reward import Reward
from training.rollouts import (
    Prompt,
    RewardScaler,
    Rollouts,
    Sampler,
    ValueHead,
    collect,
    prompt_stream,
    read_responses,
    take,
)
from training.seeding import derive, permutation

Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Targets:
    """What the updates of one round aim at: whitened advantages, and the returns for the value head."""

    advantages: Float[Tensor, "sample step"]
    returns: Float[Tensor, "sample step"]


def targets(rollouts: Rollouts, scores: Float[Tensor, " sample"], config: RLHFConfig) -> Targets:
    """Advantages and returns of a round from its (scaled, perhaps permuted) scores."""
    mask, ppo = rollouts.samples.response_mask, config.ppo
    rewards = place_reward(scores, mask) + per_token_kl_penalty(
        rollouts.logprobs, rollouts.reference_logprobs, mask, ppo.init_kl_coef
    )
    advantages, returns = gae(rewards, rollouts.values, mask, ppo.gamma, ppo.lam)
    return Targets(whiten(advantages, mask), returns)


class PPO:
    """One run of PPO: the policy (changed in place), its value head, its frozen reference, its optimiser."""

    def __init__(self, model: nn.Module, reference: nn.Module, sampler: Sampler, config: RLHFConfig) -> None:
        """Set up a run.

        Args:
            model: the policy; its parameters are trained, its mode is set to evaluation.
            reference: a frozen copy of what it starts from.
            sampler: samples with the run's settings.
            config: the run's config.
        """
        self.model, self.reference, self.sampler, self.config = model.eval(), reference, sampler, config
        self.seed = config.train.seed
        inner: Any = model.config
        first = next(model.parameters())
        self.value_head = ValueHead(inner.get_text_config().hidden_size, derive(self.seed, "value head"))
        self.value_head.to(first.device)
        self.parameters = [p for p in (*model.parameters(), *self.value_head.parameters()) if p.requires_grad]
        policy = {"params": [p for p in model.parameters() if p.requires_grad], "lr": config.train.learning_rate}
        rate = config.train.value_learning_rate or config.train.learning_rate
        head = {"params": list(self.value_head.parameters()), "lr": rate}
        self.optimizer = torch.optim.Adam([policy, head])
        self.scaler = RewardScaler(config.ppo.scale_reward, config.ppo.cliprange_reward)
        self.step = 0

    def run(
        self,
        prompts: Sequence[str],
        reward: Reward,
        *,
        log: Log,
        shuffle: int | None = None,
        progress: Progress | None = None,
    ) -> float:
        """Train for `total_steps` optimiser steps.

        Args:
            prompts: texts to sample responses to.
            reward: the reward.
            log: called with the metrics of every round.
            shuffle: seed by which scores are permuted among the rollouts of each round (a null run); None trains.
            progress: called after every round.

        Returns:
            KL(policy || reference) in nats per response token before the first update; 0 to rounding.

        Raises:
            TrainingError: the reward misbehaves, or a loss is not finite.
        """
        train, ppo = self.config.train, self.config.ppo
        stream = prompt_stream(self.sampler.encode(prompts), derive(self.seed, "prompts of rollouts"))
        first_kl = float("nan")
        for update in itertools.count():
            started = time.perf_counter()
            rollouts = self.rollouts(list(itertools.islice(stream, ppo.num_rollouts)), reward, update)
            scores = self.scaler(rollouts.scores)
            if shuffle is not None:
                scores = scores[permutation(len(scores), derive(shuffle, update))]
            goals = targets(rollouts, scores, self.config)
            metrics = {"update": update, "step": self.step, **describe(rollouts, goals, self.sampler)}
            metrics |= self.update(rollouts, goals, update)
            if train.timings:
                metrics["samples_per_s"] = ppo.num_rollouts / (time.perf_counter() - started)
            log(metrics)
            if progress:
                progress({"stage": "ppo", "steps": train.total_steps, **metrics, "step": self.step})
            first_kl = metrics["kl"] if update == 0 else first_kl
            if self.step >= train.total_steps:
                return first_kl
        raise AssertionError("unreachable: the rounds are counted without end")

    def rollouts(self, prompts: Sequence[Prompt], reward: Reward, update: int) -> Rollouts:
        """The rollouts of round number `update`."""
        return collect(
            self.model,
            self.value_head,
            self.reference,
            self.sampler,
            prompts,
            reward,
            first_index=update * self.config.ppo.num_rollouts,
            chunk_size=self.config.ppo.chunk_size,
        )

    def update(self, rollouts: Rollouts, goals: Targets, update: int) -> dict[str, float]:
        """The optimiser steps of one round; returns the means of their figures."""
        train, figures = self.config.train, []
        count = len(rollouts.samples)
        for epoch in range(self.config.ppo.ppo_epochs):
            order = torch.tensor(permutation(count, derive(self.seed, "minibatches", update, epoch)))
            for rows in order.split(train.batch_size):
                if self.step >= train.total_steps:
                    break
                figures.append(self._step(rollouts, goals, rows))
                self.step += 1
        return {name: sum(f[name] for f in figures) / len(figures) for name in figures[0]}

    def loss(self, rollouts: Rollouts, goals: Targets, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one minibatch, policy loss + vf_coef x value loss, and its parts."""
        ppo, samples = self.config.ppo, take(rollouts.samples, rows)
        mask = samples.response_mask
        logits, values = read_responses(self.model, samples, self.value_head)
        assert values is not None
        policy, clipped = ppo_policy_loss(
            logprobs_of(logits, samples.response_ids),
            rollouts.logprobs[rows],
            goals.advantages[rows],
            mask,
            ppo.cliprange,
        )
        value = value_loss(values, rollouts.values[rows], goals.returns[rows], mask, ppo.cliprange_value)
        parts = {"policy_loss": policy.detach(), "value_loss": value.detach(), "clip_fraction": clipped}
        return policy + ppo.vf_coef * value, parts

    def _step(self, rollouts: Rollouts, goals: Targets, rows: Tensor) -> dict[str, float]:
        loss, parts = self.loss(rollouts, goals, rows)
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.train.max_grad_norm)
        if not bool(torch.isfinite(loss)) or not bool(torch.isfinite(norm)):
            raise TrainingError(
                f"PPO diverged at step {self.step}: loss {loss.item():.3g}, gradient norm {float(norm):.3g}; lower "
                "train.learning_rate or raise ppo.init_kl_coef"
            )
        self.optimizer.step()
        return {name: float(value) for name, value in {**parts, "grad_norm": norm}.items()}


def describe(rollouts: Rollouts, goals: Targets, sampler: Sampler) -> dict[str, float]:
    """Figures of one round before its updates.

    `reward_mean`, `reward_std` (as scored), `kl` and `entropy` (nats per response token), `explained_variance` of the
    value head, `length` (tokens, end token included), `distinct_2`.
    """
    mask = rollouts.samples.response_mask
    return {
        "reward_mean": float(rollouts.scores.mean()),
        "reward_std": float(rollouts.scores.std(correction=0)),
        "kl": float(masked_mean(rollouts.kl, mask)),
        "entropy": float(masked_mean(rollouts.entropy, mask)),
        "explained_variance": explained_variance(rollouts.values, goals.returns, mask),
        "length": float(mask.sum(dim=1).float().mean()),
        "distinct_2": distinct_n(sampler.responses(rollouts.samples)),
    }
