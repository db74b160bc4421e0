"""The joins' findings as tables: the implicit reward's, the samples it explains least, the token join's."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from interp.measures.arrays import MODELS
from interp.reward.within import centred
from interp.stats import permutation_p

_NAN = float("nan")
READINGS = {
    "signed": "attribution and log-ratio",
    "size": "|attribution| and |log-ratio|",
    "size_given_surprise": "|attribution| and |log-ratio|, base's surprise held fixed",
}
"""What is correlated, by the beginning of its variables' names."""


def _row(
    data: xr.Dataset, finding: str, name: str, units: str, null: str | None = None, suffix: str = ""
) -> dict[str, Any]:
    value, low, high = (float(data[f"{name}{end}"]) for end in (suffix, "_lower", "_upper"))
    drawn = data[null].values if null else np.empty(0)
    ends = np.quantile(drawn, (0.025, 0.975)) if len(drawn) and np.isfinite(drawn).all() else (_NAN, _NAN)
    return {
        "reading": "implicit reward",
        "finding": finding,
        "estimate": value,
        "lower": low,
        "upper": high,
        "null_low": float(ends[0]),
        "null_high": float(ends[1]),
        "p": permutation_p(value, drawn),
        "units": units,
        "n": data.sizes["prompt"],
    }


def implicit_findings(data: xr.Dataset) -> pd.DataFrame:
    """The findings of an implicit reward, one a row, with intervals and what permuted rewards give."""
    recipe = float(data.attrs.get("beta", _NAN))
    beside = f" (the recipe's beta: {recipe:g})" if np.isfinite(recipe) else ""
    rows = [
        _row(
            data,
            "log-ratio per unit of reward, within prompts (1 / effective beta)",
            "slope",
            "nats per reward",
            "null_slope",
        ),
        *(
            _row(data.sel(source=each), f"the same, {each}'s samples alone", "slope_by_source", "nats per reward")
            for each in MODELS
        ),
        _row(data, f"effective beta{beside}", "effective_beta", "reward per nat"),
        _row(data, "Spearman of reward and log-ratio within prompts", "spearman", "", "null_spearman", "_mean"),
        _row(data, "log-ratio per token of length", "length_slope", "nats per token"),
        _row(data, "log-ratio per unit of reward, length left out", "slope_without_length", "nats per reward"),
    ]
    share = float(data["explained"])
    blank = {"lower": _NAN, "upper": _NAN, "null_low": _NAN, "null_high": _NAN, "p": _NAN}
    finding = "variance of the log-ratio within prompts that reward and length explain"
    rows.append({**rows[0], **blank, "finding": finding, "estimate": share, "units": "share"})
    return pd.DataFrame(rows)


Kind = Literal["drift toward", "drift away", "unclaimed"]


def least_explained(data: xr.Dataset, count: int) -> pd.DataFrame:
    """The samples that the reward explains least, by kind (see `ImplicitReward.texts`)."""
    flat = data[["reward", "log_ratio", "residual", "completion"]].stack(sample=("prompt", "source", "draw"))
    prompt = flat["prompt"].values
    reward, ratio = (centred(flat[name].values.astype(float), prompt) for name in ("reward", "log_ratio"))
    residual = flat["residual"].values.astype(float)
    kinds: dict[Kind, np.ndarray] = {
        "drift toward": residual > 0,
        "drift away": (residual < 0) & (reward <= 0),
        "unclaimed": (residual < 0) & (reward > 0),
    }
    rows = []
    for kind, fits in kinds.items():
        places = np.flatnonzero(fits)
        for place in places[np.argsort(-np.abs(residual[places]), kind="stable")][:count]:
            rows.append(
                {
                    "kind": kind,
                    "prompt": str(data["text"].values[prompt[place]]),
                    "completion": str(flat["completion"].values[place]),
                    "source": str(flat["source"].values[place]),
                    "reward": reward[place],
                    "log_ratio": ratio[place],
                    "residual": residual[place],
                }
            )
    columns = ["kind", "prompt", "completion", "source", "reward", "log_ratio", "residual"]
    return pd.DataFrame(rows, columns=columns)


def token_findings(data: xr.Dataset) -> pd.DataFrame:
    """The findings of a token join, one a row, with intervals and what permuted attributions give."""
    rows = []
    spans = int(np.isfinite(data["attribution"].values).sum())
    for name, said in READINGS.items():
        kinds = (
            (f"{name}_spearman_mean", "spearman", "mean over texts"),
            (f"{name}_pooled", "pooled", f"{spans} spans"),
        )
        for key, end, over in kinds:
            drawn = data[f"null_{name}_{end}"].values
            real = len(drawn) and np.isfinite(drawn).all()
            ends = np.quantile(drawn, (0.025, 0.975)) if real else (_NAN, _NAN)
            bounds = [f"{name}_spearman_{each}" for each in ("lower", "upper")] if end == "spearman" else []
            low, high = [float(data[bound]) for bound in bounds] or (_NAN, _NAN)
            value = float(data[key])
            rows.append(
                {
                    "reading": "token join",
                    "finding": f"Spearman of {said}: {over}",
                    "estimate": value,
                    "lower": low,
                    "upper": high,
                    "null_low": float(ends[0]),
                    "null_high": float(ends[1]),
                    "p": permutation_p(value, drawn),
                    "units": "",
                    "n": data.sizes["prompt"],
                }
            )
    return pd.DataFrame(rows)
