"""Comparisons as tests ask for them: what belongs to the pair, and to its sampling, in one call."""

from typing import Any

import interp
from interp import Sampling

OF_THE_PAIR = ("tokenizer", "in_memory", "dtype", "device", "device_map", "trust_remote_code", "allow_pickle")


def _split(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    loading = {name: options.pop(name) for name in OF_THE_PAIR if name in options}
    options["sampling"] = Sampling(options.pop("samples", None), options.pop("max_new_tokens", 24))
    return loading, options


def compare(base, tuned, prompts, **options):
    """`interp.compare` of a pair that is loaded as the options say."""
    loading, options = _split(options)
    runs = {name: options.pop(name) for name in ("controls", "replicates") if name in options}
    return interp.compare(interp.load_pair(base=base, tuned=tuned, **runs, **loading), prompts, **options)


def compare_many(base, tuned, prompts, **options):
    """`interp.compare_many` likewise."""
    loading, options = _split(options)
    pair = interp.load_pair(base=base, tuned=base, **loading)
    return interp.compare_many(pair, tuned, prompts, **options)
