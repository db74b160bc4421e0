"""What a card says of a reward model: figures by label with intervals, on texts that it never saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import norm

THRESHOLDS = "by label: the threshold with the best F1 on the validation set"
MICRO = "by label: the thresholds that together have the best micro-F1 on the validation set"
COMMON = "one threshold for all labels: that with the best micro-F1 on the validation set"
ARGMAX = "the likeliest label"


def best_threshold(
    scores: Float[np.ndarray, " text"],
    truth: Bool[np.ndarray, " text"],
    *,
    elsewhere: tuple[int, int, int] = (0, 0, 0),
) -> float:
    """The threshold t at which "score >= t" has the best F1, halfway between two neighbouring scores.

    F1 = 2 hits / (decided + true). Among equally good ones it is the highest; 0.5 where no text has the label.

    Args:
        scores: scores of one label.
        truth: whether each text has it.
        elsewhere: hits, decided and true counts of other labels that the F1 is taken over as well.
    """
    if not truth.any():
        return 0.5
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(truth[order])
    f1 = 2 * (hits + elsewhere[0]) / (np.arange(1, len(ranked) + 1) + elsewhere[1] + truth.sum() + elsewhere[2])
    last_of_ties = np.append(ranked[1:] != ranked[:-1], True)
    place = int(np.argmax(np.where(last_of_ties, f1, -1.0)))
    below = ranked[place + 1] if place + 1 < len(ranked) else 0.0
    return float((ranked[place] + below) / 2)


def micro_thresholds(
    scores: Float[np.ndarray, "text label"], truth: Bool[np.ndarray, "text label"], start: float
) -> Float[np.ndarray, " label"]:
    """A threshold for each label, that all together give the best micro-F1: coordinate ascent from `start`."""
    found = np.full(scores.shape[1], start)
    for _ in range(10):
        before = found.copy()
        for k in range(scores.shape[1]):
            others = np.arange(scores.shape[1]) != k
            decided = scores[:, others] >= found[others]
            counts = (int((decided & truth[:, others]).sum()), int(decided.sum()), int(truth[:, others].sum()))
            found[k] = best_threshold(scores[:, k], truth[:, k], elsewhere=counts)
        if np.array_equal(found, before):
            break
    return found


def auroc(
    scores: Float[np.ndarray, " text"], truth: Bool[np.ndarray, " text"], *, confidence: float = 0.95
) -> tuple[float, tuple[float, float]] | None:
    """Area under the ROC curve and DeLong's interval, or None where one class has fewer than two texts.

    The area is the share of (positive, negative) pairs in the right order, ties counting half; its variance is
    S10 / m + S01 / n, of the variances of the placements, which come from midranks (DeLong et al. 1988, Biometrics
    44:837, equation 5).
    """
    from scipy.stats import rankdata

    positive, negative = scores[truth], scores[~truth]
    m, n = len(positive), len(negative)
    if m < 2 or n < 2:
        return None
    ranks = rankdata(np.concatenate([positive, negative]))
    above = (ranks[:m] - rankdata(positive)) / n  # share of the negatives below each positive
    below = 1 - (ranks[m:] - rankdata(negative)) / m  # share of the positives above each negative
    area = float(above.mean())
    half = float(norm.ppf((1 + confidence) / 2) * np.sqrt(above.var(ddof=1) / m + below.var(ddof=1) / n))
    return area, (max(0.0, area - half), min(1.0, area + half))


def label_figures(
    validation: tuple[Float[np.ndarray, "text label"], Bool[np.ndarray, "text label"]],
    test: tuple[Float[np.ndarray, "text label"], Bool[np.ndarray, "text label"]],
    labels: Sequence[str],
) -> dict[str, Any]:
    """Figures of a multi-label model; a score is a probability.

    Args:
        validation: scores and truth of the texts on which thresholds are chosen.
        test: scores and truth of the texts that everything is measured on.
        labels: their names.

    Returns:
        `by_label`, with threshold, precision, recall and F1 there and at 0.5, AUROC with interval, and support; `micro`
        and `macro` averages at the labels' own thresholds, at those with the best micro-F1 together, at one common
        threshold, and at 0.5.
    """
    scores, truth = test
    own = np.array([best_threshold(validation[0][:, k], validation[1][:, k]) for k in range(len(labels))])
    common = best_threshold(validation[0].ravel(), validation[1].ravel())
    together = micro_thresholds(*validation, start=common)
    decisions = {
        "tuned": scores >= own,
        "together": scores >= together,
        "common": scores >= common,
        "half": scores >= 0.5,
    }
    at = {name: _by_label(truth, decision) for name, decision in decisions.items()}
    by_label = {
        name: {
            "support": int(truth[:, k].sum()),
            "threshold": float(own[k]),
            "micro_threshold": float(together[k]),
            **at["tuned"][k],
            "at_0.5": at["half"][k],
            **_area(scores[:, k], truth[:, k]),
        }
        for k, name in enumerate(labels)
    }
    averages = {
        average: {
            "tuned_by_label": _average(truth, decisions["tuned"], average),
            "tuned_for_micro": _average(truth, decisions["together"], average),
            "one_threshold": {"threshold": common, **_average(truth, decisions["common"], average)},
            "at_0.5": _average(truth, decisions["half"], average),
        }
        for average in ("micro", "macro")
    }
    return {
        "thresholds": {
            "tuned_by_label": THRESHOLDS,
            "tuned_for_micro": MICRO,
            "one_threshold": COMMON,
            "chosen_on": len(validation[0]),
        },
        **averages,
        "macro_auroc": _mean_area(by_label),
        "by_label": by_label,
    }


def class_figures(
    scores: Float[np.ndarray, "text label"], truth: Bool[np.ndarray, "text label"], labels: Sequence[str]
) -> dict[str, Any]:
    """Figures of a model whose labels exclude each other: a text gets the likeliest.

    Returns:
        Accuracy, `by_label` with precision, recall, F1, AUROC (one against the rest) and support, `micro` and `macro`
        averages, and the confusion matrix, whose rows are true labels.
    """
    from sklearn.metrics import confusion_matrix

    decided = np.eye(len(labels), dtype=bool)[scores.argmax(axis=1)]
    at = _by_label(truth, decided)
    by_label = {
        name: {"support": int(truth[:, k].sum()), **at[k], **_area(scores[:, k], truth[:, k])}
        for k, name in enumerate(labels)
    }
    confusion = confusion_matrix(truth.argmax(axis=1), scores.argmax(axis=1), labels=range(len(labels)))
    return {
        "decision": ARGMAX,
        "accuracy": float((decided & truth).any(axis=1).mean()),
        **{average: _average(truth, decided, average) for average in ("micro", "macro")},
        "macro_auroc": _mean_area(by_label),
        "by_label": by_label,
        "confusion": confusion.tolist(),
    }


def preference_figures(
    chosen: Float[np.ndarray, " pair"], rejected: Float[np.ndarray, " pair"], *, confidence: float = 0.95
) -> dict[str, Any]:
    """Accuracy (ties count half) with Wilson's interval, margin r_chosen - r_rejected, and the loss, in nats."""
    margin = chosen - rejected
    accuracy = float(((margin > 0) + 0.5 * (margin == 0)).mean())
    z, n = float(norm.ppf((1 + confidence) / 2)), len(margin)
    centre = (accuracy + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(accuracy * (1 - accuracy) / n + z**2 / (4 * n**2))
    return {
        "accuracy": accuracy,
        "accuracy_interval": [float(centre - half), float(centre + half)],
        "margin": float(margin.mean()),
        "margin_sd": float(margin.std()),
        "loss": float(np.logaddexp(0.0, -margin).mean()),
        "reward": float(np.concatenate([chosen, rejected]).mean()),
        "reward_sd": float(np.concatenate([chosen, rejected]).std()),
    }


def _by_label(truth: Bool[np.ndarray, "text label"], decided: Bool[np.ndarray, "text label"]) -> list[dict[str, float]]:
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, _ = precision_recall_fscore_support(truth, decided, average=None, zero_division=0.0)
    rows = zip(precision, recall, f1, strict=True)
    return [{"precision": float(p), "recall": float(r), "f1": float(f)} for p, r, f in rows]


def _average(
    truth: Bool[np.ndarray, "text label"], decided: Bool[np.ndarray, "text label"], average: str
) -> dict[str, float]:
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, _ = precision_recall_fscore_support(truth, decided, average=average, zero_division=0.0)
    return {"precision": float(precision), "recall": float(recall), "f1": float(f1)}


def _area(scores: Float[np.ndarray, " text"], truth: Bool[np.ndarray, " text"]) -> dict[str, Any]:
    found = auroc(scores, truth)
    return (
        {"auroc": None, "auroc_interval": None}
        if found is None
        else {"auroc": found[0], "auroc_interval": list(found[1])}
    )


def _mean_area(by_label: dict[str, dict[str, Any]]) -> float | None:
    areas = [row["auroc"] for row in by_label.values() if row["auroc"] is not None]
    return float(np.mean(areas)) if areas else None
