"""Figures of a comparison: functions that take a result and return a matplotlib Figure.

They compute nothing beyond averages over prompts, show nothing and leave pyplot alone. Two colours stand for the two
models everywhere: blue (circles, dashed) for base, vermilion (squares, solid) for tuned. What control runs and
replicates give is drawn behind as a faint range. `width` is in cm: 17 is a page, 8.5 a column. A function decorated
with `figure` is a figure of its kind of result too: `result.plot.NAME()`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.lazy import submodules
from interp.plot import circuits
from interp.plot import patching as _patching  # noqa: F401  its figures register themselves
from interp.plot.attention import attention_classes, ov_circuits
from interp.plot.bars import attribution, neurons
from interp.plot.lines import lens, residual
from interp.plot.maps import attention_change, attention_entropy, heads, weights
from interp.plot.positions import entropy, kl
from interp.plot.registry import figure
from interp.plot.reward import reward_components, reward_lens, reward_words, spurious
from interp.plot.reward_joins import implicit_reward, over_optimisation, probes, token_join
from interp.plot.sites import lens_positions
from interp.plot.spectrum import singular_directions
from interp.plot.tokens import answers, mass_outside, movers, top_tokens

__all__ = [
    "answers",
    "attention_change",
    "attention_classes",
    "attention_entropy",
    "attribution",
    "circuits",
    "entropy",
    "figure",
    "heads",
    "implicit_reward",
    "kl",
    "lens",
    "lens_positions",
    "mass_outside",
    "movers",
    "neurons",
    "over_optimisation",
    "ov_circuits",
    "probes",
    "residual",
    "reward_components",
    "reward_lens",
    "reward_words",
    "singular_directions",
    "spurious",
    "token_join",
    "top_tokens",
    "weights",
]

if not TYPE_CHECKING:
    __getattr__ = submodules(__name__)
