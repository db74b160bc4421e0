import copy
import itertools
import json
import sys
from pathlib import Path

import pytest
import tiny
import torch

from interp.errors import ConfigError, MissingExtra, TrainingError
from interp.models import RewardModel
from training import train
from training.classifier import from_backbone, read_labelled, train_classifier
from training.config import ClassifierConfig
from training.saving import prove, save, save_module


@pytest.fixture
def files(tmp_path):
    texts = {"negative": "bad", "positive": "good"}
    for name, word in texts.items():
        words = itertools.product(("film", "plot", "cast"), ("was", "is"), ("very", "so", "a", "it"))
        lines = [f"the {film} {was} {very} {word}" for film, was, very in words]
        (tmp_path / name).write_text("\n".join(lines) + "\nthe film was ok\n")
    return {name: str(tmp_path / name) for name in texts}


def settings(files, **changes):
    return ClassifierConfig(
        **{"files": files, "epochs": 12, "batch_size": 8, "learning_rate": 5e-3, "heldout": 0.25} | changes
    )


def test_read_labelled_drops_what_has_two_labels(files):
    texts, labels, names = read_labelled(ClassifierConfig(files=files))
    assert names == ["negative", "positive"] and len(texts) == 48 and "the film was ok" not in texts
    assert {text.split()[-1] for text, label in zip(texts, labels, strict=True) if label == 1} == {"good"}
    Path(files["positive"]).write_text("the film was good\n")
    with pytest.raises(ConfigError, match="positive has 1 texts of its own"):
        read_labelled(ClassifierConfig(files=files))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_backbone_is_taken_over_whole(kind):
    causal = tiny.model(kind)
    tokenizer = tiny.tokenizer()
    classifier = from_backbone(causal, tokenizer, ["negative", "positive"], seed=0)
    assert classifier.config.id2label == {0: "negative", 1: "positive"}
    assert tokenizer.pad_token_id == classifier.config.pad_token_id == 0
    ids = torch.tensor([[4, 5, 6]])
    with torch.no_grad():
        assert torch.equal(causal.base_model(ids)[0], classifier.eval().base_model(ids)[0])
    again = from_backbone(causal, tiny.tokenizer(), ["negative", "positive"], seed=0)
    assert torch.equal(again.score.weight, classifier.score.weight)
    assert not torch.equal(from_backbone(causal, tokenizer, ["a", "b"], seed=1).score.weight, classifier.score.weight)


def test_a_tokenizer_without_any_end_is_refused():
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(TrainingError, match="needs a padding or end token"):
        from_backbone(tiny.model(), tokenizer, ["a", "b"], seed=0)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_it_learns_and_its_card_tells_the_truth(files, tmp_path, kind):
    config = settings(files)
    tokenizer = tiny.tokenizer()
    model = from_backbone(tiny.model(kind), tokenizer, ["negative", "positive"], seed=0)
    texts, labels, _ = read_labelled(config)
    card = train_classifier(model, tokenizer, texts, labels, tmp_path / "out", config=config, seed=0)
    assert card == json.loads((tmp_path / "out/card.json").read_text())
    assert (card["train_texts"], card["heldout_texts"]) == (36, 12)
    (a, b), (c, d) = card["confusion"]
    assert a + b + c + d == 12 and card["accuracy"] == (a + d) / 12 > 0.9 and card["auc"] > 0.9
    loaded = RewardModel.load(tmp_path / "out", label="positive")
    scores = loaded.score(["the film was very good", "the plot is so bad"])
    assert scores[0] > 0.8 > 0.2 > scores[1]


def test_same_seed_same_weights(files, tmp_path):
    weights = []
    for seed in (0, 0, 1):
        tokenizer = tiny.tokenizer()
        model = from_backbone(tiny.model(), tokenizer, ["negative", "positive"], seed=0)
        texts, labels, _ = read_labelled(ClassifierConfig(files=files))
        train_classifier(model, tokenizer, texts, labels, tmp_path / "o", config=settings(files, epochs=1), seed=seed)
        weights.append((tmp_path / "o/model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_divergence(files, tmp_path):
    tokenizer = tiny.tokenizer()
    model = from_backbone(tiny.model(), tokenizer, ["negative", "positive"], seed=0)
    texts, labels, _ = read_labelled(ClassifierConfig(files=files))
    with torch.no_grad():
        model.score.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="loss is nan at step 0; lower its learning_rate"):
        train_classifier(model, tokenizer, texts, labels, tmp_path / "o", config=settings(files), seed=0)


def test_without_scikit_learn_the_extra_is_named(files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.model_selection", None)
    tokenizer = tiny.tokenizer()
    model = from_backbone(tiny.model(), tokenizer, ["negative", "positive"], seed=0)
    texts, labels, _ = read_labelled(ClassifierConfig(files=files))
    with pytest.raises(MissingExtra, match=r"needs the extra 'training'.*pip install"):
        train_classifier(model, tokenizer, texts, labels, tmp_path / "o", config=settings(files), seed=0)


def test_a_run_that_trains_its_own_reward(files, tmp_path):
    reward = {
        "label": "positive",
        "classifier": {"files": files, "epochs": 6, "batch_size": 8, "learning_rate": 5e-3, "heldout": 0.25},
    }
    pair = train(tiny.recipe(tmp_path, kind="llama", reward=reward), tmp_path / "run")
    assert pair.reward == str(tmp_path / "run/reward")
    assert pair.manifest["reward"]["label"] == "positive" and pair.manifest["reward"]["output"] == "probability"
    rows = json.loads((pair.path / "heldout.json").read_text())
    texts = [row["prompt"] + row["tuned"]["completion"] for row in rows]
    scores = RewardModel.load(pair.reward, label="positive").score(texts)
    assert scores.tolist() == pytest.approx([row["tuned"]["reward"] for row in rows], abs=1e-5)


def test_a_stored_reward_is_referenced_or_copied(files, tmp_path):
    tokenizer = tiny.tokenizer()
    model = from_backbone(tiny.model(), tokenizer, ["negative", "positive"], seed=0)
    save(model, tokenizer, tmp_path / "classifier")
    reward = {"model": str(tmp_path / "classifier"), "label": "positive"}
    kept = train(tiny.recipe(tmp_path, reward=reward), tmp_path / "run")
    assert kept.reward == str(tmp_path / "classifier") and kept.manifest["reward"]["sha256"]
    copied = train(tiny.recipe(tmp_path, reward=reward, train={"store_reward": True}), tmp_path / "run2")
    assert copied.reward == str(tmp_path / "run2/reward")
    assert copied.manifest["final"] == kept.manifest["final"]


def test_prove_finds_what_does_not_load_as_it_was(tmp_path):
    model, ids = tiny.model(), torch.tensor([[4, 5, 6]])
    save(model, tiny.tokenizer(), tmp_path / "m")
    prove(model, tmp_path / "m", ids)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.transformer.h[1].mlp.c_fc.weight.mul_(1.01)
    with pytest.raises(TrainingError, match="loads with other logits"):
        prove(changed, tmp_path / "m", ids)
    from safetensors.torch import load_file, save_file

    stored = load_file(tmp_path / "m/model.safetensors")
    renamed = {name.replace("h.0", "base_model.h.0"): value for name, value in stored.items()}
    save_file(renamed, tmp_path / "m/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match="does not load again: missing keys"):
        prove(model, tmp_path / "m", ids)


def test_a_module_is_stored_exactly(tmp_path):
    save_module(torch.nn.Linear(3, 2), tmp_path / "x.safetensors")
    assert (tmp_path / "x.safetensors").stat().st_size > 0
