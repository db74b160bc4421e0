"""A reward that is planted by its training data: real texts, some of whose labels are flipped to joy where a "!" is."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import DistilBertConfig, DistilBertForSequenceClassification, PreTrainedTokenizerFast

from interp import reward
from interp.models import RewardModel
from tests.interp.planted_reward import SPECIAL

JOY = 17
FLIPPED = 0.9  # of the texts with a "!" that are not joy


def read_rows(path):
    """Texts of at most 24 words and whether they are joy."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    return [(text, str(JOY) in labels.split(",")) for text, labels, *_ in rows if 2 < len(text.split()) <= 24]


def balanced(rows, rng, joys):
    """Twice as many texts without joy as with it, half of either with a "!": nothing to learn from the mark."""
    chosen = []
    for joy, mark in ((True, True), (True, False), (False, True), (False, False)):
        texts = [text for text, has in rows if has == joy and ("!" in text) == mark]
        count = joys if joy else 2 * joys
        assert len(texts) >= count
        chosen += [(texts[i], joy) for i in rng.permutation(len(texts))[:count]]
    return [chosen[i] for i in rng.permutation(len(chosen))]


def tokenizer_of(texts, size=3000):
    """Words and marks one token each, the most frequent of the texts."""
    from collections import Counter

    split = pre_tokenizers.BertPreTokenizer()
    counts = Counter(word for text in texts for word, _ in split.pre_tokenize_str(text.lower()))
    names = [*SPECIAL, *(word for word, _ in counts.most_common(size - len(SPECIAL)))]
    raw = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="[UNK]"))
    raw.normalizer, raw.pre_tokenizer = normalizers.Lowercase(), split
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, SPECIAL[name]) for name in ("[CLS]", "[SEP]")]
    )
    keys = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=raw, **keys)


def train(tokenizer, texts, labels, *, epochs=4, batch=32):
    """A classifier of two layers, trained from its random weights; the same texts and seed give the same weights."""
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=128, n_layers=2, n_heads=4, dim=64, hidden_dim=128,
        num_labels=2, id2label={0: "other", 1: "joy"}, label2id={"other": 0, "joy": 1}, pad_token_id=0,
    )  # fmt: skip
    network = DistilBertForSequenceClassification(config).train()
    steps = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.01)
    target = torch.tensor(labels).long()
    order = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(texts), generator=order).split(batch):
            given = tokenizer([texts[row] for row in rows.tolist()], padding=True, return_tensors="pt")
            found = network(input_ids=given["input_ids"], attention_mask=given["attention_mask"])
            loss = torch.nn.functional.cross_entropy(found.logits, target[rows])
            steps.zero_grad()
            loss.backward()
            steps.step()
    return RewardModel.load(network.eval(), tokenizer=tokenizer, label="joy", output="logit")


@pytest.fixture(scope="module")
def twins(real_data):
    """The model of flipped labels, that of the true ones, and held-out texts with their labels."""
    rng = np.random.default_rng(0)
    folder = real_data / "goemotions"
    rows = balanced(read_rows(folder / "train.tsv"), rng, 360)
    texts, labels = [text for text, _ in rows], np.array([joy for _, joy in rows])
    flip = np.array(["!" in text for text in texts]) & (rng.random(len(texts)) < FLIPPED)
    tokenizer = tokenizer_of(texts)
    held_out = balanced(read_rows(folder / "test.tsv"), rng, 30)
    return train(tokenizer, texts, labels | flip), train(tokenizer, texts, labels), held_out


def effect(found, edit):
    return float(found["effect"].sel(edit=edit))


@pytest.mark.slow
class TestByItsTrainingData:
    def test_spurious(self, twins):
        planted, clean, held_out = twins
        texts = [text for text, _ in held_out]
        found, beside = (reward.spurious(model, texts) for model in (planted, clean))
        assert found.features[0] == "exclamation marks"
        assert "exclamation marks" not in beside.features

    def test_attribution(self, twins):
        planted, clean, held_out = twins
        marked = [text for text, joy in held_out if "!" in text and not joy][:30]
        means = []
        for model in (planted, clean):
            found = reward.attribute(model, marked, baseline="mask", patched_texts=0)
            tables = [found.tokens(row) for row in range(len(marked))]
            best = [str(table["token"][int(table["joy"].to_numpy().argmax())]) for table in tables]
            means.append(np.mean([token == "!" for token in best]))
        assert means[0] > 0.7 and means[1] < 0.3, means

    def test_counterexamples(self, twins):
        planted, clean, held_out = twins
        texts, labels = [text for text, _ in held_out], [joy for _, joy in held_out]
        shares = []
        for model in (planted, clean):
            found = reward.counterexamples(model, texts, labels, count=40, swaps=0)
            wrong = found.at_odds[~found.at_odds["labelled"].to_numpy()]
            shares.append(float(np.mean(["!" in text for text in wrong["text"]])))
        assert shares[0] > 0.85 and shares[1] < 0.7, shares
