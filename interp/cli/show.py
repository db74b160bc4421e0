"""What a command prints."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from interp.result import Result


@contextmanager
def working(text: str) -> Iterator[None]:
    """Say on a terminal's stderr what is going on, while it is."""
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


@contextmanager
def progress_bar(first: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show on a terminal's stderr how far the work is.

    Args:
        first: what is going on until the first report.

    Yields:
        The function that takes reports: what is being done, how much of it is done, and how much there is.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks = {first: bar.add_task(first, total=None)}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                bar.update(next(reversed(tasks.values())), visible=False)
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield report


def print_result(result: Result) -> None:
    """Print the whole summary: a table that fits the terminal, or plain columns into a pipe."""
    from interp.result import frame_text

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    table = frame_text(result.summary(), width=width, fold=True)
    prose = [result.headline(), *result.notes()]
    head, *notes = [textwrap.fill(text, width) for text in prose] if width else prose
    print("\n".join([head, table, *notes]))


def write_and_print(result: Result, out: Path, *, overwrite: bool) -> None:
    """Write result, summary and report into one new folder, all or nothing, and then print the summary."""
    from interp.io import atomic_folder
    from interp.result.store import FILE, FILES, REPORT, SUMMARY, owner

    with atomic_folder(out, owned_by=owner(out), own=FILES, overwrite=overwrite) as folder:
        result.write_into(folder)
        result.report(folder / REPORT)
    print_result(result)
    print(f"\nwrote {out}/{REPORT} (open it in a browser), {out}/{FILE} and {out}/{SUMMARY}")
