"""`interp train`: a recipe in, a pair of checkpoints out."""

from __future__ import annotations

import os
import sys
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
    which = f" of {event['model']}" if "model" in event else ""
    steps = f"{event['step']}/{event['steps']}" if event.get("steps", 1) > 1 else ""
    return "  ".join(filter(None, [f"{event['stage']}{which}", steps, _figures(event)]))


def _figures(event: dict[str, Any]) -> str:
    return "  ".join(f"{word} {event[key]:.3g}" for key, word in _SHOWN.items() if event.get(key) is not None)


@contextmanager
def progress_lines() -> Iterator[Callable[[dict[str, Any]], None]]:
    """A callback that shows training's events: a live bar on a terminal, a few lines a stage elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=1, figures="")
        shown: tuple[str, int] = ("", -1)

        def show(event: dict[str, Any]) -> None:
            nonlocal shown
            name = event["stage"] + (f" of {event['model']}" if "model" in event else "")
            if name != shown[0]:
                bar.reset(task, total=event["steps"], description=name)
            bar.update(task, completed=event["step"], figures=_figures(event))
            part = (name, event["step"] * _LINES // event["steps"])
            if part != shown and (not console.is_terminal or (part[0] != shown[0] and event["steps"] == 1)):
                console.print(_progress_text(event), highlight=False, markup=False, soft_wrap=True)
            shown = part

        yield show


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(help="Recipe: a TOML file, or one of the package as demo or emotion; not with --resume."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="New folder for the pair.")] = None,
    engine: Annotated[str | None, typer.Option(help="native, trlx or trl, instead of the recipe's.")] = None,
    override: Annotated[
        list[str] | None, typer.Option("--set", help="Change one key, as train.seed=1; repeatable.")
    ] = None,
    controls: Annotated[str | None, typer.Option(help="Null runs beside the pair, as shuffled=3,unrelated=2.")] = None,
    replicates: Annotated[int | None, typer.Option(help="Runs of the recipe with other seeds.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Resolve and validate everything, fetch and train nothing.")
    ] = False,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the run toward this folder, where it was killed or stopped.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier pair or unfinished run in --out.")
    ] = False,
) -> None:
    """Train a pair of checkpoints by a recipe: base and tuned, with their reward model and everything between."""
    from training import RLHFConfig

    if resume is not None:
        extra: dict[str, Any] = {
            "RECIPE": recipe,
            "--out": out,
            "--engine": engine,
            "--set": override,
            "--controls": controls,
        }
        extra |= {"--replicates": replicates, "--check": check or None, "--overwrite": overwrite or None}
        given = [name for name, value in extra.items() if value is not None]
        if given:
            raise ConfigError(f"--resume takes the run's own recipe and settings; leave out {', '.join(given)}")
        _train(None, resume, resume=True)
        return
    if recipe is None:
        raise ConfigError("a recipe is missing: interp train RECIPE --out FOLDER (or --resume FOLDER)")
    changes = dict(_assignment(text) for text in override or [])
    changes |= {} if engine is None else {"train.engine": engine}
    changes |= {f"nulls.{kind}": str(count) for kind, count in _counts(controls).items()}
    changes |= {} if replicates is None else {"nulls.replicates": str(replicates)}
    config = RLHFConfig.load(recipe, changes)
    if check:
        _check(config)
        return
    if out is None:
        raise ConfigError("--out is missing: name a new folder for the pair (or pass --check)")
    _train(config, out, overwrite=overwrite)


def _check(config: Any) -> None:
    """Print what the recipe stands for."""
    from training import check

    found = check(config)
    width = max(map(len, found))
    for name, value in found.items():
        print(f"{name:{width}}  {value}")
    fetched = [name for name, value in found.items() if "not fetched" in value]
    note = f"; what would come from the hub was not looked at ({', '.join(fetched)})" if fetched else ""
    print(f"\nthe recipe is sound{note}; nothing was trained")


def _train(config: Any, out: Path, *, overwrite: bool = False, resume: bool = False) -> None:
    """Train with a live line, and print what came of it."""
    from interp.io import check_new_folder
    from interp.pair import MANIFEST
    from training import train as run
    from training.run.workshop import unfinished

    if not resume:
        check_new_folder(out, owned_by=MANIFEST, overwrite=overwrite)
    try:
        with progress_lines() as progress:
            pair = run(config, out, overwrite=overwrite, resume=resume, progress=progress)
    except (KeyboardInterrupt, SystemExit) as stop:  # Ctrl-C, SIGTERM
        if unfinished(out).is_dir() and not int(os.environ.get("RANK", "0")):
            print(f"interp: stopped; go on with: interp train --resume {out}", file=sys.stderr)
        raise SystemExit(130 if isinstance(stop, KeyboardInterrupt) else stop.code) from None
    if int(os.environ.get("RANK", "0")):
        return  # one of several processes speaks for all
    _print_final(pair)
    _print_others(pair)
    print(f"\nwrote {pair.path}; compare with: interp compare {pair.base} {pair.tuned} --prompt ... --out ...")


def _print_final(pair: Any) -> None:
    """What the held-out prompts say of base and tuned, side by side."""
    final = pair.manifest["final"]
    head = f"{final['heldout_prompts']} held-out prompts, {final['samples']} samples"
    print(f"{head:36}{'base':>12}{'tuned':>12}")
    named = {
        "reward": "mean reward",
        "reward_sd": "its standard deviation over samples",
        "distinct_2": "distinct-2",
        "length": "length in tokens",
    }
    for key, words in named.items():
        print(f"{words:36}{final[f'base_{key}']:12.4f}{final[key]:12.4f}")
    print(f"{'KL(tuned || base), nats per token':36}{'':12}{final['kl']:12.4f}")
    print(f"{'the same before the first step':36}{'':12}{final['kl_at_step_0']:12.2g}")
    if "accuracy" in pair.manifest["reward"]:
        print(f"{'accuracy of the reward model':36}{pair.manifest['reward']['accuracy']:12.4f}")


def _print_others(pair: Any) -> None:
    """A line for each control run and replicate."""
    for entry in (*pair.manifest.get("controls", ()), *pair.manifest.get("replicates", ())):
        final = entry["final"]
        short = "" if entry.get("reached_kl") in (None, True) else ", which is not the pair's"
        print(f"{entry['path']:36}{'':12}{final['reward']:12.4f}  at KL {final['kl']:.4f}{short}")


def _counts(text: str | None) -> dict[str, int]:
    """`shuffled=3,unrelated=2` as numbers."""
    counts = {}
    for part in (text or "").split(",") if text else ():
        kind, _, number = part.strip().partition("=")
        if kind not in ("shuffled", "unrelated") or not number.isdecimal():
            raise ConfigError(f"--controls takes shuffled=3,unrelated=2 (either or both), not {text!r}")
        counts[kind] = int(number)
    return counts


def _assignment(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or "." not in key:
        raise ConfigError(f"--set takes section.key=value, as train.seed=1, not {text!r}")
    return key.strip(), value.strip()
