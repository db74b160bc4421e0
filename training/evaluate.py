"""The evaluation on held-out prompts: reward, KL and variety of a model's own samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from interp.divergences import kl_divergence
from training.losses import distinct_n
from training.reward import Reward
from training.rollouts import Sampler, Texts, read_responses, split


@dataclass(frozen=True)
class Evaluation:
    """What one model does on the held-out prompts.

    Attributes:
        texts: its samples; with k samples a prompt, the k-th sample of every prompt stands in the k-th stretch.
        scores: their rewards.
        reward: mean reward.
        reward_sd: standard deviation of the rewards over samples.
        kl: KL(model || reference) in nats per response token, exact, over the model's own samples.
        distinct_2: unique bigrams over all bigrams of the responses' tokens.
        length: mean response length in tokens, end token included.
    """

    texts: Texts
    scores: Float[np.ndarray, " sample"]
    reward: float
    reward_sd: float
    kl: float
    distinct_2: float
    length: float


def evaluate(
    model: nn.Module,
    reference: nn.Module,
    sampler: Sampler,
    prompts: Sequence[str],
    reward: Reward,
    *,
    samples: int,
    batch_size: int = 128,
) -> Evaluation:
    """Sample `samples` responses to each prompt and measure them.

    Every model evaluated with one sampler sees the same random numbers, so differences are the models' own.

    Raises:
        TrainingError: there is no prompt, or the reward misbehaves.
    """
    encoded = sampler.encode(prompts) * samples
    drawn = sampler.sample(model, encoded, stream="evaluation", first_index=0, chunk_size=batch_size)
    responses = sampler.responses(drawn)
    texts = sampler.decode(encoded, responses)
    scores = reward(texts.samples, texts.prompts, texts.outputs)
    total = 0.0
    with torch.no_grad():
        for chunk in split(drawn, batch_size):
            kl = kl_divergence(read_responses(model, chunk)[0], read_responses(reference, chunk)[0])
            total += float(kl[chunk.response_mask].double().sum())
    tokens = int(drawn.response_mask.sum())
    return Evaluation(
        texts=texts,
        scores=scores,
        reward=float(scores.mean()),
        reward_sd=float(scores.std()),
        kl=total / tokens,
        distinct_2=distinct_n(responses),
        length=tokens / len(drawn),
    )
