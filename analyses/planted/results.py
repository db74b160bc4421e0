"""What the planted-difference benchmark found: AUROC and recall by plant, method and ratio, and their tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.stats
import xarray as xr

from interp.stats import interval

ENOUGH = 0.01
"""Nats by which a plant must change behaviour to count."""

NO_DRIFT = float("inf")

_TEXTS = ("base", "kind", "planted")


def auroc(scores: np.ndarray, planted: np.ndarray) -> float:
    """Chance that a planted component scores above one that is not, ties counting half (Mann and Whitney 1947).

    Args:
        scores: float [candidate]; NaN counts as the least.
        planted: bool [candidate].
    """
    ranks = scipy.stats.rankdata(np.nan_to_num(scores, nan=-np.inf, posinf=np.inf, neginf=-np.inf))
    positive, negative = int(planted.sum()), int((~planted).sum())
    return float((ranks[planted].sum() - positive * (positive + 1) / 2) / (positive * negative))


def recall_at_k(scores: np.ndarray, planted: np.ndarray) -> float:
    """Share of the k planted components among the k highest scores; of equal scores each is as likely to be among them.

    Args:
        scores: float [candidate]; NaN counts as the least.
        planted: bool [candidate].
    """
    values = np.nan_to_num(scores, nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    k = int(planted.sum())
    above = (values[None] > values[:, None]).sum(1)
    equal = (values[None] == values[:, None]).sum(1)
    return float(np.clip((k - above) / equal, 0, 1)[planted].mean())


@dataclass(frozen=True)
class PlantedBenchmark:
    """The benchmark's result.

    Attributes:
        dataset: `auroc`, `recall` [plant, method, ratio], `cost` [plant, method] (processor seconds over those of one
            forward pass of both models), `drift_kl` [plant, ratio] (nats, of the drift alone), with the coords
            `base`, `kind`, `kl` (nats, of the plant alone), `strength` (relative weight change), `planted`, `taught`,
            `first` and `second` (share of the lesson brought by all and by each half) of every plant. `ratio` is the
            plant's strength over the drift's; infinite is no drift.
    """

    dataset: xr.Dataset

    @classmethod
    def of(cls, rows: pd.DataFrame) -> PlantedBenchmark:
        """From one row a plant, method and ratio."""
        index = ["plant", "method", "ratio"]
        order = {name: list(dict.fromkeys(rows[name])) for name in index}
        wide = rows.set_index(index)[["auroc", "recall"]].to_xarray().reindex(order)
        cost = rows.groupby(["plant", "method"])[["seconds", "forward"]].mean()
        wide["cost"] = (cost["seconds"] / cost["forward"]).to_xarray()
        wide["drift_kl"] = rows.groupby(["plant", "ratio"])["drift_kl"].first().to_xarray()
        known = ["base", "kind", "kl", "strength", "planted", "taught", "first", "second"]
        first = rows.groupby("plant")[known].first().reindex(order["plant"])
        wide = wide.reindex(order).assign_coords(
            {name: ("plant", first[name].to_numpy(dtype=object if name in _TEXTS else float)) for name in known}
        )
        texts = {
            "auroc": ("chance that a planted component scores above another", "1"),
            "recall": ("share of the planted among the highest scores", "1"),
            "cost": ("processor time over that of a forward pass of both models", "1"),
            "drift_kl": ("KL(drifted || base) of the next token", "nats"),
        }
        for name, (text, units) in texts.items():
            wide[name].attrs = {"long_name": text, "units": units}
        return cls(wide)

    def behaving(self, yes: bool = True) -> PlantedBenchmark:
        """The plants that change behaviour by `ENOUGH`, or the others."""
        return PlantedBenchmark(self.dataset.isel(plant=(self.dataset["kl"].values >= ENOUGH) == yes))

    def of_kinds(self, kinds: Sequence[str]) -> PlantedBenchmark:
        """The plants of some kinds."""
        return PlantedBenchmark(self.dataset.isel(plant=np.isin(self.dataset["kind"].values, list(kinds))))

    def means(self, name: str = "auroc") -> xr.Dataset:
        """`mean`, `low` and `high` [method, ratio]: mean over plants with its 95 % bootstrap interval."""
        values = self.dataset[name].transpose("plant", "method", "ratio")
        cells = values.values.reshape(values.sizes["plant"], -1)
        found = np.array(interval(cells)).reshape(3, *values.shape[1:])
        rows = {key: (("method", "ratio"), each) for key, each in zip(("mean", "low", "high"), found, strict=True)}
        coords = {"method": values["method"].values, "ratio": values["ratio"].values}
        return xr.Dataset(rows, coords=coords, attrs={"plants": values.sizes["plant"], "of": name})

    def table(self, name: str = "auroc") -> pd.DataFrame:
        """One row a method, the best first (by its mean over all ratios), one column a ratio, and what it costs."""
        found = self.means(name)
        columns = {}
        for ratio in found["ratio"].values:
            cells = (found[key].sel(ratio=ratio).values for key in ("mean", "low", "high"))
            columns[column_name(ratio)] = [
                f"{mean:.2f}" + (f" [{low:.2f}, {high:.2f}]" if np.isfinite(low) else "")
                for mean, low, high in zip(*cells, strict=True)
            ]
        frame = pd.DataFrame(columns, index=pd.Index(found["method"].values, name="method"))
        frame["mean"] = [f"{value:.2f}" for value in found["mean"].mean("ratio").values]
        frame["cost"] = [f"{value:.1f}" for value in self.dataset["cost"].median("plant").values]
        order = np.argsort(-found["mean"].mean("ratio").values, kind="stable")
        return frame.iloc[order]

    def by_kind(self, name: str = "auroc") -> pd.DataFrame:
        """Mean over plants and over the ratios that have drift, one row a method, one column a kind."""
        data = self.dataset[name].sel(ratio=[r for r in self.dataset["ratio"].values if np.isfinite(r)])
        means = data.mean("ratio").groupby("kind").mean("plant").transpose("method", "kind")
        return means.to_pandas().round(2)


def column_name(ratio: float) -> str:
    """A ratio as a person reads it."""
    return f"{ratio:g}" if np.isfinite(ratio) else "no drift"
