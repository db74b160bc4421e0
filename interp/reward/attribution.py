"""The result of `attribute`: attributions by token, by word and by character."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import spearmanr

from interp.errors import MeasureError
from interp.reward.texts import Span, words


@dataclass(frozen=True)
class Attribution:
    """Attributions of a reward model's score to the tokens of texts.

    Attributes:
        dataset: `token_attribution` [prompt, pos, label]; `token`, `start`, `end`, `word`, `added` [prompt, pos];
            `score`, `baseline_score`, `completeness_error`, `points`, `converged` [prompt, label]; where it was
            measured (`against_patching`), `patching_effect` [prompt, pos, label] and `patching_rank_correlation`
            [prompt, label]. Method, baseline, tolerance and units are in its attributes.
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
        """One row a text and label: score, baseline's score, error, points, and the word of the largest attribution."""
        data, rows = self.dataset, []
        for prompt in range(data.sizes["prompt"]):
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
    out = np.full((first.dataset.sizes["prompt"], len(first.labels)), np.nan)
    own = (first["start"].values >= 0) & ~first["added"].values
    for row in range(len(out)):
        for column in range(out.shape[1]):
            out[row, column] = spearman(
                *(each["token_attribution"].values[row, own[row], column] for each in (first, second))
            )
    return xr.DataArray(
        out,
        dims=("prompt", "label"),
        coords={"label": list(first.labels)},
        attrs={"long_name": "Spearman's rank correlation over tokens", "units": "1"},
    )


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation, NaN where it is not defined."""
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(spearmanr(first, second).statistic)
