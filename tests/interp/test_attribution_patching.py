"""Attribution patching: the gradient by differences, the integral's sum, and models left as they were."""

import numpy as np
import pytest
import torch

from interp import Policy, Prompts
from interp.errors import MeasureError
from interp.metrics import reading
from interp.patching import activation_patching, attribution_patching
from interp.patching.attribution import gradient_at
from interp.patching.targets import NAMES
from tests.interp import architectures
from tests.interp.test_hooks import sites_of
from tests.interp.test_patching import TEXTS, batch_for, models

LIMIT = 24


def shifted(make_model, tokenizer, size):
    first, second = make_model(), make_model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return [Policy.load(model, tokenizer=tokenizer) for model in (first, second)]


@pytest.mark.parametrize("name", architectures.LANGUAGE_MODELS)
def test_gradients_are_the_slopes(name):
    """Along a random direction at each site, against central differences (most families' softmax is in float32)."""
    parts = models(name)[0]
    parts.model.double()
    batch = batch_for(parts)
    if name.startswith("Bloom") or "T5" in name or "Gemma" in name or "Olmo" in name:
        parts.model.set_attn_implementation("eager")
    lengths = batch.lengths
    batch = type(batch)(
        batch.input_ids[:1, : int(lengths[0])], batch.attention_mask[:1, : int(lengths[0])], batch.prompt_lengths[:1],
        batch.answer_ids[:1],
        None if batch.encoder_ids is None else batch.encoder_ids[:1],
        None if batch.encoder_mask is None else batch.encoder_mask[:1],
    )  # fmt: skip
    how = reading("logit_diff", batch, range(len(batch.input_ids)))
    sites = [site for site in sites_of(parts) if site.name in NAMES]
    sites = [site for site in sites if not (site.name == "pattern" and parts.family.name == "bloom")]
    own, gradients, _ = gradient_at(parts, batch, how, sites, {})
    generator = torch.Generator().manual_seed(0)
    for site in sites:
        direction = torch.randn(own[site].shape, generator=generator, dtype=torch.float64)
        direction, step = direction / direction.norm(), 1e-2
        values = []
        for sign in (1, -1):
            _, _, residual = gradient_at(parts, batch, how, [site], {site: sign * step * direction})
            rows = torch.arange(1)
            values.append(float(how.read(parts, residual[rows[:, None], how.columns], rows).detach()))
        slope = (values[0] - values[1]) / (2 * step)
        assert float((gradients[site] * direction).sum()) == pytest.approx(slope, rel=1e-2, abs=1e-3), site


def test_a_small_change_is_estimated_exactly(make_model, tokenizer):
    pair = shifted(make_model, tokenizer, 1e-4)
    prompts = Prompts(TEXTS, answers=("c", "d"))
    found = attribution_patching(*pair, prompts, sites=["z", "mlp_out", "q"], sample=LIMIT)
    chosen = np.isfinite(found["exact_effect"].values[0])
    estimate, exact = found["effect"].values[:, chosen], found["exact_effect"].values[:, chosen]
    assert chosen.sum() == LIMIT and np.abs(estimate - exact).max() < 0.05 * np.abs(exact).max()
    assert found.dataset.attrs["rank_correlation"] > 0.9


def test_integrated_gradients_sum_to_the_exact_effect(make_model, tokenizer):
    pair = shifted(make_model, tokenizer, 0.05)
    prompts = Prompts(TEXTS, answers=("c", "d"))
    exact = activation_patching(*pair, prompts, sites=["resid_pre", "mlp_out"])
    errors = []
    for steps in (0, 2, 40):
        found = attribution_patching(*pair, prompts, sites=["resid_pre", "mlp_out"], steps=steps, sample=0)
        errors.append(float(np.abs(found["effect"] - exact["effect"]).max()))
    assert errors[2] < 0.03 * errors[0] and errors[2] < 0.3 * errors[1]


def test_parameters_keep_their_gradients_and_flags(make_model, tokenizer):
    pair = shifted(make_model, tokenizer, 0.05)
    flags = []
    for index, parameter in enumerate(pair[0].model.parameters()):
        parameter.requires_grad_(index % 2 == 0)
        flags.append(index % 2 == 0)
    attribution_patching(*pair, Prompts(TEXTS), sites="z", metric="kl", steps=1, sample=0)
    assert [parameter.requires_grad for parameter in pair[0].model.parameters()] == flags
    assert all(parameter.grad is None for model in pair for parameter in model.model.parameters())


def test_sets_are_sums_and_positions_are_parts(make_model, tokenizer):
    pair = shifted(make_model, tokenizer, 0.05)
    prompts = Prompts(TEXTS, answers=("c", "d"))
    whole = attribution_patching(*pair, prompts, sites=["z", {("z", 0): [0, 2]}], sample=0)
    single = whole["effect"].values
    np.testing.assert_allclose(single[:, -1], single[:, 0] + single[:, 2], atol=1e-7)
    by_token = attribution_patching(*pair, prompts, sites={("z", 0): [1]}, positions="each", sample=0)
    np.testing.assert_allclose(by_token["effect"].sum("site"), single[:, 1], atol=1e-6)


def test_bad_steps_are_refused(make_model, tokenizer):
    pair = shifted(make_model, tokenizer, 0.05)
    with pytest.raises(MeasureError, match="steps is a whole number"):
        attribution_patching(*pair, TEXTS, steps=-1)
