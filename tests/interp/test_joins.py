"""What compare(..., reward=...) joins: against the functions of interp.reward, plain loops and the files on disk."""

import json
import sys

import numpy as np
import pytest
import torch
import xarray as xr

import interp
from interp import reward
from interp.cli import main
from interp.errors import MeasureError
from interp.io import write_json
from interp.models.optimised import Optimised
from interp.prompts import response_ends, response_texts
from interp.sampling import Sampling
from tests.conftest import save, tiny_gpt2, tiny_llama
from tests.interp.comparisons import compare
from tests.interp.test_models import classifier

TEXTS = [
    " this movie was really",
    " the plot was",
    " a very boring film",
    " fun",
    " a film",
    " the acting was very",
] * 2
STEPS = 6


def run(tokenizer, *, base=None, tuned=None, **options):
    scorer = options.pop("reward", None) or interp.RewardModel.load(classifier(), tokenizer=tokenizer, label="POS")
    scorer = interp.load_reward(scorer, optimised=options.pop("optimised", None))
    models = base or tiny_gpt2(0), tuned or tiny_gpt2(1)
    return compare(*models, TEXTS, tokenizer=tokenizer, reward=scorer, max_new_tokens=STEPS, **options)


@pytest.fixture(scope="module")
def cmp(tokenizer):
    return run(tokenizer)


def test_a_reward_brings_its_joins(cmp):
    measures = json.loads(cmp.dataset.attrs["settings"])["measures"]
    assert measures == [*interp.DEFAULT_MEASURES, "completions", "implicit_reward", "token_join"]
    assert cmp["completion"].sizes["draw"] == 4
    readings = cmp.summary()["reading"].tolist()
    assert {"implicit reward", "token join"} <= set(readings)


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_the_log_probabilities_are_those_of_the_bare_models(make, tokenizer):
    models = make(0), make(1)
    found = run(tokenizer, base=models[0], tuned=models[1], measures="implicit_reward")
    for row, text in enumerate(TEXTS[:4]):
        prompt = tokenizer(text)["input_ids"]
        for source in ("base", "tuned"):
            cell = found.dataset.isel(prompt=row, draw=2).sel(source=source)
            ids = [int(token) for token in cell["response_id"].values if token >= 0]
            assert ids
            for name, model in zip(("base", "tuned"), models, strict=True):
                with torch.no_grad():
                    logits = model(torch.tensor([[*prompt, *ids]])).logits[0].double().log_softmax(-1)
                want = [float(logits[len(prompt) - 1 + step, token]) for step, token in enumerate(ids)]
                values = cell["response_logprob"].sel(model=name).values
                np.testing.assert_allclose(values[: len(ids)], want, atol=1e-5)
                assert np.isnan(values[len(ids) :]).all()


def test_the_implicit_reward_is_what_its_function_gives(cmp, tokenizer):
    scorer = interp.RewardModel.load(classifier(), tokenizer=tokenizer, label="POS")
    policies = [interp.Policy.load(tiny_gpt2(seed), tokenizer=tokenizer) for seed in (0, 1)]
    alone = reward.implicit_reward(*policies, scorer, TEXTS, sampling=Sampling(8, STEPS))
    ours = cmp.implicit_reward
    assert (ours.dataset["completion"].values == alone.dataset["completion"].values).all()
    for name in ("log_ratio", "reward", "score", "length", "residual", "null_slope", "spearman", "token_log_ratio"):
        np.testing.assert_allclose(ours.dataset[name], alone.dataset[name], rtol=1e-4, atol=1e-4, err_msg=name)
    first, second = (each.summary().select_dtypes("number") for each in (ours, alone))
    np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-4)
    row = cmp.summary().query("reading == 'implicit reward'").iloc[0]
    assert row["estimate"] == pytest.approx(float(alone.dataset["slope"]), rel=1e-3)
    assert row["permutation_p"] == alone.summary()["p"][0]
    assert len(ours.texts(1)) == len(alone.texts(1))


def test_the_token_join_sums_the_sampled_tokens(cmp, tokenizer):
    data, scorer = cmp.token_join.dataset, interp.RewardModel.load(classifier(), tokenizer=tokenizer, label="POS")
    sampled = cmp.dataset.sel(source="tuned").isel(draw=0)
    ratio = sampled["response_logprob"].sel(model="tuned") - sampled["response_logprob"].sel(model="base")
    checked = 0
    for row, prompt in enumerate(TEXTS):
        said = str(sampled["completion"].values[row])
        ids = [int(token) for token in sampled["response_id"].values[row] if token >= 0]
        kept = [tokenizer.decode([token], skip_special_tokens=True).strip() != "" for token in ids]
        if "\ufffd" in said or not said.strip():
            continue
        want = sum(float(value) for value, real in zip(ratio.values[row], kept, strict=False) if real)
        assert float(np.nansum(data["log_ratio"].values[row])) == pytest.approx(want, abs=1e-5)
        assert str(data["text"].values[row]) == prompt + said
        starts = data["start"].values[row]
        assert (starts[starts >= 0] >= len(prompt)).all(), "what stands before the response is not counted"
        found = reward.attribute(scorer, [prompt + said])
        whole = found.on_spans(0, [(len(prompt), len(prompt + said))])[0]
        # white space that stands alone belongs to no span
        assert float(np.nansum(data["attribution"].values[row])) == pytest.approx(whole, abs=0.02)
        checked += 1
    assert checked >= 4


def test_saved_and_loaded_with_its_joins(cmp, tmp_path):
    cmp.save(tmp_path / "out")
    loaded = interp.Comparison.load(tmp_path / "out")
    assert repr(loaded) == repr(cmp)
    for name in ("implicit_reward", "token_join"):
        ours, theirs = (getattr(each, name) for each in (cmp, loaded))
        xr.testing.assert_identical(ours.dataset.drop_attrs(), theirs.dataset.drop_attrs())
        assert repr(ours.summary()) == repr(theirs.summary())
        assert getattr(loaded.plot, name)().axes
    loaded.report(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    for text in ("Does the shift follow the reward?", "Did the tokens move that the reward reads?", "upper line"):
        assert text in page
    loaded.to_parquet(tmp_path / "tables")
    assert (tmp_path / "tables" / "implicit_slope.parquet").is_file()


def test_a_comparison_without_a_reward_says_so(tokenizer):
    plain = compare(tiny_gpt2(0), tiny_gpt2(1), TEXTS, tokenizer=tokenizer, measures="kl")
    for draw in (lambda: plain.implicit_reward, lambda: plain.token_join, plain.plot.implicit_reward):
        with pytest.raises(MeasureError, match="holds no (implicit reward|token join); compare with reward="):
            draw()
    with pytest.raises(MeasureError, match="implicit_reward joins a reward to the models; pass reward="):
        compare(tiny_gpt2(0), tiny_gpt2(1), TEXTS, tokenizer=tokenizer, measures="implicit_reward")
    with pytest.raises(TypeError, match="no parameter 'optimised' any more; pass reward=interp.load_reward"):
        compare(tiny_gpt2(0), tiny_gpt2(1), TEXTS, tokenizer=tokenizer, optimised=Optimised(clip=1))


def test_what_the_samples_do_not_allow_is_left_out_and_said(tokenizer):
    few = run(tokenizer, measures=["implicit_reward", "kl"], samples=4, optimised=np.zeros_like)
    assert "implicit_slope" not in few and any(
        "implicit_reward was left out: the reward is the same" in note for note in few.notes()
    )
    with pytest.raises(MeasureError, match="implicit_reward was left out: the reward is the same"):
        _ = few.implicit_reward
    less = run(tokenizer, samples=2)
    assert (
        "implicit_slope" not in less
        and any("pass sampling=" in note for note in less.notes())
        and "join_signed_spearman" in less
    )
    with pytest.raises(MeasureError, match="implicit_reward needs 4 samples or more, not 2; leave samples out"):
        run(tokenizer, samples=2, measures="implicit_reward")
    with pytest.raises(
        MeasureError, match="optimised is an Optimised, a function of scores or a pair's folder, not a int"
    ):
        run(tokenizer, optimised=3)


def test_the_reward_as_optimised(tokenizer):
    raw, clipped = (run(tokenizer, measures="implicit_reward", optimised=how) for how in (None, Optimised(scale=0.5)))
    np.testing.assert_allclose(clipped["implicit_reward"], 2 * raw["implicit_reward"])
    assert float(clipped["implicit_slope"]) == pytest.approx(float(raw["implicit_slope"]) / 2)
    assert "optimised" in json.loads(clipped.dataset.attrs["reward"])


def test_null_runs_and_replicates_are_joined_likewise(tokenizer):
    null, again = tiny_gpt2(5), tiny_gpt2(6)
    measures = ["implicit_reward", "token_join"]
    found = run(tokenizer, measures=measures, controls=[null], replicates=[again])
    for row, model in (("control_low", null), ("replicate_low", again)):
        alone = run(tokenizer, tuned=model, measures=measures)
        frame, own = found.summary(), alone.summary()
        for reading in ("implicit reward", "token join"):
            ours, theirs = (each[each["reading"] == reading].iloc[0] for each in (frame, own))
            assert ours[row] == pytest.approx(theirs["estimate"], rel=1e-4)


def test_base_has_no_shift(tokenizer):
    model = tiny_gpt2(0)
    same = run(tokenizer, base=model, tuned=model, measures=["implicit_reward", "token_join"])
    assert float(abs(same["implicit_log_ratio"]).max()) == 0 and float(same["implicit_slope"]) == 0


@pytest.mark.parametrize("text", [" a film é was", "naïve", "日本 x"])
def test_where_a_response_s_tokens_end(tokenizer, text):
    prompt, ids = tokenizer(" the plot")["input_ids"], tokenizer(text)["input_ids"] + [0]
    whole, heads, said = response_texts(tokenizer, [prompt], [ids])
    assert (whole, heads, said) == ([" the plot" + text], [" the plot"], [text])
    ends = response_ends(tokenizer, ids, text)
    assert ends[-1] == ends[-2] == len(text), "the end token covers nothing"
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    inside = [end for end in ends[:-1] if end is not None]
    assert inside == sorted(inside) and set(inside) <= {end for _, end in offsets}
    assert response_ends(tokenizer, ids, "something else") == [None] * len(ids)


@pytest.fixture(scope="module")
def pair(tmp_path_factory, tokenizer):
    """A pair on disk with a checkpoint, whose reward model kept its first."""
    folder = tmp_path_factory.mktemp("joined") / "pair"
    for step, seed in ((0, 0), (10, 7), (20, 1)):
        save(tiny_gpt2(seed), folder / f"step{step}", tokenizer)
    for part in (".", "checkpoints/step-000000"):
        save(classifier(), folder / "reward" / part, tokenizer)
    write_json(folder / "reward/card.json", {"steps": 8})
    ppo = {"init_kl_coef": 0.1, "cliprange_reward": 0.5, "target": None}
    manifest = {
        "engine": "native", "config": {"ppo": ppo, "generate": {"temperature": 1}}, "seed": 0, "versions": {},
        "base": {"path": "step0"}, "tuned": {"path": "step20"}, "final": {"steps": 20},
        "checkpoints": [{"step": 10, "path": "step10"}],
        "reward": {"path": "reward", "label": "POS", "output": "logit"},
    }  # fmt: skip
    return interp.CheckpointPair.write(folder, manifest)


def test_a_pair_names_its_reward_and_how_it_was_clipped(pair, cmp, tokenizer):
    options = dict(max_new_tokens=STEPS, measures=["implicit_reward"])
    found = compare(pair.base, pair.tuned, TEXTS, reward=pair, **options)
    again = compare(pair.base, pair.tuned, TEXTS, reward=str(pair.path), **options)
    xr.testing.assert_identical(found.dataset, again.dataset)
    scorer = interp.load_reward(pair.reward, label="POS", output="logit", optimised=pair)
    by_hand = compare(pair.base, pair.tuned, TEXTS, reward=scorer, **options)
    assert float(by_hand["implicit_slope"]) == float(found["implicit_slope"])
    raw = found["completion_reward"].values
    assert (np.abs(raw) > 0.5).any()
    np.testing.assert_allclose(found["implicit_reward"], np.clip(raw, -0.5, 0.5))
    assert found.implicit_reward.dataset.attrs["beta"] == 0.1
    words = "is that of the pair"
    assert words not in repr(found) and words not in repr(by_hand)
    other = compare(pair.base, pair.checkpoints[10], TEXTS, reward=pair, **options)
    assert "The reward is that of the pair" in repr(other) and "is another than this one" in repr(other)
    with pytest.raises(MeasureError, match="probes needs checkpoints; pass as reward="):
        compare(pair.base, pair.tuned, TEXTS, reward=scorer, measures="probes")


def test_a_pairs_checkpoints_show_its_training(pair, tmp_path):
    measures = ["over_optimisation", "probes"]
    found = compare(pair.base, pair.tuned, TEXTS, reward=pair, measures=measures, max_new_tokens=STEPS)
    assert {"over-optimisation", "probes"} <= set(found.summary()["reading"])
    alone = reward.over_optimisation(pair, prompts=TEXTS, sampling=Sampling(max_new_tokens=STEPS))
    for name in ("score", "kl", "reward_gain_low", "kl_token"):
        np.testing.assert_allclose(found.over_optimisation.dataset[name], alone.dataset[name], rtol=1e-5, err_msg=name)
    assert found.over_optimisation.by_step()["step"].tolist() == [0, 10, 20]
    np.testing.assert_array_equal(found.probes.dataset["trained"], [[0, 10, 20], [0, 8, np.nan]])
    found.save(tmp_path / "out")
    loaded = interp.Comparison.load(tmp_path / "out")
    assert repr(loaded) == repr(found) and repr(loaded.probes) == repr(found.probes)
    for name in measures:
        assert getattr(loaded.plot, name)().axes
    loaded.report(tmp_path / "report.html")
    assert "When a high reward could be read" in (tmp_path / "report.html").read_text()
    every = compare(pair.base, pair.tuned, TEXTS, reward=pair, measures="all", max_new_tokens=STEPS)
    assert json.loads(every.dataset.attrs["settings"])["measures"] == list(interp.MEASURES)


def test_a_pairs_checkpoints_can_be_asked_for_in_a_shell(pair, tmp_path, monkeypatch, capsys):
    asked = ["--measure", "over_optimisation", "--reward", str(pair.path), "--max-new-tokens", str(STEPS)]
    texts = [part for text in TEXTS for part in ("--prompt", text)]
    command = ["interp", "compare", pair.base, pair.tuned, *texts, *asked, "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code and "over-optimisation" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*command[:-1], str(tmp_path / "other"), "--label", "POS"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code and "has its own" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_one_model_in_memory_joins_the_same(pair):
    both, one = (
        compare(pair.base, pair.tuned, TEXTS, reward=pair, max_new_tokens=STEPS, in_memory=how,
                       measures=["implicit_reward", "token_join"])
        for how in ("all", "one")
    )  # fmt: skip
    np.testing.assert_allclose(both["implicit_slope"], one["implicit_slope"], rtol=1e-5)
    np.testing.assert_allclose(both["join_log_ratio"], one["join_log_ratio"], atol=1e-5)
