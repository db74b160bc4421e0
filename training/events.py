"""What a run tells while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Progress = Callable[[dict[str, Any]], None]
"""Called with one event after another: a dictionary with `stage` ("language model", "classifier", "evaluation", "ppo",
"control"), `step` and `steps` within that stage, and its figures of the moment."""
