"""The search for a smallest set, and steering: against plain loops."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from interp import Policy, Prompts
from interp.errors import MeasureError
from interp.hooks import Site
from interp.models.running import forward_inputs
from interp.patching import activation_patching, smallest_set, steering
from interp.patching.recording import activations
from interp.prompts import make_batch
from tests.interp import architectures
from tests.interp.test_patching_generation import MANY, SIZE, policies


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
