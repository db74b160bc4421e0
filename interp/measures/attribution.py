"""Direct logit attribution: what each component writes straight into a logit difference.

With the final norm's scale frozen, a logit is linear in the residual r = sum of terms t. For a target direction u of
the unembedding and a norm with gain g, shift b and scale s, the term t is credited with centre(t) . (g * u) / s; the
norm's shift b . u and the unembedding's own bias form the component `bias`. Each model is read through its own norm and
unembedding. (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; the frozen norm as in
TransformerLens.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from interp.families import norm_parameters
from interp.hooks import Site
from interp.measures.arrays import dataset, stack_models, variable
from interp.measures.logits import logit_difference, target_ids
from interp.models import Policy, Trace


def attribution_sites(policy: Policy) -> list[Site]:
    """The residual's terms, every head's z, and the final residual."""
    layers = policy.parts.n_layers
    return [*policy.residual_sites(), *(Site("z", i) for i in range(layers)), Site("resid_post", layers - 1)]


@dataclass(frozen=True)
class Writes:
    """What the parts of one model write at each prompt's last token, and how it is read; float64.

    Attributes:
        components: centred output of each residual term.
        heads: centred output of each head (z W_O), by layer.
        attn_bias: centred b_O by layer; zero where there is none.
        readout: the direction (g * u) / s by which a term is read.
        bias: contribution of the final norm's shift and the unembedding's bias.
    """

    components: Float[Tensor, "prompt component d_model"]
    heads: Float[Tensor, "prompt layer head d_model"]
    attn_bias: Float[Tensor, "prompt layer d_model"]
    readout: Float[Tensor, "prompt d_model"]
    bias: Float[Tensor, " prompt"]


def writes(trace: Trace, targets: Int[Tensor, "prompt 2"]) -> Writes:
    """Collect what is written and how it is read, for the logit of targets[:, 0] minus that of targets[:, 1]."""
    policy, parts = trace.policy, trace.policy.parts
    norm = norm_parameters(parts.final_norm)
    final = trace.last(Site("resid_post", parts.n_layers - 1))
    weight, unembed_bias = parts.unembedding()
    columns = weight.detach().T[targets.to(weight.device)].double()
    direction = columns[:, 0] - columns[:, 1]
    bias = torch.zeros(len(final), dtype=torch.float64, device=final.device)
    if norm.shift is not None:
        bias = bias + direction @ norm.shift
    if unembed_bias is not None:
        chosen = unembed_bias.detach().double()[targets.to(unembed_bias.device)]
        bias = bias + chosen[:, 0] - chosen[:, 1]
    terms = [trace[site].expand(len(final), -1, -1) for site in policy.residual_sites()]
    components = torch.stack([trace.batch.at_last_prompt(term).double() for term in terms], dim=1)
    heads, attn_bias = [], []
    for layer in range(parts.n_layers):
        heads.append(torch.einsum("phd,hdm->phm", trace.last(Site("z", layer)), parts.W_O(layer).detach().double()))
        b_O = parts.b_O(layer)
        attn_bias.append(torch.zeros_like(final) if b_O is None else b_O.detach().double().expand_as(final))
    return Writes(
        components=norm.centre(components),
        heads=norm.centre(torch.stack(heads, dim=1)),
        attn_bias=norm.centre(torch.stack(attn_bias, dim=1)),
        readout=norm.gain * direction / norm.scale(final),
        bias=bias,
    )


def attribute(
    written: Float[Tensor, "prompt *part d_model"], readout: Float[Tensor, "prompt d_model"]
) -> Float[Tensor, " prompt *part"]:
    """Contribution of each part: what it writes, dotted with the readout."""
    return torch.einsum("p...m,pm->p...", written, readout)


def split(
    base: Float[Tensor, "prompt *part d_model"],
    tuned: Float[Tensor, "prompt *part d_model"],
    readouts: tuple[Float[Tensor, "prompt d_model"], Float[Tensor, "prompt d_model"]],
) -> tuple[Float[Tensor, " prompt *part"], Float[Tensor, " prompt *part"]]:
    """Split tuned minus base exactly into the change of what is written and the change of how it is read.

    w_t . r_t - w_b . r_b = (w_t - w_b) . (r_t + r_b) / 2 + (w_t + w_b) / 2 . (r_t - r_b).

    Args:
        base: what base's parts write.
        tuned: what tuned's parts write.
        readouts: readout of base and of tuned.

    Returns:
        (write, readout), which sum to the difference.
    """
    r_base, r_tuned = readouts
    return attribute(tuned - base, (r_base + r_tuned) / 2), attribute((tuned + base) / 2, r_tuned - r_base)


def component_names(policy: Policy) -> list[str]:
    """Labels of the dim `component`: embeddings, attention and MLP of each layer, and `bias`."""
    short = {"attn_out": "attn", "mlp_out": "mlp"}
    sites = policy.residual_sites()
    return [s.name if s.layer is None else f"L{s.layer}.{short[s.name]}" for s in sites] + ["bias"]


def attribution(base: Trace, tuned: Trace) -> xr.Dataset:
    """Direct logit attribution of both models at each prompt's last token, by component and by head.

    The target is the prompts' answers, or tuned's top token minus base's likeliest other. `completeness_error` is
    |sum of all components - logit difference| by model; heads and `attn_bias_attribution` sum to their attention's
    component. The write and readout parts sum to tuned minus base.
    """
    targets = target_ids(base, tuned).cpu()
    both = [_on_cpu(writes(trace, targets)) for trace in (base, tuned)]
    readouts = (both[0].readout, both[1].readout)
    components = [torch.cat([attribute(w.components, w.readout), w.bias[:, None]], dim=1) for w in both]
    exact = [logit_difference(trace.last_logits, targets).cpu() for trace in (base, tuned)]
    errors = [(total.sum(1) - value).abs() for total, value in zip(components, exact, strict=True)]
    write, readout = split(both[0].components, both[1].components, readouts)
    # The bias has no activation: the norm's shift and the unembedding are all readout.
    write = torch.cat([write, torch.zeros(len(write), 1, dtype=write.dtype)], dim=1)
    readout = torch.cat([readout, (both[1].bias - both[0].bias)[:, None]], dim=1)
    heads = [attribute(w.heads, w.readout) for w in both]
    head_write, head_readout = split(both[0].heads, both[1].heads, readouts)
    biases = [attribute(w.attn_bias, w.readout) for w in both]
    name = "direct logit attribution"
    return dataset(
        {
            "attribution": variable("prompt model component", stack_models(*components), name, "logits"),
            "attribution_write": variable("prompt component", write, "change of what is written", "logits"),
            "attribution_readout": variable("prompt component", readout, "change of how it is read", "logits"),
            "completeness_error": variable("prompt model", stack_models(*errors), "|sum - logit difference|", "logits"),
            "head_attribution": variable("prompt model layer head", stack_models(*heads), f"{name} by head", "logits"),
            "head_attribution_write": variable("prompt layer head", head_write, "change of what is written", "logits"),
            "head_attribution_readout": variable(
                "prompt layer head", head_readout, "change of how it is read", "logits"
            ),
            "attn_bias_attribution": variable("prompt model layer", stack_models(*biases), f"{name} of b_O", "logits"),
        },
        component=component_names(base.policy),
        layer=range(base.policy.parts.n_layers),
        head=range(base.policy.parts.n_heads),
    )


def _on_cpu(w: Writes) -> Writes:
    return Writes(w.components.cpu(), w.heads.cpu(), w.attn_bias.cpu(), w.readout.cpu(), w.bias.cpu())
