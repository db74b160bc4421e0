"""Path patching against freezing every head and MLP by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp import Policy, Prompts
from interp.circuits import Graph, path_patching
from interp.errors import MeasureError
from interp.hooks import Site, capture, patch
from interp.models.running import forward_inputs
from interp.patching.recording import activations
from tests.interp import architectures

TEXTS = ["the cat sat", "a dog ran", "the bird sang on", "fun"]
SIZE = 310  # tokens of the tests' own tokenizer
CHECKED = [
    "GPT2LMHeadModel",
    "LlamaForCausalLM",
    "GPTNeoXForCausalLM",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in (
            "MistralForCausalLM",
            "Qwen3ForCausalLM",
            "Phi3ForCausalLM",
            "OPTForCausalLM",
            "BloomForCausalLM",
        )
    ),
]


def metric(logits, rows):
    return logits[:, 1] - logits[:, 2]


def by_hand(recipient, source, batch, sender, receiver):
    """Freeze all heads and MLPs but the sender, which is the source's; see what the receiver makes of it; put that in.

    The first of the two passes of Wang et al.'s appendix, and the second, with the library's plain edits of sites.
    """
    parts, theirs = recipient.parts, source.parts
    layers = range(parts.n_layers)
    name = {"q": "q", "k": "k", "v": "v"}.get(receiver.partition(".")[2], "mlp_out")
    at = Site(name, int(receiver[1]))
    heads = [Site("z", layer) for layer in layers]
    mlps = [Site("mlp_out", layer) for layer in layers]
    own, _ = activations(parts, batch, [*heads, *mlps])
    given, _ = activations(theirs, batch, [*heads, *mlps])
    z, w = (
        torch.einsum("bshd,hdm->bshm", store[Site("z", 1)], each.W_O(1))
        for store, each in ((own, parts), (given, theirs))
    )
    frozen = {site: (lambda value, site=site: own[site]) for site in (*heads, *mlps)}
    change = w[:, :, int(sender[3])] - z[:, :, int(sender[3])] if sender[2] == "H" else None
    if change is None:
        frozen[Site("mlp_out", 1)] = lambda value: given[Site("mlp_out", 1)]
    else:
        frozen[Site("attn_out", 1)] = lambda value: value + change
    del frozen[Site("mlp_out", int(receiver[1]))]
    if parts.path("resid_mid") is None:  # attention and MLP side by side: nothing to add
        assert int(receiver[1]) > 1
    with torch.no_grad(), capture(parts, [at]) as seen, patch(parts, frozen):
        parts.model(**forward_inputs(parts, batch))
    unit = None if name == "mlp_out" else int(receiver[3])
    with torch.no_grad(), capture(parts, [at]) as before:
        parts.model(**forward_inputs(parts, batch))

    def put(value):
        if unit is None:
            return seen[at]
        changed = value.clone()
        changed[:, :, unit] = seen[at][:, :, unit]
        return changed

    with torch.no_grad(), patch(parts, {at: put}):
        logits = parts.model(**forward_inputs(parts, batch)).logits
    assert before
    return metric(batch.at_last_prompt(logits), None)


@pytest.mark.parametrize("name", CHECKED)
def test_a_path_equals_freezing_everything_else(name, tokenizer):
    recipient, source = (
        Policy.load(architectures.build(name, seed=s, vocab_size=SIZE), tokenizer=tokenizer) for s in (0, 1)
    )
    prompts = Prompts(TEXTS)
    keys = recipient.parts.n_kv_heads < recipient.parts.n_heads
    receivers = ["L2H1.q", "L2H0-1.k" if keys else "L2H0.k", "L2H2-3.v" if keys else "L2H2.v", "L2.mlp"]
    found = path_patching(
        recipient, source, prompts, senders=["L1H2", "L1.mlp"], receivers=receivers, metric=metric, batch_size=2
    )
    batch = next(prompts.tokenize(tokenizer).batches(4))
    for receiver in receivers:
        plain = receiver.replace("L2H0-1.k", "L2H0.k").replace("L2H2-3.v", "L2H1.v")
        for sender in ("L1H2", "L1.mlp"):
            expected = by_hand(recipient, source, batch, sender, plain).double().numpy()
            own = found["effect"].sel(component=sender, site=receiver).values + found["recipient"].values
            np.testing.assert_allclose(own, expected, rtol=1e-4, atol=2e-5 * np.abs(expected).max())
    assert np.abs(found["effect"].values).max() > 1e-3


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "T5ForConditionalGeneration", "Gemma2ForCausalLM"])
def test_a_path_to_the_logits_changes_the_last_residual_alone(name, tokenizer):
    recipient, source = (
        Policy.load(architectures.build(name, seed=s, vocab_size=SIZE), tokenizer=tokenizer) for s in (0, 1)
    )
    prompts = Prompts(TEXTS)
    found = path_patching(recipient, source, prompts, metric=metric)
    tokens = prompts.tokenize(tokenizer, decoder_start=recipient.decoder_start)
    batch = next(tokens.batches(4))
    mlp, last = Site("mlp_out", 1), Site("resid_post", recipient.parts.n_layers - 1)
    mine, theirs = (each.trace(batch, [mlp, last]) for each in (recipient, source))
    residual = batch.at_last_prompt(mine[last] + theirs[mlp] - mine[mlp])
    expected = metric(recipient.parts.logits(residual).float(), None).double().numpy()
    own = found["effect"].sel(component="L1.mlp", site="logits").values + found["recipient"].values
    np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-5)
    graph = Graph.of(recipient.parts)
    reach = next(each for each in graph.readings if each.part == "logits").sources
    known = np.isfinite(found["effect"].values).all((0, 2))
    assert list(np.flatnonzero(known)) == list(reach)
    assert {"component", "site", "recovery", "p"} <= set(found.summary().columns)
    assert "by path" in repr(found)


def test_clean_and_corrupted_prompts_of_one_model(tokenizer):
    model = Policy.load(architectures.build("GPT2LMHeadModel", vocab_size=SIZE), tokenizer=tokenizer)
    prompts = Prompts(["the cat sat", "a dog ran"], corrupted=["the dog sat", "a cat ran"])
    found = path_patching(model, model, prompts, receivers=["L1H0.q", "logits"], metric=metric)
    late = found["effect"].sel(component="L2.mlp", site="L1H0.q")
    assert np.isnan(late.values).all()
    batch = next(prompts.corrupt.tokenize(tokenizer).batches(2))
    own = metric(batch.at_last_prompt(model.trace(batch).logits), None)
    np.testing.assert_allclose(found["recipient"].values, own.double().numpy(), rtol=1e-5)
    again = path_patching(model, model, prompts, receivers=["L1H0.q", "logits"], metric=metric)
    assert np.array_equal(again["effect"].values, found["effect"].values, equal_nan=True)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.modules())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"receivers": ["L9H9.q"]}, "no receiver 'L9H9.q'"),
        ({"receivers": []}, "at least one receiver"),
        ({"senders": ["L9H9"]}, "no sender 'L9H9'"),
    ],
)
def test_mistakes_are_one_sentence(tokenizer, settings, message):
    pair = [
        Policy.load(architectures.build("GPT2LMHeadModel", seed=s, vocab_size=SIZE), tokenizer=tokenizer)
        for s in (0, 1)
    ]
    with pytest.raises(MeasureError, match=message):
        path_patching(*pair, Prompts(TEXTS), metric=metric, **settings)
