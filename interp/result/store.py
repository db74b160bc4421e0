"""Results on disk: netCDF to come back to, Parquet for other tools."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
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

FORMAT = 2
FILE = "result.nc"
FILE_1 = "comparison.nc"
"""The file of format 1, which held comparisons only."""
SUMMARY = "summary.csv"
REPORT = "report.html"
TABLES = "tables.json"
FILES = (FILE, FILE_1, SUMMARY, REPORT)
"""Every file that a saved result may hold; `overwrite` touches a folder only if it holds no other."""

_JSON = "json_attributes"
"""Attribute that lists the attributes which netCDF has no type for, and which are kept as JSON."""


@dataclass(frozen=True)
class Stored:
    """What a file holds.

    Attributes:
        kind: which result it is.
        dataset: its arrays.
        runs: arrays of other runs: "control", "replicate".
        added: results that were added to it, by name.
    """

    kind: str
    dataset: xr.Dataset
    runs: Mapping[str, tuple[xr.Dataset, ...]] = field(default_factory=dict)
    added: Mapping[str, Stored] = field(default_factory=dict)


def owner(path: str | os.PathLike[str]) -> str:
    """The file by which a former result in a folder is recognised."""
    return FILE_1 if (Path(path) / FILE_1).is_file() and not (Path(path) / FILE).is_file() else FILE


def write(file: Path, stored: Stored) -> None:
    """Write one netCDF 4 file: the result at its root; other runs, and what was added, as groups."""
    memory = BytesIO()  # HDF5 takes the interpreter down when the disk fills up under it; Python does not
    for group, data in _groups(stored, ""):
        data.to_netcdf(memory, mode="a" if group else "w", group=group or None, engine="h5netcdf")
    file.write_bytes(memory.getvalue())


def _groups(stored: Stored, path: str) -> Iterator[tuple[str, xr.Dataset]]:
    counts = {name: len(runs) for name, runs in stored.runs.items()}
    attrs = {"kind": stored.kind, "runs": json.dumps(counts), "added_results": json.dumps(list(stored.added))}
    root = _writable(stored.dataset)
    yield path, root.assign_attrs({"format": FORMAT, **attrs})
    for name, runs in stored.runs.items():
        for index, run in enumerate(runs):
            yield f"{path}/{name}_{index}".strip("/"), _writable(run)
    for index, other in enumerate(stored.added.values()):
        yield from _groups(other, f"{path}/added_{index}".strip("/"))


def _writable(data: xr.Dataset) -> xr.Dataset:
    """The dataset with attributes that netCDF can hold."""
    other = {key: value for key, value in data.attrs.items() if not _is_plain(value)}
    if not other:
        return data
    texts = {key: json.dumps(value) for key, value in other.items()}
    return data.assign_attrs({**texts, _JSON: json.dumps(sorted(map(str, other)))})


def _is_plain(value: object) -> bool:
    return isinstance(value, (str, int, float, np.integer, np.floating)) and not isinstance(value, bool)


def read(path: str | os.PathLike[str]) -> Stored:
    """Read what `write` wrote, or what version 1 did, from the file or from its folder.

    Raises:
        FormatError: there is no result, it is damaged, or it comes from a newer version.
    """
    folder = Path(path).parent if Path(path).name in (FILE, FILE_1) else Path(path)
    file = folder / owner(folder)
    if not folder.is_dir():
        raise FormatError(f"there is no folder {str(folder)!r}; name one that save() or `interp compare --out` wrote")
    if not file.is_file():
        raise FormatError(f"{path} holds no {FILE}; name a folder that save() or `interp compare --out` wrote")
    try:
        data = _group(file, None)
        version = data.attrs.get("format")
        if version not in (1, FORMAT):
            raise FormatError(f"{file} has format {version}, this version reads 1 and {FORMAT}; update rlhf-interp")
        return _read_1(file, data) if version == 1 else _read_2(file, data, "")
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise FormatError(f"{file} is damaged ({str(error)[:100]}); make it again") from error


def _read_1(file: Path, data: xr.Dataset) -> Stored:
    lacking = [name for name in ("seed", "base", "tuned") if name not in data.attrs]
    lacking += [name for name in ("text", "group") if name not in data.coords]
    if lacking:
        raise FormatError(f"{file} is damaged (it has no {lacking[0]}); compare again")
    counts = {name: len(json.loads(data.attrs.get(f"{name}s", "[]"))) for name in ("control", "replicate")}
    return Stored("comparison", data, _runs(file, "", counts))


def _read_2(file: Path, data: xr.Dataset, path: str) -> Stored:
    kind, counts = data.attrs["kind"], json.loads(data.attrs["runs"])
    names = json.loads(data.attrs["added_results"])
    data = data.copy(deep=False)
    data.attrs = {
        key: value for key, value in data.attrs.items() if key not in ("format", "kind", "runs", "added_results")
    }
    added = {}
    for index, name in enumerate(names):
        group = f"{path}/added_{index}".strip("/")
        added[name] = _read_2(file, _group(file, group), group)
    return Stored(kind, data, _runs(file, path, counts), added)


def _runs(file: Path, path: str, counts: Mapping[str, int]) -> dict[str, tuple[xr.Dataset, ...]]:
    return {
        name: tuple(_group(file, f"{path}/{name}_{index}".strip("/")) for index in range(count))
        for name, count in counts.items()
    }


def _group(file: Path, group: str | None) -> xr.Dataset:
    with xr.open_dataset(file, engine="h5netcdf", group=group) as opened:
        data = opened.load()
    attrs = {str(key): value.item() if isinstance(value, np.generic) else value for key, value in data.attrs.items()}
    for name in json.loads(attrs.pop(_JSON, "[]")):
        attrs[name] = json.loads(attrs[name])
    data.attrs = attrs
    return data


def write_tables(
    path: str | os.PathLike[str], stored: Stored, summary: pd.DataFrame, *, overwrite: bool = False
) -> Path:
    """Write a folder of Parquet files, one long table for each array, whole or not at all.

    NAME.parquet has a column for each dim of the array, `run` ("tuned", "control_0", "replicate_0" ...) and `value`;
    rows without a value (NaN) are left out, and the array's description and units are in the file's metadata.
    prompts.parquet has the texts, summary.parquet the findings, tables.json the list of files; each result that was
    added has a folder of its own name.

    Raises:
        InterpError: the folder holds something else, or cannot be written.
    """
    with atomic_folder(path, owned_by=TABLES, overwrite=overwrite) as folder:
        _tables_into(folder, stored, summary)
    return Path(path)


def _tables_into(folder: Path, stored: Stored, summary: pd.DataFrame) -> None:
    data = stored.dataset
    labels = [str(name) for name in data.coords if data[name].dims == ("prompt",) and name != "prompt"]
    if "prompt" in data.dims:
        numbers = pd.DataFrame({"prompt": data["prompt"].values})
        prompts = data[labels].to_dataframe().reset_index() if labels else numbers
        prompts.to_parquet(folder / "prompts.parquet", index=False)
    _plain_columns(summary).to_parquet(folder / "summary.parquet", index=False)
    others = [(f"{name}_{index}", run) for name, runs in stored.runs.items() for index, run in enumerate(runs)]
    for name in map(str, data.data_vars):
        parts = [_long(name, run, values) for run, values in [("tuned", data), *others] if name in values]
        _write_table(folder / f"{name}.parquet", pd.concat(parts, ignore_index=True), data[name].attrs)
    files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    attrs = {str(key): value.item() if isinstance(value, np.generic) else value for key, value in data.attrs.items()}
    write_json(folder / TABLES, {"format": FORMAT, "kind": stored.kind, "files": files, "attributes": attrs})


def _plain_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame whose columns of mixed things are text, as Parquet wants one type a column."""
    mixed = [name for name in frame.columns if frame[name].map(type).nunique() > 1 and frame[name].dtype == object]
    return frame.assign(**{str(name): frame[name].map(str) for name in mixed})


def _long(name: str, run: str, data: xr.Dataset) -> pd.DataFrame:
    array = data[name]
    array = array.drop_vars([label for label in array.coords if label not in array.dims])
    clash = [dim for dim in array.dims if dim in ("value", "run")]
    array = array.rename({dim: f"{dim}_dim" for dim in clash})
    frame = (
        array.rename("value").to_dataframe().reset_index() if array.dims else pd.DataFrame({"value": [array.item()]})
    )
    frame.insert(0, "run", run)
    return frame.dropna(subset="value")


def _write_table(file: Path, frame: pd.DataFrame, attrs: Mapping[str, Any]) -> None:
    table = pyarrow.Table.from_pandas(frame, preserve_index=False)
    described = {key: str(attrs[key]) for key in ("long_name", "units") if key in attrs}
    pyarrow.parquet.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), **described}), file)
