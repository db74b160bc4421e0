"""Where the paths of a recipe lead.

A path in a recipe is relative to the recipe's own file, one given with `--set` or in Python to the working directory.
They are made absolute when the recipe is read, so that what is on record is found from anywhere. `${NAME}` and `~` are
kept as written, and expanded where they are used, so that a recipe can be used on another machine; only `${PWD}`, the
working directory, is put in at once, and `${PAIR}` is the folder of the pair itself.
"""

from __future__ import annotations

import dataclasses
import os
import re
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from interp.errors import ConfigError
from training.recipes import is_shipped

FILE, SOURCE, FUNCTION, RECIPE = "file", "source", "function", "recipe"
"""Kinds of places: a file or folder; a folder or else a hub id; package.module:name; a file or a shipped recipe."""

DATA = "INTERP_DATA"
"""The environment variable with the folder of the data that the shipped recipes read."""


def expand(text: str, *, pair: str | os.PathLike[str] | None = None) -> str:
    """Replace every `${NAME}` by the environment variable, and a leading `~` by the home folder.

    Args:
        text: a path, or a hub id.
        pair: the pair's own folder, which `${PAIR}` stands for.

    Raises:
        ConfigError: a variable is not set.
    """

    def value(match: re.Match[str]) -> str:
        if match[1] == "PAIR" and pair is not None:
            return os.fspath(pair)
        if match[1] == DATA and not os.environ.get(DATA):
            inside = text.partition("${" + DATA + "}/")[2]
            raise ConfigError(
                f"the recipe's data are no part of the package, and {DATA} does not say where they are; export "
                f"{DATA}=FOLDER, the folder that holds {inside or 'them'}"
            )
        if match[1] not in os.environ:
            raise ConfigError(f"the environment variable {match[1]} in {text!r} is not set; export {match[1]}=...")
        return os.environ[match[1]]

    return os.path.expanduser(re.sub(r"\$\{(\w+)\}", value, text))


def anchored(section: type, values: Any, folder: str | os.PathLike[str]) -> Any:
    """The nested mappings of a recipe, or of a section of it, with absolute paths in place of relative ones.

    Args:
        section: the dataclass that the mappings will become; its settings say which of them are places.
        values: the mappings; what does not fit the dataclass is left as it is.
        folder: what relative paths are relative to.
    """
    home = Path(folder).absolute()
    return changed(section, values, lambda text, kind: _anchor(text, kind, home))


def changed(section: type, values: Any, change: Callable[[str, str], str]) -> Any:
    """The mappings with `change(text, kind)` in place of the text of every place."""
    if not isinstance(values, Mapping):
        return values
    hints = typing.get_type_hints(section)
    kinds = {field.name: field.metadata.get("place") for field in dataclasses.fields(section)}

    def one(key: str, value: Any) -> Any:
        kind = kinds.get(key)
        return _changed_sections(value, hints.get(key), change) if kind is None else _changed_texts(value, kind, change)

    return {key: one(key, value) for key, value in values.items()}


def _changed_texts(value: Any, kind: str, change: Callable[[str, str], str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _changed_texts(item, kind, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_changed_texts(item, kind, change) for item in value]
    return change(value, kind) if isinstance(value, str) else value


def _changed_sections(value: Any, hint: Any, change: Callable[[str, str], str]) -> Any:
    if isinstance(hint, types.UnionType):
        hint = next(kind for kind in typing.get_args(hint) if kind is not types.NoneType)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return changed(hint, value, change)
    inner = typing.get_args(hint)[-1:]
    if inner and isinstance(inner[0], type) and dataclasses.is_dataclass(inner[0]) and isinstance(value, Mapping):
        return {key: changed(inner[0], item, change) for key, item in value.items()}
    return value


def _anchor(text: str, kind: str, home: Path) -> str:
    text = text.replace("${PWD}", os.getcwd())
    if kind == FUNCTION:
        return _anchor_function(text, home)
    if not text.strip() or text.startswith(("${", "~")) or os.path.isabs(text):
        return text
    if kind == RECIPE and is_shipped(text):
        return text
    path = _joined(home, text)
    no_id = text.startswith(".") or text.count("/") > 1
    return path if kind != SOURCE or no_id or os.path.isdir(path) else text


def _joined(home: Path, text: str) -> str:
    """The absolute path without `..`, which leads elsewhere where a folder is a link; the last part stays as named."""
    path = home / text
    return str(path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name)


def _anchor_function(text: str, home: Path) -> str:
    """`module:name` with the module's folder before it, where its file lies in that folder: FOLDER/module:name."""
    module, colon, name = text.rpartition(":")
    folder, dotted = os.path.split(module)
    if folder:
        written = folder.startswith(("${", "~")) or os.path.isabs(folder)
        return text if written else f"{_joined(home, folder)}/{dotted}:{name}"
    file = home.joinpath(*dotted.split(".")) if dotted else home
    there = file != home and (file.with_name(file.name + ".py").is_file() or (file / "__init__.py").is_file())
    return f"{home}/{dotted}:{name}" if colon and there else text
