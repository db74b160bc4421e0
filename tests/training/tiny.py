"""Tiny models and recipes for the tests: random weights, a word-level vocabulary, seconds on one thread."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from training import RLHFConfig
from training.job import Job
from training.reward import Reward
from training.rollouts import Sampler

RECIPES = Path(__file__).parents[2] / "training/recipes"

WORDS = [
    "<end>",
    "<stop>",
    "good",
    "bad",
    "the",
    "film",
    "was",
    "is",
    "a",
    "very",
    "plot",
    "cast",
    "so",
    "and",
    "it",
    "ok",
]


def tokenizer():
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="ok"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", clean_up_tokenization_spaces=False)


def model(kind: str = "gpt2"):
    torch.manual_seed(0)
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=16,
            n_positions=32,
            n_embd=16,
            n_layer=2,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=None,
        )
        made = GPT2LMHeadModel(config)
    elif kind == "t5":
        config = T5Config(
            vocab_size=16,
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=2,
            decoder_start_token_id=5,
            pad_token_id=None,
            eos_token_id=0,
        )
        made = T5ForConditionalGeneration(config)
        with torch.no_grad():  # T5's own initial values are made for training long: the first samples would be one word
            made.shared.weight.mul_(0.3)
    else:
        config = LlamaConfig(
            vocab_size=16,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=32,
            bos_token_id=None,
            eos_token_id=0,
            tie_word_embeddings=True,
        )
        made = LlamaForCausalLM(config)
    made.generation_config.eos_token_id = [0, 1]  # several end ids, as stories3M has
    return made.eval()


def base(folder: Path, kind: str = "gpt2") -> Path:
    model(kind).save_pretrained(folder / "base-model")
    tokenizer().save_pretrained(folder / "base-model")
    return folder / "base-model"


def recipe(folder: Path, *, kind: str = "gpt2", **changes) -> RLHFConfig:
    """A recipe over a fresh base in `folder`; `changes` are sections with the keys to change."""
    prompts = folder / "prompts.txt"
    prompts.write_text("".join(f"the {a} {b} {c}\n" for a in WORDS[9:14] for b in WORDS[4:9] for c in WORDS[9:12]))
    values = {
        "model": {"base": str(base(folder, kind))},
        "prompts": {"files": [str(prompts)], "words": 3, "heldout": 5},
        "reward": {},
        "generate": {"max_new_tokens": 6},
        "train": {"total_steps": 4, "batch_size": 8, "eval_samples": 2, "timings": False},
        "ppo": {"num_rollouts": 16, "chunk_size": 8, "ppo_epochs": 2},
    }
    for section, keys in changes.items():
        values[section] = values.get(section, {}) | keys
    return RLHFConfig.from_dict(values)


def share_of_good(samples, prompts, outputs):
    """A reward that is easily learned: the share of "good" among the response's words."""
    return [output.split().count("good") / max(1, len(output.split())) for output in outputs]


@dataclass
class Watch:
    """What an engine told, in order."""

    rows: list = field(default_factory=list)
    steps: list = field(default_factory=list)
    events: list = field(default_factory=list)
    order: list = field(default_factory=list)

    def log(self, row):
        self.rows.append(dict(row))
        self.order.append("log")

    def progress(self, event):
        self.events.append(dict(event))

    def stepped(self, step, model):
        self.steps.append(step)
        self.order.append("stepped")


def prompts() -> tuple[str, ...]:
    return tuple(f"the {a} {b} {c}" for a in WORDS[9:14] for b in WORDS[4:9] for c in WORDS[9:12])


def job(folder: Path, kind: str = "gpt2", *, reward=None, base=None, shuffle=None, stop_at_kl=None, **changes) -> Job:
    """A job for the engine `native` (or trlx) in memory; `changes` are sections with the keys to change."""
    values = {
        "model": {"base": "tiny"},
        "prompts": {"files": ["tiny.txt"]},
        "generate": {"max_new_tokens": 6},
        "train": {"total_steps": 8, "batch_size": 8, "timings": False},
        "ppo": {"num_rollouts": 16, "chunk_size": 8, "ppo_epochs": 2},
    }
    for section, keys in changes.items():
        values[section] = values.get(section, {}) | keys
    config = RLHFConfig.from_dict(values)
    base = (model(kind) if base is None else base).requires_grad_(False)
    return Job(
        config,
        base,
        tokenizer(),
        Sampler(base, tokenizer(), config.generate, config.train.seed),
        prompts(),
        Reward(reward or share_of_good),
        folder,
        Watch(),
        shuffle=shuffle,
        stop_at_kl=stop_at_kl,
    )
