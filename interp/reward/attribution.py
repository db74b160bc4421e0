"""The result of `attribute`: attributions by token, by word and by character."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import spearmanr

from interp.errors import MeasureError
from interp.reward.shown import UNMEASURED, agreement, attribution_text
from interp.reward.texts import Span, words
from interp.stats import bootstrap_mean

LEAST_AGREEMENT = 0.2
"""Least rank correlation with patching of an attribution that is called one."""


@dataclass(frozen=True)
class Attribution:
    """Attributions of a reward model's score to the tokens of texts.

    Attributes:
        dataset: `token_attribution` [prompt, pos, label]; `token`, `start`, `end`, `word`, `added` [prompt, pos];
            `score`, `baseline_score`, `completeness_error`, `points`, `converged` [prompt, label]; where it was
            measured (`patched_texts`, `against_patching`), `patching_effect` [prompt, pos, label] and
            `patching_rank_correlation` [prompt, label], NaN for the other texts. Method, baseline, tolerance and units
            are in its attributes.
    """

    dataset: xr.Dataset

    def __getitem__(self, name: str) -> xr.DataArray:
        return self.dataset[name]

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
        """One row a text and label: score, baseline's score, error, points, and the word of the largest attribution.

        `attrs["patching"]` of the frame says how far the attribution agrees with patching, a sentence a label.
        """
        table = self._rows(range(self.dataset.sizes["prompt"]))
        table.attrs["patching"] = self.beside_patching()
        return table

    def patching(self) -> pd.DataFrame:
        """How far the attribution agrees with patching, a row a label, without any where it was not measured.

        Columns: `label`, `n` (texts), `rank_correlation` (mean over them), `lower`, `upper` (95 %, from 8 texts on),
        `tells`: whether it is 0.2 or more and the interval, where there is one, is above 0.
        """
        return patching_table(self.dataset)

    def beside_patching(self) -> list[str]:
        """The same in words, a line a label."""
        return [agreement(self, row) for row in self.patching().itertuples()] or [UNMEASURED]

    def _rows(self, prompts: Iterable[int]) -> pd.DataFrame:
        data, rows = self.dataset, []
        for prompt in prompts:
            table = self.words(prompt)
            for label in self.labels:
                cell = data.sel(label=label).isel(prompt=prompt)
                values = table[label].to_numpy()
                top = int(np.argmax(np.abs(values))) if np.isfinite(values).all() else 0
                rows.append(
                    {
                        "prompt": prompt, "text": self.text(prompt), "label": label,
                        **{name: float(cell[name]) for name in ("score", "baseline_score", "completeness_error")},
                        "points": int(cell["points"]), "converged": bool(cell["converged"]),
                        "patching_rank_correlation": float(cell["patching_rank_correlation"])
                        if "patching_rank_correlation" in data else np.nan,
                        "top_word": table["word"][top], "top_attribution": float(values[top]),
                    }
                )  # fmt: skip
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        return attribution_text(self)

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Write the texts, coloured by their attributions, as one HTML page.

        Raises:
            InterpError: the file cannot be written, or its name does not end in .html.
        """
        from interp.reward.page import write_attribution

        return write_attribution(self, path)

    def _column(self, label: str | None) -> str:
        if label is None and len(self.labels) == 1:
            return self.labels[0]
        if label not in self.labels:
            raise MeasureError(f"the attribution has no label {label!r}; name one of {', '.join(self.labels)}")
        return str(label)


def patching_table(data: xr.Dataset) -> pd.DataFrame:
    """The columns of `Attribution.patching`, out of a dataset's `patching_rank_correlation`."""
    rows = []
    for label in data["label"].values if "patching_rank_correlation" in data else ():
        values = data["patching_rank_correlation"].sel(label=label).values
        mean, low, high = bootstrap_mean(values)
        tells = mean >= LEAST_AGREEMENT and not low <= 0
        rows.append((str(label), int(np.isfinite(values).sum()), mean, low, high, tells))
    return pd.DataFrame(rows, columns=["label", "n", "rank_correlation", "lower", "upper", "tells"])


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


def rank_correlations(first: np.ndarray, second: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of two attributions over each text's own tokens, [prompt, label].

    Args:
        first: [prompt, pos, label].
        second: the same; a text of which one is NaN gets NaN.
        own: which tokens are the text's own, [prompt, pos].
    """
    out = np.full((len(first), first.shape[2]), np.nan)
    for row, tokens in enumerate(own):
        for column in range(first.shape[2]):
            out[row, column] = spearman(first[row, tokens, column], second[row, tokens, column])
    return out


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation, NaN where it is not defined."""
    if len(first) < 3 or not (np.ptp(first) > 0 and np.ptp(second) > 0):  # NaN is not above 0
        return float("nan")
    return float(spearmanr(first, second).statistic)
