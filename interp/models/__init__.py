"""Models: a policy, a reward model or a pair of policies, loaded, checked, and read by the names of their parts."""

from typing import TYPE_CHECKING

from interp.lazy import submodules
from interp.models.fidelity import check_fidelity
from interp.models.load import as_policy, as_reward, load, load_pair, load_reward
from interp.models.optimised import Optimised
from interp.models.policy import Policy, Trace
from interp.models.pretrained import load_model, load_tokenizer
from interp.models.reward_model import RewardModel, RewardTrace
from interp.models.running import inference
from interp.models.source import Source, describe_source, source_name

__all__ = [
    "Optimised",
    "Policy",
    "RewardModel",
    "RewardTrace",
    "Source",
    "Trace",
    "as_policy",
    "as_reward",
    "check_fidelity",
    "describe_source",
    "inference",
    "load",
    "load_model",
    "load_pair",
    "load_reward",
    "load_tokenizer",
    "source_name",
]

if not TYPE_CHECKING:
    __getattr__ = submodules(__name__)
