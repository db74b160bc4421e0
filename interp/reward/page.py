"""Pages of a reward model's reading: one self-contained HTML file each, every text escaped."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from interp.errors import InterpError
from interp.io import write_text
from interp.reward.attribution import METHOD_WORDS

if TYPE_CHECKING:
    from interp.reward.attribution import Attribution
    from interp.reward.counterexamples import Counterexamples
    from interp.reward.spurious import Spurious


def write(path: str | os.PathLike[str], kind: str, **values: Any) -> Path:
    """Write the page of one kind.

    Args:
        path: the file.
        kind: which part of the template.
        values: what it shows.

    Raises:
        InterpError: the file cannot be written, or its name does not end in .html.
    """
    check_page(path)
    return write_text(path, render(kind, **values))


def check_page(path: str | os.PathLike[str]) -> None:
    """Refuse a name that is no page's, before the work or at its end.

    Raises:
        InterpError: it does not end in .html.
    """
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise InterpError(f"a report is an HTML page; name a file that ends in .html, not {os.fspath(path)!r}")


def render(kind: str, **values: Any) -> str:
    """The page as one HTML document that needs nothing else; the same values give the same bytes."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_finalize
    )
    environment.filters |= {"number": number, "signed": lambda value: number(value, signed=True)}
    template = files("interp.reward").joinpath("page.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(kind=kind, **values)


_NOTHING = 5e-5  # an effect below it is rounding


def number(value: float, *, signed: bool = False) -> str:
    """A number for a reader: three significant digits, a true minus sign, a dash for none."""
    if not np.isfinite(value):
        return "–"
    if signed:
        value = 0.0 if abs(value) < _NOTHING else value
    text = f"{value:+.3g}" if signed and value else f"{value:.3g}"
    return text.replace("-", "−")


_BIDI = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def _finalize(value: Any) -> Any:
    """Control characters, lone surrogates and marks of writing direction are shown, not obeyed."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join(
        ascii(c)[1:-1] if c in _BIDI or (unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t") else c
        for c in value
    )


def shades(values: np.ndarray, most: float) -> list[str]:
    """A background for each value: vermilion above 0, blue below, its strength the share of `most`."""
    found = []
    for value in values:
        share = 0.0 if not np.isfinite(value) or most == 0 else min(1.0, abs(float(value)) / most)
        found.append(f"rgba({'213,94,0' if value > 0 else '0,114,178'},{0.75 * share:.3f})")
    return found


def pieces(text: str, spans: list[tuple[int, int]], values: np.ndarray, most: float) -> list[dict[str, str]]:
    """A text cut at spans, each piece with its shade and its value; what lies between has none."""
    found, at = [], 0
    for (start, end), value, shade in zip(spans, values, shades(values, most), strict=True):
        if start < at or end <= start:  # one character in several tokens stands once, with the first
            continue
        found += [{"text": text[at:start], "shade": "", "value": ""}] if start > at else []
        found.append({"text": text[start:end], "shade": shade, "value": number(float(value), signed=True)})
        at = end
    return [*found, {"text": text[at:], "shade": "", "value": ""}] if at < len(text) else found


def attribution_values(found: Attribution) -> dict[str, Any]:
    """What the page of an attribution shows."""
    data = found.dataset
    measured = "patching_rank_correlation" in data
    items = []
    for label in found.labels:
        values = data["token_attribution"].sel(label=label).values
        most = float(np.nanmax(np.abs(np.where(data["added"].values, 0, np.nan_to_num(values))), initial=0.0))
        for row in range(data.sizes["prompt"]):
            tokens = found.tokens(row)
            spans = list(zip(tokens["start"], tokens["end"], strict=True))
            cell = data.sel(label=label).isel(prompt=row)
            rank = cell["patching_rank_correlation"].item() if measured else float("nan")
            names = ("score", "baseline_score", "completeness_error", "points", "converged")
            items.append(
                {
                    "label": label,
                    "pieces": pieces(found.text(row), spans, tokens[label].to_numpy(), most),
                    **{name: cell[name].item() for name in names},
                    "patching": rank if np.isfinite(rank) else None,
                }
            )
    attrs: Mapping[Any, Any] = data.attrs
    integrated = attrs["method"] == "integrated_gradients"
    return {
        "items": items, "about": dict(attrs), "method": METHOD_WORDS[attrs["method"]], "integrated": integrated,
        "agreement": found.beside_patching() if attrs["method"] != "leave_one_out" else [],
    }  # fmt: skip


def write_attribution(found: Attribution, path: str | os.PathLike[str]) -> Path:
    """Texts coloured by their attributions."""
    return write(path, "attribution", **attribution_values(found))


def write_spurious(found: Spurious, path: str | os.PathLike[str]) -> Path:
    """The findings of `spurious`, each as a bar with its interval."""
    table = found.summary()
    ends = table[["effect", "lower", "upper"]].to_numpy()
    most = float(np.nanmax(np.abs(ends), initial=1e-12))
    ways = {
        way: [{**row, "bar": _bar(row, most)} for row in table[table["way"] == way].to_dict("records")]
        for way in ("edits", "regression")
    }
    neutral = table[(table["way"] == "edits") & (table["feature"] == "none")]["effect"].abs().max()
    return write(
        path, "spurious", ways=ways, held=found.held, about=dict(found.dataset.attrs), neutral=float(neutral),
        prefix=found.neutral.replace("-", "−"), texts=found.dataset.sizes["prompt"],
    )  # fmt: skip


def _bar(row: Mapping[Any, Any], most: float) -> dict[str, str] | None:
    """Where a bar from 0 and its interval lie, in percent of a scale from -most to most."""
    if not np.isfinite(row["effect"]):
        return None

    def place(value: float) -> float:
        return 50 + 50 * value / most

    low, high = sorted((place(0.0), place(row["effect"])))
    bar = {"left": f"{low:.1f}", "width": f"{high - low:.1f}", "side": "up" if row["effect"] > 0 else "down"}
    if np.isfinite(row["lower"]):
        bar |= {"low": f"{place(row['lower']):.1f}", "reach": f"{place(row['upper']) - place(row['lower']):.1f}"}
    return bar


def write_counterexamples(found: Counterexamples, path: str | os.PathLike[str]) -> Path:
    """The tables of `counterexamples`."""
    tables = {name: getattr(found, name).to_dict("records") for name in ("at_odds", "pairs", "swaps")}
    return write(path, "counterexamples", about=found.about, **tables)
