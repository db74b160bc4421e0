"""Names of a package that are imported when they are first used, so that importing the package costs nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
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
            raise AttributeError(f"module {package!r} has no attribute {name!r}; dir({package}) lists its names")
        home = homes[name]
        value = getattr(import_module(home), name) if home else import_module(f"{package}.{name}")
        if name not in growing:
            setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted(homes)
