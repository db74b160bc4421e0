"""Reward attribution beside log-ratios: aligned by characters, found where planted, silent where not."""

import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.stats import spearmanr
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from interp import plot
from interp.errors import InterpError, MeasureError, PromptError
from interp.models import Policy
from interp.report.reward_pages import render_tokens
from interp.reward.token_join import READINGS, common_spans, correlate, spans_of, token_join
from tests.conftest import WORDS, tiny_gpt2, word_tokenizer
from tests.interp.architectures import build
from tests.interp.figures import drawn, words
from tests.interp.synthetic import NASTY

TEXTS = [
    "this movie was good and fun", "the film was bad and boring", "a really good plot", "great acting and a bad plot",
    "very boring film", "good good bad bad", "the acting was really very good", "this was a great movie",
    "a boring plot and great fun", "bad acting",
]  # fmt: skip


@pytest.fixture(scope="module")
def policies() -> tuple[Policy, Policy]:
    """Base, and tuned with every word's logit moved by its own amount in `MOVED`."""
    base, tuned = (tiny_gpt2(tie_word_embeddings=False) for _ in range(2))
    tokenizer = word_tokenizer()
    with torch.no_grad():
        for model in (base, tuned):
            model.lm_head.weight.mul_(0.3)
        gain, bias = (p.double() for p in (tuned.transformer.ln_f.weight, tuned.transformer.ln_f.bias))
        for word, nats in MOVED.items():
            tuned.lm_head.weight[tokenizer.encode(f" {word}")[0]] += (nats / gain / (bias / gain).sum()).float()
    return Policy.load(base, tokenizer=tokenizer), Policy.load(tuned, tokenizer=tokenizer)


MOVED = {word: 0.4 * (index - len(WORDS) / 2) for index, word in enumerate(WORDS)}


def by_word(text: str, values: dict[str, float]) -> list[tuple[int, int, float]]:
    return [(*found.span(), values[found.group()]) for found in re.finditer(r"\S+", text)]


def test_a_planted_join_is_found(policies):
    result = token_join(*policies, TEXTS, [by_word(text, MOVED) for text in TEXTS], draws=199)
    data = result.dataset
    assert float(data["signed_spearman_mean"]) > 0.9 and float(data["signed_spearman_low"]) > 0.8
    assert (result.summary().iloc[:2]["p"] <= 0.005 + 1e-9).all()
    row = data.isel(prompt=0)
    assert row["piece"].values.tolist()[:5] == ["movie", "was", "good", "and", "fun"]  # nothing predicts the first
    want = [MOVED[word] for word in ("movie", "was", "good", "and", "fun")]
    np.testing.assert_allclose(row["attribution"][:5], want)
    # The models differ by these amounts and by log Z, which is one number a position.
    assert spearmanr(row["log_ratio"][:5], want).statistic == pytest.approx(float(row["signed_spearman"]))


def test_what_has_nothing_to_do_with_the_shift_is_not_found(policies):
    rng, ps = np.random.default_rng(0), []
    base = token_join(*policies, TEXTS, [by_word(text, MOVED) for text in TEXTS], draws=9).dataset
    known = np.isfinite(base["log_ratio"].values)
    for _ in range(60):
        rows = [
            [(0, 1, rng.normal(), y, s) for y, s in zip(ys[keep], ss[keep], strict=True)]
            for ys, ss, keep in zip(base["log_ratio"].values, base["surprise"].values, known, strict=True)
        ]
        frame = correlate(TEXTS, rows, np.arange(len(TEXTS)), draws=39).summary()
        ps.append(frame["p"].values)
    ps = np.array(ps)
    assert ((ps <= 0.05).mean(0) < 0.16).all() and (ps.mean(0) > 0.35).all()


def test_what_base_finds_surprising_explains_sizes():
    rng, texts = np.random.default_rng(1), ["x" * 50] * 30
    rows = []
    for _ in texts:  # both sizes follow the surprise, and otherwise have nothing to do with one another
        surprise = rng.uniform(0, 5, 12)
        x, y = (rng.choice([-1, 1], 12) * (3 + surprise + rng.normal(0, 0.5, 12)) for _ in range(2))
        rows.append([(i, i + 1, *map(float, each)) for i, each in enumerate(zip(x, y, surprise, strict=True))])
    data = correlate(texts, rows, np.arange(30), draws=99).dataset
    assert float(data["size_spearman_low"]) > 0.6
    assert float(data["size_given_surprise_spearman_low"]) < 0.05
    assert float(data["size_given_surprise_spearman_mean"]) < float(data["size_spearman_mean"]) / 4
    assert abs(float(data["signed_spearman_mean"])) < 0.15


@pytest.mark.parametrize(
    ("first", "second", "want"),
    [
        ([(0, 4), (4, 9)], [(0, 4), (5, 9)], [(0, 4, [0], [0]), (5, 9, [1], [1])]),
        ([(0, 4), (4, 7), (7, 9)], [(0, 4), (5, 9)], [(0, 4, [0], [0]), (5, 9, [1, 2], [1])]),
        ([(0, 2), (2, 6), (6, 9)], [(0, 4), (4, 9)], [(0, 9, [0, 1, 2], [0, 1])]),
        ([(0, 0), (4, 5), (5, 9)], [(5, 7), (7, 9)], [(5, 9, [2], [0, 1])]),
        ([(0, 9)], [], [(0, 9, [0], [])]),
    ],
    ids=["space", "pieces", "straddling", "blank", "one side"],
)
def test_common_spans(first, second, want):
    assert common_spans("good film", first, second) == want


def test_characters_of_several_bytes_are_one_span():
    tokenizer = word_tokenizer()
    text = "é好🙂 good"
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert len(spans) > 4
    found = common_spans(text, spans, [(0, 3), (4, 8)])
    assert [(a, b) for a, b, *_ in found] == [(0, 3), (4, 8)] and all(ours and theirs for *_, ours, theirs in found)


def test_sums_are_kept_whatever_the_other_tokenizer(policies):
    raw = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    letters = PreTrainedTokenizerFast(tokenizer_object=raw)
    spans = [
        [(a, b, MOVED_BY_LETTER[text[a]]) for a, b in letters(text, return_offsets_mapping=True)["offset_mapping"]]
        for text in TEXTS
    ]
    data = token_join(*policies, TEXTS, spans, draws=9).dataset
    whole = token_join(*policies, TEXTS, [by_word(text, MOVED) for text in TEXTS], draws=9).dataset
    for row in range(len(TEXTS)):  # a first word that is several tokens can be joined from its second one on
        own, want = (dict(zip(d["start"].values[row], d["log_ratio"].values[row], strict=True)) for d in (data, whole))
        assert len(set(own) - set(want)) <= 1
        assert all(own[start] == value for start, value in want.items() if start >= 0)
    for piece, value in zip(data["piece"].values.ravel(), data["attribution"].values.ravel(), strict=True):
        if piece:
            assert value == pytest.approx(sum(MOVED_BY_LETTER[letter] for letter in piece))


MOVED_BY_LETTER = {letter: float(ord(letter) % 7) for letter in "abcdefghijklmnopqrstuvwxyz "}


def test_log_ratios_are_those_of_a_plain_loop(policies):
    text = TEXTS[0]
    data = token_join(*policies, [text], [by_word(text, MOVED)], draws=9).dataset
    ids = policies[0].tokenizer(text)["input_ids"]
    with torch.no_grad():
        low, high = (p.model(torch.tensor([ids])).logits[0].double().log_softmax(-1) for p in policies)
    gap = [float((high - low)[i, token]) for i, token in enumerate(ids[1:])]
    # " movie" and so on are one token each; what comes before is pieces of "this".
    np.testing.assert_allclose(data["log_ratio"].values[0][-5:], gap[-5:], atol=1e-5)


def test_starts_and_batch_size(policies):
    spans = [by_word(text, MOVED) for text in TEXTS]
    starts = [text.index(" ", 3) for text in TEXTS]
    data = token_join(*policies, TEXTS, spans, starts=starts, draws=9, batch_size=3).dataset
    whole = token_join(*policies, TEXTS, spans, draws=9).dataset
    for row, start in enumerate(starts):
        first = data["start"].values[row][0]
        assert first >= start
        at = whole["start"].values[row].tolist().index(first)
        assert float(data["log_ratio"][row, 0]) == pytest.approx(float(whole["log_ratio"][row, at]), abs=1e-5)


@dataclass(frozen=True)
class Attributed:
    dataset: xr.Dataset


def attributed(labels: list[str]) -> Attributed:
    one = np.array([[np.nan, 1.0, 2.0], [0.5, -1.0, np.nan]])
    values = np.stack([one + index for index in range(len(labels))])
    data = {
        "start": (("prompt", "token"), [[0, 0, 3], [0, 2, -1]]),
        "end": (("prompt", "token"), [[0, 3, 7], [2, 5, -1]]),
        "token_attribution": (("label", "prompt", "token"), values),
    }
    return Attributed(xr.Dataset(data, coords={"label": labels}))


def test_attributions_come_as_a_dataset_or_as_lists():
    assert spans_of(attributed(["joy"])) == [[(0, 3, 1.0), (3, 7, 2.0)], [(0, 2, 0.5), (2, 5, -1.0)]]
    assert spans_of(attributed(["joy", "fear"]), label="fear")[1] == [(0, 2, 1.5), (2, 5, 0.0)]
    assert spans_of([[(0, 1, 2)]]) == [[(0, 1, 2.0)]]
    with pytest.raises(MeasureError, match="labels joy, fear"):
        spans_of(attributed(["joy", "fear"]))
    with pytest.raises(MeasureError, match="no label 'anger'"):
        spans_of(attributed(["joy", "fear"]), label="anger")
    with pytest.raises(MeasureError, match="lacks start"):
        spans_of(Attributed(xr.Dataset({"end": ("token", [1])})))


@pytest.mark.usefixtures("as_a_user")
def test_bad_input(policies):
    spans = [by_word(text, MOVED) for text in TEXTS]
    with pytest.raises(PromptError, match="10 texts but 9 attributions"):
        token_join(*policies, TEXTS, spans[:-1])
    with pytest.raises(PromptError, match="10 texts but 1 starts"):
        token_join(*policies, TEXTS, spans, starts=[0])
    with pytest.raises(PromptError, match="empty"):
        token_join(*policies, ["", *TEXTS[1:]], spans)
    with pytest.raises(PromptError, match="the models read 64"):
        token_join(*policies, [" good" * 70], [[(0, 4, 1.0)]])
    with pytest.raises(MeasureError, match="spans 0 to 999"):
        token_join(*policies, TEXTS, [[(0, 999, 1.0)], *spans[1:]])
    with pytest.raises(MeasureError, match="is nan"):
        token_join(*policies, TEXTS, [[(0, 3, float("nan"))], *spans[1:]])
    with pytest.raises(MeasureError, match="three tokens"):
        token_join(*policies, ["good"], [[(0, 4, 1.0)]])
    with pytest.raises(MeasureError, match="at least 1"):
        token_join(*policies, TEXTS, spans, draws=0)
    t5 = Policy.load(build("T5ForConditionalGeneration"), tokenizer=word_tokenizer(), check=False)
    with pytest.raises(MeasureError, match="encoder-decoder"):
        token_join(t5, t5, TEXTS, spans)


def nasty():
    text = " ".join(NASTY) + " end"
    spans = [(found.start(), found.end()) for found in re.finditer(r"\S+", text)]
    rng = np.random.default_rng(0)
    rows = [[(a, b, *map(float, rng.normal(size=2)), 1.0 + i) for i, (a, b) in enumerate(spans)], []]
    return text, correlate([text, "nothing in it is joined"], rows, np.arange(2), draws=19)


def test_the_page_shows_both_lines_and_escapes(tmp_path):
    text, result = nasty()
    page = render_tokens(result)
    assert page == render_tokens(result) and "http://" not in page and "https://" not in page
    assert page.count("<script") == 0 and "&lt;script&gt;" in page and "\u202e" not in page
    body = page[page.index('<div class="text">') :]
    pieces = re.findall(r'<span class="piece".*?</span></span>', body)
    assert len(pieces) == int(np.isfinite(result.dataset["attribution"]).sum())
    for piece in pieces:  # the same characters above and below
        above, below = re.findall(r'--a:[\d.]+">(.*?)</span>', piece)
        assert above == below
    assert "Text 2" not in body  # no character of it has both an attribution and a log-ratio
    assert result.report(tmp_path / "page.html").read_text() == page
    with pytest.raises(InterpError, match="ends in .html"):
        result.report(tmp_path / "page.txt")


@pytest.mark.parametrize("width", [17.0, 8.5])
def test_the_figure_draws_points_and_null(policies, width):
    result = token_join(*policies, TEXTS, [by_word(text, MOVED) for text in TEXTS], draws=99)
    figure = drawn(plot.token_join(result, width=width))
    assert "null: permuted attributions" in words(figure)
    assert len(figure.axes[0].collections[0].get_offsets()) == int(np.isfinite(result.dataset["attribution"]).sum())
    drawn(plot.token_join(nasty()[1], width=width))


def test_it_prints_what_was_found_and_how_to_go_on(policies):
    found = token_join(*policies, TEXTS, [by_word(text, MOVED) for text in TEXTS], draws=19)
    said = repr(found)
    assert said.startswith(f"{len(TEXTS)} texts: a token's reward attribution") and '.report("tokens.html")' in said
    assert "null: 19 permutations" in said and "Dataset" not in said


def test_every_reading_is_in_the_summary(policies):
    frame = token_join(*policies, TEXTS, [by_word(text, MOVED) for text in TEXTS], draws=9).summary()
    assert len(frame) == 2 * len(READINGS)


@pytest.mark.slow
def test_real_texts_through_two_real_tokenizers(stories):
    policy = Policy.load(stories)
    texts = ["Once upon a time there was a little girl who loved the moon.", "The dog didn't want to go home, he said."]
    spans = [by_word(text, {word: float(len(word)) for word in text.split()}) for text in texts]
    data = token_join(policy, policy, texts, spans, draws=9).dataset
    assert (data["log_ratio"].fillna(0) == 0).all() and np.isnan(data["signed_spearman"]).all()
    for row, text in enumerate(texts):
        assert [piece for piece in data["piece"].values[row] if piece] == text.split()


def test_what_attribute_returns_is_joined_as_it_is(policies):
    from interp.models import RewardModel
    from interp.reward import attribute

    tokenizer = word_tokenizer()
    classifier = build("GPT2ForSequenceClassification", vocab_size=len(tokenizer))
    reward = RewardModel(classifier, tokenizer, "LABEL_1", "logit", {})
    found = attribute(reward, TEXTS, labels=["LABEL_0", "LABEL_1"], method="leave_one_out")
    data = token_join(*policies, TEXTS, found, label="LABEL_1", draws=9).dataset
    last = found.dataset.sel(label="LABEL_1").isel(prompt=0)
    place = int(np.flatnonzero(last["end"] == len(TEXTS[0]))[-1])
    row = data["attribution"].values[0]
    assert row[np.isfinite(row)][-1] == pytest.approx(float(last["token_attribution"][place]))
    with pytest.raises(MeasureError, match="select one"):
        token_join(*policies, TEXTS, found)
