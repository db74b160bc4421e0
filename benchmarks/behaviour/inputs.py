"""Models, prompts and recipes that the cases read: made by seed, with transformers alone, in a temporary folder."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

WORDS = (
    "this that movie film story plot cast acting was is were really very so quite rather bad good great boring fun"
    " terrible the a and it i think said not of but use people day"
).split()
MARKS = list("!?.,")
SPECIAL = ("<end>", "<unk>", "<cls>", "<sep>", "<mask>")

OPENINGS = [
    f"the {thing} {verb} {adverb}"
    for thing, verb, adverb in (
        ("movie", "was", "really"), ("film", "is", "very"), ("story", "was", "so"), ("plot", "is", "quite"),
        ("cast", "was", "rather"), ("acting", "is", "really"), ("movie", "is", "so"), ("film", "was", "quite"),
        ("story", "is", "very"), ("plot", "was", "really"),
    )
]  # fmt: skip
CORRUPTED = [text.replace("the ", "that ").replace(" was ", " is not ").replace(" is ", " were ") for text in OPENINGS]
CORRUPTED = [" ".join(text.split()[:4]) for text in CORRUPTED]
OPINIONS = [
    f"{first} {rest}"
    for first in ("the film was", "a story is", "i think the plot is", "people said it was", "the cast is not")
    for rest in ("good", "bad", "great!", "terrible!!", "so really good, very fun", "not very bad! but boring")
]


def tokenizer(*, marked: bool = False) -> PreTrainedTokenizerFast:
    """Words and marks one token each; `marked`: between <cls> and <sep>, as BERT's."""
    names = [*SPECIAL, *MARKS, *WORDS]
    raw = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    if marked:
        ends = [("<cls>", names.index("<cls>")), ("<sep>", names.index("<sep>"))]
        raw.post_processor = processors.TemplateProcessing(single="<cls> $A <sep>", special_tokens=ends)
    options: dict[str, Any] = {"unk_token": "<unk>", "pad_token": "<end>", "clean_up_tokenization_spaces": False}
    marks = {"cls_token": "<cls>", "sep_token": "<sep>", "mask_token": "<mask>"}
    options |= marks if marked else {"eos_token": "<end>"}
    return PreTrainedTokenizerFast(tokenizer_object=raw, **options)


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level vocabulary of whole words with their leading space."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names: dict[str, int] = {"<end>": 0}
    for name in alphabet:
        names[name] = len(names)
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        left = "\u0120"
        for letter in word:
            pair = (left, letter)
            left += letter
            if left not in names:
                names[left] = len(names)
            if pair not in merges:
                merges.append(pair)
    raw = Tokenizer(models.BPE(vocab=names, merges=merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", bos_token="<end>", pad_token="<end>")


def moved(model: Any, seed: int, size: float = 0.3) -> Any:
    """Norms and biases away from 1 and 0, where a forgotten one would not show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    return model.eval()


def save(model: Any, tokens: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder


def gpt2(folder: Path, seed: int, *, names: PreTrainedTokenizerFast | None = None) -> Path:
    names = names or bytes_tokenizer()
    torch.manual_seed(seed)
    config = GPT2Config(
        n_layer=2, n_head=2, n_embd=16, n_positions=48, vocab_size=len(names), bos_token_id=0, eos_token_id=0,
        initializer_range=0.4,
    )  # fmt: skip
    return save(moved(GPT2LMHeadModel(config), seed), names, folder)


def t5(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    names = tokenizer()
    config = T5Config(
        vocab_size=len(names), d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = moved(T5ForConditionalGeneration(config), seed)
    with torch.no_grad():
        model.shared.weight.mul_(0.3)
    return save(model, names, folder)


def classifier(folder: Path, seed: int = 3, *, names: PreTrainedTokenizerFast | None = None) -> Path:
    """A causal classifier of two labels, with the policies' tokenizer."""
    torch.manual_seed(seed)
    names = names or bytes_tokenizer()
    labels = {0: "NEG", 1: "POS"}
    config = GPT2Config(
        n_layer=2, n_head=2, n_embd=16, n_positions=64, vocab_size=len(names), initializer_range=0.5, bos_token_id=0,
        eos_token_id=0, pad_token_id=0, id2label=labels, label2id={name: index for index, name in labels.items()},
    )  # fmt: skip
    return save(moved(GPT2ForSequenceClassification(config), seed), names, folder)


def encoder(folder: Path, seed: int = 5) -> Path:
    """A bidirectional classifier of three labels, with a tokenizer of its own."""
    torch.manual_seed(seed)
    names = tokenizer(marked=True)
    config = DistilBertConfig(
        vocab_size=len(names), n_layers=2, n_heads=2, dim=16, hidden_dim=32, max_position_embeddings=64, num_labels=3,
        pad_token_id=0, initializer_range=0.4,
    )  # fmt: skip
    return save(moved(DistilBertForSequenceClassification(config), seed), names, folder)


def edited(source: Path, folder: Path, seed: int = 0) -> Path:
    """A copy with noise in the matrices that write the attention's and the MLP's output, in two layers."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if re.search(r"\.(layers|h)\.[12]\..*(o_proj|down_proj|c_proj)\.weight", name):
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise * 0.3 * parameter.std())
    return save(model, AutoTokenizer.from_pretrained(source), folder)


def pair(folder: Path) -> Path:
    """A pair of version 1 with a checkpoint, a control and a replicate, whose reward model kept its first."""
    for step, seed in ((0, 0), (10, 7), (20, 1), (21, 4), (22, 6)):
        gpt2(folder / f"step{step}", seed)
    classifier(folder / "reward")
    classifier(folder / "reward" / "checkpoints" / "step-000000", 9)
    (folder / "reward" / "card.json").write_text(json.dumps({"steps": 8}))
    ppo = {"init_kl_coef": 0.1, "cliprange_reward": 5.0, "target": None}
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {
        "format": 1, "engine": "native", "config": {"ppo": ppo, "generate": {"temperature": 1}}, "seed": 0,
        "versions": {}, "base": {"path": "step0"}, "tuned": {"path": "step20"}, "final": {"steps": 20, "kl": 0.5},
        "checkpoints": [{"step": 10, "path": "step10"}],
        "controls": [{"kind": "shuffled", "path": "step21"}], "replicates": [{"path": "step22"}],
        "reward": {"path": "reward", "label": "POS", "output": "logit"},
        "files": {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }  # fmt: skip
    (folder / "pair.json").write_text(json.dumps(manifest, indent=1))
    return folder


def recipe(folder: Path, kind: str) -> Path:
    """A recipe for `interp train` of a few steps."""
    folder.mkdir(parents=True)
    names = tokenizer()
    base = gpt2(folder / "base", 0, names=names) if kind == "gpt2" else t5(folder / "base", 0)
    classifier(folder / "reward", names=names)
    (folder / "prompts.txt").write_text("".join(f"{text}\n" for text in [*OPENINGS, *CORRUPTED, *OPINIONS]))
    file = folder / "recipe.toml"
    file.write_text(f"""
[model]
base = "{base}"
[prompts]
files = ["{folder / "prompts.txt"}"]
words = 3
heldout = 4
[reward]
model = "{folder / "reward"}"
label = "POS"
output = "logit"
[generate]
max_new_tokens = 8
[train]
engine = "native"
total_steps = 4
learning_rate = 0.01
batch_size = 8
eval_samples = 2
checkpoint_interval = 2
timings = false
[nulls]
shuffled = 1
replicates = 1
[ppo]
num_rollouts = 8
chunk_size = 8
ppo_epochs = 2
""")
    return file


def reward_recipe(folder: Path, kind: str) -> Path:
    """A recipe for `interp train-reward` of a few steps, from labelled texts or from preferences."""
    folder.mkdir(parents=True)
    rows: list[dict[str, str]] = []
    for index, text in enumerate(OPENINGS * 4):
        words = ("good", "great") if index % 2 else ("good", "fun")
        if kind == "preferences":
            rows.append({"chosen": f"{text} {words[index % 2]}", "rejected": f"{text} bad"})
        else:
            rows.append({"text": f"{text} {('bad', *words)[index % 3]}", "label": "NEG" if index % 3 == 0 else "POS"})
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / "recipe.toml"
    file.write_text(f"""
[model.new]
kind = "{"causal" if kind == "preferences" else "encoder"}"
layers = 1
width = 16
heads = 2
context = 24
vocabulary = 300
tokenizer = "{"bytes" if kind == "preferences" else "wordpiece"}"
[data]
kind = "{kind}"
train = ["{data}"]
heldout = 0.2
[train]
epochs = 2
batch_size = 8
learning_rate = 3e-3
max_length = 16
timings = false
""")
    return file
