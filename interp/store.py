"""Comparisons on disk: netCDF to come back to, Parquet for other tools."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import xarray as xr

from interp.errors import FormatError
from interp.io import atomic_folder, write_json

FORMAT = 1
FILE = "comparison.nc"
TABLES = "tables.json"

Runs = Mapping[str, Sequence[xr.Dataset]]
"""Datasets beside the comparison's own, by what they are: "control" and "replicate"."""


def write(file: Path, data: xr.Dataset, runs: Runs) -> None:
    """Write one netCDF 4 file: the comparison at its root, the other runs as groups `control_0`, `replicate_0` ..."""
    memory = BytesIO()  # HDF5 takes the interpreter down when the disk fills up under it; Python does not
    data.to_netcdf(memory, mode="w", engine="h5netcdf")
    for group, each in _named(runs):
        each.to_netcdf(memory, mode="a", group=group, engine="h5netcdf")
    file.write_bytes(memory.getvalue())


def _named(runs: Runs) -> Iterator[tuple[str, xr.Dataset]]:
    return ((f"{name}_{index}", each) for name, several in runs.items() for index, each in enumerate(several))


def read(path: str | os.PathLike[str]) -> tuple[xr.Dataset, dict[str, tuple[xr.Dataset, ...]]]:
    """Read what `write` wrote, from the file or from its folder.

    Raises:
        FormatError: there is no comparison, it is damaged, or it comes from a newer version.
    """
    file = Path(path).parent / FILE if Path(path).name == FILE else Path(path) / FILE
    if not file.is_file():
        raise FormatError(f"{path} holds no {FILE}; name a folder that `interp compare --out` or save() wrote")
    try:
        data = _group(file, None)
        found = data.attrs.get("format")
        if found != FORMAT:
            raise FormatError(f"{file} has format {found}, this version reads {FORMAT}; update rlhf-interp")
        lacking = [name for name in ("seed", "base", "tuned") if name not in data.attrs]
        lacking += [name for name in ("text", "group") if name not in data.coords]
        if lacking:
            raise FormatError(f"{file} is damaged (it has no {lacking[0]}); compare again")
        counts = {name: len(json.loads(data.attrs.get(f"{name}s", "[]"))) for name in ("control", "replicate")}
        runs = {
            name: tuple(_group(file, f"{name}_{index}") for index in range(count)) for name, count in counts.items()
        }
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise FormatError(f"{file} is damaged ({str(error)[:100]}); compare again") from error
    return data, runs


def _group(file: Path, group: str | None) -> xr.Dataset:
    with xr.open_dataset(file, engine="h5netcdf", group=group) as opened:
        data = opened.load()
    data.attrs = {key: value.item() if isinstance(value, np.generic) else value for key, value in data.attrs.items()}
    return data


def write_tables(
    path: str | os.PathLike[str], data: xr.Dataset, runs: Runs, summary: pd.DataFrame, *, overwrite: bool = False
) -> Path:
    """Write a folder of Parquet files, one long table for each array, whole or not at all.

    NAME.parquet has a column for each dim of the array, `run` ("tuned", "control_0", "replicate_0" ...) and `value`;
    rows without a value (NaN) are left out, and the array's description and units are in the file's metadata.
    prompts.parquet has the texts, summary.parquet the findings, tables.json the list of files.

    Raises:
        InterpError: the folder holds something else, or cannot be written.
    """
    with atomic_folder(path, owned_by=TABLES, overwrite=overwrite) as folder:
        labels = [str(name) for name in data.coords if data[name].dims == ("prompt",) and name != "prompt"]
        prompts = data[labels].to_dataframe().reset_index() if labels else pd.DataFrame({"prompt": data["prompt"]})
        prompts.to_parquet(folder / "prompts.parquet", index=False)
        summary.to_parquet(folder / "summary.parquet", index=False)
        datasets = [("tuned", data), *_named(runs)]
        for name in map(str, data.data_vars):
            parts = [_long(name, run, each) for run, each in datasets if name in each]
            _write_table(folder / f"{name}.parquet", pd.concat(parts, ignore_index=True), data[name].attrs)
        files = sorted(file.name for file in folder.iterdir())
        write_json(folder / TABLES, {"format": FORMAT, "files": files, "attributes": _plain(data.attrs)})
    return Path(path)


def _long(name: str, run: str, data: xr.Dataset) -> pd.DataFrame:
    array = data[name]
    array = array.drop_vars([label for label in array.coords if label not in array.dims])
    frame = (
        array.rename("value").to_dataframe().reset_index() if array.dims else pd.DataFrame({"value": [array.item()]})
    )
    frame.insert(0, "run", run)
    return frame.dropna(subset="value")


def _write_table(file: Path, frame: pd.DataFrame, attrs: Mapping[str, Any]) -> None:
    table = pyarrow.Table.from_pandas(frame, preserve_index=False)
    own = {key: str(attrs[key]) for key in ("long_name", "units") if key in attrs}
    pyarrow.parquet.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), **own}), file)


def _plain(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(key): value.item() if isinstance(value, np.generic) else value for key, value in attrs.items()}
