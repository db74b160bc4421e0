"""Figures of a comparison: functions that take a result and return a matplotlib Figure.

They compute nothing beyond averages over prompts, show nothing and leave pyplot alone. Two colours stand for the two
models everywhere: blue (circles, dashed) for base, vermilion (squares, solid) for tuned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from interp.plot.bars import attribution, top_tokens
from interp.plot.lines import kl, lens
from interp.plot.maps import attention_change, heads, weights
from interp.plot.style import Result

__all__ = ["Plots", "attention_change", "attribution", "heads", "kl", "lens", "top_tokens", "weights"]


@dataclass(frozen=True)
class Plots:
    """The figures of one result as methods: `Plots(cmp).lens()` is `lens(cmp)`."""

    result: Result

    def lens(self) -> Figure:
        """Logit lens over depth; see `interp.plot.lens`."""
        return lens(self.result)

    def attribution(self) -> Figure:
        """Direct logit attribution by component; see `interp.plot.attribution`."""
        return attribution(self.result)

    def heads(self) -> Figure:
        """Head attribution, tuned minus base; see `interp.plot.heads`."""
        return heads(self.result)

    def attention_change(self) -> Figure:
        """Divergence of every head's attention pattern; see `interp.plot.attention_change`."""
        return attention_change(self.result)

    def weights(self) -> Figure:
        """Relative weight change of heads and MLPs; see `interp.plot.weights`."""
        return weights(self.result)

    def kl(self) -> Figure:
        """Divergence by prompt position and by response token; see `interp.plot.kl`."""
        return kl(self.result)

    def top_tokens(self, *, prompts: Sequence[int] = (0, 1, 2), ranks: int = 5) -> Figure:
        """The likeliest next tokens of both models; see `interp.plot.top_tokens`."""
        return top_tokens(self.result, prompts=prompts, ranks=ranks)
