import math

import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification

from interp.errors import LoadError
from interp.models import RewardModel
from tests.conftest import word_tokenizer

TEXTS = ["really good film", "bad", "the plot was boring and the acting was great"]


def classifier(labels=3, **changes):
    torch.manual_seed(0)
    names = [f"l{i}" for i in range(labels)]
    config = GPT2Config(
        n_layer=2, n_head=2, n_embd=16, n_positions=12, vocab_size=len(word_tokenizer()), pad_token_id=0,
        id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)}, initializer_range=0.5,
        **changes,
    )  # fmt: skip
    return GPT2ForSequenceClassification(config).eval()


def load(labels=3, **options):
    changes = {"problem_type": options.pop("problem_type")} if "problem_type" in options else {}
    options.setdefault("label", "l1" if labels > 1 else None)
    return RewardModel.load(classifier(labels, **changes), tokenizer=word_tokenizer(), **options)


def logits(model, text):
    ids = torch.tensor([model.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        return model.model(ids).logits[0].double()


@pytest.mark.parametrize("problem_type", [None, "multi_label_classification"])
def test_every_output_is_what_its_name_says(problem_type):
    for output in ("logit", "softmax", "sigmoid", "probability"):
        model = load(output=output, problem_type=problem_type)
        for text, score in zip(TEXTS, model.score(TEXTS), strict=True):
            row = logits(model, text)
            x = float(row[1])
            softmax = math.exp(x) / sum(math.exp(float(each)) for each in row)
            sigmoid = 1 / (1 + math.exp(-x))
            expected = {"logit": x, "softmax": softmax, "sigmoid": sigmoid}
            expected["probability"] = sigmoid if problem_type else softmax
            assert score == pytest.approx(expected[output], abs=1e-6), output


def test_all_labels_in_the_order_of_their_names():
    model = load(output="softmax")
    scores = model.score_labels(TEXTS, batch_size=2)
    assert scores.shape == (3, 3) and scores.sum(axis=1) == pytest.approx(1)
    assert scores[:, 1] == pytest.approx(model.score(TEXTS), abs=1e-6)
    assert model.labels == ("l0", "l1", "l2")


def test_one_output():
    raw, squashed = load(1, output="logit"), load(1)
    assert squashed.score(TEXTS) == pytest.approx([1 / (1 + math.exp(-x)) for x in raw.score(TEXTS)])
    with pytest.raises(LoadError, match="softmax over a reward model's one label is 1 for every text"):
        load(1, output="softmax")


def test_what_does_not_fit(as_a_user):
    with pytest.raises(LoadError, match="no label 'joy'; pass label= .*one of l0, l1, l2"):
        load(label="joy")
    with pytest.raises(LoadError, match="output is probability, softmax, sigmoid or logit, not 'percent'"):
        load(output="percent")


def test_long_texts_are_counted_and_cut_at_the_end():
    model = load(output="logit")
    long = "really " * 30
    assert model.too_long([*TEXTS, long, "good"]) == 1
    fits = " ".join(["really"] * 12)
    kept = model.tokenizer(long)["input_ids"][:12]
    with torch.no_grad():
        expected = float(model.model(torch.tensor([kept])).logits[0, 1])
    assert model.score([long])[0] == pytest.approx(expected, abs=1e-6)
    count = len(model.tokenizer(fits)["input_ids"])
    assert model.too_long([fits]) == int(count > 12)


def test_an_empty_text_is_read_as_the_end_token():
    model = load(output="logit")
    with torch.no_grad():
        expected = float(model.model(torch.tensor([[model.tokenizer.eos_token_id]])).logits[0, 1])
    assert model.score([""])[0] == pytest.approx(expected, abs=1e-6)
