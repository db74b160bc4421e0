"""The smallest set of sites whose patch recovers most: chosen on half the prompts, judged on the other half."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from interp.columns import frame_text
from interp.errors import MeasureError
from interp.measures.arrays import as_variable, strings
from interp.metrics import Metric
from interp.models import Policy, RewardModel
from interp.models.source import Source
from interp.patching.activation import RANDOM_SETS, patch_runs
from interp.patching.opening import Runs, open_runs, runs_of
from interp.patching.targets import Intervention, Sites, Target, interventions
from interp.prompts import Prompts
from interp.stats import selection_halves

TARGET = 0.8
CANDIDATES = 48


@dataclass(frozen=True)
class SmallestSet:
    """Sites in the order in which a greedy search took them, and what the first k of them bring together.

    `dataset` has the dim `size` (1, 2 ...): `added` (the site taken then), `selected` (recovery on the half that
    chose), `recovery` with `recovery_low` and `recovery_high` on the other half, and `random_recovery` [size, draw] of
    random sets of the same make-up there.

    Attributes:
        dataset: all arrays; the attrs say the target, the metric and whether all prompts served for both.
        sets: the interventions, one of each size.
    """

    dataset: xr.Dataset
    sets: tuple[Intervention, ...]

    def __getitem__(self, name: str) -> xr.DataArray:
        return self.dataset[name]

    @property
    def size(self) -> int | None:
        """Number of sites with which the half that chose reaches the target; None where it never does."""
        enough = np.flatnonzero(self.dataset["selected"].values >= self.dataset.attrs["target"])
        return int(enough[0]) + 1 if len(enough) else None

    def summary(self) -> pd.DataFrame:
        """One row a size."""
        data = self.dataset
        frame = pd.DataFrame({"size": data["size"].values, "added": data["added"].values})
        for name in ("selected", "recovery", "recovery_low", "recovery_high"):
            frame[name] = data[name].values
        frame["random_low"] = data["random_recovery"].min("draw").values
        frame["random_high"] = data["random_recovery"].max("draw").values
        return frame

    def __repr__(self) -> str:
        data = self.dataset.attrs
        reached = f"{self.size} sites reach" if self.size else "no set tried reaches"
        half = "the same prompts" if data["same_prompts"] else "other prompts"
        head = f"{reached} {data['target']:.0%} of {data['metric']} where they were chosen; recovery is on {half}"
        return "\n".join([head, frame_text(self.summary())])


def smallest_set(
    recipient: Source | Policy | RewardModel,
    source: Source | Policy | RewardModel,
    prompts: Prompts | Sequence[str],
    *,
    sites: Sites = "z",
    target: float = TARGET,
    positions: Any = "all",
    metric: Metric | None = None,
    candidates: int = CANDIDATES,
    most: int = 12,
    random_sets: int = RANDOM_SETS,
    recipient_reads: str | None = None,
    batch_size: int = 16,
    seed: int = 0,
    **options: Any,
) -> SmallestSet:
    """Search greedily for the smallest set of sites whose joint patch recovers `target` of the source's behaviour.

    On every second group of prompts, the site whose addition to the set brings recovery highest is taken, until the
    target or `most` is reached. What each set recovers is then measured on the other prompts, with its interval and
    random sets of the same make-up beside it. Under 16 groups all prompts serve for both, and the result says so.

    Greedy search finds no set of which several members must come together to show any effect.

    Args:
        recipient: see `interp.patching.activation_patching`, as for what is not named here.
        source: see there.
        prompts: see there.
        sites: what may be taken, one by one: names, `Site`s, or mappings of several sites that come as one.
        target: recovery at which the search stops, 0 to 1 (exclusive of 0).
        positions: "all", "prompt", "last", or numbers.
        metric: see there.
        candidates: only so many sites, those with the largest single effects, are tried; all where there are no more.
        most: largest set.
        random_sets: random sets of each size.
        recipient_reads: see there.
        batch_size: prompts a pass.
        seed: of random sets and of the resampling.
        options: of `Policy.load`.

    Raises:
        MeasureError: a setting is out of its range, or the two models do not differ on the prompts.
        PromptError: the prompts do not fit.
        LoadError: a model cannot be loaded.
    """
    if not 0 < target <= 1 or candidates < 1 or most < 1:
        raise MeasureError(
            f"target is above 0 and at most 1, candidates and most at least 1, not {target}, {candidates} and {most}"
        )
    if positions == "each":
        raise MeasureError('a set of sites is patched at the same positions; pass "all", "last" or numbers')
    runs = open_runs(recipient, source, prompts, recipient_reads=recipient_reads, rewards=True, **options)
    settings: dict[str, Any] = {"batch_size": batch_size, "seed": seed}
    groups = np.unique(np.array(runs.prompts.groups, dtype=object), return_inverse=True)[1]
    choosing, judging = selection_halves(groups)
    search = _Search(_of(runs, choosing, recipient_reads), {**settings, "metric": _told(metric, choosing)})
    width = max(map(len, runs.reads.encoder_ids or runs.reads.prompt_ids))
    sets, shares = search.run(interventions(runs.recipient.parts, sites, positions, width), candidates, most, target)
    judged = patch_runs(
        _of(runs, judging, recipient_reads), sites=sets, positions=positions, random_sets=random_sets,
        metric=_told(metric, judging), **settings,
    )  # fmt: skip
    return _result(sets, shares, judged.dataset, target, same=bool(np.array_equal(choosing, judging)))


@dataclass(frozen=True)
class _Search:
    """The half of the prompts that chooses, and how a patch is judged there."""

    runs: Runs
    settings: dict[str, Any]

    def shares(self, sets: Sequence[Intervention]) -> np.ndarray:
        """Recovery of each set."""
        found = patch_runs(self.runs, sites=list(sets), random_sets=0, **self.settings)
        gap = float((found["source"] - found["recipient"]).sum())
        if np.isnan(found["recovery"].values).all() or gap == 0:
            raise MeasureError(
                "recipient and source do not differ beyond chance on the prompts that choose, so there is no recovery"
                " to search for; give more prompts, or another metric"
            )
        return found["effect"].values.sum(0) / gap

    def run(
        self, pool: list[Intervention], candidates: int, most: int, target: float
    ) -> tuple[list[Intervention], list[float]]:
        alone = self.shares(pool)
        order = np.argsort(-np.abs(alone), kind="stable")[:candidates]
        pool, best = [pool[index] for index in order], alone[order]
        chosen: list[Intervention] = []
        shares: list[float] = []
        while pool and len(chosen) < most and (not shares or shares[-1] < target):
            tried = [_together(chosen[-1], each) if chosen else each for each in pool]
            values = self.shares(tried) if chosen else best
            taken = int(np.argmax(values))
            chosen.append(tried[taken])
            shares.append(float(values[taken]))
            pool = [each for index, each in enumerate(pool) if index != taken]
        return chosen, shares


def _together(first: Intervention, second: Intervention) -> Intervention:
    """Both patched at once; heads of one site become one target."""
    units: dict[Any, tuple[int, ...] | None] = {}
    for target in (*first.targets, *second.targets):
        known = units.get(target.site, ())
        whole = target.units is None or known is None
        units[target.site] = None if whole else tuple(sorted({*(known or ()), *(target.units or ())}))
    targets = sorted(units, key=lambda site: (site.layer or 0, site.stack or "", site.name))
    return Intervention(tuple(Target(site, units[site]) for site in targets), first.position)


def _told(metric: Metric | None, rows: np.ndarray) -> Metric | None:
    """A metric of the user's own is told the prompts' numbers among all, not in their half."""
    if not callable(metric):
        return metric
    own, numbers = metric, torch.tensor(rows)

    @functools.wraps(own)
    def counted(logits: Tensor, which: Tensor) -> Tensor:
        return own(logits, numbers.to(which.device)[which])

    return counted


def _of(runs: Runs, rows: np.ndarray, recipient_reads: str | None) -> Runs:
    """The runs on some of the prompts."""
    prompts = runs.prompts
    names = ("texts", "answers", "continuations", "groups", "decoder_prefixes", "corrupted")
    held = {name: getattr(prompts, name) for name in names}
    chosen: dict[str, Any] = {
        name: None if value is None else [value[row] for row in rows] for name, value in held.items()
    }
    return runs_of(runs.recipient, runs.source, replace(prompts, **chosen), recipient_reads=recipient_reads)


def _result(
    sets: list[Intervention], shares: list[float], judged: xr.Dataset, target: float, *, same: bool
) -> SmallestSet:
    before: set[tuple[Any, int]] = set()
    added = []
    for each in sets:
        units = {(t.site, unit) for t in each.targets for unit in (t.units or (-1,))}
        new = sorted(units - before)
        added.append(" & ".join(str(Target(site, None if unit < 0 else (unit,))) for site, unit in new))
        before = units
    attrs = {name: dict(judged[name].attrs) for name in ("recovery", "recovery_low", "recovery_high")}
    variables: dict[str, xr.Variable] = {
        "added": as_variable(("size",), strings(added), {"long_name": "site that was added", "units": ""}),
        "selected": as_variable(
            ("size",), np.array(shares), {"long_name": "recovery where it was chosen", "units": ""}
        ),
    }
    for name, said in attrs.items():
        variables[name] = as_variable(("size",), judged[name].values, said)
    random = judged["random_recovery"].values if "random_recovery" in judged else np.full((len(sets), 0), np.nan)
    text = "recovery of random sets of the same make-up"
    variables["random_recovery"] = as_variable(("size", "draw"), random, {"long_name": text, "units": ""})
    settings = json.loads(judged.attrs["settings"])
    about = {
        **{key: judged.attrs[key] for key in ("metric", "units", "seed", "recipient", "source")},
        "target": target,
        "same_prompts": int(same),
        "positions": str(settings["positions"]),
    }
    return SmallestSet(xr.Dataset(variables, coords={"size": range(1, len(sets) + 1)}, attrs=about), tuple(sets))
