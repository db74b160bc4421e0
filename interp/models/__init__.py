"""Policy and RewardModel: a model, its tokenizer and its named parts, checked when it is loaded."""

from interp.loading import Source, describe_source, load_model, load_tokenizer, source_name
from interp.models.fidelity import check_fidelity
from interp.models.policy import Policy, Trace
from interp.models.reward import RewardModel, RewardTrace
from interp.models.running import as_found

__all__ = [
    "Policy",
    "RewardModel",
    "RewardTrace",
    "Source",
    "Trace",
    "as_found",
    "check_fidelity",
    "describe_source",
    "load_model",
    "load_tokenizer",
    "source_name",
]
