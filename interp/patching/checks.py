"""Refusing numbers that mean nothing, before and after the work."""

from __future__ import annotations

import numpy as np

from interp.errors import MeasureError


def check_whole(low: int = 1, /, **settings: object) -> None:
    """Refuse settings that are no whole numbers from `low` on.

    Raises:
        MeasureError: naming the first that is not.
    """
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low:
            raise MeasureError(f"{name} is a whole number from {low} on, not {value!r}")


def check_finite(metric: str, **runs: np.ndarray) -> None:
    """Refuse a metric that is not finite, [prompt] or [prompt, site], rather than average what is left.

    Raises:
        MeasureError: naming the run and the first such prompt.
    """
    for name, values in runs.items():
        wrong = ~np.isfinite(values).reshape(len(values), -1).all(1)
        if wrong.any():
            first = int(np.argmax(wrong))
            raise MeasureError(
                f"{metric} of the {name} run is not finite at prompt {first}; check it for 0 / 0 and the"
                " weights for NaN"
            )
