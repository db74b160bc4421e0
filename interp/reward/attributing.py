"""Which tokens and words a reward model's score comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import xarray as xr

from interp.errors import MeasureError
from interp.measures.arrays import dataset, strings, variable
from interp.models import RewardModel
from interp.models.source import source_name
from interp.reward.against import against_patching
from interp.reward.attribution import Attribution
from interp.reward.baselines import WORDS, baseline_vector
from interp.reward.erase import gradient_x_input, leave_one_out
from interp.reward.forward import at_rest
from interp.reward.given import Given, given_reward
from interp.reward.integrate import FIRST_POINTS, MAX_POINTS, Integrated, integrate
from interp.reward.quadrature import SIZES
from interp.reward.texts import Texts, check_finite, chosen_labels, read_texts, word_of_tokens

Method = Literal["integrated_gradients", "leave_one_out", "gradient_x_input"]
METHODS: tuple[str, ...] = get_args(Method)


def attribute(
    model: Given,
    texts: Sequence[str],
    *,
    method: Method = "integrated_gradients",
    labels: Sequence[str] | str | None = None,
    baseline: str | None = None,
    tolerance: float = 0.01,
    score_range: Mapping[str, float] | float | None = None,
    max_points: int = MAX_POINTS,
    first_points: int = FIRST_POINTS,
    patched_texts: int = 8,
) -> Attribution:
    """Attribute a reward model's score to the tokens of each text, and say how far patching agrees.

    - `integrated_gradients`: see `interp.reward.integrate`; the parts sum to F(x) - F(x') within the tolerance.
    - `leave_one_out`: F(x) - F(x with this token at the baseline).
    - `gradient_x_input`: gradient at the text, dotted with the token's embedding; no baseline.

    F is the model's `output`: logit, probability or softmax share.

    An attribution need not tell what the model would do without a token; on published reward models it often does not.
    So in some of the texts each token is put at the baseline in turn, and the rank correlation of attribution and loss
    is printed beside the attribution (`Attribution.patching`; `against_patching` does it for all texts).

    Args:
        model: a reward model; a folder or id is read for the labels named, as a probability.
        texts: the texts; none of them empty or longer than the context.
        method: one of the three.
        labels: the labels, all in one pass; None is the model's own, "all" every one.
        baseline: "mean" (of all embeddings, the default), "zero", "mask" or "unk", in the place of each of the text's
            own tokens; for `leave_one_out` also "delete". "zero" suits no model of which only tokens enter the residual
            (Llama): an RMSNorm jumps there, and no rule integrates that.
        tolerance: completeness error at which a text is done, as a share of F's range.
        score_range: F's range, for all labels or by label (`score_range` gives it for texts of your own); None takes
            that over the texts and their baselines.
        max_points: most points of a text; one that does not reach the tolerance is listed in `Attribution.unconverged`.
            A score with kinks (a ReLU head) needs some tens of points for 0.1 %.
        first_points: points that every text gets before its error is looked at, 3, 5, 7 ...; with 5, of a score that is
            nearly linear along the path, 2. A text may meet the sum by chance while single tokens are off: on the
            GoEmotions model, of the texts that stop at 3 points the worst token is wrong by a fifth of the largest
            attribution, with 5 by a twentieth.
        patched_texts: in how many texts, evenly spread, tokens are patched to compare; 0 is none. It costs a forward
            pass for each of their tokens, which with few texts is more than the attribution itself. `leave_one_out` is
            patching, and is not compared.

    Returns:
        The attribution, [prompt, pos, label]; 0 at tokens that the tokenizer added, but for `gradient_x_input`.

    Raises:
        PromptError: a text is empty or longer than the context.
        MeasureError: an unknown method, label or baseline, or a number of points or texts that cannot be.
        InterpError: a score is not finite.
    """
    if patched_texts < 0:
        raise MeasureError(f"patched_texts is how many texts are patched, 0 for none; got {patched_texts}")
    if method not in METHODS:
        raise MeasureError(f"method is {', '.join(METHODS[:-1])} or {METHODS[-1]}, not {method!r}")
    if not 0 < tolerance < 1 or first_points not in SIZES or first_points > max_points:
        raise MeasureError(
            f"tolerance is a share between 0 and 1, first_points one of {', '.join(map(str, SIZES))}, and max_points no"
            f" less; got {tolerance}, {first_points} and {max_points}"
        )
    chosen = _baseline_of(method, baseline)
    model = given_reward(model, labels)
    named = chosen_labels(model, labels)
    read = read_texts(model, texts)
    columns = [model.labels.index(label) for label in named]
    with at_rest(model):
        if method == "integrated_gradients":
            vector = baseline_vector(model, chosen)
            ranges = np.empty(len(named))

            def limits(ends: np.ndarray) -> np.ndarray:
                ranges[:] = _ranges(score_range, ends, named)
                return tolerance * ranges

            found = integrate(
                model, read, columns, vector=vector, limits=limits, max_points=max_points, first_points=first_points
            )
        else:
            found, ranges = _other(model, read, columns, method, chosen), np.full(len(named), np.nan)
    check_finite(np.array([each.sum() for each in found.parts]), read.texts, "gradient")
    data = _labelled(model, read, named, found, ranges, tolerance)
    units = "logits" if model.squash == "logit" else "probability"
    attribution = Attribution(
        data.assign_attrs(
            method=method, baseline=chosen, baseline_words=WORDS.get(chosen, "none"), tolerance=tolerance,
            output=model.output, units=units, model=source_name(dict(model.description)),
        )
    )  # fmt: skip
    if method == "leave_one_out" or not patched_texts:
        return attribution
    return against_patching(model, attribution, texts=patched_texts)


def score_range(model: Given, texts: Sequence[str], *, labels: Sequence[str] | str | None = None) -> dict[str, float]:
    """F's range over texts, largest minus smallest, by label: what `attribute` measures its completeness error by."""
    model = given_reward(model, labels)
    named = chosen_labels(model, labels)
    scores = model.score_labels(list(texts))
    return {label: float(np.ptp(scores[:, model.labels.index(label)])) for label in named}


def _baseline_of(method: str, baseline: str | None) -> str:
    if baseline is not None and not isinstance(baseline, str):
        raise MeasureError(
            f"baseline is the name of one baseline, not a {type(baseline).__name__}; to compare two, attribute twice"
            " and take rank_correlation(first, second)"
        )
    if method == "gradient_x_input":
        if baseline is not None:
            raise MeasureError("gradient_x_input has no baseline; leave baseline out")
        return "none"
    chosen = "mean" if baseline is None else baseline
    if chosen == "delete" and method != "leave_one_out":
        raise MeasureError('only leave_one_out can delete a token; take baseline="mean", "zero", "mask" or "unk"')
    return chosen


def _ranges(given: Mapping[str, float] | float | None, ends: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    if given is None:
        return np.maximum(np.ptp(ends, axis=0), 1e-12)
    if isinstance(given, Mapping):
        missing = [label for label in labels if label not in given]
        if missing:
            raise MeasureError(f"score_range has no {missing[0]!r}; give the range of every label that is asked for")
        found = np.array([float(given[label]) for label in labels])
    else:
        found = np.full(len(labels), float(given))
    if not (np.isfinite(found) & (found > 0)).all():
        raise MeasureError("a range of scores is a number above 0; leave score_range out to take that of the texts")
    return found


def _other(model: RewardModel, texts: Texts, columns: list[int], method: str, baseline: str) -> Integrated:
    """The methods without a path: they have no completeness to state."""
    if method == "leave_one_out":
        vector = None if baseline == "delete" else baseline_vector(model, baseline)
        parts = leave_one_out(model, texts, columns, vector=vector)
        score = model.score_labels(list(texts.texts))[:, columns]
    else:
        parts, score = gradient_x_input(model, texts, columns)
        check_finite(score, texts.texts, "score")
    none = np.full(score.shape, np.nan)
    return Integrated(parts, score, none, np.ones(score.shape, dtype=int), none)


def _labelled(
    model: RewardModel, texts: Texts, labels: Sequence[str], found: Integrated, ranges: np.ndarray, tolerance: float
) -> xr.Dataset:
    shape = (len(texts), texts.width())
    parts = np.full((*shape, len(labels)), np.nan)
    spans, word = np.full((*shape, 2), -1), np.full(shape, -1)
    added, tokens = np.zeros(shape, dtype=bool), np.full(shape, "", dtype=object)
    for row, text in enumerate(texts.texts):
        width = len(texts.ids[row])
        parts[row, :width] = found.parts[row]
        spans[row, :width], word[row, :width] = texts.spans[row], word_of_tokens(text, texts.spans[row])
        added[row, :width], tokens[row, :width] = texts.special[row], texts.tokens[row]
    units = "logits" if model.squash == "logit" else "probability"
    met = found.error <= tolerance * ranges if np.isfinite(ranges).all() else np.ones(found.error.shape, dtype=bool)
    return dataset(
        {
            "token_attribution": variable("prompt pos label", parts, "attribution of the score to a token", units),
            "token": variable("prompt pos", strings(tokens), "token"),
            "start": variable("prompt pos", spans[..., 0], "first character that the token covers", "characters"),
            "end": variable("prompt pos", spans[..., 1], "character after the last that it covers", "characters"),
            "word": variable("prompt pos", word, "index of the word in which the token starts, -1 for none"),
            "added": variable("prompt pos", added, "whether the tokenizer added the token"),
            "text": variable("prompt", strings(texts.texts), "text"),
            "score": variable("prompt label", found.score, "score of the text", units),
            "baseline_score": variable("prompt label", found.baseline_score, "score of the baseline", units),
            "completeness_error": variable(
                "prompt label", found.error, "|sum of the attributions - (score - baseline's score)|", units
            ),
            "points": variable("prompt label", found.points, "gradients that were averaged"),
            "converged": variable("prompt label", met, "whether the completeness error is within the tolerance"),
            "score_range": variable("label", ranges, "range of the score that the tolerance is a share of", units),
        },
        label=list(labels),
    )
