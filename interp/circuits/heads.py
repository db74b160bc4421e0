"""What became of a head whose attention changed: its queries, keys, values or output, and what it does now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from interp.divergences import js_divergence
from interp.errors import MeasureError, renamed
from interp.hooks import Site, patch
from interp.measures.arrays import MODELS, TokenTexts, mean_over, prompt_columns, strings, variable
from interp.metrics import Metric, check_whole
from interp.models import Policy
from interp.models.running import run
from interp.models.source import Source
from interp.patching import Runs, open_runs, patch_runs
from interp.patching.runs import LOADING
from interp.progress import Progress, no_progress
from interp.prompts import Batch, Prompts, make_batch
from interp.result import Result

PARTS = ("q", "k", "v", "z", "result")
"""What is taken from tuned, one at a time: queries, keys, values, all three at once, and the output weights too."""

SCORES = ("previous token", "duplicate token", "induction")
ATTENDED = 5
LENGTH, SEQUENCES = 20, 8

Head = tuple[int, int]


class HeadChanges(Result):
    """What changed in some heads (see `head_changes`); dims prompt, changed_head, part, score, model, rank."""

    kind = "head_changes"
    title = "Changes of heads"

    def headline(self) -> str:
        """Which head's pattern changed most."""
        data = self.dataset
        moved = data["pattern_js"].mean("prompt").values
        most = int(np.argmax(moved))
        return (
            f"What changed in {data.sizes['changed_head']} heads; the pattern of {data['label'].values[most]} changed"
            f" most, by a JS divergence of {moved[most]:.3g} nats"
        )

    def notes(self) -> list[str]:
        """What the columns are."""
        return [
            "js_by_q, js_by_k: share of the pattern's change that tuned's queries or keys bring; q to result: recovery"
            f" of {self.dataset.attrs['metric']} by tuned's part of the head, result with tuned's output weights"
        ]

    def summary(self) -> pd.DataFrame:
        """One row a head: how far its pattern moved, which part moved it, what it does for the metric, its scores."""
        data = self.dataset
        columns: dict[str, Any] = {"head": data["label"].values, "pattern_js": data["pattern_js"].mean("prompt").values}
        for part in ("q", "k"):
            columns[f"js_by_{part}"] = data["pattern_recovery"].sel(part=part).values
        for part in PARTS:
            columns[part] = data["recovery"].sel(part=part).values
        attended = data["attended"].sel(model="tuned").values[:, :3]
        columns["attends_to"] = [" ".join(map(repr, map(str, row))) for row in attended]
        for part in PARTS:
            for end in ("low", "high"):
                columns[f"{part}_{end}"] = data[f"recovery_{end}"].sel(part=part).values
        for score in SCORES:
            for model in MODELS:
                name = f"{score.replace(' ', '_')}_in_{model}"
                columns[name] = data["head_score"].sel(score=score, model=model).values
        return pd.DataFrame(columns)


@renamed(**LOADING)
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
    progress: Progress | None = None,
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
        base: id, folder, module or `Policy`.
        tuned: the same, of the same shape; a causal model, as base.
        prompts: a `Prompts`, or a list of texts.
        heads: (layer, head) of each; None: the `count` whose pattern changed most on these prompts.
        count: how many heads.
        metric: see `activation_patching`.
        batch_size: prompts a pass.
        seed: of the random tokens and of the resampling.
        progress: called with what is done, steps done and steps in all.

    Raises:
        MeasureError: a model is an encoder-decoder, computes its pattern where none can see q and k, or has no such
            head.
    """
    check_whole(count=count, batch_size=batch_size)
    check_whole(0, seed=seed)
    runs, tell = open_runs(base, tuned, prompts), progress or no_progress
    parts = runs.recipient.parts
    if parts.family.encoder is not None:
        raise MeasureError("heads are followed in causal models; of a T5 patch q, k, v and z by activation_patching")
    divergence = _pattern_js(runs, batch_size)
    chosen = _chosen(divergence, heads, count)
    moved = np.stack([divergence[:, layer, head] for layer, head in chosen], axis=1)
    tell("following heads: patterns", 1, 4)
    groups = [head // (parts.n_heads // parts.n_kv_heads) for _, head in chosen]
    share = _pattern_recovery(runs, chosen, groups, moved, batch_size)
    tell("following heads: queries and keys", 2, 4)
    sites = [
        {(part, layer): [group if part in ("k", "v") else head]}
        for (layer, head), group in zip(chosen, groups, strict=True)
        for part in PARTS
    ]
    patched = patch_runs(runs, sites=sites, metric=metric, batch_size=batch_size, draws=0, seed=seed)
    tell("following heads: parts", 3, 4)
    attended = _attended(runs, chosen, batch_size)
    scores = np.stack([_scores(policy, chosen, seed) for policy in runs.policies], axis=2)
    tell("following heads: what they attend to", 4, 4)
    return HeadChanges(_dataset(chosen, moved, share, patched.dataset, attended, scores))


def _dataset(
    heads: Sequence[Head],
    moved: np.ndarray,
    share: np.ndarray,
    patched: xr.Dataset,
    attended: tuple[np.ndarray, np.ndarray],
    scores: np.ndarray,
) -> xr.Dataset:
    """The arrays of `head_changes`, of which `patched` holds a site for every part of every head."""
    shape = len(heads), len(PARTS)
    effect = patched["effect"].values.reshape(-1, *shape)
    variables = {
        "pattern_js": variable("prompt changed_head", moved, "JS of the two patterns, mean over queries", "nats"),
        "pattern_recovery": variable("changed_head part", share, "share of the pattern's change"),
        "effect": variable("prompt changed_head part", effect, "patched minus base", patched.attrs["units"]),
        "attended": variable("changed_head model rank", attended[0], "tokens attended to from the last prompt token"),
        "attended_share": variable("changed_head model rank", attended[1], "their share of its attention", "share"),
        "head_score": variable(
            "changed_head score model", scores, "mean attention on repeated random tokens", "probability"
        ),
    }
    for name in ("recovery", "recovery_low", "recovery_high"):
        text = str(patched[name].attrs["long_name"])
        variables[name] = variable("changed_head part", patched[name].values.reshape(shape), text)
    coords = {
        "part": list(PARTS),
        "score": list(SCORES),
        "model": list(MODELS),
        "layer": ("changed_head", [layer for layer, _ in heads]),
        "head": ("changed_head", [head for _, head in heads]),
        "label": ("changed_head", strings([f"L{layer}H{head}" for layer, head in heads])),
    }
    names = ("metric", "units", "recipient", "source", "seed")
    data = xr.Dataset(variables, coords=coords)
    return data.assign_attrs({name: patched.attrs[name] for name in names})


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
        pairs = [(mine[site].float(), theirs[site].float().to(mine[site].device)) for site in sites]
        blocks.append(torch.stack([mean_over(inside, js_divergence(*both)) for both in pairs], dim=1).cpu().numpy())
    return np.concatenate(blocks)


def _pattern_recovery(
    runs: Runs, heads: Sequence[Head], groups: Sequence[int], moved: np.ndarray, batch_size: int
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
    total = moved.sum(0)
    share = np.full(left.shape, np.nan)
    rows = total > 0
    share[rows, :2] = 1 - left[rows, :2] / total[rows, None]
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
