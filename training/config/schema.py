"""Sections of a recipe: frozen dataclasses whose fields know their meaning, their range and who uses them.

`read` makes a section of nested mappings and refuses what is unknown, missing, of the wrong type, out of range, or not
used by the engine that is to run; `to_toml` and `plain` write it back without what that engine does not use.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from interp.errors import ConfigError
from interp.io import os_reason
from training.config.places import anchored
from training.recipes import recipe_file

REQUIRED = object()


def setting(
    default: Any,
    doc: str,
    *,
    low: float | int | None = None,
    high: float | int | None = None,
    above: float | int | None = None,
    choices: tuple[str, ...] | None = None,
    engines: tuple[str, ...] | None = None,
    place: str | None = None,
) -> Any:
    """A field of a section with its meaning (unit included) and the range it must lie in.

    Args:
        default: its value where the file does not say; `REQUIRED` makes the key compulsory.
        doc: what it means, with its unit.
        low: smallest value allowed.
        high: largest value allowed.
        above: the value must exceed this.
        choices: the values allowed (of each item, where the field is a list).
        engines: the engines that use it; None is all of them.
        place: its text leads somewhere, of one of the kinds in `training.config.places`.
    """
    metadata = {"doc": doc, "low": low, "high": high, "above": above, "choices": choices, "engines": engines}
    metadata["place"] = place
    return field(metadata=metadata) if default is REQUIRED else field(default=default, metadata=metadata)


def used(metadata: Mapping[str, Any], engine: str | None) -> bool:
    """Whether `engine` uses the field; None asks for no engine in particular."""
    return engine is None or metadata["engines"] is None or engine in metadata["engines"]


def check_unused(section: Any, engine: str, where: str = "") -> None:
    """Refuse a field that `engine` does not use and that is not at its default.

    Raises:
        ConfigError: naming the key and the engines that use it.
    """
    for f in dataclasses.fields(section):
        value = getattr(section, f.name)
        if not used(f.metadata, engine):
            if value != f.default:
                _refuse_unused(f"{where}{f.name}", engine, f.metadata)
        elif dataclasses.is_dataclass(value):
            check_unused(value, engine, f"{where}{f.name}.")


def _refuse_unused(key: str, engine: str, metadata: Mapping[str, Any]) -> None:
    users = " and ".join(metadata["engines"])
    raise ConfigError(f"{key} is not used by the engine {engine} (only by {users}); leave it out")


def to_toml(config: Any, prefix: str = "", *, engine: str | None = None) -> str:
    """A section and its subsections as TOML text, every key with its meaning, those only that `engine` uses."""
    lines: list[str] = []
    tables: list[str] = []
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if value is None or not used(f.metadata, engine):
            continue
        name = f"{prefix}{f.name}"
        if dataclasses.is_dataclass(value):
            tables.append(f"[{name}]\n{to_toml(value, name + '.', engine=engine)}")
        elif isinstance(value, Mapping) and any(dataclasses.is_dataclass(item) for item in value.values()):
            for key, item in value.items():
                inner = f"{name}.{_toml_key(key)}"
                tables.append(f"[{inner}]\n{to_toml(item, inner + '.', engine=engine)}")
        elif value != {}:
            lines.append(f"{f.name} = {_toml_value(value)}  # {f.metadata['doc']}\n")
    return "\n".join(filter(None, ["".join(lines), *tables]))


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda m: f"\\u{ord(m[0]):04x}", escaped) + '"'
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_toml_value(str(k))} = {_toml_value(v)}" for k, v in value.items()) + " }"
    return "[" + ", ".join(_toml_value(item) for item in value) + "]"


def plain(value: Any, *, engine: str | None = None) -> Any:
    """Dataclasses as dictionaries, tuples as lists: what JSON and TOML know, those keys only that `engine` uses."""
    if dataclasses.is_dataclass(value):
        pairs = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value) if used(f.metadata, engine))
        return {name: plain(item, engine=engine) for name, item in pairs if item is not None and item != {}}
    if isinstance(value, Mapping):
        return {str(key): plain(item, engine=engine) for key, item in value.items()}
    return [plain(item, engine=engine) for item in value] if isinstance(value, (list, tuple)) else value


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The nested mappings of a TOML file.

    Raises:
        ConfigError: the file cannot be read or parsed.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path}: {os_reason(error)}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}; correct that line") from error


def load_values(
    section: type, path: str | os.PathLike[str], overrides: Mapping[str, str] | None, command: str
) -> dict[str, Any]:
    """The nested mappings of a recipe, its paths absolute, with some values put in place of its own.

    Args:
        section: what is made of them.
        path: the TOML file, or the name of a recipe that comes with the package.
        overrides: values by dotted key; their paths are relative to the working directory.
        command: what the recipe is for (see `recipe_file`).

    Raises:
        ConfigError: the file cannot be read or parsed.
    """
    file = recipe_file(path, command)
    values = anchored(section, read_toml(file), file.parent)
    for key, text in (overrides or {}).items():
        override(values, key, text)
    return typing.cast(dict[str, Any], anchored(section, values, Path.cwd()))


def override(values: dict[str, Any], key: str, text: str) -> None:
    """Set one dotted key of nested mappings to `text`, read as TOML or else as a string.

    Raises:
        ConfigError: the key names no section.
    """
    *sections, name = key.split(".")
    if not sections:
        raise ConfigError(f"--set needs section.key=value, not {key}={text}; see the sections of a recipe")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {key}={text}: {section} is no section")
    try:
        values[name] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        values[name] = text  # a bare word: --set train.engine=native without inner quotes


def read(cls: type, values: Any, where: str = "", *, engine: str | None = None) -> Any:
    """A section from a mapping, every key checked.

    Raises:
        ConfigError: a key is unknown, missing or not used by `engine`, or its value is not what it must be.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where.rstrip('.')} must be a section with keys, not {values!r}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            remedy = f"did you mean {where}{near[0]}?" if near else f"the keys are {', '.join(fields)}"
            raise ConfigError(f"unknown key {where}{key}; {remedy}")
    hints = typing.get_type_hints(cls)
    made: dict[str, Any] = {}
    for name, f in fields.items():
        if name in values:
            if engine is not None and not used(f.metadata, engine):
                _refuse_unused(f"{where}{name}", engine, f.metadata)
            made[name] = _value(values[name], hints[name], f"{where}{name}", engine)
            _check_range(made[name], f.metadata, f"{where}{name}")
        elif f.default is dataclasses.MISSING:
            raise ConfigError(f"missing key {where}{name}: {f.metadata['doc']}; add it")
    return cls(**made)


def _value(value: Any, hint: Any, where: str, engine: str | None) -> Any:
    """`value` as the annotated type, without guessing: only whole numbers become floats."""
    if isinstance(hint, types.UnionType):
        hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    if dataclasses.is_dataclass(hint):
        return read(typing.cast(type, hint), value, where + ".", engine=engine)
    origin = typing.get_origin(hint)
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
            raise ConfigError(f'{where} must be a list of strings such as ["a", "b"], not {value!r}')
        return tuple(value)
    if origin is not None:
        return _table(value, typing.get_args(hint)[1], where, engine)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        name = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}[hint]
        raise ConfigError(f"{where} must be {name}, not {value!r}")
    return value


def _table(value: Any, kind: Any, where: str, engine: str | None) -> dict[str, Any]:
    """A table whose keys are the user's own: of sections, of strings, or of whatever TOML knows."""
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must be a table of sections, not {value!r}")
        section = typing.cast(type, kind)
        return {str(key): read(section, item, f"{where}.{key}.", engine=engine) for key, item in value.items()}
    if kind is str and (not isinstance(value, Mapping) or not all(isinstance(item, str) for item in value.values())):
        raise ConfigError(f'{where} must be a table of strings such as {{ name = "value" }}, not {value!r}')
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a table such as {{ name = 1 }}, not {value!r}")
    return {str(key): item for key, item in value.items()}


def _check_range(value: Any, limits: Mapping[str, Any], where: str) -> None:
    low, high, above, choices = limits["low"], limits["high"], limits["above"], limits["choices"]
    if choices is not None:
        for item in [value] if isinstance(value, str) else value:
            if item not in choices:
                raise ConfigError(f"{where} must be {' or '.join(choices)}, not {item!r}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        within = (low is None or value >= low) and (high is None or value <= high) and (above is None or value > above)
        if not within:  # also where value is NaN
            parts = [
                f"{sign} {limit}" for sign, limit in ((">=", low), (">", above), ("<=", high)) if limit is not None
            ]
            raise ConfigError(f"{where} must be {' and '.join(parts)}, not {value}")
