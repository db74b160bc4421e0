"""The processes of one run: one, or several under `accelerate launch`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Team:
    """This process among those of the run.

    Attributes:
        main: whether this one writes, evaluates and talks.
        wait: returns when all processes have come to it.
        device: where this process computes.
    """

    main: bool
    wait: Callable[[], None]
    device: torch.device


def team() -> Team:
    """The team that the launcher made, or this process alone, on the accelerator if there is one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available())  # else it sees one process without a GPU
        return Team(state.is_main_process, state.wait_for_everyone, state.device)
    return Team(True, lambda: None, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
