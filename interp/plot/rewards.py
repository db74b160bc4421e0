"""What joins the reward to the policy, as figures of a comparison."""

from __future__ import annotations

from matplotlib.figure import Figure

from interp.plot import join
from interp.plot.registry import figure
from interp.plot.style import PAGE, Result, joined
from interp.reward.joining import implicit_reward_of, token_join_of
from interp.reward.over_training import over_optimisation_of, probes_of


@figure("comparison", needs=joined("implicit_reward"))
def implicit_reward(cmp: Result, *, width: float = PAGE) -> Figure:
    """The policy's shift against the reward within prompts, and the slope beside those of permuted rewards.

    Args:
        cmp: a comparison with `implicit_reward`.
        width: of the figure in cm; under 12 the panels stand one above the other.

    Raises:
        MeasureError: it has none.
    """
    return join.implicit_reward(implicit_reward_of(cmp.dataset), width=width)


@figure("comparison", needs=joined("token_join"))
def token_join(cmp: Result, *, width: float = PAGE) -> Figure:
    """Log-ratio against reward attribution, span by span, and the rank correlation beside those of permuted ones.

    Args:
        cmp: a comparison with `token_join`.
        width: of the figure in cm; under 12 the panels stand one above the other.

    Raises:
        MeasureError: it has none.
    """
    return join.token_join(token_join_of(cmp.dataset), width=width)


@figure("comparison", needs=joined("over_optimisation"))
def over_optimisation(cmp: Result, *, width: float = PAGE) -> Figure:
    """Gain of the optimised reward against the square root of KL, and KL over the training.

    Args:
        cmp: a comparison with `over_optimisation`.
        width: of the figure in cm; under 12 the panels stand one above the other.

    Raises:
        MeasureError: it has none.
    """
    return join.over_optimisation(over_optimisation_of(cmp.dataset), width=width)


@figure("comparison", needs=joined("probes"))
def probes(cmp: Result, *, width: float = PAGE) -> Figure:
    """When and where a high reward could be read, in policy and reward model.

    Args:
        cmp: a comparison with `probes`.
        width: of the figure in cm; under 12 the panels stand one above the other.

    Raises:
        MeasureError: it has none.
    """
    return join.probes(probes_of(cmp.dataset), width=width)
