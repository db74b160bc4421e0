"""The tables across emotions, out of the cells that are done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
import xarray as xr

from analyses.sweep.cells import Cell, Store
from analyses.sweep.config import SweepConfig
from analyses.sweep.similarity import Mantel, centred_cosines, gram_of, mantel, vectors_of, weight_gram
from interp.errors import FormatError
from interp.io import read_json
from interp.stats import holm, interval

LEVEL = 0.05
MANY, FEW = 0.5, 1
"""Share of the emotions from which a part serves many, and the number that is one only."""

_NAN = float("nan")


@dataclass(frozen=True)
class Likeness:
    """How alike the changes are in one respect.

    Attributes:
        cosines: of the changes with the mean change taken out, by pair; second seeds, which stay whole, last.
        labels: rank correlation of the labels' logits over held-out texts, by emotion.
        agreement: of the two, over the emotions that pass the gate.
        ceiling: cosine of each emotion that has a second seed with that one.
        others: cosines of all other emotions with that second seed.
    """

    cosines: pd.DataFrame
    labels: pd.DataFrame
    agreement: Mantel
    ceiling: Mapping[str, float]
    others: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def rank(self, emotion: str) -> int:
        """Place of an emotion among all, by the cosine with its own second seed; 1 is the nearest."""
        return 1 + sum(value >= self.ceiling[emotion] for value in self.others[emotion])


@dataclass(frozen=True)
class Tables:
    """Everything across emotions.

    Attributes:
        emotions: a row for each pair.
        parts: a row for each head and MLP: how many emotions it serves.
        recovery: of each part (column) in each pair (row).
        served: whether the part serves the emotion, likewise, over emotions that pass the gate.
        likeness: by what is compared: activations, weights, circuit.
        readings: a row for each emotion: where its score is decided, and what it holds on to.
        probes: a row for each pair and model: where the emotion became easier to read, by how much, and when.
    """

    emotions: pd.DataFrame
    parts: pd.DataFrame
    recovery: pd.DataFrame
    served: pd.DataFrame
    likeness: Mapping[str, Likeness]
    readings: pd.DataFrame = field(default_factory=pd.DataFrame)
    probes: pd.DataFrame = field(default_factory=pd.DataFrame)


def gates(reward: str, emotions: tuple[str, ...], least: float) -> pd.DataFrame:
    """The held-out AUROC of each label, from the reward model's card, and whether its lower bound passes.

    A label of which the card says nothing does not pass.

    Args:
        reward: folder of the reward model.
        emotions: labels.
        least: lower bound from which a label passes.
    """
    try:
        card: dict[str, Any] = read_json(Path(reward) / "card.json").get("by_label", {})
    except FormatError:  # a model from elsewhere has none
        card = {}
    rows = {}
    for name in emotions:
        found = card.get(name, {})
        low, high = (float(value) for value in found.get("auroc_interval", (_NAN, _NAN)))
        rows[name] = {"auroc": float(found.get("auroc", _NAN)), "auroc_low": low, "auroc_high": high}
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.assign(passes=table["auroc_low"] >= least)


def make(config: SweepConfig, settings: Mapping[str, Any], cells: list[Cell], store: Store) -> Tables:
    """All tables.

    Args:
        config: the sweep.
        settings: what `shared_settings` says.
        cells: all its cells.
        store: where they lie.
    """
    done = {cell.name: cell for cell in cells if store.record(cell) is not None}
    by_kind: dict[str, dict[str, Path]] = {}
    for cell in done.values():
        if cell.pair:
            by_kind.setdefault(cell.kind, {})[cell.pair] = store.folder(cell)
    gate = gates(settings["reward"], config.emotions, config.gate)
    emotions = _emotions(config, gate, by_kind, {cell.pair for cell in cells if store.failure(cell) is not None})
    recovery, served, alone = _served(config, gate, by_kind.get("patching", {}))
    labels = _labels(config, store, done)
    sources = {cell.pair: cell.how["tuned"] for cell in done.values() if cell.pair and "tuned" in cell.how}
    likeness = {}
    for kind, words in (("states", "activations"), ("circuit", "circuit")):
        own = by_kind.get(kind, {})
        base = next((store.folder(cell) for cell in done.values() if cell.kind == kind and not cell.pair), None)
        if len([name for name in own if name in config.emotions]) > 1 and base is not None:
            likeness[words] = _likeness(config, gate, labels, gram_of(vectors_of(own, base, kind=kind)), list(own))
    if len([name for name in sources if name in config.emotions]) > 1:
        gram = weight_gram(settings["base"], list(sources.values()))
        likeness["weights"] = _likeness(config, gate, labels, gram, list(sources))
    read = {
        str(cell.how["emotion"]): store.folder(cell)
        for cell in done.values()
        if cell.kind == "reading" and (store.folder(cell) / "lens.csv").is_file()
    }
    return Tables(
        emotions,
        _parts(recovery, served, alone),
        recovery,
        served,
        likeness,
        _readings(config, read),
        _probes(config, gate, by_kind.get("probes", {})),
    )


def _readings(config: SweepConfig, cells: Mapping[str, Path]) -> pd.DataFrame:
    """Of each emotion's score: which layer decides how many texts, and the features that it holds on to."""
    rows = {}
    for name in (name for name in config.emotions if name in cells):
        layers = pd.read_csv(cells[name] / "lens.csv").set_index("site")
        row: dict[str, Any] = {f"decided at {site}": float(value) for site, value in layers["decided"].items()}
        row |= {f"rank at {site}": float(value) for site, value in layers["rank_correlation"].items()}
        rows[name] = row
        row["holds on to"] = ", ".join(map(str, read_json(cells[name] / "held.json")))
    return pd.DataFrame.from_dict(rows, orient="index")


def _probes(config: SweepConfig, gate: pd.DataFrame, cells: Mapping[str, Path]) -> pd.DataFrame:
    """What each model's last probe reads of the emotion, its gain over step 0, and when half of that was there."""
    rows = []
    for name, (emotion, _) in config.pairs().items():
        if name not in cells or not (cells[name] / "probes.nc").is_file():
            continue
        with xr.open_dataset(cells[name] / "probes.nc", engine="h5netcdf") as data:
            former = {str(name): str(name).rpartition("_") for name in data.data_vars}
            ends = {name: f"{stem}_{_ENDS[end]}" for name, (stem, _, end) in former.items() if end in _ENDS}
            for model in data["model"].values:
                own = data.rename(ends).sel(model=model)
                steps = int(np.isfinite(own["trained"].values).sum())
                layer = int(own["best_layer"])
                here = own.isel(layer=layer)
                rows.append(
                    {
                        "pair": name,
                        "model": str(model),
                        "passes": bool(gate.loc[emotion, "passes"]),
                        "layer": layer,
                        "layers": int(own["layers"]),
                        "checkpoints": steps,
                        "first": float(here["accuracy"].isel(step=0)),
                        "last": float(here["accuracy"].isel(step=steps - 1)),
                        "null": float(own["null_accuracy"].isel(step=steps - 1).max("layer").max()),
                        **{key: float(own[key]) for key in (*_ends("final_gain"), *_ends("half_gain"))},
                        "texts": int(data.attrs["texts"]),
                    }
                )
    return pd.DataFrame(rows)


def _ends(name: str) -> tuple[str, str, str]:
    return name, f"{name}_low", f"{name}_high"


def _emotions(
    config: SweepConfig, gate: pd.DataFrame, cells: Mapping[str, Mapping[str, Path]], failed: set[str]
) -> pd.DataFrame:
    """A row for each pair: gate, reward gained, KL, slope and joins, with p corrected over the emotions that pass."""
    rows = []
    for name, (emotion, seed) in config.pairs().items():
        row: dict[str, Any] = {"pair": name, "emotion": emotion, "seed": -1 if seed is None else seed}
        row |= dict(gate.loc[emotion])
        row["state"] = "failed" if name in failed else ("trained" if name in cells.get("pair", {}) else "waiting")
        if name in cells.get("implicit", {}):
            row |= _of_implicit(cells["implicit"][name], config.seed)
        if name in cells.get("comparison", {}):
            row |= _of_comparison(cells["comparison"][name], config.seed)
        if name in cells.get("tokens", {}):
            first = pd.read_csv(cells["tokens"][name] / "summary.csv").iloc[0]
            row |= {"token_join": first["estimate"], "token_join_p": first["p"]}
        rows.append(row)
    table = pd.DataFrame(rows).set_index("pair")
    claimed = table["passes"].to_numpy(bool) & np.isin(table.index, config.emotions)
    for name in ("gain", "slope", "token_join"):
        if f"{name}_p" in table:
            table[f"{name}_p_holm"] = holm(np.where(claimed, table[f"{name}_p"].to_numpy(float), np.nan))
    return table


_ENDS = {"lower": "low", "upper": "high"}  # in cells that version 1 wrote
_FORMER = {end: f"estimate_{new}" for end, new in _ENDS.items()}


def _of_implicit(folder: Path, seed: int) -> dict[str, float]:
    with xr.open_dataset(folder / "implicit.nc", engine="h5netcdf") as data:
        score = data["score"].transpose("prompt", "source", "draw").values
        groups = data["group"].values
    means = score.mean(axis=2)
    gain = means[:, 1] - means[:, 0]
    mean, low, high = interval(gain, groups, seed=seed)
    rows = pd.read_csv(folder / "summary.csv").rename(columns=_FORMER)
    slope, spearman = rows.iloc[0], rows[rows["finding"].str.startswith("Spearman")].iloc[0]
    return {
        "reward_base": float(means[:, 0].mean()),
        "reward_tuned": float(means[:, 1].mean()),
        "gain": mean,
        "gain_low": low,
        "gain_high": high,
        "gain_p": float(scipy.stats.wilcoxon(gain).pvalue) if np.any(gain) else 1.0,
        "slope": float(slope["estimate"]),
        "slope_low": float(slope["estimate_low"]),
        "slope_high": float(slope["estimate_high"]),
        "slope_p": float(slope["p"]),
        "spearman": float(spearman["estimate"]),
    }


def _of_comparison(folder: Path, seed: int) -> dict[str, float]:
    from interp import Comparison

    data = Comparison.load(folder).dataset
    along = data["response_kl"].sel(source="tuned")
    by_prompt = along.mean([dim for dim in along.dims if dim != "prompt"]).values
    mean, low, high = interval(by_prompt, data["group"].values, seed=seed)
    return {"kl": mean, "kl_low": low, "kl_high": high}


def _served(
    config: SweepConfig, gate: pd.DataFrame, cells: Mapping[str, Path]
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Recovery of each part in each pair; which of them serve; and which serve an emotion more than any other.

    They serve with p under `LEVEL`, Holm over emotions, and a recovery above 0; more than any other where the interval
    of the recovery lies above those of all other emotions.
    """
    tables = {name: pd.read_csv(folder / "patching.csv").set_index("site") for name, folder in cells.items()}
    nothing = pd.DataFrame(dtype=float)
    if not tables or any("recovery" not in table for table in tables.values()):
        return nothing, nothing, nothing
    recovery = pd.DataFrame({name: table["recovery"] for name, table in tables.items()}).T
    recovery = recovery[sorted(recovery.columns, key=_place)]
    claimed = [name for name in recovery.index if name in config.emotions and bool(gate.loc[name, "passes"])]
    p, low, high = (
        pd.DataFrame({name: tables[name][column] for name in claimed}).T.reindex(columns=recovery.columns)
        for column in ("p", "recovery_low", "recovery_high")
    )
    corrected = p.apply(lambda column: pd.Series(holm(column.to_numpy(float)), index=column.index))
    served = (corrected < LEVEL) & (recovery.loc[claimed] > 0)
    alone = pd.DataFrame({name: low.loc[name] > high.drop(name).max() for name in claimed}).T
    return recovery, served, alone.reindex(index=served.index, columns=served.columns)


def _place(label: str) -> tuple[int, int, int]:
    """L2.z.H1 and L2.mlp_out in the order of the model."""
    layer, name, *head = label.split(".")
    return int(layer[1:]), int(name != "z"), int(head[0][1:]) if head else 0


def _parts(recovery: pd.DataFrame, served: pd.DataFrame, alone: pd.DataFrame) -> pd.DataFrame:
    """How many emotions each part serves, which is the only one, and how large its recovery is.

    That a part was not shown to serve an emotion does not show that it does not: it serves one only where its recovery
    there is above that of every other emotion.
    """
    if served.empty:
        return pd.DataFrame(columns=["serves", "of", "kind", "emotions", "mean_recovery"])
    rows = {}
    for part in served.columns:
        names = list(served.index[served[part]])
        only = len(names) == FEW and len(served) > FEW and bool(alone.loc[names[0], part])
        kind = "many" if len(names) >= max(2, MANY * len(served)) else ("one" if only else "some")
        rows[part] = {
            "serves": len(names),
            "of": len(served),
            "kind": kind if names else "none",
            "emotions": ", ".join(names),
            "mean_recovery": float(recovery.loc[served.index, part].mean()),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _labels(config: SweepConfig, store: Store, done: Mapping[str, Cell]) -> pd.DataFrame:
    """Rank correlation of the labels' logits over the held-out texts."""
    if "labels" not in done:
        return pd.DataFrame(dtype=float)
    logits = pd.read_parquet(store.folder(done["labels"]) / "logits.parquet")
    return logits[list(config.emotions)].corr(method="spearman")


def _likeness(
    config: SweepConfig, gate: pd.DataFrame, labels: pd.DataFrame, gram: np.ndarray, names: list[str]
) -> Likeness:
    pairs = config.pairs()
    own = [name in config.emotions for name in names]
    cosines = pd.DataFrame(centred_cosines(gram, own), index=names, columns=names)
    claimed = [name for name in names if name in config.emotions and bool(gate.loc[name, "passes"])]
    agreement = Mantel(_NAN, _NAN, config.permutations, len(claimed))
    if not labels.empty:
        agreement = mantel(
            cosines.loc[claimed, claimed].to_numpy(),
            labels.loc[claimed, claimed].to_numpy(),
            permutations=config.permutations,
            seed=config.seed,
        )
    seconds = {pairs[name][0]: name for name in names if name not in config.emotions and pairs[name][0] in names}
    ceiling = {emotion: float(cosines.loc[emotion, second]) for emotion, second in seconds.items()}
    known = [name for name in names if name in config.emotions]
    others = {
        emotion: tuple(float(cosines.loc[name, second]) for name in known if name != emotion)
        for emotion, second in seconds.items()
    }
    return Likeness(cosines, labels.loc[known, known] if not labels.empty else labels, agreement, ceiling, others)
