"""Does a reward model hold on to things that it should not: length, punctuation, names, flattery?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import scipy.stats

from interp.errors import MeasureError
from interp.measures.arrays import dataset, strings, variable
from interp.models import RewardModel
from interp.models.source import source_name
from interp.progress import Progress, no_progress
from interp.result import Result
from interp.reward.fixed_effects import spearman
from interp.reward.text_properties import EDITS, FEATURES, NEUTRAL_PREFIX, Edit, Feature, measure_features
from interp.reward.texts import RewardLike, as_reward, read_texts
from interp.stats import MIN_PROMPTS, bootstrap_mean, holm, sign_flip_p

LEVEL = 0.05
"""Level of the corrected p under which the score is said to go by a feature."""

SIZE = 0.1
"""Least effect, in standard deviations of the score, that is called so: with many texts a trifle is significant."""


_COLUMNS = [
    *("what", "effect", "effect_low", "effect_high", "p", "way", "goes_by", "feature"),
    *("n", "against", "from_text"),
]


@dataclass(frozen=True, eq=False, repr=False)
class Spurious(Result):
    """What a reward model's score goes with in real texts, and what moves it when one thing of a text is changed.

    Attributes:
        dataset: by `feature` the regression's `coefficient`, `coefficient_low`, `coefficient_high`, `coefficient_p`
            (Holm) and `alone` (Spearman's correlation of feature and score); by `edit` the paired `effect`,
            `effect_low`, `effect_high`, `effect_p` (Holm) and `effect_texts`, measured from `edit_against` ("" is the
            text as it is, else the neutral edit named), and `effect_from_text`, from the text as it is; `edit_change`
            [prompt, edit] and `score` [prompt]. Effects and coefficients are in standard deviations of the score over
            the texts.
    """

    kind: ClassVar[str] = "spurious"
    title: ClassVar[str] = "Spurious features of a reward"

    @property
    def features(self) -> tuple[str, ...]:
        """Features that some way finds the score to go by, largest effect first."""
        table = self.summary()
        return tuple(dict.fromkeys(table[table["goes_by"] & (table["feature"] != "none")]["feature"]))

    @property
    def neutral(self) -> str:
        """How far the prefix that says nothing moves the score by itself, in words; "" where it was not among them."""
        data = self.dataset
        if NEUTRAL_PREFIX not in data["edit"].values:
            return ""
        cell = data.sel(edit=NEUTRAL_PREFIX)
        mean, low, high = (float(cell[name]) for name in ("effect_from_text", "effect_low", "effect_high"))
        interval = f" [{low:+.2f}, {high:+.2f}]" if np.isfinite(low) else ""
        return f"a neutral prefix ({NEUTRAL_PREFIX}) alone moves the score by {mean:+.2f}{interval} sd"

    def summary(self) -> pd.DataFrame:
        """One row a finding, largest effect first.

        Columns: `way` ("edits" or "regression"), `feature`, `what` (the edit, or what the feature counts), `effect`
        with `effect_low` and `effect_high` (95 %), `p` (Holm), `n`, `against` (what the edit is measured from),
        `from_text` (change from the text as it is), `goes_by`: whether the score goes by it. What the neutral prefix
        does must not count for every other: the score goes by a prefix only where it also moves the score from the text
        as it is, the same way and by `SIZE` or more.
        """
        data = self.dataset
        rows = [
            {
                "way": "edits", "feature": str(cell["edit_feature"].item()), "what": str(cell["edit"].item()),
                "against": str(cell["edit_against"].item()) or "the text",
                "effect": float(cell["effect"]), "from_text": float(cell["effect_from_text"]),
                "effect_low": float(cell["effect_low"]), "effect_high": float(cell["effect_high"]),
                "p": float(cell["effect_p"]), "n": int(cell["effect_texts"]),
            }
            for cell in (data.isel(edit=index) for index in range(data.sizes["edit"]))
        ] + [
            {
                "way": "regression", "feature": str(cell["feature"].item()),
                "what": str(cell["feature_words"].item()), "against": "", "effect": float(cell["coefficient"]),
                "from_text": float("nan"),
                "effect_low": float(cell["coefficient_low"]), "effect_high": float(cell["coefficient_high"]),
                "p": float(cell["coefficient_p"]), "n": data.sizes["prompt"],
            }
            for cell in (data.isel(feature=index) for index in range(data.sizes["feature"]))
        ]  # fmt: skip
        table = pd.DataFrame(rows)
        same = np.sign(table["effect"]) * table["from_text"] >= SIZE
        table["goes_by"] = (table["p"] < LEVEL) & (table["effect"].abs() >= SIZE) & (same | (table["way"] != "edits"))
        order = table["effect"].abs().fillna(-1).argsort(kind="stable")[::-1]
        return table.iloc[order].reset_index(drop=True)[list(_COLUMNS)]

    def headline(self) -> str:
        """What the score goes by, of what was looked for."""
        data = self.dataset
        features = ", ".join(self.features) or "nothing that was looked for"
        texts = f"{data.sizes['prompt']} texts, effects in standard deviations (sd) of the score"
        return f"{data.attrs['model']}, {data.attrs['label']}: the score goes by {features}; {texts}."

    def notes(self) -> list[str]:
        """What a prefix that says nothing does by itself."""
        return [self.neutral] if self.neutral else []


def spurious(
    model: RewardLike,
    texts: Sequence[str],
    *,
    features: Sequence[Feature] = FEATURES,
    edits: Sequence[Edit] = EDITS,
    batch_size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> Spurious:
    """Does the score hold on to length, punctuation, capitals, names, flattery and so on? Asked in two ways.

    - Regression on the texts as they are, all features together: score = a + sum of b_k z_k, both sides standardised,
      with heteroscedasticity-consistent errors (HC3; MacKinnon and White 1985). Null: b_k = 0. This is what goes
      together in these texts; the feature need not be the cause.
    - Edits of each text that change one thing: the mean change of the score, with bootstrap intervals over texts and
      a sign-flip test. Null: a change is as likely to be up as down. This is cause, of this very edit. Edits of
      feature "none" should do nothing; what they do is how much any edit does. Any words before a text move a score,
      so a prefix (a name, flattery, "I think that") is measured from the neutral prefix ("They say that"), text by
      text: score of the one less score of the other. The score goes by it where it moves the score beyond the neutral
      prefix and, the same way, from the text as it is (`effect_from_text`).

    Within each way p is corrected by Holm's method. `LEVEL` and `SIZE` of this module are the level and the least size
    from which on the score is said to go by a feature.

    Args:
        model: a reward model, of whose own label the score is taken; a folder or id where it has one label.
        texts: real texts.
        features: what is counted.
        edits: what is changed.
        batch_size: texts a pass.
        seed: of bootstrap and sign flips.
        progress: told of the two "scorings": of the texts, and of the edited texts.

    Raises:
        PromptError: a text is empty or longer than the context.
        MeasureError: there are too few texts for the features, or all have the same score.
        InterpError: a score is not finite.
    """
    model = as_reward(model)
    read = read_texts(model, texts)
    least = max(MIN_PROMPTS, 2 * len(features) + 2)
    if len(read) < least:
        raise MeasureError(f"{len(read)} texts are too few for {len(features)} features; give {least} or more")
    told = progress or no_progress
    told("scorings", 0, 2)
    score = model.score(list(read.texts), batch_size=batch_size)
    spread = float(score.std(ddof=1))
    if spread == 0:
        raise MeasureError("every text has the same score, so it goes with nothing; give texts that differ")
    told("scorings", 1, 2)
    counted = measure_features(read.texts, features)
    fitted = _regression(counted, score / spread)
    change = _changes(model, read.texts, score, edits, batch_size) / spread
    told("scorings", 2, 2)
    beyond, against = _beyond(change, edits)
    paired = [bootstrap_mean(each, seed=seed) for each in beyond.T]
    flips = [sign_flip_p(each, seed=seed) for each in beyond.T]
    alone = [spearman(each, score) for each in counted.T]
    mean, low, high = (np.array(each) for each in zip(*paired, strict=True))
    unit = "standard deviations of the score"
    units = "logits" if model.squash == "logit" else "probability"
    data = dataset(
        {
            "score": variable("prompt", score, "score", units),
            "text": variable("prompt", strings(read.texts), "text"),
            "feature_value": variable("prompt feature", counted, "feature of the text"),
            "feature_words": variable("feature", strings([each.words for each in features]), "what is counted"),
            "coefficient": variable("feature", fitted.coefficient, "change a standard deviation of the feature", unit),
            "coefficient_low": variable("feature", fitted.low, "95 % interval, lower", unit),
            "coefficient_high": variable("feature", fitted.high, "95 % interval, upper", unit),
            "coefficient_p": variable("feature", holm(fitted.p), "p of a coefficient of 0, Holm over features"),
            "alone": variable("feature", np.array(alone), "Spearman of the feature and the score, by itself", "1"),
            "edit_feature": variable("edit", strings([each.feature for each in edits]), "what the edit changes"),
            "edit_change": variable("prompt edit", change, "score of the edited text minus that of the text", unit),
            "edit_against": variable("edit", strings(against), "edit that it is measured from, none for the text"),
            "effect": variable("edit", mean, "mean change from what it is measured from", unit),
            "effect_from_text": variable("edit", _means(change), "mean change from the text", unit),
            "effect_low": variable("edit", low, "95 % interval, lower", unit),
            "effect_high": variable("edit", high, "95 % interval, upper", unit),
            "effect_p": variable("edit", holm(np.array(flips)), "p of a change as often up as down, Holm over edits"),
            "effect_texts": variable("edit", np.isfinite(beyond).sum(0), "texts that the edit changes"),
        },
        feature=[each.name for each in features], edit=[each.name for each in edits],
    )  # fmt: skip
    return Spurious(
        data.assign_attrs(
            model=source_name(dict(model.description)), label=model.label, output=model.output, spread=spread,
            explained=fitted.explained, units=units,
        )
    )  # fmt: skip


@dataclass(frozen=True)
class _Fit:
    coefficient: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    explained: float


def _regression(counted: np.ndarray, score: np.ndarray) -> _Fit:
    """Ordinary least squares of the score on standardised features, with HC3 errors; NaN for a constant feature."""
    varies = np.ptp(counted, axis=0) > 0
    used = counted[:, varies]
    z = (used - used.mean(0)) / used.std(0, ddof=1)
    design = np.column_stack([np.ones(len(z)), z])
    inverse = np.linalg.pinv(design.T @ design)
    beta = inverse @ design.T @ score
    residual = score - design @ beta
    leverage = np.einsum("ij,jk,ik->i", design, inverse, design)
    weighted = design * (residual / np.maximum(1 - leverage, 1e-12))[:, None]
    error = np.sqrt(np.diag(inverse @ (weighted.T @ weighted) @ inverse))[1:]
    freedom = len(score) - design.shape[1]
    reach = scipy.stats.t.ppf(0.975, freedom) * error
    out = np.full((4, counted.shape[1]), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * scipy.stats.t.sf(np.abs(beta[1:]) / error, freedom)
    out[:, varies] = beta[1:], beta[1:] - reach, beta[1:] + reach, p
    return _Fit(out[0], out[1], out[2], out[3], float(1 - residual.var() / score.var()))


def _changes(
    model: RewardModel, texts: Sequence[str], score: np.ndarray, edits: Sequence[Edit], batch_size: int
) -> np.ndarray:
    """Score of each edited text minus that of the text, [text, edit]; NaN where nothing changed or it is too long."""
    out = np.full((len(texts), len(edits)), np.nan)
    jobs = [
        (row, column, edited)
        for column, edit in enumerate(edits)
        for row, text in enumerate(texts)
        if (edited := edit.apply(text)) != text and edited.strip() and not model.too_long([edited])
    ]
    if jobs:
        scored = model.score([each for _, _, each in jobs], batch_size=batch_size)
        for (row, column, _), value in zip(jobs, scored, strict=True):
            out[row, column] = value - score[row]
    return out


def _beyond(change: np.ndarray, edits: Sequence[Edit]) -> tuple[np.ndarray, list[str]]:
    """What each edit changes beyond the edit that it is measured from, [text, edit], and the name of that, "" for none.

    An edit whose neutral one is not among `edits` is measured from the text.
    """
    names = [each.name for each in edits]
    against = [each.against if each.against in names else None for each in edits]
    out = change.copy()
    for column, name in enumerate(against):
        if name is not None:
            out[:, column] -= change[:, names.index(name)]
    return out, [name or "" for name in against]


def _means(values: np.ndarray) -> np.ndarray:
    """Mean of each column over what is not NaN; NaN where all of it is."""
    count = np.isfinite(values).sum(0)
    return np.where(count > 0, np.nansum(values, axis=0) / np.maximum(count, 1), np.nan)
