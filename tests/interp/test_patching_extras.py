"""Patching judged by sampled text, the search for a smallest set, steering, the value head: against plain loops."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from interp import CheckpointPair, Policy, Prompts, RewardModel
from interp.errors import LoadError, MeasureError
from interp.hooks import Site
from interp.models.running import forward_inputs
from interp.models.value_head import ValueHead, values_along
from interp.patching import activation_patching, reward_patching, smallest_set, steering, value_reading
from interp.patching.recording import activations
from interp.prompts import make_batch
from interp.sampling import Sampling, choose, end_ids, sample, uniforms
from tests.interp import architectures

TEXTS = ["the cat sat", "a dog", "the bird sang on", "fun"]
MANY = [
    f"{a} {b}" for a in ("the", "a", "this", "very") for b in ("cat sat", "dog ran", "bird sang", "movie was", "fun")
]
SIZE = 310  # tokens of the tests' own tokenizer


def policies(name, tokenizer, noise=None):
    """Two models of one kind; with `noise` the second is the first with small changes."""
    first = architectures.build(name, vocab_size=SIZE)
    second = copy.deepcopy(first) if noise else architectures.build(name, seed=1, vocab_size=SIZE)
    with torch.no_grad():
        for parameter in second.parameters() if noise else ():
            parameter += noise * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    return [Policy.load(each, tokenizer=tokenizer) for each in (first, second)]


def length_and_es(samples, prompts, outputs):
    assert all(s == p + o for s, p, o in zip(samples, prompts, outputs, strict=True))
    return [len(text) + 3.0 * text.count("e") for text in samples]


def one_by_one(pair, prompts, site, unit, *, only_prompt, samples, steps, seed):
    """Texts under a patch of one head's z (or a whole site), each sample alone, both models run anew at every step."""
    recipient, source = pair
    tokens = prompts.tokenize(recipient.tokenizer, decoder_start=recipient.decoder_start)
    ends, found = end_ids(recipient.model, recipient.tokenizer), []
    module = recipient.parts.inside(site.layer, "o" if site.name == "z" else "mlp_down")
    for draw in range(samples):
        for number, ids in enumerate(tokens.prompt_ids):
            points = uniforms(seed, [draw * len(tokens) + number], steps)[0]
            said: list[int] = []
            for point in points:
                encoder = None if tokens.encoder_ids is None else [tokens.encoder_ids[number]]
                batch = make_batch([ids], [said], encoder=encoder)
                value = activations(source.parts, batch, [site])[0][site]
                upto = len(ids) if only_prompt else value.shape[1]

                def before(_, args, value=value, upto=upto):
                    width = recipient.parts.d_head
                    changed = args[0].clone()
                    changed[:, :upto, unit * width : (unit + 1) * width] = value[:, :upto, unit]
                    return (changed,)

                def after(_, args, output, value=value, upto=upto):
                    changed = output.clone()
                    changed[:, :upto] = value[:, :upto]
                    return changed

                hook = (
                    module.register_forward_pre_hook(before)
                    if site.name == "z"
                    else module.register_forward_hook(after)
                )
                with torch.no_grad():
                    logits = recipient.model(**forward_inputs(recipient.parts, batch)).logits[:, -1]
                hook.remove()
                said.append(int(choose(logits, torch.tensor([point]), 1.0, 0, 1.0)))
                if said[-1] in ends:
                    break
            found.append(recipient.tokenizer.decode(said, skip_special_tokens=True))
    return np.array(found, dtype=object).reshape(samples, -1).T


@pytest.mark.parametrize("positions", ["all", "prompt"])
@pytest.mark.parametrize(
    "name",
    [
        "GPT2LMHeadModel",
        "LlamaForCausalLM",
        pytest.param("MistralForCausalLM", marks=pytest.mark.slow),
        pytest.param("GPTNeoXForCausalLM", marks=pytest.mark.slow),
        pytest.param("T5ForConditionalGeneration", marks=pytest.mark.slow),
    ],
)
def test_texts_under_a_patch_equal_a_plain_loop(name, positions, tokenizer):
    pair = policies(name, tokenizer)
    prompts = Prompts(TEXTS[:3])
    sets = [{("z", 0): [1]}, {("mlp_out", 1): None}]
    found = reward_patching(
        *pair,
        prompts,
        length_and_es,
        sites=sets,
        positions=positions,
        sampling=Sampling(samples=2, max_new_tokens=5),
        batch_size=3,
        seed=4,
    )
    for index, (site, unit) in enumerate([(Site("z", 0), 1), (Site("mlp_out", 1), None)]):
        expected = one_by_one(pair, prompts, site, unit, only_prompt=positions == "prompt", samples=2, steps=5, seed=4)
        assert found["completion"].values[:, index].tolist() == expected.tolist()
    texts = [found[f"{name}_completion"].values for name in ("recipient", "source")]
    assert (found["completion"].values[:, 0] != texts[0]).any() and (texts[0] != texts[1]).any()


def test_unpatched_samples_are_those_of_sampling_and_the_reward_is_their_mean(tokenizer):
    pair = policies("GPT2LMHeadModel", tokenizer)
    prompts = Prompts(TEXTS)
    found = reward_patching(
        *pair, prompts, length_and_es, sites=Site("mlp_out", 2), sampling=Sampling(samples=3, max_new_tokens=6), seed=7
    )
    ids = list(prompts.tokenize(tokenizer).prompt_ids) * 3
    for name, policy in zip(("recipient", "source"), pair, strict=True):
        drawn = sample(policy.model, ids, max_new_tokens=6, seed=7, end_ids=end_ids(policy.model, tokenizer), pad_id=0)
        said = [row[mask].tolist() for row, mask in zip(drawn.response_ids, drawn.response_mask, strict=True)]
        texts = np.array([tokenizer.decode(row, skip_special_tokens=True) for row in said]).reshape(3, -1).T
        assert found[f"{name}_completion"].values.tolist() == texts.tolist()
        whole = [tokenizer.decode([*p, *r], skip_special_tokens=True) for p, r in zip(ids, said, strict=True)]
        expected = np.array(length_and_es(whole, whole, [""] * len(whole))).reshape(3, -1).mean(0)
        np.testing.assert_allclose(found[name].values, expected)
    assert "reward of the recipient" in repr(found) and found.dataset.attrs["samples"] == 3


def test_a_patch_of_the_last_residual_writes_what_the_source_writes(tokenizer):
    """Where both read the last residual alike, its patch is the source, and the effect is the whole gap."""
    pair = policies("GPT2LMHeadModel", tokenizer)
    with torch.no_grad():
        for name, parameter in pair[1].model.named_parameters():
            if "wte" in name or "ln_f" in name:
                parameter.copy_(dict(pair[0].model.named_parameters())[name])
    found = reward_patching(
        *pair,
        Prompts(MANY[:9]),
        length_and_es,
        sites=[Site("resid_post", 2)],
        sampling=Sampling(samples=2, max_new_tokens=5),
    )
    assert found["completion"].values[:, 0].tolist() == found["source_completion"].values.tolist()
    gap = found["source"].values - found["recipient"].values
    np.testing.assert_allclose(found["effect"].values[:, 0], gap)
    assert np.ptp(gap) > 0


def test_draws_and_hooks_and_bad_rewards(tokenizer):
    pair = policies("LlamaForCausalLM", tokenizer)
    pair[0].model.train()
    job = {"sites": {("z", 0): [0, 1]}, "sampling": Sampling(samples=1, max_new_tokens=3)}
    found = reward_patching(*pair, Prompts(TEXTS), length_and_es, draws=3, **job)
    assert found["random_recovery"].shape == (1, 3)
    assert pair[0].model.training
    with pytest.raises(MeasureError, match="finite numbers, one a sample"):
        reward_patching(*pair, Prompts(TEXTS), lambda samples, **_: [np.nan] * len(samples), **job)
    with pytest.raises(MeasureError, match="ZeroDivisionError"):
        reward_patching(*pair, Prompts(TEXTS), lambda **_: 1 / 0, **job)
    with pytest.raises(MeasureError, match="is called as"):
        reward_patching(*pair, Prompts(TEXTS), lambda texts: [0.0] * len(texts), **job)
    with pytest.raises(TypeError, match=r"no parameter samples; pass sampling=Sampling\(samples=...\)"):
        reward_patching(*pair, Prompts(TEXTS), length_and_es, samples=2, **job)
    for policy in pair:
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in policy.model.modules())


@pytest.fixture(scope="module")
def planted(tokenizer):
    """A model and its copy in which two heads write other things."""
    first = architectures.build("GPT2LMHeadModel", vocab_size=SIZE)
    second = copy.deepcopy(first)
    with torch.no_grad():
        parts = Policy.load(second, tokenizer=tokenizer).parts
        for layer, head in ((1, 2), (2, 0)):
            parts.W_O(layer)[head].mul_(-2.0)
    return [Policy.load(each, tokenizer=tokenizer) for each in (first, second)]


def test_the_planted_heads_are_the_smallest_set(planted):
    found = smallest_set(*planted, Prompts(MANY), sites="result", target=0.999, draws=5)
    assert set(found["added"].values) == {"L1.result.H2", "L2.result.H0"} and found.size == 2
    np.testing.assert_allclose(found["recovery"].values[-1], 1.0, atol=1e-3)
    assert found.dataset.attrs["same_prompts"] == 0
    assert found["random_recovery"].shape == (2, 5)
    assert "2 sites reach" in repr(found)
    # what the first set recovers on the half that judges, patched by itself
    layer, head = int(found["added"].values[0][1]), int(found["added"].values[0][-1])
    few = Prompts(MANY[1::2])
    alone = activation_patching(*planted, few, sites=[{("result", layer): [head]}])
    np.testing.assert_allclose(found["recovery"].values[0], alone["recovery"].values[0], rtol=1e-5)


def test_a_metric_of_ones_own_is_told_the_prompts_numbers(planted) -> None:
    asked = []

    def own(logits, rows):
        asked.append(set(rows.tolist()))
        return logits[:, 1] - logits[:, 2] + 9.0 * rows

    found = smallest_set(*planted, Prompts(MANY), sites="result", metric=own, draws=0, most=1)
    even, odd = ({each for each in range(len(MANY)) if each % 2 == side} for side in (0, 1))
    assert set().union(*asked) == even | odd
    assert all(each <= even or each <= odd for each in asked)
    assert found.dataset.attrs["metric"] == "own"
    steered = steering(*planted, Prompts(MANY), site=("resid_post", 0), doses=(0.0,), metric=own, draws=0)
    assert np.ptp(steered["recipient"].values) > 9.0 * 15


def test_a_search_says_why_it_cannot_search(planted):
    with pytest.raises(MeasureError, match="target is above 0"):
        smallest_set(*planted, MANY, target=0.0)
    with pytest.raises(MeasureError, match="same positions"):
        smallest_set(*planted, MANY, positions="each")
    twin = Policy.load(copy.deepcopy(planted[0].model), tokenizer=planted[0].tokenizer)
    with pytest.raises(MeasureError, match="do not differ"):
        smallest_set(planted[0], twin, Prompts(MANY))


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM", "GPTNeoXForCausalLM"])
def test_steering_equals_a_plain_hook(name, tokenizer):
    pair = policies(name, tokenizer, noise=0.05)
    prompts = Prompts(MANY, answers=(" bad", " good"))
    site = Site("resid_post", 1)
    found = steering(*pair, prompts, site=("resid_post", 1), doses=(0, 0.5, 2), draws=3, batch_size=4)
    tokens = prompts.tokenize(tokenizer)
    rows = [
        (make_batch([ids], answers=tokens.answer_ids[[number]]), number) for number, ids in enumerate(tokens.prompt_ids)
    ]
    differences = [
        (activations(pair[1].parts, batch, [site])[0][site] - activations(pair[0].parts, batch, [site])[0][site])[0]
        for batch, number in rows
        if number % 2 == 0
    ]
    vector = torch.cat(differences).double().mean(0)
    torch.testing.assert_close(found.vector, vector, rtol=1e-4, atol=1e-5)
    expected = []
    for batch, number in rows:
        if number % 2 == 0:
            continue
        for dose in (0, 0.5, 2):
            handle = (
                pair[0]
                .parts.block(1)
                .register_forward_hook(
                    lambda _, __, output, dose=dose: (
                        (output[0] + dose * vector.float(), *output[1:])
                        if isinstance(output, tuple)
                        else output + dose * vector.float()
                    )
                )
            )
            with torch.no_grad():
                logits = pair[0].model(**forward_inputs(pair[0].parts, batch)).logits[0, -1]
            handle.remove()
            first, second = tokens.answer_ids[number].tolist()
            expected.append(float(logits[first] - logits[second]))
    np.testing.assert_allclose(found["metric"].values.ravel(), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["random_metric"].values[:, 0], found["recipient"].values.mean(), rtol=1e-5)
    assert found["random_metric"].shape == (3, 3) and "by dose" in repr(found)
    np.testing.assert_allclose(found["effect"].values[:, 0], 0, atol=1e-5)


def test_steering_refuses_what_is_no_residual(planted):
    for site in (("z", 0), ("resid_post", 9)):
        with pytest.raises(MeasureError, match="steering adds to a residual"):
            steering(*planted, MANY, site=site)
    with pytest.raises(MeasureError, match="one set of positions"):
        steering(*planted, MANY, site=("resid_post", 0), positions="each")
    with pytest.raises(MeasureError, match="doses are finite"):
        steering(*planted, MANY, site=("resid_post", 0), doses=[])


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM", "T5ForConditionalGeneration"])
def test_values_along_a_response_equal_the_trainers(name, tokenizer, tmp_path):
    from training.rollouts import ValueHead as Trained
    from training.rollouts import read_responses

    policy = policies(name, tokenizer)[0]
    trained = Trained(policy.parts.d_model, seed=0)
    with torch.no_grad():
        trained.out.weight.normal_()
    save_file(dict(trained.state_dict()), tmp_path / "value_head.safetensors")
    head = ValueHead.load(tmp_path / "value_head.safetensors")
    tokens = Prompts(TEXTS).tokenize(tokenizer, decoder_start=policy.decoder_start)
    encoder = None if tokens.encoder_ids is None else list(tokens.encoder_ids)
    samples = sample(
        policy.model, tokens.prompt_ids, max_new_tokens=4, seed=0, end_ids=[], pad_id=0, encoder=encoder
    )  # fmt: skip
    with torch.no_grad():
        _, expected = read_responses(policy.model, samples, trained)
    found = values_along(
        policy, head, tokens.prompt_ids, samples.response_ids.tolist(), encoder_ids=encoder, batch_size=3
    )
    for own, row in zip(found, expected, strict=True):
        torch.testing.assert_close(own[:-1], row, rtol=1e-4, atol=1e-5)


def test_the_embedded_pairs_value_head(tmp_path):
    pair = CheckpointPair.load("interp/data/demo")
    scorer = RewardModel.load(str(pair.reward), label="negative")
    reading = value_reading(
        pair.tuned, pair.path, ["This movie was really", "The plot was"], scorer, sampling=Sampling(samples=8)
    )
    values, rewards = reading["value"].values, reading["reward"].values
    assert values.shape == (2, 8, 25) and np.isfinite(values[:, :, 0]).all()
    here = np.isfinite(values[:, :, 3])
    expected = np.corrcoef(values[:, :, 3][here], rewards[here])[0, 1]
    assert float(reading["correlation"][3]) == pytest.approx(expected)
    residual = ((rewards - values[:, :, 0]) ** 2).sum() / ((rewards - rewards.mean()) ** 2).sum()
    assert float(reading["explained"][0]) == pytest.approx(1 - residual, rel=1e-5)
    with pytest.raises(LoadError, match="no pair|no value head"):
        ValueHead.load(tmp_path)
    other = Policy.load(
        architectures.build("GPT2LMHeadModel", vocab_size=SIZE), tokenizer=Policy.load(pair.base).tokenizer
    )
    with pytest.raises(LoadError, match="another|states of"):
        values_along(other, ValueHead.load(pair.path), [[1]], [[2]])
