"""Rollouts: responses sampled from the policy, scored, and read by policy and reference alike.

The ids that were generated are the ids that are read: nothing is tokenised again. Only the reward sees text. What the
policy computes while it samples is kept (logits and last hidden states), so that it reads its own samples only once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.divergences import entropy_of_log_probs, kl_of_log_probs, log_probs
from interp.errors import TrainingError
from interp.prompts import positions
from interp.sampling import Samples, accepted, concatenate, end_ids, full_sequences, plain, sample
from training.config import GenerateConfig
from training.reward import Reward
from training.seeding import derive, permutation, seeded

_BLOCK = 2**21
"""Numbers in a block of rows while distributions are compared: bounds the memory of a large vocabulary."""


class ValueHead(nn.Module):
    """The expected return from a hidden state: two linear layers with a ReLU between them, as trlX has it.

    The last layer starts at zero, so that the first values are 0 and not noise. It computes in float32 always.
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
        with torch.autocast(states.device.type, enabled=False):
            return self.out(torch.relu(self.hidden(states.float()))).squeeze(-1)


@dataclass(frozen=True)
class Texts:
    """Samples as text: prompt and response together, the prompt, the response; special tokens left out."""

    samples: list[str]
    prompts: list[str]
    outputs: list[str]


@dataclass(frozen=True)
class Prompt:
    """A prompt as text and as the ids that the policy reads, of an encoder-decoder model its encoder."""

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
        self.end_ids = () if config.ignore_end else end_ids(model, tokenizer)
        pad = tokenizer.pad_token_id
        # The mask says what is real, so any token serves where the tokenizer has no padding.
        self.pad_id = int(pad if pad is not None else (self.end_ids or (0,))[0])
        self.start = _decoder_start(model)

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
            self.draw(model, prompts[start : start + chunk_size], stream=stream, first_index=first_index + start)
            for start in range(0, len(prompts), chunk_size)
        ]
        return concatenate(parts, self.pad_id)

    def draw(
        self, model: nn.Module, prompts: Sequence[Prompt], *, stream: str, first_index: int, each_step: Any = None
    ) -> Samples:
        """One response to each prompt, all in one batch (see `sample`; `each_step` is `interp.sampling.sample`'s)."""
        texts = [prompt.ids for prompt in prompts]
        return sample(
            model,
            texts if self.start is None else [(self.start,)] * len(texts),
            encoder=None if self.start is None else texts,
            max_new_tokens=self.config.max_new_tokens,
            seed=derive(self.seed, "sampling", stream),
            first_index=first_index,
            temperature=self.config.temperature,
            top_k=self.config.top_k,
            top_p=self.config.top_p,
            end_ids=self.end_ids,
            pad_id=self.pad_id,
            each_step=each_step,
        )

    def responses(self, samples: Samples) -> list[list[int]]:
        """Ids of each response without the end token and what follows it."""
        rows = zip(samples.response_ids.tolist(), samples.response_mask.tolist(), strict=True)
        kept = [[token for token, real in zip(ids, mask, strict=True) if real] for ids, mask in rows]
        return [ids[:-1] if ids and ids[-1] in self.end_ids else ids for ids in kept]

    def decode(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[int]]) -> Texts:
        """Samples as text.

        Prompt and response are decoded together: some tokenizers drop a text's first space. An encoder-decoder model's
        response is a text of its own; a space stands between the two then.
        """
        if self.start is not None:
            said = self._decode([list(ids) for ids in responses])
            asked = [prompt.text for prompt in prompts]
            return Texts([f"{prompt} {text}" for prompt, text in zip(asked, said, strict=True)], asked, said)
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


def _decoder_start(model: Any) -> int | None:
    """The token that an encoder-decoder model's decoder begins with; None for other models.

    Raises:
        TrainingError: the model does not say which it is.
    """
    if not getattr(model.config, "is_encoder_decoder", False):
        return None
    for holder in (getattr(model, "generation_config", None), model.config):
        found = getattr(holder, "decoder_start_token_id", None)
        if found is not None:
            return int(found)
    raise TrainingError(f"{type(model).__name__} names no decoder_start_token_id; set it in the base's config.json")


@contextlib.contextmanager
def last_states(model: nn.Module) -> Iterator[list[Float[Tensor, "sample pos d_model"]]]:
    """Within the block, what each forward of the (only or second) stack of blocks ends with goes into the list."""
    inner: Any = plain(model)
    kept: list[Tensor] = []
    handle = inner.get_decoder().register_forward_hook(lambda module, inputs, output: kept.append(output[0]))
    try:
        yield kept
    finally:
        handle.remove()


def read_responses(
    model: nn.Module, samples: Samples, value_head: nn.Module | None = None
) -> tuple[Float[Tensor, "sample step vocab"], Float[Tensor, "sample step"] | None]:
    """Logits that each response token was drawn from, and the value of the state before it."""
    inner = plain(model)
    ids, mask = full_sequences(samples)
    steps = samples.response_ids.shape[1]
    # The last token is not read: its logits belong to the token after the response.
    ids, mask = ids[:, :-1], mask[:, :-1]
    if samples.encoder_ids is None or samples.encoder_mask is None:
        extra = accepted(inner, position_ids=positions(mask), logits_to_keep=steps)
        inputs = {"input_ids": ids, "attention_mask": mask.long(), **extra}
    else:
        encoder = {"input_ids": samples.encoder_ids, "attention_mask": samples.encoder_mask.long()}
        inputs = {**encoder, "decoder_input_ids": ids, "decoder_attention_mask": mask.long()}
    watching = last_states(inner) if value_head is not None else contextlib.nullcontext(list[Tensor]())
    with watching as states:
        logits = inner(**inputs, use_cache=False, return_dict=True).logits[:, -steps:]
    return logits, value_head(states[0][:, -steps:]) if value_head is not None else None


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
    """Sample, score and read one round of rollouts, `chunk_size` at a time.

    Raises:
        TrainingError: the reward misbehaves (see `Reward`).
    """
    parts = []
    for start in range(0, len(prompts), chunk_size):
        chunk = prompts[start : start + chunk_size]
        logits: list[Tensor] = []
        with last_states(model) as states:
            samples = sampler.draw(
                model, chunk, stream="rollouts", first_index=first_index + start, each_step=logits.append
            )
        texts = sampler.decode(chunk, sampler.responses(samples))
        with torch.autocast(samples.response_ids.device.type, enabled=False):  # a reward's arithmetic is its own
            scores = reward(texts.samples, texts.prompts, texts.outputs)
        with torch.no_grad():
            values = value_head(torch.stack([state[:, -1] for state in states], dim=1))
            theirs, _ = read_responses(reference, samples)
            figures = compared(torch.stack(logits, dim=1), theirs, samples.response_ids, samples.response_mask)
        tensor = torch.as_tensor(scores, dtype=torch.float32, device=values.device)
        values = torch.where(samples.response_mask, values, 0.0)
        parts.append(Rollouts(samples, texts, tensor, samples.logprobs, values=values, **figures))
    return join(parts, sampler.pad_id)


def compared(
    logits: Float[Tensor, "sample step vocab"],
    reference_logits: Float[Tensor, "sample step vocab"],
    ids: Int[Tensor, "sample step"],
    mask: Bool[Tensor, "sample step"],
) -> dict[str, Float[Tensor, "sample step"]]:
    """What a round needs of the two distributions at each response token, normalised once; 0 where masked.

    Returns:
        `reference_logprobs` (of the sampled tokens), `kl` (KL(policy || reference), exact) and `entropy` (of the
        policy), in nats, float32.
    """
    names = ("reference_logprobs", "kl", "entropy")
    found = {name: torch.zeros(mask.shape, device=mask.device) for name in names}
    rows = mask.flatten().nonzero()[:, 0]
    for block in rows.split(max(1, _BLOCK // logits.shape[-1])):
        log_p, log_q = (log_probs(each.flatten(0, 1)[block]) for each in (logits, reference_logits))
        chosen = log_q.gather(1, ids.flatten()[block][:, None])[:, 0]
        figures = (chosen, kl_of_log_probs(log_p, log_q), entropy_of_log_probs(log_p))
        for name, figure in zip(names, figures, strict=True):
            found[name].view(-1)[block] = figure.float()
    return found


def join(parts: Sequence[Rollouts], pad_id: int) -> Rollouts:
    """Several rollouts as one, responses padded on the right."""
    samples = concatenate([part.samples for part in parts], pad_id)
    steps = samples.response_ids.shape[1]

    def wide(name: str) -> Tensor:
        tensors = [getattr(part, name) for part in parts]
        return torch.cat([nn.functional.pad(tensor, (0, steps - tensor.shape[1])) for tensor in tensors])

    texts = Texts(
        *([text for part in parts for text in getattr(part.texts, f)] for f in ("samples", "prompts", "outputs"))
    )
    names = ("logprobs", "reference_logprobs", "values", "kl", "entropy")
    return Rollouts(samples, texts, torch.cat([part.scores for part in parts]), **{name: wide(name) for name in names})


def take(samples: Samples, rows: Tensor | slice) -> Samples:
    """Some of the samples."""
    tensors = {name: value[rows] for name, value in vars(samples).items() if value is not None}
    return replace(samples, **tensors)


def trimmed(samples: Samples) -> Samples:
    """The same without the columns that hold padding in every row."""
    steps = max(1, int(samples.response_mask.sum(dim=1).max()))
    room = {"response_ids": slice(0, steps), "response_mask": slice(0, steps), "logprobs": slice(0, steps)}
    for name in ("prompt", "encoder"):
        mask = getattr(samples, f"{name}_mask")
        if mask is not None:
            first = mask.shape[1] - int(mask.sum(dim=1).max())
            room |= {f"{name}_ids": slice(first, None), f"{name}_mask": slice(first, None)}
    return replace(samples, **{name: getattr(samples, name)[:, columns] for name, columns in room.items()})


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
