"""The rounds of PPO.

Each round samples `num_rollouts` responses, places each score on the response's last token, adds the per-token KL
penalty to the frozen base, estimates advantages, and takes `ppo_epochs` passes of clipped updates (Ziegler et al. 2019;
Schulman et al. 2017). The model stays in evaluation mode: dropout would make the ratio of new to old probabilities
differ from 1 before any update.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.divergences import kl_divergence
from interp.errors import InterpError, TrainingError
from training.config import PPOConfig
from training.job import Job, Outcome
from training.losses import (
    adapted_coefficient,
    distinct_n,
    explained_variance,
    gae,
    masked_mean,
    per_token_kl_penalty,
    place_reward,
    whiten,
)
from training.native.learner import Learner, Targets, learning_rate, make_learner, update
from training.native.policy import arithmetic, make_policy
from training.native.processes import processes, share, union
from training.native.scores import scaled, seen
from training.native.state import Standing, digest, restore, store
from training.reward import Reward
from training.rollouts import Prompt, Rollouts, Sampler, collect, prompt_stream, read_responses, split
from training.seeding import derive, permutation

CONSTANT_ROUNDS = 3
"""So many rounds in which every sample has one and the same score stop a run: there is nothing to learn from."""


@dataclass(frozen=True)
class Course:
    """One run of PPO: the job, what learns, and the section of the recipe."""

    job: Job
    learner: Learner
    ppo: PPOConfig
    recipe: str


def tune(job: Job) -> Outcome:
    """Tune a copy of the job's base by PPO, or go on from the state that the job's folder holds.

    Raises:
        TrainingError: the reward misbehaves or is constant, or the run diverges (a loss or a gradient that is not
            finite, KL above train.kl_limit).
        InterpError: the state cannot be written or read.
    """
    train, ppo = job.config.train, job.config.ppo
    assert ppo is not None
    policy = make_policy(job.base, job.config.model, train.seed)
    learner = make_learner(policy, job.config, processes())
    course = Course(job, learner, ppo, digest(job.config, job.shuffle))
    standing = restore(job.folder, learner, course.recipe)
    standing = standing or Standing(0, 0, ppo.init_kl_coef, float("nan"))
    stored, reached = standing.round, False
    stream = _prompts(course, standing)
    while standing.step < train.total_steps and not reached:
        standing, reached = _round(course, standing, stream)
        due = train.state_interval and standing.round % train.state_interval == 0
        if (due or (train.state_interval and standing.step >= train.total_steps)) and standing.round > stored:
            _store(course, standing)
            stored = standing.round
    if job.stop_at_kl is not None and not reached:
        reached = _kl(course, standing, stream) >= job.stop_at_kl
    return Outcome(
        policy.requires_grad_(False),
        standing.first_kl,
        standing.step,
        learner.value_head,
        reached if job.stop_at_kl is not None else None,
    )


def _round(course: Course, standing: Standing, stream: Iterator[Prompt]) -> tuple[Standing, bool]:
    """One round; returns where the run stands after it, and whether it stopped at `stop_at_kl` instead."""
    job, learner, ppo, train = course.job, course.learner, course.ppo, course.job.config.train
    started = time.perf_counter()
    rollouts = _rollouts(course, standing, stream, job.reward)
    moments = seen(standing.moments, rollouts.scores)
    row: dict[str, Any] = {"update": standing.round, "step": standing.step, **describe(rollouts, job.sampler)}
    if standing.round == 0:  # what was kept while sampling is exact in float32; bfloat16 rounds otherwise with a cache
        first = row["kl"] if train.dtype == "float32" else _kl_at_start(course, rollouts)
        standing = replace(standing, first_kl=first)
    check_course(row, moments.constant, moments.last, train.kl_limit)
    row["kl_coef"] = standing.kl_coef
    if job.stop_at_kl is not None and row["kl"] >= job.stop_at_kl:
        _tell(course, row, standing)
        return standing, True
    scores = scaled(rollouts.scores, moments, ppo)
    if job.shuffle is not None:
        scores = scores[permutation(len(scores), derive(job.shuffle, standing.round))]
    goals = targets(rollouts, scores, ppo, standing.kl_coef)
    mask = rollouts.samples.response_mask
    row["explained_variance"] = explained_variance(rollouts.values, goals.returns, mask)
    row["learning_rate"] = learning_rate(train.learning_rate, standing.step, train)
    figures = update(learner, rollouts, goals, standing.round, standing.step)
    row |= {name: sum(each[name] for each in figures) / len(figures) for name in figures[0]}
    if train.timings:
        row["samples_per_s"] = len(rollouts.samples) / (time.perf_counter() - started)
    coefficient = standing.kl_coef
    if ppo.target is not None:
        whole = float(torch.where(mask, rollouts.kl, 0.0).sum(dim=1).mean())
        coefficient = adapted_coefficient(coefficient, whole, ppo.target, ppo.horizon, len(mask))
    after = replace(
        standing, round=standing.round + 1, step=standing.step + len(figures), kl_coef=coefficient, moments=moments
    )
    _tell(course, row, after)
    if learner.team.main:
        job.watch.stepped(after.step, learner.model)
    return after, False


def _tell(course: Course, row: dict[str, Any], after: Standing) -> None:
    if course.learner.team.main:
        course.job.watch.log(row)
        course.job.watch.progress(
            {"stage": "ppo", "steps": course.job.config.train.total_steps, **row, "step": after.step}
        )


def check_course(row: Mapping[str, Any], constant: int, score: float, kl_limit: float) -> None:
    """Stop a run that has diverged or has nothing to learn from."""
    if not row["kl"] <= kl_limit:  # also where it is NaN
        raise TrainingError(
            f"PPO diverged at step {row['step']}: KL {row['kl']:.3g} nats per response token exceeds train.kl_limit "
            f"({kl_limit:g}); lower train.learning_rate or raise ppo.init_kl_coef"
        )
    if constant >= CONSTANT_ROUNDS:
        raise TrainingError(
            f"the reward is constant: every sample of the last {constant} rounds scored {score:g}, up to step "
            f"{row['step']}; give a reward that tells samples apart, or more samples (ppo.num_rollouts)"
        )


def _prompts(course: Course, standing: Standing) -> Iterator[Prompt]:
    """The prompts of the rounds to come."""
    stream = prompt_stream(
        course.job.sampler.encode(course.job.prompts), derive(course.job.config.train.seed, "prompts of rollouts")
    )
    return itertools.islice(stream, standing.round * course.ppo.num_rollouts, None)


def _rollouts(course: Course, standing: Standing, stream: Iterator[Prompt], reward: Reward) -> Rollouts:
    """The rollouts of a round, sampled and scored by all processes."""
    job, learner, ppo = course.job, course.learner, course.ppo
    prompts = list(itertools.islice(stream, ppo.num_rollouts))
    mine = share(len(prompts), learner.team)

    def make() -> Rollouts | None:
        if mine.start == mine.stop:
            return None
        with arithmetic(learner.model, job.config.train.dtype):
            return collect(
                learner.model,
                learner.value_head,
                job.base,
                job.sampler,
                prompts[mine],
                reward,
                first_index=standing.round * ppo.num_rollouts + mine.start,
                chunk_size=ppo.chunk_size,
            )

    try:
        return union(make, learner.team, job.sampler.pad_id)
    except InterpError as error:
        if not all(bool(torch.isfinite(p).all()) for p in learner.parameters):
            raise TrainingError(
                f"PPO diverged at step {standing.step}: weights are no longer finite; lower train.learning_rate"
            ) from error
        if job.config.train.state_interval and standing.round > 0:  # a reward that fails must not cost the rounds done
            _store(course, standing)
        raise


def _store(course: Course, standing: Standing) -> None:
    if course.learner.team.main:
        store(course.job.folder, course.learner, standing, course.recipe)


def _kl_at_start(course: Course, rollouts: Rollouts) -> float:
    """KL of policy and base before the first update, both reading the same rollouts in the same way."""
    total = 0.0
    with torch.no_grad(), arithmetic(course.learner.model, course.job.config.train.dtype):
        for chunk in split(rollouts.samples, course.ppo.chunk_size):
            mine, base = (read_responses(model, chunk)[0] for model in (course.learner.model, course.job.base))
            total += float(kl_divergence(mine, base)[chunk.response_mask].double().sum())
    return total / int(rollouts.samples.response_mask.sum())


def _kl(course: Course, standing: Standing, stream: Iterator[Prompt]) -> float:
    """KL of the policy as it is, nats per response token, on the prompts of the round that would come next."""
    rollouts = _rollouts(course, standing, stream, Reward(_nothing))
    return float(masked_mean(rollouts.kl, rollouts.samples.response_mask))


def _nothing(samples: list[str], **others: Any) -> list[float]:
    return [0.0] * len(samples)


def targets(rollouts: Rollouts, scores: Float[Tensor, " sample"], ppo: PPOConfig, kl_coef: float) -> Targets:
    """Advantages and returns of a round from its (scaled, perhaps permuted) scores."""
    mask = rollouts.samples.response_mask
    rewards = place_reward(scores, mask) + per_token_kl_penalty(
        rollouts.logprobs, rollouts.reference_logprobs, mask, kl_coef
    )
    advantages, returns = gae(rewards, rollouts.values, mask, ppo.gamma, ppo.lam)
    return Targets(whiten(advantages, mask), returns)


def describe(rollouts: Rollouts, sampler: Sampler) -> dict[str, float]:
    """Figures of one round before its updates.

    `reward_mean`, `reward_std` (as scored), `kl` and `entropy` (nats per response token), `length` (tokens, end token
    included), `distinct_1`, `distinct_2`.
    """
    mask, responses = rollouts.samples.response_mask, sampler.responses(rollouts.samples)
    return {
        "reward_mean": float(rollouts.scores.mean()),
        "reward_std": float(rollouts.scores.std(correction=0)),
        "kl": float(masked_mean(rollouts.kl, mask)),
        "entropy": float(masked_mean(rollouts.entropy, mask)),
        "length": float(mask.sum(dim=1).float().mean()),
        "distinct_1": distinct_n(responses, 1),
        "distinct_2": distinct_n(responses),
    }
