"""The table that a person reads first: the findings of every reading, largest first, with how sure they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from interp.stats import bootstrap_mean, null_range, selection_halves

COLUMNS = (
    "reading",
    "finding",
    "estimate",
    "lower",
    "upper",
    "units",
    "n",
    "control_low",
    "control_high",
    "completeness",
)
TOP = 3

ByPrompt = Callable[[xr.Dataset], np.ndarray]
Row = dict[str, object]


@dataclass(frozen=True)
class _Table:
    """The comparison's own data, and those of the null runs."""

    data: xr.Dataset
    controls: Sequence[xr.Dataset]
    seed: int

    @property
    def groups(self) -> np.ndarray:
        """Group of each prompt."""
        return np.asarray(self.data["group"].values)

    def row(
        self,
        reading: str,
        finding: str,
        values: ByPrompt,
        units: str,
        *,
        rows: np.ndarray | None = None,
        null: ByPrompt | None = None,
        of_base: bool = False,
        completeness: float = float("nan"),
    ) -> Row:
        """One finding whose unit is the prompt: its mean, interval and range among the null runs.

        Args:
            reading: the measure it comes from.
            finding: the finding in words.
            values: from a Dataset to one number a prompt.
            units: units of the numbers.
            rows: prompts that estimate it; None is all.
            null: what is taken of a null run, where it is not `values`; its mean is reported.
            of_base: it says something of base alone, which null runs share.
            completeness: completeness error of an attribution.
        """
        sample = np.asarray(values(self.data), dtype=np.float64)
        chosen = sample if rows is None else sample[rows]
        groups = self.groups if rows is None else self.groups[rows]
        estimate, lower, upper = bootstrap_mean(chosen, groups, seed=self.seed)
        nulls = [] if of_base else [float(np.nanmean((null or values)(control))) for control in self.controls]
        low, high = null_range(nulls)
        count = int(np.isfinite(chosen).sum())
        cells = (reading, finding, estimate, lower, upper, units, count, low, high, completeness)
        return dict(zip(COLUMNS, cells, strict=True))

    def largest(
        self,
        reading: str,
        name: Callable[[int, np.ndarray], str],
        cells: ByPrompt,
        units: str,
        *,
        completeness: float = float("nan"),
    ) -> Iterator[Row]:
        """The cells of a map with the largest |mean| on the selecting prompts, estimated on the others.

        The null is a run's own largest cell: a maximum must be compared with a maximum.

        Args:
            reading: the measure it comes from.
            name: from a cell and the estimating prompts to the finding in words.
            cells: from a Dataset to [prompt, cell].
            units: units of the numbers.
            completeness: completeness error of an attribution.
        """
        values = cells(self.data)
        select, rows = selection_halves(self.groups)

        def column(index: int) -> ByPrompt:
            return lambda data: cells(data)[:, index]

        def extreme(data: xr.Dataset) -> np.ndarray:
            found = cells(data)
            return found[:, int(np.argmax(np.abs(found.mean(0))))]

        found = [
            self.row(
                reading, name(index, rows), column(index), units, rows=rows, null=extreme, completeness=completeness
            )
            for index in map(int, np.argsort(-np.abs(values[select].mean(0)), kind="stable")[:TOP])
        ]
        yield from sorted(found, key=lambda row: -abs(float(str(row["estimate"]))))

    def plain(self, reading: str, finding: str, value: float, null: list[float]) -> Row:
        """One finding that no prompt went into: no interval, no unit."""
        low, high = null_range(null)
        cells = (reading, finding, value, np.nan, np.nan, "1", 0, low, high, np.nan)
        return dict(zip(COLUMNS, cells, strict=True))

    def head(self, index: int) -> str:
        """Name of a head by its index in the flattened map."""
        heads = self.data.sizes["head"]
        return f"L{index // heads}H{index % heads}"


def summarise(data: xr.Dataset, controls: Sequence[xr.Dataset] = (), *, seed: int = 0) -> pd.DataFrame:
    """Findings of every reading in `data`, largest first within a reading.

    Differences are tuned minus base. Where a finding is the largest of many (a head, a component), it is chosen on the
    even prompts and estimated on the odd ones if there are 16 or more; its null is the largest of the null run's map,
    as a maximum must be compared with a maximum.

    Args:
        data: what `compare` computed.
        controls: the same for null runs.
        seed: seed of the bootstrap.

    Returns:
        One row a finding: `reading`, `finding` (words), `estimate`, `lower` and `upper` (95 % interval over prompts,
        NaN under 8 prompts), `units`, `n` (prompts), `control_low` and `control_high` (range of the null runs),
        `completeness` (mean |sum - logit difference|, for attributions).
    """
    table = _Table(data, controls, seed)
    readings = (
        ("logit_diff", _logit_diff),
        ("top_token", _next_token),
        ("kl", _divergence),
        ("response_kl", _response),
        ("lens_logit_diff", _lens),
        ("attribution", _attribution),
        ("head_attribution", _heads),
        ("pattern_js", _attention),
        ("ov_change", _weights),
        ("completion_reward", _reward),
    )
    rows = [row for needed, reading in readings if needed in data for row in reading(table)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _difference(name: str, **where: str) -> ByPrompt:
    """Tuned minus base of an array, as a function of the Dataset."""

    def values(data: xr.Dataset) -> np.ndarray:
        array = data[name].sel(where)
        return (array.sel(model="tuned", drop=True) - array.sel(model="base", drop=True)).values

    return values


def _of_model(name: str, model: str) -> ByPrompt:
    return lambda data: data[name].sel(model=model).values


def _flat(cells: ByPrompt) -> ByPrompt:
    """A map by layer and head as one row of cells a prompt."""

    def values(data: xr.Dataset) -> np.ndarray:
        array = cells(data)
        return array.reshape(len(array), -1)

    return values


def _one_or(names: xr.DataArray, otherwise: str) -> str:
    """The name if all prompts share it."""
    found = {str(name) for name in names.values}
    return repr(found.pop()) if len(found) == 1 else otherwise


def _pair_name(data: xr.Dataset) -> str:
    if "logit_diff" not in data:
        return "tuned's top token - base's likeliest other"
    return f"{_one_or(data['answer_token'], 'answer')} - {_one_or(data['other_token'], 'alternative')}"


def _logit_diff(table: _Table) -> Iterator[Row]:
    pair, reading = _pair_name(table.data), "logit difference"
    yield table.row(reading, f"{pair}: tuned minus base", _difference("logit_diff"), "logits")
    for model in ("base", "tuned"):
        yield table.row(reading, f"{pair}: {model}", _of_model("logit_diff", model), "logits", of_base=model == "base")
    for answer, token in (("answer", "answer_token"), ("alternative", "other_token")):
        name = _one_or(table.data[token], answer)
        yield table.row(
            reading, f"P({name}): tuned minus base", _difference("answer_prob", answer=answer), "probability"
        )


def _next_token(table: _Table) -> Iterator[Row]:
    def changed(data: xr.Dataset) -> np.ndarray:
        top = data["top_token"].isel(rank=0)
        return (top.sel(model="tuned").values != top.sel(model="base").values).astype(float)

    yield table.row("next token", "share of prompts whose top token changed", changed, "share")


def _divergence(table: _Table) -> Iterator[Row]:
    def last(data: xr.Dataset) -> np.ndarray:
        kl = data["kl"].values
        return kl[np.arange(len(kl)), np.isfinite(kl).sum(1) - 1]

    def mean(name: str) -> ByPrompt:
        return lambda data: np.nanmean(data[name].values, axis=1)

    yield table.row("divergence", "KL(tuned || base) after the prompt", last, "nats")
    yield table.row("divergence", "KL(tuned || base), mean over prompt tokens", mean("kl"), "nats")
    yield table.row("divergence", "JS, mean over prompt tokens", mean("js"), "nats")


def _response(table: _Table) -> Iterator[Row]:
    def of(source: str) -> ByPrompt:
        return lambda data: _mean_over_steps(data["response_kl"].sel(source=source).values)

    names = {"given": "given responses", "tuned": "tuned's own samples", "base": "base's samples"}
    for source in [s for s in names if s in table.data["source"].values]:
        yield table.row("divergence", f"KL(tuned || base) per response token, {names[source]}", of(source), "nats")


def _mean_over_steps(values: np.ndarray) -> np.ndarray:
    """Mean over draws and steps, NaN for a prompt without any."""
    flat = values.reshape(len(values), -1)
    real = np.isfinite(flat)
    return np.where(real.any(1), np.nansum(flat, axis=1) / np.maximum(real.sum(1), 1), np.nan)


def _lens(table: _Table) -> Iterator[Row]:
    """The steps from site to site at which the lenses part most."""
    sites = [str(site) for site in table.data["site"].values]
    difference = _difference("lens_logit_diff")

    def steps(data: xr.Dataset) -> np.ndarray:
        return np.diff(difference(data), axis=1)

    def name(index: int, _: np.ndarray) -> str:
        return f"tuned minus base: change from {sites[index]} to {sites[index + 1]}"

    yield from table.largest("logit lens", name, steps, "logits")


def _attribution(table: _Table) -> Iterator[Row]:
    data = table.data
    error = float(data["completeness_error"].mean())

    def name(index: int, rows: np.ndarray) -> str:
        write, readout = (
            float(data[f"attribution_{side}"].values[rows, index].mean()) for side in ("write", "readout")
        )
        component = data["component"].values[index]
        return f"{component}: tuned minus base (write {write:+.3f}, readout {readout:+.3f})"

    def all_readout(run: xr.Dataset) -> np.ndarray:
        return run["attribution_readout"].values.sum(1)

    yield from table.largest("attribution", name, _difference("attribution"), "logits", completeness=error)
    yield table.row("attribution", "all components: change of the readout", all_readout, "logits", completeness=error)


def _heads(table: _Table) -> Iterator[Row]:
    error = float(table.data["completeness_error"].mean())
    cells = _flat(_difference("head_attribution"))

    def name(index: int, _: np.ndarray) -> str:
        return f"{table.head(index)}: tuned minus base"

    yield from table.largest("attribution by head", name, cells, "logits", completeness=error)


def _attention(table: _Table) -> Iterator[Row]:
    def name(index: int, _: np.ndarray) -> str:
        return f"{table.head(index)}: JS of the patterns"

    yield from table.largest("attention", name, _flat(lambda data: data["pattern_js"].values), "nats")


def _weights(table: _Table) -> Iterator[Row]:
    for name, words in (("ov_change", "OV circuit"), ("qk_change", "QK circuit"), ("mlp_change", "MLP")):
        values = table.data[name].values.reshape(-1)
        null = [float(control[name].max()) for control in table.controls]
        for index in np.argsort(-values, kind="stable")[:TOP]:
            if values[index] > 0:
                where = f"L{index}" if name == "mlp_change" else table.head(int(index))
                yield table.plain("weights", f"{where}: relative change of its {words}", float(values[index]), null)
        if not (values > 0).any():
            yield table.plain("weights", f"no {words} changed", 0.0, null)


def _reward(table: _Table) -> Iterator[Row]:
    rewards = table.data["completion_reward"]
    units, name = str(rewards.attrs.get("units", "")), str(rewards.attrs.get("long_name", "reward"))

    def of(source: str) -> ByPrompt:
        return lambda data: data["completion_reward"].sel(source=source).mean("draw").values

    def difference(data: xr.Dataset) -> np.ndarray:
        return of("tuned")(data) - of("base")(data)

    yield table.row("reward", f"{name}: tuned's samples minus base's", difference, units)
    for source in ("base", "tuned"):
        yield table.row("reward", f"{name}: {source}'s samples", of(source), units, of_base=source == "base")
