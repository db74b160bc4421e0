"""Architecture families: rows of paths, and a row bound to one model."""

from typing import TYPE_CHECKING

from interp.families.layout import Attention, Family, Head, Stack
from interp.families.norms import NormParameters, norm_parameters
from interp.families.parts import Parts, effective, named_weights
from interp.families.rows import FAMILIES, family_of, register_family
from interp.lazy import submodules

__all__ = [
    "FAMILIES",
    "Attention",
    "Family",
    "Head",
    "NormParameters",
    "Parts",
    "Stack",
    "effective",
    "family_of",
    "named_weights",
    "norm_parameters",
    "register_family",
]

if not TYPE_CHECKING:
    __getattr__ = submodules(__name__)
