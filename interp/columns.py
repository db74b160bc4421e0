"""A table as a person reads it in a terminal."""

from __future__ import annotations

import numpy as np
import pandas as pd


def frame_text(frame: pd.DataFrame) -> str:
    """A frame as aligned columns: words to the left, numbers of four digits to the right, NaN as a dash."""
    number = [bool(pd.api.types.is_numeric_dtype(kind)) for kind in frame.dtypes]
    lines = [list(map(str, frame.columns)), *([_cell(value) for value in row] for row in frame.values.tolist())]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rows = (
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, number, strict=True)
        )
        for line in lines
    )
    return "\n".join(row.rstrip() for row in rows)


def _cell(value: object) -> str:
    if isinstance(value, (float, np.floating)):
        return f"{value:.4g}" if np.isfinite(value) else "-"
    return str(value)
