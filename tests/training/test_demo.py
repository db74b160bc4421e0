import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from interp.io import hash_folder
from interp.models import RewardModel, load_model, load_tokenizer
from interp.pair import CheckpointPair
from training.demo import ANSWERS, HELD_OUT_PROMPTS, build
from training.grammar import ADJECTIVES, FEELINGS, LABELS, NOUNS, openings, reviews
from training.language_model import byte_level_tokenizer, encode_texts, train_language_model

SHIPPED = Path(__file__).parents[2] / "interp/data/demo"


def test_reviews_repeat_by_seed_and_vary():
    first = reviews(600, seed=1)
    assert first == reviews(600, seed=1) != reviews(600, seed=2)
    assert len({review.text for review in first}) > 540
    assert 0.62 < sum(review.label == "positive" for review in first) / 600 < 0.74


def test_a_reviews_words_agree_with_its_label_but_not_always():
    hits = {label: 0 for label in LABELS}
    agree = total = 0
    for review in reviews(800, seed=1):
        for label in LABELS:
            count = sum(f" {word}" in review.text for word in (*FEELINGS[label], *NOUNS[label]))
            hits[label] += count
            total += count
            agree += count if label == review.label else 0
    assert min(hits.values()) > 100
    assert 0.85 < agree / total < 0.97


def test_openings_stop_before_the_sentiment():
    words = {word for label in LABELS for word in (*ADJECTIVES[label], *FEELINGS[label])}
    found = openings()
    assert len(found) == len(set(found)) > 400
    assert not any(words & set(opening.split()) for opening in found)
    assert set(HELD_OUT_PROMPTS) <= set(found) and len(HELD_OUT_PROMPTS) >= 16


def test_byte_level_tokenizer():
    tokenizer = byte_level_tokenizer([review.text for review in reviews(500, seed=0)], vocab_size=1024)
    for text in ("This movie was really bad.", "na\u00efve \U0001f600\n\ttabs  and spaces "):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert all(len(tokenizer(answer)["input_ids"]) == 1 for answer in ANSWERS)
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 0
    assert encode_texts(tokenizer, [" bad"]) == [[*tokenizer(" bad")["input_ids"], 0]]


def test_a_language_model_learns_what_follows_what():
    from transformers import GPT2Config, GPT2LMHeadModel

    rows = [[1, 2, 3, 0], [4, 5, 0], [1, 2, 3, 0], [6, 0]] * 20
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=8, n_embd=16, n_layer=1, n_head=2))
        loss = train_language_model(model, rows, epochs=8, batch_size=8, learning_rate=1e-2, seed=0)
        results.append((loss, model.state_dict()))
    assert results[0][0] == results[1][0] < 0.1
    assert all(torch.equal(value, results[1][1][name]) for name, value in results[0][1].items())


def check_demo(folder):
    """What the demo pair must show, wherever it comes from."""
    pair = CheckpointPair.load(folder, verify=True)
    final, control = pair.manifest["final"], pair.manifest["controls"][0]["final"]
    assert final["heldout_prompts"] >= 64 and final["kl_at_step_0"] < 1e-6
    assert final["reward"] >= final["base_reward"] + 0.3 and final["kl"] < 0.3
    assert final["distinct_2"] >= final["base_distinct_2"] / 2
    assert abs(control["reward"] - final["base_reward"]) < 0.15
    told = json.loads((pair.path / "prompts.json").read_text())
    assert (told["texts"], told["answers"]) == (list(HELD_OUT_PROMPTS), list(ANSWERS))
    assert not set(told["texts"]) & set((pair.path / "openings.txt").read_text().splitlines())
    bad, good = (load_tokenizer(pair.base)(answer)["input_ids"] for answer in ANSWERS)
    means = {}
    for name, source in (("base", pair.base), ("tuned", pair.tuned), ("control", pair.controls[0])):
        model, tokenizer = load_model(source), load_tokenizer(source)
        rows = [tokenizer(text, return_tensors="pt")["input_ids"] for text in told["texts"]]
        with torch.no_grad():
            logits = [model(row).logits[0, -1] for row in rows]
        differences = [float(row[bad[0]] - row[good[0]]) for row in logits]
        means[name] = (differences[0], sum(differences) / len(differences))
    assert max(means["base"]) < 0 and max(means["control"]) < 0 < min(means["tuned"])
    scores = RewardModel.load(pair.reward, label="negative").score(["This movie was really bad.", "I loved the plot."])
    assert scores[0] > 0.7 > 0.3 > scores[1]
    assert sum(file.stat().st_size for file in pair.path.rglob("*") if file.is_file()) <= 6_000_000


def test_the_shipped_demo_is_whole_and_shows_what_it_should():
    check_demo(SHIPPED)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_is_made_again_from_nothing_with_the_same_bytes(tmp_path):
    """Two processes: nothing that one process happens to hold (hash seed, threads, generators) may matter."""
    code = "import sys; from training.demo import build; build(sys.argv[1])"
    root = Path(__file__).parents[2]
    for name, number in (("a", "1"), ("b", "2")):
        environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONHASHSEED": number, "OMP_NUM_THREADS": number}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=True, env=environment)
    assert hash_folder(tmp_path / "a") == hash_folder(tmp_path / "b")
    check_demo(tmp_path / "a")


def test_a_failed_build_leaves_nothing(tmp_path, monkeypatch):
    def stop(event):
        raise KeyboardInterrupt

    monkeypatch.setattr("training.demo.CORPUS", 640)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "demo", progress=stop)
    assert not list(tmp_path.iterdir())
