"""The page of the good-vs-bad study: its figures, the published table, and what the numbers say."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.stats
from matplotlib.figure import Figure

from analyses.good_vs_bad.study import Study
from interp.io import atomic_folder
from interp.patching import Patching
from interp.plot import patching as drawing
from interp.plot.text import clean
from interp.result.pages import template

TABLE, PAGE, TEXT = "published.csv", "report.html", "study.txt"


@dataclass(frozen=True)
class Section:
    """A heading, sentences, figures by name, and rows of a table."""

    title: str
    lines: tuple[str, ...]
    figures: tuple[tuple[str, Figure], ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def write(study: Study, path: str | os.PathLike[str]) -> Path:
    """Write the folder `path`: report.html (needs no other file), every figure as PNG, published.csv, study.txt.

    Raises:
        InterpError: the folder holds something else than an earlier report, or cannot be written.
    """
    sections = list(said(study))
    names = [f"{name}.png" for each in sections for name, _ in each.figures]
    pictures = {name: _png(figure) for each in sections for name, figure in each.figures}
    widths = {name: round(figure.get_figwidth() * 110) for each in sections for name, figure in each.figures}
    shown = [
        {
            "title": each.title,
            "lines": [clean(line) for line in each.lines],
            "pictures": [
                (name, base64.b64encode(pictures[name]).decode(), round(widths[name] * 1.15))
                for name, _ in each.figures
            ],
            "rows": [[clean(cell) for cell in row] for row in each.rows],
        }
        for each in sections
    ]
    answer, alternative = study.subject.words
    html = template("page.html", "analyses.good_vs_bad").render(
        answer=repr(answer), alternative=repr(alternative), count=len(study.subject.prompts), sections=shown,
        base=_called(study.subject.base), tuned=_called(study.subject.tuned),
    )  # fmt: skip
    every = (PAGE, TABLE, TEXT, *names, *(f"{name}.png" for name in FIGURES))
    with atomic_folder(path, owned_by=TABLE, own=every, overwrite=True) as folder:
        (folder / PAGE).write_text(html, encoding="utf-8")
        (folder / TABLE).write_text(study.table.to_csv(index=False), encoding="utf-8")
        text = "\n\n".join("\n".join([each.title, *each.lines]) for each in sections)
        (folder / TEXT).write_text(clean(text) + "\n", encoding="utf-8")
        for name, data in pictures.items():
            (folder / f"{name}.png").write_bytes(data)
    return Path(path) / PAGE


FIGURES = (
    "top_tokens", "answers", "lens", "attribution", "neurons", "heads", "heads_map", "resid_pre", "attn_out", "mlp_out",
    "sets", "needed", "search", "dose", "reward", "value",
)  # fmt: skip


def said(study: Study) -> Iterator[Section]:
    """The sections, in the order of the published study, and then its wishes."""
    cmp, what = study.comparison, study.subject
    rows = (("quantity", "published", "here"), *(tuple(map(str, row)) for row in study.table.values.tolist()))
    one = f"On the one prompt {what.one.texts[0]!r}, beside the published pair's figures."
    yield Section("The published quantities", (one,), rows=rows)
    yield Section("Top tokens", (_moved(cmp.summary()),), (("top_tokens", cmp.plot.top_tokens()),))
    yield Section("Logit difference", _differences(study), (("answers", cmp.plot.answers()),))
    yield Section("Logit lens", (), (("lens", cmp.plot.lens()),))
    complete = f"The terms sum to the logit difference within {_worst(study):.1e} logits."
    yield Section("Attribution by layer", (complete,), (("attribution", cmp.plot.attribution()),))
    yield Section("MLP neurons", (), (("neurons", cmp.plot.neurons()),))
    yield Section("Attribution by head", (), (("heads", cmp.plot.heads()),))
    maps = tuple((name, drawing.recovery_map(study.positions, name)) for name in ("resid_pre", "attn_out", "mlp_out"))
    many = f"Tuned into base, on the {study.positions.dataset.sizes['prompt']} prompts of the commonest length."
    yield Section("Patching by layer and position", (many,), maps)
    heads = ("heads_map", drawing.recovery_map(study.heads, "z"))
    yield Section("Patching of every head", _heads(study), (heads,))
    yield Section("Several together", tuple(_sets(study.sets)), (("sets", drawing.bars(study.sets)),))
    yield Section("What is needed: base into tuned", (), (("needed", drawing.bars(study.needed)),))
    yield Section("How large are such effects by chance?", _chance(study))
    yield Section("The smallest set", (_smallest(study),), (("search", drawing.search(study.smallest)),))
    yield Section("Steering", (_steered(study),), (("dose", drawing.dose_curve(study.steered)),))
    if study.written is None:
        yield Section("What it writes", ("No reward model was given, so no text was sampled under patches.",))
    else:
        yield Section(
            "What it writes under patches", _written(study.written), (("reward", drawing.bars(study.written)),),
            _samples(study.written),
        )  # fmt: skip
    if study.value is not None:
        yield Section("The value head", (_value(study),), (("value", drawing.value(study.value)),))


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()


def _called(policy: object) -> str:
    about = dict(getattr(policy, "description"))  # noqa: B009
    for key in ("id", "folder", "object"):
        if key in about:
            return Path(str(about[key])).name if key == "folder" else str(about[key])
    return "model"


def _worst(study: Study) -> float:
    return float(np.abs(study.comparison["completeness_error"].values).max())


def _row(result: Patching, index: int = 0) -> str:
    row = result.summary().iloc[index]
    text = f"{row['site']}: effect {row['effect']:+.3f}"
    if np.isfinite(row["effect_low"]):
        text += f" [{row['effect_low']:+.3f}, {row['effect_high']:+.3f}]"
    if "recovery" in row and np.isfinite(row["recovery"]):
        text += f", recovery {row['recovery']:.1%}"
    return text


def _moved(table: pd.DataFrame) -> str:
    moved = table[table["reading"] == "next token"]
    said = (f"{row['finding']}: {row['estimate']:.3g}" for _, row in moved.head(3).iterrows())
    return "; ".join(said) + "." if len(moved) else "No token moved."


def _differences(study: Study) -> tuple[str, ...]:
    both = study.comparison["logit_diff"].mean("prompt")
    base, tuned = float(both.sel(model="base")), float(both.sel(model="tuned"))
    return (f"Mean over {len(study.subject.prompts)} prompts: base {base:+.3f}, tuned {tuned:+.3f} logits.",)


def _heads(study: Study) -> tuple[str, ...]:
    change = study.comparison["head_attribution"].sel(model="tuned") - study.comparison["head_attribution"].sel(
        model="base"
    )
    direct = change.mean("prompt").transpose("layer", "head").values.ravel()
    caused = study.heads.map("z", "effect").mean("prompt").transpose("layer", "head").values.ravel()
    return (
        f"Largest: {_row(study.heads)}.",
        "Attribution patching (a gradient in place of a patch) ranks the heads' effects with Spearman"
        f" {float(study.estimate.dataset.attrs['rank_correlation']):.3f} of exact patching.",
        "Direct attribution's differences rank the same heads with Spearman"
        f" {float(scipy.stats.spearmanr(direct, caused).statistic):.3f}.",
    )


def _sets(result: Patching) -> Iterator[str]:
    frame = result.summary()
    for index in range(len(frame)):
        row = frame.iloc[index]
        text = f"{_row(result, index)}"
        if np.isfinite(row.get("random_low", np.nan)):
            text += f"; random sets of the same size: {row['random_low']:.1%} to {row['random_high']:.1%}"
        yield text + "."


def _chance(study: Study) -> tuple[str, ...]:
    own = max(_largest(study.heads, "z"), _largest(study.layers, "mlp_out"))
    if not study.nulls:
        return ("There are no null runs of this pair, so it cannot be said.",)
    largest = [max(_largest(each, "z"), _largest(each, "mlp_out")) for each in study.nulls]
    runs = f"{len(largest)} null run{'s' if len(largest) > 1 else ''}"
    return (
        f"The largest effect of one head or MLP is {own:.3f} logits here, and at most {max(largest):.3f} in {runs}"
        " (a reward that meant nothing). With fewer than 19 null runs there is a range and no p.",
    )


def _largest(result: Patching, name: str) -> float:
    return float(np.abs(result.map(name, "effect").mean("prompt").values).max())


def _smallest(study: Study) -> str:
    found = study.smallest
    target = f"{found.dataset.attrs['target']:.0%}"
    reached = float(found["recovery"][-1])
    if found.size is None:
        most = found.dataset.sizes["size"]
        return (
            f"No set of up to {most} heads, MLPs and the embedding brings {target}; the largest brings {reached:.1%}."
            f" What no component reaches is the readout, final norm and unembedding, with {_readout(study)} by itself."
        )
    return f"{found.size} components bring {target} on the prompts that chose them and {reached:.1%} on the others."


def _readout(study: Study) -> str:
    share = float(study.layers.dataset.get("readout_recovery", np.nan))
    return f"{share:.1%}" if np.isfinite(share) else "an unknown share"


def _steered(study: Study) -> str:
    data = study.steered.dataset
    toward = np.sign(float((data["source"] - data["recipient"]).mean()))
    best = data.isel(dose=int(np.nanargmax(data["mean"].values * toward)))
    low, high = float(best["random_metric"].min()), float(best["random_metric"].max())
    return (
        f"At dose {float(best['dose']):g} the difference vector of {data.attrs['site']} brings the metric to"
        f" {float(best['mean']):+.3f}; random directions of that norm reach {low:+.3f} to {high:+.3f}."
    )


def _written(result: Patching) -> tuple[str, ...]:
    data = result.dataset
    head = (
        f"Mean reward of {data.attrs['samples']} samples a prompt: base {float(data['recipient'].mean()):.3f}, tuned"
        f" {float(data['source'].mean()):.3f}."
    )
    return (head, *(f"{_row(result, index)}." for index in range(data.sizes["site"])))


def _samples(result: Patching, count: int = 4) -> tuple[tuple[str, ...], ...]:
    """The first samples of the first prompt: base, base under the strongest patch, tuned."""
    data = result.dataset
    best = int(np.abs(data["effect"].values.mean(0)).argmax())
    columns = [
        data["recipient_completion"].values[0],
        data["completion"].values[0, best],
        data["source_completion"].values[0],
    ]
    rows = tuple(tuple(map(str, row)) for row in zip(*(column[:count] for column in columns), strict=True))
    return (("base", "base under the strongest patch", "tuned"), *rows)


def _value(study: Study) -> str:
    assert study.value is not None
    data = study.value.dataset
    step = min(8, data.sizes["step"] - 1)
    first, reward, at = float(data["mean"][0]), float(data["reward"].mean()), float(data["correlation"][step])
    return (
        f"After the prompt alone it expects {first:.3f}, and the mean reward is {reward:.3f}. After {step} tokens its"
        f" correlation with the final reward is {at:+.2f} over samples."
    )
