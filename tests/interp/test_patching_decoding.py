"""Texts written under a patch with a key-value cache: the same as whole passes at every step."""

import pytest
import torch

from interp import Policy, Prompts
from interp.families import Parts
from interp.hooks import Site, has_site, patch
from interp.metrics import at_columns
from interp.patching import Runs, open_runs, reward_runs
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
from interp.sampling import Sampling
from tests.interp import architectures
from tests.interp.test_patching_extras import TEXTS, length_and_es, policies

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
