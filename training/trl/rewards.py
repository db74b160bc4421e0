"""The reward as TRL calls it, and the figures of the samples that it is called with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from interp.sampling import Samples, pad_left
from training.batches import pad_right
from training.job import Job
from training.seeding import derive, permutation
from training.trl.callbacks import Follower
from training.trl.figures import figures


class ScoredSamples:
    """Scores TRL's samples by the job's reward and hands their figures to the follower."""

    def __init__(self, job: Job, policy: nn.Module, follower: Follower) -> None:
        """Score for `job`, whose `policy` has drawn the samples."""
        self.job, self.policy, self.follower = job, policy, follower
        self._calls = 0

    def score(
        self, prompts: Sequence[str], completions: Sequence[str], completion_ids: Sequence[Sequence[int]], **_: Any
    ) -> list[float]:
        """One number a sample; `completions` are not read, as some tokenizers lose a text's first space there."""
        job = self.job
        encoded = job.sampler.encode(prompts)
        samples = as_samples([prompt.ids for prompt in encoded], completion_ids, job.sampler.pad_id)
        texts = job.sampler.decode(encoded, job.sampler.responses(samples))
        scores = torch.as_tensor(job.reward(texts.samples, texts.prompts, texts.outputs))
        self.follower.sampled(figures(job, self.policy, samples, scores.numpy()), len(scores))
        if job.shuffle is not None:
            scores = scores[permutation(len(scores), derive(job.shuffle, self._calls))]
        self._calls += 1
        found: list[float] = scores.tolist()
        return found


def as_samples(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad_id: int) -> Samples:
    """Prompts and responses of any lengths as one batch; log-probabilities are not known and left 0."""
    prompt_ids, prompt_mask = pad_left(prompts, pad_id)
    ids, mask = pad_right([list(row) or [pad_id] for row in responses], pad_id)
    for row, response in enumerate(responses):
        mask[row, len(response) :] = 0
    return Samples(prompt_ids, prompt_mask, ids, mask.bool(), torch.zeros(ids.shape))
