"""Does what the hooks capture add up to the bare model? Checked whenever a policy is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.errors import FidelityError
from interp.families import Parts
from interp.hooks import Site
from interp.loading import source_name
from interp.models.running import as_found
from interp.prompts import make_batch

if TYPE_CHECKING:
    from interp.models.policy import Policy, Trace


def check_fidelity(policy: Policy) -> dict[str, float]:
    """Compare a traced pass with the bare model on a small padded batch.

    Checked, each as a fraction of the largest magnitude in what it is compared with: captured logits equal the bare
    model's; embeddings, attention and MLP outputs sum to the final residual; heads (z W_O, and b_O) sum to attn_out.

    Returns:
        The three relative errors: `logits`, `residual`, `heads`.

    Raises:
        FidelityError: one is above 1e-6 (logits), 1e-5 (sums), or 10 rounding errors of the model's dtype.
    """
    parts = policy.parts
    generator = torch.Generator().manual_seed(0)
    length = min(8, policy.context_length or 8)
    ids = torch.randint(policy.vocab_size, (2, length), generator=generator).tolist()
    batch = make_batch([ids[0], ids[1][: max(1, length - 3)]]).to(policy.device)
    layers = range(parts.n_layers)
    final = Site("resid_post", parts.n_layers - 1)
    sites = [*policy.residual_sites(), final, *(Site(n, layer) for layer in layers for n in ("z", "pattern"))]
    trace = policy.trace(batch, sites)
    with as_found(policy.model, eager=True):
        bare = policy.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask.long(),
            position_ids=batch.position_ids,
            use_cache=False,
        ).logits
    real = batch.attention_mask
    errors = {"logits": _relative_error(trace.logits[real], bare[real])}
    total = torch.stack([trace[site].expand_as(trace[final])[real].double() for site in policy.residual_sites()]).sum(0)
    errors["residual"] = _relative_error(total, trace[final][real])
    errors["heads"] = max(_head_error(parts, trace, layer, real) for layer in layers)
    rounding = 10 * torch.finfo(next(policy.model.parameters()).dtype).eps
    for name, error in errors.items():
        limit = max(1e-6 if name == "logits" else 1e-5, rounding)
        if not error <= limit:
            raise FidelityError(
                f"{source_name(policy.description)}: {name} differ from the bare model by {error:.1e} of their size,"
                f" over the limit {limit:.0e}; the weights hold NaN or the module was changed: load it anew"
            )
    return errors


def _head_error(parts: Parts, trace: Trace, layer: int, real: Tensor) -> float:
    z = trace[Site("z", layer)][real].double()
    summed = torch.einsum("nhd,hdm->nm", z, parts.W_O(layer).detach().double())
    bias = parts.b_O(layer)
    if bias is not None:
        summed = summed + bias.detach().double()
    return _relative_error(summed, trace[Site("attn_out", layer)][real])


def _relative_error(got: Tensor, expected: Tensor) -> float:
    expected = expected.double()
    return float((got.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
