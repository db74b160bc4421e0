"""`interp train-reward`, `interp score` and `interp play`, as a person calls them."""

import gzip
import json
import re

import pytest
import test_reward_models
import tiny
import torch
from typer.testing import CliRunner

from interp.cli import app
from interp.errors import InterpError
from interp.models import RewardModel
from training import RewardModelConfig
from training.classifier import from_backbone
from training.reward import Reward
from training.reward_models import check_reward
from training.saving import save

LABELS = ["anger", "joy", "love"]
TEXTS = ["the film was good", "the plot is bad"]


def call(*arguments, text=None):
    result = CliRunner().invoke(app, list(map(str, arguments)), input=text)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores") / "classifier"
    tokenizer = tiny.tokenizer()
    save(from_backbone(tiny.model(), tokenizer, LABELS, seed=0), tokenizer, folder)
    return folder


def test_score_prints_all_labels_largest_first(classifier):
    out = call("score", classifier, *TEXTS)
    blocks = [block.splitlines() for block in out.strip().split("\n\n")]
    assert [block[0] for block in blocks] == TEXTS
    scores = RewardModel.load(classifier, label="joy").score_labels(TEXTS)
    for block, row in zip(blocks, scores, strict=True):
        shown = [(name, float(value)) for name, value in (line.split() for line in block[1:])]
        order = sorted(zip(LABELS, row, strict=True), key=lambda pair: -pair[1])
        assert [name for name, _ in shown] == [name for name, _ in order]
        assert [value for _, value in shown] == pytest.approx([value for _, value in order], abs=1e-4)


def test_score_reads_standard_input_and_shows_one_label(classifier):
    out = call("score", classifier, "-", "--label", "joy", "--output", "logit", text="the film\n\nthe plot\n")
    expected = RewardModel.load(classifier, label="joy", output="logit").score(["the film", "", "the plot"])
    assert [float(value) for value in re.findall(r"joy +(-?[\d.]+)", out)] == pytest.approx(expected, abs=1e-4)
    assert "(empty text)" in out and "anger" not in out
    assert call("score", classifier, "the film", "--top", "1").count("\n") == 2


def test_score_of_a_scalar_model(tmp_path):
    tokenizer = tiny.tokenizer()
    save(from_backbone(tiny.model(), tokenizer, ["reward"], seed=0), tokenizer, tmp_path / "m")
    assert re.search(r"reward +-?\d", call("score", tmp_path / "m", "the film", "--output", "logit"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("score", "CLASSIFIER", "x", "--label", "hope"), "no label 'hope'.*anger, joy, love"),
        (("score", "CLASSIFIER", "x", "--output", "percent"), "softmax, sigmoid or logit, not 'percent'"),
        (("score", "CLASSIFIER", "-"), "there is no text to score"),
        (("score", "./gone", "x"), "gone"),
        (("play", "./gone"), "there is no folder 'gone'"),
        (("train-reward", "./gone.toml", "--check"), "cannot read the recipe"),
    ],
)
def test_faults_are_one_line(classifier, arguments, words, as_a_user):
    with pytest.raises(InterpError, match=words) as caught:
        call(*(classifier if each == "CLASSIFIER" else each for each in arguments), text="")
    assert "\n" not in str(caught.value)


def test_train_reward_from_recipe_to_scores(tmp_path):
    published = {"published": {"somebody's F1": 0.5}}
    recipe = test_reward_models.config(tmp_path, train={"epochs": 6}, data=published).save(tmp_path / "recipe.toml")
    checked = call("train-reward", recipe, "--check")
    assert "58 train, 19 validation, 19 test" in checked and not (tmp_path / "out").exists()
    out = call("train-reward", recipe, "--out", tmp_path / "out", "--set", "train.epochs=5")
    card = json.loads((tmp_path / "out/card.json").read_text())
    assert card["config"]["train"]["epochs"] == 5 and card["published"] == {"somebody's F1": 0.5}
    assert "for comparison, somebody's F1: 0.5" in out
    for name, row in card["by_label"].items():
        assert re.search(rf"{name} +{row['support']} +{row['precision']:.3f} +{row['recall']:.3f}", out)
    assert f"{card['micro']['one_threshold']['f1']:.3f}" in out and "interp score" in out
    assert "joy" in call("score", tmp_path / "out", "the film was good")
    with pytest.raises(Exception, match="already holds a result"):
        call("train-reward", recipe, "--out", tmp_path / "out")
    with pytest.raises(Exception, match="--out names the new folder"):
        call("train-reward", recipe)


def test_train_reward_from_preferences(tmp_path):
    recipe = test_reward_models.config(tmp_path, "preferences").save(tmp_path / "recipe.toml")
    out = call("train-reward", recipe, "--out", tmp_path / "out")
    assert re.search(r"accuracy +1.000 \[0.\d+, 1.000\]", out) and "longer chosen" in out


@pytest.mark.parametrize("name", ["goemotions_reward", "hh_reward"])
def test_shipped_recipes_on_stand_ins(name, tmp_path, monkeypatch):
    """The recipes as they are, but for files of the same format with made-up texts."""
    monkeypatch.setenv("INTERP_DATA", str(tmp_path))
    (tmp_path / "goemotions").mkdir()
    names = [f"emotion{i}" for i in range(28)]
    (tmp_path / "goemotions/emotions.txt").write_text("\n".join(names))
    for part in ("train", "dev", "test"):
        (tmp_path / f"goemotions/{part}.tsv").write_text("".join(f"text {i}\t{i % 28},3\tid\n" for i in range(56)))
    hh = tmp_path / "hh-rlhf/helpful-base"
    hh.mkdir(parents=True)
    for part in ("train", "test"):
        lines = "".join(json.dumps(pair) + "\n" for pair in test_reward_models.pairs())
        (hh / f"{part}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    found = check_reward(RewardModelConfig.load(tiny.RECIPES / f"{name}.toml"))
    if name == "goemotions_reward":
        assert found["data"] == "56 train, 56 validation, 56 test" and found["labels"] == ", ".join(names)
    else:
        assert found == {"model": "gpt2: not fetched", "data": "22 train, 2 validation, 24 test"}


def test_play_shows_both_models_and_the_same_draws():
    out = call("play", "demo", "--prompt", "This movie was", "--samples", "3", "--seed", "5")
    assert "This movie was" in out and "negative (probability)" in out
    sides = {name: [(float(r), text) for r, text in re.findall(rf"^  {name} +([\d.]+)  (.+)$", out, re.M)]
             for name in ("base", "tuned")}  # fmt: skip
    assert len(sides["base"]) == len(sides["tuned"]) == 4  # three draws and their mean
    assert sides["tuned"][3][1] == "(mean)"
    assert sides["tuned"][3][0] == pytest.approx(sum(r for r, _ in sides["tuned"][:3]) / 3, abs=1e-3)
    assert sides["tuned"][3][0] > sides["base"][3][0]
    demo = tiny.RECIPES.parents[1] / "interp/data/demo"
    scorer = RewardModel.load(demo / "reward", label="negative")
    for reward, text in sides["base"][:3]:
        assert scorer.score([f"This movie was {text}"])[0] == pytest.approx(reward, abs=2e-3)
    assert call("play", "demo", "--prompt", "This movie was", "--samples", "3", "--seed", "5") == out
    assert call("play", "demo", "--prompt", "This movie was", "--samples", "3", "--seed", "6") != out


def test_play_reads_prompts_until_they_end():
    out = call("play", "demo", "--samples", "1", text="The plot was\n\nThe plot was\n")
    blocks = out.split("\nThe plot was\n")[1:]
    assert len(blocks) == 2 and all("tuned" in block for block in blocks)
    assert blocks[0] != blocks[1]  # another draw each time
    assert "tuned" not in call("play", "demo", text="")


def test_play_goes_on_after_a_prompt_that_does_not_fit():
    out = call("play", "demo", "--samples", "1", text="good " * 500 + "\nThe plot was\n")
    assert out.rstrip().splitlines()[-1].lstrip().startswith("tuned")


def test_play_without_a_reward_and_of_equal_models(tmp_path):
    from interp.pair import CheckpointPair
    from training.playground import Playground

    base = tiny.base(tmp_path)
    manifest = {"engine": "native", "config": {"generate": {"max_new_tokens": 5}}, "seed": 0, "versions": {}}
    manifest |= {"final": {}}
    pair = CheckpointPair.write(tmp_path, manifest | {"base": {"path": base.name}, "tuned": {"path": base.name}})
    ground = Playground.load(pair, None, samples=2)
    exchange = ground.complete("the film was")
    assert exchange.base == exchange.tuned and [each.reward for each in exchange.base] == [None, None]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's call
def test_play_of_an_adapter(tmp_path):
    peft = pytest.importorskip("peft")
    from interp.pair import CheckpointPair
    from training.playground import Playground

    base = tiny.base(tmp_path)
    torch.manual_seed(0)
    changes = peft.LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True)
    tuned = peft.get_peft_model(tiny.model(), changes)
    tuned.peft_config["default"].base_model_name_or_path = str(base)
    tuned.save_pretrained(tmp_path / "tuned")
    manifest = {"engine": "native", "config": {}, "seed": 0, "versions": {}, "final": {}}
    pair = CheckpointPair.write(tmp_path, manifest | {"base": {"path": base.name}, "tuned": {"path": "tuned"}})
    exchange = Playground.load(pair, Reward(tiny.share_of_good), samples=8).complete("the film was")
    assert exchange.base != exchange.tuned
    assert [each.reward for each in exchange.base] == tiny.share_of_good([], [], [each.text for each in exchange.base])
