"""Every family against the bare model of transformers: hidden states, patterns, heads, residual terms, attribution."""

import dataclasses

import pytest
import torch
import transformers as hf

import interp
from interp.decomposition import (
    attribute_heads,
    attribute_terms,
    carried_terms,
    decomposition_sites,
    directions,
    head_sites,
    neuron_direction,
    residual_sites,
)
from interp.errors import FidelityError, LoadError, MeasureError, UnknownFamily
from interp.families import FAMILIES, Attention, Family, Head, NormParameters, Parts, Stack, norm_parameters
from interp.hooks import Site, has_site
from interp.models import check_fidelity
from interp.models.running import forward_inputs, inference, run
from interp.prompts import make_batch
from tests.interp.architectures import CONFIGS, LANGUAGE_MODELS, build
from tests.interp.comparisons import compare

IDS = [[5, 9, 2, 7, 11, 3, 8, 4], [8, 12, 4], [6]]
ENCODER = [[3, 9, 30, 2], [14, 5, 7, 8, 2], [22, 2]]
NAMES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "pattern", "z", "mlp_post", "mlp_out")


def batch_for(parts: Parts, side: str = "right", rows: range = range(3)):
    encoder = [ENCODER[row] for row in rows] if parts.family.encoder else None
    return make_batch([IDS[row] for row in rows], encoder=encoder, padding_side=side)


def every_site(parts: Parts) -> list[Site]:
    found = [Site("embed"), Site("pos_embed"), Site("embed", None, "encoder")] if parts.family.encoder else []
    found += [Site("embed"), Site("pos_embed")]
    for stack in parts.stacks:
        layers = parts.n_encoder_layers if stack == "encoder" else parts.n_layers
        names = ("resid_mid", "attn_out", "pattern", "z") if stack == "cross" else NAMES
        found += [Site(name, layer, stack) for layer in range(layers) for name in names]
    return [site for site in dict.fromkeys(found) if has_site(parts, site)]


def bare(parts: Parts, batch):
    """All that transformers itself gives of a pass."""
    one_token = parts.head.reads != "every"
    with inference(parts.model, eager=True):
        model = parts.backbone if one_token else parts.model
        return model(**forward_inputs(parts, batch), output_hidden_states=True, output_attentions=True)


@pytest.fixture(scope="module", params=CONFIGS)
def parts(request) -> Parts:
    return Parts(build(request.param))


def test_the_check_at_load_passes(parts):
    assert max(check_fidelity(parts.model).values()) < 2e-6


@pytest.mark.parametrize("side", ["right", "left"])
def test_hidden_states_and_patterns_are_the_bare_models(parts, side):
    batch = batch_for(parts, side)
    logits, store = run(parts, batch, every_site(parts))
    output, real = bare(parts, batch), batch.attention_mask
    decoder = "decoder_" if parts.family.encoder else ""
    states, patterns = output[f"{decoder}hidden_states"], output[f"{decoder}attentions"]
    if parts.head.reads == "every":
        assert (logits - output.logits)[real].abs().max() <= 1e-6 * output.logits.abs().max()
    for layer in range(parts.n_layers):
        assert torch.equal(store[Site("resid_pre", layer)][real], states[layer][real])
        assert torch.equal(store[Site("pattern", layer)], patterns[layer])
    if parts.stack.final_norm is not None and "OPT" not in type(parts.model).__name__:
        final = parts.final_norm(store[Site("resid_post", parts.n_layers - 1)])
        torch.testing.assert_close(final[real], states[-1][real])
    if parts.family.encoder:
        for layer in range(parts.n_encoder_layers):
            encoded = store[Site("resid_pre", layer, "encoder")]
            assert torch.equal(encoded[batch.encoder_mask], output.encoder_hidden_states[layer][batch.encoder_mask])
            assert torch.equal(store[Site("pattern", layer, "encoder")], output.encoder_attentions[layer])
        for layer in range(parts.n_layers):
            assert torch.equal(store[Site("pattern", layer, "cross")], output.cross_attentions[layer])


def test_padding_and_batch_size_change_no_logit(parts):
    alone = []
    for row in range(3):
        batch = batch_for(parts, rows=range(row, row + 1))
        alone.append(run(parts, batch)[0][0])
    limit = 1e-5 * max(1.0, *(float(a.abs().max()) for a in alone))
    for side in ("right", "left"):
        batch = batch_for(parts, side)
        logits = run(parts, batch)[0]
        for row, expected in enumerate(alone):
            got = logits[row][batch.attention_mask[row]] if parts.head.reads == "every" else logits[row]
            assert (got - expected).abs().max() <= limit


def test_a_classifiers_score_is_the_bare_models(parts):
    if parts.head.reads == "every":
        pytest.skip("no score head")
    for ids in IDS:
        batch = make_batch([ids])
        with inference(parts.model):
            expected = parts.model(**forward_inputs(parts, batch)).logits
        torch.testing.assert_close(run(parts, batch)[0], expected, atol=1e-5, rtol=1e-5)


def after_norm(norm: NormParameters | None, values: torch.Tensor) -> torch.Tensor:
    if norm is None:
        return values
    values = values.double()
    return norm.carry(values, norm.scale(values)) + (0 if norm.shift is None else norm.shift)


def test_sublayers_lead_from_one_residual_to_the_next(parts):
    batch = batch_for(parts)
    _, store = run(parts, batch, every_site(parts))
    for stack in parts.stacks:
        if stack == "cross":
            continue
        real = batch.encoder_mask if stack == "encoder" else batch.attention_mask
        cross = stack is None and parts.stack.cross is not None
        for layer in range(parts.n_encoder_layers if stack else parts.n_layers):
            x = store[Site("resid_pre", layer, stack)].double()
            x = x + store[Site("attn_out", layer, stack)].double()
            if Site("resid_mid", layer, stack) in store:
                close(x[real], store[Site("resid_mid", layer, stack)][real])
            if cross:
                x = x + store[Site("attn_out", layer, "cross")].double()
                close(x[real], store[Site("resid_mid", layer, "cross")][real])
            if parts.stack.norm_of_sum:
                x = after_norm(parts.norm(layer, "attn_norm"), x)
            x = x + store[Site("mlp_out", layer, stack)].double()
            close(x[real], store[Site("resid_post", layer, stack)][real])
            down = parts.inside(layer, "mlp_down", stack)(store[Site("mlp_post", layer, stack)])
            down = after_norm(parts.norm(layer, "mlp_post_norm", stack), down)
            close(down[real], store[Site("mlp_out", layer, stack)][real])


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got.float(), expected, atol=2e-5 * float(expected.abs().max()), rtol=1e-5)


def test_z_is_the_pattern_applied_to_the_values(parts):
    """z = pattern (x W_V + b_V), with the values of the key-value head that the query head shares."""
    batch = batch_for(parts, rows=range(1))
    _, store = run(parts, batch, every_site(parts))
    for stack in parts.stacks:
        for layer in range(parts.n_encoder_layers if stack == "encoder" else parts.n_layers):
            read = values_input(parts, store, layer, stack)[0]
            for head in range(parts.n_heads):
                kv = head // (parts.n_heads // parts.n_kv_heads)
                v = read @ parts.W_V(layer, stack)[kv] + value_bias(parts, layer, stack)[kv]
                z = store[Site("pattern", layer, stack)][0, head] @ v
                torch.testing.assert_close(z, store[Site("z", layer, stack)][0, :, head], atol=1e-5, rtol=1e-4)


def values_input(parts: Parts, store, layer: int, stack) -> torch.Tensor:
    if stack == "cross":
        last = store[Site("resid_post", parts.n_encoder_layers - 1, "encoder")]
        return parts.model.get_submodule(parts.family.encoder.final_norm)(last)
    x = store[Site("resid_pre", layer, stack)]
    plain = parts.layout(stack).norm_of_sum or parts.layout(stack).attn_norm is None
    return x if plain else parts.inside(layer, "attn_norm", stack)(x)


def value_bias(parts: Parts, layer: int, stack) -> torch.Tensor:
    bias = parts.inside(layer, "v", stack).bias
    if bias is None:
        return torch.zeros(parts.n_kv_heads, parts.d_head)
    row = parts.attention(stack)
    if row.q != row.v:
        return bias.view(parts.n_kv_heads, parts.d_head)
    if row.fused == "heads":
        return bias.view(parts.n_heads, 3, parts.d_head)[:, 2]
    return bias[-parts.n_kv_heads * parts.d_head :].view(parts.n_kv_heads, parts.d_head)


def test_queries_and_keys_make_the_pattern(parts):
    """softmax(x W_Q (x W_K)^T / sqrt(d_head)) where no rotation, bias by position or soft cap comes between."""
    if parts.family.name not in ("gpt2", "opt", "bert", "roberta", "distilbert"):
        pytest.skip("positions act on the scores")
    batch = batch_for(parts, rows=range(1))
    _, store = run(parts, batch, every_site(parts))
    for layer in range(parts.n_layers):
        x = values_input(parts, store, layer, None)[0]
        size = parts.n_heads * parts.d_head
        biases = {"q": parts.inside(layer, "q").bias, "k": parts.inside(layer, "k").bias}
        if parts.attention().q == parts.attention().k:
            biases = {"q": biases["q"][:size], "k": biases["k"][size : 2 * size]}
        shaped = {name: bias.view(parts.n_heads, 1, parts.d_head) for name, bias in biases.items()}
        q, k = x @ parts.W_Q(layer) + shaped["q"], x @ parts.W_K(layer) + shaped["k"]
        scores = q @ k.mT / parts.d_head**0.5
        if parts.family.causal:
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
        torch.testing.assert_close(scores.softmax(-1), store[Site("pattern", layer)][0], atol=1e-5, rtol=1e-4)


def test_attribution_sums_and_agrees_with_the_terms_carried_forward(parts):
    """Two ways: directions taken back through the norms, and writes carried forward through them."""
    batch = batch_for(parts, rows=range(1))
    _, store = run(parts, batch, [*decomposition_sites(parts), *head_sites(parts), *every_site(parts)])

    def read(site: Site) -> torch.Tensor:
        return store[site].double()[0]

    terms = carried_terms(parts, read)
    last = read(Site("resid_post", parts.n_layers - 1))
    close(terms.sum(1), last.float())
    weight, bias = parts.unembedding()
    target = (weight[:, 1] - weight[:, 2]).detach().double().expand(len(last), -1)
    way = directions(parts, read, target)
    by_term = attribute_terms(parts, read, way)
    norm = norm_parameters(parts.final_norm)
    scale = norm.scale(last)
    forward = (norm.carry(terms, scale[:, None]) * target[:, None]).sum(-1)
    torch.testing.assert_close(by_term, forward[:, :-1])
    constant = forward[:, -1] + (0 if norm.shift is None else target @ norm.shift)
    torch.testing.assert_close(way.constant, constant)
    exact = parts.linear_output(last.float()).detach().double()
    total = by_term.sum(1) + way.constant + (0 if bias is None else (bias[1] - bias[2]).double())
    torch.testing.assert_close(total, exact[:, 1] - exact[:, 2], atol=1e-5 * float(exact.abs().max()), rtol=0)
    names = residual_sites(parts)
    for layer in range(parts.n_layers):
        for stack in (None, "cross") if parts.stack.cross else (None,):
            heads, rest = attribute_heads(parts, read, way, layer, stack)
            expected = by_term[:, names.index(Site("attn_out", layer, stack))]
            torch.testing.assert_close(heads.sum(1) + rest, expected, atol=1e-4, rtol=1e-4)
        direction, rest = neuron_direction(parts, read, way, layer)
        neurons = read(Site("mlp_post", layer)) * (direction @ parts.W_down(layer)[0].detach().double().T)
        expected = by_term[:, names.index(Site("mlp_out", layer))]
        torch.testing.assert_close(neurons.sum(1) + rest, expected, atol=1e-4, rtol=1e-4)


def test_a_pass_leaves_nothing_behind(parts):
    def hooks() -> int:  # transformers leaves some of its own behind when it was asked for hidden states
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in parts.model.modules())

    kernel, before = parts.model.config._attn_implementation, hooks()
    run(parts, batch_for(parts), every_site(parts))
    assert hooks() == before
    assert parts.model.config._attn_implementation == kernel


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_compare_reads_every_language_model(name, tokenizer):
    size = len(tokenizer)
    base, tuned = build(name, vocab_size=size), build(name, seed=1, vocab_size=size)
    prompts = interp.Prompts([" this movie was", " the plot was really", " a film"], answers=(" bad", " good"))
    cmp = compare(base, tuned, prompts, tokenizer=tokenizer)
    difference = cmp["attribution"].sel(model="tuned") - cmp["attribution"].sel(model="base")
    split = cmp["attribution_write"] + cmp["attribution_readout"]
    assert float(abs(difference - split).max()) < 1e-9
    scale = float(abs(cmp["attribution"]).max())
    assert float(cmp["completeness_error"].max()) < 1e-5 * max(1.0, scale)
    assert float(cmp["kl"].min()) >= 0
    last = cmp["lens_logit_diff"].isel(site=-1)
    assert float(abs(last - cmp["logit_diff"]).max()) < 1e-4 * max(1.0, scale)
    same = compare(base, base, prompts, tokenizer=tokenizer)
    zero = same["attribution"].sel(model="tuned") - same["attribution"].sel(model="base")
    assert float(abs(zero).max()) == float(same["kl"].max()) == float(same["pattern_js"].max()) == 0
    assert float(abs(same["attribution_write"]).max()) == float(abs(same["attribution_readout"]).max()) == 0


def test_a_soft_cap_is_linearised_with_its_error(tokenizer):
    size = len(tokenizer)
    models = [build("Gemma2ForCausalLM", seed, vocab_size=size) for seed in (0, 1)]
    prompts = interp.Prompts([" this movie was"], answers=(" bad", " good"))
    cmp = compare(*models, prompts, tokenizer=tokenizer, measures=["attribution", "logit_diff"])
    capped = cmp["attribution_capped"].sum("component")
    assert float(abs(abs(capped - cmp["logit_diff"]) - cmp["linearisation_error"]).max()) < 1e-5
    raw, cap = cmp["attribution"].sum("component"), 3.0
    assert float(abs(raw - cmp["logit_diff"]).min()) > 1e-3, "the cap acts"
    # By hand, in base: raw logits out of the capped ones, and the slope 1 - (capped / cap)^2 at each.
    ids = tokenizer(" this movie was", return_tensors="pt")["input_ids"]
    bad, good = (tokenizer(a)["input_ids"][0] for a in (" bad", " good"))
    with torch.no_grad():
        logits = models[0](input_ids=ids).logits[0, -1].double()
    values = torch.atanh(logits / cap) * cap
    slopes = 1 - (logits / cap) ** 2
    expected = slopes[bad] * values[bad] - slopes[good] * values[good]
    assert float(capped.sel(model="base")[0]) == pytest.approx(float(expected), abs=1e-4)


def test_parallel_blocks_have_no_resid_mid():
    parts = Parts(build("GPTNeoXForCausalLM"))
    assert not has_site(parts, Site("resid_mid", 0))
    with pytest.raises(MeasureError, match="no resid_mid"):
        run(parts, batch_for(parts), [Site("resid_mid", 0)])
    with pytest.raises(MeasureError, match="no encoder stack"):
        run(parts, batch_for(parts), [Site("z", 0, "encoder")])


@pytest.mark.parametrize("wrong", [("z", 0, "nothing"), ("mlp_out", 0, "cross"), ("pos_embed", None, "encoder")])
def test_sites_of_no_stack(wrong, as_a_user):
    with pytest.raises(MeasureError, match="stack|no site"):
        Site(*wrong)


def stable_lm() -> hf.PreTrainedModel:
    torch.manual_seed(0)
    config = hf.StableLmConfig(
        vocab_size=80, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    return hf.StableLmForCausalLM(config).eval()


def a_row(**changes: object) -> Family:
    a = "self_attn"
    stack = Stack(
        layers="model.layers",
        attention=Attention(a, f"{a}.q_proj", f"{a}.k_proj", f"{a}.v_proj", f"{a}.o_proj"),
        mlp=("mlp",),
        mlp_down="mlp.down_proj",
        resid_mid="post_attention_layernorm",
        final_norm="model.norm",
        attn_norm="input_layernorm",
        mlp_norm="post_attention_layernorm",
    )
    stack = dataclasses.replace(stack, **changes)
    return Family("stablelm", {"StableLmForCausalLM": Head(("lm_head",))}, "model.embed_tokens", stack)


@pytest.fixture
def rows():
    before = list(FAMILIES)
    yield
    FAMILIES[:] = before


def test_an_unknown_architecture_says_how_to_add_it(tokenizer):
    with pytest.raises(UnknownFamily, match=r"StableLmForCausalLM is not known.*register_family") as caught:
        interp.Policy.load(stable_lm(), tokenizer=tokenizer)
    assert "\n" not in str(caught.value)


def test_a_family_registered_from_outside_is_read_and_checked(rows, tokenizer):
    interp.register_family(a_row())
    policy = interp.Policy.load(stable_lm(), tokenizer=tokenizer)
    assert max(check_fidelity(policy.model).values()) < 2e-6
    assert policy.description["family"] == "stablelm"


@pytest.mark.parametrize(
    "wrong", [{"mlp_post_norm": "post_attention_layernorm"}, {"mlp_down": "mlp.gate_proj"}, {"resid_mid": "nothing"}]
)
def test_a_wrong_row_is_caught(rows, tokenizer, wrong):
    interp.register_family(a_row(**wrong))
    if "resid_mid" in wrong:
        policy = interp.Policy.load(stable_lm(), tokenizer=tokenizer)
        with pytest.raises(UnknownFamily, match="'nothing' \\(resid_mid\\)"):
            policy.trace(make_batch([[1, 2]]), [Site("resid_mid", 0)])
    else:
        with pytest.raises((FidelityError, UnknownFamily)):
            interp.Policy.load(stable_lm(), tokenizer=tokenizer)


def test_register_family_refuses_what_is_no_row(as_a_user):
    for wrong in ("gpt2", Family("x", {}, "e", a_row().stack), Family("x", {"A": "h"}, "e", a_row().stack)):
        with pytest.raises(UnknownFamily, match="Family|Head"):
            interp.register_family(wrong)


def test_float64_is_refused_where_transformers_cannot_pad_in_it():
    with pytest.raises(FidelityError, match="NaN where a row is padded"):
        check_fidelity(build("MistralForCausalLM").double())
    assert max(check_fidelity(build("GPT2LMHeadModel").double()).values()) < 1e-14


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "Gemma2ForCausalLM", "T5ForConditionalGeneration"])
def test_bfloat16_passes_within_its_rounding(name):
    assert max(check_fidelity(build(name).bfloat16()).values()) < 0.02


def test_a_masked_language_model_is_no_policy(tokenizer):
    with pytest.raises(LoadError, match="BertForMaskedLM, not a language model that predicts the next token"):
        interp.Policy.load(build("BertForMaskedLM"), tokenizer=tokenizer)
