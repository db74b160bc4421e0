"""The smallest set of sites whose patch recovers most: chosen on half the prompts, judged on the other half."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from interp.errors import MeasureError, renamed
from interp.hooks import Site
from interp.measures.arrays import as_variable, strings
from interp.metrics import Metric, check_whole
from interp.models import Policy, RewardModel, Source
from interp.patching.activation import DRAWS, patch_runs
from interp.patching.result import Patching, counted, random_range
from interp.patching.runs import LOADING, Runs, open_runs
from interp.patching.targets import BY_TOKEN, Intervention, Sites, Target, in_order, interventions, together
from interp.progress import Progress, no_progress
from interp.prompts import Prompts
from interp.result import Result
from interp.stats import selection_halves

TARGET = 0.8
CANDIDATES = 48


@dataclass(frozen=True, eq=False, repr=False)
class SmallestSet(Result):
    """Sites in the order in which a greedy search took them, and what the first k of them bring together.

    `dataset` has the dim `size` (1, 2 ...): `added` (the site taken then), `selected` (recovery on the half that
    chose), `recovery` with `recovery_low` and `recovery_high` on the other half, and `random_recovery` [size, draw] of
    random sets of the same make-up there. The dim `target` lists what was taken, unit by unit: `target_size` (the size
    that it came in with), `target_name`, `target_stack`, `target_layer`, `target_unit` (-1: the whole site). The attrs
    say the target of recovery, the metric, the position, and whether all prompts served for both.
    """

    kind = "smallest_set"
    title = "Smallest set"

    @cached_property
    def sets(self) -> tuple[Intervention, ...]:
        """The interventions, one of each size."""
        data = self.dataset
        names = ("target_size", "target_name", "target_stack", "target_layer", "target_unit")
        rows = list(zip(*(data[name].values.tolist() for name in names), strict=True))
        position = json.loads(data.attrs["position"])
        position = tuple(position) if isinstance(position, list) else position
        sets = []
        for size in data["size"].values.tolist():
            units: dict[Site, set[int]] = {}
            for taken, name, stack, layer, unit in rows:
                if taken <= size:
                    units.setdefault(Site(name, layer, stack or None), set()).add(unit)
            targets = (Target(site, None if -1 in some else tuple(sorted(some))) for site, some in units.items())
            sets.append(Intervention(in_order(targets), position))
        return tuple(sets)

    @property
    def size(self) -> int | None:
        """Number of sites with which the half that chose reaches the target; None where it never does."""
        enough = np.flatnonzero(self.dataset["selected"].values >= self.dataset.attrs["target"])
        return int(enough[0]) + 1 if len(enough) else None

    def headline(self) -> str:
        """How many sites reach the target, and on which prompts recovery was measured."""
        attrs = self.dataset.attrs
        reached = "no set tried reaches"
        if self.size is not None:
            reached = f"{counted(self.size, 'site')} reach{'es' if self.size == 1 else ''}"
        half = "the same prompts" if attrs["same_prompts"] else "other prompts"
        return f"{reached} {attrs['target']:.0%} of {attrs['metric']} where they were chosen; recovery is on {half}."

    def notes(self) -> list[str]:
        """How the search goes, and what stands beside it."""
        notes = ["each row adds a site to those above; selected: recovery on the prompts that chose"]
        if random_range(self.dataset, "random_recovery"):
            notes.append("random: range of the recovery of random sets of the same make-up")
        return notes

    def summary(self) -> pd.DataFrame:
        """One row a size."""
        data = self.dataset
        names = ("size", "added", "selected", "recovery", "recovery_low", "recovery_high")
        frame = pd.DataFrame({name: data[name].values for name in names})
        return frame.assign(**random_range(data, "random_recovery"))


@renamed(
    **LOADING,
    random_sets="it is draws=",
    candidates="pass fewer sites",
    recipient_reads="pass Prompts whose texts and corrupted texts have changed places",
)
def smallest_set(
    recipient: Source | Policy | RewardModel,
    source: Source | Policy | RewardModel,
    prompts: Prompts | Sequence[str],
    *,
    sites: Sites = "z",
    target: float = TARGET,
    positions: Any = "all",
    metric: Metric | None = None,
    most: int = 12,
    draws: int = DRAWS,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> SmallestSet:
    """Search greedily for the smallest set of sites whose joint patch recovers `target` of the source's behaviour.

    On every second group of prompts, the site whose addition to the set brings recovery highest is taken, until the
    target or `most` is reached; tried are the `CANDIDATES` sites with the largest single effects. What each set
    recovers is then measured on the other prompts, with its interval and random sets of the same make-up beside it.
    Under 16 groups all prompts serve for both, and the result says so.

    Greedy search finds no set of which several members must come together to show any effect.

    Args:
        recipient: see `interp.patching.activation_patching`, as for what is not named here.
        source: see there.
        prompts: see there.
        sites: what may be taken, one by one: names, `Site`s, or mappings of several sites that come as one.
        target: recovery at which the search stops, 0 to 1 (exclusive of 0).
        positions: "all", "prompt", "last", or numbers.
        metric: see there.
        most: largest set.
        draws: random sets of each size.
        batch_size: prompts a pass.
        seed: of random sets and of the resampling.
        progress: told of the "sites" taken, and of the "patches" of each pass.

    Raises:
        MeasureError: a setting is out of its range, or the two models do not differ on the prompts.
        PromptError: the prompts do not fit.
        LoadError: a model cannot be loaded.
    """
    check_whole(most=most, batch_size=batch_size)
    if not 0 < target <= 1:
        raise MeasureError(f"target is above 0 and at most 1, not {target}")
    if isinstance(positions, str) and positions in BY_TOKEN:
        raise MeasureError('a set of sites is patched at the same positions; pass "all", "last" or numbers')
    runs = open_runs(recipient, source, prompts, rewards=True)
    settings: dict[str, Any] = {"metric": metric, "batch_size": batch_size, "seed": seed}
    choosing, judging = selection_halves(runs.groups)
    pool = interventions(runs.recipient.parts, sites, positions, runs.width)
    sets, shares = _search(runs.take(choosing), pool, most, target, settings, progress or no_progress)
    judged = patch_runs(runs.take(judging), sites=sets, positions=positions, draws=draws, progress=progress, **settings)
    return _result(sets, shares, judged, target, same=bool(np.array_equal(choosing, judging)))


def _search(
    runs: Runs,
    pool: list[Intervention],
    most: int,
    target: float,
    settings: Mapping[str, Any],
    tell: Progress,
) -> tuple[list[Intervention], list[float]]:
    """The best set of each size, and what it recovers, on the prompts that choose."""
    alone = _shares(runs, pool, settings)
    order = np.argsort(-np.abs(alone), kind="stable")[:CANDIDATES]
    pool, values = [pool[index] for index in order], alone[order]
    sets: list[Intervention] = []
    shares: list[float] = []
    tried = pool
    while pool and len(sets) < most and (not shares or shares[-1] < target):
        if sets:
            tried = [together(sets[-1], patch) for patch in pool]
            values = _shares(runs, tried, settings)
        best = int(np.argmax(values))
        sets.append(tried[best])
        shares.append(float(values[best]))
        pool = [patch for index, patch in enumerate(pool) if index != best]
        tell("sites", len(sets), most)
    return sets, shares


def _shares(runs: Runs, patches: Sequence[Intervention], settings: Mapping[str, Any]) -> np.ndarray:
    """Recovery of each patch."""
    patched = patch_runs(runs, sites=list(patches), draws=0, **settings)
    gap = float((patched["source"] - patched["recipient"]).sum())
    if np.isnan(patched["recovery"].values).all() or gap == 0:
        raise MeasureError(
            "recipient and source do not differ beyond chance on the prompts that choose, so there is no recovery"
            " to search for; give more prompts, or another metric"
        )
    return np.asarray(patched["effect"].values.sum(0) / gap)


def _result(
    sets: Sequence[Intervention], shares: Sequence[float], judged: Patching, target: float, *, same: bool
) -> SmallestSet:
    before: set[tuple[Site, int]] = set()
    taken: list[tuple[int, Site, int]] = []
    labels = []
    for size, intervention in enumerate(sets, start=1):
        units = {(one.site, unit) for one in intervention.targets for unit in (one.units or (-1,))}
        new = sorted(units - before)
        labels.append(" & ".join(str(Target(site, None if unit < 0 else (unit,))) for site, unit in new))
        taken += [(size, site, unit) for site, unit in new]
        before = units
    data, count = judged.dataset, len(sets)
    random = data["random_recovery"].values if "random_recovery" in data else np.full((count, 0), np.nan)
    arrays = {
        "added": (("size",), strings(labels), "site that was added"),
        "selected": (("size",), np.array(shares), "recovery where it was chosen"),
        "random_recovery": (("size", "draw"), random, "recovery of random sets of the same make-up"),
        "target_size": (("target",), np.array([size for size, _, _ in taken]), "size of the set that it came in with"),
        "target_name": (("target",), strings([site.name for _, site, _ in taken]), "site's name"),
        "target_stack": (("target",), strings([site.stack or "" for _, site, _ in taken]), "site's stack"),
        "target_layer": (("target",), np.array([site.layer for _, site, _ in taken]), "site's layer"),
        "target_unit": (("target",), np.array([unit for _, _, unit in taken]), "head or neuron; -1 is the whole site"),
    }
    for name in ("recovery", "recovery_low", "recovery_high"):
        arrays[name] = (("size",), data[name].values, str(data[name].attrs["long_name"]))
    variables = {
        name: as_variable(dims, values, {"long_name": text, "units": ""})
        for name, (dims, values, text) in arrays.items()
    }
    about = {
        **{key: data.attrs[key] for key in ("metric", "units", "seed", "recipient", "source")},
        "target": target,
        "same_prompts": int(same),
        "positions": str(json.loads(data.attrs["settings"])["positions"]),
        "position": json.dumps(sets[0].position),
    }
    return SmallestSet(xr.Dataset(variables, coords={"size": range(1, count + 1)}, attrs=about))
