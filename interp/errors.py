"""Every error that the toolkit raises on purpose, in one tree under `InterpError`.

A message is one line: what was expected, what came, and what to do about it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")


def renamed(**new: str) -> Callable[[Callable[Parameters, Returned]], Callable[Parameters, Returned]]:
    """Make a function refuse parameters that it once had, with the remedy: `renamed(control="pass controls=[...]")`."""

    def decorate(function: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
        @functools.wraps(function)
        def refusing(*args: Parameters.args, **options: Parameters.kwargs) -> Returned:
            for old in new.keys() & options.keys():
                raise TypeError(f"{function.__name__} has no parameter {old!r} any more; {new[old]}")
            return function(*args, **options)

        return refusing

    return decorate


class InterpError(Exception):
    """Base of all errors of this toolkit; its text is one line that ends in a remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))


class LoadError(InterpError):
    """A model, tokenizer or file could not be loaded."""


class UnknownFamily(LoadError):
    """The architecture has no row in `interp.families`."""


class FidelityError(InterpError):
    """What the hooks captured does not add up to what the bare model computes."""


class PromptError(InterpError):
    """Prompts, answers or continuations are malformed."""


class TokenizerMismatch(InterpError):
    """Two models do not share one vocabulary."""


class MeasureError(InterpError):
    """A measure is unknown, or cannot be computed from what was given."""


class FormatError(InterpError):
    """A file or folder on disk is not what this version can read."""


class ConfigError(InterpError):
    """A configuration has an unknown key, a missing key or an impossible value."""


class TrainingError(InterpError):
    """A training run cannot go on."""


class MissingExtra(InterpError):
    """An optional dependency is not installed."""

    def __init__(self, extra: str, needed_for: str) -> None:
        clone, index = f"pip install -e '.[{extra}]'", f"pip install 'rlhf-interp[{extra}]'"
        super().__init__(f"{needed_for} needs the extra '{extra}': {clone} in a clone, else {index}")
