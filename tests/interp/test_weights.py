"""Changes of weights: circuits of heads, spectra of changes, what a head's OV circuit reads and writes."""

import copy

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch

import interp
from interp.errors import MeasureError
from interp.measures.ov import ov_circuits, read_and_written, scores, singular_directions
from interp.measures.spectra import DIRECTIONS, effective_rank, spectral_change, spectrum
from interp.measures.weights import oriented, ov_factors, qk_factors, relative_change, weights
from interp.models import Policy
from tests.conftest import tiny_gpt2, tiny_llama
from tests.interp.architectures import build
from tests.interp.comparisons import compare
from tests.interp.traced import ANSWERS, TEXTS


@pytest.fixture
def pair(make_model, tokenizer):
    return [Policy.load(make_model(seed), tokenizer=tokenizer) for seed in (1, 2)]


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

    @pytest.mark.parametrize("planted", ["ov_change", "encoder_ov_change", "cross_ov_change", "encoder_mlp_change"])
    def test_of_an_encoder_decoder_every_stack_is_covered(self, tokenizer, planted):
        model = build("T5ForConditionalGeneration", vocab=len(tokenizer))
        tuned = copy.deepcopy(model)
        base, other = (Policy.load(each, tokenizer=tokenizer) for each in (model, tuned))
        stack = {"encoder_": "encoder", "cross_": "cross"}.get(planted.partition("_")[0] + "_")
        changed = "o" if "ov" in planted else "mlp"
        with torch.no_grad():
            if changed == "o":
                width = other.parts.d_head
                other.parts.inside(1, "o", stack).weight[:, width : 2 * width] *= 1.5
            else:
                for weight in other.parts.mlp_weights(1, stack):
                    weight *= 1.5
        found = weights(base, other)
        names = [f"{prefix}{name}_change" for prefix in ("", "encoder_", "cross_") for name in ("qk", "ov", "mlp")]
        names.remove("cross_mlp_change")
        assert all(name in found for name in names) and "cross_mlp_change" not in found
        place = (1, 1) if changed == "o" else (1,)
        assert found[planted].values[place] == pytest.approx(0.5, rel=1e-5)
        found[planted].values[place] = 0
        assert all(float(found[name].max()) == 0 for name in names)

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


def orthogonal(size: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(seed)).double())[0]


class TestSpectra:
    @pytest.mark.parametrize("shape", [(12, 30), (30, 12), (9, 9), (9000, 6)])
    def test_singular_values_and_vectors_are_scipys(self, shape):
        matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).double()
        found = spectrum(matrix)
        u, values, _ = scipy.linalg.svd(matrix.numpy(), full_matrices=False)
        np.testing.assert_allclose(found.values, values, rtol=1e-10)
        count = min(DIRECTIONS, *shape)
        assert found.left.shape == (shape[0], count)
        np.testing.assert_allclose(np.abs(np.diag(found.left.numpy().T @ u[:, :count])), 1, rtol=1e-9)

    def test_effective_rank_by_hand_and_against_scipy(self):
        # p = (1/2, 1/4, 1/4): entropy 3/2 log 2
        assert effective_rank(torch.tensor([2.0, 1.0, 1.0])) == pytest.approx(2**1.5)
        assert effective_rank(torch.zeros(3)) == 0
        values = np.random.default_rng(0).gamma(1.0, size=20)
        expected = np.exp(scipy.stats.entropy(values / values.sum()))
        assert effective_rank(torch.tensor(values)) == pytest.approx(expected)

    def test_of_rank_one_and_of_a_multiple_of_an_orthogonal_matrix(self):
        base = torch.randn(20, 16, generator=torch.Generator().manual_seed(1)).double()
        u, v = torch.randn(20).double(), torch.randn(16).double()
        found = spectral_change(base, base + torch.outer(u, v))
        assert found.effective_rank == pytest.approx(1, abs=1e-9)
        assert found.sizes[0].item() == pytest.approx(float(u.norm() * v.norm() / base.norm()))
        assert found.sizes[1:].tolist() == [0] * 7 and found.overlaps[1:].isnan().all()
        square = torch.randn(16, 16).double()
        assert spectral_change(square, square + 0.1 * orthogonal(16)).effective_rank == pytest.approx(16)

    def test_nothing_changed(self):
        base = torch.randn(5, 9)
        found = spectral_change(base, base)
        assert found.effective_rank == 0 and found.sizes[:5].tolist() == [0] * 5
        assert found.sizes[5:].isnan().all() and found.overlaps.isnan().all()

    @pytest.mark.parametrize("shape", [(40, 24), (24, 40)])
    def test_overlap_says_where_a_change_writes(self, shape):
        base = torch.randn(*shape, generator=torch.Generator().manual_seed(2)).double()
        u, _, vh = np.linalg.svd(base.numpy())
        for column, expected in ((3, 1), (DIRECTIONS + 2, 0)):
            change = torch.outer(torch.tensor(u[:, column]), torch.randn(shape[1]).double())
            assert spectral_change(base, base + change).overlaps[0].item() == pytest.approx(expected, abs=1e-9)
        mixed = torch.outer(torch.tensor(u[:, 0] * 0.6 + u[:, 15] * 0.8), torch.tensor(vh[0]))
        assert spectral_change(base, base + mixed).overlaps[0].item() == pytest.approx(0.36)

    def test_half_precision_is_read_as_float32(self):
        torch.manual_seed(0)
        base = torch.randn(16, 16).bfloat16()
        tuned = base.clone()
        tuned[:, 3] += 1
        linear = torch.nn.Linear(16, 16)
        found = spectral_change(oriented(linear, base), oriented(linear, tuned))
        assert found.effective_rank == pytest.approx(1, abs=1e-6)


class TestPlantedMatrix:
    def test_a_rank_one_update_is_found_where_it_was_planted(self, make_model, tokenizer):
        model = make_model(4)
        tuned = copy.deepcopy(model)
        name = [name for name, _ in model.named_parameters() if ".1.mlp." in name and name.endswith("weight")][0]
        with torch.no_grad():
            weight = tuned.get_parameter(name)
            weight += torch.outer(torch.randn(weight.shape[0]), torch.randn(weight.shape[1]))
        cmp = compare(model, tuned, interp.Prompts(TEXTS, answers=ANSWERS), tokenizer=tokenizer, measures="weights")
        at = cmp.dataset.isel(param=cmp["param"].values.tolist().index(name))
        assert float(at["effective_rank"]) == pytest.approx(1, abs=1e-3)
        moved = cmp["param_change"].values > 0
        assert moved.sum() == 1
        matrices = np.isfinite(cmp["effective_rank"].values)
        assert (cmp["effective_rank"].values[matrices & ~moved] == 0).all()
        assert float(at["full_rank"]) == min(weight.shape)
        row = cmp.summary().query("finding.str.contains('effective rank')")
        assert len(row) == 1 and row["finding"].item().startswith(f"{name}: effective rank of its change (of ")

    def test_vectors_have_no_rank(self, pair):
        found = weights(*pair)
        vectors = [p.ndim == 1 for _, p in pair[0].model.named_parameters()]
        assert np.isnan(found["effective_rank"].values).tolist() == vectors

    def test_the_left_side_is_the_output_of_a_matrix(self):
        """GPT-2 stores its projections input first; a change of what they write must look alike in both layouts."""
        gpt2, llama = tiny_gpt2(), tiny_llama()
        column = gpt2.transformer.h[0].mlp.c_proj
        assert oriented(column, column.weight).shape == (32, 128)
        linear = llama.model.layers[0].mlp.down_proj
        assert oriented(linear, linear.weight).shape == (32, 48)
        assert oriented(gpt2.transformer.wte, gpt2.transformer.wte.weight).shape[0] == 32


class TestOV:
    def test_against_the_whole_product(self):
        torch.manual_seed(0)
        value, output = torch.randn(24, 6).double(), torch.randn(6, 24).double()
        found = singular_directions(value, output)
        u, values, vh = scipy.linalg.svd((value @ output).numpy())
        np.testing.assert_allclose(found.values, values[:3], rtol=1e-10)
        for mine, theirs in ((found.reads, u[:, :3]), (found.writes, vh[:3].T)):
            np.testing.assert_allclose(np.abs(np.diag(mine.numpy().T @ theirs)), 1, rtol=1e-9)
        # the pair of vectors has one sign: u' (V O) v is the singular value, not its negative
        whole = found.reads.T @ value @ output @ found.writes
        np.testing.assert_allclose(whole, np.diag(values[:3]), atol=1e-9)

    def test_a_scaled_head_scales_its_singular_values(self, make_model, tokenizer):
        model = make_model(5)
        tuned = copy.deepcopy(model)
        policies = [Policy.load(each, tokenizer=tokenizer) for each in (model, tuned)]
        with torch.no_grad():
            policies[1].parts.W_V(1)[0] *= 1.5
        found = ov_circuits(*policies, [(1, 0), (1, 3), (0, 0)])["ov_singular_value"]
        ratio = found.sel(model="tuned").values / found.sel(model="base").values
        np.testing.assert_allclose(ratio[0], 1.5, rtol=1e-6)
        np.testing.assert_array_equal(ratio[1:], 1)

    def test_tokens_are_those_of_a_head_that_copies(self, tokenizer):
        """A head whose OV circuit is e_a u_b^T reads token a and writes token b."""
        model = tiny_llama(6)
        policy = Policy.load(model, tokenizer=tokenizer)
        a, b = (tokenizer(answer)["input_ids"][0] for answer in ANSWERS)
        with torch.no_grad():
            model.model.norm.weight.fill_(1)
            model.model.layers[1].input_layernorm.weight.fill_(1)
            for matrix in (model.model.embed_tokens.weight, model.lm_head.weight):
                matrix /= matrix.norm(dim=1, keepdim=True)
            policy.parts.W_V(1)[0].zero_()[:, 0] = model.model.embed_tokens.weight[a]
            policy.parts.W_O(1)[1].zero_()[0] = model.lm_head.weight[b]
        found = ov_circuits(policy, policy, [(1, 1)]).isel(changed_head=0, ov_direction=0)  # heads 0 and 1 share W_V
        assert found["ov_singular_value"].values.tolist() == pytest.approx([1, 1])
        for model_name in ("base", "tuned"):
            assert found["ov_reads"].sel(model=model_name).values[0] == ANSWERS[0]
            assert found["ov_writes"].sel(model=model_name).values[0] == ANSWERS[1]

    @pytest.mark.parametrize("name", ["GPT2LMHeadModel", "Gemma2ForCausalLM"])
    def test_the_gains_of_norms_between_count(self, tokenizer, name):
        """Scores by hand: embedding . gain . left vector, right vector . gains . unembedding, centred if need be."""
        parts = Policy.load(build(name, vocab_size=len(tokenizer)), tokenizer=tokenizer).parts
        values, outputs = ov_factors(parts, 1)
        found = singular_directions(values[2], outputs[2])
        embedding, unembedding = parts.embed.weight.double(), parts.readout.weight.double()
        if name.startswith("GPT2"):
            block = parts.model.transformer.h[1]
            embedding = (embedding - embedding.mean(1, keepdim=True)) * block.ln_1.weight
            writes = (found.writes - found.writes.mean(0)) * parts.final_norm.weight[:, None]
        else:
            block = parts.model.model.layers[1]
            embedding = embedding * (1 + block.input_layernorm.weight)
            after, last = (1 + norm.weight[:, None] for norm in (block.post_attention_layernorm, parts.final_norm))
            writes = found.writes * after * last
        logits, read = (unembedding @ writes).detach().numpy(), (embedding @ found.reads).detach().numpy()
        sizes, ids = read_and_written(parts, 1, 2)
        np.testing.assert_allclose(sizes, found.values)
        for column in range(3):
            sign = np.sign(logits[np.abs(logits[:, column]).argmax(), column])
            for side, by_token in enumerate((read, logits)):
                expected = np.argsort(-sign * by_token[:, column])[:10]
                assert ids[side, column].tolist() == expected.tolist()

    @pytest.mark.parametrize("name", ["OPTForCausalLM, as OPT-350m", "T5ForConditionalGeneration", "BloomForCausalLM"])
    def test_other_layouts(self, tokenizer, name):
        parts = Policy.load(build(name, vocab_size=len(tokenizer)), tokenizer=tokenizer, check=False).parts
        sizes, ids = read_and_written(parts, 1, 2)
        assert sizes.shape == (3,) and ids.shape == (2, 3, 10)
        assert (sizes.diff() <= 0).all() and sizes.min() > 0

    def test_scores_are_made_in_pieces(self, monkeypatch):
        monkeypatch.setattr("interp.measures.ov._ROWS", 7)
        vocabulary, directions = torch.randn(23, 5), torch.randn(5, 2).double()
        torch.testing.assert_close(scores(vocabulary, directions), vocabulary @ directions.float())
