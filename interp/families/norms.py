"""What a norm does to a vector once its scale is frozen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.errors import UnknownFamily


@dataclass(frozen=True)
class NormParameters:
    """A LayerNorm or RMSNorm, y = (r - centre(r)) / scale * gain + shift, which is linear in r while scale is frozen.

    Attributes:
        gain: multiplier by dimension.
        shift: bias by dimension, or None.
        centred: whether the mean over dimensions is subtracted (LayerNorm) or not (RMSNorm).
        eps: the constant under the root.
    """

    gain: Float[Tensor, " d_model"]
    shift: Float[Tensor, " d_model"] | None
    centred: bool
    eps: float

    def to(self, device: torch.device) -> NormParameters:
        """The same on another device."""
        return replace(self, gain=self.gain.to(device), shift=None if self.shift is None else self.shift.to(device))

    def centre(self, vectors: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Subtract the mean over dimensions where the norm does."""
        return vectors - vectors.mean(-1, keepdim=True) if self.centred else vectors

    def scale(self, residual: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch 1"]:
        """The number by which the norm divides: standard deviation (LayerNorm) or root mean square (RMSNorm)."""
        return (self.centre(residual).pow(2).mean(-1, keepdim=True) + self.eps).sqrt()

    def carry(
        self, vectors: Float[Tensor, "*batch d_model"], scale: Float[Tensor, "*#batch 1"]
    ) -> Float[Tensor, "*batch d_model"]:
        """What becomes of a part of the norm's input in its output, without the shift."""
        return self.centre(vectors) / scale * self.gain

    def pull(
        self, direction: Float[Tensor, "*batch d_model"], scale: Float[Tensor, "*#batch 1"]
    ) -> Float[Tensor, "*batch d_model"]:
        """The adjoint of `carry`, which takes a direction of the output back to the input."""
        return self.centre(direction * self.gain / scale)


def norm_parameters(norm: nn.Module) -> NormParameters:
    """Read a LayerNorm or an RMSNorm, in float64.

    Norms of transformers differ in whether they subtract the mean and in whether the stored weight is the gain or the
    gain minus 1 (Gemma); which it is, is found once a class by trying them on a probe.

    Raises:
        UnknownFamily: the module is none of these.
    """
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    eps = getattr(norm, "eps", None) if hasattr(norm, "eps") else getattr(norm, "variance_epsilon", None)
    size = norm.normalized_shape[-1] if isinstance(norm, nn.LayerNorm) else None
    if eps is None or (weight is None and size is None):
        raise UnknownFamily(f"the norm {type(norm).__name__} is neither a LayerNorm nor a known RMSNorm")
    gain = weight.detach().double() if weight is not None else torch.ones(int(size or 0), dtype=torch.float64)
    shift = bias.detach().double() if bias is not None else None
    if isinstance(norm, nn.LayerNorm):
        return NormParameters(gain, shift, True, float(eps))
    if type(norm) not in _FORMS:
        _FORMS[type(norm)] = _form(norm, gain, shift, float(eps))
    centred, offset = _FORMS[type(norm)]
    return NormParameters(gain + offset, shift, centred, float(eps))


_FORMS: dict[type, tuple[bool, float]] = {}
"""For each class of norm, whether it subtracts the mean, and what is added to its weight to make the gain."""


def _form(norm: nn.Module, gain: Tensor, shift: Tensor | None, eps: float) -> tuple[bool, float]:
    generator = torch.Generator().manual_seed(0)
    probe: Any = torch.randn(4, len(gain), generator=generator, dtype=torch.float64).to(gain.device) + 0.5
    with torch.no_grad():
        expected = norm(probe.to(norm.weight.dtype)).double()
    for centred in (False, True):
        for offset in (0.0, 1.0):
            form = NormParameters(gain + offset, shift, centred, eps)
            got = form.carry(probe, form.scale(probe)) + (0 if shift is None else shift)
            if (got - expected).abs().max() <= 0.02 * expected.abs().max():
                return centred, offset
    raise UnknownFamily(f"the norm {type(norm).__name__} is neither a LayerNorm nor a known RMSNorm")
