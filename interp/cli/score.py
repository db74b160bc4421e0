"""`interp score`: what a reward model says of texts, label by label."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from interp.models import RewardModel


def score(
    reward: Annotated[str, typer.Argument(help="Reward model: a classifier's folder or hub id.")],
    texts: Annotated[list[str], typer.Argument(help="Texts; - reads one a line from standard input.")],
    label: Annotated[str | None, typer.Option(help="Only this label.")] = None,
    output: Annotated[
        str | None, typer.Option(help="probability, softmax, sigmoid or logit; default what suits the model.")
    ] = None,
    top: Annotated[int, typer.Option(help="Only the so many largest of each text; 0 shows all.", min=0)] = 0,
    batch_size: Annotated[int, typer.Option(help="Texts scored at a time.", min=1)] = 64,
    device: Annotated[str | None, typer.Option(help="Device, as cuda; default the CPU.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
) -> None:
    """Print every label's score of each text, largest first."""
    from interp.cli.show import working
    from interp.errors import PromptError

    lines = list(_lines(texts))
    if not lines:
        raise PromptError("there is no text to score; give one, or lines on standard input with -")
    with working("loading the reward model"):
        model = _load(reward, label, output, device, revision)
    with working("scoring"):
        rows = model.score_labels(lines, batch_size=batch_size)
        cut = model.too_long(lines)
    names = model.labels if label is None else (label,)
    width = max(map(len, names))
    for number, (text, row) in enumerate(zip(lines, rows, strict=True)):
        if number:
            print()
        print(text if text.strip() else "(empty text)")
        scores = dict(zip(model.labels, row.tolist(), strict=True))
        for name in sorted(names, key=lambda name: -scores[name])[: top or None]:
            print(f"  {name:{width}}  {scores[name]:8.4f}")
    if cut:
        print(f"{cut} of {len(lines)} texts exceed the model's context and were cut at its end", file=sys.stderr)


def _lines(texts: Sequence[str]) -> list[str]:
    """The texts, with the lines of standard input in place of each -."""
    return [line for text in texts for line in ((each.rstrip("\n") for each in sys.stdin) if text == "-" else (text,))]


def _load(source: str, label: str | None, output: str | None, device: str | None, revision: str | None) -> RewardModel:
    from interp.models import RewardModel
    from interp.models.pretrained import load_both
    from interp.pair import pair_at

    if pair_at(source) is not None:
        return RewardModel.load(source, label=label, output=output, device=device)  # type: ignore[arg-type]
    # A model of several labels has to be told one; here any will do, as all are printed.
    model, tokenizer = load_both(
        source, None, revision=revision, trust_remote_code=False, head="classifier", device=device
    )
    names = list(model.config.id2label.values())  # type: ignore[union-attr, operator]
    chosen = label if label is not None or not names else names[0]
    scalar = getattr(model.config, "problem_type", None) == "regression"
    output = output if output is not None else ("logit" if scalar else "probability")
    return RewardModel.load(model, tokenizer=tokenizer, label=chosen, output=output)  # type: ignore[arg-type]
