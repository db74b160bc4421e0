"""Does what the hooks capture add up to the bare model? Checked whenever a policy is loaded."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from interp.decomposition import (
    attribute_heads,
    attribute_terms,
    carried_terms,
    decomposition_sites,
    directions,
    head_sites,
    residual_sites,
)
from interp.errors import FidelityError
from interp.families import Parts
from interp.families.parts import StackName
from interp.hooks import Site, has_site
from interp.models.running import at_read_token, forward_inputs, inference, run
from interp.prompts import Batch, make_batch


def check_fidelity(model: nn.Module, name: str | None = None) -> dict[str, float]:
    """Compare what is captured with the bare model, on two short rows of which one is padded.

    Checked, each as a fraction of the largest magnitude in what it is compared with:

    - `logits`: of the hooked model and of the bare one, on the same batch and kernel;
    - `padding`: logits with padding on the left and on the right (here a fraction of max(1, max|logit|));
    - `residual`: the residual's terms, and the last residual, in every stack;
    - `heads`: z W_O over heads, b_O and a norm after the sublayer, and attn_out, in every stack;
    - `attribution`: all components' attribution, and the last quantity linear in the residual.

    Args:
        model: a model of transformers whose class is in some row, a policy's or a classifier.
        name: how an error calls it; None: by its class.

    Returns:
        The largest error of each kind.

    Raises:
        FidelityError: one is above 1e-6 (logits), 1e-5 (the others), or 10 rounding errors of the model's dtype.
    """
    name = name or type(model).__name__
    try:
        errors = fidelity(Parts(model))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as misfit:  # shapes that do not fit
        reason = str(misfit).splitlines()[0]
        raise FidelityError(
            f"{name}: what is captured does not fit together ({reason}); correct its family's row"
        ) from misfit
    dtype = next(model.parameters()).dtype
    rounding = 10 * torch.finfo(dtype).eps
    for kind, error in errors.items():
        if error != error and dtype == torch.float64 and _all_finite(model):
            raise FidelityError(
                f"{name}: in float64 this model gives NaN where a row is padded, since transformers masks with a number"
                ' that its softmax, in float32, cannot hold; load it with dtype="float32"'
            )
        limit = max(1e-6 if kind == "logits" else 1e-5, rounding)
        if not error <= limit:
            raise FidelityError(
                f"{name}: {kind} differ from the bare model by {error:.1e} of their size, over the limit {limit:.0e};"
                " the weights hold NaN, the module was changed, or its family's row is wrong: load it anew"
            )
    return errors


def _all_finite(model: nn.Module) -> bool:
    return all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def fidelity(parts: Parts) -> dict[str, float]:
    """The errors that `check_fidelity` judges."""
    batch, left = _probe(parts, "right"), _probe(parts, "left")
    stacks: list[StackName | None] = [None, "encoder"] if parts.family.encoder else [None]
    sites = [site for stack in stacks for site in _stack_sites(parts, stack)]
    logits, store = run(parts, batch, sites, eager=True)
    every = parts.head.reads == "every"
    real = batch.attention_mask if every else torch.ones_like(batch.prompt_lengths, dtype=torch.bool)
    left_logits = run(parts, left, eager=True)[0]
    left_real = left_logits[left.attention_mask] if every else left_logits
    return {
        "logits": _relative(logits[real], _bare(parts, batch)[real]),
        "padding": float((logits[real] - left_real).abs().max().double() / logits[real].abs().max().clamp_min(1.0)),
        "residual": max(_residual_error(parts, batch, store, stack) for stack in stacks),
        "heads": max(
            _head_error(parts, batch, store, site) for stack in parts.stacks for site in _by_layer(parts, "z", stack)
        ),
        "attribution": _attribution_error(parts, batch, store),
    }


def _probe(parts: Parts, side: Literal["left", "right"]) -> Batch:
    """Two rows of random tokens, of 8 and of 5 tokens where the context has room."""
    config: Any = parts.model.config
    generator = torch.Generator().manual_seed(0)
    limit = getattr(config, "max_position_embeddings", None)
    length = 8 if limit is None else min(8, limit - parts.family.position_offset(config))
    size = min(next(parts.embed.parameters()).shape[0], config.vocab_size)
    # A model that finds padding by its id (a classifier's last token) must not meet that id among the words.
    ids = [i for i in torch.randint(size, (4 * length,), generator=generator).tolist() if i != config.pad_token_id]
    ids = (ids or [0]) * 2 * length
    rows = [ids[:length], ids[length : length + max(1, length - 3)]]
    encoder = [ids[: length + 1], ids[: max(1, length - 2)]] if parts.family.encoder else None
    return make_batch(rows, encoder=encoder, padding_side=side).to(next(parts.embed.parameters()).device)


def _bare(parts: Parts, batch: Batch) -> Tensor:
    """Logits of the model itself: on the batch, or, where it reads one token, on each row without padding."""
    with inference(parts.model, eager=True):
        if parts.head.reads == "every":
            return parts.model(**forward_inputs(parts, batch)).logits
        rows = [ids[mask].tolist() for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]
        alone = [make_batch([row]).to(batch.input_ids.device) for row in rows]
        return torch.cat([parts.model(**forward_inputs(parts, one)).logits for one in alone])


def _stack_sites(parts: Parts, stack: StackName | None) -> list[Site]:
    if stack is None:
        return [*decomposition_sites(parts), *head_sites(parts), *_by_layer(parts, "attn_out", "cross")]
    final = Site("resid_post", parts.n_encoder_layers - 1, stack)
    return [*residual_sites(parts, stack), final, *_by_layer(parts, "z", stack)]


def _by_layer(parts: Parts, name: str, stack: StackName | None) -> list[Site]:
    count = parts.n_encoder_layers if stack == "encoder" else parts.n_layers
    return [site for site in (Site(name, layer, stack) for layer in range(count)) if has_site(parts, site)]


def _mask(batch: Batch, stack: StackName | None) -> Tensor:
    mask = batch.encoder_mask if stack == "encoder" else batch.attention_mask
    assert mask is not None
    return mask


def _residual_error(parts: Parts, batch: Batch, store: dict[Site, Tensor], stack: StackName | None) -> float:
    real = _mask(batch, stack)

    def read(site: Site) -> Tensor:
        return store[site].expand(len(real), -1, -1)[real].double()

    if stack is None:
        terms, last = carried_terms(parts, read), Site("resid_post", parts.n_layers - 1)
    else:
        terms = torch.stack([read(site) for site in residual_sites(parts, stack)], dim=1)
        last = Site("resid_post", parts.n_encoder_layers - 1, stack)
    return _relative(terms.sum(1), read(last))


def _head_error(parts: Parts, batch: Batch, store: dict[Site, Tensor], site: Site) -> float:
    layer, stack = site.layer, site.stack
    assert layer is not None
    real = _mask(batch, stack)
    z = store[site][real].double()
    summed = torch.einsum("nhd,hdm->nm", z, parts.W_O(layer, stack).detach().double())
    bias = parts.b_O(layer, stack)
    if bias is not None:
        summed = summed + bias.detach().double()
    norm = parts.norm(layer, "attn_post_norm", stack)
    if norm is not None:
        summed = norm.carry(summed, norm.scale(summed)) + (0 if norm.shift is None else norm.shift)
    return _relative(summed, store[Site("attn_out", layer, stack)][real])


def _attribution_error(parts: Parts, batch: Batch, store: dict[Site, Tensor]) -> float:
    """All components' parts of two outputs' difference, by term and with attention by head, against that difference."""

    def read(site: Site) -> Tensor:
        values = store[site].expand(len(batch.input_ids), *store[site].shape[1:])
        return at_read_token(parts, batch, values).double()

    weight, bias = parts.unembedding()
    target = (weight[:, 0] - weight[:, -1]).detach().double().expand(len(batch.input_ids), -1)
    way = directions(parts, read, target)
    with torch.no_grad():
        linear = parts.linear_output(read(Site("resid_post", parts.n_layers - 1)).to(weight.dtype)).double()
    exact = linear[:, 0] - linear[:, -1]
    constant = way.constant + (0 if bias is None else (bias[0] - bias[-1]).detach().double())
    by_term = attribute_terms(parts, read, way)
    errors = [(by_term.sum(1) + constant - exact).abs().max()]
    for index, site in enumerate(residual_sites(parts)):
        if site.name == "attn_out" and site.layer is not None:
            heads, rest = attribute_heads(parts, read, way, site.layer, site.stack)
            errors.append((heads.sum(1) + rest - by_term[:, index]).abs().max())
    return float(torch.stack([e.cpu() for e in errors]).max() / linear.abs().max().cpu().clamp_min(1e-30))


def _relative(got: Tensor, expected: Tensor) -> float:
    expected = expected.double()
    return float((got.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
