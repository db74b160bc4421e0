import dataclasses
import math

import pytest
import tiny
import torch

from interp.errors import TrainingError
from training.evaluate import evaluate
from training.losses import adapted_coefficient, gae, place_reward, whiten
from training.native import tune
from training.native.ppo import targets
from training.reward import Reward
from training.rollouts import Sampler, ValueHead, collect

LEARNING = {
    "train": {"total_steps": 120, "batch_size": 64, "learning_rate": 3e-3},
    "ppo": {"num_rollouts": 128, "chunk_size": 128, "ppo_epochs": 2, "init_kl_coef": 0.02},
}


def roll(job, prompts=("the very film", "a", "so the")):
    sampler = job.sampler
    return collect(
        job.base,
        ValueHead(16, seed=0),
        job.base,
        sampler,
        sampler.encode(prompts),
        job.reward,
        first_index=0,
        chunk_size=2,
    )


def weights(outcome):
    return {name: value.clone() for name, value in outcome.model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_targets_are_the_papers_formulas(tmp_path):
    job = tiny.job(tmp_path, ppo={"gamma": 0.9})
    rollouts = roll(job)
    rollouts = dataclasses.replace(rollouts, reference_logprobs=rollouts.logprobs - 0.5)
    mask = rollouts.samples.response_mask
    rewards = torch.where(mask, -0.3 * 0.5, 0.0) + place_reward(rollouts.scores, mask)
    advantages, returns = gae(rewards, rollouts.values, mask, 0.9, 0.95)
    got = targets(rollouts, rollouts.scores, job.config.ppo, 0.3)
    assert torch.allclose(got.advantages, whiten(advantages, mask), atol=1e-5)
    assert torch.allclose(got.returns, returns, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_it_learns_a_simple_reward_and_the_null_run_does_not(tmp_path, kind):
    means = {}
    for shuffle in (None, 7):
        job = tiny.job(tmp_path / str(shuffle), kind, shuffle=shuffle, **LEARNING)
        outcome = tune(job)
        assert outcome.steps == 120 and abs(outcome.kl_at_step_0) < 1e-6 and outcome.reached_kl is None
        result = evaluate(outcome.model, job.base, job.sampler, job.prompts[:20], job.reward, samples=5)
        before = evaluate(job.base, job.base, job.sampler, job.prompts[:20], job.reward, samples=5)
        means[shuffle] = (before.reward, result.reward)
    assert means[None][0] < 0.15 and means[None][1] > means[None][0] + 0.4
    assert abs(means[7][1] - means[7][0]) < 0.15


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_base_stays_as_it_is_and_what_is_told(tmp_path, kind):
    job = tiny.job(tmp_path, kind)
    before = {name: value.clone() for name, value in job.base.state_dict().items()}
    outcome = tune(job)
    assert same(before, job.base.state_dict()) and all(p.grad is None for p in job.base.parameters())
    assert not same(before, weights(outcome)) and type(outcome.model) is type(job.base)
    assert not outcome.model.training, "dropout would make old and new log-probabilities differ"
    assert not any(p.requires_grad for p in outcome.model.parameters())
    watch = job.watch
    assert [row["step"] for row in watch.rows] == [0, 4] and watch.steps == [4, 8] and outcome.steps == 8
    assert [event["step"] for event in watch.events] == [4, 8] and watch.order == ["log", "stepped"] * 2
    assert all(math.isfinite(value) for row in watch.rows for name, value in row.items())
    assert watch.rows[0]["kl"] < 1e-6 < watch.rows[1]["kl"]
    assert outcome.value_head.out.weight.abs().max() > 0
    figures = "reward_mean reward_std entropy clip_fraction value_clip_fraction explained_variance length distinct_1"
    figures += " distinct_2 kl_coef learning_rate grad_norm"
    assert set(figures.split()) <= watch.rows[0].keys()


def test_total_steps_is_kept_to(tmp_path):
    job = tiny.job(tmp_path, train={"total_steps": 7})
    assert tune(job).steps == 7 and [row["step"] for row in job.watch.rows] == [0, 4] and job.watch.steps == [4, 7]


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(runs))  # whatever state the caller's generators are in
        runs.append(weights(tune(tiny.job(tmp_path / str(len(runs)), train={"seed": seed}))))
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])


def test_shuffling_permutes_the_rewards_and_nothing_else(tmp_path, monkeypatch):
    seen = {}
    for shuffle in (None, 5):

        def spy(rollouts, scores, ppo, coefficient, shuffle=shuffle):
            seen.setdefault(shuffle, (rollouts, scores))
            return targets(rollouts, scores, ppo, coefficient)

        monkeypatch.setattr("training.native.ppo.targets", spy)
        tune(tiny.job(tmp_path / str(shuffle), shuffle=shuffle))
    (plain, scores), (control, permuted) = seen[None], seen[5]
    assert torch.equal(plain.samples.response_ids, control.samples.response_ids)
    assert torch.equal(scores, plain.scores) and torch.equal(control.scores, plain.scores)
    assert not torch.equal(permuted, scores) and torch.equal(permuted.sort().values, scores.sort().values)


def test_adaptive_kl_by_hand():
    assert adapted_coefficient(0.1, kl=6.6, target=6.0, horizon=1000, samples=50) == pytest.approx(
        0.1 * (1 + 0.1 * 50 / 1000)
    )
    assert adapted_coefficient(0.1, 60.0, 6.0, 1000, 50) == pytest.approx(0.1 * (1 + 0.2 * 50 / 1000))
    assert adapted_coefficient(0.1, 0.0, 6.0, 1000, 50) == pytest.approx(0.1 * (1 - 0.2 * 50 / 1000))
    assert adapted_coefficient(0.1, 6.0, 6.0, 1000, 50) == 0.1


def test_the_penalty_is_steered_by_the_kl_of_whole_responses(tmp_path):
    job = tiny.job(tmp_path, train={"total_steps": 16}, ppo={"target": 0.02, "horizon": 100})
    tune(job)
    rows = job.watch.rows
    assert rows[0]["kl_coef"] == 0.05
    for row, following in zip(rows, rows[1:], strict=False):
        # Mean over responses of their summed KL is the mean per token times the mean length.
        want = adapted_coefficient(row["kl_coef"], row["kl"] * row["length"], 0.02, 100, 16)
        assert following["kl_coef"] == pytest.approx(want, rel=1e-5)
    assert len({row["kl_coef"] for row in rows}) == len(rows)
    fixed = tiny.job(tmp_path / "fixed", train={"total_steps": 16})
    tune(fixed)
    assert {row["kl_coef"] for row in fixed.watch.rows} == {0.05}


def test_a_null_run_stops_at_the_pairs_kl(tmp_path):
    settings = {"train": {"total_steps": 80, "learning_rate": 3e-3}}
    job = tiny.job(tmp_path, stop_at_kl=0.05, **settings)
    outcome = tune(job)
    assert outcome.reached_kl is True and outcome.steps < 80 and outcome.steps % 4 == 0
    *earlier, last = job.watch.rows
    assert last["kl"] >= 0.05 > max(row["kl"] for row in earlier) and last["step"] == outcome.steps
    again = tiny.job(tmp_path / "plain", train={"total_steps": outcome.steps, "learning_rate": 3e-3})
    assert same(weights(outcome), weights(tune(again))), "the policy whose KL was measured is the one that is kept"
    never = tune(tiny.job(tmp_path / "never", stop_at_kl=9.0))
    assert never.reached_kl is False and never.steps == 8


def test_kl_reached_by_the_very_last_round_counts(tmp_path):
    job = tiny.job(tmp_path, train={"total_steps": 8, "learning_rate": 3e-3})
    longer = tiny.job(tmp_path / "longer", train={"total_steps": 12, "learning_rate": 3e-3})
    tune(job), tune(longer)
    before, after = longer.watch.rows[1]["kl"], longer.watch.rows[2]["kl"]
    assert before < after
    last = tiny.job(tmp_path / "last", stop_at_kl=after * 0.99, train={"total_steps": 8, "learning_rate": 3e-3})
    outcome = tune(last)
    assert outcome.reached_kl is True and outcome.steps == 8


@pytest.mark.parametrize(
    ("changes", "reward", "message"),
    [
        ({"train": {"learning_rate": 1e30}}, None, "PPO diverged at step"),
        ({"train": {"learning_rate": 0.1, "kl_limit": 0.01}}, None, r"KL .* exceeds train.kl_limit \(0.01\)"),
        ({"train": {"total_steps": 40}}, lambda samples, prompts, outputs: [0.5] * len(samples),
         "the reward is constant: every sample of the last 3 rounds scored 0.5, up to step 8"),
        ({"ppo": {"scale_reward": "running"}}, lambda samples, prompts, outputs: [0.5] * len(samples),
         "ppo.scale_reward has no scale"),
        ({}, lambda samples, prompts, outputs: 1 / 0, "the reward function raised ZeroDivisionError"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_go_on_says_why(tmp_path, as_a_user, changes, reward, message):
    with pytest.raises(TrainingError, match=message):
        tune(tiny.job(tmp_path, reward=reward, **changes))


def test_a_reward_that_is_constant_for_two_rounds_goes_on(tmp_path):
    calls = []

    def reward(samples, prompts, outputs):
        calls.append(1)
        return [0.0] * len(samples) if len(calls) <= 4 else tiny.share_of_good(samples, prompts, outputs)

    assert tune(tiny.job(tmp_path, reward=reward, train={"total_steps": 16})).steps == 16


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_bfloat16_stays_finite_and_near(tmp_path, kind):
    runs = {}
    for dtype in ("float32", "bfloat16"):
        job = tiny.job(tmp_path / dtype, kind, train={"dtype": dtype, "total_steps": 16})
        outcome = tune(job)
        assert all(p.dtype == torch.float32 and p.isfinite().all() for p in outcome.model.parameters())
        assert abs(outcome.kl_at_step_0) < 1e-6
        runs[dtype] = job.watch.rows
    a, b = runs["float32"][0], runs["bfloat16"][0]
    assert a["entropy"] == pytest.approx(b["entropy"], abs=0.05) and a["entropy"] != b["entropy"]
    assert b["kl"] < 1e-3


def test_evaluation_by_hand(tmp_path):
    model, reference = tiny.model(), tiny.model()
    sampler = Sampler(model, tiny.tokenizer(), tiny.job(tmp_path).config.generate, 0)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_proj.weight.mul_(9)
    got = evaluate(
        model, reference, sampler, ["the film", "a very bad plot"], Reward(tiny.share_of_good), samples=3, batch_size=4
    )
    assert len(got.scores) == 6 and got.reward == pytest.approx(got.scores.mean())
    assert got.texts.prompts == ["the film", "a very bad plot"] * 3
    total, tokens = 0.0, 0
    prompts = sampler.encode(["the film", "a very bad plot"]) * 3
    drawn = sampler.sample(model, prompts, stream="evaluation", first_index=0, chunk_size=6)
    for row, prompt in enumerate(prompts):
        response = drawn.response_ids[row][drawn.response_mask[row]]
        ids = torch.cat([torch.tensor(prompt.ids), response])[None]
        with torch.no_grad():
            p, q = (m(ids).logits[0, len(prompt.ids) - 1 : -1].double().log_softmax(-1) for m in (model, reference))
        total += float((p.exp() * (p - q)).sum())
        tokens += len(response)
    assert got.kl == pytest.approx(total / tokens, rel=1e-4) and got.kl > 0
    assert got.length == pytest.approx(tokens / 6)
    again = evaluate(reference, reference, sampler, ["the film"], Reward(tiny.share_of_good), samples=2)
    assert again.kl == 0
