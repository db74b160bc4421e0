"""A pair to play with: completions of base and tuned side by side, with their rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from interp.models import Policy
from interp.models.pretrained import adapter_folder
from interp.pair import CheckpointPair
from training.config import GenerateConfig
from training.reward import Reward
from training.rollouts import Sampler


@dataclass(frozen=True)
class Completion:
    """What one model made of a prompt, and the reward of it, None where there is no reward."""

    text: str
    reward: float | None


@dataclass(frozen=True)
class Exchange:
    """Completions of one prompt: number i of base and of tuned are drawn with the same random numbers."""

    prompt: str
    base: tuple[Completion, ...]
    tuned: tuple[Completion, ...]


@dataclass(frozen=True)
class Playground:
    """Both models of a pair in memory, and how they are sampled."""

    base: Policy
    tuned: Policy
    sampler: Sampler
    reward: Reward | None
    samples: int

    @classmethod
    def load(
        cls,
        pair: CheckpointPair,
        reward: Reward | None,
        *,
        samples: int = 2,
        seed: int = 0,
        max_new_tokens: int | None = None,
        temperature: float | int | None = None,
        device: torch.device | str | None = None,
    ) -> Playground:
        """Load a pair's models.

        Args:
            pair: the pair.
            reward: what scores the completions; None scores none.
            samples: completions of each model.
            seed: seed of the samples.
            max_new_tokens: most tokens in a completion; None: as the pair was trained.
            temperature: divides the logits, 0 takes the likeliest token; None: as the pair was trained.
            device: device; None is the CPU.

        Raises:
            InterpError: a model cannot be loaded.
        """
        base = Policy.load(pair.base, device=device, check=False)
        on_base: dict[str, Any] = {"base": base} if adapter_folder(pair.tuned) is not None else {}
        tuned = Policy.load(pair.tuned, device=device, check=False, **on_base)
        trained: dict[str, Any] = dict(pair.manifest["config"].get("generate", {}))
        own = {"max_new_tokens": max_new_tokens, "temperature": temperature}
        known = GenerateConfig.__dataclass_fields__
        settings = {name: value for name, value in trained.items() if name in known}
        generate = GenerateConfig(**settings | {name: value for name, value in own.items() if value is not None})
        return cls(base, tuned, Sampler(base.model, base.tokenizer, generate, seed), reward, samples)

    def complete(self, prompt: str, *, first_index: int = 0) -> Exchange:
        """Complete one prompt with both models.

        Args:
            prompt: the text to go on with.
            first_index: index of the first sample: the same one draws the same numbers again.

        Raises:
            TrainingError: the prompt has no tokens, or the reward misbehaves.
            InterpError: it does not fit into the models' context.
        """
        encoded = self.sampler.encode([prompt]) * self.samples
        both = []
        for policy in (self.base, self.tuned):
            drawn = self.sampler.sample(
                policy.model, encoded, stream="play", first_index=first_index, chunk_size=self.samples
            )
            texts = self.sampler.decode(encoded, self.sampler.responses(drawn))
            scores: list[float | None] = [None] * self.samples
            if self.reward is not None:
                scores = list(self.reward(texts.samples, texts.prompts, texts.outputs).tolist())
            both.append(tuple(Completion(text, score) for text, score in zip(texts.outputs, scores, strict=True)))
        return Exchange(prompt, *both)
