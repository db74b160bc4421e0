"""The default readings as one would take them with TransformerLens: its bridge, its cache, its own reductions.

Both models run with the sites of our default set cached. Then, batch by batch: KL and JS at every position and the
entropies, the likeliest tokens and those that moved, the logit difference; the logit lens at the last position
(`accumulated_resid(apply_ln=True)` through W_U and b_U); direct logit attribution by component and by head
(`decompose_resid`, `stack_head_results`, `logit_attrs`); the JS and the entropy of every attention pattern; norm and
cosine of the residuals. Not there, as it has no call for it: the write and readout split, tuned's residual through
base's head, completeness, attention by class of token, OV circuits, token texts and labelled arrays.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from typing import Any

import torch
from torch import Tensor

SITES = (
    "hook_resid_pre",
    "hook_resid_post",
    "hook_attn_out",
    "hook_mlp_out",
    "attn.hook_z",
    "attn.hook_pattern",
    "hook_embed",
    "hook_pos_embed",
    "ln_final.hook_scale",
)


def boot(model: Any, tokenizer: Any) -> Any:
    """A TransformerLens bridge over a copy of a model."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        own = AutoTokenizer.from_pretrained(folder)
        return TransformerBridge.boot_transformers(
            folder, hf_model=copy.deepcopy(model), tokenizer=own, dtype=torch.float32
        )


def job(bridges: tuple[Any, Any], ids: Tensor, answers: tuple[int, int], batch_size: int) -> None:
    """Take the readings on all prompts."""
    with torch.no_grad():
        for batch in ids.split(batch_size):
            runs = [
                bridge.run_with_cache(batch, prepend_bos=False, names_filter=lambda name: name.endswith(SITES))
                for bridge in bridges
            ]
            (base, base_cache), (tuned, tuned_cache) = runs
            _predictions(base, tuned, answers)
            _lens(bridges, (base_cache, tuned_cache), answers)
            targets = [torch.full((len(batch),), answer) for answer in answers]
            for cache in (base_cache, tuned_cache):
                for stack in (cache.decompose_resid(pos_slice=-1), cache.stack_head_results(pos_slice=-1)):
                    cache.logit_attrs(stack, tokens=targets[0], incorrect_tokens=targets[1], pos_slice=-1)
            for layer in range(bridges[0].cfg.n_layers):
                name = f"blocks.{layer}.attn.hook_pattern"
                _js(base_cache[name], tuned_cache[name]).mean(-1)
                for cache in (base_cache, tuned_cache):
                    torch.special.entr(cache[name]).sum(-1).mean(-1)
                name = f"blocks.{layer}.hook_resid_pre"
                torch.cosine_similarity(base_cache[name], tuned_cache[name], dim=-1).mean(-1)
                for cache in (base_cache, tuned_cache):
                    cache[name].norm(dim=-1).mean(-1)


def _predictions(base: Tensor, tuned: Tensor, answers: tuple[int, int]) -> None:
    log_q, log_p = base.log_softmax(-1), tuned.log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    (p * (log_p - log_q)).sum(-1)
    _js(p, q)
    for distribution in (p, q):
        torch.special.entr(distribution).sum(-1)
        distribution[:, -1].topk(10)
    for largest in (True, False):
        (p - q)[:, -1].topk(10, largest=largest)
    for logits in (base, tuned):
        logits[:, -1, answers[0]] - logits[:, -1, answers[1]]


def _lens(bridges: tuple[Any, Any], caches: tuple[Any, Any], answers: tuple[int, int]) -> None:
    stacks = [cache.accumulated_resid(apply_ln=True, pos_slice=-1) for cache in caches]
    for site in range(len(stacks[0])):
        logits = [stack[site] @ bridge.W_U + bridge.b_U for stack, bridge in zip(stacks, bridges, strict=True)]
        log_p = [each.log_softmax(-1) for each in logits]
        (log_p[1].exp() * (log_p[1] - log_p[0])).sum(-1)
        for each, log in zip(logits, log_p, strict=True):
            each.argmax(-1)
            each[:, answers[0]] - each[:, answers[1]]
            log[:, list(answers)].exp()


def _js(p: Tensor, q: Tensor) -> Tensor:
    middle = (p + q) / 2
    return sum(torch.special.xlogy(each, each / middle).nan_to_num().sum(-1) for each in (p, q)) / 2  # type: ignore[return-value]
