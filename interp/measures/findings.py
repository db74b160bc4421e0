"""The summary's rows: one finding each, with its interval, and what control runs and replicates give beside it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr

from interp.stats import interval, null_range, permutation_p, rank_p, selection_halves

COLUMNS = (
    "reading",
    "finding",
    "estimate",
    "estimate_low",
    "estimate_high",
    "control_low",
    "control_high",
    "units",
    "n",
    "groups",
    "rank_p",
    "replicate_low",
    "replicate_high",
    "permuted_low",
    "permuted_high",
    "permutation_p",
    "completeness",
)
TOP = 3
"""Findings of one kind that a reading shows."""

NONE = float("nan")

ByPrompt = Callable[[xr.Dataset], np.ndarray]
Row = dict[str, object]


@dataclass(frozen=True)
class Cells:
    """A map by prompt.

    Attributes:
        values: one number a prompt and cell.
        labels: what each cell is.
        absent: value of a cell that another run's map does not have.
    """

    values: np.ndarray
    labels: Sequence[Hashable]
    absent: float = NONE

    def column(self, label: Hashable) -> np.ndarray:
        """One cell's value at every prompt."""
        if label in self.labels:
            return np.asarray(self.values[:, list(self.labels).index(label)])
        return np.full(len(self.values), self.absent)


@dataclass(frozen=True)
class Table:
    """The comparison's own data, and those of control runs and replicates.

    Attributes:
        data: what `compare` computed.
        controls: the same for control runs.
        replicates: the same for other runs of the same recipe.
        seed: seed of the bootstrap.
    """

    data: xr.Dataset
    controls: Sequence[xr.Dataset]
    replicates: Sequence[xr.Dataset]
    seed: int

    @property
    def groups(self) -> np.ndarray:
        """Group of each prompt."""
        return np.asarray(self.data["group"].values)

    def row(
        self,
        reading: str,
        finding: str,
        values: ByPrompt,
        units: str,
        *,
        rows: np.ndarray | None = None,
        null: ByPrompt | None = None,
        of: Literal["change", "tuned", "base"] = "change",
        completeness: float = NONE,
    ) -> Row:
        """One finding whose unit is the prompt: its mean, interval, and the means of the other runs.

        Args:
            reading: the measure it comes from.
            finding: the finding in words.
            values: from a Dataset to one number a prompt.
            units: units of the numbers.
            rows: prompts that estimate it; None is all.
            null: what is taken of a control run, where it is not `values`.
            of: what it says something of: a change, which has a rank among control runs; tuned alone; or base alone,
                which all runs share.
            completeness: completeness error of an attribution.
        """
        wanted = slice(None) if rows is None else rows
        chosen = np.asarray(values(self.data), dtype=np.float64)[wanted]
        estimate, low, high = interval(chosen, self.groups[wanted], seed=self.seed)
        controls, replicates = ((), ()) if of == "base" else (self.controls, self.replicates)
        cells = {
            "estimate_low": low,
            "estimate_high": high,
            "n": int(np.isfinite(chosen).sum()),
            "groups": len(np.unique(self.groups[wanted][np.isfinite(chosen)])),
            "completeness": completeness,
        }
        return self._filled(
            (reading, finding, estimate, units),
            [_mean((null or values)(run)) for run in controls],
            [_mean(values(run)[wanted]) for run in replicates],
            ranked=of == "change",
            **cells,
        )

    def plain(
        self, reading: str, finding: str, value: Callable[[xr.Dataset], float], null: Callable[[xr.Dataset], float]
    ) -> Row:
        """One finding that no prompt went into: no interval, no unit.

        Args:
            reading: the measure it comes from.
            finding: the finding in words.
            value: from a Dataset to the number.
            null: what is taken of a control run.
        """
        return self._filled(
            (reading, finding, value(self.data), "1"),
            [null(run) for run in self.controls],
            [value(run) for run in self.replicates],
            n=0,
            groups=0,
        )

    def fitted(
        self,
        reading: str,
        finding: str,
        name: str,
        units: str,
        *,
        mean: str = "",
        permuted: str | None = None,
        bounds: bool = True,
        ranked: bool = True,
        **where: str,
    ) -> Row:
        """One finding that was estimated over all prompts together, with its interval and its null by permutation.

        Args:
            reading: the measure it comes from.
            finding: the finding in words.
            name: the variable; NAME_low and NAME_high are its interval.
            units: units of the number.
            mean: what the variable's name ends in, where that is not `name` itself.
            permuted: the variable of what permutations give.
            bounds: it has an interval.
            ranked: it is 0 where nothing changed, so that it has a rank among control runs.
            **where: labels of the one that is meant, where the variable has dims.
        """
        data = self.data
        estimate = _scalar(data, f"{name}{mean}", where)
        ends = [_interval_end(data, name, end, where) if bounds else NONE for end in ("low", "high")]
        drawn = data[permuted].values if permuted is not None else np.empty(0)
        real = len(drawn) > 0 and bool(np.isfinite(drawn).all())
        low, high = np.quantile(drawn, (0.025, 0.975)) if real else (NONE, NONE)
        return self._filled(
            (reading, finding, estimate, units),
            [_scalar(run, f"{name}{mean}", where) for run in self.controls],
            [_scalar(run, f"{name}{mean}", where) for run in self.replicates],
            ranked=ranked,
            estimate_low=ends[0],
            estimate_high=ends[1],
            n=data.sizes["prompt"],
            groups=len(np.unique(self.groups)),
            permuted_low=float(low),
            permuted_high=float(high),
            permutation_p=permutation_p(estimate, drawn),
        )

    def given(self, record: Mapping[Any, Any]) -> Row:
        """A finding that a join's own summary has already.

        Args:
            record: a row of it: `reading`, `finding`, `estimate`, `estimate_low`, `estimate_high`, `units`, `n`, and
                perhaps `null_low`, `null_high` and `p`.
        """
        names = {"null_low": "permuted_low", "null_high": "permuted_high", "p": "permutation_p"}
        names |= {"lower": "estimate_low", "upper": "estimate_high"}
        found = {names.get(str(key), str(key)): value for key, value in record.items()}
        found.setdefault("groups", found.get("n", 0))
        return {column: found.get(column, NONE) for column in COLUMNS}

    def _filled(
        self,
        head: tuple[str, str, float, str],
        nulls: list[float],
        replicates: list[float],
        *,
        ranked: bool = True,
        **cells: Any,
    ) -> Row:
        reading, finding, estimate, units = head
        ranges = (*null_range(nulls), rank_p(estimate, nulls) if ranked else NONE, *null_range(replicates))
        names = ("control_low", "control_high", "rank_p", "replicate_low", "replicate_high")
        given: Row = {"reading": reading, "finding": finding, "estimate": estimate, "units": units}
        found = given | dict(zip(names, ranges, strict=True)) | cells
        return {column: found.get(column, NONE) for column in COLUMNS}

    def largest(
        self,
        reading: str,
        name: Callable[[Any, np.ndarray], str],
        cells: Callable[[xr.Dataset], Cells],
        units: str,
        *,
        count: int = TOP,
        one_of: Callable[[Any], Hashable] | None = None,
        completeness: float = NONE,
    ) -> Iterator[Row]:
        """The cells of a map with the largest |mean| on the selecting prompts, estimated on the others.

        The null is a run's own largest cell: a maximum must be compared with a maximum. A replicate gives the same
        cell.

        Args:
            reading: the measure it comes from.
            name: from a cell's label and the estimating prompts to the finding in words.
            cells: from a Dataset to its map.
            units: units of the numbers.
            count: how many are shown.
            one_of: from a label to what may be shown once only; None: each cell is its own.
            completeness: completeness error of an attribution.
        """
        own = cells(self.data)
        select, rows = selection_halves(self.groups)

        def column(label: Hashable) -> ByPrompt:
            return lambda data: cells(data).column(label)

        def extreme(data: xr.Dataset) -> np.ndarray:
            values = cells(data).values
            return values[:, int(np.argmax(_sizes(values)))] if values.size else np.zeros(len(values))

        labels: dict[Hashable, Hashable] = {}
        for index in np.argsort(-_sizes(own.values[select]), kind="stable"):
            label = own.labels[index]
            labels.setdefault(one_of(label) if one_of else label, label)
        found = [
            self.row(
                reading, name(label, rows), column(label), units, rows=rows, null=extreme, completeness=completeness
            )
            for label in list(labels.values())[:count]
        ]
        yield from sorted(found, key=lambda row: -abs(float(str(row["estimate"]))))


def _sizes(values: np.ndarray) -> np.ndarray:
    """|mean| of each column over its finite values, 0 for a column without any."""
    real = np.isfinite(values)
    return np.asarray(np.abs(np.where(real, values, 0).sum(0)) / np.maximum(real.sum(0), 1))


def _scalar(data: xr.Dataset, name: str, where: Mapping[str, str]) -> float:
    """A single number; NaN where a run has none, as its responses did not allow it."""
    return float(data[name].sel(where)) if name in data else NONE


def _interval_end(data: xr.Dataset, name: str, end: str, where: Mapping[str, str]) -> float:
    """An end of the interval of a variable; version 1 wrote `_lower` and `_upper`."""
    ends = (f"{name}_{end}", f"{name}_{'lower' if end == 'low' else 'upper'}")
    return next((_scalar(data, each, where) for each in ends if each in data), NONE)


def _mean(values: np.ndarray) -> float:
    real = values[np.isfinite(values)]
    return float(real.mean()) if len(real) else NONE


def difference(name: str, **where: str) -> ByPrompt:
    """Tuned minus base of an array, as a function of the Dataset."""

    def values(data: xr.Dataset) -> np.ndarray:
        array = data[name].sel(where)
        return np.asarray((array.sel(model="tuned", drop=True) - array.sel(model="base", drop=True)).values)

    return values


def of_model(name: str, model: str) -> ByPrompt:
    """An array of one model, as a function of the Dataset."""
    return lambda data: np.asarray(data[name].sel(model=model).values)


Label = tuple[int, ...]


def same_or(names: xr.DataArray, otherwise: str) -> str:
    """The name if all prompts share it."""
    found = {str(name) for name in names.values}
    return repr(found.pop()) if len(found) == 1 else otherwise


def by_head(values: ByPrompt) -> Callable[[xr.Dataset], Cells]:
    """A map by layer and head (and more) as one row of cells a prompt, labelled by their indices."""

    def cells(data: xr.Dataset) -> Cells:
        array = values(data)
        return Cells(array.reshape(len(array), -1), list(np.ndindex(array.shape[1:])))

    return cells


def sites_of(data: xr.Dataset) -> list[str]:
    """Names of the sites."""
    return [str(site) for site in data["site"].values]


def at_sites(values: ByPrompt) -> Callable[[xr.Dataset], Cells]:
    """A map by site, labelled by the sites' names."""
    return lambda data: Cells(values(data), sites_of(data))


def parts_of(table: Table, name: str, label: Label, rows: np.ndarray) -> str:
    """The change of an attribution split into what is written and how it is read, in words."""
    sides = [table.data[f"{name}_{side}"].values for side in ("write", "readout")]
    write, readout = (float(side[(rows, *label)].mean()) for side in sides)
    return f"(write {write:+.3f}, readout {readout:+.3f})"


def completeness_of(table: Table, name: str = "completeness_error") -> float:
    """Mean |sum - logit difference| of an attribution, NaN where it was not measured."""
    return float(table.data[name].mean()) if name in table.data else float("nan")
