"""What became of a head whose attention changed: its queries, keys, values or output, and what it does now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from interp.columns import frame_text
from interp.divergences import js_divergence
from interp.errors import MeasureError
from interp.hooks import Site, patch
from interp.measures.arrays import MODELS, TokenTexts, mean_over, prompt_columns, strings, variable
from interp.metrics import Metric, check_whole
from interp.models import Policy
from interp.models.running import run
from interp.models.source import Source
from interp.patching import Runs, open_runs, patch_runs
from interp.prompts import Batch, Prompts, make_batch

PARTS = ("q", "k", "v", "z", "result")
"""What is taken from tuned, one at a time: queries, keys, values, all three at once, and the output weights too."""

SCORES = ("previous token", "duplicate token", "induction")
ATTENDED = 5
LENGTH, SEQUENCES = 20, 8

Head = tuple[int, int]


@dataclass(frozen=True)
class HeadChanges:
    """What changed in some heads (see `head_changes`); dims prompt, changed_head, part, score, model, rank.

    Attributes:
        dataset: all arrays.
    """

    dataset: xr.Dataset

    def summary(self) -> pd.DataFrame:
        """One row a head: how far its pattern moved, which part moved it, what it does for the metric, its scores."""
        data = self.dataset
        frame = pd.DataFrame({"head": data["label"].values, "pattern_js": data["pattern_js"].mean("prompt").values})
        for part in ("q", "k"):
            frame[f"pattern by {part}"] = data["pattern_recovery"].sel(part=part).values
        for part in PARTS:
            frame[f"{part} recovers"] = data["recovery"].sel(part=part).values
        for score in SCORES:
            both = data["head_score"].sel(score=score)
            frame[score] = [f"{a:.2f} to {b:.2f}" for a, b in both.values]
        frame["attends to"] = [" ".join(map(repr, row)) for row in data["attended"].sel(model="tuned").values[:, :3]]
        return frame

    def __repr__(self) -> str:
        data = self.dataset
        about = (
            f"{data.sizes['changed_head']} heads; js by q, k: the pattern's change that tuned's queries or keys bring;"
            f" q to result: recovery of {data.attrs['metric']} by tuned's part of the head"
        )
        frame = self.summary().drop(columns=list(SCORES))
        frame.columns = [str(name).replace("pattern by", "js by").removesuffix(" recovers") for name in frame.columns]
        return "\n".join([about, frame_text(frame)])


def head_changes(
    base: Source | Policy,
    tuned: Source | Policy,
    prompts: Prompts | Sequence[str],
    *,
    heads: Sequence[Head] | None = None,
    count: int = 5,
    metric: Metric | None = None,
    batch_size: int = 16,
    seed: int = 0,
    **options: Any,
) -> HeadChanges:
    """Say of each changed head what changed in it, and what it attends to now.

    The dataset holds, by `changed_head`:

    - `pattern_js` [prompt]: JS divergence of its two patterns, in nats, mean over the prompt's queries;
    - `pattern_recovery` [part: q, k]: the share of that which goes away when base takes tuned's queries, or tuned's
      keys, of this head alone: 1 - sum JS(patched, tuned) / sum JS(base, tuned);
    - `recovery` [part: q, k, v, z, result], with `recovery_low` and `recovery_high`, and `effect` [prompt, part]: what
      of the metric comes back by the same swaps of one part (see `interp.patching.activation_patching`); z is what all
      three make of it, result z with tuned's output weights too. With grouped keys, k and v are the group's;
    - `attended`, `attended_share` [model, rank]: the tokens that its attention goes to from the last prompt token, by
      their share over all prompts;
    - `head_score` [score, model]: previous-token, duplicate-token and induction score: the mean attention to the token
      before, to the token's own earlier copy, and to the one after that, on random tokens that are repeated once
      (Olsson et al. 2022, "In-context Learning and Induction Heads").

    Args:
        base: hub id, folder, loaded module or `Policy`.
        tuned: the same, of the same shape; a causal model, as base.
        prompts: a `Prompts`, or a list of texts.
        heads: (layer, head) of each; None: the `count` whose pattern changed most on these prompts.
        count: how many heads.
        metric: see `activation_patching`.
        batch_size: prompts a pass.
        seed: of the random tokens and of the resampling.
        options: of `Policy.load`.

    Raises:
        MeasureError: a model is an encoder-decoder, computes its pattern where none can see q and k, or has no such
            head.
    """
    check_whole(count=count, batch_size=batch_size)
    check_whole(0, seed=seed)
    runs = open_runs(base, tuned, prompts, **options)
    parts = runs.recipient.parts
    if parts.family.encoder is not None:
        raise MeasureError("heads are followed in causal models; of a T5 patch q, k, v and z by activation_patching")
    divergence = _pattern_js(runs, batch_size)
    chosen = _chosen(divergence, heads, count)
    own = np.stack([divergence[:, layer, head] for layer, head in chosen], axis=1)
    groups = [head // (parts.n_heads // parts.n_kv_heads) for _, head in chosen]
    sites = [
        {(part, layer): [group if part in ("k", "v") else head]}
        for (layer, head), group in zip(chosen, groups, strict=True)
        for part in PARTS
    ]
    patched = patch_runs(runs, sites=sites, metric=metric, batch_size=batch_size, random_sets=0, seed=seed)
    shape = len(chosen), len(PARTS)
    names, shares = _attended(runs, chosen, batch_size)
    variables = {
        "pattern_js": variable("prompt changed_head", own, "JS of the two patterns, mean over queries", "nats"),
        "pattern_recovery": variable(
            "changed_head part",
            _pattern_recovery(runs, chosen, groups, own, batch_size),
            "share of the pattern's change",
        ),
        "effect": variable(
            "prompt changed_head part",
            patched["effect"].values.reshape(-1, *shape),
            "patched minus base",
            patched.dataset.attrs["units"],
        ),
        "attended": variable("changed_head model rank", names, "tokens attended to from the last prompt token"),
        "attended_share": variable("changed_head model rank", shares, "their share of its attention", "share"),
        "head_score": variable(
            "changed_head score model",
            np.stack([_scores(policy, chosen, seed) for policy in runs.policies], axis=2),
            "mean attention on repeated random tokens",
            "probability",
        ),
    }
    for name in ("recovery", "recovery_low", "recovery_high"):
        text = str(patched[name].attrs["long_name"])
        variables[name] = variable("changed_head part", patched[name].values.reshape(shape), text)
    coords = {
        "part": list(PARTS),
        "score": list(SCORES),
        "model": list(MODELS),
        "layer": ("changed_head", [layer for layer, _ in chosen]),
        "head": ("changed_head", [head for _, head in chosen]),
        "label": ("changed_head", strings([f"L{layer}H{head}" for layer, head in chosen])),
    }
    data = xr.Dataset(variables, coords=coords)
    kept = {name: patched.dataset.attrs[name] for name in ("metric", "units", "recipient", "source", "seed")}
    return HeadChanges(data.assign_attrs(kept))


def _chosen(divergence: np.ndarray, heads: Sequence[Head] | None, count: int) -> list[Head]:
    layers, width = divergence.shape[1:]
    if heads is None:
        order = np.argsort(-divergence.mean(0), axis=None, kind="stable")[:count]
        return [(int(layer), int(head)) for layer, head in zip(*np.unravel_index(order, (layers, width)), strict=True)]
    for layer, head in heads:
        if not (0 <= layer < layers and 0 <= head < width):
            raise MeasureError(f"there is no head {head} in layer {layer}; there are {layers} layers of {width} heads")
    if not heads:
        raise MeasureError("no heads were named; pass (layer, head) pairs, or heads=None for those that changed most")
    return [(int(layer), int(head)) for layer, head in heads]


def _both(runs: Runs, batch: Batch, sites: Sequence[Site]) -> tuple[dict[Site, Tensor], dict[Site, Tensor]]:
    return run(runs.recipient.parts, batch, sites)[1], run(runs.source.parts, batch.to(runs.source.device), sites)[1]


def _pattern_js(runs: Runs, batch_size: int) -> np.ndarray:
    """JS of the two models' patterns, mean over the prompt's queries: [prompt, layer, head]."""
    sites = [Site("pattern", layer) for layer in range(runs.recipient.parts.n_layers)]
    blocks = []
    for batch, _ in runs.batches(batch_size):
        mine, theirs = _both(runs, batch, sites)
        inside = prompt_columns(batch)
        each = [mean_over(inside, js_divergence(mine[s].float(), theirs[s].float().to(mine[s].device))) for s in sites]
        blocks.append(torch.stack(each, dim=1).cpu().numpy())
    return np.concatenate(blocks)


def _pattern_recovery(
    runs: Runs, heads: Sequence[Head], groups: Sequence[int], own: np.ndarray, batch_size: int
) -> np.ndarray:
    """The share of the pattern's change that tuned's queries, or keys, bring by themselves: [head, part]."""
    parts = runs.recipient.parts
    left = np.zeros((len(heads), len(PARTS)))
    for batch, _ in runs.batches(batch_size):
        for index, ((layer, head), group) in enumerate(zip(heads, groups, strict=True)):
            sites = [Site(name, layer) for name in ("q", "k", "pattern")]
            theirs = run(runs.source.parts, batch.to(runs.source.device), sites)[1]
            target = theirs[sites[2]][:, [head]].float().to(batch.input_ids.device)
            for place, (site, unit) in enumerate(((sites[0], head), (sites[1], group))):
                with patch(parts, {site: _with_unit(theirs[site], unit)}):
                    pattern = run(parts, batch, [sites[2]], eager=True)[1][sites[2]][:, [head]].float()
                left[index, place] += float(mean_over(prompt_columns(batch), js_divergence(pattern, target)).sum())
    total = own.sum(0)
    share = np.full(left.shape, np.nan)
    moved = total > 0
    share[moved, :2] = 1 - left[moved, :2] / total[moved, None]
    return share


def _with_unit(source: Tensor, unit: int) -> Any:
    def edit(value: Tensor) -> Tensor:
        changed = value.clone()
        changed[:, :, unit] = source[:, :, unit].to(value)
        return changed

    return edit


def _attended(
    runs: Runs, heads: Sequence[Head], batch_size: int
) -> tuple[np.ndarray, Float[np.ndarray, "head model rank"]]:
    """The tokens that each head attends to from the last prompt token, and their share over all prompts."""
    texts = TokenTexts(runs.recipient.tokenizer)
    sums: list[list[dict[int, float]]] = [[{} for _ in MODELS] for _ in heads]
    sites = sorted({Site("pattern", layer) for layer, _ in heads})
    for batch, _ in runs.batches(batch_size):
        for place, got in enumerate(_both(runs, batch, sites)):
            for index, (layer, head) in enumerate(heads):
                rows = batch.at_last_prompt(got[Site("pattern", layer)][:, head].cpu()).double()
                for ids, weights in zip(batch.input_ids.tolist(), rows.tolist(), strict=True):
                    for token, weight in zip(ids, weights, strict=True):
                        sums[index][place][token] = sums[index][place].get(token, 0.0) + weight
    names = np.full((len(heads), len(MODELS), ATTENDED), "", dtype=object)
    shares = np.zeros(names.shape)
    for index, place in np.ndindex(len(heads), len(MODELS)):
        table = sums[index][place]
        total = sum(table.values())
        best = sorted(table, key=lambda token: (-table[token], token))[:ATTENDED]
        names[index, place, : len(best)] = [texts[token] for token in best]
        shares[index, place, : len(best)] = [table[token] / total for token in best]
    return strings(names), shares


def _scores(policy: Policy, heads: Sequence[Head], seed: int) -> Float[np.ndarray, "head score"]:
    """Previous-token, duplicate-token and induction score of each head."""
    length = LENGTH if policy.context_length is None else min(LENGTH, (policy.context_length - 1) // 2)
    ids = repeated_tokens(policy, length, seed)
    _, got = run(
        policy.parts, make_batch(ids.tolist()).to(policy.device), sorted({Site("pattern", i) for i, _ in heads})
    )
    return np.array([head_scores(got[Site("pattern", layer)][:, head].float(), length) for layer, head in heads])


def repeated_tokens(policy: Policy, length: int, seed: int) -> Int[Tensor, "sequence token"]:
    """Random tokens that are repeated once, after the tokenizer's BOS where it has one; no special token among them."""
    special = set(policy.tokenizer.all_special_ids)
    words = torch.tensor([token for token in range(policy.vocab_size) if token not in special])
    generator = torch.Generator().manual_seed(seed)
    once = words[torch.stack([torch.randperm(len(words), generator=generator)[:length] for _ in range(SEQUENCES)])]
    start = policy.tokenizer.bos_token_id
    start = int(once[0, 0]) if start is None else start
    return torch.cat([torch.full((SEQUENCES, 1), start), once, once], dim=1)


def head_scores(pattern: Float[Tensor, "sequence query key"], length: int) -> tuple[float, float, float]:
    """Mean attention to the token before, to the earlier copy of the token, and to the token after that copy.

    Args:
        pattern: of one head on a first token, `length` tokens, and the same tokens again.
        length: how many tokens are repeated.

    Returns:
        Previous-token score (over all queries but the first), duplicate-token and induction score (over the second
        copy's queries).
    """
    queries = torch.arange(1, pattern.shape[1])
    second = torch.arange(1 + length, 1 + 2 * length)
    previous = pattern[:, queries, queries - 1].mean()
    duplicate = pattern[:, second, second - length].mean()
    induction = pattern[:, second, second - length + 1].mean()
    return float(previous), float(duplicate), float(induction)
