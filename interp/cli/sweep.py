"""`interp sweep`: a pair for each emotion, all readings, and the tables across them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interp.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd


def sweep(
    file: Annotated[str, typer.Argument(help="Sweep: a TOML file, or the one of the package, emotions.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the sweep; an earlier state goes on.")] = None,
    engine: Annotated[str, typer.Option(help="local (processes of this machine) or ray.")] = "local",
    jobs: Annotated[int, typer.Option(help="Processes.")] = 1,
    override: Annotated[
        list[str] | None, typer.Option("--set", help="Change one key, as prompt_limit=16; repeatable.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Resolve everything, compute nothing.")] = False,
    status: Annotated[bool, typer.Option("--status", help="Show how far the sweep in --out is.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Try failed cells again.")] = False,
) -> None:
    """Train and read a pair for each emotion of a sweep file, and lay them side by side."""
    import analyses.sweep as run
    from analyses.sweep.engines import engine as engine_of
    from analyses.sweep.run import differs, errors

    config = run.SweepConfig.load(file, dict(_assignment(text) for text in override or []))
    if out is None and not check:
        raise ConfigError("--out is missing: name the sweep's folder (or pass --check)")
    engine_of(engine, jobs)  # which refuses what it cannot be
    if check:
        found = run.check(config, out or Path("sweep"))
        width = max(map(len, found))
        for name, value in found.items():
            print(f"{name:{width}}  {value}")
        print("\nthe sweep is sound; nothing was computed")
        return
    assert out is not None
    if status and not (out / run.RECIPE).is_file():
        raise ConfigError(f"{out} holds no sweep; run the command without --status to begin it")
    if status and differs(config, out):
        print(f"the sweep in {out} began with another file, its {run.RECIPE}; this is how far it is for {file}")
    try:
        table = run.status(config, out) if status else run.sweep(config, out, engine=engine, jobs=jobs, retry=retry)
    except KeyboardInterrupt:
        print(f"interp: stopped; what is done is in {out}: run the same command again to go on", file=sys.stderr)
        raise typer.Exit(130) from None
    failed = errors(config, out)
    _show(table, failed)
    if failed and not status:
        print(f"{len(failed)} cells failed; run the same command with --retry to try them again", file=sys.stderr)
        raise typer.Exit(1)


def _show(table: pd.DataFrame, failed: dict[str, str]) -> None:
    print(table.to_string())
    for name, error in failed.items():
        print(f"{name} failed: {error}")


def _assignment(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set takes key=value, as prompt_limit=16, not {text!r}")
    return key.strip(), value.strip()
