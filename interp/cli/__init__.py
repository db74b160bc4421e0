"""The command `interp`: one file a subcommand. What a command needs is imported when it runs."""

from __future__ import annotations

import io
import os
import signal
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Annotated

import typer

from interp import __version__
from interp.cli.compare import compare
from interp.cli.demo import demo
from interp.cli.play import play
from interp.cli.report import report
from interp.cli.reward import reward
from interp.cli.score import score
from interp.cli.sweep import sweep
from interp.cli.train import train
from interp.cli.train_reward import train_reward
from interp.errors import InterpError
from interp.io import os_reason

app = typer.Typer(
    help="What did RLHF change inside the model? Compare a base model with its tuned version.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (compare, report, demo, train, train_reward, play, score, reward, sweep):
    app.command()(command)


def _version(asked: bool) -> bool:
    if asked:
        print(f"rlhf-interp {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _terminated(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def _ours_before_others() -> None:
    """Move every entry of `sys.path` that holds another `training` or `analyses` behind the folder of ours.

    With `python -m` the path begins with the working directory, whose files would be taken for parts of the toolkit.
    Processes that are spawned from here inherit the path.
    """
    home = Path(__file__).resolve().parents[2]
    ours = [name for name in ("training", "analyses") if (home / name / "__init__.py").is_file()]
    others = []
    for entry in sys.path:
        specs = [PathFinder.find_spec(name, [entry or os.getcwd()]) for name in ours]
        # A folder without __init__.py, which has no loader, gives way to a package anyway.
        if any(spec and spec.loader and not Path(spec.origin or "").resolve().is_relative_to(home) for spec in specs):
            others.append(entry)
    if others:
        rest = [entry for entry in sys.path if entry not in others]
        sys.path[:] = [*rest, *([] if str(home) in rest else [str(home)]), *others]


def main() -> None:
    """Run the command line; an error of the toolkit is one line on stderr and exit code 2."""
    _ours_before_others()
    # Set before anything imports transformers: a shell user wants our one-line errors, not its log or its bars.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    signal.signal(signal.SIGTERM, _terminated)  # so that a job that is stopped takes its temporary folder with it
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that knows no Unicode still gets the table
    try:
        app()
    except InterpError as error:
        print(f"interp: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except OSError as error:
        print(f"interp: {error.filename or 'cannot write'}: {os_reason(error)}", file=sys.stderr)
        raise SystemExit(2) from None
