"""Activation patching: across two models, or within one between clean and corrupted prompts; and ablation.

Of policies and of reward models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from interp.errors import MeasureError
from interp.metrics import Metric, check_finite, check_whole, metric_name, readings, resolve_metric
from interp.models import Policy, RewardModel
from interp.models.source import Source
from interp.patching.opening import Runs, check_no_options, open_runs, tokens_of
from interp.patching.recording import record
from interp.patching.replay import verify
from interp.patching.result import Patching, build
from interp.patching.sweep import TOKENS, sweep
from interp.patching.targets import Intervention, Sites, interventions, random_like
from interp.patching.values import activations, captured_sites, replaced_by, values_of
from interp.prompts import Batch, Prompts

Ablation = Literal["zero", "mean", "resample"]
Progress = Callable[[int, int], None]
RANDOM_SETS = 20


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
    tokens: int = TOKENS,
    random_sets: int = RANDOM_SETS,
    short_cut: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> Patching:
    """Put the source's activations into the recipient, site by site, and see how much of the source comes back.

    Across models (Prakash et al. 2024, cross-model activation patching): tuned's into base asks what is enough to
    bring the tuned behaviour, base's into tuned what is needed for it. Within one model (Meng et al. 2022) the same
    model is recipient and source, and the prompts have corrupted counterparts of the same number of tokens: the
    recipient reads those, the source the clean ones.

    recovery = sum over prompts of (patched - recipient) / sum of (source - recipient); for `kl`, KL(source || patched),
    that is 1 - sum KL(source || patched) / sum KL(source || recipient). It is NaN where the interval of the
    denominator holds 0. A patched z goes through the recipient's W_O; `result` is the source's z times the source's
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
            of an encoder [SEP]), "each" (a map by token), or numbers.
        metric: "logit_diff" (of the prompts' answers), "kl" (to the source), "logprob" (of the prompts'
            continuations), or a function of logits at each prompt's last token [row, vocab] and the rows' prompts
            [row]. None: `logit_diff` where there are answers, else `kl`. Of a reward model "score" (its label's, as its
            `output`; the default), "kl" (over the labels, where it is a softmax), or a function of the labels' logits
            [row, label] and the rows' texts [row].
        recipient_reads: with corrupted prompts: "corrupted" (the default; the source reads the clean ones) or "clean".
        batch_size: prompts a pass.
        tokens: most tokens of a pass that carries several patches.
        random_sets: for each set of several sites, how many random sets of the same make-up are patched beside it.
        short_cut: False runs the whole model for each pass; the result is the same up to rounding.
        seed: seed of random sets and of the resampling.
        progress: called with patches done and patches in all.
        options: tokenizer (for loaded modules, which have none), and dtype, device, device_map, trust_remote_code, as
            in `interp.compare`.

    Raises:
        LoadError: a model cannot be loaded.
        MeasureError: a site, position or metric is unknown or does not fit the model, or the models differ in shape,
            labels or output.
        PromptError: the prompts do not fit, or a text is longer than a reward model's context.
        TokenizerMismatch: the models do not share their tokens.
    """
    runs = open_runs(recipient, source, prompts, recipient_reads=recipient_reads, rewards=True, **options)
    return patch_runs(
        runs,
        sites=sites,
        positions=positions,
        metric=metric,
        batch_size=batch_size,
        tokens=tokens,
        random_sets=random_sets,
        short_cut=short_cut,
        seed=seed,
        progress=progress,
    )


def ablation(
    model: Source | Policy | RewardModel,
    prompts: Prompts | Sequence[str],
    *,
    by: Ablation = "mean",
    sites: Sites = ("attn_out", "mlp_out"),
    positions: Any = "all",
    metric: Metric | None = None,
    batch_size: int = 16,
    tokens: int = TOKENS,
    random_sets: int = RANDOM_SETS,
    short_cut: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> Patching:
    """Put zeros, a mean or another prompt's activations into a model, site by site.

    Args:
        model: the model, a policy or a reward model.
        prompts: what it reads.
        by: "zero"; "mean", over all tokens of all prompts, those that a tokenizer adds among them; or "resample", the
            activations of another prompt (drawn once, nobody gets its own), at the same positions counted from the
            first token.
        sites: see `activation_patching`, as are the other arguments.
        positions: see there.
        metric: see there; `kl` is to the model itself without ablation.
        batch_size: prompts a pass.
        tokens: most tokens of a pass.
        random_sets: random sets beside each set.
        short_cut: False runs the whole model for each pass.
        seed: seed of the resampling.
        progress: called with patches done and patches in all.
        options: of `Policy.load`.

    Raises:
        As `activation_patching`.
    """
    if by not in ("zero", "mean", "resample"):
        raise MeasureError(f'an ablation is by "zero", "mean" or "resample", not {by!r}')
    prompts = prompts if isinstance(prompts, Prompts) else Prompts(prompts)
    prompts = replace(prompts, corrupted=None)
    if isinstance(model, RewardModel):
        check_no_options(options)
    own = model if isinstance(model, RewardModel) else Policy.load(model, **options)
    if isinstance(own, Policy):
        prompts = prompts.for_models([own.tokenizer])
    read = tokens_of(own, prompts)
    return patch_runs(
        Runs(own, own, read, read, prompts),
        by=by,
        sites=sites,
        positions=positions,
        metric=metric,
        batch_size=batch_size,
        tokens=tokens,
        random_sets=random_sets,
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
    by: Ablation | None = None,
    batch_size: int = 16,
    tokens: int = TOKENS,
    random_sets: int = RANDOM_SETS,
    short_cut: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Patching:
    """`activation_patching` of loaded models (or `ablation`, with `by`)."""
    check_whole(batch_size=batch_size, tokens=tokens)
    check_whole(0, random_sets=random_sets, seed=seed)
    prompts, parts = runs.prompts, runs.recipient.parts
    chosen = resolve_metric(metric, prompts, runs.recipient)
    width = max(map(len, runs.reads.encoder_ids or runs.reads.prompt_ids))
    wanted = interventions(parts, sites, positions, width)
    beside, owners = random_like(parts, wanted, random_sets, seed)
    everything = [*wanted, *beside]
    put = replaced_by(runs, by, everything, batch_size, seed) if by is not None else None
    blocks: list[tuple[np.ndarray, ...]] = []
    for number, (batch, other) in enumerate(runs.batches(batch_size)):
        first = number * batch_size
        block = _one_batch(runs, batch, other, everything, chosen, first, put=put, tokens=tokens, short_cut=short_cut)
        blocks.append(block)
        if progress is not None:
            progress(min(first + batch_size, len(prompts)) * len(everything), len(prompts) * len(everything))
    patched, recipient, source, readout = (np.concatenate(each) for each in zip(*blocks, strict=True))
    check_finite(metric_name(chosen), recipient=recipient, source=source, patched=patched)
    return build(
        runs, wanted, patched, recipient, None if by is not None else source, readout, owners,
        metric=chosen, positions=positions, by=by, seed=seed,
    )  # fmt: skip


def _one_batch(
    runs: Runs,
    batch: Batch,
    other: Batch,
    everything: Sequence[Intervention],
    metric: Metric,
    first: int,
    *,
    put: Callable[[int, Batch], Any] | None,
    tokens: int,
    short_cut: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Patched [prompt, site], recipient, source and readout [prompt]."""
    parts, theirs = runs.recipient.parts, runs.source.parts
    store, final = activations(theirs, other, captured_sites(everything) if put is None else ())
    here, there = readings(
        metric, runs.recipient, runs.source_reader, (batch, other), final, range(first, first + len(final))
    )
    source = there.of_run(runs.source_reader, final)
    recording = record(parts, batch)
    if short_cut and first == 0:
        verify(recording)
    values = values_of(theirs, store) if put is None else put(first, batch)
    patched = sweep(recording, everything, values, here, tokens=tokens, short_cut=short_cut)
    mine, readout = here.of_run(parts, recording.final), here.of_run(runs.source_reader, recording.final)
    return patched.numpy(), mine, source, readout
