"""Figures of a comparison: functions that take a result and return a matplotlib Figure.

They compute nothing beyond averages over prompts, show nothing and leave pyplot alone. Two colours stand for the two
models everywhere: blue (circles, dashed) for base, vermilion (squares, solid) for tuned. What null runs and replicates
give is drawn behind as a faint range. `width` is in cm: 17 is a page, 8.5 a column.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Concatenate, ParamSpec

from matplotlib.figure import Figure

from interp.plot import circuits
from interp.plot import patching as _patching  # noqa: F401  its figures register themselves
from interp.plot.attention import attention_classes, ov_circuits
from interp.plot.bars import attribution, neurons
from interp.plot.lines import lens, residual
from interp.plot.maps import attention_change, attention_entropy, heads, weights
from interp.plot.positions import entropy, kl
from interp.plot.rewards import implicit_reward, over_optimisation, probes, token_join
from interp.plot.sites import lens_positions
from interp.plot.spectrum import singular_directions
from interp.plot.style import Result
from interp.plot.tokens import answers, mass_outside, movers, top_tokens

__all__ = [
    "Plots",
    "answers",
    "attention_change",
    "attention_classes",
    "attention_entropy",
    "attribution",
    "circuits",
    "entropy",
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
    "singular_directions",
    "token_join",
    "top_tokens",
    "weights",
]

Options = ParamSpec("Options")


def _method(draw: Callable[Concatenate[Result, Options], Figure]) -> Callable[Concatenate[Plots, Options], Figure]:
    """`draw` as a method of Plots, with its options and its docstring."""

    @functools.wraps(draw)
    def method(self: Plots, *args: Options.args, **options: Options.kwargs) -> Figure:
        return draw(self.result, *args, **options)

    return method


@dataclass(frozen=True)
class Plots:
    """The figures of one result as methods: `Plots(cmp).lens()` is `lens(cmp)`."""

    result: Result

    top_tokens = _method(top_tokens)
    movers = _method(movers)
    answers = _method(answers)
    mass_outside = _method(mass_outside)
    kl = _method(kl)
    entropy = _method(entropy)
    lens = _method(lens)
    lens_positions = _method(lens_positions)
    residual = _method(residual)
    attribution = _method(attribution)
    heads = _method(heads)
    neurons = _method(neurons)
    attention_change = _method(attention_change)
    attention_entropy = _method(attention_entropy)
    attention_classes = _method(attention_classes)
    ov_circuits = _method(ov_circuits)
    weights = _method(weights)
    singular_directions = _method(singular_directions)
    implicit_reward = _method(implicit_reward)
    token_join = _method(token_join)
    over_optimisation = _method(over_optimisation)
    probes = _method(probes)
