"""Experiment trackers, through accelerate."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interp.errors import MissingExtra, TrainingError
from training.config import RLHFConfig


class Trackers:
    """Those that the recipe names; none for a recipe that names none."""

    def __init__(self, config: RLHFConfig, folder: Path, *, main: bool) -> None:
        """Start them; what they write to disk goes to `trackers/` in `folder`.

        Raises:
            MissingExtra: accelerate is not installed.
            TrainingError: a tracker is not installed or refuses to start.
        """
        self._accelerator: Any = None
        names = config.train.trackers if main else ()
        if not names:
            return
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise MissingExtra("lora", "logging to trackers") from error
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*no supported trackers", category=UserWarning)  # said below
            self._accelerator = Accelerator(log_with=list(names), project_dir=str(folder / "trackers"))
        (folder / "trackers").mkdir(exist_ok=True)
        own = {"wandb": {"dir": str(folder / "trackers")}}  # wandb would write into the working directory
        self._accelerator.init_trackers("rlhf-interp", config=_flat(config.to_dict()), init_kwargs=own)
        started = {tracker.name for tracker in self._accelerator.trackers}
        missing = [name for name in names if name not in started]  # accelerate passes over what is not installed
        if missing:
            raise TrainingError(f"{missing[0]} is not installed; pip install {missing[0]}, or leave it out of trackers")

    def log(self, row: Mapping[str, Any], *, prefix: str = "") -> None:
        """Hand the figures of one step on."""
        if self._accelerator is not None:
            values = {prefix + key: float(value) for key, value in row.items() if isinstance(value, (int, float))}
            self._accelerator.log(values, step=int(row["step"]))

    def close(self) -> None:
        """Let them write what they still hold."""
        if self._accelerator is not None:
            self._accelerator.end_training()


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted keys; lists as text, which every tracker takes."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat
