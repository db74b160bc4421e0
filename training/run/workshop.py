"""The folder that a run works in until its pair is whole: `NAME.unfinished`, beside the folder NAME that it becomes.

A run that is killed or stopped leaves it behind, and can be resumed from its first second on, when all it holds is the
recipe. One that ends by a fault leaves it where something was done, and removes it where nothing was. A lock, which the
system takes back from a killed process, keeps two runs apart.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from interp.errors import ConfigError, InterpError
from interp.io import check_new_folder, os_reason, publish_folder, read_json, write_json
from interp.pair import MANIFEST

LOCK, NOTES, STATE = "run.lock", "notes", "state"
RECIPE = "config.toml"


def unfinished(out: str | os.PathLike[str]) -> Path:
    """The folder that a run toward the pair `out` works in."""
    target = Path(out)
    return target.with_name(target.name + ".unfinished")


def worth_keeping(folder: Path) -> bool:
    """Whether an unfinished run holds a state to go on from, a stored checkpoint, figures, or a part that is done."""
    done = (file for file in (folder / NOTES).glob("*.json") if file.stem != "base")
    rows = (file for file in folder.glob("metrics.jsonl") if file.stat().st_size)
    return any(any(found) for found in (folder.rglob(STATE), (folder / "checkpoints").glob("step-*"), done, rows))


@contextlib.contextmanager
def workshop(out: str | os.PathLike[str], *, overwrite: bool, resume: bool) -> Iterator[Path]:
    """Yield the folder to work in; on success it becomes `out`.

    Args:
        out: the pair's folder.
        overwrite: replace an earlier pair, and an unfinished run.
        resume: go on in the folder of an unfinished run, which must be there.

    Raises:
        InterpError: `out` is taken, there is nothing to resume or something that was not asked for, another process
            works there, or the disk refuses.
    """
    target, folder = Path(out), unfinished(out)
    if resume and not folder.is_dir():
        state = "is finished" if (target / MANIFEST).is_file() else "does not exist"
        raise ConfigError(f"{target} {state}, so there is nothing to resume; leave out --resume")
    check_new_folder(target, owned_by=MANIFEST, overwrite=overwrite or resume)
    if folder.is_dir() and not resume and not overwrite and worth_keeping(folder):
        raise InterpError(
            f"{folder} holds a run that did not finish; go on with it (interp train --resume {target}), or start anew "
            "with overwrite (--overwrite)"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK, timeout=0):
            if not resume:
                _empty(folder)
            yield from _guarded(folder, target, began=resume)
    except Timeout as error:
        raise InterpError(f"another process works in {folder}; wait for it, or name a new folder") from error
    except OSError as error:
        raise InterpError(f"cannot write {folder}: {os_reason(error)}") from error


def _guarded(folder: Path, target: Path, *, began: bool) -> Iterator[Path]:
    """The folder to work in; it becomes `target`, or goes where a fault ended a new run before anything was done.

    Ctrl-C and SIGTERM are no faults: the folder stays.
    """
    try:
        yield folder
    except Exception as error:
        if not worth_keeping(folder):
            if not began:
                shutil.rmtree(folder, ignore_errors=True)
        elif isinstance(error, InterpError):
            kept = f"what was done is kept in {folder} (--resume goes on by the same recipe, --overwrite starts anew)"
            raise type(error)(f"{error}; {kept}") from error
        raise
    publish_folder(folder, target)


def finish(folder: Path) -> None:
    """Remove what serves the run only, so that what is left is the pair."""
    for state in list(folder.rglob(STATE)):
        shutil.rmtree(state)
    shutil.rmtree(folder / NOTES, ignore_errors=True)
    (folder / LOCK).unlink(missing_ok=True)  # the lock stays with the open file


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def note(folder: Path, name: str) -> Any:
    """What was noted when the part `name` of the run was done; None where it is not."""
    file = folder / NOTES / f"{name}.json"
    return read_json(file) if file.is_file() else None


def write_note(folder: Path, name: str, value: Mapping[str, Any]) -> None:
    """Note that the part `name` is done, with what the rest of the run needs to know of it."""
    (folder / NOTES).mkdir(exist_ok=True)
    write_json(folder / NOTES / f"{name}.json", value)
