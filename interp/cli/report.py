"""`interp report`: a saved result in, its HTML page out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path, typer.Argument(help="Folder that interp compare, or save(), wrote.")],
    to: Annotated[Path | None, typer.Option(help="File to write; default report.html in the folder.")] = None,
) -> None:
    """Write the page of a saved result again."""
    from interp.result import load_result

    path = load_result(folder).report(to or folder / "report.html")
    print(f"wrote {path}")
