import copy
import dataclasses
import math

import pytest
import tiny
import torch
from torch import nn

from training.losses import logprobs_of, masked_mean
from training.native.learner import Targets, accumulate, in_order, learning_rate, loss, make_learner, take_step
from training.native.policy import make_policy
from training.native.ppo import targets
from training.rollouts import ValueHead, collect, read_responses


def setup(tmp_path, kind="gpt2", count=12, **changes):
    """A learner, one round of rollouts of unequal lengths, and its targets."""
    job = tiny.job(tmp_path, kind, **changes)
    learner = make_learner(make_policy(job.base, job.config.model, 0), job.config)
    head = ValueHead(16, seed=0)
    rollouts = collect(
        job.base,
        head,
        job.base,
        job.sampler,
        job.sampler.encode(job.prompts[:count]),
        job.reward,
        first_index=0,
        chunk_size=5,
    )
    return learner, rollouts, targets(rollouts, rollouts.scores, job.config.ppo, 0.05)


def gradients(learner):
    return torch.cat([p.grad.flatten() for p in learner.parameters])


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_the_first_gradient_is_the_policy_gradient(tmp_path, kind):
    learner, rollouts, _ = setup(tmp_path, kind, ppo={"vf_coef": 0.0})
    mask = rollouts.samples.response_mask
    advantages = torch.where(mask, torch.randn(mask.shape), 0.0)
    goals = Targets(advantages, torch.zeros_like(advantages))
    loss(learner, rollouts, goals, slice(0, len(mask)))[0].backward()
    got = next(learner.model.parameters()).grad.clone()
    learner.model.zero_grad()
    logits, _ = read_responses(learner.model, rollouts.samples)
    chosen = logits.log_softmax(-1).gather(-1, rollouts.samples.response_ids[..., None])[..., 0]
    (-(advantages * chosen)[mask].sum() / mask.sum()).backward()
    assert torch.allclose(got, next(learner.model.parameters()).grad, atol=1e-6) and got.abs().max() > 1e-4


def test_the_loss_is_that_of_a_plain_loop_over_tokens(tmp_path):
    learner, rollouts, goals = setup(tmp_path, ppo={"vf_coef": 0.7, "cliprange": 0.01, "cliprange_value": 0.01})
    with torch.no_grad():  # away from where the samples were drawn, so that clipping is at work
        for parameter in learner.parameters:
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    rows = torch.tensor([7, 2, 5, 0])
    total, figures = loss(learner, *in_order(rollouts, goals, rows), slice(0, 4))
    with torch.no_grad():
        logits, values = read_responses(learner.model, rollouts.samples, learner.value_head)
    logprobs = logprobs_of(logits, rollouts.samples.response_ids)
    policy, value, clipped, held, tokens = 0.0, 0.0, 0, 0, 0
    for row in rows.tolist():
        for step in range(int(rollouts.samples.response_mask[row].sum())):
            ratio = math.exp(logprobs[row, step] - rollouts.logprobs[row, step])
            advantage = float(goals.advantages[row, step])
            bounded = min(max(ratio, 0.99), 1.01)
            policy -= min(ratio * advantage, bounded * advantage)
            clipped += bounded * advantage < ratio * advantage
            v, old, target = (float(x[row, step]) for x in (values, rollouts.values, goals.returns))
            near = old + min(max(v - old, -0.01), 0.01)
            value += 0.5 * max((v - target) ** 2, (near - target) ** 2)
            held += abs(v - old) > 0.01
            tokens += 1
    want = [policy / tokens + 0.7 * value / tokens, policy / tokens, value / tokens, clipped / tokens, held / tokens]
    assert total.item() == pytest.approx(want[0], abs=1e-5) and figures.tolist() == pytest.approx(want, abs=1e-5)
    assert clipped and held


def test_what_follows_the_end_token_gets_no_gradient(tmp_path):
    learner, rollouts, goals = setup(tmp_path)
    mask, found = rollouts.samples.response_mask, []
    for pad in (0, 7):
        ids = torch.where(mask, rollouts.samples.response_ids, pad)
        changed = dataclasses.replace(rollouts, samples=dataclasses.replace(rollouts.samples, response_ids=ids))
        accumulate(learner, changed, goals, slice(0, 12), seed=0)
        found.append(gradients(learner))
    assert not mask.all() and torch.allclose(*found, atol=1e-7)


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
@pytest.mark.parametrize("size", [1, 5])
def test_minibatches_add_up_to_the_whole_batch(tmp_path, kind, size):
    learner, rollouts, goals = setup(tmp_path, kind, train={"batch_size": 12}, ppo={"num_rollouts": 12})
    whole = accumulate(learner, rollouts, goals, slice(0, 12), seed=0)
    want = gradients(learner)
    config = dataclasses.replace(learner.config, train=dataclasses.replace(learner.config.train, minibatch_size=size))
    cut = accumulate(dataclasses.replace(learner, config=config), rollouts, goals, slice(0, 12), seed=0)
    lengths = rollouts.samples.response_mask.sum(1)
    assert len(set(lengths.tolist())) > 1, "with equal lengths a mean of means would do as well"
    assert torch.allclose(want, gradients(learner), atol=1e-6) and want.abs().max() > 1e-3
    assert torch.allclose(whole, cut, atol=1e-6)


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_the_optimiser_is_torchs_with_every_setting(tmp_path, name, kind):
    settings = {"beta1": 0.8, "beta2": 0.95, "eps": 1e-5, "weight_decay": 0.2, "learning_rate": 0.01}
    train = {"optimizer": name, "max_grad_norm": 0.05, "value_learning_rate": 0.02, **settings}
    learner, rollouts, goals = setup(tmp_path, train=train)
    model, head = copy.deepcopy(learner.model), copy.deepcopy(learner.value_head)
    groups = [{"params": list(model.parameters())}, {"params": list(head.parameters()), "lr": 0.02}]
    plain = kind(groups, lr=0.01, betas=(0.8, 0.95), eps=1e-5, weight_decay=0.2, foreach=False, fused=False)
    twin = dataclasses.replace(learner, model=model, value_head=head, optimizer=plain)
    for step, rows in enumerate([slice(0, 4), slice(4, 8), slice(8, 12)]):
        figures = take_step(learner, rollouts, goals, rows, step)
        plain.zero_grad()
        loss(twin, rollouts, goals, rows)[0].backward()
        norm = nn.utils.clip_grad_norm_([*model.parameters(), *head.parameters()], 0.05)
        plain.step()
        assert figures["grad_norm"] == pytest.approx(float(norm), rel=1e-4) and norm > 0.05
    for a, b in zip(learner.parameters, twin.parameters, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_the_course_of_the_learning_rate_is_torchs(tmp_path, name):
    train = tiny.job(
        tmp_path, train={"scheduler": name, "eta_min": 0.001, "learning_rate": 0.01, "total_steps": 10}
    ).config.train
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.01)
    if name == "cosine":
        course = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10, eta_min=0.001)
    else:
        course = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.1, total_iters=10)
    for step in range(11):
        assert learning_rate(0.01, step, train) == pytest.approx(course.get_last_lr()[0])
        optimizer.step()
        course.step()


def test_the_learning_rate_is_taken(tmp_path):
    learner, rollouts, goals = setup(
        tmp_path, train={"scheduler": "cosine", "total_steps": 8, "learning_rate": 0.01, "value_learning_rate": 0.1}
    )
    take_step(learner, rollouts, goals, slice(0, 4), step=4)
    assert [group["lr"] for group in learner.optimizer.param_groups] == pytest.approx([0.005, 0.05])
    assert learning_rate(0.01, 7, tiny.job(tmp_path).config.train) == 0.01


def test_the_mean_is_over_tokens(tmp_path):
    learner, rollouts, goals = setup(tmp_path)
    mask = rollouts.samples.response_mask
    _, figures = loss(learner, rollouts, goals, slice(0, 12))
    # Before any update the ratio is 1, so the policy loss is minus the mean advantage.
    assert figures[1].item() == pytest.approx(-float(masked_mean(goals.advantages, mask)), abs=1e-5)
