"""Results of a reward model's reading as a person reads them in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from interp.columns import frame_text
from interp.reward.text_properties import NEUTRAL_PREFIX

if TYPE_CHECKING:
    from interp.reward.attribution import Attribution
    from interp.reward.counterexamples import Counterexamples
    from interp.reward.direct_attribution import DirectAttribution
    from interp.reward.lens import Lens
    from interp.reward.spurious import Spurious

_ROWS = 10

_LABELS = 5

_WIDE = 44  # characters of a text


def short(text: str, width: int = _WIDE) -> str:
    """A text in one line, cut where it is long, control characters as a space."""
    flat = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return flat if len(flat) <= width else flat[: width - 3] + "..."


def attribution_text(found: Attribution) -> str:
    """An attribution as a header, its first texts, and how it agrees with patching."""
    from interp.reward.attribution import METHOD_WORDS

    data, attrs = found.dataset, found.dataset.attrs
    count, labels = data.sizes["prompt"], found.labels
    origin = "" if attrs["baseline"] == "none" else f" from {attrs['baseline_words']}"
    shown = max(1, min(count, _ROWS // min(len(labels), _ROWS)))
    table = found._rows(range(shown)).head(_ROWS)
    table["text"] = [short(text) for text in table["text"]]
    table["top_word"] = [short(word, 20) for word in table["top_word"]]
    names = {"completeness_error": "error", "patching_rank_correlation": "patching", "baseline_score": "baseline"}
    hidden = ["prompt", "converged", *([] if len(labels) > 1 else ["label"])]
    if attrs["method"] != "integrated_gradients":
        hidden += ["baseline_score", "completeness_error", "points"]
    lines = [
        f"{attrs['model']}, {METHOD_WORDS[attrs['method']]}{origin}: {_count(count, 'text')},"
        f" {f'label {short(labels[0])}' if len(labels) == 1 else _count(len(labels), 'label')}, {attrs['units']}",
        frame_text(table.drop(columns=hidden).rename(columns=names)),
    ]
    rest = count * len(labels) - len(table)
    lines += [f"... and {rest} more"] if rest else []
    if found.unconverged:
        missed = len(found.unconverged)
        over = f"above the tolerance of {100 * attrs['tolerance']:g} %"
        lines.append(f"{missed} of {count * len(labels)} {over}: .unconverged")
    patched = attrs.get("patched_texts", count)
    if patched < count and table["patching_rank_correlation"].isna().any():
        lines.append(f'"-" under patching: not among the {patched} texts that were patched (patched_texts=)')
    said = found.beside_patching() if attrs["method"] != "leave_one_out" else []
    lines += said[:_LABELS]
    lines += [f"... and {len(said) - _LABELS} labels more: .patching()"] if len(said) > _LABELS else []
    return "\n".join([*lines, 'go on with .words(0), .tokens(0), .summary(), .patching(), .report("x.html")'])


def lens_text(found: Lens) -> str:
    """A lens as a table: by layer for one label, by label for many."""
    data = found.dataset
    labels, sites = [str(label) for label in data["label"].values], [str(site) for site in data["site"].values]
    head = (
        f"{data.attrs['model']}: the score read off every layer, {_count(data.sizes['prompt'], 'text')},"
        f" {_count(len(labels), 'label')}, threshold {data.attrs['threshold']:g} {data.attrs['units']}"
    )
    decided = data["deciding_site"].values
    if len(labels) == 1:
        table = pd.DataFrame(
            {
                "layer": sites,
                "mean score": data["lens_score"].mean("prompt").values[:, 0],
                "rank correlation with the last": data["lens_rank_correlation"].values[:, 0],
                "share of texts decided here": [float((decided[:, 0] == site).mean()) for site in sites],
            }
        )
    else:
        often = [max(sites, key=lambda site: int((decided[:, j] == site).sum())) for j in range(len(labels))]
        table = pd.DataFrame(
            {
                "label": labels,
                "mean score": data["lens_score"].mean("prompt").values[-1],
                "mean changes of side": data["changes"].mean("prompt").values,
                "decided most often at": often,
            }
        )
    lines = [head, frame_text(_middle_out(table)), *_lens_notes(data)]
    return "\n".join([*lines, "go on with .summary(), .dataset, interp.plot.reward.reward_lens(...)"])


def _lens_notes(data: xr.Dataset) -> list[str]:
    """What a reader of a lens may stumble over."""
    scores, ranks, notes = data["lens_score"].values, data["lens_rank_correlation"].values, []
    count, labels = len(scores), scores.shape[2]
    if labels == 1 and np.isnan(ranks).any():
        why = "fewer than three texts" if count < 3 else "the score read there is the same for every text"
        notes.append(f'"-": no rank correlation, {why}')
    above = scores[:, -1] > data.attrs["threshold"]
    sided = int((above.all(0) | ~above.any(0)).sum())
    if sided and count > 1:
        which = f"every text ends {'above' if above.all() else 'below'} the threshold"
        which = which if labels == 1 else f"for {sided} of {labels} labels every text ends on one side of the threshold"
        notes.append(
            f"{which}: to be decided is then only to stay on that side; a threshold= amid the scores, as their median,"
            " parts the texts"
        )
    return notes


def direct_text(found: DirectAttribution) -> str:
    """The largest components of a direct attribution, and how far they agree with patching."""
    data, labels = found.dataset, found.labels
    table = found.summary()
    hidden = [] if len(labels) > 1 else ["label"]
    said, left = found.beside_patching(), ""
    if len(labels) > 1:  # biases differ among labels more than anything that a text does
        table, left = table[table["component"] != "bias"], "; biases are in .summary()"
    lines = [
        f"{data.attrs['model']}, direct attribution of the logit: {_count(data.sizes['prompt'], 'text')},"
        f" {f'label {short(labels[0])}' if len(labels) == 1 else _count(len(labels), 'label')}, logits{left}",
        frame_text(table.head(_ROWS).drop(columns=hidden)),
    ]
    lines += [f"... and {len(table) - _ROWS} more"] if len(table) > _ROWS else []
    lines += said[:_LABELS]
    lines += [f"... and {len(said) - _LABELS} labels more: .patching()"] if len(said) > _LABELS else []
    return "\n".join([*lines, 'go on with .summary(), .patching(), .dataset ("head_attribution" has it by head)'])


def spurious_text(found: Spurious) -> str:
    """The findings of `spurious`, the largest first."""
    table = found.summary()
    table["what"] = [short(str(what)) for what in table["what"]]
    table["against"] = ["neutral prefix" if what == NEUTRAL_PREFIX else short(what, 28) for what in table["against"]]
    lines = [str(found).removesuffix(f"; {found.neutral}"), *([found.neutral] if found.neutral else [])]
    lines.append(f"{_count(found.dataset.sizes['prompt'], 'text')}; effects in standard deviations (sd) of the score")
    lines.append(frame_text(table.head(2 * _ROWS)))
    lines += [f"... and {len(table) - 2 * _ROWS} more"] if len(table) > 2 * _ROWS else []
    return "\n".join([*lines, 'go on with .held, .summary(), .report("x.html"), interp.plot.reward.spurious(...)'])


def counterexamples_text(found: Counterexamples) -> str:
    """The first of each kind of counterexample."""
    about = found.about
    lines = [f"{about['model']}, {about['label']}: {about['texts']} labelled texts, scores in {about['units']}"]
    kinds: Sequence[tuple[str, pd.DataFrame, list[str]]] = (
        ("most at odds with their label", found.at_odds, ["text", "labelled", "score", "rank"]),
        ("near pairs on two sides of the threshold", found.pairs, ["high", "low", "high_score", "low_score"]),
        ("one token for another", found.swaps, ["swapped", "removed", "put", "start", "score"]),
    )
    for title, frame, columns in kinds:
        some = frame[columns].head(5).copy()
        for name in some.columns:
            if some[name].map(lambda value: isinstance(value, str)).all():
                some[name] = [short(value, 36) for value in some[name]]
        lines.append(f"{title} ({len(some)} of {len(frame)})" if len(frame) else f"{title}: none")
        lines += [frame_text(some)] if len(frame) else []
    return "\n".join([*lines, 'go on with .at_odds, .pairs, .swaps, .report("x.html")'])


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


_MOST = 32  # rows of a table


def _middle_out(table: pd.DataFrame) -> pd.DataFrame:
    """A long table by rows evenly spread, its first and last among them."""
    if len(table) <= _MOST:
        return table
    return table.iloc[np.unique(np.linspace(0, len(table) - 1, _MOST).round().astype(int))]
