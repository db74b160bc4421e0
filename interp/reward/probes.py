"""Who learns what, when: linear probes for a concept over layers and training checkpoints of several models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float

from interp.errors import MeasureError, MissingExtra, PromptError, renamed
from interp.measures.arrays import dataset, variable
from interp.pair import CheckpointPair
from interp.progress import Progress, no_progress
from interp.result import Result
from interp.reward.checkpoints import Place, Training, load_model, trainings_of
from interp.reward.texts import Pooling, activations, check_texts
from interp.stats import bootstrap_mean, null_range, rank_p, selection_halves

CAVEAT = (
    "A probe finds what a linear map can read, not what the model uses; wide layers and even random ones hold much of a"
    " text, so only the gain over the same layer at step 0 speaks of learning. Fractions of two trainings are two"
    " clocks: a smaller one is earlier on its own clock, and no cause of the other."
)

_NAN = float("nan")

_ENDS = ("", "_low", "_high")


@dataclass(frozen=True, eq=False, repr=False)
class Probes(Result):
    """What linear probes read at each layer of each checkpoint (see `probes`).

    Attributes:
        dataset: by [model, step, layer] `accuracy` and `gain` with bounds, `auroc`, `null_accuracy`; by [model, step]
            `trained` (optimiser steps) and `fraction`; by model `layers`, `best_layer`, `final_gain` and `half_gain`.
            `step` counts checkpoints from 0; NaN where a model has fewer checkpoints or layers than another.
    """

    kind: ClassVar[str] = "probes"
    title: ClassVar[str] = "Probes"

    def summary(self) -> pd.DataFrame:
        """The findings, one a row; what they can and cannot say is in `attrs["caveat"]` of the frame."""
        return _summary(self.dataset)

    def headline(self) -> str:
        """How many texts and folds, and what the null is."""
        attrs = self.dataset.attrs
        return (
            f"{attrs['texts']} texts, {attrs['folds']} folds; null: the best layer's probe on {attrs['permutations']}"
            " shuffles of the labels."
        )

    def notes(self) -> list[str]:
        """What was not there to be read, and what a probe cannot say."""
        attrs = self.dataset.attrs
        return [*(line for line in str(attrs.get("notes", "")).split("\n") if line), attrs["caveat"]]


@renamed(permutations="pass draws=...")
def probes(
    models: CheckpointPair | Place | Mapping[str, Training],
    texts: Sequence[str],
    labels: Sequence[int],
    *,
    groups: Sequence[str] | None = None,
    pooling: Pooling = "mean",
    folds: int = 5,
    strength: float = 0.1,
    draws: int = 19,
    seed: int = 0,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Probes:
    """Train a linear probe for a concept at every layer of every checkpoint of every model.

    A probe is scikit-learn's logistic regression on standardised activations, with classes weighted to be equal. Its
    accuracy is balanced (the mean over both classes; chance is 1/2) and held out: every text is judged by the probe of
    the fold that did not see it, nor any other text of its group. The folds are the same for every model and layer, so
    that gains are differences text by text. `null_accuracy` is that of probes trained and judged on labels shuffled
    over groups (over texts, where a group holds both labels): what the probe makes of chance at this width.

    What this can say: that the concept became easier to read from a layer, by how much, and at what share of the
    training half of that was there. What it cannot: that the model uses it (Belinkov 2022, arXiv:2102.12452); that a
    model which was initialised with it learned it; that two models' accuracies compare (widths differ, and wide or even
    random layers hold much of a text, hence the gain over the same layer at step 0); or that one model taught the
    other, as the shares of two trainings are two clocks.

    The cost is one forward pass of the texts through each checkpoint, and layers x folds x (checkpoints + draws)
    small fits, which are nearly all of it. The null is that of the last checkpoint, which is what is judged. The p is
    that of the last checkpoint's best layer among the best layers on shuffled labels, so that the choice is paid for;
    19 is the fewest with which it can reach 0.05.

    Args:
        models: a pair that kept checkpoints, or its folder: its policy and, where that kept checkpoints too, its reward
            model. Or by name such a pair, the folder of a reward model with checkpoints, or the model at each optimiser
            step. The first step is what the others are compared with, as a rule 0. Folders and functions are loaded
            one at a time.
        texts: texts with and without the concept.
        labels: 1 or 0 for each.
        groups: texts of one group stay in one fold and are resampled together. None: each is its own.
        pooling: the activation of a text: its mean over the real tokens, or that at the token from which the model's
            output is read (the last of a causal model).
        folds: parts of the cross-validation.
        strength: inverse strength of the probes' L2 penalty (scikit-learn's C).
        draws: shuffles of the labels at each layer of the last checkpoint; a p needs 19, 0 takes no null.
        seed: seed of folds, shuffles and intervals.
        batch_size: texts a forward pass.
        progress: told of the "checkpoints" that are probed.

    Returns:
        Layer 0 is what enters the first block, layer k what leaves the k-th; of an encoder-decoder, the encoder's.

    Raises:
        MeasureError: labels are not 0 and 1 with `folds` groups of both, or a model has fewer than two checkpoints, or
            another shape at some of them.
        PromptError: a text is empty or too long for a model, or counts differ.
        MissingExtra: scikit-learn is not installed.
    """
    said = check_texts(texts)
    target, index = _checked(said, labels, groups, folds)
    if pooling not in ("mean", "read"):
        raise MeasureError(f'pooling is "mean" or "read", not {pooling!r}')
    if draws < 0 or not strength > 0:
        raise MeasureError(f"draws must be 0 or more and strength above 0, not {draws} and {strength}")
    courses, notes = trainings_of(models)
    splits = _splits(target, index, folds, seed)
    shuffled = _shuffles(target, index, draws, seed)
    found: dict[str, list[_Cell]] = {}
    told, done, total = progress or no_progress, 0, sum(map(len, courses.values()))
    for name, steps in courses.items():
        found[name] = []
        for step in sorted(steps):
            told("checkpoints", done, total)
            done += 1
            states = activations(load_model(steps[step]), said, pooling=pooling, batch_size=batch_size)
            if found[name] and len(states) != len(found[name][0].accuracy):
                raise MeasureError(
                    f"{name} has {len(states) - 1} layers at step {step} and {len(found[name][0].accuracy) - 1} before;"
                    " give checkpoints of one model"
                )
            last = step == max(steps)  # what is judged; elsewhere a null would cost as much and say no more
            found[name].append(_probed(states, target, splits, shuffled if last else (), strength))
    told("checkpoints", total, total)
    trained = {name: sorted(steps) for name, steps in courses.items()}
    data = _collected(found, trained, target, index, seed)
    data.attrs.update(
        pooling=pooling,
        folds=folds,
        strength=strength,
        permutations=draws,
        seed=seed,
        caveat=CAVEAT,
        notes="\n".join(notes),
    )
    return Probes(data)


def _checked(
    texts: Sequence[str], labels: Sequence[int], groups: Sequence[str] | None, folds: int
) -> tuple[np.ndarray, np.ndarray]:
    """Labels as 0 and 1, and each text's group by number."""
    for name, given in (("labels", labels), ("groups", groups)):
        if given is not None and len(given) != len(texts):
            raise PromptError(f"{len(texts)} texts but {len(given)} {name}; give one for each text")
    target = np.asarray(labels)
    if not np.isin(target, (0, 1)).all():
        wrong = target[~np.isin(target, (0, 1))][0]
        raise MeasureError(f"labels are 1 (the concept is there) or 0, not {wrong!r}")
    names = np.asarray(list(groups) if groups is not None else [str(row) for row in range(len(texts))])
    index = np.unique(names, return_inverse=True)[1]
    few = min(len(np.unique(index[target == value])) for value in (0, 1))
    if folds < 2 or few < folds:
        raise MeasureError(
            f"{folds} folds (2 at least) need as many groups of each label, the rarer one has {few}; give more texts or"
            " fewer folds"
        )
    return target.astype(int), index


def _splits(target: np.ndarray, index: np.ndarray, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    try:
        from sklearn.model_selection import StratifiedGroupKFold
    except ImportError as error:
        raise MissingExtra("training", "a probe") from error
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed % 2**32)
    return list(splitter.split(np.zeros((len(target), 1)), target, index))


def _shuffles(target: np.ndarray, index: np.ndarray, count: int, seed: int) -> list[np.ndarray]:
    """Labels dealt out anew: to whole groups, where every group has one label."""
    rng = np.random.default_rng(seed)
    by_group = np.bincount(index, weights=target) / np.bincount(index)
    if np.isin(by_group, (0, 1)).all():
        return [rng.permutation(by_group)[index].astype(int) for _ in range(count)]
    return [rng.permutation(target) for _ in range(count)]


@dataclass(frozen=True)
class _Cell:
    """Probes of one checkpoint: weighted correctness by layer and text, and by layer what else is kept."""

    correct: np.ndarray
    accuracy: np.ndarray
    auroc: np.ndarray
    null: np.ndarray


def _probed(
    states: np.ndarray,
    target: np.ndarray,
    splits: Sequence[tuple[np.ndarray, np.ndarray]],
    shuffled: Sequence[np.ndarray],
    strength: float,
) -> _Cell:
    correct, areas, nulls = [], [], []
    for values in states:
        parts = [_standardised(values, *split) for split in splits]  # once for all labels: fits are small, and many
        said = _held_out(parts, target, splits, strength)
        correct.append(_hits(said, target))
        areas.append(_area(said, target, splits))
        each = (_hits(_held_out(parts, labels, splits, strength), labels) for labels in shuffled)
        nulls.append([hits.mean() for hits in each])
    rows = np.stack(correct)
    return _Cell(rows, rows.mean(-1), np.array(areas), np.array(nulls).reshape(len(rows), len(shuffled)))


def _standardised(values: np.ndarray, train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both parts, scaled by the mean and spread of the first."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(values[train])
    return scaler.transform(values[train]), scaler.transform(values[test])


def _held_out(
    parts: Sequence[tuple[np.ndarray, np.ndarray]],
    target: np.ndarray,
    splits: Sequence[tuple[np.ndarray, np.ndarray]],
    strength: float,
) -> np.ndarray:
    """What the probe of the fold that did not see it says of each text: above 0 for label 1."""
    from sklearn.linear_model import LogisticRegression

    said = np.zeros(len(target))
    for (known, new), (train, test) in zip(parts, splits, strict=True):
        if len(np.unique(target[train])) < 2:  # shuffled labels may leave a fold with one
            said[test] = 2.0 * target[train][0] - 1
            continue
        probe = LogisticRegression(C=strength, class_weight="balanced", max_iter=2000).fit(known, target[train])
        said[test] = probe.decision_function(new)
    return said


def _hits(said: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Whether each text is judged rightly, weighted so that the mean is the balanced accuracy."""
    return ((said > 0) == target) * (len(target) / (2 * np.bincount(target, minlength=2))[target])


def _area(said: np.ndarray, target: np.ndarray, splits: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Mean over the folds of the area under the ROC curve."""
    from sklearn.metrics import roc_auc_score

    areas = [roc_auc_score(target[test], said[test]) for _, test in splits if len(np.unique(target[test])) == 2]
    return float(np.mean(areas)) if areas else _NAN


def _collected(
    found: Mapping[str, list[_Cell]], trained: Mapping[str, list[int]], target: np.ndarray, index: np.ndarray, seed: int
) -> xr.Dataset:
    names, count = list(found), len(target)
    sizes = (len(names), max(map(len, found.values())), max(len(cells[0].accuracy) for cells in found.values()))
    chances = found[names[0]][-1].null.shape[1]
    keys = [f"{name}{end}" for name in ("accuracy", "gain") for end in _ENDS]
    arrays = {key: np.full(sizes, np.nan) for key in [*keys, "auroc"]}
    arrays["null_accuracy"] = np.full((*sizes, chances), np.nan)
    clock = {key: np.full(sizes[:2], np.nan) for key in ("trained", "fraction")}
    ends: dict[str, list[float]] = {key: [] for key in ("layers", "best_layer", *_final_names())}
    for m, name in enumerate(names):
        cells, steps = found[name], np.array(trained[name], dtype=float)
        clock["trained"][m, : len(steps)] = steps
        clock["fraction"][m, : len(steps)] = steps / steps[-1]
        hits = np.stack([cell.correct for cell in cells])  # step layer prompt
        for s, cell in enumerate(cells):
            depth = slice(0, len(cell.accuracy))
            arrays["auroc"][m, s, depth] = cell.auroc
            if cell.null.shape[1] == chances:
                arrays["null_accuracy"][m, s, depth] = cell.null
            for key, rows in (("accuracy", hits[s]), ("gain", hits[s] - hits[0])):
                bounds = np.array([bootstrap_mean(row, index, seed=seed) for row in rows]).T
                for end, row in zip(_ENDS, bounds, strict=True):
                    arrays[f"{key}{end}"][m, s, depth] = row
        ends["layers"].append(float(hits.shape[1] - 1))
        for key, value in _final(hits, clock["fraction"][m, : len(steps)], index, seed).items():
            ends[key].append(value)
    words = {"accuracy": "balanced accuracy of the probe", "gain": "accuracy minus that of the same layer at step 0"}
    cube = "model step layer"
    variables = {key: variable(cube, arrays[key], words[key.split("_")[0]], "share") for key in keys}
    variables["auroc"] = variable(cube, arrays["auroc"], "area under the ROC curve, mean of the folds")
    said = "balanced accuracy on shuffled labels"
    variables["null_accuracy"] = variable(f"{cube} permutation", arrays["null_accuracy"], said, "share")
    variables["trained"] = variable("model step", clock["trained"], "optimiser steps", "steps")
    variables["fraction"] = variable("model step", clock["fraction"], "share of the training", "share")
    for key, values in ends.items():
        variables[key] = variable("model", np.array(values), _FINAL[key.removesuffix("_low").removesuffix("_high")])
    data = dataset(variables, model=names, step=range(sizes[1]), layer=range(sizes[2]))
    return data.assign_attrs(texts=count)


_FINAL = {
    "layers": "number of blocks",
    "best_layer": "layer of the largest gain at the last step, chosen on half of the texts",
    "final_gain": "gain there, on the other half",
    "half_gain": "share of the training at which half of that gain was there",
}


def _final_names() -> list[str]:
    return [f"{key}{end}" for key in ("final_gain", "half_gain") for end in _ENDS]


def _final(hits: np.ndarray, fraction: np.ndarray, index: np.ndarray, seed: int) -> dict[str, float]:
    """The layer that gained most, its gain, and when half of it was there."""
    chosen, rest = selection_halves(index)
    gain = hits - hits[0]
    layer = int(gain[-1][:, chosen].mean(-1).argmax())
    own = gain[:, layer][:, rest]
    bounds = bootstrap_mean(own[-1], index[rest], seed=seed)
    out = {"best_layer": float(layer), **dict(zip([f"final_gain{e}" for e in _ENDS], bounds, strict=True))}
    if not bounds[1] > 0:  # nothing was learned that could have been learned early or late
        return out | {f"half_gain{end}": _NAN for end in _ENDS}
    _, cluster = np.unique(index[rest], return_inverse=True)
    sums = np.stack([np.bincount(cluster, weights=row) for row in own], axis=1)  # cluster step
    rng = np.random.default_rng(seed)
    drawn = np.array([sums[rng.integers(0, len(sums), len(sums))].sum(0) for _ in range(1000)])
    shares = np.array([half_way(row, fraction) for row in drawn])
    low, high = np.quantile(shares, (0.025, 0.975))
    value = half_way(sums.sum(0), fraction)
    return out | {"half_gain": value, "half_gain_low": float(low), "half_gain_high": float(high)}


def half_way(gain: Float[np.ndarray, " step"], fraction: Float[np.ndarray, " step"]) -> float:
    """The share of the training at which a gain first reaches half of its last value, between checkpoints linearly.

    1 where the last value is not above 0: it was not learned by the end.
    """
    goal = gain[-1] / 2
    if goal <= 0:
        return 1.0
    at = int(np.argmax(gain >= goal))
    before, after = gain[at - 1], gain[at]
    share = (goal - before) / (after - before)
    return float(fraction[at - 1] + share * (fraction[at] - fraction[at - 1]))


def _best(nulls: Float[np.ndarray, "layer permutation"]) -> Float[np.ndarray, " permutation"]:
    """The best layer's accuracy on each shuffle, as the layer that is read was chosen too."""
    there = nulls[np.isfinite(nulls).all(-1)]
    return np.asarray(there.max(0) if len(there) else nulls[0])


def _summary(data: xr.Dataset) -> pd.DataFrame:
    rows = []
    for name in data["model"].values:
        own = data.sel(model=name)
        layer, last = int(own["best_layer"]), int(np.isfinite(own["trained"].values).sum()) - 1
        cell = own.isel(step=last, layer=layer)
        nulls = _best(own.isel(step=last)["null_accuracy"].values)
        low, high = null_range(nulls.tolist())
        p = rank_p(float(cell["accuracy"]) - 0.5, (nulls - 0.5).tolist())
        where = f"{name}, layer {layer} of {int(own['layers'])}"
        first = int(own["trained"].values[0])

        def bounds(key: str, of: xr.Dataset) -> dict[str, float]:
            return dict(
                zip(("estimate", "estimate_low", "estimate_high"), (float(of[f"{key}{e}"]) for e in _ENDS), strict=True)
            )

        none = {"null_low": _NAN, "null_high": _NAN, "p": _NAN}
        rows += [
            {
                "finding": f"{where}: balanced accuracy at step {int(cell['trained'])}",
                **bounds("accuracy", cell),
                "null_low": low,
                "null_high": high,
                "p": p,
                "units": "share",
            },
            {"finding": f"{where}: gain over step {first}", **bounds("final_gain", own), **none, "units": "share"},
            {
                "finding": f"{where}: half of it was there at this share of the training",
                **bounds("half_gain", own),
                **none,
                "units": "share",
            },
        ]
    frame = pd.DataFrame([{**row, "n": int(data.attrs["texts"])} for row in rows])
    frame.attrs["caveat"] = CAVEAT
    return frame
