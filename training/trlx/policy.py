"""The policy that trlX trains: its own wrapper with a value head, around a model object, beside a full reference.

trlX knows padding by its token id alone. Whatever id a tokenizer has for it, a policy may sample it too, and models
such as GPT-2 have none but the end token's. So padding gets an id of its own outside the vocabulary, `Ids.pad`, which
is replaced before any model reads it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from interp.sampling import plain
from training.rollouts import Sampler

_Wrapper: Any = object


@dataclass(frozen=True)
class Ids:
    """What token ids mean to a driven trlX.

    Attributes:
        pad: its padding, outside the vocabulary.
        fill: what models read in place of padding, unseen by attention; of an encoder-decoder model, its encoder.
        start: what an encoder-decoder model's decoder begins with; None for other models.
        ends: tokens that end a response.
    """

    pad: int
    fill: int
    start: int | None
    ends: tuple[int, ...]

    @classmethod
    def of(cls, model: nn.Module, sampler: Sampler) -> Ids:
        """The ids of one model and its sampler."""
        inner: Any = model
        vocab = max(inner.get_input_embeddings().num_embeddings, len(sampler.tokenizer))
        return cls(vocab, sampler.pad_id, sampler.start, sampler.end_ids)

    def real(self, ids: Int[Tensor, "sample pos"] | None, fill: int) -> Int[Tensor, "sample pos"] | None:
        """Ids that a model can read."""
        return None if ids is None else ids.masked_fill(ids == self.pad, fill)

    def marked(self, responses: Int[Tensor, "sample step"]) -> Int[Tensor, "sample step"]:
        """Responses with padding after the first end token."""
        ends = torch.isin(responses, torch.tensor(self.ends, dtype=torch.long, device=responses.device))
        before = ends.long().cumsum(dim=1) - ends.long()
        return responses.masked_fill(before > 0, self.pad)


class Policy(_Wrapper):
    """Mixed in before trlX's wrapper. Nothing of trlX's own branches is used: the reference is a whole model."""

    def settle(self, reference: nn.Module, ids: Ids, observe: Callable[[Tensor, Tensor], None]) -> None:
        """Say what the policy is compared with.

        Args:
            reference: the frozen base.
            ids: what token ids mean.
            observe: called with the logits of policy and reference on every chunk of rollouts, all positions.
        """
        self.outside = (reference,)  # in a tuple: as a submodule it would be handed to the optimiser
        self.ids, self.observe = ids, observe
        self.frozen_head = True  # its presence makes trlX ask `forward_hydra` for the reference's logits
        self.forward_kwargs = list(inspect.signature(type(plain(self.base_model)).forward).parameters)
        self.seen: Tensor | None = None

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **rest: Any) -> Any:
        """As trlX's, with padding that models can read, and without a cache that nobody uses."""
        output = super().forward(**self._inputs(input_ids, attention_mask, rest), use_cache=False)
        if not torch.is_grad_enabled():
            self.seen = (output[0] if isinstance(output, tuple) else output.logits).detach()
        return output

    def forward_hydra(self, input_ids: Tensor, attention_mask: Tensor | None = None, **rest: Any) -> Any:
        """Logits of the reference, on what the policy has just read."""
        inputs = self.get_compatible_forward_kwargs(**self._inputs(input_ids, attention_mask, rest))
        logits = self.outside[0](**{**inputs, "return_dict": True, "use_cache": False}).logits
        assert self.seen is not None
        self.observe(self.seen, logits)
        self.seen = None
        return SimpleNamespace(logits=logits)

    def generate(self, input_ids: Tensor, attention_mask: Tensor, **settings: Any) -> Tensor:
        """Samples of Hugging Face's `generate`, with trlX's padding after the first end token."""
        settings["pad_token_id"] = self.ids.fill
        read = self.ids.real(input_ids, self.ids.fill)
        drawn = super().generate(input_ids=read, attention_mask=attention_mask, **settings)
        begun = 1 if self.ids.start is not None else input_ids.shape[1]
        head = drawn[:, :1] if self.ids.start is not None else input_ids
        return torch.cat([head, self.ids.marked(drawn[:, begun:])], dim=1)

    def _inputs(self, input_ids: Tensor, attention_mask: Tensor | None, rest: dict[str, Any]) -> dict[str, Any]:
        inputs = {**rest, "input_ids": self.ids.real(input_ids, self.ids.fill), "attention_mask": attention_mask}
        if self.ids.start is not None:
            inputs["decoder_input_ids"] = self.ids.real(rest["decoder_input_ids"], self.ids.start)
        return inputs


class Tokenizer:
    """What trlX takes for its tokenizer: it gives the generated ids back where trlX tokenises texts again.

    Tokenising a decoded text rarely gives the tokens that were sampled: some tokenizers add a beginning-of-text token,
    and a policy spells words in more ways than one. `kept` holds the ids of the outputs decoded last.
    """

    def __init__(self, ids: Ids) -> None:
        """Make a tokenizer for a model with these ids."""
        self.pad_token_id, self.eos_token_id = ids.pad, (ids.ends or (ids.fill,))[0]
        self.pad_token = self.sep_token = self.eos_token = ""
        self.padding_side = self.truncation_side = "right"
        self.kept: list[list[int]] = []

    def __call__(self, texts: list[str]) -> SimpleNamespace:
        """The ids of the outputs that were decoded last, which `texts` are."""
        assert len(texts) == len(self.kept), "trlX tokenises what it has just decoded"
        return SimpleNamespace(input_ids=[list(ids) for ids in self.kept])
