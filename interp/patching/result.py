"""What patching found: effects by prompt and site, recovery with its interval, nulls beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from interp.columns import frame_text
from interp.errors import MeasureError
from interp.measures.arrays import as_variable, strings
from interp.metrics import Metric, metric_name, metric_units
from interp.models import RewardModel
from interp.patching.targets import Intervention
from interp.stats import interval, max_t


@dataclass(frozen=True)
class Patching:
    """Patches and what each did.

    `dataset` has the dims `prompt` and `site`; each site carries the coords `name`, `stack`, `layer`, `unit` (head,
    key-value head or neuron; -1 is none) and `pos` (a token's number; -1 the last, -9 no single one), and a set that
    was patched together has layer -1. Variables: `effect` (patched minus recipient, by prompt), `recovery` with
    `recovery_low` and `recovery_high`, `p` (sign-flip max-T over all sites), `random_recovery` (of random sets beside a
    set), `recipient`, `source` and `readout` (the metric of the unpatched runs, by prompt).

    Attributes:
        dataset: all arrays.
    """

    dataset: xr.Dataset

    def __getitem__(self, name: str) -> xr.DataArray:
        """The array `name`.

        Raises:
            MeasureError: there is none.
        """
        if name not in self.dataset:
            raise MeasureError(f"there is no {name!r} here; there are {', '.join(map(str, self.dataset.data_vars))}")
        return self.dataset[name]

    def __repr__(self) -> str:
        return "\n".join([_headline(self.dataset), frame_text(self.summary().head(12)), *_notes(self.dataset)])

    def map(self, name: str, variable: str = "recovery", *, stack: str | None = None) -> xr.DataArray:
        """A variable of all sites of one name as a map: layer by head, by token, or by layer alone.

        Args:
            name: "z", "resid_pre" ...
            variable: any with the dim `site`.
            stack: of an encoder-decoder "encoder" or "cross".

        Raises:
            MeasureError: no site of that name was patched by itself.
        """
        data = self[variable]
        chosen = data.where(
            (self.dataset["name"] == name) & (self.dataset["layer"] >= 0) & (self.dataset["stack"] == (stack or "")),
            drop=True,
        )
        if not chosen.sizes["site"]:
            names = sorted(set(self.dataset["name"].values.tolist()))
            raise MeasureError(f"no {name!r} was patched by itself; there are {', '.join(names)}")
        keys = ["layer", *(key for key in ("unit", "pos") if len(set(chosen[key].values.tolist())) > 1)]
        frame = chosen.set_index(site=keys) if len(keys) > 1 else chosen.swap_dims(site="layer")
        extra = [key for key in ("name", "stack", "layer", "unit", "pos", "label") if key not in keys]
        frame = frame.drop_vars(extra, errors="ignore")
        frame = frame.unstack("site") if len(keys) > 1 else frame.drop_vars("site", errors="ignore")
        if "unit" in frame.dims:
            frame = frame.rename(unit={"k": "kv_head", "v": "kv_head", "mlp_post": "neuron"}.get(name, "head"))
        for dim in frame.dims:
            if dim not in ("prompt", "draw"):
                frame = frame.assign_coords({dim: frame[dim].astype(int)})
        return frame

    def summary(self) -> pd.DataFrame:
        """One row a site, the largest effects first, the readout and the runs' own metric above them."""
        data = self.dataset
        groups, seed = data["group"].values, int(data.attrs["seed"])
        effect = data["effect"].values
        sizes = np.nansum(effect, axis=0) / np.maximum(data["prompts"].values, 1)
        order = np.argsort(-np.abs(sizes), kind="stable")
        mean, low, high = interval(effect[:, order], groups, seed=seed)
        frame = pd.DataFrame(
            {
                "site": data["label"].values[order],
                "effect": mean,
                "low": low,
                "high": high,
            }
        )
        for name in ("recovery", "recovery_low", "recovery_high", "p"):
            if name in data:
                frame[name] = data[name].values[order]
        if len(set(data["prompts"].values.tolist())) > 1:
            frame["prompts"] = data["prompts"].values[order]
        if "random_recovery" in data:
            frame["random_low"] = np.nan_to_num(data["random_recovery"].min("draw").values, nan=np.nan)[order]
            frame["random_high"] = data["random_recovery"].max("draw").values[order]
        return frame


def build(
    runs: Any,
    wanted: Sequence[Intervention],
    patched: np.ndarray,
    recipient: np.ndarray,
    source: np.ndarray | None,
    readout: np.ndarray,
    owners: Sequence[tuple[int, ...]],
    *,
    metric: Metric,
    positions: Any,
    by: str | None,
    seed: int,
) -> Patching:
    """The result, from the metric of each prompt under each intervention.

    Args:
        runs: the two runs (`interp.patching.opening.Runs`).
        wanted: interventions.
        patched: [prompt, site], those of `wanted` first, then the random sets.
        recipient: [prompt], unpatched.
        source: [prompt], the source's own; None of an ablation, which has none.
        readout: [prompt], the recipient's last residual read by the source.
        owners: for each of `wanted` the numbers of its random sets.
        metric: what was measured.
        positions: as they were asked for.
        by: of an ablation, by what.
        seed: of the resampling.
    """
    groups = np.unique(np.array(runs.prompts.groups, dtype=object), return_inverse=True)[1]
    units = metric_units(metric, runs.recipient)
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
        gaps = source - recipient
        ratio = _ratios(effects, gaps, groups, there, seed)
        names = ("recovery", "recovery_low", "recovery_high")
        said = ("sum of effects / sum of (source - recipient)", "its 95 % interval's lower", "and upper bound")
        for name, values, text in zip(names, ratio, said, strict=True):
            variables[name] = as_variable(("site",), values[:count], _attrs(text))
        said_of_source = "recipient's reading of the source's last residual" if runs.mixed else "metric of the source"
        variables["source"] = as_variable(("prompt",), source, _attrs(said_of_source, units))
        if runs.recipient.model is not runs.source.model and not runs.mixed:
            text = "metric of the recipient's last residual read by the source"
            variables["readout"] = as_variable(("prompt",), readout, _attrs(text, units))
            own = interval((readout - recipient)[:, None], groups, over=gaps, seed=seed)
            for name, values in zip(names, own, strict=True):
                variables[f"readout_{name}"] = as_variable((), values[0], _attrs("of the readout"))
        variables |= _random(ratio[0][count:], owners)
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


def _there(runs: Any, wanted: Sequence[Intervention], owners: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Which prompts have the tokens that an intervention is at, [prompt, site], those of its random sets after all."""
    short = np.array([len(ids) for ids in runs.reads.prompt_ids])
    long = short if runs.reads.encoder_ids is None else np.array([len(ids) for ids in runs.reads.encoder_ids])
    columns = []
    for each in wanted:
        lengths = long if any(target.site.stack is not None for target in each.targets) else short
        listed = (each.position,) if isinstance(each.position, int) else each.position
        if isinstance(listed, str):
            columns.append(np.ones(len(short), dtype=bool))
        else:
            columns.append(np.any([(number < lengths) & (-number <= lengths) for number in listed], axis=0))
    table = np.stack(columns, axis=1)
    beside = [np.repeat(table[:, [index]], len(own), axis=1) for index, own in enumerate(owners)]
    return np.concatenate([table, *beside], axis=1)


def _ratios(
    effects: np.ndarray, gaps: np.ndarray, groups: np.ndarray, there: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ratio of sums of each site over the prompts that have its tokens."""
    found = np.full((3, effects.shape[1]), np.nan)
    patterns, which = np.unique(there, axis=1, return_inverse=True)
    for index, rows in enumerate(patterns.T):
        sites = np.flatnonzero(which.ravel() == index)
        if rows.any():
            found[:, sites] = interval(effects[rows][:, sites], groups[rows], over=gaps[rows], seed=seed)
    return found[0], found[1], found[2]


def _attrs(text: str, units: str = "") -> dict[str, str]:
    return {"long_name": text, "units": units}


def _random(ratios: np.ndarray, owners: Sequence[tuple[int, ...]]) -> dict[str, xr.Variable]:
    draws = max(map(len, owners), default=0)
    if not draws:
        return {}
    table = np.full((len(owners), draws), np.nan)
    for row, own in enumerate(owners):
        table[row, : len(own)] = ratios[list(own)]
    return {"random_recovery": as_variable(("site", "draw"), table, _attrs("recovery of random sets of the same size"))}


def _coords(wanted: Sequence[Intervention]) -> dict[str, Any]:
    single = [each.targets[0] if each.size == 1 else None for each in wanted]
    numbers = {
        "layer": [-1 if one is None else one.site.layer for one in single],
        "unit": [-1 if one is None or one.units is None else one.units[0] for one in single],
        "pos": [each.position if isinstance(each.position, int) else -9 for each in wanted],
    }
    texts = {
        "name": ["set" if one is None else one.site.name for one in single],
        "stack": ["" if one is None else one.site.stack or "" for one in single],
        "label": [str(each) for each in wanted],
    }
    return {
        **{name: ("site", np.array(values, dtype=np.int64)) for name, values in numbers.items()},
        **{name: ("site", strings(values)) for name, values in texts.items()},
    }


def _headline(data: xr.Dataset) -> str:
    metric, units = data.attrs["metric"], data.attrs["units"]
    if metric == "score":
        metric = f"score ({data.attrs['label']})"
    own = f"{metric} of the recipient {float(data['recipient'].mean()):.4g}"
    theirs = f", of the source {float(data['source'].mean()):.4g}" if "source" in data else ""
    if "source_reader" in data.attrs:
        theirs = theirs.replace("the source", "the source's last residual")
    unit = f" {units}" if units else ""
    about = f"{own}{theirs}{unit}, mean of {_counted(data.sizes['prompt'], 'prompt')}"
    made = "estimates" if "method" in data.attrs else "patches"
    return f"{about}; {_counted(data.sizes['site'], made.removesuffix('s').replace('patche', 'patch'), made)}"


def _counted(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def _notes(data: xr.Dataset) -> list[str]:
    notes = []
    if "source_reader" in data.attrs:
        notes.append("recovery 1 is what the source's last residual gives, read by the recipient's head")
    if "method" in data.attrs:
        notes.append(f"{data.attrs['method']}: an estimate, {_checked(data)}")
    if "recovery" in data and np.isnan(data["recovery"].values).all():
        notes.append("no recovery: source and recipient do not differ beyond chance on these prompts")
    elif "readout_recovery" in data:
        notes.append(f"readout (final norm and unembedding alone): recovery {float(data['readout_recovery']):.3g}")
    if np.isnan(data["p"].values).all():
        notes.append("no intervals and no p: fewer than 8 groups of prompts")
    return notes


def _checked(data: xr.Dataset) -> str:
    count = int(data.attrs.get("rank_sample", 0))
    if not count:
        return "which no exact patch was compared with"
    rank = float(data.attrs["rank_correlation"])
    return f"whose rank correlation with {_counted(count, 'exact patch', 'exact patches')} is {rank:.2f}"
