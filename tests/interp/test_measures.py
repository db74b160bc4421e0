"""Each measure on a case worked out by hand, at its bound, and against another way to compute it."""

import math

import numpy as np
import pytest
import torch

import interp
from interp.divergences import entropy, entropy_of_log_probs, js_divergence, kl_divergence
from interp.errors import MeasureError
from interp.hooks import Site
from interp.measures import DEFAULT_MEASURES, MEASURES, check_measures
from interp.measures.arrays import TokenTexts, mean_over, prompt_columns
from interp.measures.attention import attention, pattern_examples
from interp.measures.completions import completions
from interp.measures.kl import kl
from interp.measures.lens import lens, lens_sites
from interp.measures.lens_base_head import lens_base_head
from interp.measures.lens_positions import lens_positions
from interp.measures.logit_diff import logit_diff, target_ids
from interp.measures.next_token import movers, next_token
from interp.measures.residual import cosine, residual
from interp.measures.token_classes import TOKEN_CLASSES, is_punctuation, shares, token_classes
from interp.models import Policy, RewardModel
from interp.prompts import Prompts, make_batch
from interp.sampling import Sampling
from tests.conftest import tiny_gpt2
from tests.interp.architectures import build
from tests.interp.comparisons import compare
from tests.interp.traced import ANSWERS, JOINED, TEXTS, traces


@pytest.fixture
def pair(make_model, tokenizer):
    return [Policy.load(make_model(seed), tokenizer=tokenizer) for seed in (1, 2)]


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
        from scipy.stats import entropy as scipy_entropy

        rng = np.random.default_rng(0)
        a, b = torch.tensor(rng.normal(size=(2, 20, 30)) * 3)
        p, q = a.softmax(-1), b.softmax(-1)
        np.testing.assert_allclose(kl_divergence(a, b), scipy_entropy(p, q, axis=-1), rtol=1e-10)
        np.testing.assert_allclose(js_divergence(p, q), jensenshannon(p, q, axis=-1) ** 2, rtol=1e-10)
        for found in (entropy(p), entropy_of_log_probs(p.log())):
            np.testing.assert_allclose(found, scipy_entropy(p, axis=-1), rtol=1e-10)

    def test_entropy_at_its_bounds(self):
        assert entropy(torch.full((8,), 1 / 8)).item() == pytest.approx(math.log(8))
        sure = torch.tensor([1.0, 0.0, 0.0])
        assert entropy(sure).item() == entropy_of_log_probs(sure.log()).item() == 0

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

    def test_movers_are_the_sorted_changes_of_probability(self, pair, tokenizer):
        both = traces(pair, tokenizer)
        found = next_token(*both)
        p = [trace.last_logits.double().softmax(-1) for trace in both]
        for row, change in enumerate((p[1] - p[0]).numpy()):
            order = np.argsort(change)
            for name, ids in (("up", order[::-1][:10]), ("down", order[:10])):
                at = dict(prompt=row, direction=["up", "down"].index(name))
                np.testing.assert_allclose(found["mover_change"].isel(at), change[ids], atol=1e-12)
                assert found["mover_token"].isel(at).values.tolist() == [tokenizer.decode([i]) for i in ids]
        same = next_token(both[0], both[0])
        assert (same["mover_change"] == 0).all() and (same["mover_token"] == "").all()

    def test_a_mover_on_two_tokens_by_hand(self):
        change, ids = movers(torch.tensor([[0.75, 0.25, 0.0]]), torch.tensor([[0.25, 0.75, 0.0]]), 2)
        # one token rose and one fell; the second of each direction did not move that way
        assert change.tolist() == [[[0.5, 0.0], [-0.5, 0.0]]]
        assert ids[0, 0, 0] == 1 and ids[0, 1, 0] == 0

    def test_entropy_by_position_and_response(self, pair, tokenizer):
        found = kl(*traces(pair, tokenizer, continuations=[" bad film"] * 4))
        for row, text in enumerate(TEXTS):
            start = len(tokenizer(text)["input_ids"])
            ids = torch.tensor([tokenizer(text + " bad film")["input_ids"]])
            for model, policy in enumerate(pair):
                with torch.no_grad():
                    probs = policy.model(ids).logits[0].double().softmax(-1)
                expected = -(probs * probs.log()).sum(-1).numpy()
                got = found["position_entropy"].values[row, model]
                np.testing.assert_allclose(got[:start], expected[:start], atol=1e-4)
                assert np.isnan(got[start:]).all()
                steps = found["response_entropy"].values[row, 0, 0, model]
                np.testing.assert_allclose(steps, expected[start - 1 : -1], atol=1e-4)

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


class TestLensOfAnotherHead:
    def test_tuneds_residual_through_bases_head_is_a_transplant(self, pair, tokenizer):
        """The last site read by base's head is what tuned says when base's norm and unembedding are put into it."""
        both = traces(pair, tokenizer)
        found = lens_base_head(*both)
        for site in lens_sites(pair[0]):
            at = dict(site=str(site))
            through = pair[0].parts.logits(both[1].batch.at_last_prompt(both[1][site]))
            own = pair[0].parts.logits(both[0].batch.at_last_prompt(both[0][site]))
            np.testing.assert_allclose(
                found["lens_base_head_kl"].sel(at), kl_divergence(through, own), atol=1e-5, rtol=1e-4
            )
            targets = target_ids(*both)
            difference = through.gather(1, targets)[:, 0] - through.gather(1, targets)[:, 1]
            np.testing.assert_allclose(found["lens_base_head_logit_diff"].sel(at), difference, atol=1e-4)

    def test_a_changed_head_alone_leaves_it_at_zero(self, tokenizer):
        base, tuned = tiny_gpt2(1), tiny_gpt2(1)
        with torch.no_grad():
            tuned.transformer.ln_f.weight *= 2
        both = traces([Policy.load(model, tokenizer=tokenizer) for model in (base, tuned)], tokenizer)
        found, own = lens_base_head(*both), lens(*both)
        assert abs(found["lens_base_head_kl"]).max() == 0 and own["lens_kl"].min() > 0
        np.testing.assert_array_equal(
            found["lens_base_head_logit_diff"], own["lens_logit_diff"].sel(model="base", drop=True)
        )

    @pytest.mark.parametrize("side", ["right", "left"])
    def test_at_every_position(self, pair, tokenizer, side):
        both = traces(pair, tokenizer, side=side, continuations=[" bad"] * 4)
        found, last = lens_positions(*both), lens(*both)
        whole = kl(*both)
        for row, text in enumerate(TEXTS):
            count = len(tokenizer(text)["input_ids"])
            values = found["lens_pos_kl"].values[row]
            assert (
                np.isnan(values[:, count:]).all() and (found["lens_pos_top_token"].values[row, ..., count:] == "").all()
            )
            np.testing.assert_allclose(values[:, count - 1], last["lens_kl"].values[row], atol=1e-5, rtol=1e-4)
            np.testing.assert_allclose(values[-1, :count], whole["kl"].values[row, :count], atol=1e-4, rtol=1e-4)
            tops = found["lens_pos_top_token"].values[row, :, :, count - 1]
            assert (tops == last["lens_top_token"].values[row]).all()


class TestResidual:
    def test_cosine_by_hand_and_at_its_bounds(self):
        a, b = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]]), torch.tensor([[4.0, 3.0], [0.0, 2.0], [0.0, 0.0]])

        def of(x, y):
            return cosine((x * y).sum(-1).double(), (x * x).sum(-1).double(), (y * y).sum(-1).double()).tolist()

        assert of(a, b) == pytest.approx([24 / 25, 0, 1])
        assert of(a, 0 * b) == [0, 0, 1]
        noise = torch.randn(200, 33)
        assert of(noise, noise) == [1.0] * 200
        assert min(of(noise, -noise)) == max(of(noise, -noise)) == -1

    @pytest.mark.parametrize("side", ["right", "left"])
    def test_against_a_plain_loop(self, pair, tokenizer, side):
        found = residual(*traces(pair, tokenizer, side=side, continuations=[" bad film"] * 4))
        for row, text in enumerate(TEXTS):
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            one = [policy.trace(make_batch(ids.tolist()), lens_sites(policy)) for policy in pair]
            for column, site in enumerate(lens_sites(pair[0])):
                vectors = [trace[site][0].double() for trace in one]
                for model, rows in enumerate(vectors):
                    norms = [float(r.norm()) for r in rows]
                    assert found["resid_norm"].values[row, model, column] == pytest.approx(np.mean(norms), rel=1e-5)
                    assert found["resid_norm_last"].values[row, model, column] == pytest.approx(norms[-1], rel=1e-5)
                turned = [float(torch.cosine_similarity(b, t, dim=0)) for b, t in zip(*vectors, strict=True)]
                assert found["resid_cosine"].values[row, column] == pytest.approx(np.mean(turned), abs=1e-5)
                assert found["resid_cosine_last"].values[row, column] == pytest.approx(turned[-1], abs=1e-5)

    def test_a_model_with_itself_is_not_turned(self, pair, tokenizer):
        trace = traces(pair, tokenizer)[0]
        found = residual(trace, trace)
        assert (found["resid_cosine"] == 1).all() and (found["resid_cosine_last"] == 1).all()

    def test_what_lies_outside_the_prompt_counts_nothing(self):
        batch = make_batch([[1, 2, 3], [4]], [[5], [6, 7]], padding_side="left")
        inside = prompt_columns(batch)
        assert inside.tolist() == [[True, True, True, False], [False, True, False, False]]
        values = torch.where(inside, torch.tensor([[1.0, 2, 6, 0], [0, 5, 0, 0]]), torch.nan)
        assert mean_over(inside, values).tolist() == [3, 5]
        assert mean_over(inside, values[:, None].expand(2, 7, 4)).tolist() == [[3] * 7, [5] * 7]


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

    def test_entropy_is_that_of_each_query(self, pair, tokenizer):
        both = traces(pair, tokenizer, side="left")
        found = attention(*both)
        for row, text in enumerate(TEXTS):
            ids = tokenizer(text)["input_ids"]
            for model, policy in enumerate(pair):
                alone = policy.trace(make_batch([ids]), [Site("pattern", 1)])[Site("pattern", 1)][0].double()
                by_query = -torch.special.xlogy(alone, alone).sum(-1)
                got = found["pattern_entropy"].values[row, model, 1]
                np.testing.assert_allclose(got, by_query.mean(-1), atol=1e-5)
        alone = traces(pair, tokenizer, texts=["fun"])  # one token attends to itself alone
        assert len(alone[0].batch.input_ids[0]) == len(tokenizer("fun")["input_ids"])
        first = attention(*traces(pair, tokenizer, texts=[" film"]))
        assert (first["pattern_entropy"] == 0).all() and (first["pattern_js"] == 0).all()

    @pytest.mark.parametrize("side", ["right", "left"])
    def test_classes_of_tokens_against_a_plain_loop(self, pair, tokenizer, side):
        texts = ["this bad movie, was good. really", " good: the plot", "fun", "a bad film was not bad"]
        both = traces(pair, tokenizer, side=side, texts=texts, continuations=[" bad!"] * 4)
        found = attention(*both)
        for row, text in enumerate(texts):
            ids = tokenizer(text)["input_ids"]
            named = [tokenizer(answer)["input_ids"][0] for answer in ANSWERS]

            def class_of(index, ids=ids, named=named):
                if index == 0:
                    return "bos"
                if ids[index] in named and index < len(ids) - 1:
                    return "antecedent"
                return "content" if any(c.isalnum() for c in tokenizer.decode([ids[index]])) else "punctuation"

            for model, policy in enumerate(pair):
                pattern = policy.trace(make_batch([ids]), [Site("pattern", 2)])[Site("pattern", 2)][0].double()
                last = np.zeros((4, 4))
                for head in range(4):
                    for key in range(len(ids)):
                        column = TOKEN_CLASSES.index(class_of(key))
                        last[head, column] += pattern[head, -1, key]
                np.testing.assert_allclose(found["attention_to"].values[row, model, 2], last, atol=1e-5)
        np.testing.assert_allclose(found["attention_to"].sum("token_class"), 1, atol=1e-12)

    def test_of_an_encoder_and_of_the_attention_to_it(self, tokenizer):
        size = len(tokenizer)
        models = [build("T5ForConditionalGeneration", seed=seed, vocab_size=size) for seed in (1, 2)]
        cmp = compare(*models, interp.Prompts(TEXTS), tokenizer=tokenizer, measures="attention")
        assert cmp["encoder_pattern_js"].dims == ("prompt", "encoder_layer", "head")
        assert cmp["encoder_pattern_js"].sizes["encoder_layer"] == 3 and cmp["cross_pattern_js"].sizes["layer"] == 2
        assert "encoder_pattern_js_last" not in cmp
        for row, text in enumerate(TEXTS):
            read = dict(
                input_ids=torch.tensor([tokenizer(text)["input_ids"]]), decoder_input_ids=torch.zeros(1, 1).long()
            )
            found = []
            for model in models:
                model.set_attn_implementation("eager")
                with torch.no_grad():
                    found.append(model(**read, output_attentions=True))
            for name, kind in (("encoder_", "encoder_attentions"), ("cross_", "cross_attentions")):
                for layer, (b, t) in enumerate(zip(*(getattr(each, kind) for each in found), strict=True)):
                    expected = js_divergence(b, t)[0]
                    got = cmp[f"{name}pattern_js"].values[row, layer]
                    np.testing.assert_allclose(got, expected.mean(-1), atol=1e-6)
                    spread = -torch.special.xlogy(t.double(), t.double()).sum(-1)[0].mean(-1)
                    got = cmp[f"{name}pattern_entropy"].values[row, 1, layer]
                    np.testing.assert_allclose(got, spread, atol=1e-5)
            np.testing.assert_allclose(cmp["cross_pattern_js_last"].values[row], cmp["cross_pattern_js"].values[row])
        assert cmp.summary()["finding"].str.contains("of the encoder: JS").sum() == 3

    def test_classes_by_hand(self, tokenizer):
        ids = tokenizer(" bad film, bad good")["input_ids"]
        answers = torch.tensor([[tokenizer(answer)["input_ids"][0] for answer in ANSWERS]])
        classes = token_classes(make_batch([ids], [ids]), answers, TokenTexts(tokenizer))[0]
        names = [TOKEN_CLASSES[int(row.argmax())] for row in classes]
        # " bad" again is an antecedent, the last prompt token is none, nor is what lies behind it
        assert names[:5] == ["bos", "content", "punctuation", "antecedent", "content"]
        assert set(names[5:]) == {"content", "punctuation"} and (classes.sum(-1) == 1).all()
        assert [is_punctuation(text) for text in (",", " ...", "\n", " a", "3", "é", "\ufffd")] == [
            True, True, True, False, False, False, True,
        ]  # fmt: skip
        half = shares(torch.tensor([[[0.25, 0.25, 0.0, 0.0, 0.0]]]), classes[None, :5])
        assert half.tolist() == [[[0.5, 0.0, 0.5, 0.0]]], "shares of a pattern in half precision still sum to 1"

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


class TestCompletions:
    def test_kl_along_own_samples_and_common_random_numbers(self, pair, tokenizer):
        ids = Prompts(TEXTS).tokenize(tokenizer).prompt_ids
        found = completions(*pair, ids, sampling=Sampling(max_new_tokens=6), batch_size=3, seed=4)
        again = completions(*pair, ids, sampling=Sampling(max_new_tokens=6), batch_size=1, seed=4)
        assert found["completion"].values.tolist() == again["completion"].values.tolist()
        np.testing.assert_allclose(found["response_kl"], again["response_kl"], atol=1e-4)
        same = completions(pair[0], pair[0], ids, sampling=Sampling(max_new_tokens=6), seed=4)["completion"]
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

    def test_more_draws_begin_with_the_same_one(self, pair, tokenizer):
        ids = Prompts(TEXTS).tokenize(tokenizer).prompt_ids
        one = completions(*pair, ids, sampling=Sampling(max_new_tokens=5), batch_size=3, seed=4)
        three = completions(*pair, ids, sampling=Sampling(3, 5), batch_size=3, seed=4)
        assert three.sizes["draw"] == 3
        assert (three["completion"].values[:, :, :1] == one["completion"].values).all()
        np.testing.assert_allclose(three["response_kl"].isel(draw=[0]), one["response_kl"], atol=1e-5)
        assert len({str(text) for text in three["completion"].values[0, 0]}) > 1

    def test_rewards_are_of_prompt_and_response(self, pair, tokenizer):
        from tests.interp.test_models import classifier

        scorer = RewardModel.load(classifier(), tokenizer=tokenizer, label="POS")
        ids = Prompts(TEXTS).tokenize(tokenizer).prompt_ids
        found = completions(*pair, ids, reward=scorer, sampling=Sampling(max_new_tokens=5))
        whole = [text + str(found["completion"].values[row, 1, 0]) for row, text in enumerate(TEXTS)]
        np.testing.assert_allclose(found["completion_reward"].values[:, 1, 0], scorer.score(whole), atol=1e-6)

    def test_a_long_prompt_shortens_no_other_prompts_response(self, tokenizer):
        pair = [Policy.load(tiny_gpt2(seed), tokenizer=tokenizer) for seed in (0, 1)]
        ids = [[5, 9, 2], [7] * 62, [8, 1]]  # of a context of 64
        together = completions(*pair, ids, sampling=Sampling(max_new_tokens=6), batch_size=3)
        alone = completions(*pair, ids, sampling=Sampling(max_new_tokens=6), batch_size=1)
        assert together["completion"].values.tolist() == alone["completion"].values.tolist()
        steps = np.isfinite(together["response_kl"].sel(source="base")).sum("step").values.ravel()
        assert steps[1] <= 2 < max(steps[0], steps[2])

    def test_a_prompt_that_fills_the_context_gets_no_response(self, tokenizer):
        policy = Policy.load(tiny_gpt2(n_positions=8), tokenizer=tokenizer)
        found = completions(policy, policy, [[1] * 8, [1] * 7], sampling=Sampling(max_new_tokens=4), batch_size=1)
        assert found["completion"].values[0, 0, 0] == "" and np.isnan(found["response_kl"].values[0]).all()
        assert np.isfinite(found["response_kl"].values[1, 0, 0]).tolist() == [True, False, False, False]


def test_measures_by_name():
    assert check_measures(None) == DEFAULT_MEASURES
    rewarded = check_measures(None, with_reward=True)
    assert rewarded == (*DEFAULT_MEASURES, "completions", "implicit_reward", "token_join")
    every = check_measures("all", with_reward=True, with_checkpoints=True)
    assert every == MEASURES and check_measures(["kl", "all"]) == MEASURES[: -len(JOINED)]
    assert set(DEFAULT_MEASURES) < set(MEASURES)
    assert check_measures(["weights", "kl"]) == ("kl", "weights")
    assert check_measures("lens") == ("lens",)
    with pytest.raises(MeasureError, match="unknown measure 'logits'; choose among logit_diff, next_token"):
        check_measures(["logits"])
    with pytest.raises(MeasureError, match="no measure is named"):
        check_measures([])
