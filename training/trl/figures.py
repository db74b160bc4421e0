"""KL and the other figures of samples, measured as for every other engine."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from interp.sampling import Samples, evaluating
from training.job import Job
from training.losses import distinct_n, masked_mean
from training.rollouts import compared, read_responses, split

PROBES = 64
"""Most prompts on whose samples KL is measured before the first step."""


def measured_kl(job: Job, policy: nn.Module) -> float:
    """KL(policy || base) over the policy's own samples, exact, in nats per response token."""
    prompts = job.sampler.encode(job.prompts[:PROBES])
    with evaluating(policy):
        drawn = job.sampler.sample(policy, prompts, stream="step 0", first_index=0, chunk_size=len(prompts))
        return float(masked_mean(exact(job, policy, drawn)["kl"], drawn.response_mask))


def exact(job: Job, policy: nn.Module, samples: Samples, size: int = 64) -> dict[str, Any]:
    """KL and entropy at each response token (see `training.rollouts.compared`)."""
    parts = []
    with torch.no_grad(), evaluating(policy):
        for chunk in split(samples, size):
            logits, reference = (read_responses(model, chunk)[0] for model in (policy, job.base))
            parts.append(compared(logits, reference, chunk.response_ids, chunk.response_mask))
    return {name: torch.cat([part[name] for part in parts]) for name in ("kl", "entropy")}


def figures(job: Job, policy: nn.Module, samples: Samples, scores: Any) -> dict[str, float]:
    """The figures of one batch of samples, as every engine gives them."""
    found, mask = exact(job, policy, samples), samples.response_mask
    return {
        "reward_mean": float(scores.mean()),
        "reward_std": float(scores.std()),
        "kl": float(masked_mean(found["kl"], mask)),
        "entropy": float(masked_mean(found["entropy"], mask)),
        "length": float(mask.sum(dim=1).float().mean()),
        "distinct_2": distinct_n(job.sampler.responses(samples)),
    }
