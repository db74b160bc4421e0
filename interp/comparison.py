"""The Comparison that compare() returns: a thin frozen face over an xarray Dataset."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import xarray as xr

from interp import store
from interp.errors import MeasureError
from interp.io import atomic_folder
from interp.measures.summary import summarise
from interp.plot import Plots
from interp.report import write as write_report
from interp.reward.implicit import ImplicitReward
from interp.reward.joining import implicit_reward_of, token_join_of
from interp.reward.optimisation import OverOptimisation
from interp.reward.over_training import over_optimisation_of, probes_of
from interp.reward.probing import Probes
from interp.reward.tokens import TokenJoin
from interp.store import FILE
from interp.text import columns_text, headline, text_rows
from interp.text import notes as notes_on

SUMMARY = "summary.csv"
REPORT = "report.html"
OWN = (FILE, SUMMARY, REPORT)
"""Every file that a saved comparison may hold; `overwrite` touches a folder only if it holds no other."""


@dataclass(frozen=True)
class Comparison:
    """What a tuning changed, as labelled arrays.

    `cmp["logit_diff"]` is an `xarray.DataArray`; `cmp.summary()` the table to read first; `cmp.plot.lens()` a figure;
    `cmp.report("report.html")` a page; `cmp.save("out")` and `Comparison.load("out")` keep it.

    Attributes:
        dataset: every array, with units and a description in its attrs.
        controls: the same arrays of base against each null run.
        replicates: the same arrays of base against each run of the same recipe with another seed.
    """

    dataset: xr.Dataset
    controls: tuple[xr.Dataset, ...] = ()
    replicates: tuple[xr.Dataset, ...] = ()

    def __getitem__(self, name: str) -> xr.DataArray:
        """The array `name`.

        Raises:
            MeasureError: there is none; the message lists those there are.
        """
        try:
            return self.dataset[name]
        except KeyError:
            names = ", ".join(sorted(map(str, self.dataset.data_vars)))
            raise MeasureError(f"this comparison holds no {name!r}; it holds {names}") from None

    def __contains__(self, name: object) -> bool:
        return name in self.dataset.data_vars or name in self.dataset.coords

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def keys(self) -> list[str]:
        """Names of the arrays."""
        return list(map(str, self.dataset.data_vars))

    def __repr__(self) -> str:
        frame = self.summary()
        notes = notes_on(frame, self.dataset)
        return "\n".join([headline(self.dataset), columns_text(text_rows(frame)), *notes])

    def summary(self) -> pd.DataFrame:
        """The findings of every reading, largest first (see `interp.measures.summary.summarise`)."""
        return summarise(self.dataset, self.controls, self.replicates, seed=int(self.dataset.attrs["seed"]))

    @property
    def implicit_reward(self) -> ImplicitReward:
        """The policy's shift beside the reward that it was tuned toward (see `interp.reward.implicit_reward`).

        Raises:
            MeasureError: it was not taken, or left out; the message says why.
        """
        return implicit_reward_of(self.dataset)

    @property
    def token_join(self) -> TokenJoin:
        """The reward's attribution beside what the tokens moved (see `interp.reward.token_join`).

        Raises:
            MeasureError: it was not taken, or left out; the message says why.
        """
        return token_join_of(self.dataset)

    @property
    def over_optimisation(self) -> OverOptimisation:
        """The reward against the distance from base over the training (see `interp.reward.over_optimisation`).

        Raises:
            MeasureError: it was not taken, or left out; the message says why.
        """
        return over_optimisation_of(self.dataset)

    @property
    def probes(self) -> Probes:
        """When a high reward could be read from policy and reward model (see `interp.reward.probes`).

        Raises:
            MeasureError: it was not taken, or left out; the message says why.
        """
        return probes_of(self.dataset)

    @property
    def plot(self) -> Plots:
        """Figures: `cmp.plot.lens()`, `.attribution()`, `.heads()` ... (see `interp.plot`)."""
        return Plots(self)

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Write one self-contained HTML page to `path`, atomically.

        Raises:
            InterpError: it cannot be written.
        """
        return write_report(self, path)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the folder `path`: comparison.nc (netCDF 4, other runs as groups) and summary.csv, whole or not at all.

        Args:
            path: a new folder.
            overwrite: replace an earlier comparison there.

        Raises:
            InterpError: the folder holds something, or cannot be written.
        """
        with atomic_folder(path, owned_by=FILE, own=OWN, overwrite=overwrite) as folder:
            self.write_into(folder)
        return Path(path)

    def write_into(self, folder: Path) -> None:
        """Write the files of `save` into an existing folder."""
        store.write(folder / FILE, self.dataset, self._runs)
        (folder / SUMMARY).write_text(self.summary().to_csv(index=False), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Comparison:
        """Read what `save` wrote.

        Raises:
            FormatError: there is no comparison, it is damaged, or it comes from a newer version.
        """
        data, runs = store.read(path)
        return cls(data, runs["control"], runs["replicate"])

    def to_parquet(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the folder `path` of Parquet files, a long table for each array (see `interp.store.write_tables`).

        Args:
            path: a new folder.
            overwrite: replace what an earlier call wrote there.

        Raises:
            InterpError: the folder holds something else, or cannot be written.
        """
        return store.write_tables(path, self.dataset, self._runs, self.summary(), overwrite=overwrite)

    @property
    def _runs(self) -> store.Runs:
        return {"control": self.controls, "replicate": self.replicates}
