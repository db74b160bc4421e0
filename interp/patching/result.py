"""What patching found: effects by prompt and site, recovery with its interval, random sets beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Float, Int

from interp.errors import MeasureError
from interp.measures.arrays import as_variable, strings
from interp.metrics import Metric, metric_name, metric_units
from interp.models import RewardModel
from interp.patching.runs import Runs
from interp.patching.targets import Intervention
from interp.result import Result, number
from interp.stats import MIN_PROMPTS, interval, max_t

NO_POSITION = -(10**6)
"""The coord `pos` of what was patched at several tokens."""

_BOUNDS = ("recovery", "recovery_low", "recovery_high")


@dataclass(frozen=True, eq=False, repr=False)
class Patching(Result):
    """Patches and what each did.

    `dataset` has the dims `prompt` and `site`; each site carries the coords `name`, `stack`, `layer`, `unit` (head,
    key-value head or neuron; -1 is none) and `pos` (a token's number, from -1 back from the last; `NO_POSITION`: no
    single one), and a set that was patched together has layer -1. Variables: `effect` (patched minus recipient, by
    prompt; NaN where the prompt lacks the token), `prompts` (how many have it), `recovery` with `recovery_low` and
    `recovery_high`, `p` (sign-flip max-T over all sites), `random_recovery` (of random sets beside a set), `recipient`,
    `source` and `readout` (the metric of the unpatched runs, by prompt).
    """

    kind = "patching"
    title = "Patching"

    def headline(self) -> str:
        """What was patched, what the metric is, and the largest effect."""
        data = self.dataset
        estimates = "method" in data.attrs
        patches = counted(data.sizes["site"], "estimate" if estimates else "patch", "estimates" if estimates else None)
        order = self._order(MIN_PROMPTS)
        largest = f" Largest effect: {data['label'].values[order[0]]}." if len(order) else ""
        return f"{patches}, mean of {counted(data.sizes['prompt'], 'prompt')}: {_runs_text(data)}.{largest}"

    def notes(self) -> list[str]:
        """Why there is no recovery or no interval, what an estimate is worth, and which rows the table leaves out."""
        data = self.dataset
        notes = []
        if "source_reader" in data.attrs:
            notes.append("recovery 1 is what the source's last residual gives, read by the recipient's head")
        if "method" in data.attrs:
            notes.append(f"{data.attrs['method']}: an estimate, {_checked(data)}")
        if "recovery" in data and np.isnan(data["recovery"].values).all():
            notes.append("no recovery: source and recipient do not differ beyond chance on these prompts")
        elif "readout_recovery" in data:
            notes.append(
                f"readout (final norm and unembedding alone): recovery {number(float(data['readout_recovery']))}"
            )
        left_out = int(np.sum(~self._enough(MIN_PROMPTS)))
        if left_out:
            notes.append(
                f"{counted(left_out, 'row')} left out: fewer than {MIN_PROMPTS} prompts have the token;"
                " summary(least=1) has all"
            )
        if np.isnan(data["p"].values).all():
            notes.append(f"no intervals and no p: fewer than {MIN_PROMPTS} groups of prompts")
        return notes

    def _enough(self, least: int) -> Bool[np.ndarray, " site"]:
        """Sites whose token all prompts have, or at least so many of them."""
        count = self.dataset["prompts"].values
        return np.asarray((count >= least) | (count == self.dataset.sizes["prompt"]))

    def _order(self, least: int) -> Int[np.ndarray, " row"]:
        """The sites of the table, the largest effects first."""
        data = self.dataset
        sizes = np.nansum(data["effect"].values, axis=0) / np.maximum(data["prompts"].values, 1)
        order = np.argsort(-np.abs(sizes), kind="stable")
        return order[self._enough(least)[order]]

    def summary(self, *, least: int = MIN_PROMPTS) -> pd.DataFrame:
        """One row a site, the largest effects first.

        Args:
            least: a site whose token only some prompts have is left out where fewer than these have it.
        """
        data, order = self.dataset, self._order(least)
        mean, low, high = interval(data["effect"].values[:, order], data["group"].values, seed=int(data.attrs["seed"]))
        effect = {"effect": mean, "effect_low": low, "effect_high": high}
        recovery = {name: data[name].values[order] for name in _BOUNDS if name in data}
        random = {name: values[order] for name, values in random_range(data, "random_recovery").items()}
        known = any(np.isfinite(values).any() for values in recovery.values())
        first = recovery if known else effect
        columns = {"site": data["label"].values[order], **first, **random, "p": data["p"].values[order]}
        columns |= {**effect, **recovery}
        if len(set(data["prompts"].values.tolist())) > 1:
            columns["prompts"] = data["prompts"].values[order]
        return pd.DataFrame(columns)

    def map(self, name: str, variable: str = "recovery", *, stack: str | None = None) -> xr.DataArray:
        """A variable of all sites of one name as a map: layer by head, by token, or by layer alone.

        Args:
            name: "z", "resid_pre" ...
            variable: any with the dim `site`.
            stack: of an encoder-decoder "encoder" or "cross".

        Raises:
            MeasureError: no site of that name was patched by itself.
        """
        array, data = self[variable], self.dataset
        here = (data["name"] == name) & (data["layer"] >= 0) & (data["stack"] == (stack or ""))
        array = array.where(here, drop=True)
        if not array.sizes["site"]:
            names = sorted(set(data["name"].values.tolist()))
            raise MeasureError(f"no {name!r} was patched by itself; there are {', '.join(names)}")
        keys = ["layer", *(key for key in ("unit", "pos") if len(set(array[key].values.tolist())) > 1)]
        table = array.set_index(site=keys) if len(keys) > 1 else array.swap_dims(site="layer")
        extra = [key for key in ("name", "stack", "layer", "unit", "pos", "label") if key not in keys]
        table = table.drop_vars(extra, errors="ignore")
        table = table.unstack("site") if len(keys) > 1 else table.drop_vars("site", errors="ignore")
        if "unit" in table.dims:
            table = table.rename(unit={"k": "kv_head", "v": "kv_head", "mlp_post": "neuron"}.get(name, "head"))
        return table.assign_coords({dim: table[dim].astype(int) for dim in table.dims if dim not in ("prompt", "draw")})


def counted(count: int, one: str, many: str | None = None) -> str:
    """A number with its noun: "1 patch", "2 patches"."""
    plural = many or (f"{one}es" if one.endswith("ch") else f"{one}s")
    return f"{count} {one if count == 1 else plural}"


def random_range(data: xr.Dataset, name: str) -> dict[str, np.ndarray]:
    """Smallest and largest over the dim `draw` of an array, as columns of a table; none where nothing was drawn."""
    if name not in data or not data[name].sizes["draw"]:
        return {}
    return {"random_low": data[name].min("draw").values, "random_high": data[name].max("draw").values}


def _runs_text(data: xr.Dataset) -> str:
    """What the metric is of the unpatched runs."""
    metric, units = data.attrs["metric"], data.attrs["units"]
    if metric == "score":
        metric = f"score ({data.attrs['label']})"
    text = f"{metric} of the recipient {number(float(data['recipient'].mean()))}"
    if "source" in data:
        whose = "the source's last residual" if "source_reader" in data.attrs else "the source"
        text += f", of {whose} {number(float(data['source'].mean()))}"
    return f"{text} {units}".rstrip()


def _checked(data: xr.Dataset) -> str:
    count = int(data.attrs.get("rank_sample", 0))
    if not count:
        return "which no exact patch was compared with"
    rank = float(data.attrs["rank_correlation"])
    return f"whose rank correlation with {counted(count, 'exact patch')} is {rank:.2f}"


def build(
    runs: Runs,
    wanted: Sequence[Intervention],
    patched: Float[np.ndarray, "prompt patch"],
    recipient: Float[np.ndarray, " prompt"],
    source: Float[np.ndarray, " prompt"] | None,
    readout: Float[np.ndarray, " prompt"],
    owners: Sequence[tuple[int, ...]],
    *,
    metric: Metric,
    positions: Any,
    by: str | None,
    seed: int,
) -> Patching:
    """The result, from the metric of each prompt under each intervention.

    Args:
        runs: the two runs.
        wanted: interventions.
        patched: those of `wanted` first, then the random sets.
        recipient: unpatched.
        source: the source's own; None of an ablation, which has none.
        readout: the recipient's last residual read by the source.
        owners: for each of `wanted` the numbers of its random sets.
        metric: what was measured.
        positions: as they were asked for.
        by: of an ablation, by what.
        seed: of the resampling.
    """
    groups, units = runs.groups, metric_units(metric, runs.recipient)
    count, there = len(wanted), _there(runs, wanted, owners)
    effects = np.where(there, patched - recipient[:, None], np.nan)
    variables: dict[str, xr.Variable] = {
        "effect": as_variable(("prompt", "site"), effects[:, :count], _attrs("patched minus recipient", units)),
        "recipient": as_variable(("prompt",), recipient, _attrs("metric of the recipient", units)),
        "p": as_variable(
            ("site",),
            max_t(np.nan_to_num(effects[:, :count]), groups, seed=seed),
            _attrs("p by sign flips, max-T over all sites"),
        ),
        "prompts": as_variable(("site",), there[:, :count].sum(0), _attrs("prompts that have the tokens")),
    }
    if source is not None:
        ratios = _ratios(effects, source - recipient, groups, there, seed)
        variables |= _of_source(runs, source, recipient, readout, ratios[:, :count], units=units, seed=seed)
        variables |= _random(ratios[0, count:], owners)
    coords = {"prompt": range(len(recipient)), "group": ("prompt", groups), **_coords(wanted)}
    settings = {"positions": positions, "by": by, "sites": count}
    attrs = {
        "metric": metric_name(metric),
        "units": units,
        "seed": seed,
        "settings": json.dumps(settings, default=str),
        "recipient": json.dumps(dict(runs.recipient.description)),
        "source": json.dumps(dict(runs.source.description) if by is None else None),
    }
    if isinstance(runs.recipient, RewardModel):
        attrs |= {"label": runs.recipient.label, "output": runs.recipient.output}
    if runs.mixed:
        attrs["source_reader"] = "recipient"
    return Patching(xr.Dataset(variables, coords=coords, attrs=attrs))


def _of_source(
    runs: Runs,
    source: Float[np.ndarray, " prompt"],
    recipient: Float[np.ndarray, " prompt"],
    readout: Float[np.ndarray, " prompt"],
    ratios: Float[np.ndarray, "bound site"],
    *,
    units: str,
    seed: int,
) -> dict[str, xr.Variable]:
    """Recovery, and the unpatched source; of two models of one kind the readout too."""
    texts = ("sum of effects / sum of (source - recipient)", "its 95 % interval's lower", "and upper bound")
    variables = {
        name: as_variable(("site",), values, _attrs(text))
        for name, values, text in zip(_BOUNDS, ratios, texts, strict=True)
    }
    text = "recipient's reading of the source's last residual" if runs.mixed else "metric of the source"
    variables["source"] = as_variable(("prompt",), source, _attrs(text, units))
    if runs.recipient.model is not runs.source.model and not runs.mixed:
        text = "metric of the recipient's last residual read by the source"
        variables["readout"] = as_variable(("prompt",), readout, _attrs(text, units))
        bounds = interval((readout - recipient)[:, None], runs.groups, over=source - recipient, seed=seed)
        for name, values in zip(_BOUNDS, bounds, strict=True):
            variables[f"readout_{name}"] = as_variable((), values[0], _attrs("of the readout"))
    return variables


def _there(
    runs: Runs, wanted: Sequence[Intervention], owners: Sequence[tuple[int, ...]]
) -> Bool[np.ndarray, "prompt patch"]:
    """Which prompts have the tokens that an intervention is at, those of its random sets after all."""
    short = np.array([len(ids) for ids in runs.reads.prompt_ids])
    long = short if runs.reads.encoder_ids is None else np.array([len(ids) for ids in runs.reads.encoder_ids])
    columns = []
    for intervention in wanted:
        lengths = long if any(target.site.stack is not None for target in intervention.targets) else short
        position = intervention.position
        if isinstance(position, str):
            columns.append(np.ones(len(short), dtype=bool))
        else:
            listed = (position,) if isinstance(position, int) else position
            columns.append(np.any([(place < lengths) & (-place <= lengths) for place in listed], axis=0))
    table = np.stack(columns, axis=1)
    beside = [np.repeat(table[:, [index]], len(numbers), axis=1) for index, numbers in enumerate(owners)]
    return np.concatenate([table, *beside], axis=1)


def _ratios(
    effects: Float[np.ndarray, "prompt patch"],
    gaps: Float[np.ndarray, " prompt"],
    groups: np.ndarray,
    there: Bool[np.ndarray, "prompt patch"],
    seed: int,
) -> Float[np.ndarray, "bound patch"]:
    """The ratio of sums of each site, and its bounds, over the prompts that have its tokens."""
    table = np.full((3, effects.shape[1]), np.nan)
    patterns, which = np.unique(there, axis=1, return_inverse=True)
    for index, rows in enumerate(patterns.T):
        sites = np.flatnonzero(which.ravel() == index)
        if rows.any():
            table[:, sites] = interval(effects[rows][:, sites], groups[rows], over=gaps[rows], seed=seed)
    return table


def _attrs(text: str, units: str = "") -> dict[str, str]:
    return {"long_name": text, "units": units}


def _random(ratios: Float[np.ndarray, " random"], owners: Sequence[tuple[int, ...]]) -> dict[str, xr.Variable]:
    draws = max(map(len, owners), default=0)
    if not draws:
        return {}
    table = np.full((len(owners), draws), np.nan)
    for row, numbers in enumerate(owners):
        table[row, : len(numbers)] = ratios[list(numbers)]
    return {"random_recovery": as_variable(("site", "draw"), table, _attrs("recovery of random sets of the same size"))}


def _coords(wanted: Sequence[Intervention]) -> dict[str, Any]:
    single = [patch.targets[0] if patch.size == 1 else None for patch in wanted]
    numbers = {
        "layer": [-1 if one is None else one.site.layer for one in single],
        "unit": [-1 if one is None or one.units is None else one.units[0] for one in single],
        "pos": [patch.position if isinstance(patch.position, int) else NO_POSITION for patch in wanted],
    }
    texts = {
        "name": ["set" if one is None else one.site.name for one in single],
        "stack": ["" if one is None else one.site.stack or "" for one in single],
        "label": [str(patch) for patch in wanted],
    }
    return {
        **{name: ("site", np.array(values, dtype=np.int64)) for name, values in numbers.items()},
        **{name: ("site", strings(values)) for name, values in texts.items()},
    }
