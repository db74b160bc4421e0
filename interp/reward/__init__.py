"""Reading a reward model: where its score comes from, what it goes by, and what follows from it in the policy."""

from typing import TYPE_CHECKING

from interp.lazy import submodules
from interp.reward.attribution import Attribution, against_patching, attribute, rank_correlation, score_range
from interp.reward.counterexamples import Counterexamples, counterexamples
from interp.reward.direct_attribution import DirectAttribution, direct_attribution
from interp.reward.implicit_reward import ImplicitReward, implicit_reward
from interp.reward.lens import Lens, lens
from interp.reward.over_optimisation import OverOptimisation, over_optimisation
from interp.reward.probes import Probes, probes
from interp.reward.spurious import Spurious, spurious
from interp.reward.token_join import TokenJoin, token_join

__all__ = [
    "Attribution",
    "Counterexamples",
    "DirectAttribution",
    "ImplicitReward",
    "Lens",
    "OverOptimisation",
    "Probes",
    "Spurious",
    "TokenJoin",
    "against_patching",
    "attribute",
    "counterexamples",
    "direct_attribution",
    "implicit_reward",
    "lens",
    "over_optimisation",
    "probes",
    "rank_correlation",
    "score_range",
    "spurious",
    "token_join",
]


def __dir__() -> list[str]:
    return list(__all__)


if not TYPE_CHECKING:
    __getattr__ = submodules(__name__)
