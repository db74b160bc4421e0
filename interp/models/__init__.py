"""Policy and RewardModel: a model, its tokenizer and its named parts, checked when it is loaded."""

from interp.models.fidelity import check_fidelity
from interp.models.policy import Policy, Trace
from interp.models.pretrained import load_model, load_tokenizer
from interp.models.reward_model import RewardModel, RewardTrace
from interp.models.running import inference
from interp.models.source import Source, describe_source, source_name

__all__ = [
    "Policy",
    "RewardModel",
    "RewardTrace",
    "Source",
    "Trace",
    "check_fidelity",
    "describe_source",
    "inference",
    "load_model",
    "load_tokenizer",
    "source_name",
]
