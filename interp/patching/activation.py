"""Activation patching: across two models, or within one between clean and corrupted prompts.

    result = activation_patching(base, tuned, prompts, sites="z")       # what suffices: tuned's heads in base
    result = activation_patching(tuned, base, prompts, sites="z")       # what reverses it: base's heads in tuned
    result.map("z")                                                     # recovery, layer by head

Of policies and of reward models. `patch_runs` does the same of models that are loaded, tokenised and checked already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interp.errors import renamed
from interp.metrics import Metric, check_finite, check_whole, metric_name, readings, resolve_metric
from interp.models import Policy, RewardModel, Source
from interp.patching.recording import Values, activations, captured_sites, record, values_of
from interp.patching.replay import TOKENS, sweep, verify
from interp.patching.result import Patching, build
from interp.patching.runs import LOADING, Runs, open_runs
from interp.patching.targets import Intervention, Sites, interventions, random_like
from interp.progress import Progress, no_progress
from interp.prompts import Batch, Prompts

DRAWS = 20
"""Random sets that stand beside each set of several sites."""


Put = Callable[[int, Batch], Values]
"""From the number of a batch's first prompt and its tokens to what is put into its activations."""


@dataclass(frozen=True)
class Replacement:
    """What is put in the place of activations that are no source's, as by an ablation.

    Attributes:
        by: its name.
        prepare: from the runs, the patches and the prompts a pass to what is put into each batch.
    """

    by: str
    prepare: Callable[[Runs, Sequence[Intervention], int], Put]


@renamed(**LOADING, random_sets="it is draws=", tokens="pass it to patching.patch_runs")
def activation_patching(
    recipient: Source | Policy | RewardModel,
    source: Source | Policy | RewardModel,
    prompts: Prompts | Sequence[str],
    *,
    sites: Sites = ("resid_pre", "attn_out", "mlp_out"),
    positions: Any = "all",
    metric: Metric | None = None,
    recipient_reads: str | None = None,
    batch_size: int = 16,
    draws: int = DRAWS,
    short_cut: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Patching:
    """Put the source's activations into the recipient, site by site, and see how much of the source comes back.

    Across models (Prakash et al. 2024, cross-model activation patching): tuned's into base asks what is enough to
    bring the tuned behaviour, base's into tuned what is needed for it. Within one model (Meng et al. 2022) the same
    model is recipient and source, and the prompts have corrupted counterparts of the same number of tokens: the
    recipient reads those, the source the clean ones.

    recovery = sum over prompts of (patched - recipient) / sum of (source - recipient); for `kl`, KL(source || patched),
    that is 1 - sum KL(source || patched) / sum KL(source || recipient). It is NaN if the denominator's interval
    contains 0. A patched z goes through the recipient's W_O; `result` is the source's z times the source's
    W_O, without b_O. q and k are patched as they enter the dot product. What no site reaches (final norm,
    unembedding) is the `readout`: the recipient's last residual read by the source.

    Recipient and source may be reward models, of one shape, label, output and tokenizer; or one of them a reward model
    and the other a policy with the same trunk. A reward model reads whole texts, with the tokens that its tokenizer
    adds, [CLS] among them; answers are left aside. It reads its score at the last token of a text where it is causal,
    else at [CLS], position 0. Of encoders that norm sums (BERT), `resid_mid` and `resid_post` are the sums before their
    norm, so a layer's `resid_post` is not the next one's `resid_pre`. Of a mixed pair the source has no metric of its
    own: it reads the recipient's tokens, its last residual goes through the recipient's norm and head, and what this
    gives is `source`, the whole trunk's effect, for which recovery is 1; there is no `readout`.

    Args:
        recipient: the model that is patched: hub id, folder, loaded module, `Policy` or `RewardModel`. It is given
            back unchanged.
        source: the model whose activations go in.
        prompts: a `Prompts`, or a list of texts.
        sites: names ("z": every head of every layer by itself), `Site`s, or mappings that are patched as one set, as
            {("z", 10): [4, 9], ("mlp_out", 3): None}; or a list of these.
        positions: "all", "prompt" (not what follows it; of a reward model's text all), "last" (the text's last token,
            of an encoder [SEP]), or numbers from 0 at the first token or from -1 at the last; a map by token is "each",
            counted from the first token, or "each_from_end", counted back from the last (-1).
        metric: "logit_diff" (of the prompts' answers), "kl" (to the source), "logprob" (of the prompts'
            continuations), or a function of logits at each prompt's last token [row, vocab] and the rows' prompts
            [row]. None: `logit_diff` where there are answers, else `kl`. Of a reward model "score" (its label's, as its
            `output`; the default), "kl" (over the labels, where it is a softmax), or a function of the labels' logits
            [row, label] and the rows' texts [row].
        recipient_reads: with corrupted prompts: "corrupted" (the default; the source reads the clean ones) or "clean".
        batch_size: prompts a pass.
        draws: for each set of several sites, how many random sets of the same make-up are patched beside it.
        short_cut: False runs the whole model for each pass; the result is the same up to rounding.
        seed: seed of random sets and of the resampling.
        progress: told of "patches".

    Raises:
        LoadError: a model cannot be loaded.
        MeasureError: a site, position or metric is unknown or does not fit the model, or the models differ in shape,
            labels or output.
        PromptError: the prompts do not fit, or a text is longer than a reward model's context.
        TokenizerMismatch: the models do not share their tokens.
    """
    return patch_runs(
        open_runs(recipient, source, prompts, recipient_reads=recipient_reads, rewards=True),
        sites=sites,
        positions=positions,
        metric=metric,
        batch_size=batch_size,
        draws=draws,
        short_cut=short_cut,
        seed=seed,
        progress=progress,
    )


def patch_runs(
    runs: Runs,
    *,
    sites: Any,
    positions: Any = "all",
    metric: Metric | None = None,
    replacement: Replacement | None = None,
    batch_size: int = 16,
    tokens: int = TOKENS,
    draws: int = DRAWS,
    short_cut: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Patching:
    """`activation_patching` of runs that are open (`open_runs`), whose other arguments are the same.

    `replacement` is what is put in where it is not the source's activations, `tokens` the most tokens of a pass that
    carries several patches.
    """
    check_whole(batch_size=batch_size, tokens=tokens)
    check_whole(0, draws=draws, seed=seed)
    metric, tell = resolve_metric(metric, runs.prompts, runs.recipient), progress or no_progress
    wanted = interventions(runs.recipient.parts, sites, positions, runs.width)
    beside, owners = random_like(runs.recipient.parts, wanted, draws, seed)
    patches = [*wanted, *beside]
    put = None if replacement is None else replacement.prepare(runs, patches, batch_size)
    blocks: list[tuple[np.ndarray, ...]] = []
    for number, (batch, other) in enumerate(runs.batches(batch_size)):
        first = number * batch_size
        block = _one_batch(runs, batch, other, patches, metric, first, put=put, tokens=tokens, short_cut=short_cut)
        blocks.append(block)
        tell("patches", min(first + batch_size, len(runs)) * len(patches), len(runs) * len(patches))
    patched, recipient, source, readout = (np.concatenate(columns) for columns in zip(*blocks, strict=True))
    check_finite(metric_name(metric), recipient=recipient, source=source, patched=patched)
    return build(
        runs, wanted, patched, recipient, source if replacement is None else None, readout, owners,
        metric=metric, positions=positions, by=None if replacement is None else replacement.by, seed=seed,
    )  # fmt: skip


def _one_batch(
    runs: Runs,
    batch: Batch,
    other: Batch,
    patches: Sequence[Intervention],
    metric: Metric,
    first: int,
    *,
    put: Put | None,
    tokens: int,
    short_cut: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Patched [prompt, site], recipient, source and readout [prompt]."""
    parts, theirs = runs.recipient.parts, runs.source.parts
    store, final = activations(theirs, other, captured_sites(patches) if put is None else ())
    numbers = runs.numbers_of(first, len(final))
    here, there = readings(metric, runs.recipient, runs.source_reader, (batch, other), final, numbers)
    recording = record(parts, batch)
    if short_cut and first == 0:
        verify(recording)
    values = values_of(theirs, store) if put is None else put(first, batch)
    patched = sweep(recording, patches, values, here, tokens=tokens, short_cut=short_cut)
    recipient, readout = (here.of_run(reader, recording.final) for reader in (parts, runs.source_reader))
    return patched.numpy(), recipient, there.of_run(runs.source_reader, final), readout
