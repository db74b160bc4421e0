"""One row per architecture family: where its blocks, heads, MLPs, norms and unembedding are.

This is the only file that knows the name of a Hugging Face module. Everything else reads a model through `Parts`,
which is a row bound to one loaded model. `register_family` adds a row from outside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from interp.errors import UnknownFamily
from interp.families.layout import Attention, Family, Head, Stack


def _soft_cap(model: Any, logits: Tensor) -> Tensor:
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


LM_HEAD = Head(("lm_head",))
SCORE = Head(("score",), reads="last", kind="classifier")

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def _separate(module: str, names: tuple[str, str, str, str] = _PROJECTIONS, post_norm: str | None = None) -> Attention:
    q, k, v, o = (f"{module}.{name}" for name in names)
    return Attention(module, q, k, v, o, post_norm=post_norm)


def _fused(module: str, qkv: str, o: str, fused: Literal["blocks", "heads"]) -> Attention:
    path = f"{module}.{qkv}"
    return Attention(module, path, path, path, f"{module}.{o}", fused)


# Llama's layout, which most decoders of today share.
_LLAMA_STACK = Stack(
    layers="model.layers",
    attention=_separate("self_attn"),
    mlp=("mlp",),
    mlp_down="mlp.down_proj",
    resid_mid="post_attention_layernorm",
    final_norm="model.norm",
    attn_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
)


def _like_llama(name: str, prefix: str, stack: Stack = _LLAMA_STACK, **changes: Any) -> Family:
    heads = {f"{prefix}ForCausalLM": LM_HEAD, f"{prefix}ForSequenceClassification": SCORE}
    return Family(**{"name": name, "heads": heads, "embed": "model.embed_tokens", "stack": stack, **changes})


_GEMMA_STACK = replace(
    _LLAMA_STACK,
    attention=_separate("self_attn", post_norm="post_attention_layernorm"),
    mlp_norm="pre_feedforward_layernorm",
    resid_mid="pre_feedforward_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
)
_CAPPED_HEAD = Head(("lm_head",), after=_soft_cap)

_GPT2 = Family(
    name="gpt2",
    heads={"GPT2LMHeadModel": LM_HEAD, "GPT2ForSequenceClassification": SCORE},
    embed="transformer.wte",
    pos_embed="transformer.wpe",
    stack=Stack(
        layers="transformer.h",
        attention=_fused("attn", "c_attn", "c_proj", "blocks"),
        mlp=("mlp",),
        mlp_down="mlp.c_proj",
        resid_mid="ln_2",
        final_norm="transformer.ln_f",
        attn_norm="ln_1",
        mlp_norm="ln_2",
    ),
)

_NEOX = Family(
    name="gpt_neox",
    heads={"GPTNeoXForCausalLM": Head(("embed_out", "lm_head")), "GPTNeoXForSequenceClassification": SCORE},
    embed="gpt_neox.embed_in",
    stack=Stack(
        layers="gpt_neox.layers",
        attention=_fused("attention", "query_key_value", "dense", "heads"),
        mlp=("mlp",),
        mlp_down="mlp.dense_4h_to_h",
        resid_mid="post_attention_layernorm",
        final_norm="gpt_neox.final_layer_norm",
        attn_norm="input_layernorm",
        mlp_norm="post_attention_layernorm",
    ),
    adapt=lambda config: {"resid_mid": None} if config.use_parallel_residual else {},
)

_OPT = Family(
    name="opt",
    heads={
        "OPTForCausalLM": Head(("model.decoder.project_out", "lm_head")),
        "OPTForSequenceClassification": replace(SCORE, linear=("model.decoder.project_out", "score")),
    },
    embed="model.decoder.embed_tokens",
    embed_out=("model.decoder.project_in",),
    pos_embed="model.decoder.embed_positions",
    stack=Stack(
        layers="model.decoder.layers",
        attention=_separate("self_attn", ("q_proj", "k_proj", "v_proj", "out_proj")),
        mlp=("fc1", "fc2"),
        mlp_down="fc2",
        resid_mid="final_layer_norm",
        final_norm="model.decoder.final_layer_norm",
        attn_norm="self_attn_layer_norm",
        mlp_norm="final_layer_norm",
        flat_mlp=True,
    ),
    # OPT-350m normalises the sums.
    adapt=lambda config: (
        {}
        if config.do_layer_norm_before
        else {"norm_of_sum": True, "final_norm": None, "resid_mid": "self_attn_layer_norm"}
    ),
)

_BLOOM = Family(
    name="bloom",
    heads={"BloomForCausalLM": LM_HEAD, "BloomForSequenceClassification": SCORE},
    embed="transformer.word_embeddings",
    stack=Stack(
        layers="transformer.h",
        attention=_fused("self_attention", "query_key_value", "dense", "heads"),
        mlp=("mlp",),
        mlp_down="mlp.dense_4h_to_h",
        resid_mid="post_attention_layernorm",
        final_norm="transformer.ln_f",
        attn_norm="input_layernorm",
        mlp_norm="post_attention_layernorm",
    ),
)

_T5_ENCODER = Stack(
    layers="encoder.block",
    attention=_separate("layer.0.SelfAttention", ("q", "k", "v", "o")),
    mlp=("layer.1.DenseReluDense",),
    mlp_down="layer.1.DenseReluDense.wo",
    resid_mid="layer.1.layer_norm",
    final_norm="encoder.final_layer_norm",
    attn_norm="layer.0.layer_norm",
    mlp_norm="layer.1.layer_norm",
)
_T5 = Family(
    name="t5",
    heads={
        "T5ForConditionalGeneration": Head(
            ("lm_head",), scale=lambda config: config.d_model**-0.5 if config.scale_decoder_outputs else 1.0
        )
    },
    embed="shared",
    encoder=_T5_ENCODER,
    stack=replace(
        _T5_ENCODER,
        layers="decoder.block",
        final_norm="decoder.final_layer_norm",
        cross=_separate("layer.1.EncDecAttention", ("q", "k", "v", "o")),
        resid_mid="layer.1.layer_norm",
        cross_resid_mid="layer.2.layer_norm",
        mlp=("layer.2.DenseReluDense",),
        mlp_down="layer.2.DenseReluDense.wo",
        mlp_norm="layer.2.layer_norm",
    ),
)


def _bert_stack(root: str) -> Stack:
    return Stack(
        layers=f"{root}.encoder.layer",
        attention=Attention(
            "attention.self",
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
        ),
        mlp=("intermediate", "output.dense"),
        mlp_down="output.dense",
        resid_mid="attention.output.LayerNorm",
        final_norm=None,
        attn_norm="attention.output.LayerNorm",
        mlp_norm="output.LayerNorm",
        norm_of_sum=True,
    )


def _pooled(linear: str, after: Callable[[Any, Tensor], Tensor]) -> Head:
    return Head((linear,), reads="first", kind="classifier", after=after)


def _masked(linear: str, after: Callable[[Any, Tensor], Tensor]) -> Head:
    return Head((linear,), kind="masked language model", after=after)


def _bert_predictions(model: Any, dense: Tensor) -> Tensor:
    predictions = model.cls.predictions
    transform = predictions.transform
    return predictions.decoder(transform.LayerNorm(transform.transform_act_fn(dense)))


def _roberta_predictions(model: Any, dense: Tensor) -> Tensor:
    return model.lm_head.decoder(model.lm_head.layer_norm(nn.functional.gelu(dense)))


def _distilbert_predictions(model: Any, dense: Tensor) -> Tensor:
    return model.vocab_projector(model.vocab_layer_norm(model.activation(dense)))


_BERT = Family(
    name="bert",
    heads={
        "BertForSequenceClassification": _pooled(
            "bert.pooler.dense", lambda model, dense: model.classifier(model.bert.pooler.activation(dense))
        ),
        "BertForMaskedLM": _masked("cls.predictions.transform.dense", _bert_predictions),
    },
    embed="bert.embeddings.word_embeddings",
    causal=False,
    stack=_bert_stack("bert"),
)
_ROBERTA = Family(
    name="roberta",
    heads={
        "RobertaForSequenceClassification": _pooled(
            "classifier.dense", lambda model, dense: model.classifier.out_proj(torch.tanh(dense))
        ),
        "RobertaForMaskedLM": _masked("lm_head.dense", _roberta_predictions),
    },
    embed="roberta.embeddings.word_embeddings",
    causal=False,
    stack=_bert_stack("roberta"),
    position_offset=lambda config: config.pad_token_id + 1,
)
_DISTILBERT = Family(
    name="distilbert",
    heads={
        "DistilBertForSequenceClassification": _pooled(
            "pre_classifier", lambda model, dense: model.classifier(torch.relu(dense))
        ),
        "DistilBertForMaskedLM": _masked("vocab_transform", _distilbert_predictions),
    },
    embed="distilbert.embeddings.word_embeddings",
    causal=False,
    stack=Stack(
        layers="distilbert.transformer.layer",
        attention=_separate("attention", ("q_lin", "k_lin", "v_lin", "out_lin")),
        mlp=("ffn",),
        mlp_down="ffn.lin2",
        resid_mid="sa_layer_norm",
        final_norm=None,
        attn_norm="sa_layer_norm",
        mlp_norm="output_layer_norm",
        norm_of_sum=True,
    ),
)

FAMILIES: list[Family] = [
    _GPT2,
    _like_llama("llama", "Llama"),
    _like_llama("mistral", "Mistral"),
    _like_llama("qwen2", "Qwen2"),
    _like_llama("qwen3", "Qwen3"),
    _like_llama("phi3", "Phi3", replace(_LLAMA_STACK, attention=_fused("self_attn", "qkv_proj", "o_proj", "blocks"))),
    _like_llama(
        "olmo2",
        "Olmo2",
        replace(
            _LLAMA_STACK,
            attention=_separate("self_attn", post_norm="post_attention_layernorm"),
            attn_norm=None,
            mlp_norm=None,
            resid_mid="mlp",
            mlp_post_norm="post_feedforward_layernorm",
        ),
    ),
    _like_llama(
        "gemma2",
        "Gemma2",
        _GEMMA_STACK,
        heads={"Gemma2ForCausalLM": _CAPPED_HEAD, "Gemma2ForSequenceClassification": SCORE},
    ),
    _like_llama(
        "gemma3",
        "Gemma3",
        _GEMMA_STACK,
        heads={"Gemma3ForCausalLM": _CAPPED_HEAD, "Gemma3TextForSequenceClassification": SCORE},
    ),
    _NEOX,
    _OPT,
    _BLOOM,
    _T5,
    _BERT,
    _ROBERTA,
    _DISTILBERT,
]


def family_of(architecture: str) -> Family:
    """The row that covers `architecture`, a class name of transformers.

    Raises:
        UnknownFamily: no row covers it; the message says what a row needs.
    """
    for family in reversed(FAMILIES):
        if architecture in family.heads:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.heads)
    raise UnknownFamily(
        f"architecture {architecture} is not known; describe it in one row, interp.families.Family(name, heads, embed,"
        " stack), which says where its blocks, projections, norms and unembedding are, and pass that to"
        f" interp.register_family. Known are {known}"
    )


def register_family(family: Family) -> None:
    """Add a row, so that models of its architectures can be read; it goes before one that covers the same.

    Every model is checked when it is loaded: its logits, heads, residual terms and attribution must add up
    (`interp.models.check_fidelity`), so a row that is wrong in `o`, the MLP, a norm or the readout is caught there. The
    paths of `q`, `k` and `v` enter none of these sums: see to them yourself, they decide the QK and OV circuits.

    Raises:
        UnknownFamily: the row is not a Family, or names no architecture.
    """
    if not isinstance(family, Family) or not family.heads:
        raise UnknownFamily("register_family takes an interp.families.Family that names at least one architecture")
    wrong = [name for name, head in family.heads.items() if not isinstance(head, Head)]
    if wrong:
        raise UnknownFamily(f"heads of {family.name}: {wrong[0]} is read by an interp.families.Head, nothing else")
    FAMILIES.append(family)
