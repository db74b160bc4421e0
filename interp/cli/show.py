"""What a command prints."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from interp.comparison import Comparison


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


def print_comparison(cmp: Comparison) -> None:
    """Print the summary: a table that fits the terminal, or plain columns into a pipe."""
    if not sys.stdout.isatty():
        print(cmp)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from interp.text import RIGHT, headline, notes, text_rows

    console = Console()
    header, *rows = text_rows(cmp.summary())
    table = Table(title=Text(headline(cmp.dataset)), title_justify="left", show_edge=False, pad_edge=False)
    for name in header:
        table.add_column(name, justify="right" if name in RIGHT else "left")
    previous = None
    for row in rows:
        if previous is not None and row[0] != previous:
            table.add_section()
        table.add_row(*(Text("" if i == 0 and cell == previous else cell) for i, cell in enumerate(row)))
        previous = row[0]
    console.print(table)
    for note in notes(cmp.summary(), cmp.dataset):
        console.print(Text(note, style="dim"))


def write_and_print(cmp: Comparison, out: Path, *, overwrite: bool) -> None:
    """Write comparison, summary and report into one new folder, all or nothing, and then print the summary."""
    from interp.comparison import FILE, OWN, REPORT
    from interp.io import atomic_folder

    with atomic_folder(out, owned_by=FILE, own=OWN, overwrite=overwrite) as folder:
        cmp.write_into(folder)
        cmp.report(folder / REPORT)
    print_comparison(cmp)
    print(f"\nwrote {out}/report.html (open it in a browser), {out}/comparison.nc and {out}/summary.csv")
