"""Which tokens and words a reward model's score comes from, and how far patching agrees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import pandas as pd
import xarray as xr

from interp.errors import MeasureError
from interp.measures.arrays import as_variable, dataset, strings, variable
from interp.models import RewardModel
from interp.models.source import source_name
from interp.progress import Progress, no_progress
from interp.result import Result
from interp.reward.agreement import UNMEASURED, about_texts, agreement, agreement_in_short, patching_table
from interp.reward.fixed_effects import rank_correlations
from interp.reward.forward import BASELINE_WORDS, at_rest, baseline_vector, gradient_x_input, leave_one_out
from interp.reward.integrated_gradients import FIRST_POINTS, MAX_POINTS, Integrated, integrate
from interp.reward.quadrature import SIZES
from interp.reward.texts import (
    RewardLike,
    Span,
    Texts,
    as_reward,
    check_finite,
    chosen_labels,
    read_texts,
    word_of_tokens,
    words,
)

Method = Literal["integrated_gradients", "leave_one_out", "gradient_x_input"]

_METHODS: tuple[str, ...] = get_args(Method)

METHOD_WORDS = {
    "integrated_gradients": "integrated gradients",
    "leave_one_out": "leave one out",
    "gradient_x_input": "gradient × input",
}
"""What a person calls the methods of `attribute`."""


@dataclass(frozen=True, eq=False, repr=False)
class Attribution(Result):
    """Attributions of a reward model's score to the tokens of texts.

    Attributes:
        dataset: `token_attribution` [prompt, pos, label]; `token`, `start`, `end`, `word`, `added` [prompt, pos];
            `score`, `baseline_score`, `completeness_error`, `points`, `converged` [prompt, label]; where it was
            measured (`patched_texts`, `against_patching`), `patching_effect` [prompt, pos, label] and
            `patching_rank_correlation` [prompt, label], NaN for the other texts. Method, baseline, tolerance and units
            are in its attributes.
    """

    kind: ClassVar[str] = "reward_attribution"
    title: ClassVar[str] = "Reward attribution"

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels."""
        return tuple(map(str, self.dataset["label"].values))

    @property
    def unconverged(self) -> tuple[tuple[str, str], ...]:
        """Text and label of each attribution whose completeness error stayed above the tolerance."""
        rows, columns = np.nonzero(~self.dataset["converged"].values)
        return tuple((self.text(int(row)), self.labels[column]) for row, column in zip(rows, columns, strict=True))

    def text(self, prompt: int) -> str:
        """A text."""
        return str(self.dataset["text"].values[prompt])

    def tokens(self, prompt: int) -> pd.DataFrame:
        """The tokens of a text: `token`, `start`, `end`, `word`, and one column a label."""
        row = self.dataset.isel(prompt=prompt)
        real = row["token"].values != ""
        real |= row["start"].values >= 0
        frame = pd.DataFrame({name: row[name].values[real] for name in ("token", "start", "end", "word", "added")})
        return frame.assign(**dict(zip(self.labels, row["token_attribution"].values[real].T, strict=True)))

    def words(self, prompt: int) -> pd.DataFrame:
        """The words of a text, which are what white space parts: the sum of the tokens that start in each.

        Columns `word`, `start`, `end`, and one a label.
        """
        text, tokens = self.text(prompt), self.tokens(prompt)
        found = words(text)
        sums = np.zeros((len(found), len(self.labels)))
        inside = tokens["word"].to_numpy() >= 0
        np.add.at(sums, tokens["word"].to_numpy()[inside], tokens[list(self.labels)].to_numpy()[inside])
        frame = pd.DataFrame([(text[a:b], a, b) for a, b in found], columns=["word", "start", "end"])
        return frame.assign(**dict(zip(self.labels, sums.T, strict=True)))

    def by_character(self, prompt: int, label: str | None = None) -> np.ndarray:
        """The attribution of each character of a text: a token's is shared equally among the characters it covers.

        Two tokenizers' attributions of one text can be laid over each other in it. It sums to what the tokens that
        cover a character have together.

        Args:
            prompt: index of the text.
            label: which label; None where there is one only.
        """
        tokens, column = self.tokens(prompt), self._column(label)
        found = np.zeros(len(self.text(prompt)))
        for start, end, value in zip(tokens["start"], tokens["end"], tokens[column], strict=True):
            if end > start:
                found[start:end] += value / (end - start)
        return found

    def on_spans(self, prompt: int, spans: Sequence[Span], label: str | None = None) -> np.ndarray:
        """The attribution of spans of characters, another tokenizer's tokens for example.

        Args:
            prompt: index of the text.
            spans: first character and the one after the last, of each.
            label: which label; None where there is one only.
        """
        total = np.concatenate([[0.0], np.cumsum(self.by_character(prompt, label))])
        return np.array([total[end] - total[start] for start, end in spans])

    def summary(self) -> pd.DataFrame:
        """One row a text and label: the word of the largest attribution, score, baseline's score, error and points.

        `attrs["patching"]` of the frame says how far the attribution agrees with patching, a sentence a label.
        """
        table = pd.DataFrame(list(self._rows()))
        table.attrs["patching"] = self.beside_patching()
        return table

    def patching(self) -> pd.DataFrame:
        """How far the attribution agrees with patching, a row a label, without any where it was not measured.

        Columns: `label`, `n` (texts), `rank_correlation` (mean over them), `rank_correlation_low`,
        `rank_correlation_high` (95 %, from 8 texts on), `tells`: whether it is 0.2 or more and the interval, where
        there is one, is above 0.
        """
        return patching_table(self.dataset)

    def beside_patching(self) -> list[str]:
        """The same in words, a line a label."""
        return [agreement(self.labels, row) for row in self.patching().itertuples()] or [UNMEASURED]

    def headline(self) -> str:
        """The model, the method, how many texts and labels, and how many missed the tolerance."""
        data, attrs = self.dataset, self.dataset.attrs
        origin = "" if attrs["baseline"] == "none" else f" from {attrs['baseline_words']}"
        counted = about_texts(data.sizes["prompt"], self.labels)
        line = f"{attrs['model']}, {METHOD_WORDS[attrs['method']]}{origin}: {counted}, {attrs['units']}."
        if not self.unconverged:
            return line
        missed, total = len(self.unconverged), data["converged"].size
        return f"{line} {missed} of {total} above the tolerance of {100 * attrs['tolerance']:g} %: .unconverged"

    def notes(self) -> list[str]:
        """How far the attribution agrees with patching, and in which texts that was measured."""
        data, attrs = self.dataset, self.dataset.attrs
        notes = []
        patched = attrs.get("patched_texts", data.sizes["prompt"])
        if "patching_rank_correlation" in data and patched < data.sizes["prompt"]:
            notes.append(f"{patched} texts were patched (patched_texts=); the others have no patching_rank_correlation")
        if attrs["method"] == "leave_one_out":
            return notes
        return [*agreement_in_short(self.patching(), self.beside_patching()), *notes]

    def _rows(self) -> Iterator[dict[str, Any]]:
        data = self.dataset
        for prompt in range(data.sizes["prompt"]):
            table = self.words(prompt)
            for label in self.labels:
                cell = data.sel(label=label).isel(prompt=prompt)
                values = table[label].to_numpy()
                top = int(np.argmax(np.abs(values))) if np.isfinite(values).all() else 0
                yield {
                    "prompt": prompt, "text": self.text(prompt), "label": label, "score": float(cell["score"]),
                    "top_word": table["word"][top], "top_attribution": float(values[top]),
                    **{name: float(cell[name]) for name in ("baseline_score", "completeness_error")},
                    "points": int(cell["points"]), "converged": bool(cell["converged"]),
                    "patching_rank_correlation": float(cell["patching_rank_correlation"])
                    if "patching_rank_correlation" in data else np.nan,
                }  # fmt: skip

    def _column(self, label: str | None) -> str:
        if label is None and len(self.labels) == 1:
            return self.labels[0]
        if label not in self.labels:
            raise MeasureError(f"the attribution has no label {label!r}; name one of {', '.join(self.labels)}")
        return str(label)


def attribute(
    model: RewardLike,
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
    progress: Progress | None = None,
) -> Attribution:
    """Attribute a reward model's score to the tokens of each text, and say how far patching agrees.

    - `integrated_gradients`: the parts sum to F(x) - F(x') within the tolerance (see
      `interp.reward.integrated_gradients`).
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
        progress: told of the "attributions", one a text and label, that are done.

    Returns:
        The attribution, [prompt, pos, label]; 0 at tokens that the tokenizer added, but for `gradient_x_input`.

    Raises:
        PromptError: a text is empty or longer than the context.
        MeasureError: an unknown method, label or baseline, or a number of points or texts that cannot be.
        InterpError: a score is not finite.
    """
    if patched_texts < 0:
        raise MeasureError(f"patched_texts is how many texts are patched, 0 for none; got {patched_texts}")
    if method not in _METHODS:
        raise MeasureError(f"method is {', '.join(_METHODS[:-1])} or {_METHODS[-1]}, not {method!r}")
    if not 0 < tolerance < 1 or first_points not in SIZES or first_points > max_points:
        raise MeasureError(
            f"tolerance is a share between 0 and 1, first_points one of {', '.join(map(str, SIZES))}, and max_points no"
            f" less; got {tolerance}, {first_points} and {max_points}"
        )
    chosen = _baseline_of(method, baseline)
    model = as_reward(model, labels)
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
                model,
                read,
                columns,
                vector=vector,
                limits=limits,
                max_points=max_points,
                first_points=first_points,
                progress=progress or no_progress,
            )
        else:
            found, ranges = _other(model, read, columns, method, chosen), np.full(len(named), np.nan)
    check_finite(np.array([each.sum() for each in found.parts]), read.texts, "gradient")
    data = _labelled(model, read, named, found, ranges, tolerance)
    units = "logits" if model.squash == "logit" else "probability"
    attribution = Attribution(
        data.assign_attrs(
            method=method, baseline=chosen, baseline_words=BASELINE_WORDS.get(chosen, "none"), tolerance=tolerance,
            output=model.output, units=units, model=source_name(dict(model.description)),
        )
    )  # fmt: skip
    if method == "leave_one_out" or not patched_texts:
        return attribution
    return against_patching(model, attribution, texts=patched_texts)


def score_range(
    model: RewardLike, texts: Sequence[str], *, labels: Sequence[str] | str | None = None
) -> dict[str, float]:
    """F's range over texts, largest minus smallest, by label: what `attribute` measures its completeness error by."""
    model = as_reward(model, labels)
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


def against_patching(model: RewardModel, found: Attribution, *, texts: int | None = None) -> Attribution:
    """The attribution with `patching_effect` and `patching_rank_correlation` beside it.

    The embedding of each token is patched with the baseline's, the others left as they are: `patching_effect` is what
    the score loses by it, `patching_rank_correlation` Spearman's of attribution and effect over a text's own tokens.
    A forward pass for each token of the texts that are patched.

    Args:
        model: the reward model that was attributed.
        found: what `attribute` gave for it.
        texts: how many texts are patched, evenly spread; the others are NaN. None: all of them.

    Raises:
        MeasureError: fewer texts than one are asked for.
        InterpError: a score is not finite.
    """
    if texts is not None and texts < 1:
        raise MeasureError(f"texts is how many are patched, 1 or more; got {texts}")
    data = found.dataset
    count = data.sizes["prompt"]
    rows = np.unique(np.linspace(0, count - 1, min(count, texts or count)).round().astype(int))
    read = read_texts(model, [found.text(int(row)) for row in rows])
    columns = [model.labels.index(label) for label in found.labels]
    named = data.attrs["baseline"]
    effect = np.full(data["token_attribution"].shape, np.nan)
    with at_rest(model):
        vector = None if named == "delete" else baseline_vector(model, "mean" if named == "none" else named)
        for row, lost in zip(rows, leave_one_out(model, read, columns, vector=vector), strict=True):
            effect[row, : len(lost)] = lost
    own = (data["start"].values >= 0) & ~data["added"].values & (data["end"].values >= 0)
    if named != "delete":  # the only token of a text cannot be deleted
        check_finite(np.array([effect[row][own[row]].sum() for row in rows]), read.texts, "score without a token")
    agree = rank_correlations(data["token_attribution"].values, effect, own)
    lost_by = {"long_name": "score lost when the token is put at the baseline", "units": data.attrs["units"]}
    ranks = {"long_name": "Spearman's rank correlation of attribution and patching over tokens", "units": "1"}
    return Attribution(
        data.assign(
            patching_effect=as_variable(("prompt", "pos", "label"), effect, lost_by),
            patching_rank_correlation=as_variable(("prompt", "label"), agree, ranks),
        ).assign_attrs(patched_texts=len(rows))
    )


def rank_correlation(first: Attribution, second: Attribution) -> xr.DataArray:
    """Spearman's rank correlation of two attributions of the same texts, over each text's own tokens.

    Two baselines, two methods; NaN where a text has fewer than three tokens or one attribution is constant.

    Returns:
        [prompt, label].

    Raises:
        MeasureError: they are not of the same texts, tokens and labels.
    """
    same = first.labels == second.labels and first["token"].shape == second["token"].shape
    if not same or not bool((first["token"].values == second["token"].values).all()):
        raise MeasureError("the attributions are of other texts, tokens or labels; attribute the same texts twice")
    own = (first["start"].values >= 0) & ~first["added"].values
    return xr.DataArray(
        rank_correlations(first["token_attribution"].values, second["token_attribution"].values, own),
        dims=("prompt", "label"),
        coords={"label": list(first.labels)},
        attrs={"long_name": "Spearman's rank correlation over tokens", "units": "1"},
    )
