"""compare() from end to end: zeros, plants, invariances, saving and loading."""

import copy
import json

import numpy as np
import pytest
import torch
import xarray as xr

import interp
from interp.errors import FormatError, InterpError, LoadError, MeasureError, PromptError, TokenizerMismatch
from tests.conftest import save, tiny_gpt2, tiny_llama
from tests.interp.comparisons import compare
from tests.interp.test_models import classifier
from tests.interp.traced import JOINED

TEXTS = """this movie was really|the plot was|great acting and a very boring film|fun|a film|the acting was very|
this plot was really|great film and the plot was very|the film was|this was a very""".replace("\n", "").split("|")
PROMPTS = dict(answers=(" bad", " good"))
DIFFERENCES = """kl js response_kl response_js lens_kl attribution_write attribution_readout head_attribution_write
head_attribution_readout pattern_js pattern_js_last qk_change ov_change mlp_change param_change mover_change
lens_base_head_kl lens_pos_kl neuron_attribution_write neuron_attribution_readout effective_rank
singular_change""".split()


def run(base, tuned, tokenizer, texts=TEXTS, prompt_options=PROMPTS, measures="all", **options):
    prompts = interp.Prompts(texts, **prompt_options)
    return compare(base, tuned, prompts, tokenizer=tokenizer, max_new_tokens=5, measures=measures, **options)


def test_every_difference_of_a_model_with_itself_is_zero(make_model, tokenizer):
    model = make_model()
    for tuned in (model, copy.deepcopy(model)):
        data = run(model, tuned, tokenizer).dataset
        for name in DIFFERENCES:
            assert float(abs(data[name]).max()) == 0, name
        for name, values in data.data_vars.items():
            if "model" in values.dims:
                base, other = values.sel(model="base").values, values.sel(model="tuned").values
                assert (base == other).all() or np.array_equal(base, other, equal_nan=True), name
        assert (data["resid_cosine"] == 1).all() and (data["resid_cosine_last"] == 1).all()
        base_lens = data["lens_logit_diff"].sel(model="base", drop=True)
        assert (data["lens_base_head_logit_diff"] == base_lens).all()
    frame = run(model, model, tokenizer).summary()
    changes = ~frame["finding"].str.contains(": base|: tuned$")
    assert (frame["estimate"][changes] == 0).all()


def scaled_head(model, layer, head, factor=1.5):
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        if hasattr(tuned, "transformer"):
            tuned.transformer.h[layer].attn.c_proj.weight[8 * head : 8 * head + 8] *= factor
        else:
            tuned.model.layers[layer].self_attn.o_proj.weight[:, 8 * head : 8 * head + 8] *= factor
    return tuned


@pytest.mark.parametrize("plant", [(0, 2), (1, 0), (2, 3)])
def test_a_planted_head_is_the_one_that_the_weight_table_names(make_model, tokenizer, plant):
    model = make_model()
    cmp = run(model, scaled_head(model, *plant), tokenizer)
    ov = cmp["ov_change"].values
    assert ov[plant] == pytest.approx(0.5, rel=1e-5)
    ov = ov.copy()
    ov[plant] = 0
    assert (ov == 0).all() and (cmp["qk_change"].values == 0).all() and (cmp["mlp_change"].values == 0).all()
    weights = cmp.summary().query("reading == 'weights'")
    assert weights["finding"].tolist()[:3] == [
        f"L{plant[0]}H{plant[1]}: relative change of its OV circuit", "no QK circuit changed", "no MLP changed",
    ]  # fmt: skip
    assert len(weights) == 4 and "effective rank" in weights["finding"].tolist()[3]
    # nothing before the plant moved, and what the head itself writes is half as much again
    assert (cmp["pattern_js"].sel(layer=slice(0, plant[0])) == 0).all()
    assert float(cmp["head_attribution_write"].sel(layer=plant[0], head=plant[1]).std()) > 0


@pytest.mark.parametrize("size", [1, 3])
def test_batch_size_changes_nothing(make_model, tokenizer, size):
    base, tuned = make_model(1), make_model(2)
    expected, got = run(base, tuned, tokenizer).dataset, run(base, tuned, tokenizer, batch_size=size).dataset
    largest = max(1.0, float(abs(expected["lens_logit_diff"]).max()))
    assert set(expected.data_vars) == set(got.data_vars)
    for name, values in expected.data_vars.items():
        if values.dtype == object:
            assert (values.values == got[name].values).all(), name
        else:
            np.testing.assert_allclose(got[name], values, atol=2e-5 * largest, rtol=1e-4, err_msg=name)


def test_completeness_and_intervals_in_the_summary(make_model, tokenizer):
    cmp = run(make_model(1), make_model(2), tokenizer)
    frame = cmp.summary()
    rows = frame[frame["reading"].str.startswith("attribution")]
    assert (rows["completeness"] < 1e-4).all() and len(rows) >= 6
    with_prompts = frame[frame["n"] >= 8]
    assert (with_prompts["estimate_low"] <= with_prompts["estimate"]).all() and (
        with_prompts["estimate"] <= with_prompts["estimate_high"]
    ).all()
    difference = (cmp["logit_diff"].sel(model="tuned") - cmp["logit_diff"].sel(model="base")).mean().item()
    assert frame["estimate"][0] == pytest.approx(difference)
    assert cmp["attribution"].sel(model="tuned").sum("component").values == pytest.approx(
        cmp["logit_diff"].sel(model="tuned").values, abs=1e-4
    )


def test_few_prompts_have_no_interval_and_say_so(make_model, tokenizer):
    cmp = run(make_model(1), make_model(2), tokenizer, texts=TEXTS[:3])
    assert cmp.summary()["estimate_low"].isna().all()
    assert any("No intervals: 3 different prompts" in note for note in cmp.notes())
    assert "No control runs" in repr(cmp)
    assert repr(cmp).count("\n") < 15 and max(map(len, repr(cmp).split("\n"))) <= 80
    repeated = run(make_model(1), make_model(2), tokenizer, texts=TEXTS[:3] * 4)
    assert repeated.summary()["estimate_low"].isna().all(), "copies of a prompt are no evidence"


def test_controls_give_a_range(make_model, tokenizer):
    base, tuned, nulls = make_model(1), make_model(2), [make_model(3), make_model(4)]
    cmp = run(base, tuned, tokenizer, controls=nulls)
    frame = cmp.summary()
    alone = [run(base, null, tokenizer).summary()["estimate"][0] for null in nulls]
    assert frame["control_low"][0] == pytest.approx(min(alone)) and frame["control_high"][0] == pytest.approx(
        max(alone)
    )
    xr.testing.assert_identical(cmp.dataset.drop_attrs(), run(base, tuned, tokenizer).dataset.drop_attrs())
    head = frame[frame["reading"] == "attribution by head"].iloc[0]
    largest = [float(abs(c["head_attribution"].diff("model").mean("prompt")).max()) for c in cmp.controls]
    assert max(abs(head["control_low"]), abs(head["control_high"])) == pytest.approx(max(largest))


def test_saved_and_loaded_is_the_same(tmp_path, make_model, tokenizer):
    scorer = interp.RewardModel.load(classifier(), tokenizer=tokenizer, label="POS")
    cmp = run(make_model(1), make_model(2), tokenizer, controls=[make_model(3)], reward=scorer)
    cmp.save(tmp_path / "out")
    loaded = interp.Comparison.load(tmp_path / "out")
    xr.testing.assert_identical(cmp.dataset, loaded.dataset)
    xr.testing.assert_identical(cmp.controls[0], loaded.controls[0])
    assert repr(cmp) == repr(loaded)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["result.nc", "summary.csv"]
    with pytest.raises(InterpError, match="--overwrite"):
        cmp.save(tmp_path / "out")
    cmp.save(tmp_path / "out", overwrite=True)
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_the_same_seed_gives_the_same_comparison(make_model, tokenizer):
    first, second = (run(make_model(1), make_model(2), tokenizer, seed=3) for _ in range(2))
    xr.testing.assert_identical(first.dataset, second.dataset)
    assert repr(first) == repr(second)
    other = run(make_model(1), make_model(2), tokenizer, seed=4)
    assert (other["completion"].values != first["completion"].values).any()


def test_damaged_results_are_refused(tmp_path, make_model, tokenizer):
    with pytest.raises(FormatError, match="holds no result.nc"):
        interp.Comparison.load(tmp_path)
    cmp = run(make_model(), make_model(), tokenizer, measures=["kl"])
    file = cmp.save(tmp_path / "out") / "result.nc"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(FormatError, match="is damaged"):
        interp.Comparison.load(tmp_path / "out")


def test_the_default_leaves_out_what_is_asked_for_by_name(make_model, tokenizer):
    base, tuned = make_model(1), make_model(2)
    cmp = run(base, tuned, tokenizer, measures=None)
    assert json.loads(cmp.dataset.attrs["settings"])["measures"] == list(interp.DEFAULT_MEASURES)
    assert not {"completion", "ov_change", "neuron_attribution", "lens_pos_kl"} & set(cmp.keys())
    assert len(cmp.summary()) <= 35
    scorer = interp.RewardModel.load(classifier(), tokenizer=tokenizer, label="POS")
    assert "completion_reward" in run(base, tuned, tokenizer, measures=None, reward=scorer)


def test_several_draws(make_model, tokenizer):
    cmp = run(make_model(1), make_model(2), tokenizer, measures="completions", samples=3)
    assert cmp["completion"].sizes["draw"] == cmp["response_kl"].sizes["draw"] == 3


def test_measures_can_be_chosen(make_model, tokenizer):
    cmp = run(make_model(1), make_model(2), tokenizer, measures=["kl", "weights"])
    assert {"kl", "js", "qk_change", "ov_change"} <= set(cmp.dataset.data_vars)
    assert "attribution" not in cmp.dataset and "completion" not in cmp.dataset
    with pytest.raises(MeasureError, match="holds no 'attribution'; it holds"):
        cmp["attribution"]
    for name in (name for name in interp.MEASURES if name not in JOINED):
        assert len(run(make_model(1), make_model(2), tokenizer, measures=[name]).summary()) > 0 or name in (
            "completions",
        )


def test_without_answers(make_model, tokenizer):
    cmp = run(make_model(1), make_model(2), tokenizer, prompt_options={})
    assert "logit_diff" not in cmp.dataset
    assert cmp["completeness_error"].max() < 1e-4
    assert (cmp["answer_token"] == cmp["top_token"].sel(model="tuned", rank=0, drop=True)).all()


def test_given_responses(make_model, tokenizer):
    options = dict(PROMPTS, continuations=[" very bad film"] * len(TEXTS))
    cmp = run(make_model(1), make_model(2), tokenizer, prompt_options=options)
    assert set(cmp["source"].values) == {"given", "base", "tuned"}
    given = cmp["response_kl"].sel(source="given").isel(draw=0)
    assert np.isfinite(given).sum("step").values.tolist() == [3] * len(TEXTS)
    assert any(cmp.summary()["finding"].str.contains("given responses"))


def test_provenance(tmp_path, tokenizer):
    base, tuned = save(tiny_llama(1), tmp_path / "b", tokenizer), save(tiny_llama(2), tmp_path / "t", tokenizer)
    attrs = compare(base, tuned, ["this movie"], measures=["kl"]).dataset.attrs
    described = json.loads(attrs["tuned"])
    from interp.io import sha256

    assert described["sha256"]["model.safetensors"] == sha256(tuned / "model.safetensors")
    assert described["folder"] == str(tuned) and json.loads(attrs["versions"])["torch"] == torch.__version__


class TestRefusals:
    def test_vocabularies(self, tmp_path, tokenizer):
        other = copy.deepcopy(tokenizer)
        other.add_tokens(["<extra>"])
        base, tuned = save(tiny_gpt2(), tmp_path / "b", tokenizer), save(tiny_gpt2(), tmp_path / "t", other)
        for options in ({}, {"tokenizer": "base"}):
            assert compare(base, tuned, ["this movie"], measures=["kl"], **options)["kl"].max() == 0
        with pytest.raises(TokenizerMismatch, match=r"tuned predicts 300 tokens, the tokenizer has 310; pass"):
            compare(tiny_gpt2(), tiny_gpt2(vocab_size=300), ["this movie"], tokenizer=tokenizer)

    def test_shapes(self, tokenizer):
        with pytest.raises(MeasureError, match="its own tuned version"):
            run(tiny_gpt2(), tiny_llama(), tokenizer)
        with pytest.raises(MeasureError, match="its own tuned version"):
            run(tiny_gpt2(), tiny_gpt2(n_layer=2), tokenizer)

    def test_prompts(self, tokenizer):
        with pytest.raises(PromptError, match="there are no prompts"):
            compare(tiny_gpt2(), tiny_gpt2(), [], tokenizer=tokenizer)
        with pytest.raises(PromptError, match="has 8. tokens, the models read 64"):
            run(tiny_gpt2(), tiny_gpt2(), tokenizer, texts=["this" + " movie" * 80])
        with pytest.raises(PromptError, match="batch_size is a whole number from 1 on, not 0"):
            run(tiny_gpt2(), tiny_gpt2(), tokenizer, batch_size=0)

    def test_numbers(self, tokenizer):
        for wrong in (dict(seed=-1), dict(seed=2**70), dict(max_new_tokens=0), dict(batch_size=0)):
            with pytest.raises(PromptError, match="is a whole number"):
                compare(tiny_gpt2(), tiny_gpt2(), ["this"], tokenizer=tokenizer, **wrong)

    def test_what_is_no_model(self, tokenizer, as_a_user):
        for wrong in (None, 3):
            with pytest.raises(LoadError, match="a model is a folder, a hub id|name a pair's folder"):
                compare(wrong, tiny_gpt2(), ["this"], tokenizer=tokenizer)
        with pytest.raises(LoadError, match="not a function"):
            compare(tiny_gpt2(), tiny_gpt2(), ["this"], tokenizer=tokenizer, reward=lambda texts: texts)

    def test_answers_and_characters(self, tokenizer, tmp_path):
        with pytest.raises(MeasureError, match="logit_diff needs answers"):
            compare(tiny_gpt2(), tiny_gpt2(), ["this"], tokenizer=tokenizer, measures=["logit_diff"])
        with pytest.raises(PromptError, match="no valid Unicode"):
            interp.Prompts(["\ud800 was"])
        cmp = compare(tiny_gpt2(), tiny_gpt2(1), ["a\x00b was"], tokenizer=tokenizer, max_new_tokens=2)
        cmp.save(tmp_path / "out")
        assert "kl" in cmp and "nothing" not in cmp and set(cmp) == set(cmp.keys())

    def test_tuneds_tokenizer_serves_a_base_without_one(self, tmp_path, tokenizer):
        base, tuned = save(tiny_gpt2(), tmp_path / "b"), save(tiny_gpt2(), tmp_path / "t", tokenizer)
        assert compare(base, tuned, ["this"], tokenizer="tuned", measures=["kl"])["kl"].max() == 0
        assert compare(tuned, base, ["this"], tokenizer="base", measures=["kl"])["kl"].max() == 0

    def test_names(self, tokenizer):
        with pytest.raises(MeasureError, match="unknown measure 'synapses'"):
            run(tiny_gpt2(), tiny_gpt2(), tokenizer, measures=["synapses"])
        with pytest.raises(LoadError, match="there is no folder"):
            compare("./nowhere", tiny_gpt2(), ["a"])


@pytest.mark.parametrize("name", ["stories260K-hf", "stories3M-hf"])
def test_on_real_models(real_data, name):
    """A real pretrained Llama, and the same with one head's W_O scaled."""
    from transformers import AutoModelForCausalLM

    folder = real_data / name
    if not folder.is_dir():
        pytest.skip(f"no real model at {folder}")
    tuned = AutoModelForCausalLM.from_pretrained(folder)
    d_head = tuned.config.head_dim
    with torch.no_grad():
        tuned.model.layers[3].self_attn.o_proj.weight[:, 2 * d_head : 3 * d_head] *= 1.5
    texts = ["This movie was really", "One day, a little girl", "The big dog was very", "Tom and Lily were so"]
    prompts = interp.Prompts(texts, answers=(" sad", " happy"), multi_token="first")
    tokenizer = interp.Policy.load(folder).tokenizer
    cmp = compare(folder, tuned, prompts, tokenizer=tokenizer, measures="all")
    assert np.argmax(cmp["ov_change"].values) == 3 * cmp.dataset.sizes["head"] + 2
    assert (cmp["ov_change"].values > 0).sum() == 1
    assert cmp["completeness_error"].max() < 1e-4
    itself = compare(folder, folder, prompts, measures="all")
    assert all(float(abs(itself[name]).max()) == 0 for name in DIFFERENCES)
