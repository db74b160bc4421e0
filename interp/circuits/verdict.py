"""One sentence: did tuning keep the circuit, and how strongly does it speak now?"""

from __future__ import annotations

import numpy as np
import xarray as xr

from interp.stats import MIN_PROMPTS

MARGIN = 0.1
"""A share of tuned's behaviour: base's circuit misses a new part where tuned's own carries more than this beyond it."""


def carried(data: xr.Dataset, circuit: str, model: str, size: int) -> float:
    """The share of a model's behaviour that a model's circuit carries."""
    return float(data["faithfulness"].sel(circuit=circuit, model=model, size=size))


def verdict(data: xr.Dataset) -> str:
    """The sentence, from the arrays of `compare`.

    - "the behaviour is new", or "gone": what corrupting changes cannot be told from nothing in one model, and differs
      from the other model's with the interval off 0 and by more than in any null run; "no verdict" where it does not.
    - "no circuit found": a model's own circuit carries no more of it than random circuits of as many edges do.
    - "new in part": of tuned's behaviour tuned's own circuit carries more than base's does, by more than 10 % with the
      whole interval above 0, and more than any null run's circuit beyond base's.
    - "existing circuit": otherwise; up- or down-weighted where what corrupting changes grew or shrank with the interval
      off 0 and by more than in any null run; re-wired where components are.
    - "no evidence of a change": none of these.
    """
    size = int(data.attrs["size"])
    at = data.sel(size=size)
    refused = [model for model in ("base", "tuned") if not np.isfinite(float(carried(data, model, model, size)))]
    if refused:
        return _refused(data, refused)
    own = {model: carried(data, model, model, size) for model in ("base", "tuned")}
    for model in own if data.sizes["draw"] else ():
        most = float(at["random_faithfulness"].sel(model=model).max())
        if own[model] <= most:
            return (
                f"no circuit found: {model}'s {size} edges carry {_percent(own[model])} of its behaviour, random ones"
                f" up to {_percent(most)}; take more edges or prompts that differ in one thing"
            )
    kept = (
        f"base's {size} edges carry {_percent(carried(data, 'base', 'tuned', size))} of tuned's behaviour,"
        f" tuned's own {size} carry {_percent(own['tuned'])}"
    )
    return f"{_finding(data, at)}: {kept}; {_overlap(at)}{_beside(data)}"


def _refused(data: xr.Dataset, models: list[str]) -> str:
    change, low, high = (float(v) for v in data["effect_change"].values)
    null = np.abs(data["run_effect_change"].values[: int(data.attrs["controls"])]).max(initial=0.0)
    if len(models) == 1 and not (np.isfinite(low) and not low <= 0 <= high and abs(change) > null):
        return (
            f"no verdict: what corrupting the prompts changes cannot be told from nothing in {models[0]}"
            f" ({data.attrs[f'reason_{models[0]}']}), nor from what it changes in the other model; give more prompts"
        )
    if models == ["base"]:
        return (
            "the behaviour is new: corrupting the prompts changes nothing measurable in base"
            f" ({data.attrs['reason_base']}), so base has no circuit for it to compare"
        )
    if models == ["tuned"]:
        return (
            "the behaviour is gone: corrupting the prompts changes nothing measurable in tuned"
            f" ({data.attrs['reason_tuned']}), so tuned has no circuit for it to compare"
        )
    return (
        f"no verdict: corrupting the prompts changes nothing measurable in either model ({data.attrs['reason_base']})"
    )


def _finding(data: xr.Dataset, at: xr.Dataset) -> str:
    controls = slice(0, int(data.attrs["controls"]))
    change, low, high = (float(v) for v in data["effect_change"].values)
    if not np.isfinite(low):
        return f"too few prompts for a verdict (under {MIN_PROMPTS} groups)"
    null = float(np.abs(data["run_effect_change"].values[controls]).max(initial=0.0))
    means = data["effect_of_corruption"].mean("prompt").values
    weight = ""
    if not low <= 0 <= high and abs(change) > null:
        weight = "up-weighted" if abs(means[1]) > abs(means[0]) else "down-weighted"
        share = abs(means[1] - means[0]) / abs(means[0])
        weight = "turned round" if means[0] * means[1] < 0 else f"{weight} by {_percent(share)}"
    excess, above = float(at["excess"]), float(at["excess_low"])
    beyond = (at["run_own_faithfulness"] - at["run_faithfulness"]).values[controls]
    new = above > 0 and excess > MARGIN and excess > float(beyond.max(initial=-np.inf))
    states = list(data["state"].values)
    rewired = sum(state in ("re-wired", "new", "gone") for state in states)
    words = [weight] if weight else []
    words += [f"{rewired} component{'s' if rewired > 1 else ''} re-wired, new or gone"] if rewired else []
    if new:
        return ", ".join(["circuit new in part", *words])
    if words:
        return ", ".join(["existing circuit", *words])
    moved = sum(state in ("strengthened", "weakened") for state in states)
    return f"existing circuit, {moved} components of another strength" if moved else "no evidence of a change"


def _overlap(at: xr.Dataset) -> str:
    half = at["half_overlap"].mean("split")
    within = float(half.sel(pair=["base-base", "tuned-tuned"]).mean())
    between = float(half.sel(pair="base-tuned"))
    return (
        f"edges overlap {float(at['edge_overlap']):.2f} (from halves of the prompts {between:.2f} between the models,"
        f" {within:.2f} within them; random {float(at['random_edge_overlap'].mean()):.2f})"
    )


def _beside(data: xr.Dataset) -> str:
    count = int(data.attrs["controls"])
    if not count:
        return "; no null run beside it"
    null = np.abs(data["run_effect_change"].values[:count]).max()
    runs = "1 null run" if count == 1 else f"{count} null runs"
    return f"; the effect changes by {float(data['effect_change'][0]):.3g}, in {runs} by up to {null:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
