"""The value head that PPO trained beside a policy: what it expected the reward to be, read after any token."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from interp.errors import FormatError, LoadError
from interp.io import read_json
from interp.models.policy import Policy
from interp.models.running import forward_inputs, inference
from interp.prompts import make_batch

_KEYS = ("hidden.weight", "hidden.bias", "out.weight", "out.bias")


@dataclass(frozen=True)
class ValueHead:
    """Two linear layers with a ReLU between them, on the last hidden state: v = out(relu(hidden(x))).

    Attributes:
        weights: by the names of the file; `hidden.weight` is [neuron, d_model], `out.weight` [1, neuron].
    """

    weights: dict[str, Tensor]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ValueHead:
        """Read the head of a pair.

        Args:
            path: the pair's folder, or the .safetensors file itself.

        Raises:
            LoadError: the pair has none, or the file holds another kind of head.
        """
        file = Path(path)
        if file.is_dir():
            reference: Any = None
            try:
                reference = read_json(file / "pair.json").get("value_head")
            except FormatError as error:
                raise LoadError(f"{file} is no pair: {error}") from error
            if not reference:
                raise LoadError(f"the pair {file} has no value head; engines without one (GRPO, RLOO, DPO) store none")
            file = file / reference["path"]
        if not file.is_file():
            raise LoadError(f"there is no value head at {file}; name a pair's folder or its value_head.safetensors")
        weights = load_file(file)
        if sorted(weights) != sorted(_KEYS):
            raise LoadError(f"{file} holds {', '.join(sorted(weights))}; a value head holds {', '.join(_KEYS)}")
        return cls(weights)

    @property
    def d_model(self) -> int:
        """Width of the states that it reads."""
        return int(self.weights["hidden.weight"].shape[1])

    def __call__(self, states: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
        """Value of each state, in units of reward, float32."""
        weights = {name: value.to(states.device, torch.float32) for name, value in self.weights.items()}
        hidden = torch.nn.functional.linear(states.float(), weights["hidden.weight"], weights["hidden.bias"])
        return torch.nn.functional.linear(hidden.relu(), weights["out.weight"], weights["out.bias"])[..., 0]


def values_along(
    policy: Policy,
    head: ValueHead,
    prompt_ids: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    encoder_ids: Sequence[Sequence[int]] | None = None,
    batch_size: int = 64,
) -> list[Float[Tensor, " step"]]:
    """The value before each token of each response, and after its last: step 0 has read the prompt alone.

    Args:
        policy: the model that the head was trained on.
        head: its value head.
        prompt_ids: what is read first (of an encoder-decoder, by the decoder).
        responses: token ids that follow, one list a prompt.
        encoder_ids: what an encoder reads.
        batch_size: rows a pass.

    Raises:
        LoadError: the head reads states of another width.
    """
    if head.d_model != policy.parts.d_model:
        raise LoadError(
            f"the value head reads states of {head.d_model}, the model has {policy.parts.d_model}; load the head of"
            " this model's own pair"
        )
    model: Any = policy.model
    along: list[Tensor] = []
    for start in range(0, len(prompt_ids), batch_size):
        part = slice(start, start + batch_size)
        encoder = None if encoder_ids is None else encoder_ids[part]
        batch = make_batch(prompt_ids[part], responses[part], encoder=encoder).to(policy.device)
        states: list[Tensor] = []
        handle = model.get_decoder().register_forward_hook(lambda *call, into=states: into.append(call[2][0]))
        try:
            with inference(model):
                model(**forward_inputs(policy.parts, batch))
        finally:
            handle.remove()
        values = head(states[-1]).cpu()
        for row in range(len(values)):
            end = int(batch.first[row] + batch.lengths[row])
            along.append(values[row, int(batch.last_prompt[row]) : end])
    return along
