"""The optimiser steps of PPO: loss, gradients, and the course of the learning rate."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.errors import TrainingError
from interp.sampling import plain
from training.config import RLHFConfig, TrainConfig
from training.losses import logprobs_of, masked_mean, ppo_policy_loss, value_loss
from training.native.policy import adapter_dropout, arithmetic, fused_activations
from training.native.processes import Processes, add_up, share
from training.rollouts import Rollouts, Texts, ValueHead, read_responses, take, trimmed
from training.seeding import derive, permutation

FIGURES = ("loss", "policy_loss", "value_loss", "clip_fraction", "value_clip_fraction")


@dataclass(frozen=True)
class Targets:
    """What the updates of one round aim at: whitened advantages, and the returns for the value head."""

    advantages: Float[Tensor, "sample step"]
    returns: Float[Tensor, "sample step"]


@dataclass(frozen=True)
class Learner:
    """What learns; its tensors change in place.

    Attributes:
        config: the recipe.
        model: the policy.
        value_head: the value head.
        optimizer: over both, the policy's parameters in its first group.
        team: the processes.
    """

    config: RLHFConfig
    model: nn.Module
    value_head: ValueHead
    optimizer: torch.optim.Optimizer
    team: Processes

    @property
    def parameters(self) -> list[Tensor]:
        """All that is trained, in a fixed order."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


def make_learner(model: nn.Module, config: RLHFConfig, team: Processes | None = None) -> Learner:
    """A value head and an optimiser for a policy.

    Args:
        model: the policy, whose parameters that require gradients are trained.
        config: the recipe.
        team: the processes; this one alone by default.
    """
    train, inner = config.train, plain(model)
    first = next(inner.parameters())
    size = inner.config.get_text_config().hidden_size  # type: ignore[union-attr, operator]
    head = ValueHead(size, derive(train.seed, "value head")).to(first.device)
    rate = train.value_learning_rate or train.learning_rate
    groups = [
        {
            "params": [p for p in model.parameters() if p.requires_grad],
            "lr": train.learning_rate,
            "peak": train.learning_rate,
        },
        {"params": list(head.parameters()), "lr": rate, "peak": rate},
    ]
    kind = torch.optim.AdamW if train.optimizer == "adamw" else torch.optim.Adam
    optimizer = kind(
        groups,
        betas=(train.beta1, train.beta2),
        eps=train.eps,
        weight_decay=train.weight_decay,
        fused=first.device.type in ("cpu", "cuda"),  # one call for all tensors: small models spend their time on calls
    )
    return Learner(config, model, head, optimizer, team or Processes())


def learning_rate(peak: float, step: int, train: TrainConfig) -> float:
    """The learning rate of step number `step`, from 0.

    constant: peak. linear: from peak at step 0 straight to eta_min at total_steps. cosine: eta_min + (peak - eta_min)
    (1 + cos(pi step / total_steps)) / 2 (Loshchilov and Hutter 2017, eq. 5).
    """
    done = step / train.total_steps
    height = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[train.scheduler]
    return peak if train.scheduler == "constant" else train.eta_min + (peak - train.eta_min) * height


def loss(
    learner: Learner, rollouts: Rollouts, goals: Targets, rows: Tensor | slice
) -> tuple[Float[Tensor, ""], Float[Tensor, " figure"]]:
    """The loss of some of the samples, policy loss + vf_coef x value loss, each a mean over their response tokens.

    Returns:
        The loss, and `FIGURES` of it without gradients.
    """
    ppo, samples = learner.config.ppo, trimmed(take(rollouts.samples, rows))
    assert ppo is not None
    mask, steps = samples.response_mask, samples.response_ids.shape[1]
    with arithmetic(learner.model, learner.config.train.dtype):
        logits, values = read_responses(learner.model, samples, learner.value_head)
    assert values is not None
    old, old_values, advantages, returns = (
        each[rows, :steps] for each in (rollouts.logprobs, rollouts.values, goals.advantages, goals.returns)
    )
    logprobs = logprobs_of(logits, samples.response_ids)
    policy, clipped = ppo_policy_loss(logprobs, old, advantages, mask, ppo.cliprange)
    value = value_loss(values, old_values, returns, mask, ppo.cliprange_value)
    total = policy + ppo.vf_coef * value
    held = masked_mean(((values.detach() - old_values).abs() > ppo.cliprange_value).float(), mask)
    return total, torch.stack([total.detach(), policy.detach(), value.detach(), clipped, held])


def accumulate(
    learner: Learner, rollouts: Rollouts, goals: Targets, rows: slice, seed: int
) -> Float[Tensor, " figure"]:
    """Gradients of the loss over all of `rows`, a minibatch at a time, over all processes; returns its `FIGURES`.

    The loss is a mean over tokens, so a minibatch counts by its share of the batch's tokens: the sum is then the
    gradient of the whole batch, however it is cut.
    """
    lengths = rollouts.samples.response_mask[rows].sum(dim=1).tolist()
    mine = range(len(lengths))[share(len(lengths), learner.team)]
    size = learner.config.train.minibatch_size or max(1, len(mine))
    figures = torch.zeros(len(FIGURES), device=rollouts.scores.device)
    for parameter in learner.parameters:
        parameter.grad = None
    lora = learner.config.model.lora
    drops = lora is not None and lora.dropout > 0
    noise = adapter_dropout(learner.model, derive(seed, learner.team.index)) if drops else contextlib.nullcontext()
    with noise:
        for part in (mine[start : start + size] for start in range(0, len(mine), size)):
            weight = sum(lengths[part.start : part.stop]) / sum(lengths)
            here = slice(rows.start + part.start, rows.start + part.stop)
            found, parts = loss(learner, rollouts, goals, here)
            (found * weight).backward()
            figures += parts * weight
    return add_up(learner.parameters, figures, learner.team)


def take_step(learner: Learner, rollouts: Rollouts, goals: Targets, rows: slice, step: int) -> dict[str, float]:
    """Optimiser step number `step`, from 0; returns its figures.

    Raises:
        TrainingError: loss or gradient are not finite.
    """
    train = learner.config.train
    for group in learner.optimizer.param_groups:
        group["lr"] = learning_rate(group["peak"], step, train)
    figures = accumulate(learner, rollouts, goals, rows, derive(train.seed, "adapter dropout", step))
    norm = nn.utils.clip_grad_norm_(learner.parameters, train.max_grad_norm, foreach=True)
    values = dict(zip((*FIGURES, "grad_norm"), [*figures.tolist(), float(norm)], strict=True))
    if not math.isfinite(values["loss"]) or not math.isfinite(values["grad_norm"]):
        raise TrainingError(
            f"PPO diverged at step {step}: loss {values['loss']:.3g}, gradient norm {values['grad_norm']:.3g}; lower "
            "train.learning_rate or raise ppo.init_kl_coef"
        )
    learner.optimizer.step()
    return values


def in_order(rollouts: Rollouts, goals: Targets, order: Int[Tensor, " sample"]) -> tuple[Rollouts, Targets]:
    """Rollouts (without their texts) and targets in another order, so that a minibatch is a stretch of them."""
    tensors: dict[str, Any] = {
        name: value[order] for name, value in vars(rollouts).items() if isinstance(value, Tensor)
    }
    turned = replace(rollouts, samples=take(rollouts.samples, order), texts=Texts([], [], []), **tensors)
    return turned, Targets(goals.advantages[order], goals.returns[order])


def update(learner: Learner, rollouts: Rollouts, goals: Targets, number: int, step: int) -> list[dict[str, float]]:
    """The optimiser steps of round `number`, the first of which is step number `step`; returns the figures of each."""
    train, ppo = learner.config.train, learner.config.ppo
    assert ppo is not None
    figures: list[dict[str, float]] = []
    count = len(rollouts.samples)
    with fused_activations(learner.model):
        for epoch in range(ppo.ppo_epochs):
            order = torch.tensor(permutation(count, derive(train.seed, "minibatches", number, epoch)))
            turned, aims = in_order(rollouts, goals, order.to(rollouts.scores.device))
            for start in range(0, count, train.batch_size):
                if step + len(figures) < train.total_steps:
                    rows = slice(start, min(start + train.batch_size, count))
                    figures.append(take_step(learner, turned, aims, rows, step + len(figures)))
    return figures
