"""Does "significant" hold its 5 %? Runs that differ by chance alone, each judged against the rest of its own kind.

    python -m analyses.nulls PAIR [--out nulls]

PAIR is a folder of `interp train` with at least 20 null runs and 20 replicates. Three kinds of runs are compared with
the pair's base on the same prompts: the replicates (other seeds), the null runs (shuffled reward), and copies of base
whose weights carry noise of bfloat16's rounding size (each weight times 1 + u, u uniform within 2**-9). Within a kind
no run is special, so a run is judged against the others of its kind: p = (1 + others at least as large) / (1 + others),
as the summary of a comparison ranks a pair among its null runs. With 20 runs and no ties exactly one run of each
statistic reaches p = 1/20: the expected rate at p <= 0.05 is 5 %, whatever the statistic, and ties lower it.

Three rates, each with its Wilson interval (which takes its cases as independent; those of one run are not):

- statistics: of each reading one number a run, of a map its largest |mean|; patching of heads and MLPs included;
- findings: the rows of the summary, as a user sees them (chosen on half the prompts, estimated on the other half,
  ranked against the largest of each null run's map), which is stricter; and the runs with any such row, which are
  many more: each row holds its level by itself, and nothing corrects for the number of rows;
- sign flips: runs of which sign-flip max-T over prompts calls some effect of a map significant. It asks whether these
  two models differ on such prompts, and they do: it supports no claim about the cause, and this is no error rate.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
import torch
import xarray as xr
from torch import nn

from interp.comparison import Comparison, compare
from interp.errors import FormatError, InterpError
from interp.io import read_json, write_text
from interp.measures import difference
from interp.models import Policy
from interp.pair import CheckpointPair
from interp.patching import patch_runs, runs_of
from interp.prompts import Prompts
from interp.stats import MIN_CONTROLS, max_t, rank_p
from training.seeding import derive, one_thread

RUNS = MIN_CONTROLS + 1
LEVEL = 0.05
ROUNDING = 2.0**-9
"""Largest relative error of rounding to bfloat16, whose significand has 8 bits."""

MEASURES = ("next_token", "logit_diff", "kl", "lens", "residual", "attribution", "attention", "weights")


def noisy(model: nn.Module, *, seed: int, size: float = ROUNDING) -> nn.Module:
    """A copy of a model whose weights are each multiplied by 1 + u, u uniform within `size`."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(derive(seed, "float noise"))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1 + size * (2 * torch.rand(parameter.shape, generator=generator) - 1))
    return other


@dataclass(frozen=True)
class Nulls:
    """What runs that differ by chance alone are said to show.

    Attributes:
        dataset: `value` and `p` [kind, run, statistic]; `findings` and `significant` [kind, run], how many rows of the
            summary had a rank, and how many of these p <= 0.05; `sign_flip_p` [kind, run, reading], the smallest p of
            a map by sign flips.
    """

    dataset: xr.Dataset

    def rates(self) -> pd.DataFrame:
        """One row a kind and what is counted: cases, significant ones, their rate with its Wilson interval."""
        data = self.dataset
        rows = []
        for kind in data["kind"].values:
            own = data.sel(kind=kind)
            hits = own["p"].values <= LEVEL
            rows.append(_rate(kind, "statistics", int(hits.sum()), hits.size))
            rows.append(_rate(kind, "findings", int(own["significant"].sum()), int(own["findings"].sum())))
            any_row = own["significant"].values[own["findings"].values > 0] > 0
            rows.append(_rate(kind, "runs with any finding", int(any_row.sum()), len(any_row)))
            for reading in data["reading"].values:
                claims = own["sign_flip_p"].sel(reading=reading).values <= LEVEL
                rows.append(_rate(kind, f"sign flips: {reading}", int(claims.sum()), claims.size))
        return pd.DataFrame(rows)


def _rate(kind: str, what: str, hits: int, cases: int) -> dict[str, Any]:
    bounds = scipy.stats.binomtest(hits, cases).proportion_ci(method="wilson") if cases else (np.nan, np.nan)
    rate = hits / cases if cases else np.nan
    return {
        "kind": kind,
        "what": what,
        "cases": cases,
        "significant": hits,
        "rate": rate,
        "low": bounds[0],
        "high": bounds[1],
    }


def judge_nulls(
    base: Policy, kinds: Mapping[str, Sequence[Any]], prompts: Prompts, *, told: Callable[[str], None] = print
) -> Nulls:
    """Judge each run of each kind against the others of its kind.

    Args:
        base: what every run is compared with.
        kinds: runs by kind, as many of each (models, or where they lie).
        prompts: prompts with answers.
        told: told of each kind.
    """
    found = []
    for kind, sources in kinds.items():
        runs = [Policy.load(source, tokenizer=base.tokenizer) for source in sources]
        first = compare(base, runs[0], prompts, controls=runs[1:], measures=MEASURES)
        datasets = (first.dataset, *first.controls)
        patched = [_patched(base, run, prompts) for run in runs]
        found.append(_of_kind(datasets, patched).expand_dims(kind=[kind]))
        told(f"{kind}: {len(runs)} runs")
    return Nulls(xr.concat(found, "kind"))


def _patched(base: Policy, run: Policy, prompts: Prompts) -> dict[str, np.ndarray]:
    """Effects of patching the run's heads and MLPs into base, [prompt, site]."""
    runs = runs_of(base, run, prompts)
    return {
        f"patching of {site}": patch_runs(runs, sites=site, metric="logit_diff", draws=0)["effect"].values
        for site in ("result", "mlp_out")
    }


def _of_kind(datasets: Sequence[xr.Dataset], patched: Sequence[Mapping[str, np.ndarray]]) -> xr.Dataset:
    tables = [{**statistics(data), **effects} for data, effects in zip(datasets, patched, strict=True)]
    values = np.array([[largest(table[name]) for name in table] for table in tables])
    ps = np.array([[rank_p(own, list(np.delete(column, i))) for i, own in enumerate(column)] for column in values.T]).T
    counts, flips = [], []
    for place, (own, effects) in enumerate(zip(datasets, patched, strict=True)):
        others = tuple(each for index, each in enumerate(datasets) if index != place)
        ranks = Comparison(own, others).summary()["rank_p"].dropna()
        counts.append((len(ranks), int((ranks <= LEVEL).sum())))
        groups = own["group"].values
        maps = {"attribution by head": _flat(difference("head_attribution")(own)), **effects}
        flips.append([float(np.min(max_t(each, groups))) for each in maps.values()])
    return xr.Dataset(
        {
            "value": (("run", "statistic"), values, {"long_name": "largest |mean over prompts|"}),
            "p": (("run", "statistic"), ps, {"long_name": "rank among the other runs of the kind"}),
            "findings": ("run", [count for count, _ in counts], {"long_name": "ranked rows of the summary"}),
            "significant": ("run", [hits for _, hits in counts], {"long_name": "of these with p <= 0.05"}),
            "sign_flip_p": (("run", "reading"), flips, {"long_name": "smallest p of the map by sign flips, max-T"}),
        },
        coords={"statistic": list(tables[0]), "reading": list(maps)},
    )


def _flat(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1)


def statistics(data: xr.Dataset) -> dict[str, np.ndarray]:
    """One map by prompt, [prompt, cell], of each reading of a comparison; weights have no prompt, and one row."""
    found = {
        name: _flat(difference(name)(data)) for name in ("logit_diff", "entropy", "attribution", "head_attribution")
    }
    found["lens"] = np.diff(difference("lens_logit_diff")(data), axis=1)
    found["KL"] = np.nanmean(data["kl"].values, axis=1, keepdims=True)
    found["JS"] = np.nanmean(data["js"].values, axis=1, keepdims=True)
    found["cosine of the residual"] = 1 - data["resid_cosine"].values
    found["norm of the residual"] = difference("resid_norm")(data)
    found["pattern JS"] = _flat(data["pattern_js"].values)
    found["pattern entropy"] = _flat(difference("pattern_entropy")(data))
    found["attention moved"] = _flat(difference("attention_to")(data))
    for name in ("ov_change", "qk_change", "mlp_change"):
        found[name] = data[name].values.reshape(1, -1)
    return found


def largest(values: np.ndarray) -> float:
    """The largest |mean over prompts| of a map; cells without a finite value are left out."""
    real = np.isfinite(values)
    sums, counts = np.where(real, values, 0).sum(0), real.sum(0)
    return float(np.abs(sums[counts > 0] / counts[counts > 0]).max())


def run(pair: CheckpointPair, prompts: Prompts, *, told: Callable[[str], None] = print) -> Nulls:
    """The three kinds of runs of a pair.

    Raises:
        FormatError: it has fewer than 20 null runs or replicates.
    """
    kinds: dict[str, Sequence[Any]] = {"other seeds": pair.replicates, "shuffled reward": pair.controls}
    for kind, sources in kinds.items():
        if len(sources) < RUNS:
            raise FormatError(
                f"{pair.path} has {len(sources)} runs of the kind {kind}, and {RUNS} are needed: train it with"
                f" --controls shuffled={RUNS} --replicates {RUNS}"
            )
    with one_thread():
        base = Policy.load(pair.base)
        kinds = {kind: list(sources)[:RUNS] for kind, sources in kinds.items()}
        kinds["float noise"] = [noisy(base.model, seed=number) for number in range(RUNS)]
        return judge_nulls(base, kinds, prompts, told=told)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m analyses.nulls", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pair", type=Path, metavar="PAIR", help="a pair with 20 null runs and 20 replicates")
    parser.add_argument("--prompts", type=Path, help="JSON with texts and answers (default: the demo's)")
    parser.add_argument("--out", type=Path, help="folder for rates.csv and p.csv")
    given = parser.parse_args(arguments)
    try:
        found = run(CheckpointPair.load(given.pair), _prompts(given.prompts))
        rates = found.rates()
        print(rates.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
        if given.out is not None:
            write_text(given.out / "rates.csv", rates.to_csv(index=False))
            table = found.dataset[["value", "p"]].to_dataframe().reset_index()
            write_text(given.out / "p.csv", table.to_csv(index=False))
    except InterpError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


def _prompts(path: Path | None) -> Prompts:
    from importlib import resources

    known = read_json(path if path is not None else str(resources.files("interp") / "data" / "demo" / "prompts.json"))
    return Prompts(known["texts"], answers=tuple(known["answers"]))


if __name__ == "__main__":
    main()
