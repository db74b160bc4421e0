"""Patching judged by sampled text, read with a key-value cache or anew at each step: against plain loops."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from interp import Policy, Prompts
from interp.errors import MeasureError
from interp.families import Parts
from interp.hooks import Site, has_site, patch
from interp.metrics import at_columns
from interp.models.running import forward_inputs
from interp.patching import (
    Runs,
    open_runs,
    reward_patching,
    reward_runs,
)
from interp.patching.generation import InStep
from interp.patching.recording import (
    activations,
    captured_sites,
    run_to_the_last_residual,
    substitutions,
    values_of,
)
from interp.patching.targets import HEADS, Intervention, Target
from interp.prompts import TokenizedPrompts, make_batch
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


def test_random_sets_and_hooks_and_bad_rewards(tokenizer):
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
    with pytest.raises(TypeError, match=r"no parameter 'samples' any more; pass sampling=Sampling\(samples=...\)"):
        reward_patching(*pair, Prompts(TEXTS), length_and_es, samples=2, **job)
    for policy in pair:
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in policy.model.modules())


FAST = ("GPT2LMHeadModel", "LlamaForCausalLM", "Gemma2ForCausalLM", "BloomForCausalLM")
CAUSAL = [
    pytest.param(each, marks=() if each in FAST else pytest.mark.slow)
    for each in architectures.LANGUAGE_MODELS
    if not each.startswith("T5")
]


@pytest.mark.parametrize("name", CAUSAL)
def test_texts_read_token_by_token_with_a_cache_are_whole_passes(name):
    """Logits under a patch at all tokens and at the prompts' alone, prompts of unequal lengths, every family."""
    recipient, source = (Parts(architectures.build(name, seed=seed)) for seed in (0, 1))
    prompts = ((5, 6, 7, 8, 9), (11, 12), (21, 22, 23))
    reads = TokenizedPrompts(prompts, None, None)
    said = torch.tensor([[31, 32, 33], [34, 35, 36], [37, 38, 39]])
    models = [Policy(parts.model, None, parts, {}) for parts in (recipient, source)]
    runs = Runs(*models, reads, reads, Prompts(["one", "two", "three"]))
    names = [site for site in ("z", "mlp_out", "resid_pre", "q", "result") if has_site(recipient, Site(site, 1))]
    for position in ("all", (0, 1)):
        targets = tuple(
            Target(Site(site, layer), (1,) if site in HEADS else None) for layer, site in enumerate(names[:3])
        )
        more = tuple(Target(Site(site, 0), (2,)) for site in names[3:])
        for patched in (None, Intervention(targets, position), Intervention(more, position))[position == (0, 1) :]:
            both = InStep(runs, [0, 1, 2], patched)
            for step in range(3):
                batch = make_batch(prompts, said[:, :step].tolist())
                change = {}
                if patched is not None:
                    store, _ = activations(source, batch, captured_sites([patched]))
                    change = substitutions([patched], batch, values_of(source, store))
                with patch(recipient, change):
                    final, _ = run_to_the_last_residual(recipient, batch)
                expected = recipient.logits(at_columns(final, (batch.first + batch.lengths - 1)[:, None])[:, 0])
                got = recipient.logits(both.read(said[:, step - 1] if step else None))
                assert (got - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max())), (patched, step)


@pytest.mark.parametrize("positions", ["all", "prompt"])
def test_a_cache_changes_no_sample(tokenizer, positions):
    both = policies("LlamaForCausalLM", tokenizer, noise=0.1)
    sites = [Site("mlp_out", 1), {("k", 1): [1]}, {("z", 0): [1], ("resid_pre", 1): None}]
    found = [
        reward_runs(
            open_runs(*both, Prompts(TEXTS)), length_and_es, sites=sites, positions=positions,
            sampling=Sampling(samples=2, max_new_tokens=5), draws=1, short_cut=each, batch_size=5,
        )
        for each in (True, False)
    ]  # fmt: skip
    for name in ("completion", "recipient_completion", "source_completion", "effect", "readout"):
        assert (found[0][name].values == found[1][name].values).all()
    assert (found[0]["completion"] != found[0]["recipient_completion"]).any()
