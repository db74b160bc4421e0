"""Which weights moved: circuits of heads, MLPs, and the shape of each matrix's change."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import xarray as xr

from interp.summary.table import TOP, Row, Table


def circuits(table: Table) -> Iterator[Row]:
    """The heads and MLPs whose weights moved most."""
    for name, words in (("ov_change", "OV circuit"), ("qk_change", "QK circuit"), ("mlp_change", "MLP")):
        values = table.data[name].values.reshape(-1)

        def most(run: xr.Dataset, name: str = name) -> float:
            return float(run[name].max())

        def one(index: int, name: str = name) -> Callable[[xr.Dataset], float]:
            return lambda run: float(run[name].values.reshape(-1)[index])

        for index in np.argsort(-values, kind="stable")[:TOP]:
            if values[index] > 0:
                where = f"L{index}" if name == "mlp_change" else _head(table.data, int(index))
                yield table.plain("weights", f"{where}: relative change of its {words}", one(int(index)), most)
        if not (values > 0).any():
            yield table.plain("weights", f"no {words} changed", lambda _: 0.0, most)


def _head(data: xr.Dataset, index: int) -> str:
    heads = data.sizes["head"]
    return f"L{index // heads}H{index % heads}"


def ranks(table: Table) -> Iterator[Row]:
    """Of the matrices that moved most: the effective rank of the change, and whether it lies in base's directions."""
    data = table.data
    moved = np.where(np.isfinite(data["effective_rank"].values), data["param_change"].values, 0)
    for index in np.argsort(-moved, kind="stable")[:TOP]:
        if moved[index] == 0:
            continue
        overlap, full = float(data["singular_overlap"].values[index, 0]), int(data["full_rank"].values[index])
        what = f"of {full}; relative change {moved[index]:.2g}; {overlap:.0%} of its first direction in base's first 8"

        def rank(run: xr.Dataset, index: int = int(index)) -> float:
            return float(run["effective_rank"].values[index])

        name = data["param"].values[index]
        yield table.plain("weights", f"{name}: effective rank of its change ({what})", rank, rank)
