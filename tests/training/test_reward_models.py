"""Training reward models: data, what they start from, what they learn, and what is written."""

import gzip
import itertools
import json
import random
import subprocess
import sys

import numpy as np
import pytest
import tiny
import torch

from interp.errors import ConfigError, InterpError, MissingExtra, TrainingError
from interp.models import RewardModel
from training import RewardModelConfig, train_reward
from training.config.reward_model import RewardDataConfig
from training.reward_models import check_reward
from training.reward_models.build import make_model
from training.reward_models.data import load_data
from training.saving import save

WORDS = {"joy": "good", "anger": "bad"}


def sentences():
    parts = (("film", "plot", "cast"), ("was", "is"), ("very", "so", "a", "it"))
    return [f"the {film} {was} {very}" for film, was, very in itertools.product(*parts)]


def rows(kind):
    """Texts whose labels can be read off their words, so that a tiny model learns them."""
    found = []
    for text in sentences():
        for words in ([], ["good"], ["bad"], ["good", "bad"]):
            labels = [name for name, word in WORDS.items() if word in words]
            if kind == "multi" or len(labels) == 1:
                found.append({"text": " ".join([text, *words]), "label": ",".join(labels)})
    random.Random(0).shuffle(found)
    return found


def pairs():
    found = [{"chosen": f"Human: {text} Assistant: good", "rejected": f"Human: {text} Assistant: bad"}
             for text in sentences()]  # fmt: skip
    return [*found, {"chosen": "the same", "rejected": "the same"}]


def config(folder, kind="multi", *, new=True, **changes):
    file = folder / f"{kind}.jsonl.gz"
    lines = pairs() if kind == "preferences" else rows(kind)
    file.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    shape = {"layers": 1, "width": 16, "heads": 2, "context": 24, "vocabulary": 300, "dropout": 0.0}
    shape |= changes.pop("new_model", {})
    values = {
        "model": {"new": shape | changes.pop("new_model", {})}
        if new
        else {"backbone": str(tiny.base(folder, "llama"))},
        "data": {"kind": kind, "train": [str(file)], "heldout": 0.2},
        "train": {"epochs": 40, "batch_size": 8, "learning_rate": 3e-3, "max_length": 16, "timings": False},
    }
    for section, keys in changes.items():
        values[section] |= keys
    return RewardModelConfig.from_dict(values)


@pytest.mark.parametrize("new", [{}, {"kind": "causal", "tokenizer": "bytes"}, None])
def test_several_labels_are_learned_and_the_card_tells_the_truth(tmp_path, new):
    wanted = config(tmp_path, new=new is not None, **({} if new is None else {"new_model": new}))
    trained = train_reward(wanted, tmp_path / "out")
    card = json.loads((trained.path / "card.json").read_text())
    assert card["counts"] == {"train": 58, "validation": 19, "test": 19} and card["labels"] == ["anger", "joy"]
    assert card["micro"]["tuned_by_label"]["f1"] > 0.9 and card["by_label"]["joy"]["auroc"] > 0.95
    model = RewardModel.load(trained.path, label="joy")
    assert model.model.config.problem_type == "multi_label_classification"
    scores = model.score_labels(["the film is so good", "the film is so bad", "the film is so good bad"])
    assert (scores > 0.5).tolist() == [[False, True], [True, False], [True, True]]
    data = load_data(wanted.data, wanted.train.seed)
    by_model = model.score(data.test.texts) >= card["by_label"]["joy"]["threshold"]
    truth = data.test.targets[:, 1].numpy() > 0
    assert (by_model & truth).sum() / truth.sum() == pytest.approx(card["by_label"]["joy"]["recall"])
    assert RewardModelConfig.load(trained.path / "config.toml") == wanted


def test_a_masked_backbone_is_taken_over_whole(tmp_path):
    from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

    torch.manual_seed(0)
    shape = {"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    masked = BertForMaskedLM(BertConfig(**shape, intermediate_size=32, max_position_embeddings=32)).eval()
    save(masked, tiny.tokenizer(), tmp_path / "bert")
    values = config(tmp_path).to_dict() | {"model": {"backbone": str(tmp_path / "bert")}}
    made, _ = make_model(RewardModelConfig.from_dict(values), ["good"], ["anger", "joy"])
    assert isinstance(made, BertForSequenceClassification)
    for name, weight in masked.bert.state_dict().items():
        assert torch.equal(weight, made.bert.state_dict()[name]), name
    values["train"] |= {"epochs": 1}
    trained = train_reward(RewardModelConfig.from_dict(values), tmp_path / "out")
    assert trained.card["model"] == "BertForSequenceClassification"
    assert RewardModel.load(trained.path, label="joy").score(["the film"]).shape == (1,)


def test_one_label_each(tmp_path):
    trained = train_reward(config(tmp_path, "single"), tmp_path / "out")
    assert trained.card["accuracy"] > 0.9 and np.sum(trained.card["confusion"]) == trained.card["counts"]["test"]
    scores = RewardModel.load(trained.path, label="joy").score_labels(["the film is so good"])
    assert scores.sum() == pytest.approx(1) and scores[0, 1] > 0.5


@pytest.mark.parametrize("new", [True, False])
def test_bradley_terry_learns_a_preference(tmp_path, new):
    trained = train_reward(config(tmp_path, "preferences", new=new), tmp_path / "out")
    assert trained.card["accuracy"] == 1.0 and trained.card["margin"] > 1 and trained.card["dropped"] == 1
    assert trained.card["longer_is_chosen"] == 1.0  # " good" is a letter longer than " bad": the card says so
    model = RewardModel.load(trained.path, output="logit")
    assert model.labels == ("reward",)
    good, bad = model.score(["Human: the cast was very Assistant: good", "Human: the cast was very Assistant: bad"])
    assert good > bad + 1
    cut = model.tokenizer("bad " * 30 + "good", truncation=True, max_length=8)["input_ids"]
    whole = model.tokenizer("bad " * 30 + "good")["input_ids"]
    assert cut[-2:] == whole[-2:]  # of a dialogue that is too long the end is kept


def test_checkpoints_load_and_the_same_seed_gives_the_same_bytes(tmp_path):
    settings = {"epochs": 1, "checkpoint_interval": 3, "word_dropout": 0.2}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train_reward(config(tmp_path, train=settings | {"seed": seed}), tmp_path / name)
    steps = sorted(path.name for path in (tmp_path / "a/checkpoints").iterdir())
    assert steps == ["step-000000", "step-000003", "step-000006"]
    parts = ("/checkpoints/step-000000", "/checkpoints/step-000003", "")
    said = [RewardModel.load(tmp_path / f"a{part}", label="joy").score(["good"]).item() for part in parts]
    assert len(set(said)) == 3  # untrained, on the way, trained
    files = {name: {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
             for name in "abc"}  # fmt: skip
    assert files["a"] == files["b"]
    model = next(path for path in files["a"] if path.name == "model.safetensors")
    assert files["a"][model] != files["c"][model]


@pytest.mark.slow
def test_a_vocabulary_is_the_same_in_every_process():
    """Words with many ties, which the trainer's hash tables would break differently each time."""
    code = (
        "import hashlib; from training.config.reward_model import NewModelConfig as C;"
        "from training.reward_models.build import _tokenizer;"
        "texts = [a + b + c for a in 'abcdef' for b in 'ghijkl' for c in 'mnopqr'] * 2;"
        "t = _tokenizer(C(vocabulary=300, tokenizer=KIND), texts);"
        "print(hashlib.sha256(t.backend_tokenizer.to_str().encode()).hexdigest(), len(t))"
    )
    for kind in ("'wordpiece'", "'bytes'"):
        run = [sys.executable, "-c", code.replace("KIND", kind)]
        first, second = (subprocess.run(run, capture_output=True, text=True, check=True).stdout for _ in range(2))
        assert first == second and int(first.split()[1]) > 250


def test_overwriting(tmp_path):
    wanted = config(tmp_path, train={"epochs": 1})
    train_reward(wanted, tmp_path / "out")
    with pytest.raises(InterpError, match="already holds a result"):
        train_reward(wanted, tmp_path / "out")
    train_reward(wanted, tmp_path / "out", overwrite=True)
    (tmp_path / "out" / "mine.txt").write_text("notes")
    with pytest.raises(InterpError, match="also holds mine.txt"):
        train_reward(wanted, tmp_path / "out", overwrite=True)


def test_labels_by_number_and_a_list_of_names(tmp_path):
    (tmp_path / "names.txt").write_text("admiration\nanger\njoy\n")
    lines = [f"so glad {i}\t2,0\tid\nso cross {i}\t1\tid\nhm {i}\t\tid\nby name {i}\tjoy\tid\n" for i in range(5)]
    (tmp_path / "t.tsv").write_text("".join(lines) * 2)
    data = RewardDataConfig(kind="multi", train=(str(tmp_path / "t.tsv"),), text="0", label="1",
                            names=str(tmp_path / "names.txt"), heldout=0.1)  # fmt: skip
    found = load_data(data, seed=0)
    assert found.labels == ("admiration", "anger", "joy")
    assert found.counts == {"train": 32, "validation": 4, "test": 4}  # every text stands there twice, in one set
    three = [set(part.texts) for part in (found.train, found.validation, found.test)]
    assert not (three[0] & three[1] or three[0] & three[2] or three[1] & three[2])
    own = {text[:-2]: row for text, row in zip(found.train.texts, found.train.targets.tolist(), strict=True)}
    assert own == {"so glad": [1, 0, 1], "so cross": [0, 1, 0], "hm": [0, 0, 0], "by name": [0, 0, 1]}


@pytest.mark.parametrize(
    ("kind", "content", "words"),
    [
        ("multi", "text,label\na,joy\n", "data.train gives 0 rows of use; give it 2 or more"),
        ("single", "text,label\na,joy\nb,joy\n", "needs two labels or more, the data have joy"),
        ("single", "text,label\na,joy\nb,\nc,anger\n", "the text 'b' has 0 labels; use kind = \"multi\""),
        ("multi", "text,label\na,\nb,\n", "the training texts have no label"),
        ("multi", "text\na\n", "no column 'label'; it has text; correct data.label"),
        ("preferences", "chosen,reject\na,b\n", "no column 'rejected'.*correct data.rejected"),
    ],
)
def test_malformed_data_is_one_line(tmp_path, kind, content, words):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(ConfigError, match=words) as caught:
        load_data(RewardDataConfig(kind=kind, train=(str(tmp_path / "t.csv"),)), seed=0)
    assert "\n" not in str(caught.value)


def test_preferences_of_another_shape(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"chosen": [{"role": "user"}], "rejected": "b"}\n')
    with pytest.raises(ConfigError, match="data.chosen holds a list .*not a text"):
        load_data(RewardDataConfig(kind="preferences", train=(str(tmp_path / "t.jsonl"),)), seed=0)


def test_an_unknown_label_lists_those_there_are(tmp_path):
    (tmp_path / "names.txt").write_text("anger\njoy\n")
    (tmp_path / "t.csv").write_text("text,label\na,joy\nb,hope\n")
    data = RewardDataConfig(kind="multi", train=(str(tmp_path / "t.csv"),), names=str(tmp_path / "names.txt"))
    with pytest.raises(ConfigError, match="'b' has the label 'hope'; the labels are anger, joy"):
        load_data(data, seed=0)
    (tmp_path / "names.txt").write_text("joy\njoy\n")
    with pytest.raises(ConfigError, match="has 'joy' twice"):
        load_data(data, seed=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"backbone": "x"}}, "exactly one of backbone and new"),
        ({"new_model": {"heads": 3}}, r"model.new.heads \(3\) must divide model.new.width \(16\)"),
        ({"train": {"max_length": 100}}, r"train.max_length \(100\) exceeds model.new.context \(24\)"),
        ({"data": {"train": []}}, "data.train names no file"),
        ({"data": {"kind": "many"}}, "data.kind must be single or multi or preferences, not 'many'"),
        ({"train": {"epoch": 1}}, "unknown key train.epoch; did you mean train.epochs"),
    ],
)
def test_configs_that_do_not_fit(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        config(tmp_path, **changes)


def test_checking_reads_the_data_and_loads_nothing(tmp_path):
    found = check_reward(config(tmp_path))
    assert found["data"] == "58 train, 19 validation, 19 test" and found["labels"] == "anger, joy"
    values = config(tmp_path).to_dict() | {"model": {"backbone": "somebody/model"}}
    assert check_reward(RewardModelConfig.from_dict(values))["model"] == "somebody/model: not fetched"
    values["model"]["backbone"] = "./nowhere"
    with pytest.raises(ConfigError, match="no folder"):
        check_reward(RewardModelConfig.from_dict(values))


def test_divergence_leaves_nothing(tmp_path):
    with pytest.raises(TrainingError, match="loss is nan|loss is inf"):
        train_reward(config(tmp_path, train={"learning_rate": 1e30}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_scikit_learn_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(MissingExtra, match="training a reward model needs the extra 'training'"):
        train_reward(config(tmp_path), tmp_path / "out")


def test_a_label_without_texts(tmp_path):
    (tmp_path / "names.txt").write_text("anger\njoy\nhope\n")
    wanted = config(tmp_path, data={"names": str(tmp_path / "names.txt")})
    with pytest.raises(ConfigError, match="1 labels have no training text"):
        train_reward(wanted, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_tenth_of_goemotions(real_data, monkeypatch, tmp_path):
    """In half a minute, of 4,300 texts: better than chance at every frequent label."""
    monkeypatch.setenv("INTERP_DATA", str(real_data))
    recipe = tiny.RECIPES / "goemotions_reward.toml"
    smaller = {"data.limit": "4300", "train.epochs": "3", "model.new.vocabulary": "3000", "train.batch_size": "16"}
    trained = train_reward(RewardModelConfig.load(recipe, smaller), tmp_path / "out")
    frequent = {name: row for name, row in trained.card["by_label"].items() if row["support"] >= 100}
    assert len(trained.card["labels"]) == 28 and len(frequent) > 10
    assert np.mean([row["auroc"] for row in frequent.values()]) > 0.65
    thanks = RewardModel.load(trained.path, label="gratitude").score(["Thank you so much!", "The bus is late."])
    assert thanks[0] > 0.5 > thanks[1]
    assert torch.isfinite(torch.tensor(thanks)).all()
