"""Files and folders that are either whole or absent, and content hashes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from interp.errors import FormatError, InterpError


def os_reason(error: OSError) -> str:
    """The operating system's reason in words a person can act on."""
    if error.errno == errno.ENOSPC:
        return "the disk is full; free some space and run the command again"
    return error.strerror or str(error)


def _own_prefix(target: Path) -> str:
    """How the temporary files of this process beside `target` begin: who they belong to can be told from their name."""
    return f".{target.name}.{socket.gethostname()}-{os.getpid()}."


def sweep(target: Path) -> None:
    """Remove what a process that was killed while it wrote `target` has left beside it.

    A killed process removes nothing itself. Files of processes that run, or ran on another machine, are left alone. An
    earlier result that had been moved aside comes back where nothing took its place.
    """
    start, end = f".{target.name}.{socket.gethostname()}-", (".tmp", ".old")
    for path in target.parent.iterdir() if target.parent.is_dir() else ():
        owner = path.name.removeprefix(start).partition(".")[0]
        if not path.name.startswith(start) or not path.name.endswith(end) or not owner.isdigit() or _runs(int(owner)):
            continue
        if path.suffix == ".old" and (path / target.name).exists() and not target.exists():
            os.replace(path / target.name, target)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    if os.name != "posix":  # signal 0 asks nothing elsewhere, it ends the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it belongs to somebody else, or cannot be one
        return True
    return True


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it becomes `path` on success and is removed on failure.

    Raises:
        InterpError: the folder cannot be written or the disk is full.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target)
        handle, name = tempfile.mkstemp(prefix=_own_prefix(target), suffix=".tmp", dir=target.parent)
    except OSError as error:
        raise InterpError(f"cannot write {target}: {os_reason(error)}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, target)
    except OSError as error:
        raise InterpError(f"cannot write {target}: {os_reason(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write `text` as UTF-8 to `path`, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Write `value` as indented JSON to `path`, atomically; keys keep their order."""
    return write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        FormatError: it is absent or no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise FormatError(f"cannot read {path}: {os_reason(error)}") from error
    except ValueError as error:
        raise FormatError(f"{path} is not JSON ({error}); was it cut off while copying?") from error


def check_new_folder(
    path: str | os.PathLike[str], *, owned_by: str, own: Collection[str] | None = None, overwrite: bool = False
) -> Path:
    """Refuse a target folder before any work is done, rather than after.

    An absent or empty folder passes. A folder that holds the file `owned_by` is a former result and passes with
    `overwrite` if it holds nothing else than a result does; anything else is somebody's own and never passes.

    Args:
        path: the folder to make.
        owned_by: name of the file by which a former result is recognised.
        own: every file that a result may hold; None: those that `owned_by`, a JSON manifest, lists under `files`.
        overwrite: whether a former result may be replaced.

    Raises:
        InterpError: with the remedy.
    """
    target = Path(path)
    if not target.name or target.name == "..":
        raise InterpError(f"{path} is the folder you are in; name a new folder")
    if target.is_dir() and any(target.iterdir()):
        if not (target / owned_by).is_file():
            raise InterpError(f"{target} holds other files; name a new folder, nothing there was touched")
        if not overwrite:
            raise InterpError(f"{target} already holds a result; name a new folder or pass overwrite (--overwrite)")
        known = {owned_by, *(read_json(target / owned_by).get("files", ()) if own is None else own)}
        there = (path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())
        foreign = sorted(set(there) - known)
        if foreign:
            raise InterpError(f"{target} also holds {foreign[0]}, no part of a result; move it, or name a new folder")
    elif target.exists() and not target.is_dir():
        raise InterpError(f"{target} is a file; name a folder")
    return target


@contextlib.contextmanager
def atomic_folder(
    path: str | os.PathLike[str], *, owned_by: str, own: Collection[str] | None = None, overwrite: bool = False
) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it becomes `path` on success and is removed on failure.

    Args:
        path: the folder to make.
        owned_by: name of the file by which an earlier result is recognised (see `check_new_folder`).
        own: every file that a result may hold (see `check_new_folder`).
        overwrite: replace an earlier result.

    Raises:
        InterpError: the folder holds something else, cannot be written, or the disk is full.
    """
    sweep(Path(path))
    target = check_new_folder(path, owned_by=owned_by, own=own, overwrite=overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=_own_prefix(target), suffix=".tmp", dir=target.parent))
    except OSError as error:
        raise InterpError(f"cannot write {target}: {os_reason(error)}") from error
    try:
        yield temporary
        publish_folder(temporary, target)
    except OSError as error:
        raise InterpError(f"cannot write {target}: {os_reason(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish_folder(folder: Path, target: Path) -> None:
    """Move a finished folder to `target`, where an earlier result may lie, with the permissions the umask allows."""
    _ordinary_permissions(folder)
    _swap(folder, target)


def _ordinary_permissions(folder: Path) -> None:
    """What the umask allows: temporary folders and files written by safetensors are closed to everyone else."""
    umask = os.umask(0)
    os.umask(umask)
    folder.chmod(0o777 & ~umask)
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def _swap(temporary: Path, target: Path) -> None:
    """Move `temporary` to `target`; an earlier result is moved aside first and removed last."""
    if not target.exists():
        os.replace(temporary, target)
        return
    aside = Path(tempfile.mkdtemp(prefix=_own_prefix(target), suffix=".old", dir=target.parent))
    os.replace(target, aside / target.name)
    try:
        os.replace(temporary, target)
    except OSError:
        os.replace(aside / target.name, target)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def hash_folder(path: str | os.PathLike[str]) -> dict[str, str]:
    """SHA-256 of every file under `path`, by its relative POSIX path, in sorted order."""
    root = Path(path)
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {p.relative_to(root).as_posix(): sha256(p) for p in files}
