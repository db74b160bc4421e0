import copy
import dataclasses

import pytest
import tiny
import torch
from safetensors.torch import load_file

from interp.errors import TrainingError
from interp.sampling import end_ids
from training import train
from training.evaluate import evaluate
from training.losses import gae, place_reward, whiten
from training.native import PPO, Targets, targets
from training.reward import Reward
from training.rollouts import Sampler, ValueHead, collect, prompt_stream, read_responses


def setup(tmp_path, **changes):
    config = tiny.recipe(tmp_path, **changes)
    model = tiny.model()
    reference = copy.deepcopy(model).requires_grad_(False)
    return config, model, reference, Sampler(model, tiny.tokenizer(), config.generate, config.train.seed)


def roll(model, reference, sampler, prompts=("the very film", "a", "so the"), reward=tiny.share_of_good):
    head = ValueHead(16, seed=0)
    return collect(
        model, head, reference, sampler, sampler.encode(prompts), Reward(reward), first_index=0, chunk_size=2
    )


def test_rollouts_are_scored_on_the_ids_that_were_generated(tmp_path):
    _, model, reference, sampler = setup(tmp_path)
    rollouts = roll(model, reference, sampler, ["the very film"] * 20)
    samples = rollouts.samples
    mask = samples.response_mask
    assert (mask.sum(1) < mask.shape[1]).any() and (mask.sum(1) == mask.shape[1]).any()
    assert torch.allclose(rollouts.logprobs[mask], samples.logprobs[mask], atol=1e-5)
    for row, ids in enumerate(sampler.responses(samples)):
        assert not {0, 1} & set(ids)
        assert rollouts.texts.outputs[row].split() == [tiny.WORDS[i] for i in ids]
        assert rollouts.texts.samples[row].split() == ["the", "very", "film", *(tiny.WORDS[i] for i in ids)]


def test_kl_to_the_frozen_copy_is_0(tmp_path):
    _, model, reference, sampler = setup(tmp_path)
    rollouts = roll(model, reference, sampler)
    assert rollouts.kl.abs().max() == 0
    assert torch.equal(rollouts.logprobs, rollouts.reference_logprobs)
    assert not rollouts.values.any(), "an untrained value head says 0"


def test_kl_sees_a_reference_that_is_not_the_base(tmp_path):
    _, model, reference, sampler = setup(tmp_path)
    with torch.no_grad():
        reference.transformer.h[0].mlp.c_proj.weight.mul_(9)
    rollouts = roll(model, reference, sampler)
    assert rollouts.kl[rollouts.samples.response_mask].min() > 1e-6


def test_read_responses_equals_an_unpadded_forward(tmp_path):
    _, model, reference, sampler = setup(tmp_path)
    samples = roll(model, reference, sampler).samples
    logits, _ = read_responses(model, samples)
    for row in range(len(samples)):
        prompt = samples.prompt_ids[row][samples.prompt_mask[row]]
        response = samples.response_ids[row][samples.response_mask[row]]
        with torch.no_grad():
            plain = model(torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1]
        assert torch.allclose(logits[row, : len(response)], plain, atol=1e-5)


def test_targets_are_the_papers_formulas(tmp_path):
    config, model, reference, sampler = setup(tmp_path, ppo={"init_kl_coef": 0.3, "gamma": 0.9})
    rollouts = roll(model, reference, sampler)
    rollouts = dataclasses.replace(rollouts, reference_logprobs=rollouts.logprobs - 0.5)
    mask = rollouts.samples.response_mask
    rewards = torch.where(mask, -0.3 * 0.5, 0.0) + place_reward(rollouts.scores, mask)
    advantages, returns = gae(rewards, rollouts.values, mask, 0.9, 0.95)
    got = targets(rollouts, rollouts.scores, config)
    assert torch.allclose(got.advantages, whiten(advantages, mask), atol=1e-5)
    assert torch.allclose(got.returns, returns, atol=1e-6)


def test_the_first_gradient_is_the_policy_gradient(tmp_path):
    config, model, reference, sampler = setup(tmp_path, ppo={"vf_coef": 0.0})
    rollouts = roll(model, reference, sampler)
    mask = rollouts.samples.response_mask
    advantages = torch.where(mask, torch.randn(mask.shape), 0.0)
    ppo = PPO(model, reference, sampler, config)
    goals = Targets(advantages, torch.zeros_like(advantages))
    loss, _ = ppo.loss(rollouts, goals, torch.arange(len(mask)))
    loss.backward()
    got = model.transformer.h[0].mlp.c_fc.weight.grad.clone()
    model.zero_grad()
    logits, _ = read_responses(model, rollouts.samples)
    chosen = logits.log_softmax(-1).gather(-1, rollouts.samples.response_ids[..., None])[..., 0]
    (-(advantages * chosen)[mask].sum() / mask.sum()).backward()
    assert torch.allclose(got, model.transformer.h[0].mlp.c_fc.weight.grad, atol=1e-6) and got.abs().max() > 1e-4


def test_what_follows_the_end_token_gets_no_gradient(tmp_path):
    config, model, reference, sampler = setup(tmp_path)
    rollouts = roll(model, reference, sampler, ["the very film"] * 20)
    goals = targets(rollouts, rollouts.scores, config)
    mask = rollouts.samples.response_mask
    gradients = []
    for pad in (0, 7):
        ids = torch.where(mask, rollouts.samples.response_ids, pad)
        changed = dataclasses.replace(rollouts, samples=dataclasses.replace(rollouts.samples, response_ids=ids))
        ppo = PPO(copy.deepcopy(model), reference, sampler, config)
        ppo.loss(changed, goals, torch.arange(20))[0].backward()
        gradients.append(ppo.model.transformer.wte.weight.grad)
    assert not mask.all() and torch.allclose(*gradients, atol=1e-7)


def test_the_reference_and_the_mode_stay_as_they_are(tmp_path):
    config, model, reference, sampler = setup(tmp_path)
    before = copy.deepcopy(reference.state_dict())
    ppo = PPO(model.train(), reference, sampler, config)
    ppo.run(["the film", "a plot"], Reward(tiny.share_of_good), log=lambda row: None)
    assert not model.training, "dropout would make old and new log-probabilities differ"
    assert all(torch.equal(value, before[name]) for name, value in reference.state_dict().items())
    assert all(p.grad is None for p in reference.parameters())


def test_shuffling_permutes_the_rewards_and_nothing_else(tmp_path, monkeypatch):
    seen = {}
    for shuffle in (None, 5):
        config, model, reference, sampler = setup(tmp_path)
        ppo = PPO(model, reference, sampler, config)

        def spy(rollouts, scores, config, shuffle=shuffle):
            seen.setdefault(shuffle, (rollouts, scores))
            return targets(rollouts, scores, config)

        monkeypatch.setattr("training.native.targets", spy)
        ppo.run(["the film", "a plot", "so very"], Reward(tiny.share_of_good), log=lambda row: None, shuffle=shuffle)
    (plain, scores), (control, permuted) = seen[None], seen[5]
    assert torch.equal(plain.samples.response_ids, control.samples.response_ids)
    assert torch.equal(scores, plain.scores) and torch.equal(control.scores, plain.scores)
    assert not torch.equal(permuted, scores) and torch.equal(permuted.sort().values, scores.sort().values)


def test_total_steps_is_kept_to(tmp_path):
    config, model, reference, sampler = setup(tmp_path, train={"total_steps": 7})
    ppo, rows = PPO(model, reference, sampler, config), []
    ppo.run(["the film"], Reward(tiny.share_of_good), log=rows.append)
    assert ppo.step == 7 and [row["step"] for row in rows] == [0, 4]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_ppo_learns_a_simple_reward_and_the_control_does_not(tmp_path, kind):
    config = tiny.recipe(
        tmp_path,
        kind=kind,
        train={
            "total_steps": 120,
            "batch_size": 64,
            "learning_rate": 3e-3,
            "controls": ["shuffled"],
            "eval_samples": 20,
        },
        ppo={"num_rollouts": 128, "chunk_size": 128, "ppo_epochs": 2, "init_kl_coef": 0.02},
    )
    pair = train(config, tmp_path / "run", reward=tiny.share_of_good)
    final = pair.manifest["final"]
    assert final["base_reward"] < 0.15
    assert final["reward"] > final["base_reward"] + 0.4
    assert abs(pair.manifest["controls"][0]["final"]["reward"] - final["base_reward"]) < 0.15
    head = load_file(pair.path / "value_head.safetensors")
    assert head["out.weight"].abs().max() > 0


def test_evaluation_by_hand(tmp_path):
    _, model, reference, sampler = setup(tmp_path)
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


def test_no_prompts(tmp_path):
    config, model, reference, sampler = setup(tmp_path)
    with pytest.raises(TrainingError, match="the list is empty"):
        PPO(model, reference, sampler, config).run([], Reward(tiny.share_of_good), log=lambda row: None)
    with pytest.raises(TrainingError, match="'' has no tokens"):
        sampler.encode(["the film", ""])


def test_prompt_stream_takes_each_prompt_once_a_pass(tmp_path):
    *_, sampler = setup(tmp_path)
    prompts = sampler.encode(["the film", "a", "so"])
    stream = prompt_stream(prompts, seed=0)
    passes = [[next(stream).text for _ in range(3)] for _ in range(20)]
    assert all(sorted(turn) == ["a", "so", "the film"] for turn in passes)
    assert len({tuple(turn) for turn in passes}) > 1


def test_end_ids_come_from_everywhere(tmp_path):
    assert end_ids(tiny.model(), tiny.tokenizer()) == (0, 1)
