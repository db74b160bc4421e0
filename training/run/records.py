"""What a run writes while it goes on: lines of figures, completions, curves."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from interp.io import atomic_file, write_text
from training.evaluate import Evaluation


class Lines:
    """A .jsonl file, one row of figures a line; what is not finite becomes null."""

    def __init__(self, path: Path, *, after: int | None = None) -> None:
        """Begin the file, or go on with it: rows whose `step` is at least `after` are dropped then."""
        self.path = path
        rows = [] if after is None else [row for row in read_lines(path) if row["step"] < after]
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))

    def add(self, row: Mapping[str, Any]) -> None:
        """Append one row."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(finite) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl file, none where it is absent; a last line that was cut off is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break  # the process was killed while it wrote the line; the state it goes on from is older
    return rows


def write_completions(folder: Path, step: int, result: Evaluation) -> None:
    """The samples of one evaluation as `step-000100.parquet`: step, prompt, draw, completion, reward."""
    import pandas as pd

    count = len(dict.fromkeys(result.texts.prompts))
    frame = pd.DataFrame(
        {
            "step": step,
            "prompt": result.texts.prompts,
            "draw": [row // count for row in range(len(result.scores))],
            "completion": result.texts.outputs,
            "reward": result.scores,
        }
    )
    folder.mkdir(exist_ok=True)
    with atomic_file(folder / f"step-{step:06d}.parquet") as file:
        frame.to_parquet(file, index=False)


def draw_curves(path: Path, metrics: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]) -> None:
    """Reward and KL over the optimiser steps: of the rollouts as a line, of held-out prompts as points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = (("reward", "reward_mean", "mean reward"), ("kl", "kl", "KL (nats per response token)"))
    for axes, (held, rolled, label) in zip(figure.subplots(1, 2), panels, strict=True):
        for rows, key, style, name in (
            (metrics, rolled, {"color": "#0072B2", "marker": "." if len(metrics) < 12 else ""}, "rollouts"),
            (evaluations, held, {"color": "#D55E00", "marker": "o", "linestyle": ""}, "held-out prompts"),
        ):
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), label=name, **style)
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
