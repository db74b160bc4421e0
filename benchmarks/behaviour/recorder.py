"""Runs the cases with the checkout that stands first on sys.path, and writes what they give.

python recorder.py CODE OUT PATTERN
"""

from __future__ import annotations

import fnmatch
import json
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
import xarray as xr

OUTSIDE = (
    "sets", "vector", "graph", "scores", "circuits", "circuit", "verdict", "at_odds", "pairs", "swaps", "about",
    "value", "low", "high", "clean", "corrupted", "effect", "held", "features",
    "neutral", "unconverged", "reason", "edges",
)  # fmt: skip
"""What version 1's results held beside their dataset."""

TABLES = ("summary", "course", "by_step", "components", "patching", "changes")
"""Methods of results that give a table."""

PLACES: list[str] = []
"""Folders that texts may name, and that differ from recording to recording."""


def main(code: str, out: str, pattern: str) -> int:
    import interp

    if not Path(interp.__file__).is_relative_to(code):
        raise SystemExit(f"interp was imported from {interp.__file__}, not from {code}")
    import adapter
    import cases

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    log: dict[str, Any] = {"api": "new" if adapter.NEW else "old", "cases": {}}
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        PLACES[:] = [temporary, code]
        transformers.logging.disable_progress_bar()
        for name, case in cases.all_cases(Path(temporary), Path(interp.__file__).parent / "data" / "demo"):
            if fnmatch.fnmatchcase(name, pattern):
                log["cases"][name] = run(case, folder / f"{name}.npz")
                print(f"{name:40} {log['cases'][name]['seconds']:6.1f} s  {log['cases'][name].get('error', '')}")
    log["seconds"] = time.perf_counter() - begin
    (folder / "log.json").write_text(json.dumps(log, indent=1))
    failed = sum("error" in about for about in log["cases"].values())
    print(f"{len(log['cases'])} cases, {failed} of them stopped, {log['seconds']:.0f} s")
    return 0


def run(case: Any, file: Path) -> dict[str, Any]:
    """One case: its arrays in a file, and what is to be said of it."""
    begin = time.perf_counter()
    dims: dict[str, list[str]] = {}
    about: dict[str, Any] = {"dims": dims}
    try:
        arrays = dict(flat("", case(), dims))
        np.savez_compressed(file, **arrays)
    except Exception as error:  # a case that stops is recorded by name, and the others go on
        about["error"] = f"{type(error).__name__}: {str(error)[:300]}"
        about["traceback"] = traceback.format_exc()
    about["seconds"] = round(time.perf_counter() - begin, 2)
    return about


def flat(prefix: str, value: Any, dims: dict[str, list[str]]) -> Iterator[tuple[str, np.ndarray]]:
    """Everything in a result as named arrays."""
    if value is None:
        return
    if isinstance(value, xr.Dataset):
        for name in [*value.data_vars, *value.coords]:
            dims[f"{prefix}{name}"] = [str(dim) for dim in value[name].dims]
            yield f"{prefix}{name}", plain(value[name].values)
        for name, attribute in value.attrs.items():
            if isinstance(attribute, (int, float, np.generic)) and not isinstance(attribute, np.str_):
                yield f"{prefix}attrs/{name}", plain(attribute)
    elif isinstance(value, xr.DataArray):
        dims[prefix.rstrip("/")] = [str(dim) for dim in value.dims]
        yield prefix.rstrip("/"), plain(value.values)
    elif isinstance(value, pd.DataFrame):
        table = value if isinstance(value.index, pd.RangeIndex) else value.reset_index()
        for name in table.columns:
            yield f"{prefix}{name}", plain(table[name].to_numpy())
    elif hasattr(value, "dataset") and hasattr(value, "items"):  # several comparisons, a dict in version 1
        yield from flat(prefix, dict(value.items()), dims)
    elif hasattr(value, "dataset") or is_outside_result(value):
        yield from of_result(prefix, value, dims)
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield from flat(f"{prefix}{name}/" if name else prefix, each, dims)
    elif isinstance(value, (list, tuple)) and any(map(is_structured, value)):
        for index, each in enumerate(value):
            yield from flat(f"{prefix}{index}/", each, dims)
    else:
        yield prefix.rstrip("/") or "value", plain(value)


def is_outside_result(value: Any) -> bool:
    """Whether it is an object of the library that is no array: a circuit, a graph, an estimate ..."""
    return type(value).__module__.startswith("interp.") and not isinstance(value, (str, tuple))


def is_structured(value: Any) -> bool:
    return isinstance(value, (xr.Dataset, xr.DataArray, pd.DataFrame, np.ndarray, Mapping)) or is_outside_result(value)


def of_result(prefix: str, value: Any, dims: dict[str, list[str]]) -> Iterator[tuple[str, np.ndarray]]:
    kind = type(value).__name__
    if kind in ("Intervention", "Target", "Site"):
        yield prefix.rstrip("/"), plain(str(value))
        return
    if kind == "Graph":
        yield f"{prefix}edges", plain(value.edges)
        yield f"{prefix}nodes", plain(list(value.nodes))
        yield f"{prefix}destinations", plain(list(value.destinations))
        return
    if kind == "Circuit":
        yield f"{prefix}edges", plain(value.edges)
        return
    if hasattr(value, "dataset"):
        yield from flat(f"{prefix}", value.dataset, dims)
        for name in ("controls", "replicates"):
            for index, each in enumerate(getattr(value, name, ())):
                yield from flat(f"{prefix}{name}/{index}/", each, dims)
        for name in TABLES:
            table = getattr(value, name, None)
            if callable(table):
                yield from of_table(f"{prefix}{name}/", table, dims)
    for name in OUTSIDE:
        if name in ("effect", "held", "features") and not hasattr(type(value), name):
            continue
        held = getattr(value, name, None)
        if held is not None and not callable(held):
            yield from flat(f"{prefix}outside/{name}/", held, dims)


def of_table(prefix: str, table: Any, dims: dict[str, list[str]]) -> Iterator[tuple[str, np.ndarray]]:
    try:
        frame = table()
    except Exception as error:  # the result is recorded all the same
        yield f"{prefix}error", plain(f"{type(error).__name__}: {error}")
        return
    yield from flat(prefix, frame, dims)


def plain(value: Any) -> np.ndarray:
    """A value as an array of numbers or texts, without objects."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    array = np.asarray(value)
    if array.dtype.kind not in "OTSU":
        return array
    items = array.ravel().tolist()
    if all(item is None or isinstance(item, (int, float, bool)) for item in items):
        numbers = [np.nan if item is None else float(item) for item in items]
        return np.array(numbers, dtype=np.float64).reshape(array.shape)
    return np.array([without_places(str(item)) for item in items], dtype=np.str_).reshape(array.shape)


def without_places(text: str) -> str:
    """A text without the folders in which this recording lies."""
    for place in PLACES:
        text = text.replace(place, "")
    return text


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
