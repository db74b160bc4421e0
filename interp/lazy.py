"""Names of a package that are imported when they are first used, so that importing the package costs nothing."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def lazy(
    package: str, homes: Mapping[str, str], *, growing: Collection[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__` (PEP 562).

    Hide both from type checkers, or to them any name will do: write `if not TYPE_CHECKING:` before, and import the same
    names in a block `if TYPE_CHECKING:`.

    Args:
        package: name of the package.
        homes: where each of its public names lives; "" for a module of the package itself.
        growing: names whose value changes, and is looked up each time.
    """

    def get(name: str) -> Any:
        if name not in homes:
            return submodule(package, name)
        home = homes[name]
        value = getattr(import_module(home), name) if home else import_module(f"{package}.{name}")
        if name not in growing:
            setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted(homes)


def submodule(package: str, name: str) -> ModuleType:
    """A module of a package, imported when it is named: `interp.stats` is there after `import interp`.

    Raises:
        AttributeError: the package has no such module.
    """
    if name.startswith("_") or find_spec(f"{package}.{name}") is None:
        raise AttributeError(f"module {package!r} has no attribute {name!r}; dir({package}) lists its names")
    return import_module(f"{package}.{name}")


def submodules(package: str) -> Callable[[str], ModuleType]:
    """A package's `__getattr__` where its names are there and only its modules are not; hide it from type checkers."""
    return functools.partial(submodule, package)
