"""Shared fixtures. Shape annotations of the three packages are checked at run time in every test."""

import os
from pathlib import Path

from jaxtyping import install_import_hook

install_import_hook(["interp", "training", "analyses"], "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402
from transformers import (  # noqa: E402
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)

WORDS = "this movie was really bad good film the a and plot boring great acting very fun".split()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real data: $INTERP_DATA, else ../shared/data beside the repository."""
    root = Path(__file__).parent.parent
    folder = Path(os.environ.get("INTERP_DATA", root.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data: neither $INTERP_DATA nor {folder} is a folder")
    return folder


@pytest.fixture(scope="session")
def stories(real_data: Path) -> Path:
    folder = real_data / "stories3M-hf"
    if not folder.is_dir():
        pytest.skip(f"no real model at {folder}")
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer()


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 80 tokens in which each of WORDS, with its leading space, is one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>"],
        show_progress=False,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    raw.train_from_iterator([" " + " ".join(WORDS)] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<|end|>", eos_token="<|end|>")


def tiny_gpt2(seed: int = 0, **changes: object) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = dict(
        n_layer=3,
        n_head=4,
        n_embd=32,
        n_positions=64,
        vocab_size=len(word_tokenizer()),
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.4,
    )
    model = GPT2LMHeadModel(GPT2Config(**{**config, **changes})).eval()
    return _with_biases(model)


def tiny_llama(seed: int = 0, **changes: object) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = dict(
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        hidden_size=32,
        head_dim=8,
        intermediate_size=48,
        max_position_embeddings=64,
        vocab_size=len(word_tokenizer()),
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.4,
    )
    return _with_biases(LlamaForCausalLM(LlamaConfig(**{**config, **changes})).eval())


def _with_biases(model: torch.nn.Module) -> torch.nn.Module:
    """Give norms and biases values of their own: at their initial 1 and 0 they would hide a forgotten one."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.fixture(params=["gpt2", "llama"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make_model(family: str):
    return {"gpt2": tiny_gpt2, "llama": tiny_llama}[family]


def save(model: torch.nn.Module, folder: Path, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def as_a_user():
    """Switch the shape checks off: what a user who passes nonsense sees are our own errors."""
    from jaxtyping import config

    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
