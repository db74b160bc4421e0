"""Reward against KL over a training: planted courses, and a course of models made by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from scipy.stats import spearmanr

from interp import plot
from interp.errors import LoadError, MeasureError, TokenizerMismatch
from interp.models import Policy, RewardModel
from interp.pair import CheckpointPair
from interp.prompts import Prompts
from interp.reward.over_optimisation import CAVEAT, curve, over_optimisation
from interp.sampling import Sampling
from tests.conftest import save, tiny_gpt2, word_tokenizer
from tests.interp.architectures import build
from tests.interp.figures import drawn, words
from tests.interp.test_implicit import TEXTS

WORDS = {"score": ("reward: joy", "probability"), "gold_score": ("reward: gold", "logits")}
STEPS = [0, 20, 40, 60, 80]


def course(gold: list[float], *, prompts: int = 40, seed: int = 0):
    """A proxy that rises all along, and a gold reward whose means are given."""
    rng = np.random.default_rng(seed)
    shape = (prompts, len(STEPS), 3)
    level = np.array(STEPS)[:, None]
    arrays = {
        "score": level / 80 + rng.normal(0, 0.2, shape),
        "gold_score": np.array(gold)[:, None] + rng.normal(0, 0.3, shape),
        "kl": level / 10 * rng.uniform(0.8, 1.2, shape),
        "length": rng.integers(5, 25, shape).astype(float),
    }
    return arrays, np.arange(prompts)


def test_a_planted_peak_is_found_and_its_fall_estimated():
    arrays, groups = course([0.0, 0.5, 1.0, 0.4, -0.6])
    data = curve(STEPS, arrays, groups, words=WORDS).dataset
    assert float(data["gold_peak"]) == 40 and float(data["reward_peak"]) == 80
    assert float(data["gold_fall_low"]) < -1.6 < float(data["gold_fall_high"]) < 0
    assert float(data["reward_fall"]) == 0
    np.testing.assert_allclose(data["reward"], arrays["score"].mean((0, 2)))
    np.testing.assert_allclose(data["kl_token"], arrays["kl"].sum((0, 2)) / arrays["length"].sum((0, 2)))
    np.testing.assert_allclose(data["distance"] ** 2, data["kl_response"])
    spread = arrays["score"][:, 0].std()
    np.testing.assert_allclose(data["reward_gain"] * spread + data["reward"][0], data["reward"])
    assert (data["gold_low"] < data["gold"]).all() and (data["gold"] < data["gold_high"]).all()


def test_gold_behind_the_optimised_reward_by_hand():
    arrays, groups = course([0.0, 0.5, 1.0, 0.4, -0.6])
    found = curve(STEPS, arrays, groups, words=WORDS)
    data, gains = found.dataset, {}
    for name in ("score", "gold_score"):
        start = arrays[name][:, 0]
        gains[name] = (arrays[name] - start.mean()) / start.std()
    gap = (gains["gold_score"] - gains["score"]).mean((0, 2))
    np.testing.assert_allclose(data["gap"], gap, atol=1e-12)
    assert float(data["gap_high"][-1]) < 0 and (data["gap_low"] <= data["gap"]).all()
    for index in range(len(STEPS)):
        want = spearmanr(*(arrays[name][:, index].ravel() for name in ("score", "gold_score"))).statistic
        assert float(data["agreement"][index]) == pytest.approx(want)
    table = found.by_step()
    assert table["step"].tolist() == STEPS and np.allclose(table["gap"], gap)


def test_the_scale_of_a_gain_is_an_estimate_too():
    # Base's scores are skewed: a few prompts set their standard deviation, and so every gain.
    covered, narrow = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        score = rng.lognormal(0, 0.8, (60, 2, 2))
        score[:, 1] += 6.0
        arrays = {"score": score, "kl": score * 0 + 1, "length": score * 0 + 5}
        data = curve([0, 1], arrays, np.arange(60), words=WORDS, seed=seed).dataset.sel(step=1)
        truth = 6 / np.sqrt((np.exp(0.64) - 1) * np.exp(0.64))
        covered.append(float(data["reward_gain_low"]) <= truth <= float(data["reward_gain_high"]))
        spread = score[:, 0].std()
        narrow.append(float(data["reward_low"]) <= score[:, 0].mean() + truth * spread <= float(data["reward_high"]))
    assert np.mean(covered) > 0.75 and np.mean(narrow) < np.mean(covered) - 0.2


def test_it_prints_what_was_found_and_how_to_go_on():
    arrays, groups = course([0.0, 0.5, 1.0, 0.4, -0.6])
    said = repr(curve(STEPS, arrays, groups, words=WORDS))
    assert "steps 0, 20, 40, 60, 80: 40 prompts, 3 samples each" in said and ".by_step()" in said
    assert "gold reward: gold: step 80" in said and "Dataset" not in said
    assert CAVEAT.split(". ")[0] in said and "saturates" in CAVEAT


def test_the_words_say_on_which_prompts_peak_and_change_were_found():
    halves, same, few = (
        "\n".join(curve(STEPS, *course([0.0, 0.5, 1.0, 0.4, -0.6], prompts=count), words=WORDS).summary()["finding"])
        for count in (40, 12, 5)
    )
    assert "step of the highest mean, on one half of the prompts" in halves
    assert "change from its peak to step 80, on the other half of the prompts" in halves and "unsure" not in halves
    assert "half" not in same and "step 80, on the same prompts (so too low)" in same and "unsure" not in same
    assert few.count("at step 80 (unsure: base's sd is that of 5 prompts)") == 3


def test_where_gold_does_not_fall_no_fall_is_claimed():
    falls = []
    for seed in range(40):
        arrays, groups = course([0.0] * 5, seed=seed)
        frame = curve(STEPS, arrays, groups, words=WORDS).summary()
        row = frame[frame["finding"].str.contains("gold .*change from its peak")].iloc[0]
        falls.append(row["estimate_high"] < 0)
    assert np.mean(falls) < 0.12  # chosen and estimated on the same prompts it would be far more


@pytest.fixture(scope="module")
def made() -> dict[int, Policy]:
    """Base, and on the way more and more nats on the logit of " good"."""
    tokenizer, out = word_tokenizer(), {}
    for step, nats in ((0, 0.0), (10, 1.0), (20, 4.0)):
        model = tiny_gpt2(tie_word_embeddings=False)
        with torch.no_grad():
            model.lm_head.weight.mul_(0.3)
            gain, bias = (p.double() for p in (model.transformer.ln_f.weight, model.transformer.ln_f.bias))
            model.lm_head.weight[tokenizer.encode(" good")[0]] += (nats / gain / (bias / gain).sum()).float()
        out[step] = Policy.load(model, tokenizer=tokenizer)
    return out


def goods(*, outputs, **_):
    return [float(text.count(" good")) for text in outputs]


def moderation(*, outputs, **_):
    return [-float(text.count(" good") ** 2) for text in outputs]


def test_models_on_the_way(made):
    data = over_optimisation(made, goods, Prompts(TEXTS), gold=moderation, sampling=Sampling(8, 8)).dataset
    assert data["step"].values.tolist() == [0, 10, 20]
    assert (np.diff(data["reward"]) > 0).all() and (np.diff(data["kl_token"]) > 0).all()
    assert float(data["kl_response"][0]) == 0 and float(data["reward_gain"][0]) == pytest.approx(0, abs=1e-12)
    assert float(data["gold"][2]) < float(data["gold"][0])
    again = over_optimisation(made, goods, Prompts(TEXTS), gold=moderation, sampling=Sampling(8, 8), batch_size=5)
    # Rounding may tip a sample whose random number falls on the edge between two tokens.
    assert np.isclose(again.dataset["kl"], data["kl"], atol=1e-3).mean() > 0.98
    assert (again.dataset["score"] == data["score"]).mean() > 0.98


def judge(seed: int, folder, *, names: tuple[str, ...] = ("sad", "joy")) -> str:
    """A classifier of random weights on disk."""
    torch.manual_seed(seed)
    model = build("GPT2ForSequenceClassification", vocab_size=len(word_tokenizer()), num_labels=len(names))
    with torch.no_grad():
        model.score.weight.normal_(generator=torch.Generator().manual_seed(seed))
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}
    save(model, folder, word_tokenizer())
    return str(folder)


@pytest.fixture(scope="module")
def pair(tmp_path_factory, made) -> CheckpointPair:
    folder = tmp_path_factory.mktemp("pairs") / "joy"
    for step, policy in made.items():
        save(policy.model, folder / f"step{step}", policy.tokenizer)
    judge(0, folder / "reward")
    references = {step: {"path": f"step{step}"} for step in made}
    (folder / "completions").mkdir()
    rows = pd.DataFrame({"prompt": TEXTS * 2, "completion": ""})
    rows.to_parquet(folder / "completions/step-000000.parquet", index=False)
    config = {"generate": {"max_new_tokens": 4}, "train": {"total_steps": 20}}
    manifest = {
        "engine": "native", "config": config, "seed": 0, "versions": {}, "base": references[0], "tuned": references[20],
        "final": {"steps": 20}, "checkpoints": [{"step": 10, **references[10]}],
        "reward": {"path": "reward", "label": "joy", "output": "logit", "reads": "output"},
    }  # fmt: skip
    return CheckpointPair.write(folder, manifest)


def test_a_pair_on_disk(pair, made):
    found = over_optimisation(pair, goods, Prompts(TEXTS)).dataset
    assert found["step"].values.tolist() == [0, 10, 20] and "gold" not in found and "gap" not in found
    want = over_optimisation(made, goods, Prompts(TEXTS), sampling=Sampling(max_new_tokens=4)).dataset
    assert (found["score"] == want["score"]).all()


def test_a_pairs_folder_is_enough(pair, made, tmp_path):
    gold = judge(1, tmp_path / "gold", names=("joy", "fear"))
    found = over_optimisation(str(pair.path), gold=gold).dataset
    models = [RewardModel.load(place, label="joy", output="logit") for place in (pair.reward, gold)]
    want = over_optimisation(
        made, models[0], TEXTS, gold=models[1], reads="output", sampling=Sampling(max_new_tokens=4)
    ).dataset
    xr.testing.assert_identical(found, want)
    by_name = over_optimisation(pair, pair.reward, gold=RewardModel.load(gold, label="fear")).dataset
    assert (by_name["score"] == found["score"]).all() and (by_name["gold_score"] != found["gold_score"]).any()
    assert by_name["gold_score"].attrs["long_name"] == "reward: fear"


@pytest.mark.usefixtures("as_a_user")
def test_what_a_pair_cannot_tell(pair, made, tmp_path):
    gold = judge(1, tmp_path / "gold", names=("happy", "sad"))
    with pytest.raises(
        LoadError, match=r"gold: .* no label 'joy'; pass interp.load_reward.* as gold=, one of happy, sad"
    ):
        over_optimisation(pair, gold=gold)
    with pytest.raises(MeasureError, match="the very reward that was optimised"):
        over_optimisation(pair, gold=judge(0, tmp_path / "copy"))
    with pytest.raises(MeasureError, match="the very reward that was optimised"):
        over_optimisation(made, goods, TEXTS, gold=goods)
    with pytest.raises(TypeError, match="no parameter 'gold_label' any more; pass gold=interp.load_reward"):
        over_optimisation(pair, gold=goods, gold_label="joy")
    with pytest.raises(MeasureError, match="what they were tuned toward; pass reward="):
        over_optimisation(made)
    with pytest.raises(MeasureError, match="what they were judged on; pass prompts="):
        over_optimisation(made, goods)
    with pytest.raises(MeasureError, match="no pair.json"):
        over_optimisation(tmp_path, goods)
    bare = CheckpointPair(pair.path, {**pair.manifest, "checkpoints": []})
    with pytest.raises(MeasureError, match=r"kept no checkpoints.*--set train.checkpoint_interval=2"):
        over_optimisation(bare, goods)
    function = CheckpointPair(pair.path, {**pair.manifest, "reward": None})
    with pytest.raises(MeasureError, match="a function or a sum of rewards, not kept; pass reward="):
        over_optimisation(function)
    silent = CheckpointPair(tmp_path, pair.manifest)
    with pytest.raises(MeasureError, match="kept no samples that say which prompts"):
        over_optimisation(silent, goods)


@pytest.mark.usefixtures("as_a_user")
def test_bad_input(made):
    prompts = Prompts(TEXTS)
    with pytest.raises(MeasureError, match="at least two steps"):
        over_optimisation({0: made[0]}, goods, prompts)
    with pytest.raises(TypeError, match=r"no parameter 'samples' any more; pass sampling=Sampling\(samples=...\)"):
        over_optimisation(made, goods, prompts, samples=2)
    with pytest.raises(MeasureError, match="no scale"):
        over_optimisation(made, lambda outputs, **_: [0.0] * len(outputs), prompts, sampling=Sampling(max_new_tokens=2))
    other = word_tokenizer()
    other.add_tokens(["<new>"])
    wider = Policy.load(tiny_gpt2(vocab_size=len(other)), tokenizer=other)
    with pytest.raises(TokenizerMismatch, match="step 5"):
        over_optimisation({0: made[0], 5: wider}, goods, prompts, sampling=Sampling(max_new_tokens=2))


@pytest.mark.parametrize("width", [17.0, 8.5])
def test_the_figure_marks_golds_peak(width):
    arrays, groups = course([0.0, 0.5, 1.0, 0.4, -0.6])
    figure = drawn(plot.over_optimisation(curve(STEPS, arrays, groups, words=WORDS), width=width))
    assert "gold's peak" in words(figure)
    rising = course([0.0, 1.0, 2.0, 3.0, 4.0])
    assert "gold's peak" not in words(drawn(plot.over_optimisation(curve(STEPS, *rising, words=WORDS), width=width)))
