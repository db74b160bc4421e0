"""What became of a circuit: of each component, and in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float

from interp.circuits.graph import Graph
from interp.circuits.scores import EdgeScores, mean_of
from interp.circuits.selection import Circuit
from interp.measures.arrays import dataset, strings, variable
from interp.stats import MIN_PROMPTS, group_index, interval, max_t, random_halves

MARGIN = 0.1
"""A share of tuned's behaviour: base's circuit misses a new part where tuned's own carries more than this beyond it."""

LEVEL = 0.05
TURN = 0.05
"""The least `wiring` that is called re-wired: an angle of 18 degrees. Less can be certain and still mean little."""

_ROUNDING = 1e-9
_EXCHANGES = 500
_SPLITS = 40
STATES = ("strengthened", "weakened", "re-wired", "new", "gone", "no evidence of a change", "in neither circuit")


def carried(data: xr.Dataset, circuit: str, model: str, size: int) -> float:
    """The share of a model's behaviour that a model's circuit carries."""
    return float(data["faithfulness"].sel(circuit=circuit, model=model, size=size))


def verdict(data: xr.Dataset) -> str:
    """The sentence, from the arrays of `compare`.

    - "the behaviour is new", or "gone": what corrupting changes cannot be told from nothing in one model, and differs
      from the other model's with the interval off 0 and by more than in any control run; "no verdict" where it does
      not.
    - "no circuit found": a model's own circuit carries no more of it than random circuits of as many edges do.
    - "new in part": of tuned's behaviour tuned's own circuit carries more than base's does, by more than 10 % with the
      whole interval above 0, and more than any control run's circuit beyond base's.
    - "existing circuit": otherwise; up- or down-weighted where what corrupting changes grew or shrank with the interval
      off 0 and by more than in any control run; re-wired where components are.
    - "no evidence of a change": none of these.
    """
    size = int(data.attrs["size"])
    at = data.sel(size=size)
    refused = [model for model in ("base", "tuned") if not np.isfinite(float(carried(data, model, model, size)))]
    if refused:
        return _refused(data, refused)
    shares = {model: carried(data, model, model, size) for model in ("base", "tuned")}
    for model in shares if data.sizes["draw"] else ():
        most = float(at["random_faithfulness"].sel(model=model).max())
        if shares[model] <= most:
            return (
                f"no circuit found: {model}'s {size} edges carry {_percent(shares[model])} of its behaviour, random"
                f" ones up to {_percent(most)}; take more edges or prompts that differ in one thing"
            )
    compared = (
        f"base's {size} edges carry {_percent(carried(data, 'base', 'tuned', size))} of tuned's behaviour,"
        f" tuned's own {size} carry {_percent(shares['tuned'])}"
    )
    return f"{_finding(data, at)}: {compared}; {_overlap(at)}{_beside(data)}"


def _of_controls(values: xr.DataArray) -> np.ndarray:
    """The values of the control runs."""
    return np.asarray(values.values[[str(name).startswith("control") for name in values["run"].values]])


def _effect_change(data: xr.Dataset) -> tuple[float, float, float]:
    """What corrupting changes in tuned less what it does in base, and its interval."""
    change, low, high = (float(data[f"effect_change{end}"]) for end in ("", "_low", "_high"))
    return change, low, high


def _refused(data: xr.Dataset, models: list[str]) -> str:
    change, low, high = _effect_change(data)
    null = np.abs(_of_controls(data["run_effect_change"])).max(initial=0.0)
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
    change, low, high = _effect_change(data)
    if not np.isfinite(low):
        return f"too few prompts for a verdict (under {MIN_PROMPTS} groups)"
    null = float(np.abs(_of_controls(data["run_effect_change"])).max(initial=0.0))
    means = data["effect_of_corruption"].mean("prompt").values
    weight = ""
    if not low <= 0 <= high and abs(change) > null:
        weight = "up-weighted" if abs(means[1]) > abs(means[0]) else "down-weighted"
        share = abs(means[1] - means[0]) / abs(means[0])
        weight = "turned round" if means[0] * means[1] < 0 else f"{weight} by {_percent(share)}"
    excess, above = float(at["excess"]), float(at["excess_low"])
    beyond = _of_controls(at["run_own_faithfulness"] - at["run_faithfulness"])
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
    nulls = np.abs(_of_controls(data["run_effect_change"]))
    if not len(nulls):
        return "; no control run beside it"
    runs = "1 control run" if len(nulls) == 1 else f"{len(nulls)} control runs"
    return f"; the effect changes by {float(data['effect_change']):.3g}, in {runs} by up to {nulls.max():.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def node_effects(scores: EdgeScores) -> Float[np.ndarray, "prompt component"]:
    """What corrupting all that a node writes would do to the metric: the sum of the scores of the edges that leave it.

    It is linear in the scores, so it is the node's own attribution by the same method.
    """
    graph = scores.graph
    effects = np.zeros((len(scores.values), len(graph.nodes)))
    for node in range(len(graph.nodes)):
        effects[:, node] = scores.values[:, graph.edges[:, 0] == node].sum(1, dtype=np.float64)
    return effects


def component_changes(
    base: EdgeScores, tuned: EdgeScores, circuits: tuple[Circuit, Circuit], controls: Sequence[EdgeScores], *, seed: int
) -> xr.Dataset:
    """Every component of two models of one shape, judged.

    - `change`: tuned's mean effect minus base's, with its interval over prompts, and `p`, sign-flip max-T over
      components.
    - `wiring`: 1 - cosine of the two models' mean scores of the edges that touch the component, so that mere strength
      is no re-wiring; `wiring_halves`, the 95 % quantile of the same between two halves of the prompts within one
      model; and `p_wiring`: the null exchanges the two models' scores, scaled to one length, within random groups of
      prompts, and the largest standardised statistic over components is compared.
    - `state`. Changed is what has p under 0.05 and, where control runs are given, changed more than in any of them;
      re-wired what turned by `TURN` at least, has p_wiring under 0.05, turned more than `wiring_halves` and more than
      in any control run, or changed and turned its sign. A changed component is "new" or "gone" where one circuit alone
      holds it and its effect in the other model is under half; otherwise "re-wired" goes before "strengthened" and
      "weakened".

    Args:
        base: scores of the one model.
        tuned: of the other, on the same prompts.
        circuits: base's and tuned's circuit.
        controls: scores of control runs.
        seed: of the resampling.
    """
    graph = base.graph
    ours, theirs = node_effects(base), node_effects(tuned)
    weight = base.weights / base.weights.sum()
    means = np.stack([weight @ ours, weight @ theirs])
    change = weight @ (theirs - ours)
    labels = group_index(base.groups)
    _, low, high = interval(theirs - ours, labels, seed=seed)
    p = max_t(theirs - ours, labels, seed=seed)
    wiring, p_wiring = _wiring(base, tuned, seed)
    within = _within_halves((base, tuned), seed)
    null_change = np.array([np.abs(weight @ (node_effects(scores) - ours)) for scores in controls])
    null_wiring = np.array([_turned(base.mean, scores.mean, graph) for scores in controls])
    inside = np.stack([np.isin(np.arange(len(graph.nodes)), circuit.members) for circuit in circuits])
    changed = (p < LEVEL) & _beyond(np.abs(change), null_change)
    rewired = (wiring >= TURN) & (p_wiring < LEVEL) & (wiring > within) & _beyond(wiring, null_wiring)
    states = [_state(means[:, i], inside[:, i], bool(changed[i]), bool(rewired[i])) for i in range(len(graph.nodes))]
    units = base.dataset["score"].attrs["units"]
    return dataset(
        {
            "effect": variable("model component", means, "change of the metric if the node is corrupted", units),
            "change": variable("component", change, "tuned's effect minus base's", units),
            "change_low": variable("component", low, "lower bound over prompts, 95 %", units),
            "change_high": variable("component", high, "upper bound over prompts, 95 %", units),
            "p": variable("component", p, "sign-flip max-T over components"),
            "wiring": variable("component", wiring, "1 - cosine of base's and tuned's edges of the node"),
            "wiring_halves": variable("component", within, "95 % quantile of it between halves of the prompts"),
            "p_wiring": variable("component", p_wiring, "models exchanged within prompts, largest over components"),
            "in_circuit": variable("model component", inside, "whether the model's circuit holds the node"),
            "state": variable("component", strings(states), "what became of the node"),
        },
        component=list(graph.nodes),
    )


def _beyond(values: np.ndarray, nulls: np.ndarray) -> np.ndarray:
    """Where a value is larger than that of every control run, component by component; everywhere without any."""
    return values > nulls.max(0) if len(nulls) else np.ones(len(values), dtype=bool)


def _state(means: np.ndarray, inside: np.ndarray, changed: bool, rewired: bool) -> str:
    if not inside.any():
        return "in neither circuit"
    if changed and not inside.all() and abs(means[int(inside[0])]) < abs(means[int(inside[1])]) / 2:
        return "new" if inside[1] else "gone"
    if rewired or (changed and means[0] * means[1] < 0):
        return "re-wired"
    if changed:
        return "strengthened" if abs(means[1]) > abs(means[0]) else "weakened"
    return "no evidence of a change"


def _turned(first: np.ndarray, second: np.ndarray, graph: Graph) -> Float[np.ndarray, " component"]:
    """1 - cosine of two models' scores of the edges that touch each node."""
    return np.array([_distance(first[edges], second[edges]) for edges in graph.incident])


def _distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """1 - cosine along the last axis; 0 where one of the two is nothing, or rounding is all that parts them."""
    size = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    distance = np.where(size > 0, 1 - (first * second).sum(-1) / np.where(size > 0, size, 1), 0.0)
    return np.where(distance < _ROUNDING, 0.0, distance)


def _wiring(base: EdgeScores, tuned: EdgeScores, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """1 - cosine by component, and its p among exchanges of the two models within groups of prompts."""
    graph = base.graph
    observed = _turned(base.mean, tuned.mean, graph)
    index = group_index(base.groups)
    count = int(index.max()) + 1
    if count < MIN_PROMPTS:
        return observed, np.full(len(graph.nodes), np.nan)
    swaps = np.random.default_rng(seed).random((_EXCHANGES, count)) < 0.5
    null = np.zeros((len(swaps), len(graph.nodes)))
    for node in range(len(graph.nodes)):
        edges = graph.incident[node]
        sums = [_by_group(scores, edges, index, count) for scores in (base, tuned)]
        totals = [table.sum(0) for table in sums]
        scaled = [table / max(float(np.linalg.norm(total)), 1e-30) for table, total in zip(sums, totals, strict=True)]
        moved = swaps.astype(float) @ (scaled[1] - scaled[0])
        null[:, node] = _distance(scaled[0].sum(0) + moved, scaled[1].sum(0) - moved)
    spread = np.maximum(null.std(0), 1e-12)
    largest = ((null - null.mean(0)) / spread).max(1)
    standard = np.where(observed > 0, (observed - null.mean(0)) / spread, -np.inf)
    return observed, (1 + (largest[:, None] >= standard[None]).sum(0)) / (1 + len(swaps))


def _within_halves(both: Sequence[EdgeScores], seed: int) -> np.ndarray:
    """By component, the 95 % quantile of 1 - cosine between halves of the prompts, of the model where it is larger."""
    split = random_halves(both[0].groups, draws=_SPLITS, seed=seed)
    if split is None:
        return np.full(len(both[0].graph.nodes), np.nan)
    quantiles = []
    for scores in both:
        means = [[mean_of(scores.values, part * scores.weights) for part in (first, ~first)] for first in split]
        turned = np.array([_turned(first, second, scores.graph) for first, second in means])
        quantiles.append(np.quantile(turned, 0.95, axis=0))
    return np.max(quantiles, axis=0)


def _by_group(scores: EdgeScores, edges: np.ndarray, index: np.ndarray, count: int) -> np.ndarray:
    sums = np.zeros((count, len(edges)))
    np.add.at(sums, index, scores.values[:, edges] * scores.weights[:, None])
    return sums
