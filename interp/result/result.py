"""The one result: labelled arrays that print, draw, save, load, and join others on one page."""

from __future__ import annotations

import functools
import json
import os
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from interp.errors import FormatError, MeasureError
from interp.io import atomic_folder, write_text
from interp.plot.registry import drawable, figures_of
from interp.result import store
from interp.result.pages import check_page, template
from interp.result.tables import WIDTH, cells, frame_text

LINES = 15
"""Most lines that a result prints by itself."""

_HTML_ROWS = 20

Kind = TypeVar("Kind", bound="Result")

PROVIDERS = ["interp.comparison", "interp.patching", "interp.circuits", "interp.reward", "interp.report"]
"""Importing these modules registers their kinds of results and pages; they are imported when one is not known yet."""

_KINDS: dict[str, type[Result]] = {}
_PAGES: dict[str, Callable[[Any], str]] = {}

ANY = "*"
"""The page of a kind that has none of its own."""


def register_page(kind: str, render: Callable[[Any], str]) -> None:
    """Say how the page of a kind of results is written.

    Args:
        kind: `Result.kind`, or `ANY`.
        render: from a result to a whole HTML document.
    """
    _PAGES[kind] = render


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """What every verb returns: labelled arrays, with methods to read, draw and keep them.

    `result["name"]` is an `xarray.DataArray`; `result.summary()` the findings as a pandas frame; `result.plot.NAME()` a
    figure (`dir(result.plot)` lists them); `result.report("x.html")` a page; `result.save("folder")` and
    `interp.load_result("folder")` keep it. A subclass sets its `kind`; it is loaded from these attributes alone, so it
    keeps no other state.

    Attributes:
        dataset: every array, with units and a description in its attrs.
        controls: the same arrays of control runs.
        replicates: the same arrays of runs of the same recipe with another seed.
        added: other results about the same models (see `add`), by name.
    """

    kind: ClassVar[str] = ""
    title: ClassVar[str] = "Result"

    dataset: xr.Dataset
    controls: tuple[xr.Dataset, ...] = ()
    replicates: tuple[xr.Dataset, ...] = ()
    added: Mapping[str, Result] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "added", _Added(self.added))

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "kind" in cls.__dict__:
            known = _KINDS.setdefault(cls.kind, cls)
            if known.__qualname__ != cls.__qualname__:
                raise TypeError(f"{cls.__qualname__} and {known.__qualname__} are both of the kind {cls.kind!r}")
            _KINDS[cls.kind] = cls

    def headline(self) -> str:
        """What this is, and what it says first, in a sentence or two."""
        sizes = ", ".join(f"{size} {dim}" for dim, size in self.dataset.sizes.items())
        return f"{self.title}: {len(self.dataset.data_vars)} arrays over {sizes}"

    def notes(self) -> list[str]:
        """What a reader must know to read the table."""
        return []

    def summary(self) -> pd.DataFrame:
        """One row a finding; the interval of a number NAME is NAME_low and NAME_high."""
        arrays = self.dataset.data_vars.items()
        rows = [(str(name), " ".join(map(str, a.dims)), str(a.attrs.get("long_name", ""))) for name, a in arrays]
        return pd.DataFrame(rows, columns=["array", "dims", "meaning"])

    def table(self) -> pd.DataFrame:
        """What is printed of the findings, the most telling columns first."""
        return self.summary()

    def __getitem__(self, name: str) -> xr.DataArray:
        """The array `name`.

        Raises:
            MeasureError: there is none; the message lists those there are.
        """
        try:
            return self.dataset[name]
        except KeyError:
            names = ", ".join(sorted(map(str, self.dataset.data_vars)))
            raise MeasureError(f"this {self.title.lower()} holds no {name!r}; it holds {names}") from None

    def __contains__(self, name: object) -> bool:
        return name in self.dataset.data_vars or name in self.dataset.coords

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def keys(self) -> list[str]:
        """Names of the arrays."""
        return list(map(str, self.dataset.data_vars))

    def __repr__(self) -> str:
        head = _wrapped([self.headline()], 3)
        names = drawable_names(self)
        figures = [f"figures: {', '.join(f'.plot.{name}()' for name in names)}"] if names else []
        added = [f"added: {', '.join(self.added)}"] if self.added else []
        tail = [*_wrapped(self.notes(), 4), *_wrapped(added, 1), *_wrapped(figures, 1)]
        frame = self.table()
        room = LINES - len(head) - len(tail)
        table = frame_text(frame.head(room)).split("\n")
        if len(frame) >= room or len(table) > room:
            table = frame_text(frame, rows=room - 2).split("\n")  # under a header, above what is left out
        return "\n".join([*head, *table, *tail])

    def _repr_html_(self) -> str:
        frame = self.table()
        table = cells(frame.head(_HTML_ROWS))
        rows = table.to_dict("split")
        return template("notebook.html", "interp.result").render(
            title=self.title,
            headline=self.headline(),
            columns=rows["columns"],
            rows=rows["data"],
            more=max(len(frame) - _HTML_ROWS, 0),
            notes=self.notes(),
            figures=drawable_names(self),
            added={name: other.headline() for name, other in self.added.items()},
        )

    @property
    def plot(self) -> Plots:
        """The figures that this result can draw, as methods; `dir(result.plot)` lists them."""
        return Plots(self)

    def add(self: Kind, other: Result, name: str | None = None) -> Kind:
        """A copy of this result with another one about the same models beside it: save and report then hold both.

        Args:
            other: what patching, circuits or reward gave of the same models.
            name: under which it stands in `added`; None is its kind, numbered where there are several.

        Returns:
            A new result; this one is not changed.

        Raises:
            MeasureError: `other` is no result, or is about models that this one does not know; or the name is taken.
        """
        if not isinstance(other, Result):
            raise MeasureError(f"add takes a result, and {type(other).__name__} is none")
        if name is None:
            free = (f"{other.kind}_{number}" for number in range(2, len(self.added) + 3))
            name = other.kind if other.kind not in self.added else next(n for n in free if n not in self.added)
        if name in self.added:
            raise MeasureError(f"a result named {name!r} was added already; pass another name=")
        _check_same_models(self, other)
        return replace(self, added={**self.added, name: other})

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the folder `path`: result.nc (netCDF 4, other runs as groups) and summary.csv, whole or not at all.

        Args:
            path: a new folder.
            overwrite: replace an earlier result there.

        Raises:
            InterpError: the folder holds something, or cannot be written.
        """
        with atomic_folder(path, owned_by=store.owner(path), own=store.FILES, overwrite=overwrite) as folder:
            self.write_into(folder)
        return Path(path)

    def write_into(self, folder: Path) -> None:
        """Write the files of `save` into an existing folder."""
        store.write(folder / store.FILE, self._stored())
        (folder / store.SUMMARY).write_text(self.summary().to_csv(index=False), encoding="utf-8")

    @classmethod
    def load(cls: type[Kind], path: str | os.PathLike[str]) -> Kind:
        """Read what `save` wrote (see `load_result`).

        Raises:
            FormatError: there is no result of this kind, it is damaged, or it comes from a newer version.
        """
        result = load_result(path)
        if not isinstance(result, cls):
            raise FormatError(f"{path} holds a {result.title.lower()}; read it with interp.load_result")
        return result

    def to_parquet(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the folder `path` of Parquet files, a long table for each array (see `interp.result.store`).

        Args:
            path: a new folder.
            overwrite: replace what an earlier call wrote there.

        Raises:
            InterpError: the folder holds something else, or cannot be written.
        """
        return store.write_tables(path, self._stored(), self.summary(), overwrite=overwrite)

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Write one self-contained HTML page to `path`, atomically.

        Raises:
            InterpError: the file cannot be written, or its name does not end in .html.
        """
        check_page(path)
        if ANY not in _PAGES:
            _import_providers()
        return write_text(path, _PAGES.get(self.kind, _PAGES[ANY])(self))

    def _stored(self) -> store.Stored:
        runs = {"control": self.controls, "replicate": self.replicates}
        added = {name: other._stored() for name, other in self.added.items()}
        return store.Stored(self.kind, self.dataset, runs, added)


class _Added(dict[str, "Result"]):
    """Results by name, which print in a line each."""

    def __repr__(self) -> str:
        lines = (f"{name}: {textwrap.shorten(other.headline(), WIDTH - 4)}" for name, other in self.items())
        return "\n".join(line[:WIDTH] for line in lines) or "{}"


@dataclass(frozen=True)
class Plots:
    """The figures of a result as methods: `result.plot.lens()` draws the figure `lens` of it."""

    _result: Result

    def __getattr__(self, name: str) -> Callable[..., Figure]:
        if name.startswith("__"):
            raise AttributeError(name)
        known = _figures(self._result)
        if name not in known:
            there = ", ".join(drawable_names(self._result)) or "none"
            raise AttributeError(f"a {self._result.title.lower()} has no figure {name!r}; this one has {there}")
        draw = known[name].draw
        return functools.wraps(draw)(functools.partial(draw, self._result))

    def __dir__(self) -> list[str]:
        return drawable_names(self._result)

    def __repr__(self) -> str:
        names = drawable_names(self._result)
        return "\n".join(_wrapped([f"figures: {', '.join(f'{name}()' for name in names) or 'none'}"], LINES))


def _figures(result: Result) -> Mapping[str, Any]:
    import_module("interp.plot")  # where the figures register themselves; nobody needs it before the first is asked for
    return figures_of(result.kind)


def drawable_names(result: Result) -> list[str]:
    """Names of the figures that a result can draw."""
    _figures(result)
    return drawable(result.kind, result.dataset)


def load_result(path: str | os.PathLike[str]) -> Result:
    """Read what `Result.save` wrote, or what version 1 did.

    Args:
        path: the folder, or the file in it.

    Raises:
        FormatError: there is no result, it is damaged, of a kind that nobody knows, or from a newer version.
    """
    return _built(store.read(path), path)


def _built(stored: store.Stored, path: str | os.PathLike[str]) -> Result:
    if stored.kind not in _KINDS:
        _import_providers()
    if stored.kind not in _KINDS:
        raise FormatError(f"{path} holds a result of the kind {stored.kind!r}, which is not known; update rlhf-interp")
    added = {name: _built(other, path) for name, other in stored.added.items()}
    runs = [stored.runs.get(name, ()) for name in ("control", "replicate")]
    return _KINDS[stored.kind](stored.dataset, runs[0], runs[1], added)


def _import_providers() -> None:
    for name in PROVIDERS:
        import_module(name)


def _wrapped(texts: list[str], most: int) -> list[str]:
    """Texts as lines of a terminal, at most so many; what does not fit is cut with an ellipsis."""
    lines = [line for text in texts for line in textwrap.wrap(text, WIDTH, subsequent_indent="  ")]
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1][: WIDTH - 4] + " ..."]
    return lines


_MODELS = ("base", "tuned", "recipient", "source")


def _models(result: Result, parts: Sequence[str] = (*_MODELS, "controls", "replicates")) -> dict[str, dict[str, Any]]:
    """Descriptions of the policies that a result is about, by their part in it."""
    described: dict[str, dict[str, Any]] = {}
    for name in parts:
        value = result.dataset.attrs.get(name)
        parsed = json.loads(value) if isinstance(value, str) and value[:1] in "{[" else None
        several = parsed if isinstance(parsed, list) else [parsed]
        described |= {f"{name} {index}": one for index, one in enumerate(several) if isinstance(one, dict)}
    return described


def _check_same_models(result: Result, other: Result) -> None:
    known = list(_models(result).values())
    for part, model in _models(other, _MODELS).items():  # it may have control runs of its own
        if known and all(_differ(model, one) for one in known):
            raise MeasureError(
                f"the {part.split()[0]} of this {other.title.lower()} is none of the models of the"
                f" {result.title.lower()}; add results about the same models"
            )


def _differ(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two descriptions are known to be of different weights; what cannot be told is not."""
    for key in ("id", "object"):
        if key in first and key in second:
            return first.get(key) != second.get(key) or first.get("sha256") != second.get("sha256")
    if "folder" in first and "folder" in second:
        weights = [
            {name: digest for name, digest in one.get("sha256", {}).items() if not name.endswith(".json")}
            for one in (first, second)
        ]
        return weights[0] != weights[1]
    return False
