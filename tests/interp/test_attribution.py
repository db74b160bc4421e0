"""Direct logit attribution by component, head and neuron: completeness, removal, the split, planted neurons."""

import copy

import numpy as np
import pytest
import torch
import xarray as xr

import interp
from interp.hooks import Site
from interp.measures.attribution import attribution, component_names, read_directions, split
from interp.measures.logit_diff import target_ids
from interp.measures.neurons import EVERY, most_changed, neuron_attribution, neurons
from interp.models import Policy
from interp.stats import selection_halves
from tests.conftest import tiny_gpt2, tiny_llama
from tests.interp.architectures import build
from tests.interp.comparisons import compare
from tests.interp.traced import ANSWERS, TEXTS, traces


@pytest.fixture
def pair(make_model, tokenizer):
    return [Policy.load(make_model(seed), tokenizer=tokenizer) for seed in (1, 2)]


class TestAttribution:
    @pytest.mark.parametrize("answers", [ANSWERS, None])
    @pytest.mark.parametrize("side", ["right", "left"])
    def test_complete_by_component_and_by_head(self, pair, tokenizer, answers, side):
        found = attribution(*traces(pair, tokenizer, answers=answers, side=side))
        assert found["completeness_error"].max() < 1e-4
        heads = found["head_attribution"].sum("head") + found["attn_bias_attribution"]
        names = [f"L{layer}.attn" for layer in range(3)]
        np.testing.assert_allclose(heads, found["attribution"].sel(component=names), atol=1e-4)
        for kind, dims in (("attribution", "component"), ("head_attribution", "head")):
            difference = found[kind].sel(model="tuned") - found[kind].sel(model="base")
            np.testing.assert_allclose(found[f"{kind}_write"] + found[f"{kind}_readout"], difference, atol=1e-9)
            assert dims in difference.dims

    def test_a_head_is_worth_what_its_removal_costs_under_a_frozen_norm(self, pair, tokenizer):
        """Take a head's write out of the final residual, keep the norm's scale, read the logits anew."""
        both = traces(pair, tokenizer)
        found = attribution(*both)
        trace, parts = both[0], pair[0].parts
        bad, good = (tokenizer(a)["input_ids"][0] for a in ANSWERS)
        final = trace.last(Site("resid_post", 2))
        layer_norm = hasattr(parts.final_norm, "bias")
        eps = parts.final_norm.eps if layer_norm else parts.final_norm.variance_epsilon
        scale = final.var(-1, unbiased=False, keepdim=True) if layer_norm else final.pow(2).mean(-1, keepdim=True)

        def read(residual):
            centred = residual - residual.mean(-1, keepdim=True) if layer_norm else residual
            normed = centred / (scale + eps).sqrt() * parts.final_norm.weight
            normed = normed + parts.final_norm.bias if layer_norm else normed
            logits = normed @ parts.readout.weight.double().T
            return logits[:, bad] - logits[:, good]

        for layer, head in [(0, 1), (1, 3), (2, 0)]:
            write = trace.last(Site("z", layer))[:, head] @ parts.W_O(layer)[head].double()
            lost = (read(final) - read(final - write)).detach()
            np.testing.assert_allclose(found["head_attribution"].values[:, 0, layer, head], lost, atol=1e-9)

    def test_split_is_exact_and_names_the_side_that_changed(self):
        torch.manual_seed(0)
        w, r = torch.randn(2, 3, 5, 8).double(), torch.randn(2, 3, 8).double()

        def parts(writes, readouts):
            """w_b . r_b, w_t . r_t, w_b . r_t, w_t . r_b, in the order that split takes them."""
            order = ((0, 0), (1, 1), (0, 1), (1, 0))
            return [torch.einsum("pcm,pm->pc", writes[i], readouts[j]) for i, j in order]

        write, readout = split(*parts(w, r))
        expected = parts(w, r)
        torch.testing.assert_close(write + readout, expected[1] - expected[0])
        torch.testing.assert_close(write, torch.einsum("pcm,pm->pc", w[1] - w[0], (r[0] + r[1]) / 2))
        write, readout = split(*parts(w, (r[0], r[0])))
        assert readout.abs().max() == 0 and write.abs().max() > 0
        write, readout = split(*parts((w[0], w[0]), r))
        assert write.abs().max() == 0 and readout.abs().max() > 0

    def test_a_scaled_final_norm_is_all_readout(self, tokenizer):
        base, tuned = tiny_gpt2(1), tiny_gpt2(1)
        with torch.no_grad():
            tuned.transformer.ln_f.weight *= 2
        pair = [Policy.load(model, tokenizer=tokenizer) for model in (base, tuned)]
        found = attribution(*traces(pair, tokenizer))
        assert abs(found["attribution_write"]).max() == 0
        np.testing.assert_allclose(
            found["attribution_readout"].sel(component="L1.mlp"),
            found["attribution"].sel(component="L1.mlp", model="base"),
            rtol=1e-9,
        )

    def test_names(self, tokenizer):
        names = component_names(Policy.load(tiny_gpt2(), tokenizer=tokenizer))
        assert names == ["embed", "pos_embed", "L0.attn", "L0.mlp", "L1.attn", "L1.mlp", "L2.attn", "L2.mlp", "bias"]
        assert "pos_embed" not in component_names(Policy.load(tiny_llama(), tokenizer=tokenizer))


class TestNeurons:
    @pytest.mark.parametrize("side", ["right", "left"])
    def test_against_a_plain_loop(self, pair, tokenizer, side):
        """A neuron's part is what the logits lose when its write leaves the last residual, the norm's scale frozen."""
        both = traces(pair, tokenizer, side=side)
        targets = target_ids(*both)
        found = neuron_attribution(both[0], read_directions(both[0], targets))
        parts = pair[0].parts
        norm = parts.final_norm
        final = both[0].last(Site("resid_post", 2))
        layer_norm = hasattr(norm, "bias")
        eps = norm.eps if layer_norm else norm.variance_epsilon
        column = parts.readout.weight.detach().double()
        for row in range(len(TEXTS)):
            centred = final[row] - final[row].mean() if layer_norm else final[row]
            scale = (centred.pow(2).mean() + eps).sqrt()
            for layer, neuron in ((0, 3), (2, 40)):
                activation = both[0].last(Site("mlp_post", layer))[row, neuron]
                write = activation * parts.W_down(layer)[0][neuron].detach().double()
                write = write - write.mean() if layer_norm else write
                read = column[targets[row, 0]] - column[targets[row, 1]]
                expected = (write / scale * norm.weight.double() * read).sum()
                assert found[row, layer, neuron].item() == pytest.approx(expected.item(), rel=1e-9)

    def test_neurons_and_bias_sum_to_their_mlp(self, pair, tokenizer):
        both = traces(pair, tokenizer)
        targets = target_ids(*both)
        whole = attribution(*both)["attribution"]
        for model, trace in enumerate(both):
            way = read_directions(trace, targets)
            by_neuron = neuron_attribution(trace, way)
            for layer in range(3):
                bias = trace.policy.parts.W_down(layer)[1]
                rest = 0 if bias is None else way.sites[Site("mlp_out", layer)] @ bias.detach().double()
                total = (by_neuron[:, layer].sum(1) + rest).numpy()
                np.testing.assert_allclose(total, whole.sel(component=f"L{layer}.mlp").values[:, model], atol=1e-5)
        assert float(neurons(*both)["neuron_completeness_error"].max()) < 1e-5

    @pytest.mark.parametrize("name", ["Gemma2ForCausalLM", "Olmo2ForCausalLM"])
    def test_complete_where_a_norm_follows_the_mlp(self, tokenizer, name):
        models = [build(name, seed=seed, vocab_size=len(tokenizer)) for seed in (1, 2)]
        both = traces([Policy.load(model, tokenizer=tokenizer) for model in models], tokenizer)
        found = neurons(*both)
        assert float(found["neuron_completeness_error"].max()) < 1e-5
        assert float(abs(found[EVERY]).sum()) > 0

    @pytest.mark.parametrize("neuron", [5, 20, 41])
    def test_a_planted_neuron_is_named(self, make_model, tokenizer, neuron):
        model, layer = make_model(3), 2  # the last MLP: behind it no neuron can change more
        tuned = copy.deepcopy(model)
        policy = Policy.load(tuned, tokenizer=tokenizer)
        with torch.no_grad():
            policy.parts.W_down(layer)[0][neuron] *= 6
        texts = TEXTS + [f"{text} film" for text in TEXTS]
        prompts = interp.Prompts(texts, answers=ANSWERS)
        cmp = compare(model, tuned, prompts, tokenizer=tokenizer, measures="neurons")
        assert (int(cmp["neuron_layer"][0]), int(cmp["neuron_index"][0])) == (layer, neuron)
        assert cmp.summary()["finding"][0].startswith(f"L{layer}.mlp neuron {neuron}: tuned minus base (write ")
        base, changed = cmp["neuron_attribution"].values[:, :, 0].T
        # w_t = 6 w_b: the change of what is written is 5 w_b . (r_b + r_t) / 2
        write = cmp["neuron_attribution_write"].values[:, 0]
        np.testing.assert_allclose(write, 2.5 * base + 2.5 / 6 * changed, atol=1e-5)

    def test_chosen_on_one_half_and_split_exactly(self):
        rng = np.random.default_rng(0)
        values = rng.normal(size=(20, 3, 2, 30))
        data = xr.Dataset(
            {EVERY: (("prompt", "kind", "layer", "every"), values)}, coords={"group": ("prompt", np.arange(20))}
        )
        found = most_changed(data)
        select, _ = selection_halves(np.arange(20))
        change = np.abs((values[select, 1] - values[select, 0]).mean(0))
        order = sorted(np.ndindex(2, 30), key=lambda index: -change[index])[:20]
        named = zip(found["neuron_layer"].values.tolist(), found["neuron_index"].values.tolist(), strict=True)
        assert list(named) == order
        for column, (layer, index) in enumerate(order):
            np.testing.assert_array_equal(found["neuron_attribution"].values[:, :, column], values[:, :2, layer, index])
        difference = found["neuron_attribution"].values[:, 1] - found["neuron_attribution"].values[:, 0]
        sides = found["neuron_attribution_write"] + found["neuron_attribution_readout"]
        np.testing.assert_allclose(sides, difference, atol=1e-12)
        assert EVERY not in found
