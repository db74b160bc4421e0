"""Every method that points at components, as one score for each: the higher, the more it says that this one changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from analyses.planted.edits import Component, components
from interp.circuits import edge_attribution
from interp.hooks import Site
from interp.measures.arrays import MODELS
from interp.measures.attention import attention, attention_sites
from interp.measures.attribution import attribution, attribution_sites
from interp.measures.logit_diff import target_ids
from interp.measures.weights import ov_factors, qk_factors, relative_change
from interp.models import Policy, Trace
from interp.patching import Patching, Runs, attribution_map, patch_runs
from interp.patching.recording import activations, values_of
from interp.patching.targets import Target
from interp.prompts import Batch, Prompts

Scores = Mapping[str, np.ndarray]
"""Rows of the table: for each a score of every candidate."""

SITES = ("result", "mlp_out")
IG_STEPS = 3
"""Points of every integral."""


@dataclass(frozen=True)
class Case:
    """Two models and what they read.

    Attributes:
        base: the model without the change.
        tuned: the one with it.
        prompts: token ids, with corrupted counterparts for the circuits.
    """

    base: Policy
    tuned: Policy
    prompts: Prompts

    @property
    def candidates(self) -> list[Component]:
        """What is scored, in the order of every method's scores."""
        return components(self.base.parts)

    @property
    def plain(self) -> Prompts:
        """The prompts without their counterparts: what two models are compared on."""
        return Prompts(self.prompts.texts)

    def batch(self) -> Batch:
        """All prompts as one batch."""
        return next(self.plain.tokenize(self.base.tokenizer).batches(len(self.prompts)))

    def traces(self, sites: Sequence[Site]) -> tuple[Trace, Trace]:
        """Both models' traces of all prompts."""
        batch = self.batch()
        return self.base.trace(batch, sites), self.tuned.trace(batch, sites)

    def runs(self, *, into_base: bool) -> Runs:
        """The two runs of patching tuned's activations into base, or base's into tuned."""
        recipient, source = (self.base, self.tuned) if into_base else (self.tuned, self.base)
        tokens = self.plain.tokenize(self.base.tokenizer)
        return Runs(recipient, source, tokens, tokens, self.plain)


def _in_order(case: Case, heads: np.ndarray, mlps: np.ndarray) -> np.ndarray:
    """Scores [layer, head] and [layer] as one for each candidate."""
    return np.array([heads[c.layer, c.head] if c.head >= 0 else mlps[c.layer] for c in case.candidates], dtype=float)


def _change(array: xr.DataArray) -> xr.DataArray:
    base, tuned = (array.sel(model=name) for name in MODELS)
    return tuned - base


def attribution_changes(case: Case) -> Scores:
    """|tuned's direct logit attribution minus base's|, the mean over prompts first; target: tuned's top token.

    "written" is the change of what is written alone, how it is read held at the mean of both models.
    """
    found = attribution(*case.traces(attribution_sites(case.base)))
    heads, parts = (_change(found[name]) for name in ("head_attribution", "attribution"))
    rows = {"attribution": (heads, parts)}
    rows["attribution, written"] = found["head_attribution_write"], found["attribution_write"]
    means = {name: [each.mean("prompt") for each in both] for name, both in rows.items()}
    return {
        name: _in_order(case, np.abs(by_head.values), np.abs(_mlps(by_component, case)))
        for name, (by_head, by_component) in means.items()
    }


def _mlps(by_component: xr.DataArray, case: Case) -> np.ndarray:
    values: np.ndarray = by_component.sel(component=[f"L{i}.mlp" for i in range(case.base.parts.n_layers)]).values
    return values


def pattern_change(case: Case) -> Scores:
    """Jensen-Shannon divergence of the attention patterns; an MLP has none, and 0."""
    found = attention(*case.traces(attention_sites(case.base)))["pattern_js"].mean("prompt").values
    return {"pattern JS": _in_order(case, found, np.zeros(case.base.parts.n_layers))}


def weight_change(case: Case) -> Scores:
    """Relative change of the weights: of a head the larger of its QK and its OV circuit's, or of the MLP."""
    base, tuned = case.base.parts, case.tuned.parts
    heads, mlps = [], []
    for layer in range(base.n_layers):
        circuits = [relative_change(f(base, layer), f(tuned, layer)) for f in (qk_factors, ov_factors)]
        heads.append(torch.maximum(*circuits))
        pairs = list(zip(base.mlp_weights(layer), tuned.mlp_weights(layer), strict=True))
        change, size = (sum(float(v.detach().double().pow(2).sum()) for v in values) for values in _differences(pairs))
        mlps.append((change / size) ** 0.5)
    return {"weight change": _in_order(case, torch.stack(heads).numpy(), np.array(mlps))}


def _differences(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    return [tuned - base for base, tuned in pairs], [base for base, _ in pairs]


def activation_changes(case: Case) -> Scores:
    """Norm of the change of what a component writes, mean over prompts and tokens; "relative" to that of base's."""
    batch = case.batch()
    both = (case.base.parts, case.tuned.parts)
    layers = range(both[0].n_layers)
    sites = [Site(name, layer) for layer in layers for name in ("z", "mlp_out")]
    written = [values_of(parts, activations(parts, batch, sites)[0]) for parts in both]
    found: dict[str, dict[str, list[np.ndarray]]] = {"activation change": {}, "activation change, relative": {}}
    for layer in layers:
        for site in SITES:
            base, tuned = (values(Target(Site(site, layer))) for values in written)
            change, size = (value.norm(dim=-1).mean((0, 1)).numpy() for value in (tuned - base, base))
            for name, value in zip(found, (change, change / size), strict=True):
                found[name].setdefault(site, []).append(value)
    return {name: _in_order(case, *(np.stack(by_site[site]) for site in SITES)) for name, by_site in found.items()}


def _patching(name: str, *, into_base: bool) -> Callable[[Case], Scores]:
    def score(case: Case) -> Scores:
        runs = case.runs(into_base=into_base)
        return {name: _closer(case, patch_runs(runs, sites=list(SITES), metric="kl", draws=0))}

    return score


def _estimated(name: str, *, into_base: bool) -> Callable[[Case], Scores]:
    def score(case: Case) -> Scores:
        runs = case.runs(into_base=into_base)
        return {name: _closer(case, attribution_map(runs, sites=list(SITES), metric="kl"))}

    return score


def _closer(case: Case, found: Patching) -> np.ndarray:
    """By how much each patch brings the recipient nearer to the source, in nats."""
    effect = -found["effect"].mean("prompt").values
    keys = zip(found["layer"].values, found["unit"].values, strict=True)
    values = {Component(int(layer), int(unit)): value for (layer, unit), value in zip(keys, effect, strict=True)}
    return np.array([values[c] for c in case.candidates])


def _edges(name: str, method: str) -> Callable[[Case], Scores]:
    """A node's score is the sum of |tuned's edge score minus base's| over the edges that leave it.

    "net" is the |sum| of these differences; "touching" also counts the edges that enter the node.
    """

    def score(case: Case) -> Scores:
        targets = target_ids(*case.traces([]))

        def difference(logits: Tensor, rows: Tensor) -> Tensor:
            chosen = logits.gather(1, targets[rows])
            return chosen[:, 0] - chosen[:, 1]

        options: dict[str, Any] = {"method": method, "steps": IG_STEPS, "batch_size": len(targets)}
        found = [edge_attribution(each, case.prompts, difference, **options) for each in (case.base, case.tuned)]
        change, graph = found[1].mean - found[0].mean, found[0].graph
        nodes = [graph.nodes.index(str(component)) for component in case.candidates]
        leaving = [change[graph.edges[:, 0] == node] for node in nodes]
        return {
            name: np.array([np.abs(edges).sum() for edges in leaving]),
            f"{name}, net": np.array([abs(edges.sum()) for edges in leaving]),
            f"{name}, touching": np.array([np.abs(change[graph.incident[node]]).sum() for node in nodes]),
        }

    return score


METHODS: Mapping[str, Callable[[Case], Scores]] = {
    "attribution": attribution_changes,
    "pattern JS": pattern_change,
    "weight change": weight_change,
    "activation change": activation_changes,
    "patching, tuned into base": _patching("patching, tuned into base", into_base=True),
    "patching, base into tuned": _patching("patching, base into tuned", into_base=False),
    "attribution patching, tuned into base": _estimated("attribution patching, tuned into base", into_base=True),
    "attribution patching, base into tuned": _estimated("attribution patching, base into tuned", into_base=False),
    "EAP": _edges("EAP", "eap"),
    "EAP-IG": _edges("EAP-IG", "eap-ig"),
}
"""What is compared; some give several rows for the price of one."""


def timed(method: str, case: Case) -> tuple[Scores, float]:
    """Scores of a method, and the processor seconds that it took."""
    start = time.process_time()
    scores = METHODS[method](case)
    return scores, time.process_time() - start


def forward_seconds(case: Case, repeats: int = 3) -> float:
    """Processor seconds of one bare forward pass of both models; the least of several."""
    ids = case.batch().input_ids
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        with torch.no_grad():
            for policy in (case.base, case.tuned):
                policy.model(input_ids=ids, use_cache=False)
        taken.append(time.process_time() - start)
    return min(taken)
