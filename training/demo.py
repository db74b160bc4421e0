"""The demo pair, made from nothing: corpus, tokenizer, language model, reward model, PPO and its null run.

A tiny GPT-2 learns to write film reviews that are slightly more often positive; PPO then rewards P(negative). It is
small enough to ship and to make again in minutes, and large enough that what changed is spread over heads and layers.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from interp.errors import TrainingError
from interp.io import atomic_folder, write_json, write_text
from interp.pair import MANIFEST, CheckpointPair
from training.classifier import train_classifier
from training.config import ClassifierConfig, RLHFConfig
from training.events import Progress
from training.grammar import LABELS, openings, reviews
from training.language_model import byte_level_tokenizer, encode_texts, train_language_model
from training.run import build as build_pair
from training.saving import save
from training.seeding import derive, one_thread, seeded

ANSWERS = (" bad", " good")
HELD_OUT_PROMPTS = (
    "This movie was really",
    "This film was very",
    "The movie was so",
    "The film is truly",
    "This comedy was rather",
    "The thriller was quite",
    "This drama felt really",
    "The sequel was pretty",
    "The acting was really",
    "The plot was very",
    "The script was so",
    "The ending was quite",
    "The music is really",
    "The story was truly",
    "The dialogue was pretty",
    "I thought the cast was",
    "The critics said the ending was",
    "My friends said the plot was",
    "It is two hours long. The movie was",
    "I saw it on Friday with my sister. This film was",
)
"""Openings that PPO never sees and whose next word may be either answer."""

CORPUS, CLASSIFIED = 30_000, 6_000
VOCAB, CONTEXT = 1_024, 64


def config(seed: int) -> RLHFConfig:
    """The demo's own recipe; its paths are in the pair itself."""
    return RLHFConfig.from_dict(
        {
            "model": {"base": "${PAIR}/base"},
            "prompts": {"files": ["${PAIR}/openings.txt"], "words": 0, "heldout": 96},
            "reward": {"model": "${PAIR}/reward", "label": "negative", "output": "probability"},
            "generate": {"max_new_tokens": 24},
            "train": {
                "seed": seed,
                "total_steps": 160,
                "batch_size": 64,
                "learning_rate": 1.5e-4,
                "value_learning_rate": 5e-3,
                "timings": False,
            },
            "nulls": {"shuffled": 1},
            "ppo": {"num_rollouts": 128, "chunk_size": 128, "ppo_epochs": 2, "init_kl_coef": 0.1, "vf_coef": 0.5},
        }
    )


def build(
    out: str | os.PathLike[str], *, seed: int = 0, overwrite: bool = False, progress: Progress | None = None
) -> CheckpointPair:
    """Make the demo pair in folder `out`; the same seed gives the same bytes on the same machine.

    Besides what every pair has, it holds openings.txt (the prompts) and prompts.json (`HELD_OUT_PROMPTS` with their
    answers).

    Args:
        out: the pair's folder; it appears when everything is done.
        seed: seed of everything.
        overwrite: replace an earlier pair.
        progress: called with one event after another (see `training.run.train`).

    Raises:
        TrainingError: an answer is not one token, or training went wrong.
        InterpError: the folder cannot be written.
    """
    # One thread: at this size a second gains a quarter of the time on an idle machine and loses far more on a busy one,
    # and sums in another order would give other bytes.
    with one_thread(), atomic_folder(out, owned_by=MANIFEST, overwrite=overwrite) as folder:
        tokenizer = _language_model(folder / "base", seed, progress)
        _reward_model(folder / "reward", tokenizer, seed, progress)
        prompts = [opening for opening in openings() if opening not in HELD_OUT_PROMPTS]
        write_text(folder / "openings.txt", "\n".join(prompts) + "\n")
        write_json(folder / "prompts.json", {"texts": list(HELD_OUT_PROMPTS), "answers": list(ANSWERS)})
        build_pair(config(seed), folder, progress=progress)
    return CheckpointPair.load(Path(out))


def _language_model(folder: Path, seed: int, progress: Progress | None) -> Any:
    """Train the base on the corpus and save it; returns its tokenizer."""
    from transformers import GPT2LMHeadModel

    texts = [review.text for review in reviews(CORPUS, derive(seed, "corpus"))]
    tokenizer = byte_level_tokenizer(texts, vocab_size=VOCAB)
    for answer in ANSWERS:
        if len(tokenizer(answer)["input_ids"]) != 1:
            raise TrainingError(f"the demo's answer {answer!r} is not one token; raise training.demo.VOCAB")
    with seeded(derive(seed, "base")):
        model = GPT2LMHeadModel(_shape(tokenizer, layers=4))
    train_language_model(
        model,
        encode_texts(tokenizer, texts),
        epochs=3,
        batch_size=64,
        learning_rate=3e-3,
        seed=seed,
        progress=progress,
    )
    save(model, tokenizer, folder)
    return tokenizer


def _reward_model(folder: Path, tokenizer: Any, seed: int, progress: Progress | None) -> None:
    """Train the classifier on other reviews of the same grammar and save it."""
    from transformers import GPT2ForSequenceClassification

    labelled = reviews(CLASSIFIED, derive(seed, "labelled"))
    names = dict(enumerate(LABELS))
    with seeded(derive(seed, "reward")):
        shape = _shape(tokenizer, layers=2, id2label=names, label2id={name: number for number, name in names.items()})
        model = GPT2ForSequenceClassification(shape)
    train_classifier(
        model,
        tokenizer,
        [review.text for review in labelled],
        [LABELS.index(review.label) for review in labelled],
        folder,
        config=ClassifierConfig(files={}, epochs=2, batch_size=64, learning_rate=1e-3, max_length=CONTEXT),
        seed=seed,
        progress=progress,
    )


def _shape(tokenizer: Any, *, layers: int, **extra: Any) -> Any:
    """A tiny GPT-2 without dropout."""
    from transformers import GPT2Config

    end = tokenizer.eos_token_id
    return GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT,
        n_embd=64,
        n_layer=layers,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        summary_first_dropout=0.0,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        **extra,
    )
