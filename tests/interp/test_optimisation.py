"""Reward against KL over a training: planted courses, and a course of models made by hand."""

import numpy as np
import pytest
import torch

from interp.errors import MeasureError, TokenizerMismatch
from interp.models import Policy
from interp.pair import CheckpointPair
from interp.plot import join
from interp.prompts import Prompts
from interp.reward.optimisation import curve, over_optimisation
from tests.conftest import save, tiny_gpt2, word_tokenizer
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
    assert float(data["gold_fall_lower"]) < -1.6 < float(data["gold_fall_upper"]) < 0
    assert float(data["reward_fall"]) == 0
    np.testing.assert_allclose(data["reward"], arrays["score"].mean((0, 2)))
    np.testing.assert_allclose(data["kl_token"], arrays["kl"].sum((0, 2)) / arrays["length"].sum((0, 2)))
    np.testing.assert_allclose(data["distance"] ** 2, data["kl_response"])
    spread = arrays["score"][:, 0].std()
    np.testing.assert_allclose(data["reward_gain"] * spread + data["reward"][0], data["reward"])
    assert (data["gold_lower"] < data["gold"]).all() and (data["gold"] < data["gold_upper"]).all()


def test_where_gold_does_not_fall_no_fall_is_claimed():
    falls = []
    for seed in range(40):
        arrays, groups = course([0.0] * 5, seed=seed)
        frame = curve(STEPS, arrays, groups, words=WORDS).summary()
        row = frame[frame["finding"].str.contains("gold .*change from its peak")].iloc[0]
        falls.append(row["upper"] < 0)
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
    data = over_optimisation(made, goods, Prompts(TEXTS), gold=moderation, max_new_tokens=8, samples=8).dataset
    assert data["step"].values.tolist() == [0, 10, 20]
    assert (np.diff(data["reward"]) > 0).all() and (np.diff(data["kl_token"]) > 0).all()
    assert float(data["kl_response"][0]) == 0 and float(data["reward_gain"][0]) == pytest.approx(0, abs=1e-12)
    assert float(data["gold"][2]) < float(data["gold"][0])
    again = over_optimisation(made, goods, Prompts(TEXTS), gold=moderation, max_new_tokens=8, samples=8, batch_size=5)
    # Rounding may tip a sample whose random number falls on the edge between two tokens.
    assert np.isclose(again.dataset["kl"], data["kl"], atol=1e-3).mean() > 0.98
    assert (again.dataset["score"] == data["score"]).mean() > 0.98


def test_a_pair_on_disk(tmp_path, made):
    for step, policy in made.items():
        save(policy.model, tmp_path / f"step{step}", policy.tokenizer)
    references = {step: {"path": f"step{step}"} for step in made}
    manifest = {
        "engine": "native", "config": {}, "seed": 0, "versions": {}, "base": references[0], "tuned": references[20],
        "final": {"steps": 20}, "checkpoints": [{"step": 10, **references[10]}],
    }  # fmt: skip
    pair = CheckpointPair.write(tmp_path, manifest)
    found = over_optimisation(pair, goods, Prompts(TEXTS), max_new_tokens=4).dataset
    assert found["step"].values.tolist() == [0, 10, 20] and "gold" not in found
    want = over_optimisation(made, goods, Prompts(TEXTS), max_new_tokens=4).dataset
    assert (found["score"] == want["score"]).all()
    bare = CheckpointPair.write(tmp_path, {**manifest, "checkpoints": []})
    with pytest.raises(MeasureError, match="no checkpoints"):
        over_optimisation(bare, goods, Prompts(TEXTS))


@pytest.mark.usefixtures("as_a_user")
def test_bad_input(made):
    prompts = Prompts(TEXTS)
    with pytest.raises(MeasureError, match="at least two steps"):
        over_optimisation({0: made[0]}, goods, prompts)
    with pytest.raises(MeasureError, match="at least 1 a prompt"):
        over_optimisation(made, goods, prompts, samples=0)
    with pytest.raises(MeasureError, match="no scale"):
        over_optimisation(made, lambda outputs, **_: [0.0] * len(outputs), prompts, max_new_tokens=2)
    other = word_tokenizer()
    other.add_tokens(["<new>"])
    wider = Policy.load(tiny_gpt2(vocab_size=len(other)), tokenizer=other)
    with pytest.raises(TokenizerMismatch, match="step 5"):
        over_optimisation({0: made[0], 5: wider}, goods, prompts, max_new_tokens=2)


@pytest.mark.parametrize("width", [17.0, 8.5])
def test_the_figure_marks_golds_peak(width):
    arrays, groups = course([0.0, 0.5, 1.0, 0.4, -0.6])
    figure = drawn(join.over_optimisation(curve(STEPS, arrays, groups, words=WORDS), width=width))
    assert "gold's peak" in words(figure)
    rising = course([0.0, 1.0, 2.0, 3.0, 4.0])
    assert "gold's peak" not in words(drawn(join.over_optimisation(curve(STEPS, *rising, words=WORDS), width=width)))
