"""Values here are worked out by hand and written as arithmetic; loops in plain Python are the oracles."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.divergences import kl_divergence
from training.losses import (
    distinct_n,
    entropy,
    explained_variance,
    gae,
    kl_estimate,
    logprobs_of,
    masked_mean,
    per_token_kl_penalty,
    place_reward,
    ppo_policy_loss,
    value_loss,
    whiten,
)

log = math.log


def tensor(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def mask_of(lengths, steps):
    return torch.arange(steps)[None, :] < torch.tensor(lengths)[:, None]


def test_logprobs_of():
    logits = tensor([0.0, log(3.0)], [log(2.0), log(2.0)])
    assert torch.allclose(logprobs_of(logits, torch.tensor([1, 0])), tensor(log(3 / 4), log(1 / 2)))
    assert (
        logprobs_of(torch.zeros(1, 3, 5, dtype=torch.bfloat16), torch.zeros(1, 3, dtype=torch.long)).dtype
        == torch.float32
    )


def test_entropy():
    got = entropy(tensor([0.0, 0.0], [log(3.0), 0.0], [0.0, -math.inf]))
    assert torch.allclose(got, tensor(log(2), -3 / 4 * log(3 / 4) - 1 / 4 * log(1 / 4), 0.0))


def test_kl_divergence_by_hand():
    got = kl_divergence(tensor([log(3.0), 0.0]), tensor([0.0, 0.0]))
    assert got.item() == pytest.approx(3 / 4 * log((3 / 4) / (1 / 2)) + 1 / 4 * log((1 / 4) / (1 / 2)))
    assert kl_divergence(tensor([log(3.0), 0.0]), tensor([log(3.0) + 7, 7.0])).item() == pytest.approx(0)


def test_kl_divergence_where_tuned_gives_no_probability_and_where_base_gives_none():
    assert kl_divergence(tensor([0.0, -math.inf]), tensor([0.0, 0.0])).item() == pytest.approx(log(2))
    assert kl_divergence(tensor([0.0, 0.0]), tensor([0.0, -math.inf])).item() == math.inf


def test_kl_estimate_by_hand():
    got = kl_estimate(tensor(log(0.5), log(0.2)), tensor(log(0.25), log(0.4)))
    assert torch.allclose(got, tensor(0.25 / 0.5 - 1 + log(0.5 / 0.25), 0.4 / 0.2 - 1 + log(0.2 / 0.4)))


def test_kl_estimate_has_the_exact_kl_as_its_mean():
    p, q = tensor(0.7, 0.2, 0.1), tensor(0.2, 0.5, 0.3)
    # log p and log q are logits of p and q; the mean over tokens drawn from p needs no sampling here.
    assert (p * kl_estimate(p.log(), q.log())).sum().item() == pytest.approx(kl_divergence(p.log(), q.log()).item())


def test_per_token_kl_penalty():
    got = per_token_kl_penalty(tensor([-1.0, -2.0, -9.0]), tensor([-1.5, -1.0, 0.0]), mask_of([2], 3), 0.1)
    assert torch.allclose(got, tensor([-0.1 * (-1.0 + 1.5), -0.1 * (-2.0 + 1.0), 0.0]))


def test_place_reward_is_on_the_last_response_token():
    got = place_reward(tensor(5.0, -2.0, 3.0), mask_of([1, 3, 2], 3))
    assert got.tolist() == [[5, 0, 0], [0, 0, -2], [0, 3, 0]]


def test_gae_by_hand():
    rewards, values = tensor([1.0, 0.0, 2.0, 99.0]), tensor([0.5, 0.25, 1.0, 99.0])
    advantages, returns = gae(rewards, values, mask_of([3], 4), gamma=0.5, lam=0.8)
    delta_2 = 2.0 + 0.5 * 0 - 1.0  # the value after the last response token is 0, not 99
    delta_1 = 0.0 + 0.5 * 1.0 - 0.25
    delta_0 = 1.0 + 0.5 * 0.25 - 0.5
    a_2 = delta_2
    a_1 = delta_1 + 0.5 * 0.8 * a_2
    a_0 = delta_0 + 0.5 * 0.8 * a_1
    assert torch.allclose(advantages, tensor([a_0, a_1, a_2, 0.0]))
    assert torch.allclose(returns, tensor([a_0 + 0.5, a_1 + 0.25, a_2 + 1.0, 0.0]))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_gae_equals_a_double_loop_over_eq_16(data):
    steps = data.draw(st.integers(1, 6))
    lengths = data.draw(st.lists(st.integers(1, steps), min_size=1, max_size=4))
    gamma, lam = data.draw(st.floats(0.1, 1)), data.draw(st.floats(0, 1))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 9999)))
    rewards, values = (torch.randn(len(lengths), steps, generator=generator, dtype=torch.float64) for _ in range(2))
    advantages, returns = gae(rewards, values, mask_of(lengths, steps), gamma, lam)
    for row, length in enumerate(lengths):
        r, v = rewards[row].tolist()[:length], [*values[row].tolist()[:length], 0.0]
        for t in range(length):
            want = sum((gamma * lam) ** (k - t) * (r[k] + gamma * v[k + 1] - v[k]) for k in range(t, length))
            assert advantages[row, t].item() == pytest.approx(want, abs=1e-12)
            assert returns[row, t].item() == pytest.approx(want + v[t], abs=1e-12)
        assert not advantages[row, length:].any() and not returns[row, length:].any()


def test_gae_with_lambda_1_is_return_minus_value():
    rewards, values = tensor([1.0, 2.0, 4.0]), tensor([0.3, 0.2, 0.1])
    _, returns = gae(rewards, values, mask_of([3], 3), gamma=1.0, lam=1.0)
    assert torch.allclose(returns, tensor([7.0, 6.0, 4.0]))


def test_whiten():
    got = whiten(tensor([1.0, 3.0, 50.0]), mask_of([2], 3))
    sd = math.sqrt(((1 - 2) ** 2 + (3 - 2) ** 2) / (2 - 1))
    assert torch.allclose(got, tensor([-1 / sd, 1 / sd, 0.0]))
    assert whiten(tensor([4.0, 9.0]), mask_of([1], 2)).tolist() == [[0, 0]]


def test_ppo_policy_loss_by_hand():
    ratios, advantages = [1.5, 0.5, 1.1, 0.5, 1.5], [2.0, 1.0, -1.0, -3.0, -1.0]
    # Larger than 1.2 with A > 0, and smaller than 0.8 with A < 0, are clipped; the other two directions are not.
    terms = [1.2 * 2, 0.5 * 1, 1.1 * -1, 0.8 * -3, 1.5 * -1]
    logprobs = tensor([log(r) for r in ratios])
    loss, clipped = ppo_policy_loss(logprobs, torch.zeros_like(logprobs), tensor(advantages), mask_of([5], 5), 0.2)
    assert loss.item() == pytest.approx(-sum(terms) / 5)
    assert clipped.item() == pytest.approx(2 / 5)


def test_value_loss_by_hand():
    values, old, returns = tensor([1.0, 0.1, 0.0]), tensor([0.0, 0.0, 0.0]), tensor([1.0, 1.0, 5.0])
    # The first change is clipped to 0.2, whose error 0.8 is the larger one; the second is within the range.
    want = 0.5 * ((0.2 - 1.0) ** 2 + (0.1 - 1.0) ** 2) / 2
    assert value_loss(values, old, returns, mask_of([2], 3), 0.2).item() == pytest.approx(want)


@pytest.mark.parametrize("name", ["policy", "value", "kl", "entropy"])
def test_gradients(name):
    torch.manual_seed(0)
    x, y, z = (torch.randn(2, 4, dtype=torch.float64) for _ in range(3))
    mask = mask_of([4, 2], 4)
    functions = {
        "policy": lambda v: ppo_policy_loss(v, y, z, mask, 0.2)[0],
        "value": lambda v: value_loss(v, y, z, mask, 0.2),
        "kl": lambda v: kl_divergence(v, y).sum(),
        "entropy": lambda v: entropy(v).sum(),
    }
    assert torch.autograd.gradcheck(functions[name], (x.requires_grad_(),))


def test_what_is_masked_changes_nothing_and_gets_no_gradient():
    mask = mask_of([3, 1], 4)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 4, dtype=torch.float64, generator=generator) for _ in range(5)]

    def everything(logprobs, old, reference, values, old_values):
        rewards = place_reward(tensor(1.0, -1.0), mask) + per_token_kl_penalty(old, reference, mask, 0.1)
        advantages, returns = gae(rewards, old_values, mask, 0.9, 0.95)
        loss, clipped = ppo_policy_loss(logprobs, old, whiten(advantages, mask), mask, 0.2)
        return loss + value_loss(values, old_values, returns, mask, 0.2) + clipped

    want = everything(*inputs)
    for junk in (1e3, -50.0):
        spoilt = [torch.where(mask, x, junk).requires_grad_() for x in inputs]
        got = everything(*spoilt)
        assert got.item() == pytest.approx(want.item(), abs=1e-12)
        got.backward()
        for x in (spoilt[0], spoilt[3]):
            assert not x.grad[~mask].any() and x.grad[mask].any()


def test_masked_mean_and_explained_variance():
    assert masked_mean(tensor([1.0, 2.0, 9.0]), mask_of([2], 3)).item() == 1.5
    returns = tensor([1.0, 2.0, 3.0, 70.0])
    assert explained_variance(returns, returns, mask_of([3], 4)) == 1
    assert explained_variance(torch.zeros(1, 4), returns, mask_of([3], 4)) == pytest.approx(0)
    assert math.isnan(explained_variance(returns, torch.ones(1, 4), mask_of([3], 4)))


def test_distinct_n():
    assert distinct_n([[1, 2, 1, 2], [1, 2], [3]]) == 2 / 4  # (1,2) (2,1) (1,2) and (1,2)
    assert distinct_n([[1, 2, 3]], n=1) == 1
    assert math.isnan(distinct_n([[1], []]))
