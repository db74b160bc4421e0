"""Each measure on a case worked out by hand, at its bound, and against another way to compute it."""

import math

import numpy as np
import pytest
import torch

from interp.divergences import js_divergence, kl_divergence
from interp.errors import MeasureError
from interp.hooks import Site
from interp.measures import MEASURES, TRACE_MEASURES, check_measures
from interp.measures.attention import attention, pattern_examples
from interp.measures.attribution import attribute, attribution, component_names, split, writes
from interp.measures.completions import completions
from interp.measures.lens import lens, lens_sites
from interp.measures.logits import kl, logit_diff, next_token, target_ids
from interp.measures.weights import ov_factors, qk_factors, relative_change, weights
from interp.models import Policy, RewardModel
from interp.prompts import Prompts, make_batch
from tests.conftest import tiny_gpt2, tiny_llama

TEXTS = ["this movie was really", "the plot was", "great acting and a very boring film", "fun"]
ANSWERS = (" bad", " good")


@pytest.fixture
def pair(make_model, tokenizer):
    return [Policy.load(make_model(seed), tokenizer=tokenizer) for seed in (1, 2)]


def traces(pair, tokenizer, names=tuple(TRACE_MEASURES), answers=ANSWERS, side="right", **more):
    tokens = Prompts(TEXTS, answers=answers, **more).tokenize(tokenizer)
    (batch,) = tokens.batches(9, padding_side=side)
    sites = {site for name in names for site in TRACE_MEASURES[name].sites(pair[0])}
    return [policy.trace(batch, sites) for policy in pair]


class TestDivergences:
    def test_kl_by_hand(self):
        p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.5])
        expected = 0.5 * math.log(2) + 0.25 * math.log(1) + 0.25 * math.log(0.5)
        assert kl_divergence(p.log() + 3, q.log() - 1).item() == pytest.approx(expected, abs=1e-7)
        # where tuned has no mass base may have any
        assert kl_divergence(torch.tensor([0.0, -torch.inf]), torch.tensor([0.0, 0.0])).item() == pytest.approx(
            math.log(2)
        )
        assert kl_divergence(p, p).item() == 0

    def test_js_by_hand_and_at_its_bounds(self):
        p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.5, 0.0, 0.5])
        # m = (1/2, 1/4, 1/4): each side gives 1/2 log 2
        assert js_divergence(p, q).item() == pytest.approx(0.5 * math.log(2), abs=1e-7)
        assert js_divergence(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])).item() == pytest.approx(math.log(2))
        noise = torch.rand(50, 7).softmax(-1)
        assert js_divergence(noise, noise.clone()).abs().max().item() == 0

    def test_against_scipy(self):
        from scipy.spatial.distance import jensenshannon
        from scipy.stats import entropy

        rng = np.random.default_rng(0)
        a, b = torch.tensor(rng.normal(size=(2, 20, 30)) * 3)
        p, q = a.softmax(-1), b.softmax(-1)
        np.testing.assert_allclose(kl_divergence(a, b), entropy(p, q, axis=-1), rtol=1e-10)
        np.testing.assert_allclose(js_divergence(p, q), jensenshannon(p, q, axis=-1) ** 2, rtol=1e-10)

    def test_js_keeps_the_digits_of_a_small_change(self):
        """For q = p + e, JS is e^2 / (8 p (1 - p)) to second order; a naive sum of logs would be all rounding."""
        p, e = 0.3, 1e-6
        js = js_divergence(torch.tensor([p, 1 - p]).double(), torch.tensor([p + e, 1 - p - e]).double()).item()
        assert js == pytest.approx(e**2 / (8 * p * (1 - p)), rel=1e-4)


class TestNextToken:
    def test_against_the_bare_logits(self, pair, tokenizer):
        both = traces(pair, tokenizer)
        found, top, spread = logit_diff(*both), next_token(*both), kl(*both)
        bad, good = (tokenizer(a)["input_ids"][0] for a in ANSWERS)
        for row, text in enumerate(TEXTS):
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            with torch.no_grad():
                bare = [policy.model(ids).logits[0].double() for policy in pair]
            for column, logits in enumerate(bare):
                assert found["logit_diff"].values[row, column] == pytest.approx(
                    (logits[-1, bad] - logits[-1, good]).item(), abs=1e-4
                )
                probs = logits[-1].softmax(-1)
                np.testing.assert_allclose(found["answer_prob"].values[row, column], probs[[bad, good]], atol=1e-5)
                assert top["top_token"].values[row, column, 0] == tokenizer.decode([probs.argmax()])
                assert top["top_prob"].values[row, column] == pytest.approx(probs.topk(10).values.numpy(), abs=1e-5)
                assert top["entropy"].values[row, column] == pytest.approx(
                    -(probs * probs.log()).sum().item(), abs=1e-4
                )
            log_p, log_q = bare[1].log_softmax(-1), bare[0].log_softmax(-1)
            expected = (log_p.exp() * (log_p - log_q)).sum(-1)
            got = spread["kl"].values[row]
            np.testing.assert_allclose(got[: ids.shape[1]], expected, atol=1e-4)
            assert np.isnan(got[ids.shape[1] :]).all()

    def test_without_answers_the_target_is_tuneds_top_token_and_bases_likeliest_other(self, pair, tokenizer):
        both = traces(pair, tokenizer, answers=None)
        targets = target_ids(*both)
        for row in range(len(TEXTS)):
            tuned_top = both[1].last_logits[row].argmax()
            ranked = both[0].last_logits[row].argsort(descending=True).tolist()
            assert targets[row].tolist() == [tuned_top, next(i for i in ranked if i != tuned_top)]
        assert "logit_diff" not in logit_diff(*both)

    def test_prompt_and_response_apart(self, pair, tokenizer):
        responses = [" bad", " very good", " film", " great plot"]
        whole = kl(*traces(pair, tokenizer, continuations=responses))
        alone = kl(*traces(pair, tokenizer))
        np.testing.assert_allclose(whole["kl"], alone["kl"], atol=1e-5)
        assert whole["response_kl"].dims == ("prompt", "source", "draw", "step")
        assert np.isfinite(whole["response_kl"].values[:, 0, 0]).tolist() == [
            [True, False],
            [True, True],
            [True, False],
            [True, True],
        ]
        for row, (text, response) in enumerate(zip(TEXTS, responses, strict=True)):
            start = len(tokenizer(text)["input_ids"])
            ids = torch.tensor([tokenizer(text + response)["input_ids"]])
            with torch.no_grad():
                logits = [policy.model(ids).logits[0] for policy in pair]
            expected = kl_divergence(logits[1], logits[0])[start - 1 : -1]
            got = whole["response_kl"].values[row, 0, 0]
            np.testing.assert_allclose(got[np.isfinite(got)], expected, atol=1e-4)


class TestLens:
    def test_the_last_site_is_the_model_and_an_early_one_is_the_model_cut_short(self, pair, tokenizer):
        both = traces(pair, tokenizer)
        found, final = lens(*both), logit_diff(*both)
        np.testing.assert_allclose(found["lens_logit_diff"].isel(site=-1), final["logit_diff"], atol=1e-4)
        assert found["site"].values.tolist()[-1] == "L2.resid_post"
        assert len(lens_sites(pair[0])) == 4
        # the lens at L1.resid_pre is what the model would say if it had one block
        import copy

        bad, good = (tokenizer(a)["input_ids"][0] for a in ANSWERS)
        short = copy.deepcopy(pair[0].model)
        holder = short.transformer if hasattr(short, "transformer") else short.model
        name = "h" if hasattr(holder, "h") else "layers"
        setattr(holder, name, getattr(holder, name)[:1])
        short.config.num_hidden_layers = 1
        for row, text in enumerate(TEXTS):
            with torch.no_grad():
                logits = short(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1]
            expected = (logits[bad] - logits[good]).item()
            assert found["lens_logit_diff"].values[row, 0, 1] == pytest.approx(expected, abs=1e-4)


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
        write, readout = split(w[0], w[1], (r[0], r[1]))
        torch.testing.assert_close(write + readout, attribute(w[1], r[1]) - attribute(w[0], r[0]))
        write, readout = split(w[0], w[1], (r[0], r[0]))
        assert readout.abs().max() == 0 and write.abs().max() > 0
        write, readout = split(w[0], w[0], (r[0], r[1]))
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

    def test_writes_are_centred_where_the_norm_centres(self, tokenizer):
        for make, centred in ((tiny_gpt2, True), (tiny_llama, False)):
            policy = Policy.load(make(), tokenizer=tokenizer)
            trace = traces([policy, policy], tokenizer)[0]
            means = writes(trace, target_ids(trace, trace)).components.mean(-1).abs().max()
            assert (means < 1e-12) == centred


class TestAttention:
    @pytest.mark.parametrize("side", ["right", "left"])
    def test_against_a_plain_loop(self, pair, tokenizer, side):
        found = attention(*traces(pair, tokenizer, side=side))
        for row, text in enumerate(TEXTS):
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            patterns = []
            for policy in pair:
                policy.model.set_attn_implementation("eager")
                with torch.no_grad():
                    patterns.append(policy.model(ids, output_attentions=True).attentions)
            for layer in range(3):
                js = [
                    [
                        js_divergence(patterns[0][layer][0, h, q], patterns[1][layer][0, h, q]).item()
                        for q in range(ids.shape[1])
                    ]
                    for h in range(4)
                ]
                np.testing.assert_allclose(found["pattern_js"].values[row, layer], np.mean(js, axis=1), atol=1e-6)
                np.testing.assert_allclose(found["pattern_js_last"].values[row, layer], [j[-1] for j in js], atol=1e-6)

    @pytest.mark.parametrize("side", ["right", "left"])
    def test_examples_are_patterns_of_the_prompt(self, pair, tokenizer, side):
        both = traces(pair, tokenizer, side=side, continuations=[" bad"] * 4)
        found = pattern_examples(*both, [(2, 1), (0, 3)])["pattern"]
        for row, text in enumerate(TEXTS):
            count = len(tokenizer(text)["input_ids"])
            values = found.values[row]
            np.testing.assert_allclose(np.nansum(values, -1)[..., :count], 1, atol=1e-5)
            assert np.isnan(values[..., count:, :]).all() and np.isnan(values[..., :, count:]).all()
            start = int(both[0].batch.first[row])
            window = slice(start, start + count)
            np.testing.assert_array_equal(
                values[0, 0, :count, :count], both[0][Site("pattern", 2)][row, 1, window, window]
            )


class TestWeights:
    def test_against_whole_matrices(self, pair):
        found = weights(*pair)
        for layer in range(3):
            for name, factors in (("qk_change", qk_factors), ("ov_change", ov_factors)):
                (a, b), (c, d) = factors(pair[0].parts, layer), factors(pair[1].parts, layer)
                expected = (c @ d - a @ b).norm(dim=(1, 2)) / (a @ b).norm(dim=(1, 2))
                np.testing.assert_allclose(found[name].values[layer], expected, rtol=1e-9)
            vectors = [
                torch.cat([p.flatten() for p in policy.parts.mlp_weights(layer)]).detach().double() for policy in pair
            ]
            expected = (vectors[1] - vectors[0]).norm() / vectors[0].norm()
            assert found["mlp_change"].values[layer] == pytest.approx(expected.item())

    def test_circuits_are_those_of_the_model(self, make_model, tokenizer):
        """Scores x W_Q W_K^T y^T of a model without biases and at one position equal its own (rotary cancels there)."""
        policy = Policy.load(make_model(5), tokenizer=tokenizer)
        parts = policy.parts
        left, right = qk_factors(parts, 1)
        assert left.shape == (4, 32, 8) and right.shape == (4, 8, 32)
        v, o = ov_factors(parts, 1)
        x = torch.randn(32).double()
        attn = parts.inside(1, "attn")
        with torch.no_grad():
            double = attn.double()
            arguments = dict(attention_mask=None)
            if parts.pos_embed is None:
                cos = torch.ones(1, 1, 8).double()
                arguments["position_embeddings"] = (cos, torch.zeros_like(cos))
            zero, _ = double(torch.zeros(1, 1, 32).double(), **arguments)
            out, _ = double(x[None, None], **arguments)
        torch.testing.assert_close(torch.einsum("m,hmd,hdn->n", x, v, o), (out - zero)[0, 0])

    def test_a_small_change_keeps_its_digits(self):
        torch.manual_seed(0)
        a, b = torch.randn(1, 64, 8).double(), torch.randn(1, 8, 64).double()
        assert relative_change((a, b), (a, b)).item() == 0
        for size in (1e-3, 1e-9, 1e-12):
            assert relative_change((a, b), (a * (1 + size), b)).item() == pytest.approx(size, rel=1e-3)

    def test_different_shapes_are_refused(self, tokenizer):
        pair = [
            Policy.load(tiny_llama(), tokenizer=tokenizer),
            Policy.load(tiny_llama(intermediate_size=40), tokenizer=tokenizer),
        ]
        with pytest.raises(MeasureError, match="leave the measure weights out"):
            weights(*pair)


class TestCompletions:
    def test_kl_along_own_samples_and_common_random_numbers(self, pair, tokenizer):
        ids = Prompts(TEXTS).tokenize(tokenizer).prompt_ids
        found = completions(*pair, ids, max_new_tokens=6, batch_size=3, seed=4)
        again = completions(*pair, ids, max_new_tokens=6, batch_size=1, seed=4)
        assert found["completion"].values.tolist() == again["completion"].values.tolist()
        np.testing.assert_allclose(found["response_kl"], again["response_kl"], atol=1e-4)
        same = completions(pair[0], pair[0], ids, max_new_tokens=6, seed=4)["completion"]
        assert (same.sel(source="base").values == same.sel(source="tuned").values).all()
        for row, prompt in enumerate(ids):
            for source in (0, 1):
                text = found["completion"].values[row, source, 0]
                response = tokenizer(text)["input_ids"] if text else []
                if tokenizer.decode(response) != text or not response:
                    continue
                batch = make_batch([list(prompt)], [response])
                logits = [policy.trace(batch).logits[0] for policy in pair]
                expected = kl_divergence(logits[1], logits[0])[len(prompt) - 1]
                assert found["response_kl"].values[row, source, 0, 0] == pytest.approx(expected.item(), abs=1e-4)

    def test_rewards_are_of_prompt_and_response(self, pair, tokenizer):
        from tests.interp.test_models import classifier

        scorer = RewardModel.load(classifier(), tokenizer=tokenizer, label="POS")
        ids = Prompts(TEXTS).tokenize(tokenizer).prompt_ids
        found = completions(*pair, ids, reward=scorer, max_new_tokens=5)
        whole = [text + str(found["completion"].values[row, 1, 0]) for row, text in enumerate(TEXTS)]
        np.testing.assert_allclose(found["completion_reward"].values[:, 1, 0], scorer.score(whole), atol=1e-6)

    def test_a_prompt_that_fills_the_context_gets_no_response(self, tokenizer):
        policy = Policy.load(tiny_gpt2(n_positions=8), tokenizer=tokenizer)
        found = completions(policy, policy, [[1] * 8, [1] * 7], max_new_tokens=4, batch_size=1)
        assert found["completion"].values[0, 0, 0] == "" and np.isnan(found["response_kl"].values[0]).all()
        assert np.isfinite(found["response_kl"].values[1, 0, 0]).tolist() == [True, False, False, False]


def test_measures_by_name():
    assert check_measures(None) == MEASURES
    assert check_measures(["weights", "kl"]) == ("kl", "weights")
    assert check_measures("lens") == ("lens",)
    with pytest.raises(MeasureError, match="unknown measure 'logits'; choose among next_token, logit_diff"):
        check_measures(["logits"])
    with pytest.raises(MeasureError, match="no measure is named"):
        check_measures([])
