"""The good-vs-bad study: where did RLHF put its preference for one word over another?

It repeats, step by step, EleutherAI's exploratory analysis of a GPT-2 that trlX tuned toward negative film reviews
(2023), with what that study listed as missing: many prompts of several shapes, intervals, controls, generation under
patching with the reward as metric, the value head, the smallest set of components, steering.

    python -m analyses.good_vs_bad                       # the pair that comes with the package
    python -m analyses.good_vs_bad runs/pair             # a pair that `interp train` wrote
    python -m analyses.good_vs_bad BASE TUNED --bos      # any two models
    python -m analyses.good_vs_bad published             # the study's own pair, from the hub
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analyses.good_vs_bad.subjects import Subject
from interp import Comparison, Policy, Prompts, compare
from interp.families import norm_parameters
from interp.hooks import Site
from interp.patching import (
    Patching,
    SmallestSet,
    Steering,
    ValueReading,
    activation_patching,
    attribution_patching,
    reward_patching,
    smallest_set,
    steering,
    value_reading,
)
from interp.sampling import Sampling


@dataclass(frozen=True)
class Study:
    """What every step found; see `run` for the steps.

    Attributes:
        subject: what was studied.
        comparison: tops, logit differences, lens, attribution, neurons of both models.
        layers: tuned into base, resid_pre, attn_out and mlp_out by layer, at all tokens.
        positions: the same by layer and position, on the prompts of the commonest length.
        heads: every head's z, tuned into base.
        sets: several components together, beside random sets of the same size.
        needed: base into tuned: heads' z and mlp_out.
        estimate: attribution patching of every head, with its rank correlation to exact patching.
        nulls: each null run into base: heads' z and mlp_out.
        smallest: the smallest set that brings 80 % of the logit difference.
        steered: the mean difference at the residual after the layer of the largest MLP, in doses.
        written: the reward of text that base writes under patches; None without a reward.
        value: what the value head expects along tuned's samples; None without one.
        table: the published quantities beside ours, on the one prompt.
    """

    subject: Subject
    comparison: Comparison
    layers: Patching
    positions: Patching
    heads: Patching
    sets: Patching
    needed: Patching
    estimate: Patching
    nulls: tuple[Patching, ...]
    smallest: SmallestSet
    steered: Steering
    written: Patching | None
    value: ValueReading | None
    table: pd.DataFrame


Progress = Callable[[str], None]


def run(
    what: Subject, *, samples: int = 16, max_new_tokens: int = 24, seed: int = 0, progress: Progress | None = None
) -> Study:
    """Every step of the study, in its order, and then what it wished for.

    Args:
        what: models, prompts, reward (see `subject`).
        samples: continuations a prompt.
        max_new_tokens: longest continuation.
        seed: of everything that is drawn.
        progress: called with the name of each step as it begins.

    Raises:
        InterpError: a step cannot be taken, as where the two models do not differ on the prompts.
    """
    say = progress or (lambda _: None)
    base, tuned, prompts = what.base, what.tuned, what.prompts
    common: dict[str, Any] = {"seed": seed}
    say("both models side by side")
    taken = ["next_token", "logit_diff", "kl", "lens", "lens_base_head", "attribution", "neurons", "attention"]
    comparison = compare(base, tuned, prompts, measures=taken, controls=list(what.controls), seed=seed)
    say("patching by layer, position and head")
    layers = activation_patching(base, tuned, prompts, sites=("resid_pre", "attn_out", "mlp_out"), **common)
    few = commonest_length(prompts, base)
    wanted = ("resid_pre", "attn_out", "mlp_out")
    positions = activation_patching(base, tuned, few, sites=wanted, positions="each", **common)
    heads = activation_patching(base, tuned, prompts, sites="z", **common)
    mlps = strongest_mlps(layers)
    pairs = [_heads(top_heads(comparison)), {("mlp_out", layer): None for layer in mlps}]
    sets = activation_patching(base, tuned, prompts, sites=pairs, **common)
    needed = activation_patching(tuned, base, prompts, sites=("z", "mlp_out"), **common)
    estimate = attribution_patching(base, tuned, prompts, sites="z", sample=64, **common)
    say("null runs")
    nulls = tuple(activation_patching(base, each, prompts, sites=("z", "mlp_out"), **common) for each in what.controls)
    say("the smallest set, and steering")
    everything = ("z", "mlp_out", Site("resid_pre", 0))  # the last is the embedding
    smallest = smallest_set(base, tuned, prompts, sites=everything, most=16, **common)
    steered = steering(base, tuned, prompts, site=("resid_post", max(mlps)), **common)
    written = value = None
    if what.reward is not None:
        say(f"{samples} samples a prompt under each patch, scored")
        wishes = [pairs[0], pairs[1], _whole(smallest)]
        sampling = Sampling(samples=samples, max_new_tokens=max_new_tokens)
        written = reward_patching(base, tuned, prompts, what.reward, sites=wishes, sampling=sampling, **common)
        if what.value_head is not None:
            value = value_reading(tuned, what.value_head, prompts, what.reward, sampling=sampling, **common)
    say("the published table")
    table = published_table(what)
    return Study(
        subject=what,
        comparison=comparison,
        layers=layers,
        positions=positions,
        heads=heads,
        sets=sets,
        needed=needed,
        estimate=estimate,
        nulls=nulls,
        smallest=smallest,
        steered=steered,
        written=written,
        value=value,
        table=table,
    )


def commonest_length(prompts: Prompts, policy: Policy) -> Prompts:
    """The prompts whose number of tokens is the commonest, so that a position means one thing."""
    lengths = np.array([len(ids) for ids in prompts.tokenize(policy.tokenizer).prompt_ids])
    values, counts = np.unique(lengths, return_counts=True)
    rows = np.flatnonzero(lengths == values[counts.argmax()])
    answers: Any = prompts.answers
    groups: Any = prompts.groups
    return replace(
        prompts,
        texts=[prompts.texts[int(row)] for row in rows],
        answers=[answers[row] for row in rows],
        groups=[groups[row] for row in rows],
        continuations=None,
    )


def strongest_mlps(layers: Patching, count: int = 2) -> list[int]:
    """Layers of the MLPs whose patch moves the metric most."""
    effect = np.abs(layers.map("mlp_out", "effect").mean("prompt").values)
    return sorted(int(layer) for layer in np.argsort(-effect, kind="stable")[: min(count, len(effect))])


def top_heads(comparison: Comparison, count: int = 2) -> list[tuple[int, int]]:
    """Heads whose direct attribution differs most between the models, as the study chose them."""
    change = comparison["head_attribution"].sel(model="tuned") - comparison["head_attribution"].sel(model="base")
    table = change.mean("prompt").transpose("layer", "head").values
    order = np.argsort(-np.abs(table).ravel(), kind="stable")[:count]
    return [(int(flat) // table.shape[1], int(flat) % table.shape[1]) for flat in order]


def _heads(chosen: Sequence[tuple[int, int]]) -> dict[Any, Any]:
    found: dict[Any, list[int]] = {}
    for layer, head in chosen:
        found.setdefault(("z", layer), []).append(head)
    return dict(found)


def _whole(found: SmallestSet) -> dict[Any, Any]:
    """The largest set of a search as `activation_patching` takes it."""
    return {
        each.site: None if each.units is None else list(each.units)
        for each in found.sets[(found.size or len(found.sets)) - 1].targets
    }


def published_table(what: Subject) -> pd.DataFrame:
    """The quantities of the published study beside those of this pair, on the one prompt.

    Completeness, which the study lacked, is the last row but one: how far the attribution's terms are from summing to
    the logit differences. The last is the share of the gap that is missing when base's terms are divided by tuned's
    LayerNorm scale, as that study's helper did for both models.
    """
    first = what.one
    cmp = compare(what.base, what.tuned, first, measures=["next_token", "logit_diff", "attribution"])
    difference, chance = cmp["logit_diff"][0], cmp["answer_prob"][0]
    terms = (cmp["attribution"].sel(model="tuned") - cmp["attribution"].sel(model="base"))[0]
    named = terms.where(terms["component"].str.contains("attn|mlp"), drop=True)
    largest = str(named["component"].values[np.abs(named.values).argmax()])
    two = sorted(top_heads(cmp))
    every = activation_patching(what.base, what.tuned, first, sites="z")
    effect = every["effect"].values[0]
    best = str(every["label"].values[np.abs(effect).argmax()]).replace(".z.", "")
    joint = activation_patching(what.base, what.tuned, first, sites=[_heads(two)], draws=0)
    patched = float(joint["effect"][0, 0] + joint["recipient"][0])
    answer, other = what.words
    names = ", ".join(f"L{layer}H{head}" for layer, head in two)
    rows: list[tuple[str, str, str]] = [
        (f"logit difference{answer} -{other}, base", "-0.0891", _figure(difference.sel(model="base"))),
        (f"logit difference{answer} -{other}, tuned", "2.0157", _figure(difference.sel(model="tuned"))),
    ]
    for index, (word, theirs) in enumerate(((answer, ("11.15 %", "20.72 %")), (other, ("12.19 %", "2.76 %")))):
        for model, figure in zip(("base", "tuned"), theirs, strict=True):
            rows.append((f"P({word!r}), {model}", figure, f"{float(chance.sel(model=model)[index]):.2%}"))
    rows += [
        ("largest component of the difference", "L10.mlp", largest),
        ("heads that differ most by direct attribution", "L10H4, L10H9", names),
        ("head whose patch (tuned into base) moves it most", "L11H10", best),
        ("these heads together into base: logit difference", "0.0022", f"{patched:.4f}"),
        ("these heads together into base: recovery", "0.0434", f"{float(joint['recovery'][0]):.4f}"),
        ("attribution's terms miss the logit difference by", "not stated", f"{_incomplete(cmp):.1e} logits"),
        ("share of the gap missed with tuned's norm scale for both", "15 %", f"{scale_error(what):.1%}"),
    ]
    return pd.DataFrame(rows, columns=["quantity", "published", "here"])


def _figure(value: Any) -> str:
    return f"{float(value):.4f}"


def _incomplete(cmp: Comparison) -> float:
    return float(np.abs(cmp["completeness_error"].values).max())


def scale_error(what: Subject) -> float:
    """The share of the gap that goes missing when both models' terms are divided by tuned's norm scale.

    Of each model, total = centred residual * gain / scale . (u_answer - u_alternative); the gap is tuned's total minus
    base's, each with its own scale, against the same with tuned's scale in both.
    """
    tokens = what.one.tokenize(what.base.tokenizer, decoder_start=what.base.decoder_start)
    batch = next(tokens.batches(1))
    assert batch.answer_ids is not None
    totals, scales, pieces = [], [], []
    for policy in (what.base, what.tuned):
        site = Site("resid_post", policy.parts.n_layers - 1)
        residual = policy.trace(batch, [site]).last(site)
        norm = norm_parameters(policy.parts.final_norm)
        columns = policy.parts.unembedding()[0].detach().double()[:, batch.answer_ids[0]]
        direction = (columns[:, 0] - columns[:, 1])[None]
        pieces.append((residual, norm, direction))
        scales.append(norm.scale(residual))
        totals.append(float((residual * norm.pull(direction, scales[-1])).sum()))
    residual, norm, direction = pieces[0]
    wrong = float((residual * norm.pull(direction, scales[1])).sum())
    return float(np.abs(wrong - totals[0]) / np.abs(totals[1] - totals[0]))
