"""Reading a reward model: where its score comes from, what it holds on to, and what follows from it in the policy.

Names are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.lazy import lazy

if TYPE_CHECKING:
    from interp.reward.against import against_patching
    from interp.reward.attributing import attribute, score_range
    from interp.reward.attribution import Attribution, rank_correlation
    from interp.reward.counter import Counterexamples, counterexamples
    from interp.reward.direct import DirectAttribution, direct_attribution
    from interp.reward.holding import Spurious, spurious
    from interp.reward.implicit import ImplicitReward, implicit_reward
    from interp.reward.layers import Lens, lens
    from interp.reward.optimisation import OverOptimisation, over_optimisation
    from interp.reward.probing import Probes, probes
    from interp.reward.tokens import TokenJoin, token_join

_HOMES = {
    "Attribution": "interp.reward.attribution",
    "Counterexamples": "interp.reward.counter",
    "DirectAttribution": "interp.reward.direct",
    "ImplicitReward": "interp.reward.implicit",
    "Lens": "interp.reward.layers",
    "OverOptimisation": "interp.reward.optimisation",
    "Probes": "interp.reward.probing",
    "Spurious": "interp.reward.holding",
    "TokenJoin": "interp.reward.tokens",
    "against_patching": "interp.reward.against",
    "attribute": "interp.reward.attributing",
    "counterexamples": "interp.reward.counter",
    "direct_attribution": "interp.reward.direct",
    "implicit_reward": "interp.reward.implicit",
    "lens": "interp.reward.layers",
    "over_optimisation": "interp.reward.optimisation",
    "probes": "interp.reward.probing",
    "rank_correlation": "interp.reward.attribution",
    "score_range": "interp.reward.attributing",
    "spurious": "interp.reward.holding",
    "token_join": "interp.reward.tokens",
}

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

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__, _HOMES)
