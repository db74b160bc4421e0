"""How the attention patterns of two models differ, head by head, and where attention moved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from functools import partial

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor

from interp.divergences import entropy, js_divergence
from interp.families.parts import StackName
from interp.hooks import Site
from interp.measures.arrays import (
    MODELS,
    PREFIXES,
    TokenTexts,
    Variable,
    dataset,
    mean_over,
    prompt_columns,
    stack_models,
    variable,
)
from interp.measures.findings import (
    Label,
    Row,
    Table,
    by_head,
    difference,
)
from interp.measures.logit_diff import target_ids
from interp.measures.measure import Context, Measure, Needs, Section
from interp.measures.ov import ov_circuits
from interp.measures.token_classes import TOKEN_CLASSES, shares, token_classes
from interp.models import Policy, Trace
from interp.models.offload import InMemory, TracePair
from interp.prompts import Batch, TokenizedPrompts

EXAMPLES = 4
"""Prompts whose attention is kept to be looked at."""

CHANGED_HEADS = 5
"""Heads whose attention is kept, those whose pattern changed most."""

KEPT_BYTES = 2**25
"""Most that a model's patterns on the examples may take until all prompts say which heads are kept."""


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


def changed_heads(context: Context) -> xr.Dataset:
    """Patterns of the heads that changed most, on a few prompts, and what their OV circuits read and write."""
    heads = _changed_heads(context.data["pattern_js"])
    base, tuned = context.base, context.tuned
    traces = context.first or _trace_examples(base, tuned, context.tokens, heads, context.settings.in_memory)
    patterns = pattern_examples(traces.base, traces.tuned, heads)
    patterns = patterns.assign_coords(example=range(patterns.sizes["example"]))
    return xr.merge([patterns, ov_circuits(base, tuned, heads)])


def _changed_heads(pattern_js: xr.DataArray) -> list[tuple[int, int]]:
    """(layer, head) of the heads whose pattern changed most, in the mean over all prompts."""
    change = pattern_js.mean("prompt").values
    order = np.argsort(-change, axis=None, kind="stable")[:CHANGED_HEADS]
    return [(int(layer), int(head)) for layer, head in zip(*np.unravel_index(order, change.shape), strict=True)]


def first_patterns(pair: TracePair, prompts: int) -> TracePair | None:
    """The examples' patterns of every head, out of the first batch; None where it lacks some, or they are large.

    Which heads are shown is known only at the end.
    """
    few = slice(0, min(EXAMPLES, prompts))

    def of(trace: Trace) -> Trace:
        batch = trace.batch
        rows = {each.name: getattr(batch, each.name) for each in fields(batch)}
        first = replace(batch, **{name: value[few] for name, value in rows.items() if value is not None})
        patterns = {site: trace[site][few].clone() for site in attention_sites(trace.policy) if site.stack is None}
        return Trace(trace.policy, first, trace.logits[few, :0], patterns)

    size = sum(pair.base[site][few].nbytes for site in attention_sites(pair.base.policy))
    enough = len(pair.base.batch.input_ids) >= few.stop
    return TracePair(0, pair.other, of(pair.base), of(pair.tuned)) if enough and size <= KEPT_BYTES else None


def _trace_examples(
    base: Policy, other: Policy, tokens: TokenizedPrompts, heads: Sequence[tuple[int, int]], in_memory: InMemory
) -> TracePair:
    """Trace the examples by themselves, for the heads that are shown."""
    batch: Batch = next(replace(tokens, response_ids=None, answer_ids=None).batches(EXAMPLES))
    layers = {layer for layer, _ in heads}
    wanted = [site for site in attention_sites(base) if site.layer in layers and site.stack is None]
    return next(in_memory.pairs(base, [other], [batch], wanted))


def findings(table: Table) -> Iterator[Row]:
    """The heads whose patterns lie furthest apart, and of which the last token's attention moved most."""
    if "pattern_js" in table.data:
        yield from _patterns_apart(table)
    if "attention_to" in table.data:
        yield from _attention_moved(table)


def _circuit(table: Table, label: Label) -> str:
    """What the head's OV circuit reads and writes in tuned, where it was looked at."""
    data = table.data
    if "ov_writes" not in data:
        return ""
    looked_at = zip(data["changed_layer"].values, data["changed_head_index"].values, strict=True)
    for index, head in enumerate(looked_at):
        if tuple(map(int, head)) == label:
            where = {"changed_head": index, "ov_direction": 0, "rank": slice(0, 2)}
            read, written = (
                ", ".join(repr(str(token)) for token in data[name].sel(model="tuned").isel(where).values)
                for name in ("ov_reads", "ov_writes")
            )
            return f" (OV reads {read}; writes {written})"
    return ""


def _patterns_apart(table: Table) -> Iterator[Row]:
    """The heads whose attention patterns lie furthest apart, and whose entropy changed most."""
    stacks = {"": "", "encoder_": " of the encoder", "cross_": " of the attention to the encoder"}
    for prefix, where in stacks.items():
        if f"{prefix}pattern_js" not in table.data:
            continue

        def js(data: xr.Dataset, prefix: str = prefix) -> np.ndarray:
            return np.asarray(data[f"{prefix}pattern_js"].values)

        def name(label: Label, _: np.ndarray, where: str = where) -> str:
            circuit = "" if where else _circuit(table, label)
            return f"L{label[0]}H{label[1]}{where}: JS of the patterns{circuit}"

        yield from table.largest("attention", name, by_head(js), "nats")
        if f"{prefix}pattern_entropy" in table.data:
            change = by_head(difference(f"{prefix}pattern_entropy"))

            def entropy_name(label: Label, _: np.ndarray, where: str = where) -> str:
                return f"L{label[0]}H{label[1]}{where}: entropy of the pattern: tuned minus base"

            yield from table.largest("attention", entropy_name, change, "nats", count=1)


def _attention_moved(table: Table) -> Iterator[Row]:
    """The heads of which the last token's attention moved most to or from a class of tokens, one class a head."""
    classes = {
        "bos": "the first token",
        "punctuation": "punctuation",
        "content": "content tokens",
        "antecedent": "earlier mentions of the answers",
    }
    present = [classes[str(name)] for name in table.data["token_class"].values]

    def name(label: Label, _: np.ndarray) -> str:
        return f"L{label[0]}H{label[1]}: the last token's attention to {present[label[2]]}: tuned minus base"

    cells = by_head(difference("attention_to"))
    yield from table.largest("attention moved", name, cells, "share", one_of=lambda label: label[:2])


ATTENTION = Measure(
    name="attention",
    title="Attention patterns",
    meaning="Which heads attend elsewhere in tuned, to what, and what these heads read and write.",
    formula="Jensen-Shannon divergence over key positions of the two models' patterns, mean over the prompt's queries",
    source="Lin 1991; OV circuits: Elhage et al. 2021, Millidge and Black 2022",
    units="nats; shares of attention",
    misleads="Attention to the first token is often a resting place: a head may move much of it and write the same.",
    group="Attention",
    when="by default",
    needs=Needs(sites=attention_sites, weights=True),
    arrays=(
        "pattern_js",
        "pattern_js_last",
        "pattern_entropy",
        "attention_to",
        "encoder_pattern_js",
        "encoder_pattern_entropy",
        "cross_pattern_js",
        "cross_pattern_js_last",
        "cross_pattern_entropy",
        "pattern",
        "ov_singular_value",
        "ov_reads",
        "ov_writes",
    ),
    per_batch=attention,
    first_batch=first_patterns,
    whole=changed_heads,
    findings=findings,
    sections=(
        Section(
            "attention_change",
            "Which heads look elsewhere",
            "Pattern change",
            alt="Heat maps over layers and heads of the divergence between the two models' attention patterns.",
            caption=(
                "Jensen-Shannon divergence between base's and tuned's attention over key positions: 0 is the same "
                "pattern, log 2 (0.693 nats) is no overlap."
            ),
            readings=(("attention", "JS"),),
        ),
        Section(
            "attention_entropy",
            "Which heads look more widely, and which less",
            "Pattern entropy",
            alt="Heat maps over layers and heads of the entropy of base's attention pattern and of its change.",
            caption=(
                "Entropy of the attention pattern, mean over query positions: 0 is one key, log n is n keys evenly. "
                "Red: tuned spreads its attention more than base; blue: less."
            ),
            readings=(("attention", "entropy"),),
        ),
        Section(
            "attention_classes",
            "What the changed heads look at",
            "Token classes",
            alt=(
                "Stacked bars of each changed head's attention by class of token in both models, and bars of what "
                "moved."
            ),
            caption=(
                "Attention of the last prompt token, by what it goes to: the first token (where heads rest), "
                "earlier mentions of the answer or its alternative, punctuation, all else. The heads are those "
                "whose pattern changed most."
            ),
            readings=(("attention moved", ""),),
        ),
        Section(
            "attention",
            "Attention of the heads that changed most",
            "Patterns",
            drawn_by="page",
        ),
        Section(
            "ov",
            "What the changed heads read and write",
            "OV circuits",
            drawn_by="page",
        ),
    ),
)
