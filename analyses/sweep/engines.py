"""Who computes the tasks: this process, several processes, or a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from analyses.sweep.cells import Cell
from analyses.sweep.work import run_task
from interp.errors import InterpError, MissingExtra

Outcome = tuple[str, str]
"""Name of a cell, and its error or an empty text."""

Engine = Callable[[str, Sequence[list[Cell]]], Iterator[list[Outcome]]]
"""Runs tasks in a folder and yields their outcomes as they come."""

ENGINES = ("local", "ray")


def engine(name: str, jobs: int) -> Engine:
    """The engine called `name`.

    Args:
        name: one of `ENGINES`.
        jobs: processes, or Ray's tasks at a time where no cluster is named.

    Raises:
        InterpError: there is no such engine, or jobs is under 1.
        MissingExtra: Ray is not installed.
    """
    if name not in ENGINES:
        raise InterpError(f"an engine is {' or '.join(ENGINES)}, not {name!r}")
    if jobs < 1:
        raise InterpError(f"jobs is at least 1, not {jobs}")
    if name == "ray":
        _ray()
        return lambda root, found: on_ray(root, found, jobs)
    return here if jobs == 1 else lambda root, found: in_processes(root, found, jobs)


def here(root: str, found: Sequence[list[Cell]]) -> Iterator[list[Outcome]]:
    """One task after another, in this process."""
    for task in found:
        yield run_task(root, task)


def in_processes(root: str, found: Sequence[list[Cell]], jobs: int) -> Iterator[list[Outcome]]:
    """Several processes of this machine, each with its share of the cores.

    Raises:
        InterpError: a process was killed; what is done stays on disk.
    """
    threads = max(1, (os.cpu_count() or 1) // jobs)
    context, others = multiprocessing.get_context("spawn"), set(multiprocessing.active_children())
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_threads, initargs=(threads,)) as pool:
        waiting = [pool.submit(run_task, root, task) for task in found]
        try:
            for done in as_completed(waiting):
                yield done.result()
        except BrokenProcessPool:
            raise InterpError(
                "a process of the sweep was killed (is the memory enough for --jobs of them?); what is done is on"
                " disk: run the command again to go on"
            ) from None
        except BaseException:  # Ctrl-C, say: a cell may take minutes, and is computed again as a whole anyway
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def on_ray(root: str, found: Sequence[list[Cell]], jobs: int) -> Iterator[list[Outcome]]:
    """Ray's workers: those of the cluster that RAY_ADDRESS names, else `jobs` on this machine.

    The sweep's folder must be the same for all of them.

    Raises:
        MissingExtra: Ray is not installed.
    """
    ray = _ray()
    ours = not ray.is_initialized()
    if ours:
        local: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": jobs, "include_dashboard": False}
        ray.init(log_to_driver=False, **local)
    try:
        remote = ray.remote(num_cpus=1, max_retries=0)(run_task)
        waiting = [remote.remote(root, task) for task in found]
        while waiting:
            done, waiting = ray.wait(waiting)
            yield from ray.get(done)
    finally:
        if ours:
            ray.shutdown()


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise MissingExtra("ray", "--engine ray") from None
    return ray


def _threads(count: int) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its processes
    torch.set_num_threads(count)
