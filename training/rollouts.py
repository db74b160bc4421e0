"""Rollouts: responses sampled from the policy, scored, and read by policy and reference alike.

The ids that were generated are the ids that are read: nothing is tokenised again. Only the reward sees text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.divergences import kl_divergence
from interp.errors import TrainingError
from interp.prompts import positions
from interp.sampling import Samples, accepted, concatenate, end_ids, full_sequences, sample
from training.config import GenerateConfig
from training.losses import entropy, logprobs_of
from training.reward import Reward
from training.seeding import derive, permutation, seeded


class ValueHead(nn.Module):
    """The expected return from a hidden state: two linear layers with a ReLU between them, as trlX has it.

    The last layer starts at zero, so that the first values are 0 and not noise.
    """

    def __init__(self, d_model: int, seed: int) -> None:
        """Make the head for hidden states of size `d_model`."""
        super().__init__()
        with seeded(seed):
            self.hidden = nn.Linear(d_model, 2 * d_model)
            self.out = nn.Linear(2 * d_model, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, states: Float[Tensor, "sample step d_model"]) -> Float[Tensor, "sample step"]:
        """Value of each state, in units of reward."""
        return self.out(torch.relu(self.hidden(states.float()))).squeeze(-1)


@dataclass(frozen=True)
class Texts:
    """Samples as text: prompt and response together, the prompt, the response; special tokens left out."""

    samples: list[str]
    prompts: list[str]
    outputs: list[str]


@dataclass(frozen=True)
class Prompt:
    """A prompt as text and as the ids that the policy reads."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Rollouts:
    """What one round of updates learns from; of what is masked nothing is used.

    Attributes:
        samples: the tokens.
        texts: the same as text.
        scores: reward of each sample, as it was given.
        logprobs: of the sampled tokens under the policy that sampled them, nats.
        reference_logprobs: the same under the reference.
        values: value head at each token's state, before the token.
        kl: KL(policy || reference) at each token, exact, nats.
        entropy: of the policy at each token, nats.
    """

    samples: Samples
    texts: Texts
    scores: Float[Tensor, " sample"]
    logprobs: Float[Tensor, "sample step"]
    reference_logprobs: Float[Tensor, "sample step"]
    values: Float[Tensor, "sample step"]
    kl: Float[Tensor, "sample step"]
    entropy: Float[Tensor, "sample step"]


class Sampler:
    """Samples from any model with one run's settings, tokenizer and seed."""

    def __init__(self, model: nn.Module, tokenizer: Any, config: GenerateConfig, seed: int) -> None:
        """Take end and padding tokens from `model` and `tokenizer`."""
        self.tokenizer, self.config, self.seed = tokenizer, config, seed
        self.end_ids = end_ids(model, tokenizer)
        pad = tokenizer.pad_token_id
        # The mask says what is real, so any token serves where the tokenizer has no padding.
        self.pad_id = int(pad if pad is not None else (self.end_ids or (0,))[0])

    def encode(self, texts: Sequence[str]) -> list[Prompt]:
        """Prompts with the tokenizer's own habit as to a beginning-of-text token.

        Raises:
            TrainingError: there is no prompt, or one has no tokens.
        """
        if not texts:
            raise TrainingError("training needs prompts, the list is empty; give it at least one")
        prompts = [Prompt(text, tuple(self.tokenizer(text)["input_ids"])) for text in texts]
        empty = [prompt.text for prompt in prompts if not prompt.ids]
        if empty:
            raise TrainingError(f"the prompt {empty[0]!r} has no tokens; give it a word")
        return prompts

    def sample(
        self, model: nn.Module, prompts: Sequence[Prompt], *, stream: str, first_index: int, chunk_size: int
    ) -> Samples:
        """One response to each prompt.

        Args:
            model: what samples.
            prompts: prompts.
            stream: names the run's part that these samples belong to; each has random numbers of its own.
            first_index: index of the first sample in that part.
            chunk_size: samples drawn at a time.
        """
        parts = [
            sample(
                model,
                [prompt.ids for prompt in prompts[start : start + chunk_size]],
                max_new_tokens=self.config.max_new_tokens,
                seed=derive(self.seed, "sampling", stream),
                first_index=first_index + start,
                temperature=self.config.temperature,
                top_k=self.config.top_k,
                top_p=self.config.top_p,
                end_ids=self.end_ids,
                pad_id=self.pad_id,
            )
            for start in range(0, len(prompts), chunk_size)
        ]
        return concatenate(parts, self.pad_id)

    def responses(self, samples: Samples) -> list[list[int]]:
        """Ids of each response without the end token and what follows it."""
        rows = zip(samples.response_ids.tolist(), samples.response_mask.tolist(), strict=True)
        kept = [[token for token, real in zip(ids, mask, strict=True) if real] for ids, mask in rows]
        return [ids[:-1] if ids and ids[-1] in self.end_ids else ids for ids in kept]

    def decode(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[int]]) -> Texts:
        """Samples as text. Prompt and response are decoded together: some tokenizers drop a text's first space."""
        pairs = list(zip(prompts, responses, strict=True))
        whole = self._decode([[*prompt.ids, *ids] for prompt, ids in pairs])
        heads = self._decode([list(prompt.ids) for prompt in prompts])
        alone = self._decode([list(ids) for _, ids in pairs])
        outputs = [
            text[len(head) :] if text.startswith(head) else rest
            for text, head, rest in zip(whole, heads, alone, strict=True)
        ]
        return Texts(whole, [prompt.text for prompt in prompts], outputs)

    def _decode(self, rows: list[list[int]]) -> list[str]:
        options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        return [self.tokenizer.decode(ids, **options) for ids in rows]


def read_responses(
    model: nn.Module, samples: Samples, value_head: ValueHead | None = None
) -> tuple[Float[Tensor, "sample step vocab"], Float[Tensor, "sample step"] | None]:
    """Logits that each response token was drawn from, and the value of the state before it."""
    ids, mask = full_sequences(samples)
    steps = samples.response_ids.shape[1]
    # The last column is read too and dropped: its logits belong to the token after the response.
    extra = accepted(model, position_ids=positions(mask), logits_to_keep=steps + 1)
    output = model(
        input_ids=ids,
        attention_mask=mask.long(),
        use_cache=False,
        output_hidden_states=value_head is not None,
        return_dict=True,
        **extra,
    )
    logits = output.logits[:, -(steps + 1) : -1]
    return logits, value_head(output.hidden_states[-1][:, -(steps + 1) : -1]) if value_head is not None else None


def collect(
    model: nn.Module,
    value_head: ValueHead,
    reference: nn.Module,
    sampler: Sampler,
    prompts: Sequence[Prompt],
    reward: Reward,
    *,
    first_index: int,
    chunk_size: int,
) -> Rollouts:
    """Sample, score and read one round of rollouts.

    Raises:
        TrainingError: the reward misbehaves (see `Reward`).
    """
    samples = sampler.sample(model, prompts, stream="rollouts", first_index=first_index, chunk_size=chunk_size)
    texts = sampler.decode(prompts, sampler.responses(samples))
    scores = reward(texts.samples, texts.prompts, texts.outputs)
    columns: dict[str, list[Tensor]] = {n: [] for n in ("logprobs", "reference_logprobs", "values", "kl", "entropy")}
    with torch.no_grad():
        for chunk in split(samples, chunk_size):
            logits, values = read_responses(model, chunk, value_head)
            reference_logits, _ = read_responses(reference, chunk)
            columns["logprobs"].append(logprobs_of(logits, chunk.response_ids))
            columns["reference_logprobs"].append(logprobs_of(reference_logits, chunk.response_ids))
            columns["kl"].append(kl_divergence(logits, reference_logits))
            columns["entropy"].append(entropy(logits))
            assert values is not None
            columns["values"].append(values)
    device = samples.response_ids.device
    joined = {name: torch.cat(parts) for name, parts in columns.items()}
    return Rollouts(samples, texts, torch.as_tensor(scores, dtype=torch.float32, device=device), **joined)


def take(samples: Samples, rows: Tensor | slice) -> Samples:
    """Some of the samples."""
    return Samples(
        samples.prompt_ids[rows],
        samples.prompt_mask[rows],
        samples.response_ids[rows],
        samples.response_mask[rows],
        samples.logprobs[rows],
    )


def split(samples: Samples, size: int) -> Iterator[Samples]:
    """Chunks of at most `size` samples."""
    for start in range(0, len(samples), size):
        yield take(samples, slice(start, start + size))


def prompt_stream(prompts: Sequence[Prompt], seed: int) -> Iterator[Prompt]:
    """Prompts without end: each pass takes every prompt once, in a new random order."""
    turn = 0
    while True:
        for index in permutation(len(prompts), derive(seed, "prompt order", turn)):
            yield prompts[index]
        turn += 1


class RewardScaler:
    """Scores as PPO uses them: divided by a standard deviation if so configured, then clipped."""

    def __init__(self, mode: str, limit: float) -> None:
        """`mode` is none, running (all scores so far) or ref (the first round); `limit` is in scaled units."""
        self.mode, self.limit = mode, limit
        self._seen: list[float] = []
        self._first: float | None = None

    def __call__(self, scores: Float[Tensor, " sample"]) -> Float[Tensor, " sample"]:
        """Scaled and clipped scores.

        Raises:
            TrainingError: all scores are equal, so that there is no scale.
        """
        if self.mode != "none":
            self._seen += scores.tolist()
            spread = float(np.std(self._seen))
            if self._first is None:
                self._first = spread
            spread = spread if self.mode == "running" else self._first
            if spread == 0:
                raise TrainingError('the reward is constant, ppo.scale_reward has no scale; set it to "none"')
            scores = scores / spread
        return scores.clamp(-self.limit, self.limit)
