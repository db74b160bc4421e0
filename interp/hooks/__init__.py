"""Hooks: named sites in a model, and context managers that read or change what passes through them.

Sites carry TransformerLens's names: `Site("z", 3)` is `blocks.3.attn.hook_z`. Hooks are plain forward hooks of torch;
they are gone when the context ends, however it ends.
"""

from typing import TYPE_CHECKING

from interp.hooks.capture import capture
from interp.hooks.edit import Edit, patch
from interp.hooks.sites import Site, has_site
from interp.lazy import submodules

__all__ = ["Edit", "Site", "capture", "has_site", "patch"]

if not TYPE_CHECKING:
    __getattr__ = submodules(__name__)
