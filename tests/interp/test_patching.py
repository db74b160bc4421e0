"""Activation patching: exact for every architecture, and its numbers by hand."""

import copy

import numpy as np
import pytest
import torch

from interp import Policy, Prompts
from interp.errors import FidelityError, MeasureError, PromptError
from interp.families import Parts
from interp.hooks import Site
from interp.metrics import reading
from interp.patching import ablation, activation_patching, patch_runs, runs_of
from interp.patching.recording import activations, captured_sites, record, values_of
from interp.patching.replay import sweep, verify
from interp.patching.targets import NAMES, Intervention, Target, interventions
from interp.prompts import make_batch
from tests.conftest import tiny_gpt2
from tests.interp import architectures
from tests.interp.test_hooks import ENCODER, ROWS

SETS = [
    {("z", 0): [1, 2], ("mlp_out", 1): None, ("resid_pre", 1): None},
    {("q", 1): [1], ("result", 1): [0, 3], ("mlp_post", 0): [5]},
    {("attn_out", 0): None, ("resid_pre", 0): None, ("v", 1): [0]},
]


def models(name):
    recipient, source = (Parts(architectures.build(name, seed=seed).eval()) for seed in (0, 1))
    return recipient, source


def batch_for(parts, side="right"):
    answers = torch.tensor([[1, 2], [3, 4], [5, 6]])
    return make_batch(ROWS, encoder=ENCODER if parts.family.encoder else None, padding_side=side, answers=answers)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", architectures.LANGUAGE_MODELS)
def test_the_short_cut_equals_whole_passes(name, side):
    """Every kind of site, at all and at some tokens, and sets: a replay against the whole model under hooks."""
    recipient, source = models(name)
    batch = batch_for(recipient, side)
    recording = record(recipient, batch)
    verify(recording)
    how = reading("logit_diff", batch, range(len(batch.input_ids)))
    for position in ("all", (0, 2), -1):
        wanted = []
        for site in NAMES:
            if (site == "pattern" and recipient.family.name == "bloom") or (
                site == "resid_mid" and recipient.path("resid_mid") is None
            ):
                continue
            wanted += interventions(
                recipient, site, position if position == "all" else list(np.atleast_1d(position)), 7
            )[::3]
        wanted += [
            each
            for given in SETS
            if recipient.path("resid_mid")
            for each in interventions(recipient, given, "prompt", 7)
        ]
        store, _ = activations(source, batch, captured_sites(wanted))
        values = values_of(source, store)
        fast = sweep(recording, wanted, values, how)
        whole = sweep(recording, wanted, values, how, short_cut=False, tokens=10**5)
        assert (fast - whole).abs().max() <= 1e-5 * whole.abs().max()
        assert (fast - torch.from_numpy(how.of_run(recording.parts, recording.final))[:, None]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "LlamaForCausalLM"])
def test_heads_equal_a_plain_loop_of_torch_hooks(kind):
    recipient, source = models(kind)
    batch = make_batch([row[:4] for row in ROWS if len(row) > 3] * 2, answers=torch.tensor([[1, 2]] * 4))
    projections = [[parts.inside(layer, "o") for layer in range(3)] for parts in (recipient, source)]
    z = {}
    handles = [
        module.register_forward_pre_hook(lambda _, args, layer=layer: z.__setitem__(layer, args[0]))
        for layer, module in enumerate(projections[1])
    ]
    with torch.no_grad():
        source.model(input_ids=batch.input_ids)
        for handle in handles:
            handle.remove()
        columns = []
        for layer in range(3):
            for head in range(4):
                part = slice(head * recipient.d_head, (head + 1) * recipient.d_head)

                def hook(_, args, layer=layer, part=part):
                    changed = args[0].clone()
                    changed[..., part] = z[layer][..., part]
                    return (changed,)

                handle = projections[0][layer].register_forward_pre_hook(hook)
                logits = recipient.model(input_ids=batch.input_ids).logits[:, -1].double()
                handle.remove()
                columns.append(logits[:, 1] - logits[:, 2])
    expected = torch.stack(columns, dim=1)
    wanted = interventions(recipient, "z", "all", 4)
    store, _ = activations(source, batch, captured_sites(wanted))
    found = sweep(
        record(recipient, batch),
        wanted,
        values_of(source, store),
        reading("logit_diff", batch, range(len(batch.input_ids))),
    )
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_model_with_its_own_kernel_and_a_padded_row_is_given_back(make_model, tokenizer):
    model, other = make_model(), make_model()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    weights = copy.deepcopy(model.state_dict())
    model.train()
    kernel = model.config._attn_implementation
    policies = [Policy.load(each, tokenizer=tokenizer) for each in (model, other)]
    activation_patching(*policies, ["the cat sat", "a dog"], sites=["q", "z", "pattern"], metric="kl")
    assert model.training and model.config._attn_implementation == kernel
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.fixture
def pair(make_model, tokenizer):
    first, second = make_model(), make_model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return [Policy.load(model, tokenizer=tokenizer) for model in (first, second)]


TEXTS = [
    "the cat sat",
    "a dog ran",
    "the bird sang",
    "a cat ran",
    "the dog sat",
    "a bird sat",
    "the cat ran",
    "a dog sang",
    "the dog ran",
]


def test_the_metric_is_the_models_own_and_a_gap_of_chance_gives_no_recovery(pair):
    prompts = Prompts(TEXTS, answers=("c", "d"))
    found = activation_patching(*pair, prompts, sites=["resid_pre", "mlp_out"])
    tokens = prompts.tokenize(pair[0].tokenizer)
    with torch.no_grad():
        for model, name in zip(pair, ("recipient", "source"), strict=True):
            for row in (0, 3):
                last = model.model(torch.tensor([tokens.prompt_ids[row]])).logits[0, -1].double()
                answer, other = tokens.answer_ids[row].tolist()
                assert abs(float(last[answer] - last[other]) - float(found[name][row])) < 1e-5
    gaps = (found["source"] - found["recipient"]).values
    assert gaps.min() < 0 < gaps.max()
    assert np.isnan(found["recovery"]).all() and "no recovery" in repr(found)


def test_recovery_has_an_interval(pair):
    found = activation_patching(*pair, Prompts(TEXTS), sites=["resid_pre", "mlp_out"], metric="kl")
    assert (found["recovery_low"] < found["recovery"]).all() and (found["recovery"] < found["recovery_high"]).all()
    few = activation_patching(*pair, Prompts(TEXTS[:3]), sites="mlp_out", metric="kl")
    assert np.isfinite(few["recovery"]).all() and np.isnan(few["recovery_low"]).all() and np.isnan(few["p"]).all()


def test_everything_patched_is_the_source_and_what_is_left_is_the_readout(pair):
    """All that enters the last block's end comes from the source; the readout alone is the rest."""
    layers = pair[0].parts.n_layers
    last = {("resid_post", layers - 1): None}
    found = activation_patching(*pair, Prompts(TEXTS, answers=("c", "d")), sites=[last], draws=0)
    backwards = activation_patching(*pair[::-1], Prompts(TEXTS, answers=("c", "d")), sites=[last], draws=0)
    with torch.no_grad():
        residual = record(pair[1].parts, _batch(pair[1])).at(_batch(pair[1]).last_prompt[:, None])[:, 0]
        logits = pair[0].parts.logits(residual).double()
    ids = Prompts(TEXTS, answers=("c", "d")).tokenize(pair[0].tokenizer).answer_ids
    expected = logits.gather(1, ids)
    patched = found["effect"].values[:, 0] + found["recipient"].values
    np.testing.assert_allclose(patched, (expected[:, 0] - expected[:, 1]).numpy(), atol=1e-5)
    np.testing.assert_allclose(backwards["readout"].values, patched, atol=1e-5)


def _batch(policy):
    return next(Prompts(TEXTS).tokenize(policy.tokenizer).batches(99))


def test_kl_recovers_one_at_the_source(pair):
    found = activation_patching(pair[0], pair[1], Prompts(TEXTS), sites="mlp_out", metric="kl")
    assert (found["source"] == 0).all() and (found["recipient"] > 0).all()
    expected = 1 - (found["effect"] + found["recipient"]).sum("prompt") / found["recipient"].sum()
    np.testing.assert_allclose(found["recovery"], expected.values, rtol=1e-9)


def test_logprob_and_a_metric_of_ones_own(pair):
    texts = Prompts(TEXTS, continuations=[" cat sat"] * len(TEXTS))
    found = activation_patching(*pair, texts, sites="mlp_out", metric="logprob")
    tokens = texts.tokenize(pair[0].tokenizer)
    with torch.no_grad():
        ids = [*tokens.prompt_ids[0], *tokens.response_ids[0]]
        logs = pair[0].model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    start = len(tokens.prompt_ids[0])
    own = sum(float(logs[start - 1 + step, token]) for step, token in enumerate(tokens.response_ids[0]))
    assert abs(own - float(found["recipient"][0])) < 1e-5

    rows = []

    def first_logit(logits, row):
        rows.extend(row.tolist())
        return logits[:, 3]

    mine = activation_patching(*pair, Prompts(TEXTS), sites="mlp_out", metric=first_logit, batch_size=4)
    assert set(rows) == set(range(len(TEXTS))) and mine.dataset.attrs["metric"] == "first_logit"
    with pytest.raises(MeasureError, match="one number a row"):
        activation_patching(*pair, Prompts(TEXTS), sites="mlp_out", metric=lambda logits, row: logits)


def test_batch_size_and_chunks_change_nothing(pair):
    one = activation_patching(*pair, Prompts(TEXTS), sites=["z", "mlp_out"], batch_size=16)
    other = patch_runs(runs_of(*pair, Prompts(TEXTS)), sites=["z", "mlp_out"], batch_size=2, tokens=8)
    np.testing.assert_allclose(one["effect"], other["effect"], atol=1e-5)


def test_maps_have_layers_heads_and_tokens(pair):
    parts = pair[0].parts
    found = activation_patching(*pair, Prompts(TEXTS), sites=["z", "k"])
    assert found.map("z").dims == ("layer", "head") and found.map("z").shape == (parts.n_layers, parts.n_heads)
    assert found.map("k").shape == (parts.n_layers, parts.n_kv_heads)
    assert float(found.map("z").sel(layer=1, head=0)) == float(
        found["recovery"][found.dataset["label"].values.tolist().index("L1.z.H0")]
    )
    each = activation_patching(*pair, Prompts(TEXTS), sites="resid_pre", positions="each")
    assert each.map("resid_pre").dims == ("layer", "pos") and each.map("resid_pre", "effect").sizes["prompt"] == len(
        TEXTS
    )
    with pytest.raises(MeasureError, match="there are k, z"):
        found.map("q")


def test_sets_stand_beside_random_sets(pair):
    found = activation_patching(*pair, Prompts(TEXTS), sites=[{("z", 0): [0, 1]}, "mlp_out"], draws=7)
    beside = found["random_recovery"]
    assert beside.shape == (1 + pair[0].parts.n_layers, 7)
    assert np.isfinite(beside.values[0]).all() and np.isnan(beside.values[1:]).all()
    assert {"random_low", "random_high"} <= set(found.summary())


def test_clean_and_corrupted_runs_of_one_model(pair):
    model = pair[0]
    prompts = Prompts(TEXTS, corrupted=[text.replace("a", "o").replace("d", "c") for text in TEXTS])
    last = {("resid_post", model.parts.n_layers - 1): None}
    found = activation_patching(model, model, prompts, sites=last, metric="kl", draws=0)
    assert found["recovery"].values == pytest.approx([1.0])  # the last residual is all that the logits depend on
    turned = activation_patching(model, model, prompts, sites="mlp_out", metric="kl", recipient_reads="clean")
    assert float(turned["recipient"].sum()) != pytest.approx(float(found["recipient"].sum()))
    with pytest.raises(PromptError, match="same prompts"):
        activation_patching(model, model, Prompts(TEXTS))
    with pytest.raises(PromptError, match="there are none"):
        activation_patching(*pair, Prompts(TEXTS), recipient_reads="corrupted")


def test_ablations(pair):
    model = pair[0]
    found = ablation(model, Prompts(TEXTS), by="zero", sites="mlp_out", metric="kl")
    assert "recovery" not in found.dataset and (found["effect"] >= 0).all() and float(found["effect"].max()) > 1e-6
    with torch.no_grad():
        ids = torch.tensor([Prompts(TEXTS).tokenize(model.tokenizer).prompt_ids[0]])
        clean = model.model(ids).logits[0, -1].double().log_softmax(-1)
        handle = model.parts.inside(1, "mlp_down").register_forward_hook(lambda _, __, output: torch.zeros_like(output))
        other = model.model(ids).logits[0, -1].double().log_softmax(-1)
        handle.remove()
    assert float((clean.exp() * (clean - other)).sum()) == pytest.approx(float(found["effect"][0, 1]), abs=1e-6)
    twice = [
        ablation(model, Prompts(TEXTS), by="resample", sites="z", seed=seed)["effect"].values for seed in (0, 0, 1)
    ]
    assert np.array_equal(twice[0], twice[1]) and not np.array_equal(twice[0], twice[2])
    same = Prompts(["the cat sat"] * 4)
    assert np.abs(ablation(model, same, by="resample", sites="z")["effect"].values).max() < 1e-5
    with pytest.raises(MeasureError, match="there is one prompt"):
        ablation(model, Prompts(TEXTS[:1]), by="resample")


def test_a_mean_is_over_all_real_tokens(pair):
    model = pair[0]
    texts = Prompts(["the cat sat", "a dog"])
    values = []
    for ids in texts.tokenize(model.tokenizer).prompt_ids:
        store, _ = activations(model.parts, make_batch([ids]), [Site("mlp_out", 0)])
        values.append(store[Site("mlp_out", 0)][0])
    mean = torch.cat(values).mean(0)
    found = ablation(model, texts, by="mean", sites=Site("mlp_out", 0), metric=lambda logits, rows: logits[:, 0])
    with torch.no_grad():
        handle = model.parts.inside(0, "mlp_down").register_forward_hook(lambda _, __, output: mean.expand_as(output))
        own = model.model(torch.tensor([texts.tokenize(model.tokenizer).prompt_ids[1]])).logits[0, -1, 0]
        handle.remove()
    assert float(own) == pytest.approx(float(found["effect"][1, 0] + found["recipient"][1]), abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sites": "zz"}, "no site 'zz'"),
        ({"sites": []}, "nothing to patch"),
        ({"sites": {}}, "set of sites is empty"),
        ({"sites": {("z", 99): [0]}}, "no site L99.z"),
        ({"sites": {("z", 0): [99]}}, "units 0 to"),
        ({"sites": {("z", 0): []}}, "units 0 to"),
        ({"sites": {("mlp_out", 0): [1]}}, "no heads or neurons"),
        ({"sites": {"z": [1]}}, "a site of a set is"),
        ({"sites": 3}, "not iterable"),
        ({"sites": "z", "positions": "middle"}, "positions are"),
        ({"sites": "z", "positions": 99}, "no position 99"),
        ({"sites": "z", "metric": "accuracy"}, "metric is"),
        ({"sites": "z", "metric": "logit_diff"}, "needs answers"),
        ({"sites": "z", "metric": "logprob"}, "continuations"),
        ({"sites": Site("resid_pre", 0, "encoder")}, "no site encoder.L0|no encoder stack"),
    ],
)
def test_mistakes_are_one_sentence(pair, settings, message):
    with pytest.raises((MeasureError, TypeError), match=message):
        activation_patching(*pair, Prompts(TEXTS), **settings)


def test_a_block_that_does_not_repeat_itself_is_found(pair):
    block = pair[0].parts.block(1)
    calls = []

    def forgetful(_, args, output):
        calls.append(1)
        return (
            output
            if len(calls) < 4
            else tuple(each + 1 for each in output)
            if isinstance(output, tuple)
            else output + 1
        )

    handle = block.register_forward_hook(forgetful)
    calls[:] = []
    try:
        batch = _batch(pair[0])
        recording = record(pair[0].parts, batch)
        calls.extend([1] * 9)
        with pytest.raises(FidelityError, match="short_cut=False"):
            verify(recording)
    finally:
        handle.remove()


def test_models_of_other_shapes_are_refused(pair, tokenizer):
    other = Policy.load(tiny_gpt2(n_layer=5), tokenizer=tokenizer)
    with pytest.raises(MeasureError):
        activation_patching(pair[0], other, Prompts(TEXTS))


def test_interventions_read_well():
    site = Target(Site("z", 10), (4, 9))
    assert str(Intervention((site,))) == "L10.z.H4+9"
    assert str(Intervention((site, Target(Site("mlp_out", 3))), -1)) == "L10.z.H4+9 & L3.mlp_out at -1"


def test_random_sets_are_others_and_each_comes_once(pair):
    layers = pair[0].parts.n_layers
    whole = {("mlp_out", layer): None for layer in range(layers)}
    found = activation_patching(*pair, Prompts(TEXTS), sites=[{("mlp_out", 0): None, ("mlp_out", 1): None}, whole])
    pairs = layers * (layers - 1) // 2
    beside = found.dataset["random_recovery"]
    assert beside.sizes["draw"] == pairs - 1 and np.isnan(beside.values[1]).all()
    assert len(np.unique(beside.values[0])) == pairs - 1


def test_a_token_that_a_prompt_lacks_counts_for_nothing(pair):
    texts = [*TEXTS, "a", "it"]
    found = activation_patching(*pair, Prompts(texts), sites=Site("resid_pre", 1), positions="each", metric="kl")
    lengths = np.array([len(ids) for ids in Prompts(texts).tokenize(pair[0].tokenizer).prompt_ids])
    for position in range(lengths.max()):
        effect = found["effect"].values[:, position]
        assert (np.isnan(effect) == (lengths <= position)).all()
        there = lengths > position
        assert int(found["prompts"][position]) == there.sum()
        if there.sum() >= 8:
            share = effect[there].sum() / (found["source"] - found["recipient"]).values[there].sum()
            assert float(found["recovery"][position]) == pytest.approx(share)
    assert "prompts" in found.summary()


def test_a_metric_that_is_not_finite_is_an_error(pair):
    def nan_at_three(logits, rows):
        return torch.where(rows == 3, torch.nan, logits[:, 0].double())

    with pytest.raises(MeasureError, match="nan_at_three of the recipient run is not finite at prompt 3"):
        activation_patching(*pair, Prompts(TEXTS), sites="mlp_out", metric=nan_at_three)


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("tokens", 0), ("seed", -1), ("draws", -1)])
def test_settings_out_of_range_are_refused(pair, name, value):
    with pytest.raises(MeasureError, match=f"{name} is a whole number from"):
        patch_runs(runs_of(*pair, Prompts(TEXTS)), sites="mlp_out", **{name: value})


def test_a_module_reads_with_the_recipients_tokenizer(pair, tokenizer):
    with pytest.raises(TypeError, match=r"no parameter 'tokenizer' any more; load first: interp.load"):
        activation_patching(*(each.model for each in pair), TEXTS, sites="mlp_out", tokenizer=tokenizer)
    found = activation_patching(pair[0], pair[1].model, TEXTS, sites="mlp_out")
    same = activation_patching(*pair, TEXTS, sites="mlp_out")
    np.testing.assert_allclose(found["effect"], same["effect"])
