"""What a reward model holds on to, and what it gets wrong: planted scores are caught, statistics against oracles."""

import itertools
import re

import numpy as np
import pytest
import scipy.stats
import torch

from interp import reward
from interp.errors import InterpError, MeasureError, PromptError
from interp.reward.spurious import _regression
from interp.reward.text_properties import EDITS, FEATURES, NEUTRAL_PREFIX, Edit, measure_features
from interp.stats import holm, sign_flip_p
from tests.interp.planted_reward import planted, random_model

OPENINGS = [
    "the film was",
    "a book is",
    "the story was not",
    "i think the plot is",
    "john said it was",
    "the people are",
]
REST = ["good", "bad", "great!", "terrible!!", "so really good, the way it was", "not very bad! say the people"]
TEXTS = [f"{first} {rest}" for first, rest in itertools.product(OPENINGS, REST)]


def value(name, text):
    return measure_features([text], [feature for feature in FEATURES if feature.name == name])[0, 0]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("length", "one two three", np.log(4)),
        ("word length", "a bcd, ef", 2.0),
        ("exclamation marks", "no! yes!!", 3),
        ("question marks", "no? yes!", 1),
        ("other punctuation", "a, b!", 1 / 4),
        ("capitals", "AbC d", 0.5),
        ("repetition", "the cat the Cat", 0.5),
        ("positive words", "Great, I love it: greatest", 2),
        ("negative words", "a terrible, BAD day", 2),
        ("first person", "I’m sure that we like my dog", 3),
        ("names", "Mary met [NAME] and mark", 2),
        ("flattery", "You are so smart. Great question!", 2),
    ],
)
def test_a_feature_by_hand(name, text, expected):
    assert value(name, text) == pytest.approx(expected)


def test_an_edit_changes_what_it_says():
    text = "The film was good, but I use it now."
    for edit in EDITS:
        changed = edit.apply(text)
        if edit.feature != "none":
            assert value(edit.feature, changed) != pytest.approx(value(edit.feature, text)), edit.name
        else:
            assert changed != text
    named = {edit.name: edit.apply(text) for edit in EDITS}
    assert named["cut to its first half"] == "The film was good, but"
    assert named['"I think that" before it'] == "I think that the film was good, but I use it now."
    assert named["longer words"] == "The film was good, nevertheless I utilize it currently."
    assert named["no punctuation"] == "The film was good but I use it now"


def test_a_prefix_is_measured_from_the_neutral_prefix():
    model = random_model()
    found = reward.spurious(model, TEXTS)
    prefixes = [edit for edit in EDITS if edit.against is not None]
    assert {edit.feature for edit in prefixes} == {"first person", "names", "flattery"}
    spread = model.score(TEXTS).std(ddof=1)
    neutral = next(edit for edit in EDITS if edit.name == NEUTRAL_PREFIX)
    plain, without = model.score(TEXTS), model.score([neutral.apply(text) for text in TEXTS])
    for edit in prefixes:
        score = model.score([edit.apply(text) for text in TEXTS])
        cell = found.dataset.sel(edit=edit.name)
        assert float(cell["effect"]) == pytest.approx((score - without).mean() / spread, abs=1e-5)
        assert float(cell["effect_from_text"]) == pytest.approx((score - plain).mean() / spread, abs=1e-5)
        assert cell["edit_against"].item() == NEUTRAL_PREFIX
    alone = f"alone moves the score by {(without - plain).mean() / spread:+.2f} ["
    assert alone in found.neutral and alone[:-2] in str(found)


def test_what_the_neutral_prefix_does_is_not_laid_to_the_others():
    """The neutral prefix moves the planted score, the other not at all."""
    edits = [
        Edit(NEUTRAL_PREFIX, "none", lambda text: f"They say!! that {text}"),
        Edit("John", "names", lambda text: f"John {text}", NEUTRAL_PREFIX),
        Edit("praise", "flattery", lambda text: f"great!!!! {text}", NEUTRAL_PREFIX),
    ]
    table = reward.spurious(planted(), TEXTS, edits=edits).summary().set_index("what")
    assert table.loc["John", "effect"] < -0.5 and abs(table.loc["John", "from_text"]) < 0.02
    assert not table.loc["John", "goes_by"] and table.loc["praise", "goes_by"]
    alone = reward.spurious(planted(), TEXTS, edits=edits[1:])
    assert alone.neutral == "" and (alone["edit_against"].values == "").all()  # no neutral prefix: from the text


def test_holm_by_hand():
    assert holm(np.array([0.01, 0.04, 0.03, np.nan])) == pytest.approx([0.03, 0.06, 0.06, np.nan], nan_ok=True)
    assert holm(np.array([0.9, 0.8])) == pytest.approx([1, 1])


def test_the_regression_is_least_squares_and_covers():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 3)) @ np.array([[1, 0.5, 0], [0, 1, 0], [0, 0, 3.0]]) + 5
    z = (features - features.mean(0)) / features.std(0, ddof=1)
    score = 2 + z @ np.array([0.7, 0.0, -0.4]) + rng.normal(size=400) * (0.5 + np.abs(z[:, 0]))
    fit = _regression(np.column_stack([features, np.ones(400)]), score)
    expected = np.linalg.lstsq(np.column_stack([np.ones(400), z]), score, rcond=None)[0][1:]
    assert fit.coefficient[:3] == pytest.approx(expected)
    assert (fit.low[:3] < [0.7, 0.0, -0.4]).all() and (fit.high[:3] > [0.7, 0.0, -0.4]).all()
    assert np.isnan(fit.coefficient[3])  # the same for every text
    assert fit.p[0] < 1e-6 < 0.01 < fit.p[1]


def test_the_sign_flip_is_the_exact_test():
    values = np.array([0.5, 1.0, -0.2, 0.7, 0.1, 0.4, -0.1, 0.9])
    exact = np.mean(
        [abs(np.dot(signs, values)) >= abs(values.sum()) - 1e-12 for signs in itertools.product((-1, 1), repeat=8)]
    )
    assert sign_flip_p(values, seed=0) == pytest.approx(exact, abs=0.01)
    assert np.isnan(sign_flip_p(values[:7], seed=0))


@pytest.fixture(scope="module")
def found():
    return reward.spurious(planted(), TEXTS)


class TestPlanted:
    """The score is the number of "!", by the model's weights."""

    def test_both_ways_find_it_first(self, found):
        assert found.features[0] == "exclamation marks"
        table = found.summary()
        top = {way: rows.iloc[0] for way, rows in table.groupby("way")}
        assert top["edits"]["what"] == "three ! at the end" and top["edits"]["goes_by"]
        assert top["regression"]["feature"] == "exclamation marks" and top["regression"]["goes_by"]
        spread = found.dataset.attrs["spread"]
        one = found["effect"].sel(edit="one ! at the end").item() * spread
        assert one == pytest.approx(1, abs=0.05)
        others = table[(table["way"] == "regression") & (table["feature"] != "exclamation marks")]["effect"].abs()
        assert others.max() < 0.05 and found.dataset.attrs["explained"] > 0.99

    def test_what_has_no_mark_to_change_does_nothing(self, found):
        for name in ('"Mary: " before it', '"They say that" before it', "all capitals"):
            assert abs(found["effect"].sel(edit=name).item()) < 0.02
        assert {name for name in found.features} <= {"exclamation marks", "repetition", "length", "other punctuation"}

    def test_the_page(self, found, tmp_path):
        page = found.report(tmp_path / "page.html").read_text()
        assert "the score goes by" in page and "exclamation marks" in page
        assert "<script" not in page and not re.search(r'(src|href)="http', page)
        assert page == found.report(tmp_path / "again.html").read_text()
        with pytest.raises(InterpError, match="ends in .html"):
            found.report(tmp_path / "page.txt")

    def test_counterexamples_find_it(self, tmp_path):
        labels = ["good" in text or "great" in text for text in TEXTS]
        found = reward.counterexamples(planted(), TEXTS, labels, threshold=0.5, overlap=0.6, swapped_texts=2)
        odd = found.at_odds.iloc[:3]
        assert all(("!" in row.text) != row.labelled for row in odd.itertuples())
        assert all("!" in row.high and "!" not in row.low for row in found.pairs.itertuples()) and len(found.pairs)
        assert (found.swaps["put"] == "!").all() and len(found.swaps) == 6
        assert found.swaps["gain"].to_numpy() == pytest.approx(1, abs=0.1)
        page = found.report(tmp_path / "page.html").read_text()
        assert "Most at odds" in page and "→ <bdi>!" in page


def test_nearness_and_ranks_by_hand():
    model = random_model()
    texts = ["the film was good", "the film was bad", "mary said what", "john and the dog"]
    score = model.score(texts)
    labels = [True, False, True, False]
    found = reward.counterexamples(model, texts, labels, threshold=float(np.median(score)), overlap=0.5, swaps=0)
    rank = dict(zip(texts, (scipy.stats.rankdata(score) - 1) / 3, strict=True))
    for row in found.at_odds.itertuples():
        assert row.rank == pytest.approx(rank[row.text])
        assert row.odds == pytest.approx(1 - row.rank if row.labelled else row.rank)
    assert found.at_odds["odds"].is_monotonic_decreasing
    apart = (score[0] > np.median(score)) != (score[1] > np.median(score))
    assert len(found.pairs) == int(apart)
    if apart:
        assert found.pairs["overlap"].item() == pytest.approx(3 / 5)
    assert len(found.swaps) == 0


def test_swaps_are_scored_as_texts():
    model = random_model("BertForSequenceClassification")
    found = reward.counterexamples(model, TEXTS[:8], [True, False] * 4, swapped_texts=3)
    assert len(found.swaps)
    np.testing.assert_allclose(model.score(list(found.swaps["swapped"])), found.swaps["score"], atol=1e-4)
    assert (found.swaps["gain"] > 0).all()


def test_a_page_escapes_what_it_shows(tmp_path):
    model = random_model()
    text = "<script>alert(1)</script> the film \u202e good & bad"
    page = reward.attribute(model, [text, "good"]).report(tmp_path / "page.html").read_text()
    assert "<script" not in page and "\u202e" not in page and "\\u202e" in page and "&amp;" in page
    assert "Rank correlation with patching over 1 text: " in page


def test_the_same_seed_gives_the_same_bytes():
    model = random_model()
    first, second = (reward.spurious(model, TEXTS, seed=3).summary() for _ in range(2))
    assert first.to_csv() == second.to_csv()


class TestBadInput:
    def test_spurious(self):
        model = random_model()
        with pytest.raises(MeasureError, match="8 texts are too few for 12 features; give 26 or more"):
            reward.spurious(model, TEXTS[:8])
        with pytest.raises(PromptError, match="text 1 is empty"):
            reward.spurious(model, [TEXTS[0], " "])
        with pytest.raises(MeasureError, match="every text has the same score"):
            reward.spurious(model, [TEXTS[0]] * 30)

    def test_counterexamples(self):
        model = random_model()
        with pytest.raises(MeasureError, match="8 texts and 7 labels"):
            reward.counterexamples(model, TEXTS[:8], [True] * 7)
        with pytest.raises(MeasureError, match="every text has the same label"):
            reward.counterexamples(model, TEXTS[:8], [True] * 8)

    @pytest.mark.usefixtures("as_a_user")
    def test_labels_that_are_no_truth_values(self):
        model = random_model()
        for strange in (["1", "0"] * 4, [1.0, np.nan] * 4, [None, True] * 4, [2, 0] * 4):
            with pytest.raises(MeasureError, match="True or False"):
                reward.counterexamples(model, TEXTS[:8], strange)
        whole, truth = (
            reward.counterexamples(model, TEXTS[:8], given, swaps=0).at_odds
            for given in ([1, 0] * 4, [True, False] * 4)
        )
        assert whole.equals(truth)

    @pytest.mark.parametrize("read", [reward.spurious, lambda m, t: reward.counterexamples(m, t, [True, False] * 18)],
                             ids=["spurious", "counterexamples"])  # fmt: skip
    def test_nan_scores(self, read):
        model = random_model()
        with torch.no_grad():
            model.model.classifier.weight[1, 0] = float("nan")
        with pytest.raises(InterpError, match="is not finite; check its weights for NaN"):
            read(model, TEXTS)
