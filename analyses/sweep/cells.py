"""Cells: units of work that are functions of keyed inputs, each on disk as soon as it is done."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from interp import __version__
from interp.errors import FormatError, InterpError
from interp.io import atomic_folder, hash_folder, read_json, sha256, write_json

RECORD = "cell.json"
UNREAD = ("card.json", "config.toml")
"""Files in a model's folder that say where it comes from, and change nothing."""

VERSIONS = ("torch", "transformers", "tokenizers", "numpy", "scipy")


@dataclass(frozen=True)
class Cell:
    """One unit of work.

    Attributes:
        name: of its folder; no two cells of a sweep share one.
        kind: what is computed.
        pair: name of the pair that it is about, or empty.
        inputs: everything that decides its content, as JSON; files by their hash.
        how: what says where things lie, and decides nothing.
    """

    name: str
    kind: str
    pair: str
    inputs: Mapping[str, Any]
    how: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """SHA-256 of kind, inputs and versions."""
        text = json.dumps({"kind": self.kind, "inputs": self.inputs, "versions": versions()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def versions() -> dict[str, str]:
    """Versions of what computes the cells."""
    return {"rlhf-interp": __version__} | {name: metadata.version(name) for name in VERSIONS}


@functools.lru_cache(maxsize=512)
def _hash_of(path: str, _: tuple[int, int]) -> str:
    return sha256(path)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, read once for as long as it does not change."""
    stat = path.stat()
    return _hash_of(str(path.resolve()), (stat.st_mtime_ns, stat.st_size))


def model_hash(source: str) -> dict[str, str]:
    """What a model is: the hashes of its folder's own files, or its id."""
    folder = Path(source)
    if not folder.is_dir():
        return {"id": source}
    return {
        path.name: file_hash(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name not in UNREAD
    }


@dataclass(frozen=True)
class Store:
    """The folder of a sweep: `cells/NAME/` for each finished cell, `failed/NAME.json` for each failed one."""

    root: Path

    def folder(self, cell: Cell) -> Path:
        """Where a finished cell lies."""
        return self.root / "cells" / cell.name

    def record(self, cell: Cell) -> dict[str, Any] | None:
        """What is on record of a finished cell of the same key, or None."""
        with suppress(FormatError):
            found = read_json(self.folder(cell) / RECORD)
            if isinstance(found, dict) and found.get("key") == cell.key:
                return found
        return None

    def failure(self, cell: Cell) -> dict[str, Any] | None:
        """The error of a cell that failed with the same key, or None."""
        with suppress(FormatError):
            found = read_json(self.root / "failed" / f"{cell.name}.json")
            if isinstance(found, dict) and found.get("key") == cell.key:
                return found
        return None

    def state(self, cell: Cell) -> str:
        """Whether it is done, failed or waiting."""
        if self.record(cell) is not None:
            return "done"
        return "failed" if self.failure(cell) is not None else "waiting"

    def finish(self, cell: Cell, write: Any, seconds: float) -> None:
        """Write a cell's folder, whole or not at all.

        Args:
            cell: the cell.
            write: called with the folder, to put the content there.
            seconds: what computing took.
        """
        target, start = self.folder(cell), time.process_time()
        if target.exists() and self.record(cell) is None:
            shutil.rmtree(target)  # of other inputs
        with atomic_folder(target, owned_by=RECORD) as folder:
            write(folder)
            spent = seconds + time.process_time() - start
            record = {"key": cell.key, "kind": cell.kind, "pair": cell.pair, "cpu_seconds": round(spent, 3)}
            write_json(folder / RECORD, {**record, "inputs": cell.inputs, "files": hash_folder(folder)})
        (self.root / "failed" / f"{cell.name}.json").unlink(missing_ok=True)

    def fail(self, cell: Cell, error: BaseException, trace: str) -> None:
        """Record that a cell failed, and with what."""
        said = str(error) if isinstance(error, InterpError) else f"{type(error).__name__}: {error}"
        record = {"key": cell.key, "kind": cell.kind, "pair": cell.pair, "error": said, "trace": trace}
        write_json(self.root / "failed" / f"{cell.name}.json", record)
