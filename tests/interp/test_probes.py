"""Probes: a concept that is written into the residual is found there and then, and nothing where there is nothing."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import GPT2ForSequenceClassification

from interp import plot
from interp.errors import MeasureError, PromptError
from interp.io import write_json
from interp.models import Policy, RewardModel
from interp.pair import CheckpointPair
from interp.reward.checkpoints import folder_steps, load_any
from interp.reward.probes import CAVEAT, half_way, probes
from interp.reward.texts import activations
from tests.conftest import save, tiny_gpt2, tiny_llama, word_tokenizer
from tests.interp.architectures import build
from tests.interp.figures import drawn, words

FILLER = ["movie", "film", "plot", "acting", "this", "the", "really", "very"]


def texts(count: int, seed: int = 0) -> tuple[list[str], list[int]]:
    """Texts of eight words; those of label 1 hold " good" in the middle, the others " bad"."""
    rng = np.random.default_rng(seed)
    labels = [int(value) for value in rng.permutation(np.arange(count) % 2)]
    said = []
    for label in labels:
        row = [str(word) for word in rng.choice(FILLER, 8)]
        row[4] = "good" if label else "bad"
        said.append(" ".join(row))
    return said, labels


def confused(nats: float) -> Policy:
    """A model whose embedding tells " good" from " bad" by so much: at 0 the two words are one to it."""
    model, tokenizer = tiny_gpt2(), word_tokenizer()
    good, bad = (tokenizer.encode(f" {word}")[0] for word in ("good", "bad"))
    with torch.no_grad():
        table = model.transformer.wte.weight
        table[good] = table[bad]
        table[good] += nats * torch.randn(table.shape[1], generator=torch.Generator().manual_seed(0))
    return Policy.load(model, tokenizer=tokenizer)


SAID, LABELS = texts(96)


@pytest.fixture(scope="module")
def learned():
    models = {
        "early": {0: confused(0.0), 10: confused(3.0), 20: confused(3.0), 40: confused(3.0)},
        "late": {0: confused(0.0), 50: confused(0.0), 100: confused(3.0)},
    }
    return probes(models, SAID, LABELS, draws=3)


def test_what_a_model_came_to_tell_apart_is_found_when_it_did(learned):
    data = learned.dataset
    first, last = data.isel(step=0), data.sel(model="early", step=3)
    assert (np.abs(first["accuracy"] - 0.5) < 0.2).all()
    assert (last["accuracy"] > 0.85).all() and (last["auroc"] > 0.9).all() and (last["gain_low"] > 0.15).all()
    assert float(data["half_gain"].sel(model="early")) < 0.25 < 0.5 < float(data["half_gain"].sel(model="late"))
    assert np.isnan(data["accuracy"].sel(model="late", step=3)).all()
    assert data["fraction"].sel(model="late").values[:3].tolist() == [0, 0.5, 1]
    assert data["trained"].sel(model="early").values.tolist() == [0, 10, 20, 40]
    np.testing.assert_allclose(data["gain"].isel(step=0).values[np.isfinite(data["gain"].isel(step=0))], 0)
    assert float(np.abs(data["null_accuracy"].mean("permutation") - 0.5).max()) < 0.2


def test_the_summary_says_what_it_cannot_say(learned):
    frame = learned.summary()
    assert frame.attrs["caveat"] == CAVEAT == learned.dataset.attrs["caveat"] and "not what the model uses" in CAVEAT
    assert len(frame) == 6 and frame["p"].isna().all()  # three shuffles give no p
    row = frame[frame["finding"].str.startswith("late") & frame["finding"].str.contains("gain over")].iloc[0]
    assert row["estimate_low"] > 0


def test_it_prints_what_it_cannot_say(learned):
    said = repr(learned)
    assert CAVEAT in learned.notes() and CAVEAT[:60] in said and "Dataset" not in said
    assert "3 shuffles of the labels" in said


def test_a_cell_is_scikit_learns_own(learned):
    values = activations(confused(3.0), SAID)[2]
    labels, judged, areas = np.array(LABELS), np.zeros(96), []
    folds = StratifiedGroupKFold(n_splits=5, shuffle=True, random_state=0)
    for train, test in folds.split(values, labels, np.unique([str(i) for i in range(96)], return_inverse=True)[1]):
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000))
        probe.fit(values[train], labels[train])
        judged[test] = probe.predict(values[test])
        areas.append(roc_auc_score(labels[test], probe.decision_function(values[test])))
    cell = learned.dataset.sel(model="early", step=1, layer=2)
    assert float(cell["accuracy"]) == pytest.approx(balanced_accuracy_score(labels, judged))
    assert float(cell["auroc"]) == pytest.approx(np.mean(areas))


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> CheckpointPair:
    """A pair on disk that learned, with a reward model that kept checkpoints."""
    folder = tmp_path_factory.mktemp("stored") / "pair"
    for step, nats in ((0, 0.0), (10, 3.0), (20, 3.0)):
        policy = confused(nats)
        save(policy.model, folder / f"step{step}", policy.tokenizer)
    for part in ("checkpoints/step-000000", "checkpoints/step-000004", "."):
        torch.manual_seed(len(part))
        save(build("GPT2ForSequenceClassification", vocab_size=len(word_tokenizer())), folder / "reward" / part,
             word_tokenizer())  # fmt: skip
    write_json(folder / "reward/card.json", {"steps": 8})
    manifest = {
        "engine": "native", "config": {}, "seed": 0, "versions": {}, "base": {"path": "step0"},
        "tuned": {"path": "step20"}, "final": {"steps": 20}, "checkpoints": [{"step": 10, "path": "step10"}],
        "reward": {"path": "reward", "label": "LABEL_0", "output": "logit", "reads": "sample"},
    }  # fmt: skip
    return CheckpointPair.write(folder, manifest)


def test_a_pairs_folder_gives_policy_and_reward_model(stored):
    found = probes(str(stored.path), SAID, LABELS, draws=0, folds=2).dataset
    assert found["model"].values.tolist() == ["policy", "reward model"] and found.attrs["notes"] == ""
    assert found["trained"].values.tolist() == [[0, 10, 20], [0, 4, 8]]
    same = {"policy": stored, "reward model": stored.path / "reward"}
    assert found.identical(probes(same, SAID, LABELS, draws=0, folds=2).dataset)
    assert folder_steps(stored.path / "reward").keys() == {0, 4, 8}
    assert isinstance(load_any(stored.path / "reward"), RewardModel) and isinstance(load_any(stored.base), Policy)


def test_what_was_not_kept_is_said(stored, tmp_path):
    save(build("GPT2ForSequenceClassification", vocab_size=len(word_tokenizer())), tmp_path / "bare", word_tokenizer())
    how = {**stored.manifest, "reward": {"folder": str(tmp_path / "bare")}}
    found = probes(CheckpointPair(stored.path, how), SAID, LABELS, draws=0, folds=2)
    assert found.dataset["model"].values.tolist() == ["policy"]
    assert "kept no checkpoints; to see its training too" in found.notes()[0]
    late = probes({"policy": {10: stored.checkpoints[10], 20: stored.tuned}}, SAID, LABELS, draws=0, folds=2)
    assert "first checkpoint is that of step 10 of 20" in late.notes()[0]
    assert late.summary()["finding"].str.contains("gain over step 10").any()
    assert late.dataset["fraction"].values.tolist() == [[0.5, 1]]


def test_a_concept_that_is_not_there_is_not_found():
    policy = confused(0.0)
    found = probes({"policy": {0: policy, 1: policy}}, SAID, LABELS, folds=2)
    cells = found.dataset.isel(step=-1, model=0)
    assert (cells["accuracy"] <= cells["null_accuracy"].max("permutation")).all()
    row = found.summary().iloc[0]  # beside the best of all layers, as the layer was chosen
    best = cells["null_accuracy"].max("layer")
    assert (row["null_low"], row["null_high"]) == (float(best.min()), float(best.max()))
    assert (found.dataset["gain"] == 0).all() and np.isnan(float(found.dataset["half_gain"][0]))
    assert found.summary()["p"].iloc[0] > 0.05


def tiny() -> Policy:
    return Policy.load(tiny_gpt2(1), tokenizer=word_tokenizer())


def test_texts_of_one_group_never_judge_each_other():
    # The text itself tells its group, the group its label, and nothing tells the label of a new group.
    rng = np.random.default_rng(0)
    groups = [f"g{index // 8}" for index in range(96)]
    labels = [int(label) for label in np.repeat(rng.permutation(12) % 2, 8)]
    said = []
    for index in range(96):
        word = FILLER[index // 8 % 8]
        said.append(" ".join([word] * (3 + index // 64)) + " " + FILLER[index % 8])
    model = {"policy": {0: tiny(), 1: tiny()}}
    leaky = probes(model, said, labels, draws=0, folds=3).dataset["accuracy"].max()
    honest = probes(model, said, labels, groups=groups, draws=2, folds=3).dataset
    assert float(honest["accuracy"].mean()) < float(leaky) - 0.2


def test_activations_are_the_models_own():
    policy = tiny()
    found = activations(policy, SAID[:5], batch_size=2)
    read = activations(policy, SAID[:5], pooling="read", batch_size=3)
    for row, text in enumerate(SAID[:5]):
        ids = torch.tensor([policy.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            hidden = policy.model(ids, output_hidden_states=True).hidden_states[:-1]
        for layer, state in enumerate(hidden):
            np.testing.assert_allclose(found[layer, row], state[0].mean(0), atol=1e-5)
            np.testing.assert_allclose(read[layer, row], state[0, -1], atol=1e-5)
    assert found.shape == (4, 5, 32)


@pytest.mark.parametrize("pooling", ["mean", "read"])
@pytest.mark.parametrize(
    "name", ["BertForSequenceClassification", "LlamaForSequenceClassification", "GPT2ForSequenceClassification"]
)
def test_reward_models_are_read_too(name, pooling):
    reward = RewardModel(build(name, vocab_size=len(word_tokenizer())), word_tokenizer(), "LABEL_1", "logit", {})
    found = activations(reward, SAID[:6], pooling=pooling, batch_size=4)
    np.testing.assert_allclose(found, activations(reward, SAID[:6], pooling=pooling, batch_size=1), atol=1e-5)
    assert found.shape == (4, 6, 32) and np.isfinite(found).all()


def test_an_encoder_decoder_is_read_in_its_encoder():
    policy = Policy.load(
        build("T5ForConditionalGeneration", vocab_size=len(word_tokenizer())), tokenizer=word_tokenizer(), check=False
    )
    for pooling in ("mean", "read"):
        found = activations(policy, SAID[:3], pooling=pooling, batch_size=2)
        assert found.shape == (4, 3, 32)
        np.testing.assert_allclose(found, activations(policy, SAID[:3], pooling=pooling, batch_size=1), atol=1e-5)


def test_models_are_loaded_when_their_turn_comes_and_the_same_twice():
    calls = []

    def load(step: int, nats: float):
        def now() -> Policy:
            calls.append(step)
            return confused(nats)

        return now

    models = {"policy": {10: load(10, 3.0), 0: load(0, 0.0)}}
    first = probes(models, SAID, LABELS, draws=2).dataset
    assert calls == [0, 10]
    assert first.identical(probes(models, SAID, LABELS, draws=2, batch_size=32).dataset)


@pytest.mark.parametrize(
    ("gain", "want"),
    [([0, 1, 1], 0.25), ([0, 0, 1], 0.75), ([0, 0.5, 1], 0.5), ([0, 1, 0.5], 0.125), ([0, 1, -0.1], 1), ([0, 0, 0], 1)],
    ids=["early", "late", "even", "overshoot", "lost", "nothing"],
)
def test_half_way(gain, want):
    assert half_way(np.array(gain, dtype=float), np.array([0, 0.5, 1])) == pytest.approx(want)


@pytest.mark.usefixtures("as_a_user")
def test_bad_input():
    model = {"policy": {0: tiny(), 1: tiny()}}
    for changes, error, message in (
        ({"labels": LABELS[:-1]}, PromptError, "96 texts but 95 labels"),
        ({"labels": [2, *LABELS[1:]]}, MeasureError, "1 .the concept is there. or 0, not"),
        ({"labels": [1] * 3 + [0] * 93}, MeasureError, "the rarer one has 3"),
        ({"groups": ["a"] * 96}, MeasureError, "the rarer one has 1"),
        ({"texts": ["", *SAID[1:]]}, PromptError, "empty"),
        ({"texts": [" good" * 70, *SAID[1:]]}, PromptError, "a model reads 64"),
        ({"pooling": "max"}, MeasureError, "pooling is"),
        ({"strength": 0.0}, MeasureError, "strength above 0"),
        ({"models": {}}, MeasureError, "no model"),
        ({"models": {"policy": {0: tiny()}}}, MeasureError, "policy has 1 checkpoint"),
        ({"models": {0: tiny(), 1: tiny()}}, MeasureError, "name each model"),
        ({"models": {"policy": "nowhere"}}, MeasureError, "policy: nowhere is no pair's folder"),
        (
            {"models": {"policy": {0: tiny(), 1: Policy.load(tiny_gpt2(n_layer=2), tokenizer=word_tokenizer())}}},
            MeasureError,
            "3 before",
        ),
    ):
        arguments = {"models": model, "texts": SAID, "labels": LABELS, "draws": 1} | changes
        with pytest.raises(error, match=message):
            probes(**arguments)


def test_models_are_given_back_as_they_were():
    model = tiny_llama()
    model.train()
    policy = Policy.load(model, tokenizer=word_tokenizer())
    activations(policy, SAID[:2])
    assert model.training and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("width", [17.0, 8.5])
def test_the_figure_names_the_models_and_their_layers(learned, width):
    figure = drawn(plot.probes(learned, width=width))
    assert "shuffled labels" in words(figure)
    for name in ("early", "late"):
        layer = int(learned.dataset["best_layer"].sel(model=name))
        assert f"{name}, layer {layer} of 3" in words(figure)


def test_a_classifier_among_the_models():
    torch.manual_seed(0)
    heads = GPT2ForSequenceClassification(tiny_gpt2().config)
    reward = RewardModel(heads.eval(), word_tokenizer(), "LABEL_0", "logit", {})
    found = probes({"policy": {0: tiny(), 1: tiny()}, "reward": {0: reward, 5: reward}}, SAID, LABELS, draws=0)
    assert found.dataset["model"].values.tolist() == ["policy", "reward"]
    assert found.summary()["null_low"].isna().all()
    drawn(plot.probes(found))
