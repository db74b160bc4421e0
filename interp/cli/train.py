"""`interp train`: a recipe in, a pair of checkpoints out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from interp.errors import ConfigError

_SHOWN = {"loss": "loss", "reward_mean": "reward", "kl": "KL", "length": "length", "accuracy": "accuracy"}
_LINES = 10  # lines a stage prints where there is no terminal to keep one line alive on


def _progress_text(event: dict[str, Any]) -> str:
    """One event of training as a line: stage, step, and the figures a person watches."""
    figures = [f"{word} {event[key]:.3g}" for key, word in _SHOWN.items() if event.get(key) is not None]
    which = f" of {event['model']}" if "model" in event else ""
    steps = f"{event['step']}/{event['steps']}" if event.get("steps", 1) > 1 else ""
    return "  ".join(filter(None, [f"{event['stage']}{which}", steps, *figures]))


@contextmanager
def progress_lines() -> Iterator[Callable[[dict[str, Any]], None]]:
    """A callback that shows training's events: a live line on a terminal, a few lines a stage elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("starting") as status:
        shown: tuple[str, int] = ("", -1)

        def show(event: dict[str, Any]) -> None:
            nonlocal shown
            line = _progress_text(event)
            status.update(line)
            part = (event["stage"] + event.get("model", ""), event["step"] * _LINES // event["steps"])
            if part != shown and (not console.is_terminal or part[0] != shown[0]):
                console.print(line, highlight=False, markup=False, soft_wrap=True)
            shown = part

        yield show


def train(
    recipe: Annotated[Path, typer.Argument(help="Recipe: a TOML file.")],
    out: Annotated[Path, typer.Option(help="New folder for the pair.")],
    override: Annotated[
        list[str] | None, typer.Option("--set", help="Change one key, as train.seed=1; repeatable.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier pair in --out.")] = False,
) -> None:
    """Train a pair of checkpoints by the recipe."""
    from interp.io import check_new_folder
    from interp.pair import MANIFEST
    from training import RLHFConfig
    from training import train as run

    check_new_folder(out, owned_by=MANIFEST, overwrite=overwrite)
    changes = dict(_assignment(text) for text in override or [])
    config = RLHFConfig.load(recipe, changes)
    with progress_lines() as progress:
        pair = run(config, out, overwrite=overwrite, progress=progress)
    final = dict(pair.manifest["final"])
    if "accuracy" in pair.manifest["reward"]:
        final["reward model's accuracy"] = pair.manifest["reward"]["accuracy"]
    for name, value in final.items():
        print(f"{name:24} {value:.4f}" if isinstance(value, float) else f"{name:24} {value}")
    print(f"\nwrote {pair.path}; compare with: interp compare {pair.base} {pair.tuned} --prompt ... --out ...")


def _assignment(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or "." not in key:
        raise ConfigError(f"--set takes section.key=value, as train.seed=1, not {text!r}")
    return key.strip(), value.strip()
