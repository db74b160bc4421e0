"""Captured activations against the bare transformers model."""

import copy

import pytest
import torch

from interp.errors import FidelityError, LoadError, MeasureError
from interp.hooks import Site, capture
from interp.models import Policy, RewardModel, check_fidelity
from interp.prompts import make_batch
from tests.conftest import save, tiny_gpt2, tiny_llama, word_tokenizer

IDS = [[5, 9, 2, 7, 11, 3], [8, 1, 4], [6]]


def all_sites(policy):
    names = ("resid_pre", "resid_mid", "resid_post", "attn_out", "pattern", "z", "mlp_post", "mlp_out")
    layers = range(policy.parts.n_layers)
    return [
        *policy.residual_sites()[: 1 + (policy.parts.pos_embed is not None)],
        *(Site(n, i) for i in layers for n in names),
    ]


@pytest.fixture
def policy(make_model, tokenizer):
    return Policy.load(make_model(), tokenizer=tokenizer)


@pytest.mark.parametrize("side", ["right", "left"])
def test_captured_equals_the_bare_model(policy, side):
    batch = make_batch(IDS, padding_side=side)
    trace = policy.trace(batch, all_sites(policy))
    policy.model.set_attn_implementation("eager")
    with torch.no_grad():
        bare = policy.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask.long(), position_ids=batch.position_ids,
            output_hidden_states=True, output_attentions=True, use_cache=False,
        )  # fmt: skip
    real, layers = batch.attention_mask, policy.parts.n_layers
    limit = 1e-6 * float(bare.logits.abs().max())
    assert (trace.logits - bare.logits)[real].abs().max() <= limit
    for layer in range(layers):
        assert torch.equal(trace[Site("resid_pre", layer)][real], bare.hidden_states[layer][real])
        assert torch.equal(trace[Site("pattern", layer)], bare.attentions[layer])
    final = policy.parts.final_norm(trace[Site("resid_post", layers - 1)])
    torch.testing.assert_close(final[real], bare.hidden_states[layers][real])


def test_residual_terms_and_heads_add_up(policy):
    batch = make_batch(IDS)
    trace = policy.trace(batch, all_sites(policy))
    real, parts = batch.attention_mask, policy.parts
    running = sum(
        trace[site].expand_as(trace[Site("resid_pre", 0)]) for site in policy.residual_sites() if site.layer is None
    )
    for layer in range(parts.n_layers):
        torch.testing.assert_close(running[real], trace[Site("resid_pre", layer)][real], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            (running + trace[Site("attn_out", layer)])[real],
            trace[Site("resid_mid", layer)][real],
            atol=1e-5,
            rtol=1e-5,
        )
        running = running + trace[Site("attn_out", layer)] + trace[Site("mlp_out", layer)]
        torch.testing.assert_close(running[real], trace[Site("resid_post", layer)][real], atol=1e-5, rtol=1e-5)
        neurons = parts.inside(layer, "mlp_down")(trace[Site("mlp_post", layer)])
        torch.testing.assert_close(neurons[real], trace[Site("mlp_out", layer)][real])
    assert set(check_fidelity(policy.model)) == {"logits", "padding", "residual", "heads", "attribution"}


def test_z_and_values_are_those_of_the_attention_pattern(policy):
    """z = pattern @ v, with v of the key-value head that the query head shares."""
    batch = make_batch([IDS[0]])
    parts = policy.parts
    trace = policy.trace(batch, all_sites(policy))
    for layer in range(parts.n_layers):
        normed = parts.inside(layer, "attn_norm")(trace[Site("resid_pre", layer)])[0]
        for head in range(parts.n_heads):
            kv = head // (parts.n_heads // parts.n_kv_heads)
            v = normed @ parts.W_V(layer)[kv]
            bias = getattr(parts.inside(layer, "v"), "bias", None)
            if bias is not None:
                v = v + bias[2 * parts.d_model :].view(parts.n_heads, parts.d_head)[head]
            z = trace[Site("pattern", layer)][0, head] @ v
            torch.testing.assert_close(z, trace[Site("z", layer)][0, :, head], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_padding_and_batch_size_change_no_logit(policy, kernel):
    policy.model.set_attn_implementation(kernel)
    alone = [policy.trace(make_batch([ids])).logits[0] for ids in IDS]
    limit = 1e-5 * max(1.0, *(float(a.abs().max()) for a in alone))
    for side in ("right", "left"):
        batch = make_batch(IDS, padding_side=side)
        logits = policy.trace(batch).logits
        for row, expected in enumerate(alone):
            assert (logits[row][batch.attention_mask[row]] - expected).abs().max() <= limit


def test_the_model_is_given_back_as_it_was_found(make_model, tokenizer):
    model = make_model().train()
    model.requires_grad_(True)
    before = copy.deepcopy(model.state_dict())
    policy = Policy.load(model, tokenizer=tokenizer)
    policy.trace(make_batch(IDS), all_sites(policy))
    assert model.training and all(module.training for module in model.modules())
    assert model.config._attn_implementation == "sdpa"
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert hooks(model) == 0


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_no_hook_outlives_an_error(policy):
    with pytest.raises(RuntimeError, match="in the middle"), capture(policy.parts, all_sites(policy)):
        assert hooks(policy.model) > 0
        raise RuntimeError("in the middle")
    assert hooks(policy.model) == 0
    with pytest.raises(IndexError):
        policy.trace(make_batch([[10**6]]), all_sites(policy))
    assert hooks(policy.model) == 0
    assert policy.model.config._attn_implementation == "sdpa"
    with pytest.raises(MeasureError, match="layers 0 to 2"), capture(policy.parts, [Site("z", 0), Site("z", 3)]):
        pass
    assert hooks(policy.model) == 0


@pytest.mark.parametrize("wrong", [("z", None), ("embed", 0), ("nothing", 1)])
def test_unknown_sites(wrong):
    with pytest.raises(MeasureError, match="no site"):
        Site(*wrong)


def test_a_folder_loads_as_saved(tmp_path, make_model, tokenizer):
    model = make_model()
    policy = Policy.load(save(model, tmp_path / "m", tokenizer))
    batch = make_batch(IDS)
    expected = Policy.load(model, tokenizer=tokenizer).trace(batch).logits
    assert torch.equal(policy.trace(batch).logits, expected)
    assert policy.description["sha256"].keys() == {"config.json", "model.safetensors"}
    assert Policy.load(policy) is policy


def test_a_broken_module_is_caught_at_load(tokenizer):
    model = tiny_gpt2()
    with torch.no_grad():
        model.transformer.h[1].attn.c_proj.weight[0, 0] = float("nan")
    with pytest.raises(FidelityError, match="NaN"):
        Policy.load(model, tokenizer=tokenizer)


def test_a_wrapped_sublayer_is_caught_at_load(tokenizer):
    """A hook of the user's own that changes what attention writes after we read it must not go unseen."""
    model = tiny_llama()
    model.model.layers[1].register_forward_hook(lambda module, inputs, output: output * 1.5)
    with pytest.raises(FidelityError, match="residual"):
        Policy.load(model, tokenizer=tokenizer)


def test_a_module_needs_a_tokenizer():
    with pytest.raises(LoadError, match="pass tokenizer="):
        Policy.load(tiny_gpt2())


class TestFolders:
    @pytest.fixture
    def folder(self, tmp_path, tokenizer):
        return save(tiny_gpt2(), tmp_path / "model", tokenizer)

    def refused(self, folder, message, **options):
        with pytest.raises(LoadError, match=message) as caught:
            Policy.load(folder, **options)
        assert "\n" not in str(caught.value)

    def test_missing(self, tmp_path):
        self.refused(tmp_path / "no" / "such", "there is no folder")

    def test_a_file(self, folder):
        self.refused(folder / "config.json", "is a file; name the folder")

    def test_without_config(self, folder):
        (folder / "config.json").unlink()
        self.refused(folder, "no config.json")

    def test_without_weights(self, folder):
        (folder / "model.safetensors").unlink()
        self.refused(folder, "no weights")

    def test_truncated(self, folder):
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])
        self.refused(folder, "cut off or damaged")

    def test_pickle_unless_asked_for(self, folder):
        state = tiny_gpt2().state_dict()
        (folder / "model.safetensors").unlink()
        torch.save({k: v for k, v in state.items() if k != "lm_head.weight"}, folder / "pytorch_model.bin")
        self.refused(folder, "allow_pickle=True")
        assert Policy.load(folder, allow_pickle=True).vocab_size == len(state["lm_head.weight"])

    def test_an_adapter(self, tmp_path):
        (tmp_path / "adapter_config.json").write_text("{}")
        self.refused(tmp_path, "adapter of type None, only LORA can be read")

    def test_without_tokenizer(self, tmp_path):
        self.refused(save(tiny_gpt2(), tmp_path / "m"), "holds no tokenizer")

    def test_a_missing_key_is_not_randomly_filled(self, folder):
        from safetensors.torch import load_file, save_file

        state = load_file(folder / "model.safetensors")
        state.pop("transformer.h.1.mlp.c_fc.weight")
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        self.refused(folder, "1 missing keys .*c_fc.weight")

    def test_a_classifier_is_no_policy(self, tmp_path, tokenizer):
        from transformers import GPT2Config, GPT2ForSequenceClassification

        model = GPT2ForSequenceClassification(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=300, pad_token_id=0))
        self.refused(save(model, tmp_path / "c", tokenizer), "not a language model")
        with pytest.raises(LoadError, match="not a classifier"):
            RewardModel.load(save(tiny_gpt2(), tmp_path / "p", tokenizer))


def classifier(**changes):
    from transformers import GPT2Config, GPT2ForSequenceClassification

    torch.manual_seed(3)
    config = GPT2Config(
        n_layer=2, n_head=2, n_embd=16, n_positions=32, vocab_size=len(word_tokenizer()), initializer_range=0.5,
        bos_token_id=0, eos_token_id=0, pad_token_id=0, id2label={0: "NEG", 1: "POS"}, label2id={"NEG": 0, "POS": 1},
        **changes,
    )  # fmt: skip
    return GPT2ForSequenceClassification(config).eval()


def test_reward_is_that_of_the_bare_classifier_whatever_the_batch(tokenizer):
    model = classifier()
    texts = ["this movie was really bad", "good", "the plot and the acting", "boring film"]
    expected = []
    for text in texts:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).logits[0].double()
        expected.append(logits)
    expected = torch.stack(expected)
    for size in (1, 3, 64):
        scorer = RewardModel.load(model, tokenizer=tokenizer, label="POS")
        torch.testing.assert_close(
            torch.tensor(scorer.score(texts, batch_size=size)), expected.softmax(-1)[:, 1], atol=1e-6, rtol=0
        )
        scorer = RewardModel.load(model, tokenizer=tokenizer, label="NEG", output="logit")
        torch.testing.assert_close(
            torch.tensor(scorer.score(texts, batch_size=size)), expected[:, 0], atol=1e-5, rtol=0
        )
    several = RewardModel.load(classifier(problem_type="multi_label_classification"), tokenizer=tokenizer, label="POS")
    torch.testing.assert_close(torch.tensor(several.score(texts)), expected.sigmoid()[:, 1], atol=1e-6, rtol=0)


def test_reward_refuses_what_it_cannot_score(tokenizer):
    with pytest.raises(LoadError, match="no label 'joy'; pass label= \\(--label\\), one of NEG, POS"):
        RewardModel.load(classifier(), tokenizer=tokenizer, label="joy")
    with pytest.raises(LoadError, match="has 2 labels; name one with .*label=...\\) \\(--label\\): NEG, POS"):
        RewardModel.load(classifier(), tokenizer=tokenizer)
    scorer = RewardModel.load(classifier(), tokenizer=tokenizer, label="POS")
    assert scorer.labels == ("NEG", "POS")
    assert scorer.score(["this " * 100]).shape == (1,)  # longer than the context: cut
