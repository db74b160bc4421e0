"""`interp train`: a recipe in, a pair of checkpoints out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from interp.errors import ConfigError


@contextmanager
def progress_lines() -> Iterator[Callable[[dict[str, Any]], None]]:
    """A callback that prints training's events: a live line on a terminal, a line now and then elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("") as status:
        seen = 0

        def show(event: dict[str, Any]) -> None:
            nonlocal seen
            cells = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in event.items() if v is not None]
            line = "  ".join(cells)
            status.update(line)
            seen += 1
            if not console.is_terminal and seen % 20 == 1:
                console.print(line, highlight=False, markup=False, soft_wrap=True)

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
    for name, value in pair.manifest["final"].items():
        print(f"{name:20} {value:.4f}" if isinstance(value, float) else f"{name:20} {value}")
    print(f"\nwrote {pair.path}; compare with: interp compare {pair.base} {pair.tuned} --prompt ... --out ...")


def _assignment(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or "." not in key:
        raise ConfigError(f"--set takes section.key=value, as train.seed=1, not {text!r}")
    return key.strip(), value.strip()
