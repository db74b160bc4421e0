"""The table that a person reads first: the findings of every reading, largest first, with how sure they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from interp.stats import MIN_PROMPTS, SPLIT_PROMPTS, bootstrap_mean, null_range, selection_halves

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
        completeness: float = float("nan"),
    ) -> dict[str, object]:
        """One finding whose unit is the prompt: its mean, interval and range among the null runs.

        Args:
            reading: the measure it comes from.
            finding: the finding in words.
            values: from a Dataset to one number a prompt.
            units: units of the numbers.
            rows: prompts that estimate it; None is all.
            null: what is taken of a null run, where it is not `values`; its mean is reported.
            completeness: completeness error of an attribution.
        """
        sample = np.asarray(values(self.data), dtype=np.float64)
        chosen = sample if rows is None else sample[rows]
        groups = self.groups if rows is None else self.groups[rows]
        estimate, lower, upper = bootstrap_mean(chosen, groups, seed=self.seed)
        low, high = null_range([float(np.nanmean((null or values)(control))) for control in self.controls])
        count = int(np.isfinite(chosen).sum())
        cells = (reading, finding, estimate, lower, upper, units, count, low, high, completeness)
        return dict(zip(COLUMNS, cells, strict=True))

    def plain(
        self, reading: str, finding: str, value: float, units: str, null: Callable[[xr.Dataset], float]
    ) -> dict[str, object]:
        """One finding that no prompt went into: no interval."""
        low, high = null_range([null(control) for control in self.controls])
        cells = (reading, finding, value, np.nan, np.nan, units, 0, low, high, np.nan)
        return dict(zip(COLUMNS, cells, strict=True))


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


def _difference(name: str, **where: object) -> ByPrompt:
    def values(data: xr.Dataset) -> np.ndarray:
        array = data[name].sel(**where)
        return (array.sel(model="tuned", drop=True) - array.sel(model="base", drop=True)).values

    return values


def _pair_name(data: xr.Dataset) -> str:
    pairs = {(str(a), str(b)) for a, b in zip(data["answer_token"].values, data["other_token"].values, strict=True)}
    if len(pairs) == 1:
        answer, other = pairs.pop()
        return f"{answer!r} - {other!r}"
    return "answer - alternative" if "logit_diff" in data else "tuned's top token - base's likeliest other"


def _logit_diff(table: _Table) -> Iterator[dict[str, object]]:
    pair = _pair_name(table.data)
    yield table.row("logit difference", f"{pair}: tuned minus base", _difference("logit_diff"), "logits")
    for model in ("base", "tuned"):
        yield table.row(
            "logit difference", f"{pair}: {model}", lambda d, m=model: d["logit_diff"].sel(model=m).values, "logits"
        )
    for answer in ("answer", "alternative"):
        token = "answer_token" if answer == "answer" else "other_token"
        names = set(map(str, table.data[token].values))
        name = repr(names.pop()) if len(names) == 1 else answer
        yield table.row(
            "logit difference",
            f"P({name}): tuned minus base",
            _difference("answer_prob", answer=answer),
            "probability",
        )


def _next_token(table: _Table) -> Iterator[dict[str, object]]:
    def changed(data: xr.Dataset) -> np.ndarray:
        top = data["top_token"].isel(rank=0)
        return (top.sel(model="tuned").values != top.sel(model="base").values).astype(float)

    yield table.row("next token", "share of prompts whose top token changed", changed, "share")


def _divergence(table: _Table) -> Iterator[dict[str, object]]:
    def last(data: xr.Dataset) -> np.ndarray:
        kl = data["kl"].values
        return kl[np.arange(len(kl)), np.isfinite(kl).sum(1) - 1]

    yield table.row("divergence", "KL(tuned || base) after the prompt", last, "nats")
    yield table.row(
        "divergence", "KL(tuned || base), mean over prompt tokens", lambda d: np.nanmean(d["kl"].values, axis=1), "nats"
    )
    yield table.row("divergence", "JS, mean over prompt tokens", lambda d: np.nanmean(d["js"].values, axis=1), "nats")


def _response(table: _Table) -> Iterator[dict[str, object]]:
    names = {"given": "given responses", "tuned": "tuned's own samples", "base": "base's samples"}
    for source in [s for s in names if s in table.data["source"].values]:
        yield table.row(
            "divergence",
            f"KL(tuned || base) per response token, {names[source]}",
            lambda d, s=source: _mean_over_steps(d["response_kl"].sel(source=s).values),
            "nats",
        )


def _mean_over_steps(values: np.ndarray) -> np.ndarray:
    """Mean over draws and steps, NaN for a prompt without any."""
    flat = values.reshape(len(values), -1)
    real = np.isfinite(flat)
    return np.where(real.any(1), np.nansum(flat, axis=1) / np.maximum(real.sum(1), 1), np.nan)


def _lens(table: _Table) -> Iterator[dict[str, object]]:
    """The step between two sites at which the lenses part most."""

    def steps(data: xr.Dataset) -> np.ndarray:
        return np.diff(_difference("lens_logit_diff")(data), axis=1)

    sites = [str(site) for site in table.data["site"].values]
    for index, rows in _largest(steps(table.data), table.groups):
        yield table.row(
            "logit lens",
            f"tuned minus base: change from {sites[index]} to {sites[index + 1]}",
            lambda d, i=index: steps(d)[:, i],
            "logits",
            rows=rows,
            null=lambda d: _extreme(steps(d)),
        )


def _attribution(table: _Table) -> Iterator[dict[str, object]]:
    data = table.data
    error = float(data["completeness_error"].mean())
    differences = _difference("attribution")
    for index, rows in _largest(differences(data), table.groups):
        name = str(data["component"].values[index])
        write = float(data["attribution_write"].values[rows, index].mean())
        readout = float(data["attribution_readout"].values[rows, index].mean())
        yield table.row(
            "attribution",
            f"{name}: tuned minus base (write {write:+.3f}, readout {readout:+.3f})",
            lambda d, i=index: differences(d)[:, i],
            "logits",
            rows=rows,
            null=lambda d: _extreme(differences(d)),
            completeness=error,
        )
    yield table.row(
        "attribution",
        "all components: change of the readout",
        lambda d: d["attribution_readout"].values.sum(1),
        "logits",
        completeness=error,
    )


def _head_name(flat: int, heads: int) -> str:
    return f"L{flat // heads}H{flat % heads}"


def _heads(table: _Table) -> Iterator[dict[str, object]]:
    heads = table.data.sizes["head"]
    difference = _difference("head_attribution")

    def flat(data: xr.Dataset) -> np.ndarray:
        values = difference(data)
        return values.reshape(len(values), -1)

    error = float(table.data["completeness_error"].mean())
    for index, rows in _largest(flat(table.data), table.groups):
        yield table.row(
            "attribution by head",
            f"{_head_name(index, heads)}: tuned minus base",
            lambda d, i=index: flat(d)[:, i],
            "logits",
            rows=rows,
            null=lambda d: _extreme(flat(d)),
            completeness=error,
        )


def _attention(table: _Table) -> Iterator[dict[str, object]]:
    heads = table.data.sizes["head"]

    def flat(data: xr.Dataset) -> np.ndarray:
        values = data["pattern_js"].values
        return values.reshape(len(values), -1)

    for index, rows in _largest(flat(table.data), table.groups):
        yield table.row(
            "attention",
            f"{_head_name(index, heads)}: JS of the patterns",
            lambda d, i=index: flat(d)[:, i],
            "nats",
            rows=rows,
            null=lambda d: _extreme(flat(d)),
        )


def _weights(table: _Table) -> Iterator[dict[str, object]]:
    data = table.data
    heads = data.sizes["head"]
    for name, words in (("ov_change", "OV circuit"), ("qk_change", "QK circuit"), ("mlp_change", "MLP")):
        values = data[name].values.reshape(-1)
        for index in np.argsort(-values, kind="stable")[:TOP]:
            if values[index] > 0:
                where = f"L{index}" if name == "mlp_change" else _head_name(int(index), heads)
                yield table.plain(
                    "weights",
                    f"{where}: relative change of its {words}",
                    float(values[index]),
                    "1",
                    lambda d, n=name: float(d[n].max()),
                )
        if not (values > 0).any():
            yield table.plain("weights", f"no {words} changed", 0.0, "1", lambda d, n=name: float(d[n].max()))


def _reward(table: _Table) -> Iterator[dict[str, object]]:
    rewards = table.data["completion_reward"]
    units = str(rewards.attrs.get("units", ""))

    def of(source: str) -> ByPrompt:
        return lambda d: d["completion_reward"].sel(source=source).mean("draw").values

    name = str(rewards.attrs.get("long_name", "reward"))
    yield table.row("reward", f"{name}: tuned's samples minus base's", lambda d: of("tuned")(d) - of("base")(d), units)
    for source in ("base", "tuned"):
        yield table.row("reward", f"{name}: {source}'s samples", of(source), units)


def _largest(values: np.ndarray, groups: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Columns of [prompt, cell] with the largest |mean| on the selecting prompts, and the estimating prompts."""
    select, estimate = selection_halves(groups)
    order = np.argsort(-np.abs(values[select].mean(0)), kind="stable")[:TOP]
    for index in order:
        yield int(index), estimate


def _extreme(values: np.ndarray) -> np.ndarray:
    """The column of [prompt, cell] whose |mean| is largest: a null run's own maximum."""
    return values[:, int(np.argmax(np.abs(values.mean(0))))]


def headline(data: xr.Dataset) -> str:
    """What is compared with what, in one line."""
    base, tuned = (_model_name(json.loads(data.attrs[name])) for name in ("base", "tuned"))
    return f"{tuned} (tuned) against {base} (base), {data.sizes['prompt']} prompts; differences are tuned minus base"


def _model_name(description: dict[str, object]) -> str:
    return str(description.get("folder") or description.get("id") or description.get("object"))


def text_rows(frame: pd.DataFrame) -> list[tuple[str, ...]]:
    """The summary as rows of text, the header first; columns without any value are left out."""
    optional = {"95 % interval": "lower", "null runs": "control_low"}
    shown = [name for name, column in optional.items() if frame[column].notna().any()]
    lines = [("reading", "finding", "estimate", *shown, "units", "n")]
    for row in frame.itertuples():
        ranges = {
            "95 % interval": "" if np.isnan(row.lower) else f"[{row.lower:.4g}, {row.upper:.4g}]",
            "null runs": "" if np.isnan(row.control_low) else f"[{row.control_low:.4g}, {row.control_high:.4g}]",
        }
        lines.append(
            (row.reading, row.finding, f"{row.estimate:.4g}", *(ranges[n] for n in shown), row.units, str(row.n or ""))
        )
    return lines


def columns_text(lines: Sequence[tuple[str, ...]]) -> str:
    """Rows of text as aligned columns."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    right = {"estimate", "95 % interval", "null runs", "n"}
    rows = []
    for line in lines:
        cells = [c.rjust(w) if h in right else c.ljust(w) for c, w, h in zip(line, widths, lines[0], strict=True)]
        rows.append("  ".join(cells).rstrip())
    return "\n".join(rows)


def notes(frame: pd.DataFrame, data: xr.Dataset) -> list[str]:
    """What a reader must know to read the summary rightly."""
    groups = len(np.unique(data["group"].values))
    found = []
    if groups < MIN_PROMPTS:
        found.append(f"No intervals: {groups} different prompts, and under {MIN_PROMPTS} a bootstrap says nothing.")
    if groups < SPLIT_PROMPTS:
        found.append(
            f"Under {SPLIT_PROMPTS} different prompts the largest of many are chosen and estimated on the same ones."
        )
    if frame["control_low"].isna().all():
        found.append("No null runs: this shows that the two models differ here, not that the reward did it (control=).")
    return found
