"""How the attention patterns of two models differ, head by head, and where attention moved."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor

from interp.divergences import entropy, js_divergence
from interp.families.parts import StackName
from interp.hooks import Site
from interp.measures.arrays import MODELS, TokenTexts, Variable, dataset, stack_models, variable
from interp.measures.logits import target_ids
from interp.measures.spans import mean_over, prompt_columns
from interp.measures.token_classes import TOKEN_CLASSES, shares, token_classes
from interp.models import Policy, Trace
from interp.prompts import Batch

PREFIXES: dict[StackName | None, str] = {None: "", "encoder": "encoder_", "cross": "cross_"}
"""What the variables of each stack's attention are called by."""


def attention_sites(policy: Policy) -> list[Site]:
    """The pattern of every layer; of an encoder-decoder also of its encoder and of the attention to it."""
    return [site for stack in policy.parts.stacks for site in stack_sites(policy, stack)]


def stack_sites(policy: Policy, stack: StackName | None = None) -> list[Site]:
    """The pattern of every layer of one stack."""
    layers = policy.parts.n_encoder_layers if stack == "encoder" else policy.parts.n_layers
    return [Site("pattern", layer, stack) for layer in range(layers)]


def query_columns(batch: Batch, stack: StackName | None) -> Bool[Tensor, "batch query"]:
    """True at the queries over which a pattern is averaged: the prompt's tokens, or all that the encoder reads."""
    if stack != "encoder":
        return prompt_columns(batch)
    assert batch.encoder_mask is not None
    return batch.encoder_mask


def attention(base: Trace, tuned: Trace) -> xr.Dataset:
    """How the attention patterns changed, by head: divergence, entropy, and the classes of token attended to.

    `pattern_js` is the Jensen-Shannon divergence over key positions of the two models' patterns, the mean over the
    prompt's query positions, and `pattern_js_last` its value at the last one. `pattern_entropy` is each model's entropy
    over keys, mean over queries. `attention_to` is the share of the last prompt token's attention that goes to each
    class of token (see `token_classes`). Of an encoder-decoder this is the decoder's self-attention, and the encoder's
    attention and that of decoder to encoder have their divergence and entropy with the prefixes `encoder_` and
    `cross_`.
    """
    batch, parts = base.batch, base.policy.parts
    classes = token_classes(batch, target_ids(base, tuned), TokenTexts(base.policy.tokenizer))
    found = pattern_changes(base, tuned, stack_sites(base.policy), query_columns(batch, None))
    found |= attention_to(base, tuned, stack_sites(base.policy), classes)
    for stack in parts.stacks[1:]:
        inside = query_columns(batch, stack)
        found |= pattern_changes(base, tuned, stack_sites(base.policy, stack), inside, prefix=PREFIXES[stack])
    return dataset(
        found,
        layer=range(parts.n_layers),
        encoder_layer=range(parts.n_encoder_layers),
        head=range(parts.n_heads),
        token_class=list(TOKEN_CLASSES),
    )


def _patterns(base: Trace, tuned: Trace, site: Site) -> tuple[Tensor, Tensor]:
    """Both patterns at a site, float32, on base's device."""
    return base[site].float(), tuned[site].float().to(base[site].device)


def pattern_changes(
    base: Trace, tuned: Trace, sites: Sequence[Site], inside: Bool[Tensor, "batch query"], *, prefix: str = ""
) -> dict[str, Variable]:
    """JS and entropy of the patterns at some sites, by head.

    Args:
        base: trace that holds the patterns.
        tuned: the same of the tuned model.
        sites: the pattern of each layer of one stack.
        inside: the queries that count.
        prefix: what the variables are called by.

    Returns:
        `pattern_js`, `pattern_entropy`, and, unless the stack is an encoder's, which has no last query of its own,
        `pattern_js_last`.
    """
    means, lasts, entropies = [], [], []
    for site in sites:
        patterns = _patterns(base, tuned, site)
        js = js_divergence(*patterns)
        means.append(mean_over(inside, js))
        of_base = base.once(("pattern entropy", site), partial(_mean_entropy, inside, patterns[0]))
        entropies.append(stack_models(of_base, _mean_entropy(inside, patterns[1])))
        if site.stack != "encoder":
            lasts.append(base.batch.at_last_prompt(js.transpose(1, 2)).cpu())
    layer = "encoder_layer" if prefix == PREFIXES["encoder"] else "layer"
    words = {"": "attention patterns", "encoder_": "the encoder's patterns", "cross_": "patterns over the encoder"}
    dims, what = f"prompt {layer} head", words[prefix]
    found = {
        f"{prefix}pattern_js": variable(dims, torch.stack(means, 1), f"JS of {what}, mean over queries", "nats"),
        f"{prefix}pattern_entropy": variable(
            f"prompt model {layer} head", torch.stack(entropies, 2), f"entropy of {what}, mean over queries", "nats"
        ),
    }
    if lasts:
        found[f"{prefix}pattern_js_last"] = variable(
            dims, torch.stack(lasts, 1), f"JS of {what} at the last query", "nats"
        )
    return found


def _mean_entropy(inside: Bool[Tensor, "batch query"], pattern: Tensor) -> Tensor:
    return mean_over(inside, entropy(pattern))


def attention_to(
    base: Trace, tuned: Trace, sites: Sequence[Site], classes: Float[Tensor, "batch key token_class"]
) -> dict[str, Variable]:
    """Share of attention that goes to each class of token, from the last prompt token."""
    found = []
    for site in sites:
        rows = [base.batch.at_last_prompt(pattern.transpose(1, 2)) for pattern in _patterns(base, tuned, site)]
        found.append(stack_models(*(shares(row, classes) for row in rows)))
    what = "share of attention to each class of token, from the last prompt token"
    return {"attention_to": variable("prompt model layer head token_class", torch.stack(found, 2), what, "share")}


def pattern_examples(base: Trace, tuned: Trace, heads: Sequence[tuple[int, int]]) -> xr.Dataset:
    """The patterns of some heads on the prompts of a batch, to be looked at.

    Args:
        base: trace that holds the patterns.
        tuned: the same of the tuned model.
        heads: (layer, head) of each.

    Returns:
        `pattern` with dims example, model, changed_head, query, key; NaN outside the prompt.
    """
    batch = base.batch
    length = int(batch.prompt_lengths.max())
    inside = torch.arange(length) < batch.prompt_lengths.cpu()[:, None]
    real = (inside[:, :, None] & inside[:, None, :])[:, None]

    def of(trace: Trace) -> Tensor:
        chosen = torch.stack([trace[Site("pattern", layer)][:, head] for layer, head in heads], dim=1).float()
        by_query = batch.aligned(chosen.transpose(1, 2)).transpose(1, 2)
        by_key = batch.aligned(by_query.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return by_key[:, :, :length, :length].cpu().masked_fill(~real, torch.nan)

    values = stack_models(of(base), of(tuned))
    return xr.Dataset(
        {"pattern": variable("example model changed_head query key", values, "attention pattern", "probability")},
        coords={
            "model": list(MODELS),
            "changed_layer": ("changed_head", [layer for layer, _ in heads]),
            "changed_head_index": ("changed_head", [head for _, head in heads]),
        },
    )
