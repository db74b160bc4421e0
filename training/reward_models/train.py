"""`train_reward`: from a config to a reward model with its card, whole or not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from interp.errors import ConfigError, MissingExtra
from interp.io import atomic_folder, hash_folder, write_json
from interp.models.source import describe_source
from training.batches import pad_right
from training.config import expand
from training.config.reward_model import RewardModelConfig
from training.events import Progress
from training.reward_models.build import make_model, start_at_base_rates
from training.reward_models.data import Labelled, Preferences, RewardData, Rows, load_data
from training.reward_models.losses import binary_cross_entropy, bradley_terry, cross_entropy, drop_words
from training.reward_models.metrics import class_figures, label_figures, preference_figures
from training.saving import prove, save
from training.supervised import Loss, fit, predict

CARD = "card.json"
SCALAR = "reward"
"""Name of the one output of a model that learned from preferences."""


@dataclass(frozen=True)
class TrainedReward:
    """A reward model on disk.

    Attributes:
        path: its folder, as `interp.RewardModel.load` takes it.
        card: the content of card.json: counts, held-out figures, config.
    """

    path: Path
    card: dict[str, Any]


def train_reward(
    config: RewardModelConfig,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TrainedReward:
    """Train a reward model into the folder `out`.

    The folder gets the weights as safetensors, the tokenizer, config.toml, `checkpoints/step-000200/` and so on where
    the config asks for them, and card.json with figures on texts that the model never saw. It appears when everything
    is done and what was saved is proved to load again as it was.

    Args:
        config: the run.
        out: the folder.
        overwrite: replace an earlier reward model.
        progress: called with one event after another (see `training.events`).

    Raises:
        ConfigError: the config does not fit together, or what it names cannot be read.
        TrainingError: the loss is not finite, or what was saved does not load again as it was.
        MissingExtra: scikit-learn is not installed.
        InterpError: a model cannot be loaded, or the folder cannot be written.
    """
    check_extra()
    with atomic_folder(out, owned_by=CARD, overwrite=overwrite) as folder:
        card = _build(config, folder, progress)
    return TrainedReward(Path(out), card)


def check_reward(config: RewardModelConfig) -> dict[str, str]:
    """Resolve everything that the training needs short of loading weights, and train nothing.

    Returns:
        What each name in the recipe stands for: counts, a folder, or "not fetched" for what would come from the hub.

    Raises:
        ConfigError: a variable is not set, a file cannot be read, or a label is unknown.
        MissingExtra: scikit-learn is not installed.
    """
    check_extra()
    found = {"model": _start(config)}
    data = load_data(config.data, config.train.seed)
    found["data"] = ", ".join(f"{count} {name}" for name, count in data.counts.items())
    if data.labels:
        found["labels"] = ", ".join(data.labels)
    return found


def check_extra() -> None:
    """Refuse before any work is done, rather than after.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    try:
        import sklearn.metrics  # noqa: F401
    except ImportError as error:
        raise MissingExtra("training", "training a reward model") from error


def _start(config: RewardModelConfig) -> str:
    new = config.model.new
    if new is not None:
        return f"new {new.kind}, {new.layers} layers of width {new.width}, vocabulary of {new.vocabulary}"
    source = expand(config.model.backbone or "")
    if Path(source).is_dir():
        return str(Path(source).resolve())
    if source.startswith((".", "/")) or source.count("/") > 1:
        raise ConfigError(f"model.backbone stands for {source}, which is no folder; correct the path")
    return f"{source}: not fetched"


def _build(config: RewardModelConfig, folder: Path, progress: Progress | None) -> dict[str, Any]:
    begun = time.monotonic()
    data = load_data(config.data, config.train.seed)
    model, tokenizer = make_model(config, data.train.texts, data.labels or (SCALAR,))
    # Of a dialogue the answer counts, which stands last; stored with the tokenizer, so that scoring cuts alike.
    tokenizer.truncation_side = "left" if config.data.kind == "preferences" else "right"
    rows = _encode(tokenizer, data.train, config)
    lengths = [max(map(len, own)) for own in zip(*rows, strict=True)]
    config.save(folder / "config.toml")
    stepped = _checkpoints(model, tokenizer, folder, config.train.checkpoint_interval)
    if stepped:
        stepped(0)  # what a gain over the training is measured from
    steps = fit(
        model,
        lengths,
        _loss(model, tokenizer, rows, data.train, config),
        epochs=config.train.epochs,
        batch_size=config.train.batch_size,
        learning_rate=config.train.learning_rate,
        weight_decay=config.train.weight_decay,
        seed=config.train.seed,
        progress=progress,
        stepped=stepped,
    )
    figures = _measure(model, tokenizer, data, config)
    card = {**_facts(config, data, model, steps), **figures}
    if config.data.published:
        card["published"] = dict(config.data.published)
    if config.train.timings:
        card["minutes"] = round((time.monotonic() - begun) / 60, 2)
    save(model, tokenizer, folder)
    prove(model, folder, torch.tensor([rows[0][0]]))
    write_json(folder / CARD, card | {"files": sorted({*hash_folder(folder), CARD})})
    return card


def _facts(config: RewardModelConfig, data: RewardData, model: nn.Module, steps: int) -> dict[str, Any]:
    """What the card says beside the figures."""
    backbone = config.model.backbone
    return {
        "kind": config.data.kind,
        "labels": list(data.labels or (SCALAR,)),
        "counts": data.counts,
        "dropped": data.dropped,
        "model": type(model).__name__,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "start": dict(describe_source(expand(backbone), revision=config.model.revision)) if backbone else "new",
        "steps": steps,
        "config": config.to_dict(),
    }


def _encode(tokenizer: Any, rows: Rows, config: RewardModelConfig) -> list[list[list[int]]]:
    """Token ids of each text; of preferences two lists, of the chosen and of the rejected."""
    parts = [rows.chosen, rows.rejected] if isinstance(rows, Preferences) else [rows.texts]
    options = {"truncation": True, "max_length": config.train.max_length}
    empty = [tokenizer.eos_token_id or 0]
    return [[list(ids) or empty for ids in tokenizer(list(texts), **options)["input_ids"]] for texts in parts]


def _loss(
    model: nn.Module, tokenizer: Any, rows: list[list[list[int]]], train: Rows, config: RewardModelConfig
) -> Loss:
    """The loss of some rows; sets the score head's bias to the labels' shares first."""
    keep = torch.tensor(sorted(tokenizer.all_special_ids))
    substitute = tokenizer.mask_token_id if tokenizer.mask_token_id is not None else tokenizer.unk_token_id
    share = config.train.word_dropout
    if share and substitute is None:
        raise ConfigError("train.word_dropout needs a tokenizer with a mask or unknown token; leave it out")

    def logits(own: list[list[int]]) -> Tensor:
        ids, mask = pad_right(own, tokenizer.pad_token_id)
        # The id 0 stands in where there is none: nothing is replaced then.
        return model(input_ids=drop_words(ids, share, substitute or 0, keep), attention_mask=mask).logits

    if isinstance(train, Preferences):
        chosen, rejected = rows

        def of_pairs(batch: list[int]) -> Tensor:
            scores = logits([chosen[i] for i in batch] + [rejected[i] for i in batch])[:, 0]
            return bradley_terry(scores[: len(batch)], scores[len(batch) :])

        return of_pairs
    start_at_base_rates(model, train.targets.mean(dim=0))
    measure = cross_entropy if config.data.kind == "single" else binary_cross_entropy
    return lambda batch: measure(logits([rows[0][i] for i in batch]), train.targets[batch])


def _checkpoints(model: nn.Module, tokenizer: Any, folder: Path, interval: int) -> Callable[[int], None] | None:
    if not interval:
        return None

    def store(step: int) -> None:
        if step % interval == 0:
            save(model, tokenizer, folder / "checkpoints" / f"step-{step:06d}")

    return store


def _measure(model: nn.Module, tokenizer: Any, data: RewardData, config: RewardModelConfig) -> dict[str, Any]:
    """Figures on the test set; thresholds come from the validation set."""

    def scores(rows: Rows) -> list[np.ndarray]:
        return [predict(model, own, tokenizer.pad_token_id).numpy() for own in _encode(tokenizer, rows, config)]

    if isinstance(data.test, Preferences):
        chosen, rejected = (own[:, 0] for own in scores(data.test))
        longer = [len(c) > len(r) for c, r in zip(data.test.chosen, data.test.rejected, strict=True)]
        return {**preference_figures(chosen, rejected), "longer_is_chosen": float(np.mean(longer))}
    assert isinstance(data.validation, Labelled)
    truth = {name: rows.targets.numpy() > 0 for name, rows in (("validation", data.validation), ("test", data.test))}
    if config.data.kind == "single":
        (logits,) = scores(data.test)
        return class_figures(torch.from_numpy(logits).softmax(dim=-1).numpy(), truth["test"], data.labels)
    both = [torch.from_numpy(scores(rows)[0]).sigmoid().numpy() for rows in (data.validation, data.test)]
    return label_figures((both[0], truth["validation"]), (both[1], truth["test"]), data.labels)
