"""Activation patching judged by what the model then writes: the reward of sampled continuations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.errors import MeasureError
from interp.families import Parts
from interp.hooks import patch
from interp.measures.arrays import as_variable, strings
from interp.metrics import at_columns
from interp.models import Policy, RewardModel
from interp.models.source import Source
from interp.patching.activation import Progress
from interp.patching.decoding import InStep, can_be_cached
from interp.patching.opening import Runs, open_runs
from interp.patching.recording import run_to_the_last_residual
from interp.patching.result import Patching, build
from interp.patching.rows import edits, writes
from interp.patching.targets import Intervention, Sites, interventions, random_like
from interp.patching.values import activations, captured_sites, values_of
from interp.prompts import Batch, Prompts, make_batch
from interp.sampling import choose, end_ids, uniforms

Scores = Callable[[list[str]], Sequence[float]]
SAMPLES = 16


def reward_patching(
    recipient: Source | Policy,
    source: Source | Policy,
    prompts: Prompts | Sequence[str],
    reward: RewardModel | Scores,
    *,
    sites: Sites,
    positions: Any = "all",
    samples: int = SAMPLES,
    max_new_tokens: int = 24,
    random_sets: int = 0,
    recipient_reads: str | None = None,
    batch_size: int = 128,
    short_cut: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> Patching:
    """Sample continuations from the recipient under each patch and score them.

    At every step the recipient reads its text so far and the source reads the same text, in lockstep; the source's
    activations at all tokens take the place of the recipient's, and the next token is drawn from what comes out.
    With positions="prompt" only the prompt's tokens are patched, and the source reads nothing after them. Each token is
    computed once, with a key-value cache in both; but under patches of k, v and pattern, and in an encoder-decoder,
    each step is one whole pass of both. Sample i at step t uses one random number for recipient, source and every patch
    (see `interp.sampling`), at temperature 1 from the whole distribution, so differences are the patches' doing.

    recovery = sum over prompts of (mean reward patched - recipient) / sum of (source - recipient). The `readout` is
    the recipient's last residual read by the source's final norm and unembedding, at every step.

    Args:
        recipient: the model that is patched, and writes (see `activation_patching`, as for what is not named here).
        source: the model whose activations go in.
        prompts: a `Prompts`, or a list of texts; continuations of theirs are not read.
        reward: a reward model, or a function from texts (prompt and continuation) to numbers.
        sites: see `activation_patching`.
        positions: "all", "prompt", or positions in the prompt: "last", numbers.
        samples: continuations a prompt, at least 1.
        max_new_tokens: longest continuation, in tokens; less where the context ends.
        random_sets: random sets of the same make-up, sampled beside each set of several sites.
        recipient_reads: see there.
        batch_size: continuations a pass.
        short_cut: False runs whole passes at every step; the samples are the same up to rounding.
        seed: of the samples, of random sets and of the resampling.
        progress: called with patches done and patches in all.
        options: of `Policy.load`.

    Returns:
        A `Patching` whose metric is `reward`, averaged over samples; `completion` [prompt, site, sample],
        `recipient_completion` and `source_completion` [prompt, sample] hold the texts.

    Raises:
        MeasureError: a setting is out of its range, or a reward is not finite.
        PromptError: the prompts do not fit.
        LoadError: a model cannot be loaded.
    """
    if samples < 1 or max_new_tokens < 1:
        raise MeasureError(f"samples and max_new_tokens are at least 1, not {samples} and {max_new_tokens}")
    runs = open_runs(recipient, source, prompts, recipient_reads=recipient_reads, **options)
    return reward_runs(
        runs,
        reward,
        sites=sites,
        positions=positions,
        samples=samples,
        max_new_tokens=max_new_tokens,
        random_sets=random_sets,
        batch_size=batch_size,
        short_cut=short_cut,
        seed=seed,
        progress=progress,
    )


def reward_runs(
    runs: Runs,
    reward: RewardModel | Scores,
    *,
    sites: Sites,
    positions: Any = "all",
    samples: int = SAMPLES,
    max_new_tokens: int = 24,
    random_sets: int = 0,
    batch_size: int = 128,
    short_cut: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Patching:
    """`reward_patching` of loaded models."""
    parts, theirs = runs.recipient.parts, runs.source.parts
    width = max(map(len, runs.reads.encoder_ids or runs.reads.prompt_ids))
    wanted = interventions(parts, sites, positions, width)
    beside, owners = random_like(parts, wanted, random_sets, seed)
    steps = _room(runs, max_new_tokens)
    alone = Runs(runs.source, runs.source, runs.source_reads, runs.source_reads, runs.prompts)
    jobs = [_Job(*each, short_cut) for each in ((runs, None, parts), (alone, None, theirs), (runs, None, theirs))]
    jobs += [_Job(runs, each, parts, short_cut) for each in (*wanted, *beside)]
    scores, texts = [], []
    for number, job in enumerate(jobs):
        responses = job.sample(samples, steps, batch_size, seed)
        texts.append(_by_prompt(strings(job.decoded(responses)), samples))
        scores.append(_by_prompt(_scored(reward, job.decoded(responses, whole=True)), samples).mean(1))
        if progress is not None and number > 2:
            progress(number - 2, len(jobs) - 3)
    mine, other, readout = scores[:3]
    found = build(
        runs, wanted, np.stack(scores[3:], axis=1), mine, other, readout, owners,
        metric="reward", positions=positions, by=None, seed=seed,
    )  # fmt: skip
    label = {"long_name": "sampled continuation", "units": ""}
    patched = np.stack(texts[3 : 3 + len(wanted)], axis=1)
    data = found.dataset.assign(
        completion=as_variable(("prompt", "site", "sample"), patched, label),
        recipient_completion=as_variable(("prompt", "sample"), texts[0], label),
        source_completion=as_variable(("prompt", "sample"), texts[1], label),
    )
    return Patching(data.assign_attrs(samples=samples, max_new_tokens=steps, units=_units(reward)))


@dataclass(frozen=True)
class _Job:
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

    def sample(self, samples: int, steps: int, batch_size: int, seed: int) -> list[list[int]]:
        """Continuations, the first sample of every prompt first."""
        rows = list(range(samples * len(self.runs.reads)))
        found: list[list[int]] = []
        for start in range(0, len(rows), batch_size):
            found += self._sample(rows[start : start + batch_size], steps, seed)
        return found

    def _sample(self, rows: list[int], steps: int, seed: int) -> list[list[int]]:
        policy = self.runs.recipient
        ends = set(end_ids(policy.model, policy.tokenizer))
        points = torch.from_numpy(uniforms(seed, rows, steps)).to(policy.device)
        numbers = [row % len(self.runs.reads) for row in rows]
        cached = self.short_cut and can_be_cached(policy.parts, self.patched)
        both = InStep(self.runs, numbers, self.patched) if cached else None
        responses: list[list[int]] = [[] for _ in rows]
        alive = list(range(len(rows)))
        for step in range(steps):
            if both is None:
                logits = self._logits(*self._batches([numbers[each] for each in alive], [responses[i] for i in alive]))
            else:
                tokens = torch.tensor([said[-1] for said in responses]) if step else None
                logits = self.reader.logits(both.read(tokens)[alive])
            drawn = choose(logits.to(points.device), points[alive, step], 1.0, 0, 1.0).tolist()
            for each, token in zip(alive, drawn, strict=True):
                responses[each].append(token)
            alive = [each for each, token in zip(alive, drawn, strict=True) if token not in ends]
            if not alive:
                break
        return responses

    def _batches(self, numbers: list[int], said: list[list[int]]) -> tuple[Batch, Batch]:
        found = []
        for reads, policy in ((self.runs.reads, self.runs.recipient), (self.runs.source_reads, self.runs.source)):
            encoder = None if reads.encoder_ids is None else [reads.encoder_ids[each] for each in numbers]
            batch = make_batch([reads.prompt_ids[each] for each in numbers], said, encoder=encoder)
            found.append(batch.to(policy.device))
        return found[0], found[1]

    def _logits(self, batch: Batch, other: Batch) -> Tensor:
        """Logits of the next token."""
        parts, change = self.runs.recipient.parts, {}
        if self.patched is not None:
            store, _ = activations(self.runs.source.parts, other, captured_sites([self.patched]))
            change = edits(writes([self.patched], batch, values_of(self.runs.source.parts, store)))
        with patch(parts, change):
            final, _ = run_to_the_last_residual(parts, batch)
        last = (batch.first + batch.lengths - 1)[:, None]
        return self.reader.logits(at_columns(final, last)[:, 0])

    def decoded(self, responses: list[list[int]], *, whole: bool = False) -> list[str]:
        """Continuations as text, with `whole` what was read before them too."""
        reads, tokenizer = self.runs.reads, self.runs.recipient.tokenizer
        texts = []
        for row, ids in enumerate(responses):
            number = row % len(reads)
            encoder = () if reads.encoder_ids is None else reads.encoder_ids[number]
            before = (*encoder, *reads.prompt_ids[number]) if whole else ()
            texts.append(tokenizer.decode([*before, *ids], skip_special_tokens=True))
        return texts


def _room(runs: Runs, wanted: int) -> int:
    longest = max(map(len, runs.reads.prompt_ids))
    limits = [p.context_length for p in (runs.recipient, runs.source) if p.context_length is not None]
    room = min([wanted, *(limit - longest for limit in limits)])
    if room < 1:
        raise MeasureError(f"a prompt of {longest} tokens leaves no room for a continuation; shorten the prompts")
    return room


def _scored(reward: RewardModel | Scores, texts: list[str]) -> np.ndarray:
    values = reward.score(texts) if isinstance(reward, RewardModel) else reward(texts)
    scores = np.asarray(values, dtype=np.float64)
    if scores.shape != (len(texts),) or not np.isfinite(scores).all():
        raise MeasureError(
            f"the reward gave an array of shape {scores.shape} for {len(texts)} texts, or a number that is not finite;"
            " return one finite number a text"
        )
    return scores


def _units(reward: RewardModel | Scores) -> str:
    if not isinstance(reward, RewardModel):
        return "reward"
    return "logits" if reward.output == "logit" else "probability"


def _by_prompt(values: np.ndarray, samples: int) -> np.ndarray:
    """From rows, the first sample of every prompt first, to [prompt, sample]."""
    return values.reshape(samples, -1).T
