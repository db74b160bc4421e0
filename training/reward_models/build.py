"""The model that is to be trained: a stored backbone with a new score head, or a fresh one with its own tokenizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from interp.errors import ConfigError, LoadError
from interp.models.pretrained import load_model, load_tokenizer
from training.classifier import from_backbone
from training.config import expand
from training.config.reward_model import NewModelConfig, RewardModelConfig
from training.seeding import derive, seeded

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, END = "<|pad|>", "<|end|>"


def make_model(config: RewardModelConfig, texts: Sequence[str], labels: Sequence[str]) -> tuple[nn.Module, Any]:
    """A classifier to be trained and its tokenizer.

    Args:
        config: what it starts from.
        texts: the training texts, which a new tokenizer learns its vocabulary from.
        labels: names of its outputs.

    Raises:
        InterpError: the backbone cannot be loaded, or has no score head in transformers.
    """
    if config.model.new is not None:
        return _new(config.model.new, texts, labels, config)
    assert config.model.backbone is not None
    source, revision = expand(config.model.backbone), config.model.revision
    backbone = _load_backbone(source, revision).float()
    tokenizer = load_tokenizer(source, revision=revision)
    model = from_backbone(backbone, tokenizer, labels, config.train.seed)
    _set_problem(model, config.data.kind)
    return model, tokenizer


def _load_backbone(source: str, revision: str | None) -> Any:
    """A language model, causal or masked."""
    from transformers import AutoConfig, AutoModelForMaskedLM

    try:
        names = AutoConfig.from_pretrained(source, revision=revision).architectures or [""]
    except (OSError, ValueError):
        names = [""]  # what is wrong there `load_model` says better
    if not names[0].endswith("ForMaskedLM"):
        return load_model(source, revision=revision)
    model, report = AutoModelForMaskedLM.from_pretrained(
        source, revision=revision, use_safetensors=True, output_loading_info=True
    )
    if report["missing_keys"] or report["mismatched_keys"]:
        key = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))[0]
        raise LoadError(f"{source}: {key} is missing or of another shape; copy the model again")
    return model


def _set_problem(model: Any, kind: str) -> None:
    """What transformers, and `interp.models.RewardModel`, read off the config: how the outputs are to be squashed."""
    names = {"single": "single_label_classification", "multi": "multi_label_classification"}
    model.config.problem_type = names.get(kind, "regression")


def _new(
    shape: NewModelConfig, texts: Sequence[str], labels: Sequence[str], config: RewardModelConfig
) -> tuple[nn.Module, Any]:
    causal = shape.kind == "causal"
    tokenizer = _tokenizer(shape, texts)
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: number for number, name in enumerate(labels)}}
    with seeded(derive(config.train.seed, "new model")):
        model = (_gpt2 if causal else _distilbert)(shape, len(tokenizer), tokenizer.pad_token_id, names)
    _set_problem(model, config.data.kind)
    return model, tokenizer


def _distilbert(shape: NewModelConfig, vocabulary: int, pad_id: int, names: dict[str, Any]) -> nn.Module:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    dropouts = {name: shape.dropout for name in ("dropout", "attention_dropout", "seq_classif_dropout")}
    config = DistilBertConfig(
        vocab_size=vocabulary,
        max_position_embeddings=shape.context,
        n_layers=shape.layers,
        n_heads=shape.heads,
        dim=shape.width,
        hidden_dim=2 * shape.width,
        pad_token_id=pad_id,
        **dropouts,
        **names,
    )
    return DistilBertForSequenceClassification(config)


def _gpt2(shape: NewModelConfig, vocabulary: int, pad_id: int, names: dict[str, Any]) -> nn.Module:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    dropouts = {name: shape.dropout for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=shape.context,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_embd=shape.width,
        pad_token_id=pad_id,
        bos_token_id=None,
        eos_token_id=None,
        **dropouts,
        **names,
    )
    return GPT2ForSequenceClassification(config)


def _tokenizer(shape: NewModelConfig, texts: Sequence[str]) -> Any:
    """A tokenizer that learned its vocabulary from `texts`; an encoder's frames each text, whose first token it reads.

    A causal model's ends each text in a token of its own, so that an empty text too has a last token to be read.
    """
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    inner, names = (_wordpiece if shape.tokenizer == "wordpiece" else _bytes)(shape.vocabulary, texts)
    first, last = (names["cls_token"], names["sep_token"]) if shape.kind == "encoder" else ("", names["sep_token"])
    frame = " ".join(filter(None, [first, "$A", last]))
    special = [(name, inner.token_to_id(name)) for name in (first, last) if name]
    inner.post_processor = processors.TemplateProcessing(single=frame, special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        model_max_length=shape.context,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        **names,
    )


def _wordpiece(vocabulary: int, texts: Sequence[str]) -> tuple[Any, dict[str, str]]:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    # The trainer numbers the letters inside words in the order of a hash table, another one in each process, and breaks
    # ties by those numbers. Given as special tokens, in order, they have their numbers beforehand.
    inside = sorted({f"##{letter}" for word in words for letter in word[1:]})
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    learner.train_from_iterator(
        (" ".join([word] * count) for word, count in words.items()),
        trainers.WordPieceTrainer(
            vocab_size=vocabulary, min_frequency=2, special_tokens=[*SPECIAL, *inside], show_progress=False
        ),
    )
    # A new one of the same vocabulary, in which only the special tokens are special.
    inner = Tokenizer(models.WordPiece(learner.get_vocab(), unk_token="[UNK]"))
    inner.normalizer, inner.pre_tokenizer, inner.decoder = normalizer, splitter, decoders.WordPiece()
    inner.add_special_tokens(list(SPECIAL))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return inner, {**names, "mask_token": "[MASK]"}


def _bytes(vocabulary: int, texts: Sequence[str]) -> tuple[Any, dict[str, str]]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            min_frequency=2,
            special_tokens=list(SPECIAL),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return inner, names


def start_at_base_rates(model: nn.Module, shares: torch.Tensor) -> None:
    """Set the score head's bias to the log-odds of each label's share, so that training starts at what is known.

    Args:
        model: a classifier whose last linear layer may have a bias; one without is left as it is.
        shares: share of the texts that have each label, float [label].

    Raises:
        ConfigError: a label has no text at all.
    """
    absent = int((shares <= 0).sum())
    if absent:
        raise ConfigError(f"{absent} labels have no training text; leave them out of data.names, or add texts")
    heads = [
        module for module in model.modules() if isinstance(module, nn.Linear) and len(shares) == module.out_features
    ]
    if heads and heads[-1].bias is not None:
        with torch.no_grad():
            heads[-1].bias.copy_(torch.logit(shares.clamp(max=1 - 1e-6)))
