"""Training a sequence classifier on labelled texts, to serve as a reward model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interp.errors import ConfigError, MissingExtra, TrainingError
from interp.io import write_json
from training.batches import pad_right
from training.config import ClassifierConfig, expand
from training.events import Progress
from training.prompts import read_texts
from training.saving import prove, save
from training.seeding import derive, seeded
from training.supervised import fit, predict


def read_labelled(config: ClassifierConfig, pair: Path | None = None) -> tuple[list[str], list[int], list[str]]:
    """Texts, label numbers and label names (in the order of the recipe); a text under two labels is left out.

    Raises:
        ConfigError: a file cannot be read or holds fewer than 10 texts.
    """
    by_label = {name: dict.fromkeys(read_texts(expand(file, pair=pair))) for name, file in config.files.items()}
    texts: list[str] = []
    labels: list[int] = []
    for number, (name, own) in enumerate(by_label.items()):
        others = [group for other, group in by_label.items() if other != name]
        kept = [text for text in own if not any(text in group for group in others)]
        if len(kept) < 10:
            raise ConfigError(f"reward.classifier.files: {name} has {len(kept)} texts of its own; give it 10 or more")
        texts += kept
        labels += [number] * len(kept)
    return texts, labels, list(by_label)


def from_backbone(causal: Any, tokenizer: Any, labels: Sequence[str], seed: int) -> nn.Module:
    """A classifier with a language model's own backbone and a new score head.

    The head reads a causal model's last token, or what transformers pools of a masked one. The tokenizer gets its end
    token as padding where it has none: no text to be classified ends in it, and the classifier finds its last token by
    the padding.

    Raises:
        TrainingError: the backbones differ, or there is no token to pad with.
    """
    from transformers import AutoModelForSequenceClassification

    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise TrainingError("the classifier needs a padding or end token, the tokenizer has neither; add one to it")
    config = copy.deepcopy(causal.config)
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: number for number, name in enumerate(labels)}
    config.pad_token_id = tokenizer.pad_token_id
    with seeded(derive(seed, "score head")):
        classifier = AutoModelForSequenceClassification.from_config(config)
    try:
        report = classifier.base_model.load_state_dict(causal.base_model.state_dict(), strict=False)
    except RuntimeError as error:
        raise TrainingError(f"{type(classifier).__name__} cannot take over the backbone: {error}") from error
    # BERT's language model has no pooler, which belongs to the head of its classifier and is new with it.
    wrong = [*report.unexpected_keys, *(key for key in report.missing_keys if not key.startswith("pooler."))]
    if wrong:
        raise TrainingError(f"{type(classifier).__name__} cannot take over the backbone: {wrong[0]} does not fit")
    return classifier


def train_classifier(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    labels: Sequence[int],
    out: Path,
    *,
    config: ClassifierConfig,
    seed: int,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train `model` in place by cross-entropy, measure it on held-out texts, and save it with its card.

    AdamW with gradients clipped to norm 1; the held-out part is stratified by label. `out` gets the weights as
    safetensors, the tokenizer, and card.json.

    Returns:
        The card: labels, counts, held-out accuracy, confusion matrix (rows are true labels) and, of two labels, AUC.

    Raises:
        MissingExtra: scikit-learn is not installed.
        TrainingError: the loss is not finite.
    """
    train, heldout = _split(labels, config.heldout, derive(seed, "classifier split"))
    encoded = tokenizer(list(texts), truncation=True, max_length=config.max_length)["input_ids"]
    rows = [list(ids) for ids in encoded]

    def loss_of(batch: list[int]) -> Tensor:
        ids, mask = pad_right([rows[train[i]] for i in batch], tokenizer.pad_token_id)
        target = torch.tensor([labels[train[i]] for i in batch])
        return nn.functional.cross_entropy(model(input_ids=ids, attention_mask=mask).logits.float(), target)

    fit(
        model,
        [len(rows[i]) for i in train],
        loss_of,
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        seed=seed,
        progress=progress,
    )
    logits = predict(model, [rows[i] for i in heldout], tokenizer.pad_token_id)
    card = _card(logits, [labels[i] for i in heldout], list(model.config.id2label.values()), len(train))
    save(model, tokenizer, out)
    prove(model, out, torch.tensor([rows[heldout[0]]]))
    write_json(out / "card.json", card)
    return card


def _split(labels: Sequence[int], heldout: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and to hold out, each with the labels' own shares."""
    try:
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise MissingExtra("training", "training a classifier") from error
    indices = list(range(len(labels)))
    train, held = train_test_split(indices, test_size=heldout, random_state=seed % 2**32, stratify=list(labels))
    return train, held


def _card(logits: Tensor, truth: list[int], names: list[str], trained: int) -> dict[str, Any]:
    from sklearn.metrics import accuracy_score, confusion_matrix, roc_auc_score

    guess = logits.argmax(dim=-1).tolist()
    card = {
        "labels": names,
        "train_texts": trained,
        "heldout_texts": len(truth),
        "accuracy": float(accuracy_score(truth, guess)),
        "confusion": confusion_matrix(truth, guess, labels=range(len(names))).tolist(),
    }
    if len(names) == 2:
        card["auc"] = float(roc_auc_score(truth, (logits[:, 1] - logits[:, 0]).tolist()))
    return card
