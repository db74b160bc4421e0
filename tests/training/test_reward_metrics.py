import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score, roc_auc_score
from sklearn.metrics import confusion_matrix as confusion

from training.reward_models.losses import binary_cross_entropy, bradley_terry, cross_entropy, drop_words
from training.reward_models.metrics import (
    auroc,
    best_threshold,
    class_figures,
    label_figures,
    micro_thresholds,
    preference_figures,
)

LABELS = ["a", "b", "c"]


def scored(seed, texts=200, labels=3):
    """Probabilities, rounded so that there are ties, and labels that follow them loosely."""
    random = np.random.default_rng(seed)
    scores = random.random((texts, labels)).round(2)
    return scores, random.random((texts, labels)) < scores * 0.6


def test_losses_by_hand():
    pairs = bradley_terry(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]))
    assert float(pairs) == pytest.approx((math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2)
    targets = torch.tensor([[1.0, 0.0]])
    several = binary_cross_entropy(torch.tensor([[2.0, -1.0]]), targets)
    assert float(several) == pytest.approx((math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2)
    one = cross_entropy(torch.tensor([[2.0, -1.0]]), targets)
    assert float(one) == pytest.approx(math.log(1 + math.exp(-3)))


def test_words_are_dropped_but_for_the_special_ones():
    torch.manual_seed(0)
    ids = torch.arange(4).repeat(1000, 1)
    dropped = drop_words(ids, 0.25, 9, torch.tensor([0, 1]))
    assert torch.equal(dropped[:, :2], ids[:, :2]) and set(dropped[:, 2:].flatten().tolist()) == {2, 3, 9}
    assert 0.2 < float((dropped[:, 2:] == 9).float().mean()) < 0.3
    assert drop_words(ids, 0.0, 9, torch.tensor([0])) is ids


@pytest.mark.parametrize("seed", range(5))
def test_the_best_threshold_beats_every_other(seed):
    scores, truth = (each[:, 0] for each in scored(seed, texts=60))
    found = f1_score(truth, scores >= best_threshold(scores, truth))
    every = [f1_score(truth, scores >= t, zero_division=0) for t in np.append(np.unique(scores), 2.0)]
    assert found == pytest.approx(max(every))


def test_thresholds_at_the_bounds():
    assert best_threshold(np.array([0.2, 0.4]), np.array([False, False])) == 0.5
    assert best_threshold(np.array([0.2, 0.4]), np.array([False, True])) == pytest.approx(0.3)
    assert best_threshold(np.array([0.2, 0.4]), np.array([True, True])) == pytest.approx(0.1)


@pytest.mark.parametrize("seed", range(3))
def test_thresholds_for_micro_f1_can_not_be_bettered_one_by_one(seed):
    scores, truth = scored(seed, texts=60)
    start = best_threshold(scores.ravel(), truth.ravel())
    found = micro_thresholds(scores, truth, start=start)
    best = f1_score(truth, scores >= found, average="micro")
    assert best >= f1_score(truth, scores >= start, average="micro")
    for k in range(3):
        for t in np.append(np.unique(scores[:, k]), 2.0):
            other = np.where(np.arange(3) == k, t, found)
            assert f1_score(truth, scores >= other, average="micro") <= best + 1e-12


def slow_delong(scores, truth):
    """Equation by equation, with a loop over all pairs."""
    positive, negative = scores[truth], scores[~truth]
    wins = np.array([[(p > n) + 0.5 * (p == n) for n in negative] for p in positive])
    area = wins.mean()
    s10 = ((wins.mean(axis=1) - area) ** 2).sum() / (len(positive) - 1)
    s01 = ((wins.mean(axis=0) - area) ** 2).sum() / (len(negative) - 1)
    half = 1.959963984540054 * math.sqrt(s10 / len(positive) + s01 / len(negative))
    return area, (max(0.0, area - half), min(1.0, area + half))


@pytest.mark.parametrize("seed", range(3))
def test_auroc_and_its_interval_against_a_plain_loop(seed):
    scores, truth = (each[:, 0] for each in scored(seed, texts=50))
    area, interval = auroc(scores, truth)
    slow, slow_interval = slow_delong(scores, truth)
    assert area == pytest.approx(slow) == pytest.approx(roc_auc_score(truth, scores))
    assert interval == pytest.approx(slow_interval)


def test_auroc_at_its_bounds():
    assert auroc(np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True])) == (1.0, (1.0, 1.0))
    assert auroc(np.array([0.1, 0.2]), np.array([False, True])) is None


def test_delongs_interval_covers():
    """Of 300 draws of 80 texts about 95 % of the intervals hold the true area, P(X > Y) = Phi(1 / sqrt 2)."""
    random, true = np.random.default_rng(0), 0.5 * (1 + math.erf(0.5))
    truth = np.arange(80) < 40
    held = 0
    for _ in range(300):
        low, high = auroc(random.normal(size=80) + truth, truth)[1]
        held += low <= true <= high
    assert 0.91 <= held / 300 <= 0.98


def test_label_figures_against_scikit_learn():
    validation, (scores, truth) = scored(1), scored(2)
    card = label_figures(validation, (scores, truth), LABELS)
    own = np.array([card["by_label"][name]["threshold"] for name in LABELS])
    assert own.tolist() == [best_threshold(validation[0][:, k], validation[1][:, k]) for k in range(3)]
    common = card["micro"]["one_threshold"]["threshold"]
    together = np.array([card["by_label"][name]["micro_threshold"] for name in LABELS])
    decided = {
        "tuned_by_label": scores >= own,
        "tuned_for_micro": scores >= together,
        "one_threshold": scores >= common,
        "at_0.5": scores >= 0.5,
    }
    for name, decision in decided.items():
        for average in ("micro", "macro"):
            figures = card[average][name]
            assert figures["f1"] == pytest.approx(f1_score(truth, decision, average=average))
            assert figures["precision"] == pytest.approx(precision_score(truth, decision, average=average))
            assert figures["recall"] == pytest.approx(recall_score(truth, decision, average=average))
    for k, name in enumerate(LABELS):
        row = card["by_label"][name]
        assert row["support"] == truth[:, k].sum()
        assert row["f1"] == pytest.approx(f1_score(truth[:, k], scores[:, k] >= own[k]))
        assert row["at_0.5"]["recall"] == pytest.approx(recall_score(truth[:, k], scores[:, k] >= 0.5))
        assert row["auroc"] == pytest.approx(roc_auc_score(truth[:, k], scores[:, k]))
        assert row["auroc_interval"][0] < row["auroc"] < row["auroc_interval"][1]
    assert card["macro_auroc"] == pytest.approx(roc_auc_score(truth, scores, average="macro"))


def test_a_label_that_the_test_texts_lack():
    scores, truth = scored(3)
    truth[:, 1] = False
    card = label_figures((scores, truth), (scores, truth), LABELS)
    row = card["by_label"]["b"]
    assert (row["support"], row["auroc"], row["f1"]) == (0, None, 0.0)
    assert card["macro_auroc"] == pytest.approx(np.mean([roc_auc_score(truth[:, k], scores[:, k]) for k in (0, 2)]))


def test_class_figures_against_scikit_learn():
    scores, _ = scored(4)
    classes = np.random.default_rng(0).integers(0, 3, 200)
    card = class_figures(scores, np.eye(3, dtype=bool)[classes], LABELS)
    guess = scores.argmax(axis=1)
    assert card["accuracy"] == pytest.approx(accuracy_score(classes, guess)) == card["micro"]["f1"]
    assert card["macro"]["f1"] == pytest.approx(f1_score(classes, guess, average="macro"))
    assert card["confusion"] == confusion(classes, guess).tolist()
    assert card["by_label"]["b"]["auroc"] == pytest.approx(roc_auc_score(classes == 1, scores[:, 1]))


def test_preference_figures_by_hand():
    card = preference_figures(np.array([1.0, 0.0, 2.0, 1.0]), np.array([0.0, 0.0, 3.0, -1.0]))
    assert card["accuracy"] == 2.5 / 4 and card["margin"] == 0.5
    assert card["margin_sd"] == pytest.approx(np.std([1, 0, -1, 2]))
    assert card["loss"] == pytest.approx(np.mean([math.log(1 + math.exp(-m)) for m in (1, 0, -1, 2)]))
    without_ties = preference_figures(np.array([1.0, 1.0, 1.0, 0.0]), np.array([0.0, 0.0, 0.0, 1.0]))
    wilson = binomtest(3, 4).proportion_ci(method="wilson")
    assert without_ties["accuracy_interval"] == pytest.approx([wilson.low, wilson.high])
