"""`interp report`: a saved comparison in, its HTML page out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path, typer.Argument(help="Folder that interp compare wrote.")],
    to: Annotated[Path | None, typer.Option(help="File to write; default report.html in the folder.")] = None,
) -> None:
    """Write the report of a saved comparison again."""
    from interp.comparison import Comparison

    path = Comparison.load(folder).report(to or folder / "report.html")
    print(f"wrote {path}")
