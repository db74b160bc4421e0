"""Several processes as one: each samples and scores its share of a round, and all take the same optimiser steps.

What a round needs beyond its share is small (token ids and a few numbers a token), so every process gets all of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from interp.errors import InterpError, MissingExtra, TrainingError
from training.rollouts import Rollouts, join

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    Attributes:
        count: how many there are.
        index: which one this is; 0 is the one that logs and writes.
    """

    count: int = 1
    index: int = 0

    @property
    def main(self) -> bool:
        """Whether this one logs and writes."""
        return self.index == 0


def processes() -> Processes:
    """Those that `accelerate launch` has started, or this one alone.

    Raises:
        MissingExtra: there are several, and accelerate is not installed.
        TrainingError: accelerate was set up before, for one process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise MissingExtra("training", "training in several processes") from error
    state = PartialState(cpu=not torch.cuda.is_available())  # it would otherwise see one process where there is no GPU
    if state.num_processes == 1:
        raise TrainingError(
            f"{os.environ['WORLD_SIZE']} processes were launched and accelerate sees one; make the first PartialState "
            "with cpu=True"
        )
    return Processes(state.num_processes, state.process_index)


def share(count: int, team: Processes) -> slice:
    """This process's part of `count` things: one stretch for each process, in their order, as even as can be."""
    return slice(count * team.index // team.count, count * (team.index + 1) // team.count)


def gathered(make: Callable[[], T], team: Processes) -> list[T]:
    """What `make` returns in each process, in their order, in all of them.

    Raises:
        InterpError: `make` raised it here, or a `TrainingError` with its words where it did so in another process:
            nobody waits for one that has failed.
    """
    if team.count == 1:
        return [make()]
    from accelerate.utils import gather_object

    failed: InterpError | None = None
    try:
        mine: tuple[T | None, str | None] = (make(), None)
    except InterpError as error:
        failed, mine = error, (None, str(error))
    found = gather_object([mine])
    if failed is not None:
        raise failed
    for _, message in found:
        if message is not None:
            raise TrainingError(message)
    return [value for value, _ in found]


def union(make: Callable[[], Rollouts | None], team: Processes, pad_id: int) -> Rollouts:
    """The rollouts of all processes as one, in all of them, each on its own device.

    Raises:
        InterpError: see `gathered`.
    """
    if team.count == 1:
        alone = make()
        assert alone is not None
        return alone
    device: list[torch.device] = []

    def on_cpu() -> Rollouts | None:
        mine = make()
        if mine is None:
            return None
        device.append(mine.scores.device)
        return moved(mine, torch.device("cpu"))

    parts = [part for part in gathered(on_cpu, team) if part is not None]
    whole = join(parts, pad_id)
    return moved(whole, device[0]) if device else whole


def moved(rollouts: Rollouts, device: torch.device) -> Rollouts:
    """The same on another device."""
    samples = {k: v.to(device) for k, v in vars(rollouts.samples).items() if v is not None}
    tensors: dict[str, Any] = {k: v.to(device) for k, v in vars(rollouts).items() if isinstance(v, Tensor)}
    return replace(rollouts, samples=replace(rollouts.samples, **samples), **tensors)


def add_up(parameters: Sequence[Tensor], figures: Tensor, team: Processes) -> Tensor:
    """Sum the gradients of all processes into each one's, and their figures, in one exchange.

    A gradient that no process has stays away.

    Args:
        parameters: what is trained, in the same order everywhere.
        figures: some numbers of this process's own.
        team: the processes.

    Returns:
        The figures summed.
    """
    if team.count == 1:
        return figures
    from accelerate.utils import reduce

    there = torch.tensor([float(p.grad is not None) for p in parameters], device=figures.device)
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = reduce(torch.cat([figures, there, *(part.flatten() for part in parts)]), reduction="sum")
    pieces = flat.split([len(figures), len(there), *(part.numel() for part in parts)])
    for parameter, anywhere, piece in zip(parameters, pieces[1].tolist(), pieces[2:], strict=True):
        parameter.grad = piece.view_as(parameter).clone() if anywhere else None
    return pieces[0]
