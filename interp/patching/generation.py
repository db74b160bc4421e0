"""Activation patching judged by what the model then writes: the reward of sampled continuations.

Recipient and source read one growing text in step, each with its key-value cache. What a causal model computed at a
token does not change when more tokens follow, nor does it under a patch: that takes the place of what there is at its
token, and later tokens read it through the cache. So each token is computed once. The cache keeps keys and values as
they were before a patch of k or v, and a pattern is over all keys at once: where these are patched, and in an
encoder-decoder, whole texts must be read at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import MeasureError, renamed
from interp.families import Parts
from interp.hooks import Edit, Site, capture, patch
from interp.measures.arrays import as_variable, strings
from interp.metrics import Reward, at_columns, call_reward, check_whole, resolve_reward, reward_units
from interp.models import Policy, Source
from interp.models.running import inference
from interp.patching.recording import (
    activations,
    captured_sites,
    run_to_the_last_residual,
    substitutions,
    values_of,
)
from interp.patching.result import Patching, build
from interp.patching.runs import LOADING, Runs, open_runs
from interp.patching.targets import Intervention, Sites, interventions, random_like
from interp.progress import Progress, no_progress
from interp.prompts import Batch, Prompts, TokenizedPrompts, make_batch, response_texts
from interp.sampling import Sampling, cache_of, choose, continuing, end_ids, uniforms

SAMPLES = 16
"""Continuations a prompt where `Sampling` leaves their number open."""


@renamed(
    **LOADING,
    random_sets="it is draws=",
    samples="pass sampling=Sampling(samples=...)",
    max_new_tokens="pass sampling=Sampling(max_new_tokens=...)",
    short_cut="pass it to patching.reward_runs",
)
def reward_patching(
    recipient: Source | Policy,
    source: Source | Policy,
    prompts: Prompts | Sequence[str],
    reward: Reward | Source,
    *,
    sites: Sites,
    positions: Any = "all",
    sampling: Sampling = Sampling(),
    draws: int = 0,
    recipient_reads: str | None = None,
    batch_size: int = 128,
    seed: int = 0,
    progress: Progress | None = None,
) -> Patching:
    """Sample continuations from the recipient under each patch and score them.

    At every step the recipient reads its text so far and the source reads the same text, in lockstep; the source's
    activations at all tokens take the place of the recipient's, and the next token is drawn from what comes out.
    With positions="prompt" only the prompt's tokens are patched, and the source reads nothing after them. Each token is
    computed once, with a key-value cache in both; but under patches of k, v and pattern, and in an encoder-decoder,
    each step is one whole pass of both. Sample i at step t uses one random number for recipient, source and every patch
    (see `interp.sampling`), so differences are the patches' doing.

    recovery = sum over prompts of (mean reward patched - recipient) / sum of (source - recipient). The `readout` is
    the recipient's last residual read by the source's final norm and unembedding, at every step.

    Args:
        recipient: the model that is patched, and writes (see `activation_patching`, as for what is not named here).
        source: the model whose activations go in.
        prompts: a `Prompts`, or a list of texts; continuations of theirs are not read.
        reward: a reward model, what one is loaded from, or a function that is called as trlX calls it,
            f(samples=[prompt and continuation ...], prompts=[...], outputs=[...]), and returns one number a sample.
        sites: see `activation_patching`.
        positions: "all", "prompt", or positions in the prompt: "last", numbers.
        sampling: how continuations are drawn, by default 16 a prompt; they are shorter where the context ends.
        draws: random sets of the same make-up, sampled beside each set of several sites.
        recipient_reads: see there.
        batch_size: continuations a pass.
        seed: of the samples, of random sets and of the resampling.
        progress: told of the "patches" sampled under.

    Returns:
        A `Patching` whose metric is `reward`, averaged over samples; `completion` [prompt, site, sample],
        `recipient_completion` and `source_completion` [prompt, sample] hold the texts.

    Raises:
        MeasureError: a setting is out of its range, or a reward is not finite.
        PromptError: the prompts do not fit.
        LoadError: a model cannot be loaded.
    """
    return reward_runs(
        open_runs(recipient, source, prompts, recipient_reads=recipient_reads),
        resolve_reward(reward),
        sites=sites,
        positions=positions,
        sampling=sampling,
        draws=draws,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )


def reward_runs(
    runs: Runs,
    reward: Reward,
    *,
    sites: Sites,
    positions: Any = "all",
    sampling: Sampling = Sampling(),
    draws: int = 0,
    batch_size: int = 128,
    short_cut: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Patching:
    """`reward_patching` of runs that are open (`open_runs`), whose other arguments are the same.

    `short_cut=False` runs whole passes at every step; the samples are the same up to rounding.
    """
    check_whole(batch_size=batch_size)
    check_whole(0, draws=draws, seed=seed)
    parts, theirs, tell = runs.recipient.parts, runs.source.parts, progress or no_progress
    wanted = interventions(parts, sites, positions, runs.width)
    beside, owners = random_like(parts, wanted, draws, seed)
    samples, steps = sampling.samples or SAMPLES, _room(runs, sampling.max_new_tokens)
    alone = Runs(runs.source, runs.source, runs.source_reads, runs.source_reads, runs.prompts)
    writers = [_Writer(runs, None, parts), _Writer(alone, None, theirs), _Writer(runs, None, theirs)]
    writers += [_Writer(runs, patched, parts, short_cut) for patched in (*wanted, *beside)]
    scores, texts = [], []
    for index, writer in enumerate(writers):
        responses = writer.write(samples, steps, sampling, batch_size, seed)
        whole, heads, outputs = writer.texts(responses)
        texts.append(_by_prompt(strings(outputs), samples))
        scores.append(_by_prompt(call_reward(reward, whole, heads, outputs), samples).mean(1))
        tell("patches", max(0, index - 2), len(writers) - 3)
    recipient, source, readout = scores[:3]
    result = build(
        runs, wanted, np.stack(scores[3:], axis=1), recipient, source, readout, owners,
        metric="reward", positions=positions, by=None, seed=seed,
    )  # fmt: skip
    label = {"long_name": "sampled continuation", "units": ""}
    patched_texts = np.stack(texts[3 : 3 + len(wanted)], axis=1)
    data = result.dataset.assign(
        completion=as_variable(("prompt", "site", "sample"), patched_texts, label),
        recipient_completion=as_variable(("prompt", "sample"), texts[0], label),
        source_completion=as_variable(("prompt", "sample"), texts[1], label),
    )
    return Patching(data.assign_attrs(samples=samples, max_new_tokens=steps, units=reward_units(reward)))


@dataclass(frozen=True)
class _Writer:
    """Who writes, under which patch, and whose head reads.

    Attributes:
        runs: recipient and source; the recipient writes.
        patched: what is patched, or None.
        reader: the model whose final norm and unembedding read the recipient's last residual.
        short_cut: compute each token once, where that can be.
    """

    runs: Runs
    patched: Intervention | None
    reader: Parts
    short_cut: bool = True

    def write(self, samples: int, steps: int, sampling: Sampling, batch_size: int, seed: int) -> list[list[int]]:
        """Continuations, the first sample of every prompt first."""
        rows = list(range(samples * len(self.runs)))
        responses: list[list[int]] = []
        for start in range(0, len(rows), batch_size):
            responses += self._write(rows[start : start + batch_size], steps, sampling, seed)
        return responses

    def _write(self, rows: list[int], steps: int, sampling: Sampling, seed: int) -> list[list[int]]:
        policy = self.runs.recipient
        ends = set(end_ids(policy.model, policy.tokenizer))
        points = torch.from_numpy(uniforms(seed, rows, steps)).to(policy.device)
        numbers = [row % len(self.runs) for row in rows]
        cached = self.short_cut and can_be_cached(policy.parts, self.patched)
        both = InStep(self.runs, numbers, self.patched) if cached else None
        responses: list[list[int]] = [[] for _ in rows]
        alive = list(range(len(rows)))
        for step in range(steps):
            if both is None:
                batches = self._batches([numbers[row] for row in alive], [responses[row] for row in alive])
                logits = self._logits(*batches)
            else:
                tokens = torch.tensor([response[-1] for response in responses]) if step else None
                logits = self.reader.logits(both.read(tokens)[alive])
            how = sampling.temperature, sampling.top_k, sampling.top_p
            drawn = choose(logits.to(points.device), points[alive, step], *how).tolist()
            for row, token in zip(alive, drawn, strict=True):
                responses[row].append(token)
            alive = [row for row, token in zip(alive, drawn, strict=True) if token not in ends]
            if not alive:
                break
        return responses

    def _batches(self, numbers: list[int], responses: list[list[int]]) -> tuple[Batch, Batch]:
        batches = []
        for reads, policy in ((self.runs.reads, self.runs.recipient), (self.runs.source_reads, self.runs.source)):
            encoder = None if reads.encoder_ids is None else [reads.encoder_ids[number] for number in numbers]
            batch = make_batch([reads.prompt_ids[number] for number in numbers], responses, encoder=encoder)
            batches.append(batch.to(policy.device))
        return batches[0], batches[1]

    def _logits(self, batch: Batch, other: Batch) -> Tensor:
        """Logits of the next token."""
        parts, edits = self.runs.recipient.parts, {}
        if self.patched is not None:
            store, _ = activations(self.runs.source.parts, other, captured_sites([self.patched]))
            edits = substitutions([self.patched], batch, values_of(self.runs.source.parts, store))
        with patch(parts, edits):
            final, _ = run_to_the_last_residual(parts, batch)
        last = (batch.first + batch.lengths - 1)[:, None]
        return self.reader.logits(at_columns(final, last)[:, 0])

    def texts(self, responses: list[list[int]]) -> tuple[list[str], list[str], list[str]]:
        """Prompts with their continuations, prompts, and continuations, as a reward reads them."""
        reads = self.runs.reads
        numbers = [row % len(reads) for row in range(len(responses))]
        encoder = reads.encoder_ids or [()] * len(reads)
        before = [[*encoder[number], *reads.prompt_ids[number]] for number in numbers]
        return response_texts(self.runs.recipient.tokenizer, before, responses)


def _room(runs: Runs, wanted: int) -> int:
    longest = max(map(len, runs.reads.prompt_ids))
    limits = [p.context_length for p in (runs.recipient, runs.source) if p.context_length is not None]
    room = min([wanted, *(limit - longest for limit in limits)])
    if room < 1:
        raise MeasureError(f"a prompt of {longest} tokens leaves no room for a continuation; shorten the prompts")
    return room


def _by_prompt(values: np.ndarray, samples: int) -> np.ndarray:
    """From rows, the first sample of every prompt first, to [prompt, sample]."""
    return values.reshape(samples, -1).T


NOT_CACHED = ("k", "v", "pattern")


def can_be_cached(parts: Parts, patched: Intervention | None) -> bool:
    """Whether a patch leaves what earlier tokens put into the cache as it is."""
    if parts.family.encoder is not None or not parts.family.causal:
        return False
    return patched is None or all(target.site.name not in NOT_CACHED for target in patched.targets)


class Stream:
    """One model's reading of a batch, padded on the left, that grows by a token a row.

    Args:
        parts: a causal model.
        batch: what it reads first.
    """

    def __init__(self, parts: Parts, batch: Batch) -> None:
        self.parts, self.batch = parts, batch
        self._ids, self._mask, self._positions = batch.input_ids, batch.attention_mask, batch.position_ids
        self._cache: Any = None

    def read(
        self, sites: Sequence[Site] = (), changes: dict[Site, Edit] | None = None
    ) -> tuple[Float[Tensor, "row d_model"], dict[Site, Tensor]]:
        """Read what has not been read yet, under `changes`: the last residual of the last token, and activations."""
        parts = self.parts
        final = Site("resid_post", parts.n_layers - 1)
        inputs: dict[str, Any] = {"input_ids": self._ids, "attention_mask": self._mask.long()}
        if parts.takes_positions:
            inputs["position_ids"] = self._positions + parts.family.position_offset(parts.model.config)
        with inference(parts.model), patch(parts, changes or {}), capture(parts, {*sites, final}) as store:
            output = parts.backbone(**inputs, **continuing(parts.backbone, self._cache))
        self._cache = cache_of(output)
        return store[final][:, -1], {site: store[site] for site in sites}

    def append(self, tokens: Int[Tensor, " row"]) -> None:
        """Give every row its next token."""
        self._ids = tokens.to(self._ids.device)[:, None]
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)
        self._positions = self._positions[:, -1:] + 1


class InStep:
    """Recipient, and where something is patched the source, reading the same text in step.

    Args:
        runs: the two.
        numbers: for each row its prompt.
        patched: what is patched, or None.
    """

    def __init__(self, runs: Runs, numbers: Sequence[int], patched: Intervention | None) -> None:
        self._patched = patched
        self._recipient = Stream(runs.recipient.parts, _left(runs.reads, numbers).to(runs.recipient.device))
        self._source: Stream | None = None
        if patched is not None:
            self._source = Stream(runs.source.parts, _left(runs.source_reads, numbers).to(runs.source.device))

    def read(self, tokens: Int[Tensor, " row"] | None) -> Float[Tensor, "row d_model"]:
        """The recipient's last residual at the last token, once both have read `tokens` too; None: the prompts alone.

        A position other than "all" is one of the prompt, so that what follows it is not patched.
        """
        if tokens is not None:
            for stream in (self._recipient, self._source):
                if stream is not None:
                    stream.append(tokens)
        changes: dict[Site, Edit] = {}
        if (
            self._patched is not None
            and self._source is not None
            and (tokens is None or self._patched.position == "all")
        ):
            _, store = self._source.read(captured_sites([self._patched]))
            values = values_of(self._source.parts, store)
            changes = substitutions([self._patched], self._recipient.batch, values)
        return self._recipient.read((), changes)[0]


def _left(reads: TokenizedPrompts, numbers: Sequence[int]) -> Batch:
    return make_batch([reads.prompt_ids[number] for number in numbers], padding_side="left")
