"""On one frozen batch of rollouts, dropout off: native's numbers beside those of the real trlX.

What is compared, and how trlX differs by design:
- Rewards (score on the last response token, KL penalty at every one), log-probabilities, values and advantages before
  whitening are the same numbers, whatever the responses' lengths.
- trlX whitens the advantages of a minibatch with its padding, native those of a round without padding. So whitened
  advantages, and losses and gradients with everything of its own on either side, are compared on responses of equal
  length in one batch; on responses of many lengths, losses and gradients are compared with native's advantages in both.
- trlX's adaptive controller moves at every pass over a minibatch's size, native's at every round: not compared.
"""

import copy
import importlib.util

import pytest
import tiny
import torch

from interp.sampling import Samples, pad_left
from training.losses import gae, per_token_kl_penalty, place_reward
from training.native.learner import loss, make_learner
from training.native.ppo import targets
from training.rollouts import Rollouts, Texts, compared, read_responses
from training.trlx import compat, engine

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("trlx") is None, reason=f"trlX is not installed ({compat.COMMAND})"
)
KINDS = pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
COUNT = 24


def inside(tmp_path, monkeypatch, kind, look, **generate):
    """Call `look` with trlX's trainer after one round of rollouts of a policy that has left the base."""
    work = tiny.job(
        tmp_path,
        kind,
        train={"engine": "trlx", "batch_size": COUNT},
        ppo={"num_rollouts": COUNT, "chunk_size": COUNT, "init_kl_coef": 0.3, "gamma": 0.97, "lam": 0.9},
        generate=generate,
    )
    found = []

    def learn(trainer):
        disturb(trainer.given, 0.1)
        trainer.make_experience(COUNT, 0)
        found.append(look(work, trainer))
        return False

    monkeypatch.setattr(engine, "_learn", learn)
    engine.tune(work)
    return found[0]


def disturb(model, size):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * size)


def as_native(work, trainer):
    """trlX's rollouts in native's form, the reference's part computed by native."""
    elements, kept = trainer.store.history, trainer.round.kept
    pad, start = trainer.ids.pad, trainer.ids.start
    prompts = [[token for token in element.query_tensor.tolist() if token != pad] for element in elements]
    width = max(map(len, kept))
    mask = torch.tensor([[column < len(ids) for column in range(width)] for ids in kept])
    ids = torch.tensor([ids + [0] * (width - len(ids)) for ids in kept])
    encoder = pad_left(prompts, 0) if start is not None else (None, None)
    before = pad_left(prompts if start is None else [[start]] * len(prompts), 0)
    old = torch.nn.utils.rnn.pad_sequence([element.logprobs for element in elements], batch_first=True)
    values = torch.nn.utils.rnn.pad_sequence([element.values for element in elements], batch_first=True)
    samples = Samples(*before, ids, mask, old, *encoder)
    with torch.no_grad():
        mine, theirs = (read_responses(model, samples)[0] for model in (trainer.given.base_model, work.base))
    figures = compared(mine, theirs, ids, mask)
    scores = torch.tensor(trainer.round.scores)
    return Rollouts(samples, Texts([], [], []), scores, old, values=values, **figures), mine


def learner_of(work, trainer):
    learner = make_learner(copy.deepcopy(trainer.given.base_model), work.config)
    learner.value_head.load_state_dict(engine._value_head(trainer.given.v_head).state_dict())
    return learner


def batch_of(trainer):
    (batch,) = trainer.store.create_loader(COUNT, shuffle=False)
    return batch


def close(a, b):
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max()) <= 1e-5 * max(1.0, float(b.abs().max()))


@KINDS
def test_rollouts_rewards_and_advantages(tmp_path, monkeypatch, kind):
    def look(work, trainer):
        rollouts, logits = as_native(work, trainer)
        mask, ppo = rollouts.samples.response_mask, work.config.ppo
        assert 0 < mask.sum() < mask.numel()  # responses of several lengths
        chosen = torch.log_softmax(logits, -1).gather(-1, rollouts.samples.response_ids[..., None])[..., 0]
        assert close(rollouts.logprobs[mask], chosen[mask])
        _, values = read_responses(trainer.given.base_model, rollouts.samples, engine._value_head(trainer.given.v_head))
        assert close(rollouts.values[mask], values[mask])
        assert trainer.round.kl == pytest.approx(float(rollouts.kl[mask].mean()), rel=1e-5) and trainer.round.kl > 0.01
        penalty = per_token_kl_penalty(rollouts.logprobs, rollouts.reference_logprobs, mask, ppo.init_kl_coef)
        rewards = place_reward(rollouts.scores, mask) + penalty
        batch = batch_of(trainer)
        assert close(batch.rewards, rewards)
        theirs = trainer.config.method.get_advantages_and_returns(
            batch.values, batch.rewards, batch.rewards.shape[1], use_whitening=False
        )
        ours = gae(rewards, rollouts.values, mask, ppo.gamma, ppo.lam)
        assert all(close(mine[mask], its[mask]) for mine, its in zip(ours, theirs, strict=True))
        return True

    assert inside(tmp_path, monkeypatch, kind, look)


@KINDS
@pytest.mark.parametrize("equal", [True, False], ids=["equal-lengths", "many-lengths"])
def test_losses_and_gradients(tmp_path, monkeypatch, kind, equal):
    def look(work, trainer):
        rollouts, _ = as_native(work, trainer)
        goals = targets(rollouts, rollouts.scores, work.config.ppo, work.config.ppo.init_kl_coef)
        batch, method = batch_of(trainer), trainer.config.method
        if equal:
            assert bool(rollouts.samples.response_mask.all())
            theirs = method.get_advantages_and_returns(batch.values, batch.rewards, batch.rewards.shape[1])
            assert close(goals.advantages, theirs[0]) and close(goals.returns, theirs[1])
        else:
            method.get_advantages_and_returns = lambda *given: (goals.advantages, goals.returns)
        disturb(trainer.given, 0.05)  # so that ratios differ from 1, and some are clipped
        learner = learner_of(work, trainer)
        ours, figures = loss(learner, rollouts, goals, torch.arange(COUNT))
        ours.backward()
        trainer.given.zero_grad()
        theirs, stats = trainer.loss(batch)
        theirs.backward()
        assert close(ours, theirs)
        names = ("losses/policy_loss", "losses/value_loss", "policy/clipfrac")
        assert figures[1:4].tolist() == pytest.approx([float(stats[name]) for name in names], abs=1e-5)
        assert 0 < float(figures[3]) < 1
        policies = [dict(model.named_parameters()) for model in (learner.model, trainer.given.base_model)]
        heads = [dict(h.named_parameters()) for h in (learner.value_head, trainer.given.v_head)]
        renamed = {"hidden.weight": "0.weight", "hidden.bias": "0.bias", "out.weight": "2.weight", "out.bias": "2.bias"}
        pairs = [(policies[0][name], policies[1][name]) for name in policies[0]]
        pairs += [(heads[0][mine], heads[1][its]) for mine, its in renamed.items()]
        for mine, its in pairs:
            assert close(mine.grad, its.grad)
        return max(float(mine.grad.abs().max()) for mine, _ in pairs)

    assert inside(tmp_path, monkeypatch, kind, look, **({"ignore_end": True} if equal else {})) > 1e-3
