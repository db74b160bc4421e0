"""The reward lens: the score read off the residual of every layer, and the layer that decides it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
import xarray as xr

from interp.hooks import Site
from interp.measures.arrays import dataset, strings, variable
from interp.models import RewardModel
from interp.models.source import source_name
from interp.progress import Progress, no_progress
from interp.result import Result
from interp.reward.agreement import about_texts
from interp.reward.fixed_effects import spearman
from interp.reward.texts import RewardLike, as_reward, check_finite, chosen_labels, read_texts
from interp.stats import bootstrap_mean


@dataclass(frozen=True, eq=False, repr=False)
class Lens(Result):
    """A reward model's score by layer.

    Attributes:
        dataset: `lens_score` [prompt, site, label], the last of which is the model's own score; `deciding_site` and
            `changes` [prompt, label]; `lens_rank_correlation` [site, label]; with several labels `lens_top_label`
            [prompt, site] and `deciding_site_of_top` [prompt].
    """

    kind: ClassVar[str] = "reward_lens"
    title: ClassVar[str] = "Reward lens"

    def headline(self) -> str:
        """The model, how many texts and labels, and the threshold."""
        data = self.dataset
        counted = about_texts(data.sizes["prompt"], list(map(str, data["label"].values)))
        return (
            f"{data.attrs['model']}: the score read off every layer, {counted}, threshold"
            f" {data.attrs['threshold']:g} {data.attrs['units']}."
        )

    def notes(self) -> list[str]:
        """What a reader may stumble over."""
        data = self.dataset
        scores, ranks, notes = data["lens_score"].values, data["lens_rank_correlation"].values, []
        count, labels = len(scores), scores.shape[2]
        if labels == 1 and np.isnan(ranks).any():
            why = "fewer than three texts" if count < 3 else "the score read there is the same for every text"
            notes.append(f"no rank correlation: {why}")
        above = scores[:, -1] > data.attrs["threshold"]
        sided = int((above.all(0) | ~above.any(0)).sum())
        if sided and count > 1:
            which = f"every text ends {'above' if above.all() else 'below'} the threshold"
            several = f"for {sided} of {labels} labels every text ends on one side of the threshold"
            notes.append(
                f"{which if labels == 1 else several}: to be decided is then only to stay on that side; a threshold="
                " amid the scores, as their median, parts the texts"
            )
        return notes

    def summary(self) -> pd.DataFrame:
        """One row a label and layer, layer by layer.

        Columns: `label`, `site`, `score` (mean over texts), `rank_correlation` (with the final score, over texts),
        `decided` (share of texts that this layer decides) and `n` (texts).
        """
        data, rows = self.dataset, []
        mean = data["lens_score"].mean("prompt")
        for label in data["label"].values:
            decided = data["deciding_site"].sel(label=label).values
            for site in data["site"].values:
                cell = {"label": str(label), "site": str(site), "score": float(mean.sel(label=label, site=site))}
                cell["rank_correlation"] = float(data["lens_rank_correlation"].sel(label=label, site=site))
                rows.append({**cell, "decided": float((decided == site).mean()), "n": len(decided)})
        return pd.DataFrame(rows)

    def changes(self) -> pd.DataFrame:
        """How often from one layer to the next the score crosses the threshold: a row a label.

        Columns: `label`, `n` (texts), `changes` (mean over texts) with `changes_low` and `changes_high` (95 %), and
        `decided_at`, the layer that decides most texts.
        """
        data, rows = self.dataset, []
        sites = list(map(str, data["site"].values))
        for label in data["label"].values:
            decided = data["deciding_site"].sel(label=label).values
            mean, low, high = bootstrap_mean(data["changes"].sel(label=label).values.astype(float))
            counts = [int((decided == site).sum()) for site in sites]
            row = {"label": str(label), "n": len(decided), "changes": mean, "changes_low": low, "changes_high": high}
            rows.append({**row, "decided_at": sites[int(np.argmax(counts))]})
        return pd.DataFrame(rows)


def lens(
    model: RewardLike,
    texts: Sequence[str],
    *,
    labels: Sequence[str] | str | None = None,
    threshold: float | None = None,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Lens:
    """Read the score off every layer's residual, as if it were the last (nostalgebraist 2020, of a score head).

    The residual at the token from which the score is read goes through the model's own final norm and head. A layer
    decides a text when the score is on its final side of the threshold from there on; `changes` counts how often
    from one layer to the next it crosses. `lens_rank_correlation` is Spearman's, over the texts, of a layer's score and
    the final one: from where on the ranking stands.

    Args:
        model: a reward model; a folder or id is read for the labels named, as a probability.
        texts: the texts.
        labels: the labels; None is the model's own, "all" every one.
        threshold: what divides high from low; None is 0 for logits, one half for a sigmoid, 1 / labels for a softmax.
        batch_size: texts a pass.
        progress: told of the "texts" that are read.

    Raises:
        PromptError: a text is empty or longer than the context.
        MeasureError: an unknown label.
        InterpError: a score is not finite.
    """
    model = as_reward(model, labels)
    named = chosen_labels(model, labels)
    read = read_texts(model, texts)
    columns = [model.labels.index(label) for label in named]
    if threshold is None:
        threshold = {"logit": 0.0, "sigmoid": 0.5, "softmax": 1 / len(model.labels)}[model.squash]
    parts = model.parts
    sites = [Site("resid_pre", layer) for layer in range(parts.n_layers)]
    sites.append(Site("resid_post", parts.n_layers - 1))
    scores = np.empty((len(read), len(sites), len(model.labels)))
    order, told = read.by_length(), progress or no_progress
    for start in range(0, len(order), batch_size):
        told("texts", start, len(order))
        rows = order[start : start + batch_size]
        trace = model.trace(read.batch(rows), sites)
        by_site = [model.output_of(parts.logits(trace.read(site)).double()) for site in sites[:-1]]
        scores[rows] = torch.stack([*by_site, trace.scores], dim=1).cpu().numpy()
    told("texts", len(order), len(order))
    check_finite(scores, read.texts, "score")
    return Lens(_labelled(model, read.texts, scores, columns, named, [str(site) for site in sites], threshold))


def _labelled(
    model: RewardModel,
    texts: Sequence[str],
    every: np.ndarray,
    columns: list[int],
    labels: Sequence[str],
    sites: list[str],
    threshold: float,
) -> xr.Dataset:
    scores = every[:, :, columns]
    units = "logits" if model.squash == "logit" else "probability"
    above = scores > threshold
    ranks = [
        [spearman(scores[:, site, j], scores[:, -1, j]) for j in range(len(columns))] for site in range(len(sites))
    ]
    named = np.array(sites, dtype=object)
    variables = {
        "lens_score": variable("prompt site label", scores, "score read off the layer's residual", units),
        "deciding_site": variable(
            "prompt label", strings(named[_settles(above)]), "first layer from which the score stays on its side"
        ),
        "changes": variable(
            "prompt label", (above[:, 1:] != above[:, :-1]).sum(1), "how often the score changes sides", "layers"
        ),
        "lens_rank_correlation": variable(
            "site label", np.array(ranks), "Spearman over texts of the layer's score and the final one", "1"
        ),
        "text": variable("prompt", strings(texts), "text"),
    }
    if len(model.labels) > 1:
        top = every.argmax(-1)
        settled = _settles((top == top[:, -1:])[:, :, None], side=False)[:, 0]
        variables["lens_top_label"] = variable(
            "prompt site", strings(np.array(model.labels, dtype=object)[top]), "label of the highest score"
        )
        variables["deciding_site_of_top"] = variable(
            "prompt", strings(named[settled]), "first layer from which the highest label stays"
        )
    data = dataset(variables, site=sites, label=list(labels))
    return data.assign_attrs(
        threshold=threshold, units=units, output=model.output, model=source_name(dict(model.description))
    )


def _settles(above: np.ndarray, *, side: bool = True) -> np.ndarray:
    """Index of the first layer from which every later one is as the last, [prompt, label] of [prompt, site, label].

    Args:
        above: which side each layer is on; with `side` False, whether it agrees with the last.
        side: see `above`.
    """
    agrees = above == above[:, -1:] if side else above
    back = np.cumprod(agrees[:, ::-1], axis=1).sum(1)  # how many layers, from the last backwards
    return np.asarray(agrees.shape[1] - back)
