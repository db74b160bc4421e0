"""Reading a figure back, for the tests of figures."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text


def drawn(figure: Figure) -> Figure:
    """Lay the figure out and render it, which is when warnings on glyphs and layout come."""
    figure.draw_without_rendering()
    return figure


def words(figure: Figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(Text))


def line(ax, label: str) -> np.ndarray:
    (found,) = [artist for artist in ax.lines if artist.get_label() == label]
    return np.asarray(found.get_ydata(), dtype=float)


def mean_change(data, name: str, *dims: str) -> np.ndarray:
    delta = data[name].sel(model="tuned") - data[name].sel(model="base")
    return delta.mean("prompt").transpose(*dims).values
