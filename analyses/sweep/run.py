"""`sweep`, `check` and `status`: from a config to a folder of cells, and to the report."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from analyses.sweep.cells import Cell, Store
from analyses.sweep.config import SweepConfig
from analyses.sweep.engines import engine as engine_of
from analyses.sweep.plan import (
    all_cells,
    derived_of,
    pair_cells,
    reward_of,
    shared_cells,
    shared_settings,
)
from analyses.sweep.report import write_all
from analyses.sweep.work import tasks
from interp.errors import InterpError, LoadError
from interp.io import write_text
from interp.models import RewardModel

Told = Callable[[str], None]
"""Called with a line on what happened."""

RECIPE = "sweep.toml"


def sweep(
    config: SweepConfig,
    out: str | os.PathLike[str],
    *,
    engine: str = "local",
    jobs: int = 1,
    retry: bool = False,
    told: Told = print,
) -> pd.DataFrame:
    """Compute every cell that is not there yet, then the tables and the report.

    A finished cell is on disk at once and is not computed again while its inputs are the same. A cell that fails is
    recorded with its error, and the rest go on; it is not tried again unless `retry` is set, or its inputs change.

    Args:
        config: the sweep.
        out: its folder; one that holds an earlier state goes on from it.
        engine: "local", processes of this machine, or "ray".
        jobs: processes.
        retry: try failed cells again.
        told: called with a line on what happened.

    Returns:
        What `status` says at the end.

    Raises:
        ConfigError: the config does not fit together, or something that it names cannot be read.
        InterpError: the engine is not there, or the folder cannot be written.
    """
    from training.config.schema import to_toml

    run, root = engine_of(engine, jobs), Path(out)
    check(config, root)
    store, settings = Store(root), shared_settings(config)
    if differs(config, root):
        told(f"{root} began with another file; its cells are taken over where their inputs are the same")
    write_text(root / RECIPE, to_toml(config))
    trained = pair_cells(config, root)
    waves: dict[str, Callable[[], list[Cell]]] = {
        "pairs and reward model": lambda: [*trained, *shared_cells(config, settings)],
        "what is computed of each pair": lambda: derived_of(config, root, settings),
    }
    for what, wave in waves.items():
        cells = wave()
        wanted = [cell for cell in cells if store.record(cell) is None and (retry or store.failure(cell) is None)]
        told(f"{what}: {len(cells)} cells, {len(cells) - len(wanted)} of them there already or failed before")
        for outcomes in run(str(root), tasks(wanted)):
            for name, error in outcomes:
                told(f"{name}: {error or 'done'}")
    found = status(config, root)
    write_all(config, root)
    told(f"wrote {root / 'report.html'}")
    return found


def differs(config: SweepConfig, root: Path) -> bool:
    """Whether a sweep's folder began with another file."""
    from training.config.schema import to_toml

    file = root / RECIPE
    return file.is_file() and file.read_text(encoding="utf-8") != to_toml(config)


def check(config: SweepConfig, out: str | os.PathLike[str]) -> dict[str, str]:
    """Resolve everything that a sweep needs, and compute nothing.

    Args:
        config: the sweep.
        out: its folder.

    Returns:
        What each name stands for.

    Raises:
        ConfigError: a file is missing, a label is not one of the reward model's, or the recipe does not fit.
        InterpError: `out` holds something else.
    """
    from training import check as check_training

    root = Path(out)
    if root.exists() and not root.is_dir():
        raise InterpError(f"{root} is a file; name a folder")
    if root.is_dir() and any(root.iterdir()) and not any((root / name).exists() for name in (RECIPE, "pairs", "cells")):
        raise InterpError(f"{root} holds other files; name a new folder, nothing there was touched")
    reward = reward_of(config.training(config.emotions[0]))
    try:
        model = RewardModel.load(reward, label=config.emotions[0], output="logit")
    except LoadError as error:
        if Path(reward).is_dir():
            raise
        raise LoadError(
            f"the reward model {reward} is not there; train one with interp train-reward goemotions_reward"
            f" --out {reward}, or name yours by --set reward=FOLDER"
        ) from error
    found: dict[str, str] = {}
    for name, (emotion, seed) in config.pairs().items():
        if name not in (config.given or {}):
            found = check_training(config.training(emotion, seed)) | found
    settings = shared_settings(config)
    strange = [name for name in config.emotions if name not in model.labels]
    if strange:
        raise InterpError(f"the reward model has no label {strange[0]!r}; it has {', '.join(model.labels)}")
    found["pairs"] = f"{len(config.pairs())}, {len(config.given or {})} of them given"
    found["compared on"] = f"{len(settings['prompts'])} prompts"
    found["texts"] = f"{len(settings['texts'])} held-out texts"
    cells = [*pair_cells(config, root), *shared_cells(config, settings)]
    each = [kind for kind in config.cells if kind != "reading"]
    found["cells"] = str(len(cells) + len(each) * len(config.pairs()))
    return found


def status(config: SweepConfig, out: str | os.PathLike[str]) -> pd.DataFrame:
    """How far a sweep is: a row for each pair (and one for what concerns none), a column for each kind of cell.

    Args:
        config: the sweep.
        out: its folder.

    Returns:
        "done", "failed", "waiting", or "blocked" where the pair has failed.

    Raises:
        ConfigError: as `check`.
    """
    root = Path(out)
    store, cells = Store(root), all_cells(config, root)
    rows: dict[str, dict[str, str]] = {}
    for cell in cells:
        about = cell.pair or str(cell.how.get("emotion", cell.how.get("of", "labels")))
        rows.setdefault(about, {})[cell.kind] = store.state(cell)
    for name in config.pairs():
        waits = "blocked" if rows[name]["pair"] == "failed" else "waiting"
        rows[name] = {kind: waits for kind in config.cells if kind != "reading"} | rows[name]
    kinds = ["pair", *config.cells, "labels"]
    return pd.DataFrame.from_dict(rows, orient="index").reindex(columns=kinds).fillna("")


def errors(config: SweepConfig, out: str | os.PathLike[str]) -> dict[str, str]:
    """The error of every failed cell, by its name."""
    store = Store(Path(out))
    found = {cell.name: store.failure(cell) for cell in all_cells(config, Path(out))}
    return {name: str(each["error"]) for name, each in found.items() if each is not None}
