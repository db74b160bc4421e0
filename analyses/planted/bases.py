"""The models on which differences are planted, with the text that goes with each."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from interp.errors import LoadError
from interp.io import atomic_folder
from interp.models import Policy
from interp.prompts import Prompts
from training.grammar import reviews
from training.language_model import byte_level_tokenizer, encode_texts, train_language_model
from training.saving import save
from training.seeding import derive, seeded

BASES = ("demo", "stories260K", "stories3M", "gpt2")
PROMPTS, LESSONS = 12, 24
"""Prompts that methods see, and other prompts on which plants are trained."""

DRIFT_RATES = {"demo": 3e-4, "stories260K": 1e-4, "stories3M": 1e-4, "gpt2": 3e-4}
"""Learning rates at which each base is fine-tuned on its other text."""

LENGTH = 12
"""Tokens of a prompt."""


@dataclass(frozen=True)
class Base:
    """A base model and its text.

    Attributes:
        name: one of `BASES`.
        policy: the model.
        prompts: what every method reads: token ids of one length, each with the next one as its corrupted counterpart.
        lesson_ids: prompts of the same kind, of other texts, on which plants are trained.
        other: token ids of text of another kind, for the drift.
    """

    name: str
    policy: Policy
    prompts: Prompts
    lesson_ids: Int[Tensor, "prompt pos"]
    other: Sequence[Sequence[int]]

    @property
    def ids(self) -> Int[Tensor, "prompt pos"]:
        """The prompts as one tensor."""
        return torch.tensor([list(row) for row in self.prompts.texts])


def open_base(name: str, *, data: Path | None, cache: Path, epochs: int = 12) -> Base:
    """Load, or make, a base.

    The demo's base comes with the package: its prompts are reviews of the grammar it learned, and its other text the
    negative ones alone. The other three write children's stories, and their other text is other stories; "gpt2" is a
    small GPT-2 that is trained on some of these once and then kept in `cache`.

    Args:
        name: one of `BASES`.
        data: folder of real data; needed for all but the demo.
        cache: where the trained base is kept.
        epochs: passes of that training.

    Raises:
        LoadError: there is no such base, or its data is not there.
    """
    if name not in BASES:
        raise LoadError(f"no base {name!r}; bases are {', '.join(BASES)}")
    if name == "demo":
        folder = resources.files("interp") / "data" / "demo" / "base"
        texts = [each.text for each in reviews(600, derive(0, "planted"))]
        others = [each.text for each in reviews(3000, derive(1, "planted")) if each.label == "negative"]
        return _with_text(name, Policy.load(str(folder)), texts, others)
    read, texts, others = _stories(_data(data))
    if name == "gpt2":
        policy = Policy.load(str(_small_gpt2(cache, read, epochs)))
    else:
        policy = Policy.load(str(_data(data) / f"{name}-hf"))
    return _with_text(name, policy, texts, others)


def data_folder() -> Path | None:
    """The folder of real data that $INTERP_DATA names, or None."""
    named = os.environ.get("INTERP_DATA")
    return Path(named) if named else None


def _data(data: Path | None) -> Path:
    if data is None or not data.is_dir():
        raise LoadError(
            f"this base needs real data and {data or '$INTERP_DATA'} is no folder; set INTERP_DATA, or use --bases demo"
        )
    return data


_BEGINNING = re.compile(r"(?i)(once|one |there was|there were|long ago|in a |tom and|lily and|tim and|sara and)")


def _whole(text: str) -> list[str]:
    """Stories, told apart by how they begin."""
    found: list[str] = []
    for paragraph in filter(None, (each.strip() for each in text.splitlines())):
        if not found or _BEGINNING.match(paragraph):
            found.append(paragraph)
        else:
            found[-1] += " " + paragraph
    return found


def _stories(data: Path) -> tuple[list[str], list[str], list[str]]:
    """Pieces that the small GPT-2 is trained on, stories for the prompts, and other stories for the drift."""
    folder = data / "tinystories"
    names = ("tinystories_train_head.txt", "TinyStories-valid-excerpt.txt")
    told, held = (_whole((folder / name).read_text(encoding="utf-8")) for name in names)
    kept, cut = len(told) // 5, len(told) * 3 // 5
    return [piece for story in told[kept:cut] for piece in _pieces(story)], [*held, *told[:kept]], told[cut:]


def _pieces(story: str) -> list[str]:
    """Six sentences at a time, from every third on."""
    sentences = re.split(r"(?<=[.!?])\s+", story)
    return [" ".join(sentences[start : start + 6]) for start in range(0, len(sentences), 3)]


def _with_text(name: str, policy: Policy, texts: Sequence[str], others: Sequence[str]) -> Base:
    rows = {tuple(ids[:LENGTH]) for ids in _encoded(policy.tokenizer, texts) if len(ids) >= LENGTH}
    ordered = sorted(rows, key=lambda row: derive(0, *row))
    if len(ordered) < PROMPTS + LESSONS:
        raise LoadError(
            f"the text for {name} gives {len(ordered)} prompts of {LENGTH} tokens, not {PROMPTS + LESSONS}; use more"
        )
    read, taught = ordered[:PROMPTS], ordered[PROMPTS : PROMPTS + LESSONS]
    prompts = Prompts([list(row) for row in read], corrupted=[list(row) for row in (*read[1:], read[0])])
    other = [ids[:48] for ids in _encoded(policy.tokenizer, others) if len(ids) > 8]
    return Base(name, policy, prompts, torch.tensor(taught), other)


def _encoded(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    encode: Callable[..., Any] = tokenizer
    return [list(encode(text, verbose=False)["input_ids"]) for text in texts]


def _small_gpt2(cache: Path, texts: Sequence[str], epochs: int) -> Path:
    """A GPT-2 of 4 layers of 6 heads that has read a few hundred stories; made once, the same seed the same bytes."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = cache / f"gpt2-{epochs}"
    if (folder / "config.json").is_file():
        return folder
    tokenizer = byte_level_tokenizer(texts, vocab_size=1024)
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=96, n_layer=4, n_head=6, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=end, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    with seeded(derive(0, "planted gpt2")):
        model = GPT2LMHeadModel(config)
    rows = [ids[:48] for ids in encode_texts(tokenizer, texts)]
    train_language_model(model, rows, epochs=epochs, batch_size=32, learning_rate=2e-3, seed=0)
    with atomic_folder(folder, owned_by="config.json") as target:
        save(model, tokenizer, target)
    return folder
