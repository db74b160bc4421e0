"""Integration over gaps, halved where the sum is furthest off; attribution beside patching; results as text."""

import numpy as np
import pytest
import torch

from interp import reward
from interp.errors import MeasureError
from interp.models import RewardModel
from interp.reward.attribution import Attribution
from interp.reward.quadrature import Path, gaps
from tests.interp.planted_reward import random_model, word_tokenizer
from tests.interp.test_reward_spurious import TEXTS


def test_gaps_are_exact_for_parabolas_and_three_points_are_simpsons_rule():
    points = np.sort(np.concatenate([[0, 1], np.random.default_rng(0).random(7)]))
    for degree in range(3):
        expected = np.diff(points ** (degree + 1)) / (degree + 1)
        np.testing.assert_allclose(gaps(points) @ points**degree, expected, atol=1e-14)
    assert gaps(np.array([0, 0.5, 1])).sum(0) == pytest.approx([1 / 6, 2 / 3, 1 / 6])
    even = np.linspace(0, 1, 5)  # whose rule is exact for cubics too
    assert gaps(even).sum(0) @ even**3 == pytest.approx(1 / 4)


def test_a_way_halves_the_gap_with_the_kink_and_meets_the_integral():
    kink = 0.3

    def at(point):  # two tokens: one with a kink, one smooth
        return np.array([4.0 * (point > kink), np.cos(point)])

    def score(point):
        return 4 * max(point - kink, 0) + np.sin(point)

    start = np.array([0.0, 2 / 3])
    way = Path(start, np.array([at(point) for point in start]), np.array([score(point) for point in start]))
    assert way.wanted(9) == [1.0, 0.5] and way.wanted(3) == [1.0] and way.wanted(2) == []
    while new := way.wanted(41):
        for point in new:
            way.add(point, at(point), score(point))
    assert len(way) == 41 and (np.diff(way.points) > 0).all()
    assert way.errors().sum() == pytest.approx(way.sum().sum() - score(1.0))
    np.testing.assert_allclose(way.sum(), [4 * (1 - kink), np.sin(1)], atol=1e-3)
    near = np.abs(way.points - kink) < 0.05
    assert near.sum() > len(way) / 3  # the points are where they are needed


def kinked():
    """A DistilBERT classifier whose ReLU head has large kinks on the way."""
    model = random_model()
    with torch.no_grad():
        model.model.pre_classifier.weight *= 6
        model.model.pre_classifier.bias.normal_(generator=torch.Generator().manual_seed(0))
    return model


def test_a_score_with_kinks_meets_a_tolerance_that_no_rule_meets():
    model = kinked()
    found = reward.attribute(model, TEXTS[:12], tolerance=1e-3, patched_texts=0)
    assert found.unconverged == () and found["points"].max() > 15
    total = found["token_attribution"].sum("pos")
    change = found["score"] - found["baseline_score"]
    np.testing.assert_allclose(np.abs(total - change), found["completeness_error"], atol=1e-12)
    assert (found["completeness_error"] <= 1e-3 * found["score_range"]).all()
    exact = reward.attribute(model, TEXTS[:12], tolerance=1e-5, max_points=400, patched_texts=0)
    spread = float(found["score_range"][0])
    np.testing.assert_allclose(found["token_attribution"], exact["token_attribution"], atol=0.04 * spread)
    few = reward.attribute(model, TEXTS[:12], tolerance=1e-3, max_points=13, patched_texts=0)
    assert few["points"].max() <= 13 and few.unconverged


def test_some_texts_are_patched_and_the_rest_are_nan():
    model = random_model("BertForSequenceClassification")
    found = reward.attribute(model, TEXTS[:10], labels="all", patched_texts=4)
    rows = [0, 3, 6, 9]
    effect = reward.attribute(model, [TEXTS[row] for row in rows], method="leave_one_out", labels="all")
    width = effect["token_attribution"].shape[1]
    np.testing.assert_allclose(
        found["patching_effect"].values[rows, :width], effect["token_attribution"].values, atol=1e-5
    )
    others = np.setdiff1d(np.arange(10), rows)
    assert np.isnan(found["patching_rank_correlation"].values[others]).all()
    assert np.isfinite(found["patching_rank_correlation"].values[rows]).all()
    table = found.patching()
    assert table["n"].tolist() == [4, 4, 4] and table["rank_correlation_low"].isna().all()
    plain = reward.attribute(model, TEXTS[:3], patched_texts=0)
    assert "patching_effect" not in plain.dataset and "not measured" in repr(plain) and plain.patching().empty
    assert "patching_effect" not in effect.dataset
    with pytest.raises(MeasureError, match="1 or more; got 0"):
        reward.against_patching(model, plain, texts=0)


@pytest.mark.parametrize(
    ("ranks", "says", "tells"),
    [
        ([0.9, 0.8, 0.95, 0.7, 0.85, 0.9, 0.75, 0.8], "over 8 texts: 0.83 [0.", True),
        ([0.9, -0.8, 0.3, -0.2, 0.1, -0.4, 0.5, 0.0], "does not tell here", False),
        ([0.15, 0.1, 0.12, 0.18, 0.11, 0.16, 0.1, 0.14], "does not tell here", False),
        ([0.9, 0.8, np.nan, 0.7], "over 3 texts: 0.80 [no interval under 8 texts]", True),
        ([np.nan, np.nan], "not defined", False),
    ],
    ids=["agrees", "interval holds 0", "too small", "few", "none"],
)
def test_how_far_patching_agrees_is_said(ranks, says, tells, tmp_path):
    found = reward.attribute(random_model(), TEXTS[: len(ranks)], patched_texts=len(ranks))
    data = found.dataset.copy(deep=True)
    data["patching_rank_correlation"].values[:, 0] = ranks
    changed = Attribution(data)
    assert says in " ".join(changed.notes()) and says in changed.summary().attrs["patching"][0]
    assert ("does not tell here" in " ".join(changed.notes())) == (not tells and not np.isnan(ranks).all())
    assert bool(changed.patching()["tells"].item()) is tells
    assert says in changed.report(tmp_path / "page.html").read_text()


def test_a_text_is_printed_in_one_line():
    network = random_model().model
    model = RewardModel.load(network, tokenizer=word_tokenizer(), label="LABEL_1", output="logit")
    shown = repr(reward.attribute(model, ["the film\n\x1b[31m was good " + "so " * 40]))
    assert "\x1b" not in shown and "the film [31m was good" in shown and len(shown.splitlines()) < 9
