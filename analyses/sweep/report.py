"""The report of a sweep: one self-contained page, the tables as CSV and Parquet, the figures as PNG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from analyses.sweep import figures
from analyses.sweep.cells import Store
from analyses.sweep.config import SweepConfig
from analyses.sweep.figures import names_of, value_words
from analyses.sweep.lines import probed, readings, section
from analyses.sweep.plan import all_cells, shared_settings
from analyses.sweep.tables import LEVEL, Likeness, Tables, make
from interp.errors import MeasureError
from interp.io import atomic_file, write_text
from interp.plot.style import COLUMN, PAGE, number, span
from interp.report.svg import Drawing, glyph_sheet, style_sheet, to_svg
from interp.result.pages import resource, template
from interp.stats import holm

Draw = Callable[..., Figure]
SURE = 0.3
"""Similarity of two seeds of one emotion under which the likeness of emotions is not read."""


def write_all(config: SweepConfig, root: Path) -> Tables:
    """Write report.html, tables/ and figures/ of what there is.

    Args:
        config: the sweep.
        root: its folder.

    Raises:
        InterpError: they cannot be written.
    """
    settings, cells = shared_settings(config), all_cells(config, root)
    tables = make(config, settings, cells, Store(root))
    for name, frame in frames(tables).items():
        with atomic_file(root / "tables" / f"{name}.csv") as path:
            frame.to_csv(path)
        with atomic_file(root / "tables" / f"{name}.parquet") as path:
            frame.to_parquet(path)
    store = Store(root)
    failed = {cell.name: str(found["error"]) for cell in cells if (found := store.failure(cell)) is not None}
    drawings = {name: drawn for name, draw in _draws(tables).items() if (drawn := _draw(root, name, draw)) is not None}
    write_text(root / "report.html", render(config, settings, tables, drawings, failed))
    return tables


def frames(tables: Tables) -> dict[str, pd.DataFrame]:
    """Every table by its name."""
    found = {"emotions": tables.emotions, "parts": tables.parts, "recovery": tables.recovery}
    found |= {"readings": tables.readings, "probes": tables.probes}
    for words, each in tables.likeness.items():
        found[f"likeness-{words}"] = each.cosines
        if "labels" not in found and not each.labels.empty:
            found["labels"] = each.labels
    return {name: frame for name, frame in found.items() if not frame.empty}


def _draws(tables: Tables) -> dict[str, Draw]:
    found: dict[str, Draw] = {
        "gain": lambda width: figures.reward_and_kl(tables, width=width),
        "parts": lambda width: figures.parts(tables, width=width),
    }
    for words, each in tables.likeness.items():
        if not each.labels.empty:
            found[f"likeness-{words}"] = lambda width, each=each, words=words: figures.likeness(
                each, words, width=width
            )
    return found


def _draw(root: Path, name: str, draw: Draw) -> dict[str, Drawing] | None:
    """The figure as PNG, and for a wide and a narrow screen; None where there is nothing to draw."""
    try:
        figure = draw(width=PAGE)
    except MeasureError:
        return None
    with atomic_file(root / "figures" / f"{name}.png") as path:
        figure.savefig(path, format="png")
    return {"page": to_svg(draw(width=PAGE), name), "column": to_svg(draw(width=COLUMN), f"{name}-c")}


def render(
    config: SweepConfig,
    settings: Mapping[str, Any],
    tables: Tables,
    drawings: Mapping[str, Mapping[str, Drawing]],
    failed: Mapping[str, str],
) -> str:
    """The page as one HTML document that needs nothing else; the same tables give the same bytes."""
    every = [drawing for drawn in drawings.values() for drawing in drawn.values()]
    sections = [
        _emotions(tables, config),
        _gain(),
        *_likenesses(tables),
        _parts(tables),
        readings(tables),
        probed(tables),
        _failures(failed),
    ]
    for each in sections:
        drawn = drawings.get(each["name"])
        each["figure"] = {size: drawing.svg for size, drawing in drawn.items()} if drawn else None
    return template("report.html", "analyses.sweep").render(
        css=Markup(resource("page.css")) + style_sheet(every),
        glyphs=glyph_sheet(every),
        count=len(config.emotions),
        base=Path(settings["base"]).name,
        reward=Path(settings["reward"]).name,
        prompts=len(settings["prompts"]),
        texts=len(settings["texts"]),
        verdict=verdict(tables, config),
        sections=[each for each in sections if each["figure"] or each["rows"]],
    )


def verdict(tables: Tables, config: SweepConfig) -> list[str]:
    """What the sweep found, in a few sentences, over the emotions that pass the gate."""
    frame = tables.emotions
    own = frame[frame.index.isin(config.emotions)]
    out = list(own.index[~own["passes"]])
    said = [
        f"{len(own) - len(out)} of {len(own)} labels pass the gate (lower bound of the held-out AUROC at least"
        f" {config.gate:g})"
        + (f"; {names_of(out)} {'is' if len(out) == 1 else 'are'} kept out of what follows." if out else ".")
    ]
    if "gain_p_holm" in own:
        up = own[own["passes"] & (own["gain_p_holm"] < LEVEL) & (own["gain"] > 0)]
        said.append(f"{len(up)} of them gained reward on prompts held out from training (p < {LEVEL:g} after Holm).")
    said += _agreements(tables, config)
    if not tables.parts.empty:
        many = tables.parts.index[tables.parts["kind"] == "many"]
        one = tables.parts.index[tables.parts["kind"] == "one"]
        said.append(
            f"{len(many)} heads and MLPs serve half of the emotions or more, {len(one)} one only (more than any other)."
        )
    return said


def _agreements(tables: Tables, config: SweepConfig) -> list[str]:
    """What each likeness says of the labels, p corrected over them, and whether it can say anything."""
    said = []
    corrected = holm(np.array([each.agreement.p for each in tables.likeness.values()]))
    for (words, each), p in zip(tables.likeness.items(), corrected, strict=True):
        found = each.agreement
        if np.isfinite(found.correlation):
            said.append(
                f"Similarity of the change of the {words} and similarity of the labels correlate by"
                f" {number(found.correlation)} over {found.items} emotions (Mantel; p = {number(float(p))} after Holm"
                " over what is compared)."
            )
        if not each.ceiling:
            continue
        warning = ""
        if any(each.rank(name) > 1 for name in each.ceiling):
            warning = "; the seed decides more than the emotion, so no likeness of emotions can be read here"
        elif max(each.ceiling.values()) < SURE:
            warning = "; the emotion shows, but most of a change is its seed's, and likenesses are as small"
        said.append(f"The change of the {words} for one emotion with two seeds: {_ceiling(each)}{warning}.")
    return said


def _ceiling(found: Likeness) -> str:
    """The similarity of one emotion with two seeds, beside those of other emotions with that second seed."""
    rows = []
    for name, value in found.ceiling.items():
        others = found.others[name]
        beside = f"other emotions with that seed {span(min(others), max(others))}, " if others else ""
        rows.append(f"{name} {number(value)} ({beside}place {found.rank(name)} of {1 + len(others)})")
    return names_of(rows)


def _emotions(tables: Tables, config: SweepConfig) -> dict[str, Any]:
    rows = []
    for name, row in tables.emotions.iterrows():
        both = f"{number(row.get('reward_base', np.nan))} to {number(row.get('reward_tuned', np.nan))}"
        cells = [
            name,
            value_words(row["auroc"], row["auroc_low"], row["auroc_high"]) + ("" if row["passes"] else " (out)"),
            both if "reward_base" in row and np.isfinite(row["reward_base"]) else row["state"],
            *(_with_interval(row, key) for key in ("gain", "kl", "slope")),
            *(
                number(float(row.get(key, np.nan)))
                for key in ("gain_p_holm", "slope_p_holm", "token_join", "token_join_p_holm")
            ),
        ]
        rows.append({"cells": [str(cell) for cell in cells], "off": not row["passes"]})
    columns = ["pair", "AUROC of the label", "reward, base to tuned", "gained", "KL per token", "log-ratio per reward"]
    return section(
        "emotions",
        "Each pair",
        rows=rows,
        columns=[*columns, "p gained", "p slope", "token join ρ", "p join"],
        classes=["", "span", "span", "span", "span", "span", "num", "num", "num", "num"],
        notes=[
            f"Grey: the label's lower bound is under {config.gate:g}, and the pair is in no claim. Intervals are 95 %"
            " bootstrap intervals over prompts. p is corrected over the emotions that pass (Holm). Nulls: of the gain,"
            " as often down as up (Wilcoxon's signed ranks over prompts); of the slope (1 / effective beta), rewards"
            " permuted within prompts; of the token join, attributions permuted within texts.",
            "Intervals are over prompts for one trained pair; what another seed gives is shown where there is one.",
        ],
    )


def _with_interval(row: pd.Series, key: str) -> str:
    return value_words(*(float(row.get(f"{key}{end}", np.nan)) for end in ("", "_low", "_high")))


def _gain() -> dict[str, Any]:
    return section(
        "gain",
        "Reward gained and the distance it took",
        "Reward gained and KL beside each other, a row for each pair with its intervals.",
        notes=["A low gain at a large KL is a label that the policy cannot reach, or reached by other means."],
    )


def _likenesses(tables: Tables) -> list[dict[str, Any]]:
    found = []
    for words, each in tables.likeness.items():
        notes = [
            "Cosine of the changes (tuned minus base) with their mean over the emotions taken out, so what all pairs"
            " have in common does not count; of n emotions that have nothing else in common the cosine is -1 / (n - 1)."
            " Rows, and columns likewise, in the order of average linkage; second seeds stand last. Right: rank"
            " correlation of the labels' logits over held-out texts."
        ]
        if np.isfinite(each.agreement.correlation):
            notes.append(
                f"Agreement of the two over the {each.agreement.items} emotions that pass: Spearman"
                f" {number(each.agreement.correlation)}, p = {number(each.agreement.p)} (Mantel,"
                f" {each.agreement.permutations} permutations of the emotions)."
            )
        if each.ceiling:
            notes.append(
                f"Ceiling, the same emotion with a second seed: {_ceiling(each)}. The mean is not taken out of second"
                " seeds, so that what is left of an emotion and a second seed have nothing in common but the emotion;"
                " two second seeds share what any reward does."
            )
        alt = f"Clustered heat map of the similarity of the change of the {words}, beside that of the labels."
        found.append(section(f"likeness-{words}", f"Alike in their {words}?", alt, notes=notes))
    return found


def _parts(tables: Tables) -> dict[str, Any]:
    rows, by_layer = [], ""
    if not tables.parts.empty:
        shown = tables.parts[tables.parts["kind"].isin(["many", "one"])]
        for name, row in shown.sort_values("serves", ascending=False, kind="stable").iterrows():
            count = f"{row['serves']} of {row['of']}"
            told = _served_words(tables.served[name])
            rows.append({"cells": [name, count, number(row["mean_recovery"]), told], "off": False})
        layers = pd.Series([str(name).split(".")[0] for name in tables.parts.index], index=tables.parts.index)
        counts = tables.parts["kind"].groupby(layers, sort=False).value_counts().unstack(fill_value=0)
        counts = counts.reindex(columns=["many", "one"], fill_value=0)
        words = [f"{layer} {row['many']} and {row['one']}" for layer, row in counts.iterrows()]
        by_layer = f"Parts by layer that serve many and one only: {', '.join(words)}; the others are left out."
    return section(
        "parts",
        "Heads and MLPs that serve many emotions, and one only",
        "Heat maps of the recovery of every head and MLP in every pair.",
        rows=rows,
        columns=["part", "serves", "mean recovery", "shown for"],
        classes=["", "num", "num", "finding"],
        notes=[
            "Tuned's activations of one part put into base: the recovery is the share of KL(tuned ‖ base) of the next"
            f" token that goes away. A part serves an emotion where that is above 0 with p < {LEVEL:g}: sign flips over"
            " prompts of the change of KL itself, max-T over all parts of a pair, Holm over the emotions. That it was"
            " not shown to serve one does not show that it does not (a bright cell without a dot): it counts as one"
            " emotion's only where the interval of its recovery there lies above those of all others. Parts that serve"
            " many may do what any reward makes them do; only a null run of the recipe tells.",
            *([by_layer] if by_layer else []),
        ],
    )


def _served_words(served: pd.Series) -> str:
    """The emotions that a part serves, or those that it does not where these are fewer."""
    own, others = (list(map(str, served.index[served == serves])) for serves in (True, False))
    if not others:
        return "all"
    return f"all but {names_of(others)}" if len(others) < len(own) / 2 else ", ".join(own)


def _failures(failed: Mapping[str, str]) -> dict[str, Any]:
    rows = [{"cells": [name, error], "off": False} for name, error in sorted(failed.items())]
    return section("failed", "Cells that failed", rows=rows, columns=["cell", "error"], classes=["", "finding"])


def summary(
    tables: Tables, names: Sequence[str] = ("auroc_low", "passes", "gain", "gain_p_holm", "kl")
) -> pd.DataFrame:
    """The main table, short enough for a terminal."""
    return tables.emotions[[name for name in names if name in tables.emotions]]
