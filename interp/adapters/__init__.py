"""LoRA adapters on a model, without a second copy of its weights.

A model with an adapter is a second tree of modules over the *same* tensors: every weight of the base exists once, the
tree that was there before is not touched, and both can be run at any time.
"""

from interp.adapters.files import CONFIG, Adapter, Change, is_adapter, read_adapter, read_config
from interp.adapters.modules import effective, named_weights, shared_copy, with_adapter
from interp.adapters.wrapped import has_adapter, unwrap, without_adapter

__all__ = [
    "CONFIG",
    "Adapter",
    "Change",
    "effective",
    "has_adapter",
    "is_adapter",
    "named_weights",
    "read_adapter",
    "read_config",
    "shared_copy",
    "unwrap",
    "with_adapter",
    "without_adapter",
]
