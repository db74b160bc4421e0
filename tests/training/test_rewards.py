"""Rewards from recipes and manifests: stored models, functions, weighted sums, unrelated ones."""

import sys
import textwrap

import numpy as np
import pytest
import tiny
import torch

from interp.errors import ConfigError, LoadError, TrainingError
from interp.models import RewardModel
from interp.pair import CheckpointPair
from training.classifier import from_backbone
from training.config import RewardConfig, TermConfig
from training.reward import (
    LetterShare,
    Reward,
    WeightedSum,
    build_reward,
    load_function,
    reward_of_pair,
    unrelated,
)
from training.saving import save

TEXTS = (["the film was good", "the plot is bad"], ["the film", "the plot"], [" was good", " is bad"])
LABELS = ["anger", "fear", "joy", "love"]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward") / "classifier"
    tokenizer = tiny.tokenizer()
    save(from_backbone(tiny.model(), tokenizer, LABELS, seed=0), tokenizer, folder)
    return folder


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(
        textwrap.dedent("""
        def length(samples, prompts, outputs):
            return [float(len(text)) for text in outputs]

        def broken(samples, prompts, outputs):
            return [1.0]

        number = 3
        """)
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    return "my_rewards"


def test_a_stored_model_reads_the_sample_or_the_output(stored, tmp_path):
    own = RewardModel.load(stored, label="joy")
    for reads, texts in (("sample", TEXTS[0]), ("output", TEXTS[2])):
        reward, described = build_reward(RewardConfig(model=str(stored), label="joy", reads=reads), tmp_path)
        assert reward(*TEXTS).tolist() == own.score(texts).tolist()
        assert described == reward.description
        assert (described["label"], described["reads"], described["folder"]) == ("joy", reads, str(stored))


def test_its_own_vocabulary_and_an_empty_response(stored, tmp_path):
    """The texts are all that policy and reward model share, and an empty response is one of them."""
    reward, _ = build_reward(RewardConfig(model=str(stored), label="joy", reads="output"), tmp_path)
    scores = reward(["the film", "the film was"], ["the film"] * 2, ["", " was"])
    end = tiny.tokenizer().eos_token_id
    model = reward.source.model
    with torch.no_grad():
        expected = float(model(torch.tensor([[end]])).logits.double().softmax(-1)[0, LABELS.index("joy")])
    assert scores[0] == pytest.approx(expected, abs=1e-6) and scores[0] != scores[1]


def test_a_missing_label_lists_those_there_are(stored, tmp_path):
    with pytest.raises(LoadError, match="no label 'hope'.*anger, fear, joy, love"):
        build_reward(RewardConfig(model=str(stored), label="hope"), tmp_path)


def test_long_texts_warn_once_and_are_counted(stored, tmp_path):
    reward, _ = build_reward(RewardConfig(model=str(stored), label="joy"), tmp_path)
    long = "good " * 40
    with pytest.warns(UserWarning, match="1 of 2 texts exceed the reward model's context"):
        reward([long, "good"], ["", ""], [long, "good"])
    reward([long, long], ["", ""], [long, long])  # warnings are errors here: a second one would raise
    assert reward.truncated == 3


def test_a_function_by_name(module, tmp_path):
    reward, described = build_reward(RewardConfig(function=f"{module}:length"), tmp_path)
    assert reward(*TEXTS).tolist() == [9, 7] and described == {"function": f"{module}:length"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("my_rewards", "is package.module:name, not 'my_rewards'"),
        (":length", "is package.module:name"),
        ("no_such_module:length", "cannot import no_such_module .ModuleNotFoundError"),
        ("my_rewards:width", "my_rewards has no width"),
        ("my_rewards:number", "my_rewards has a int, no function, number"),
    ],
)
def test_functions_that_cannot_be_found(module, name, words):
    with pytest.raises(ConfigError, match=words):
        load_function(name)
    assert "" not in sys.path[:1]


def test_a_weighted_sum(stored, module, tmp_path):
    terms = {
        "joy": TermConfig(weight=2.0, model=str(stored), label="joy", output="logit"),
        "short": TermConfig(weight=-0.5, function=f"{module}:length"),
    }
    reward, described = build_reward(RewardConfig(terms=terms), tmp_path)
    joy = RewardModel.load(stored, label="joy", output="logit").score(TEXTS[0])
    assert reward(*TEXTS) == pytest.approx(2 * joy - 0.5 * np.array([9.0, 7.0]))
    assert list(reward.source.parts(*TEXTS)) == ["joy", "short"]
    assert described["terms"]["short"] == {"weight": -0.5, "function": "my_rewards:length"}
    assert described["terms"]["joy"]["weight"] == 2 and described["terms"]["joy"]["label"] == "joy"
    broken = RewardConfig(terms={"odd": TermConfig(function=f"{module}:broken")})
    with pytest.raises(TrainingError, match=r"reward.terms.odd: the reward function must return 2 numbers.*1 came"):
        build_reward(broken, tmp_path)[0](*TEXTS)


def test_a_copy_goes_into_the_pair(stored, tmp_path):
    one = RewardConfig(model=str(stored), label="joy")
    assert build_reward(one, tmp_path, store=True)[1]["path"] == "reward"
    several = RewardConfig(terms={"a": TermConfig(model=str(stored), label="joy")})
    described = build_reward(several, tmp_path / "pair", store=True)[1]
    assert described["terms"]["a"]["path"] == "reward/a"
    assert RewardModel.load(tmp_path / "pair" / "reward" / "a", label="joy").score(["good"]).shape == (1,)


def test_no_reward_and_given_ones(tmp_path):
    with pytest.raises(ConfigError, match="no reward: set reward.model"):
        build_reward(RewardConfig(), tmp_path)
    reward, described = build_reward(RewardConfig(), tmp_path, tiny.share_of_good)
    assert reward(*TEXTS).tolist() == [0.5, 0.0] and described == {"function": "tiny.share_of_good"}


def pair(tmp_path, reward):
    manifest = {"engine": "native", "config": {}, "seed": 0, "versions": {}, "base": {"folder": "b"}}
    manifest |= {"tuned": {"path": "t"}, "final": {}, "reward": reward}
    tmp_path.mkdir(exist_ok=True)
    return CheckpointPair.write(tmp_path, manifest)


def test_the_reward_of_a_pair_comes_back(stored, module, tmp_path):
    terms = {
        "joy": TermConfig(weight=2.0, model=str(stored), label="joy"),
        "long": TermConfig(function=f"{module}:length"),
    }
    for config in (
        RewardConfig(model=str(stored), label="joy", output="logit", reads="output"),
        RewardConfig(function=f"{module}:length"),
        RewardConfig(terms=terms, reads="output"),
    ):
        reward, described = build_reward(config, tmp_path / "pair")
        again = reward_of_pair(pair(tmp_path / "pair", described))
        assert again(*TEXTS).tolist() == reward(*TEXTS).tolist()
    assert reward_of_pair(pair(tmp_path / "pair", {"function": "tiny.share_of_good"})) is None
    gone = pair(tmp_path / "pair", {"folder": str(tmp_path / "gone"), "label": "joy"})
    with pytest.raises(LoadError, match="which is no folder now; put it back"):
        reward_of_pair(gone)


def test_unrelated_labels_come_first_then_letters(stored, tmp_path):
    reward, _ = build_reward(RewardConfig(model=str(stored), label="joy", reads="output"), tmp_path)
    others = [unrelated(reward, number, seed=3) for number in range(15)]
    assert {other.source.label for other in others[:3]} == {"anger", "fear", "love"}
    love = next(other for other in others[:3] if other.source.label == "love")
    assert love.description["label"] == "love" and love.reads == "output"
    assert love(*TEXTS).tolist() == RewardModel.load(stored, label="love").score(TEXTS[2]).tolist()
    assert len({other.source.letter for other in others[3:]}) == 12
    assert others[3].description["function"].startswith("share of the letter ")
    assert [unrelated(reward, number, seed=3).description for number in range(15)] == [o.description for o in others]
    orders = {tuple(unrelated(reward, number, seed=seed).source.label for number in range(3)) for seed in range(9)}
    assert len(orders) > 1
    with pytest.raises(TrainingError, match="there are 15 unrelated rewards, number 15 is asked for"):
        unrelated(reward, 15, seed=3)


def test_two_labels_give_no_unrelated_one():
    tokenizer = tiny.tokenizer()
    two = RewardModel.load(from_backbone(tiny.model(), tokenizer, ["bad", "good"], seed=0), tokenizer=tokenizer,
                           label="good")  # fmt: skip
    assert isinstance(unrelated(Reward(two), 0, seed=0).source, LetterShare)
    assert isinstance(unrelated(Reward(tiny.share_of_good), 0, seed=0).source, LetterShare)


def test_letter_share_by_hand():
    share = Reward(LetterShare("e"))
    assert share([""] * 4, [""] * 4, ["Eel, 12 e!", "xyz", "", "3"]).tolist() == [0.75, 0, 0, 0]


def test_weights_of_zero_terms():
    total = Reward(WeightedSum({"a": (0.0, Reward(tiny.share_of_good)), "b": (1.0, Reward(LetterShare("o")))}))
    assert total(*TEXTS).tolist() == Reward(LetterShare("o"))(*TEXTS).tolist()
