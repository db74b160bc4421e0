"""A tiny random model of every architecture that a row covers, norms and biases away from their initial values."""

from collections.abc import Callable

import torch
import transformers as hf

VOCABULARY = 80
PAD = 79

_COMMON = dict(
    vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48,
    max_position_embeddings=64, initializer_range=0.3, pad_token_id=PAD, bos_token_id=0, eos_token_id=0,
)  # fmt: skip
_GROUPED = dict(num_key_value_heads=2)
_GPT2 = dict(
    n_layer=3, n_head=4, n_embd=32, n_positions=64, vocab_size=VOCABULARY, initializer_range=0.3,
    pad_token_id=PAD, bos_token_id=0, eos_token_id=0,
)  # fmt: skip
_OPT = dict(
    vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, ffn_dim=48,
    max_position_embeddings=64, init_std=0.3, word_embed_proj_dim=32, pad_token_id=PAD,
)  # fmt: skip
_T5 = dict(
    vocab_size=VOCABULARY, d_model=32, d_kv=6, num_heads=4, num_layers=3, num_decoder_layers=2, d_ff=48,
    decoder_start_token_id=0, pad_token_id=0, initializer_factor=1.0,
)  # fmt: skip
_DISTILBERT = dict(
    vocab_size=VOCABULARY, dim=32, n_layers=3, n_heads=4, hidden_dim=48, max_position_embeddings=64,
    initializer_range=0.3, pad_token_id=PAD,
)  # fmt: skip
_BLOOM = dict(vocab_size=VOCABULARY, hidden_size=32, n_layer=3, n_head=4, initializer_range=0.3, pad_token_id=PAD)
_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
_ROBERTA = {**_COMMON, "pad_token_id": 1}

CONFIGS: dict[str, Callable[[], hf.PretrainedConfig]] = {
    "GPT2LMHeadModel": lambda: hf.GPT2Config(**_GPT2),
    "GPT2ForSequenceClassification": lambda: hf.GPT2Config(**_GPT2, num_labels=3),
    "LlamaForCausalLM": lambda: hf.LlamaConfig(**_COMMON, **_GROUPED, head_dim=8),
    "LlamaForSequenceClassification": lambda: hf.LlamaConfig(**_COMMON, **_GROUPED, num_labels=3),
    "MistralForCausalLM": lambda: hf.MistralConfig(**_COMMON, **_GROUPED, sliding_window=3),
    "Qwen2ForCausalLM": lambda: hf.Qwen2Config(**_COMMON, **_GROUPED),
    "Qwen2ForSequenceClassification": lambda: hf.Qwen2Config(**_COMMON, **_GROUPED, num_labels=3),
    "Qwen3ForCausalLM": lambda: hf.Qwen3Config(**_COMMON, **_GROUPED, head_dim=16),
    "Gemma2ForCausalLM": lambda: hf.Gemma2Config(
        **_COMMON, **_GROUPED, head_dim=16, sliding_window=3, final_logit_softcapping=3.0, attn_logit_softcapping=2.0
    ),
    "Gemma3ForCausalLM": lambda: hf.Gemma3TextConfig(
        **_COMMON, **_GROUPED, head_dim=16, sliding_window=3, layer_types=_LAYERS
    ),
    "Olmo2ForCausalLM": lambda: hf.Olmo2Config(**_COMMON, **_GROUPED),
    "Phi3ForCausalLM": lambda: hf.Phi3Config(**_COMMON, **_GROUPED, sliding_window=3),
    "GPTNeoXForCausalLM": lambda: hf.GPTNeoXConfig(**_COMMON),
    "GPTNeoXForCausalLM, one after the other": lambda: hf.GPTNeoXConfig(**_COMMON, use_parallel_residual=False),
    "OPTForCausalLM": lambda: hf.OPTConfig(**_OPT),
    "OPTForCausalLM, as OPT-350m": lambda: hf.OPTConfig(
        **{**_OPT, "word_embed_proj_dim": 16}, do_layer_norm_before=False
    ),
    "BloomForCausalLM": lambda: hf.BloomConfig(**_BLOOM),
    "T5ForConditionalGeneration": lambda: hf.T5Config(**_T5),
    "T5ForConditionalGeneration, as Flan-T5": lambda: hf.T5Config(
        **_T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False
    ),
    "BertForSequenceClassification": lambda: hf.BertConfig(**_COMMON, num_labels=3),
    "BertForMaskedLM": lambda: hf.BertConfig(**_COMMON),
    "RobertaForSequenceClassification": lambda: hf.RobertaConfig(**_ROBERTA, num_labels=3),
    "RobertaForMaskedLM": lambda: hf.RobertaConfig(**_ROBERTA),
    "DistilBertForSequenceClassification": lambda: hf.DistilBertConfig(**_DISTILBERT, num_labels=3),
    "DistilBertForMaskedLM": lambda: hf.DistilBertConfig(**_DISTILBERT),
}

LANGUAGE_MODELS = [name for name in CONFIGS if "CausalLM" in name or "LMHead" in name or name.startswith("T5")]


def build(name: str, seed: int = 0, **changes: object) -> hf.PreTrainedModel:
    """A model of `CONFIGS`; `changes` are attributes of its config."""
    torch.manual_seed(seed)
    config = CONFIGS[name]()
    for key, value in changes.items():
        setattr(config, key, value)
    model = getattr(hf, name.partition(",")[0])(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model
