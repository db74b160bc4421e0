"""Sampling completions: one loop for training's rollouts and for the side-by-side samples of a comparison.

The randomness is counter-based: the token of sample i at step t depends on the seed, i, t and the model's distribution,
and on nothing else. Batch size and order change no sample, and two models given one seed share their random numbers, so
what differs between their samples is the models' doing.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.errors import InterpError, PromptError
from interp.prompts import make_batch, positions


@dataclass(frozen=True)
class Sampling:
    """How continuations are drawn.

    Attributes:
        samples: continuations of each prompt; None leaves the number to what needs them.
        max_new_tokens: longest continuation, in tokens.
        temperature: divides the logits; 1 is the model's own distribution, 0 takes the likeliest token.
        top_k: only the k likeliest tokens can be drawn; 0 is all.
        top_p: only the fewest likeliest tokens whose probabilities sum to this or more can be drawn; 1 is all.
    """

    samples: int | None = None
    max_new_tokens: int = 24
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        wholes = {"samples": 1 if self.samples is None else self.samples, "max_new_tokens": self.max_new_tokens}
        for name, value in wholes.items():
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**63:
                raise PromptError(f"{name} is a whole number from 1 on, not {value!r}")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 0:
            raise PromptError(f"top_k is a whole number from 0 (all tokens) on, not {self.top_k!r}")
        if not self.temperature >= 0 or not 0 < self.top_p <= 1:
            raise PromptError(
                f"temperature is 0 or more and top_p in (0, 1], not {self.temperature!r} and {self.top_p!r}"
            )

    @property
    def is_plain(self) -> bool:
        """Whether the model's own distribution is sampled: temperature 1, nothing cut off."""
        return self.temperature == 1 and self.top_k == 0 and self.top_p == 1


@dataclass(frozen=True)
class Samples:
    """Prompts and the responses sampled after them, as token ids.

    Attributes:
        prompt_ids: prompts, padded on the left; of an encoder-decoder model what its decoder reads first.
        prompt_mask: True at the prompts' own tokens.
        response_ids: sampled tokens; the pad id after the end.
        response_mask: True up to and including the first end token.
        logprobs: log-probability in nats of each sampled token under the model itself (temperature 1, nothing
            truncated), float32; 0 where masked.
        encoder_ids: what an encoder reads, padded on the left; None without an encoder.
        encoder_mask: True at its own tokens.
    """

    prompt_ids: Int[Tensor, "sample prompt_pos"]
    prompt_mask: Bool[Tensor, "sample prompt_pos"]
    response_ids: Int[Tensor, "sample step"]
    response_mask: Bool[Tensor, "sample step"]
    logprobs: Float[Tensor, "sample step"]
    encoder_ids: Int[Tensor, "sample encoder_pos"] | None = None
    encoder_mask: Bool[Tensor, "sample encoder_pos"] | None = None

    def __len__(self) -> int:
        """Number of samples."""
        return int(self.response_ids.shape[0])


def sample(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    seed: int,
    first_index: int = 0,
    temperature: float | int = 1.0,
    top_k: int = 0,
    top_p: float | int = 1.0,
    end_ids: Sequence[int],
    pad_id: int,
    indices: Sequence[int] | None = None,
    encoder: Sequence[Sequence[int]] | None = None,
    each_step: Callable[[Float[Tensor, "sample vocab"]], None] | None = None,
) -> Samples:
    """Sample one response to each prompt, all in one batch, with a key-value cache.

    The model's `generation_config` is not consulted: folders from the hub carry settings such as top_k=50 that would
    silently change the distribution sampled from. Sample i at step t takes the token at which the cumulative
    distribution (float64, in order of token ids) first exceeds u(i, t), uniform in [0, 1) from a Philox generator with
    the key (seed, i) (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

    Args:
        model: a language model of transformers, causal or encoder-decoder; its modes are put back and nothing is left
            on it.
        prompts: token ids of each prompt, none empty; of an encoder-decoder model what its decoder reads, which begins
            with the decoder's start token.
        max_new_tokens: most tokens in a response, the end token included.
        seed: 0 to 2**64 - 1.
        first_index: index of the first prompt's sample in the whole run; the others follow.
        temperature: the logits are divided by it; 0 takes the likeliest token.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens until their probability reaches this; 1 keeps all.
        end_ids: tokens that end a response (see `end_ids`); may be empty.
        pad_id: stands left of shorter prompts and right of ended responses; never seen by attention or by a loss.
        indices: index of each prompt's sample, instead of `first_index` and its successors.
        encoder: for an encoder-decoder model the token ids that its encoder reads for each prompt; it reads them once.
        each_step: called with the logits that the tokens of each step are drawn from, those of ended rows included.

    Raises:
        PromptError: there is no prompt, one is empty, or the encoder's texts are not one for each prompt.
        InterpError: a setting is out of its range, the context is too short, or the model returned NaN.
    """
    model = plain(model)
    _check(prompts, max_new_tokens, temperature, top_k, top_p, indices)
    _check_encoder(model, prompts, encoder)
    _check_room(model, max(map(len, prompts)), max_new_tokens)
    numbers = list(indices) if indices is not None else list(range(first_index, first_index + len(prompts)))
    device = next(model.parameters()).device
    prompt_ids, prompt_mask = pad_left(prompts, pad_id)
    points = torch.from_numpy(uniforms(seed, numbers, max_new_tokens)).to(device)
    loop = _Loop(model, prompt_ids.to(device), prompt_mask.to(device))
    ends = torch.tensor(sorted(set(end_ids)), dtype=torch.long, device=device)
    with evaluating(model), torch.no_grad():
        if encoder is not None:
            loop.encode(encoder, pad_id)
        steps = list(_steps(loop, points, ends, pad_id, (temperature, top_k, top_p), each_step))
    ids, mask, logprobs = (torch.stack(column, dim=1) for column in zip(*steps, strict=True))
    return Samples(loop.prompt_ids, loop.prompt_mask, ids, mask, logprobs, loop.encoder_ids, loop.encoder_mask)


def end_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """All tokens that end a response, in ascending order.

    The union of `generation_config.eos_token_id` (a number or a list), `config.eos_token_id` and the tokenizer's:
    each of the three is wrong by itself for some model on the hub.
    """
    found: set[int] = set()
    for holder in (getattr(model, "generation_config", None), getattr(model, "config", None), tokenizer):
        value = getattr(holder, "eos_token_id", None)
        if value is not None:
            found.update(int(v) for v in (value if isinstance(value, (list, tuple)) else [value]))
    return tuple(sorted(found))


def full_sequences(samples: Samples) -> tuple[Int[Tensor, "sample pos"], Bool[Tensor, "sample pos"]]:
    """Prompt and response as one sequence: `(input_ids, attention_mask)`; responses start at one column for all."""
    ids = torch.cat([samples.prompt_ids, samples.response_ids], dim=1)
    return ids, torch.cat([samples.prompt_mask, samples.response_mask], dim=1)


def concatenate(parts: Sequence[Samples], pad_id: int) -> Samples:
    """Several batches as one; prompts are padded further on the left, responses on the right."""

    def join(name: str, fill: float | int, *, left: bool) -> Tensor:
        tensors = [getattr(part, name) for part in parts]
        width = max(tensor.shape[1] for tensor in tensors)
        gaps = [width - tensor.shape[1] for tensor in tensors]
        sides = [(gap, 0) if left else (0, gap) for gap in gaps]
        return torch.cat([nn.functional.pad(t, side, value=fill) for t, side in zip(tensors, sides, strict=True)])

    both = parts[0].encoder_ids is not None
    return Samples(
        join("prompt_ids", pad_id, left=True),
        join("prompt_mask", False, left=True),
        join("response_ids", pad_id, left=False),
        join("response_mask", False, left=False),
        join("logprobs", 0.0, left=False),
        join("encoder_ids", pad_id, left=True) if both else None,
        join("encoder_mask", False, left=True) if both else None,
    )


def pad_left(
    prompts: Sequence[Sequence[int]], pad_id: int
) -> tuple[Int[Tensor, "sample prompt_pos"], Bool[Tensor, "sample prompt_pos"]]:
    """Token ids as one tensor, padded on the left, and the mask of the real ones."""
    batch = make_batch(prompts, padding_side="left")
    return batch.input_ids.masked_fill(~batch.attention_mask, pad_id), batch.attention_mask


def accepted(model: nn.Module, **arguments: Any) -> dict[str, Any]:
    """Those arguments that the model's forward knows by name (BLOOM, for one, takes no position ids)."""
    kind: Any = type(plain(model))
    known = _names(kind)
    return {name: value for name, value in arguments.items() if name in known}


def continuing(model: nn.Module, cache: Any) -> dict[str, Any]:
    """Arguments with which a forward pass goes on from `cache`, a key-value cache or None, and returns its own.

    The argument is called `cache` from transformers 5.24 on, `past_key_values` before.
    """
    kind: Any = type(plain(model))
    return {"cache" if "cache" in _names(kind) else "past_key_values": cache, "use_cache": True}


def cache_of(output: Any) -> Any:
    """The key-value cache in a model's output, whatever this version of transformers calls it."""
    return output["cache" if "cache" in output else "past_key_values"]


@functools.cache
def _names(kind: Any) -> frozenset[str]:
    """Names of what a class's forward takes; looked up once, for a look takes longer than a small layer."""
    return frozenset(inspect.signature(kind.forward).parameters)


def plain(model: nn.Module) -> nn.Module:
    """The model of transformers inside a PeftModel, its adapter at work; any other model as it is."""
    inner: nn.Module = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    return inner


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block; afterwards every submodule is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class _Loop:
    """The running state of one batch: what has been read so far, its key-value cache, and what an encoder read."""

    def __init__(self, model: nn.Module, prompt_ids: Tensor, prompt_mask: Tensor) -> None:
        self.model, self.prompt_ids, self.prompt_mask = model, prompt_ids, prompt_mask
        self._ids, self._mask, self._positions = prompt_ids, prompt_mask, positions(prompt_mask)
        self._cache: Any = None
        self._encoded: dict[str, Any] | None = None
        self.encoder_ids: Tensor | None = None
        self.encoder_mask: Tensor | None = None

    def encode(self, encoder: Sequence[Sequence[int]], pad_id: int) -> None:
        """Let the encoder read, once for all steps."""
        ids, mask = (each.to(self.prompt_ids.device) for each in pad_left(encoder, pad_id))
        module: Any = self.model
        outputs = module.get_encoder()(input_ids=ids, attention_mask=mask.long(), return_dict=True)
        self.encoder_ids, self.encoder_mask = ids, mask
        self._encoded = {"encoder_outputs": outputs, "attention_mask": mask.long()}

    def _inputs(self) -> dict[str, Any]:
        """What the next step reads: under the decoder's names where there is an encoder."""
        if self._encoded is not None:
            return {"decoder_input_ids": self._ids, "decoder_attention_mask": self._mask.long(), **self._encoded}
        positions_too = accepted(self.model, position_ids=self._positions)
        return {"input_ids": self._ids, "attention_mask": self._mask.long(), **positions_too}

    def logits(self) -> Tensor:
        """Logits of the next token, "sample vocab"; feeds the model what it has not seen."""
        output = self.model(
            **self._inputs(),
            **continuing(self.model, self._cache),
            return_dict=True,
            **accepted(self.model, logits_to_keep=1),
        )
        self._cache = cache_of(output)
        return output.logits[:, -1]

    def append(self, token: Tensor) -> None:
        """Give every row its next token. Ended rows get padding, and what they compute is never used."""
        self._ids = token[:, None]
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)
        self._positions = self._positions[:, -1:] + 1


def _steps(
    loop: _Loop,
    uniforms: Tensor,
    ends: Tensor,
    pad_id: int,
    settings: tuple[float | int, int, float | int],
    each_step: Callable[[Tensor], None] | None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Token, mask and log-probability of every row, step by step, until all rows have ended."""
    alive = torch.ones(len(uniforms), dtype=torch.bool, device=uniforms.device)
    for uniform in uniforms.unbind(dim=1):
        logits = loop.logits()
        if each_step is not None:
            each_step(logits)
        token = choose(logits, uniform, *settings)
        logprob = torch.log_softmax(logits.float(), dim=-1).gather(1, token[:, None])[:, 0]
        shown = torch.where(alive, token, pad_id)
        yield shown, alive, torch.where(alive, logprob, 0.0)
        alive = alive & ~torch.isin(token, ends)
        if not bool(alive.any()):
            return
        loop.append(shown)


def uniforms(seed: int, indices: Sequence[int], steps: int) -> np.ndarray:
    """Uniform numbers in [0, 1), "sample step", float64: one Philox stream a sample."""
    rows = [
        np.random.Generator(np.random.Philox(key=np.array([seed, i], dtype=np.uint64))).random(steps) for i in indices
    ]
    return np.stack(rows)


def choose(logits: Tensor, uniform: Tensor, temperature: float | int, top_k: int, top_p: float | int) -> Tensor:
    """The next token of each row by inverse CDF, or the likeliest at temperature 0."""
    largest = logits.amax(dim=-1)  # NaN if any is NaN; a logit of minus infinity is a forbidden token, which is fine
    if not bool(torch.isfinite(largest).all()):
        raise InterpError("sampling needs finite logits, the model returned NaN; load a model that has not diverged")
    if temperature == 0:
        return logits.argmax(dim=-1)
    scaled = logits.double() / temperature
    if top_k:
        threshold = scaled.topk(min(top_k, scaled.shape[-1]), dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < threshold, -torch.inf)
    probabilities = scaled.softmax(dim=-1)
    if top_p < 1:
        ranked, order = probabilities.sort(dim=-1, descending=True, stable=True)
        # A token stays while those before it fall short of top_p, so the likeliest always stays.
        ranked = ranked.masked_fill(ranked.cumsum(dim=-1) - ranked >= top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter(1, order, ranked)
    cumulative = probabilities.cumsum(dim=-1)
    point = uniform[:, None] * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, point, right=True)[:, 0]
    # Rounding may put the point at the very end; the last token of any probability is meant then.
    if bool((point >= cumulative[:, -1:]).any()):
        last = probabilities.shape[-1] - 1 - (probabilities.flip(-1) > 0).int().argmax(dim=-1)
        token = torch.minimum(token, last)
    return token


def _check(
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float | int,
    top_k: int,
    top_p: float | int,
    indices: Sequence[int] | None,
) -> None:
    if not prompts:
        raise PromptError("sampling needs at least one prompt, none came; pass a non-empty list")
    for number, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise PromptError(f"prompt {number} has no tokens; give it a word or a beginning-of-text token")
    if max_new_tokens < 1:
        raise InterpError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise InterpError(
            "sampling needs temperature >= 0, top_k >= 0 and 0 < top_p <= 1, "
            f"not temperature={temperature}, top_k={top_k}, top_p={top_p}"
        )
    if indices is not None and len(indices) != len(prompts):
        raise InterpError(f"{len(prompts)} prompts need {len(prompts)} sample indices, {len(indices)} came")


def _check_encoder(model: nn.Module, prompts: Sequence[Sequence[int]], encoder: Sequence[Sequence[int]] | None) -> None:
    """What the encoder reads must be there for an encoder-decoder model, and for no other."""
    both = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    if both != (encoder is not None):
        has, do = ("an encoder", "pass encoder=") if both else ("no encoder", "leave encoder= out")
        raise PromptError(f"{type(model).__name__} has {has}; {do}")
    if encoder is not None and (len(encoder) != len(prompts) or not all(len(ids) for ids in encoder)):
        empty = sum(not len(ids) for ids in encoder)
        raise PromptError(
            f"{len(prompts)} prompts need as many texts for the encoder, none empty; {len(encoder)} came, {empty} empty"
        )


def _check_room(model: nn.Module, longest: int, max_new_tokens: int) -> None:
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    # The last token is sampled but never read.
    if isinstance(limit, int) and limit > 0 and longest + max_new_tokens - 1 > limit:
        raise InterpError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the model's context of {limit}; "
            "shorten the prompt or lower max_new_tokens"
        )
