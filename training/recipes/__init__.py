"""The recipes that come with the package, by name: `demo` is demo.toml in this folder."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from interp.errors import ConfigError

HOME = Path(__file__).parent


def shipped(command: str) -> list[str]:
    """Names of the recipes for one command: "train", "train-reward" or "sweep"."""
    return sorted(file.stem for file in HOME.glob("*.toml") if _command(file) == command)


def recipe_file(recipe: str | os.PathLike[str], command: str) -> Path:
    """The file of a recipe.

    Args:
        recipe: the name of one that comes with the package, such as "demo", or the path of a file. A text without
            suffix and folder is a name where the package has it, even beside a file that is called so: that one is
            "./demo" or Path("demo").
        command: what the recipe is for: "train", "train-reward" or "sweep".

    Raises:
        ConfigError: a bare name is neither a recipe of the package for this command nor a file.
    """
    if not isinstance(recipe, str) or Path(recipe).suffix or os.path.dirname(recipe):
        return Path(recipe)
    file = HOME / f"{recipe}.toml"
    if file.is_file():
        if _command(file) != command:
            raise ConfigError(
                f"the recipe {recipe} is one for interp {_command(file)}; those of this command: {_list(command)}"
            )
        return file
    if not Path(recipe).is_file():
        raise ConfigError(f"no recipe is called {recipe!r}; name a TOML file, or one of {_list(command)}")
    return Path(recipe)


def is_shipped(recipe: str) -> bool:
    """Whether the text is the name of a recipe that comes with the package, whatever it is for."""
    return Path(recipe).name == recipe and (HOME / f"{recipe}.toml").is_file()


def _list(command: str) -> str:
    return ", ".join(shipped(command))


def _command(file: Path) -> str:
    """What a recipe is for: it can be told from its sections."""
    keys = tomllib.loads(file.read_text(encoding="utf-8"))
    return "sweep" if "emotions" in keys else "train-reward" if "data" in keys else "train"
