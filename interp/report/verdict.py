"""The report's first paragraph: what the numbers say, in words, and nothing that they do not say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from interp.plot.style import Result, change, has, number, span
from interp.plot.text import visible
from interp.stats import MIN_PROMPTS


def verdict(cmp: Result, table: pd.DataFrame) -> list[str]:
    """Sentences on behaviour, divergence and control runs, in this order; each only where it was measured.

    Args:
        cmp: a comparison.
        table: its summary.
    """
    sentences = [
        *_behaviour(cmp.dataset, table, cmp.controls),
        *_reward(cmp.dataset, table),
        *_implicit(table),
        *_divergence(cmp.dataset, cmp.controls),
    ]
    if not sentences:
        sentences.append("Neither a logit difference nor a divergence of the next token was measured.")
    if not cmp.controls:
        sentences.append(
            "No control run was compared: this supports the claim that these two models differ here, "
            "not that the reward is the cause."
        )
    return sentences


def finding(table: pd.DataFrame, reading: str) -> dict[str, Any] | None:
    """The first row of the summary with this reading, however it is spelled ("logit_diff", "Logit difference")."""
    wanted = reading.replace("_", " ").lower()
    for row in table.to_dict("records"):
        if str(row.get("reading", "")).replace("_", " ").lower().startswith(wanted):
            return row
    return None


def _behaviour(data: xr.Dataset, table: pd.DataFrame, controls: tuple[xr.Dataset, ...]) -> list[str]:
    if not has(data, "logit_diff"):
        return []
    delta = change(data["logit_diff"])
    row = finding(table, "logit_diff") or {}
    estimate = _float(row, "estimate", float(delta.mean()))
    answer, other = _pair(data)
    count = int(np.isfinite(delta.values).sum())
    where = f"Over {count} prompts" if count > 1 else "On one prompt"
    if estimate == 0:
        return [f"{where}, tuned prefers {answer} to {other} exactly as much as base does."]
    base, tuned = (number(float(data["logit_diff"].sel(model=m).mean()), signed=True) for m in ("base", "tuned"))
    more = "more" if estimate > 0 else "less"
    text = f"{where}, tuned prefers {answer} to {other} by {number(abs(estimate))} logits {more} than base"
    low, high = _float(row, "estimate_low"), _float(row, "estimate_high")
    after = ""
    if np.isfinite(low) and np.isfinite(high):
        text += f" (95\u00a0% interval {span(low, high) if estimate > 0 else span(-high, -low)})"
        after = "" if low > 0 or high < 0 else " The interval holds 0, so the direction is open."
    else:
        after = f" No interval is given under {MIN_PROMPTS} different prompts."
    return [f"{text}: {tuned} in tuned, {base} in base.{after}", *_against_runs(row, estimate, len(controls))]


def _against_runs(row: dict[str, Any], estimate: float, nulls: int) -> list[str]:
    """Where the estimate stands among the control runs, and what the replicates give."""
    low, high, p = _float(row, "control_low"), _float(row, "control_high"), _float(row, "rank_p")
    said = []
    if np.isfinite(low) and nulls == 1:
        said.append(
            f"The one control run differs from base by {number(low, signed=True)} logits; one run has no spread."
        )
    elif np.isfinite(low):
        place = "within" if low <= estimate <= high else "outside"
        rank = f"; p = {number(p)} by its rank among them" if np.isfinite(p) else ""
        said.append(f"That is {place} the range of the {nulls} control runs ({span(low, high)} logits{rank}).")
    low, high = _float(row, "replicate_low"), _float(row, "replicate_high")
    if np.isfinite(low):
        said.append(f"Replicates of the training give {span(low, high)} logits.")
    return said


def _reward(data: xr.Dataset, table: pd.DataFrame) -> list[str]:
    if not has(data, "completion_reward") or not {"base", "tuned"} <= set(data["source"].values.tolist()):
        return []
    rewards = data["completion_reward"]
    name = str(rewards.attrs.get("long_name") or "").removeprefix("reward").lstrip(": ")
    base, tuned = (float(rewards.sel(source=s).mean()) for s in ("base", "tuned"))
    row = finding(table, "reward") or {}
    low, high = _float(row, "estimate_low"), _float(row, "estimate_high")
    sure = ""
    if np.isfinite(low) and np.isfinite(high):
        sure = f" (change {number(tuned - base, signed=True)}, 95\u00a0% interval {span(low, high)})"
    what = f"The mean reward, {name}," if name else "The mean reward"
    return [f"{what} is {number(tuned)} for tuned's samples and {number(base)} for base's{sure}."]


def _implicit(table: pd.DataFrame) -> list[str]:
    """Whether the shift follows the reward."""
    row = finding(table, "implicit reward")
    if row is None:
        return []
    low, high, p = (_float(row, name) for name in ("permuted_low", "permuted_high", "permutation_p"))
    slope = f"{number(_float(row, 'estimate'), signed=True)} nats per unit of reward"
    null = f"permuted rewards give {span(low, high)}, p = {number(p)}" if np.isfinite(p) else "there is no null"
    return [f"Within prompts, a response's log-ratio changes by {slope} ({null})."]


def _divergence(data: xr.Dataset, controls: tuple[xr.Dataset, ...]) -> list[str]:
    parts = []
    if has(data, "kl"):
        null = [_mean(c["kl"]) for c in controls if has(c, "kl")]
        beside = f" (control runs: {span(min(null), max(null))})" if null else ""
        parts.append(f"{number(_mean(data['kl']))} nats at the average prompt position{beside}")
    if has(data, "response_kl"):
        sources = [str(s) for s in data["response_kl"]["source"].values]
        source = "tuned" if "tuned" in sources else sources[0]
        texts = {"tuned": "in tuned's own samples", "base": "in base's samples"}.get(source, "in the responses given")
        parts.append(f"{number(_mean(data['response_kl'].sel(source=source)))} nats per response token {texts}")
    return [f"KL(tuned ‖ base) is {' and '.join(parts)}."] if parts else []


def _mean(array: xr.DataArray) -> float:
    """Mean over prompts of each prompt's mean, so that a long prompt counts no more than a short one."""
    return float(array.mean([d for d in array.dims if d != "prompt"]).mean())


def _pair(data: xr.Dataset) -> tuple[str, str]:
    if "answer_token" in data and "other_token" in data:
        pairs = set(zip(data["answer_token"].values.tolist(), data["other_token"].values.tolist(), strict=True))
        if len(pairs) == 1:
            answer, other = pairs.pop()
            return f"“{visible(answer)}”", f"“{visible(other)}”"
    return "the answer", "its alternative"


def _float(row: dict[str, Any], key: str, default: float = float("nan")) -> float:
    value = row.get(key)
    return default if value is None else float(value)
