"""`interp reward`: which words a reward model's score of a text comes from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from interp.reward import Attribution


def reward(
    model: Annotated[str, typer.Argument(help="Reward model: a classifier's folder or hub id.")],
    texts: Annotated[list[str], typer.Argument(help="Texts; - reads one a line from standard input.")],
    label: Annotated[
        list[str] | None, typer.Option(help="Label to read, may be repeated; default the highest of each text.")
    ] = None,
    output: Annotated[str, typer.Option(help="logit, probability, softmax or sigmoid.")] = "logit",
    method: Annotated[
        str, typer.Option(help="integrated_gradients, leave_one_out or gradient_x_input.")
    ] = "integrated_gradients",
    baseline: Annotated[
        str | None, typer.Option(help="mean, zero, mask or unk; for leave_one_out also delete.")
    ] = None,
    patched_texts: Annotated[
        int,
        typer.Option(help="In how many texts each token is put at the baseline to compare; 0: none."),
    ] = 8,
    html: Annotated[Path | None, typer.Option(help="Also write the coloured texts as an HTML page.")] = None,
    device: Annotated[str | None, typer.Option(help="Device, as cuda; default the CPU.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
) -> None:
    """Show which words raise and which lower a reward model's score."""
    from interp.cli.score import _lines, _load
    from interp.cli.show import working
    from interp.result.pages import check_page
    from interp.reward import attribute

    if html is not None:
        check_page(html)
    with working("loading the reward model"):
        loaded = _load(model, label[0] if label else None, output, device, revision)
    lines = list(_lines(texts))
    with working("attributing"):
        named = label or _highest(loaded, lines)
        way: Any = method  # attribute() says which there are
        found = attribute(loaded, lines, method=way, labels=named, baseline=baseline, patched_texts=patched_texts)
    _show(found)
    if html is not None:
        print(f"wrote {found.report(html)}")


def _highest(model: object, lines: list[str]) -> list[str]:
    """The label of the highest score of each text, each once."""
    from interp.models import RewardModel
    from interp.reward.texts import check_texts

    assert isinstance(model, RewardModel)
    tops = model.score_labels(list(check_texts(lines))).argmax(1)
    return list(dict.fromkeys(model.labels[index] for index in tops))


def _show(found: Attribution) -> None:
    from rich.console import Console
    from rich.text import Text

    console, data = Console(highlight=False, soft_wrap=True), found.dataset
    for row in range(data.sizes["prompt"]):
        table = found.words(row)
        for label in found.labels:
            cell = data.sel(label=label).isel(prompt=row)
            values = table[label].to_numpy()
            most = max(abs(values).max(), 1e-12)
            line = Text(f"{label} {float(cell['score']):+.3f}  ", style="bold")
            for word, value in zip(table["word"], values, strict=True):
                strong = abs(value) > most / 3
                colour = ("red" if value > 0 else "blue") if strong else "default"
                line.append(str(word), style=f"bold {colour}" if abs(value) > 2 * most / 3 else colour)
                line.append(f"({value:+.2f}) " if strong else " ", style="dim" if not strong else colour)
            console.print(line)
            console.print(Text("  " + _note(found, row, label), style="dim"))
    if data.attrs["method"] != "leave_one_out" and "patching_effect" in data:
        for sentence in found.beside_patching():
            console.print(Text(sentence))


def _note(found: Attribution, row: int, label: str) -> str:
    cell, attrs = found.dataset.sel(label=label).isel(prompt=row), found.dataset.attrs
    parts = []
    if attrs["method"] == "integrated_gradients":
        parts.append(
            f"from {attrs['baseline_words']} ({float(cell['baseline_score']):+.3f}); the parts miss the difference by"
            f" {float(cell['completeness_error']):.2g} with {int(cell['points'])} points"
        )
        parts += [] if bool(cell["converged"]) else ["above the tolerance"]
    # Of one text it is the mean, too, which is printed below.
    several = found.dataset.sizes["prompt"] > 1
    if several and "patching_rank_correlation" in cell and bool(cell["patching_rank_correlation"].notnull()):
        parts.append(f"rank correlation with patching {float(cell['patching_rank_correlation']):.2f}")
    return "; ".join(parts) or attrs["method"].replace("_", " ")
