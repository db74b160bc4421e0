"""The layout of an activation: what a module is given, and [batch, seq, ...]."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from interp.families.parts import Parts
from interp.hooks.sites import Site


def first(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The hidden states that a module is called with."""
    value: Tensor = args[0] if args else kwargs["hidden_states"]
    return value


def with_first(args: tuple[Any, ...], kwargs: dict[str, Any], value: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with other hidden states."""
    return ((value, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": value})


def remove_all(handles: Iterable[RemovableHandle]) -> None:
    """Take hooks off."""
    for handle in handles:
        handle.remove()


def shaper(parts: Parts, site: Site) -> tuple[list[RemovableHandle], Callable[[Tensor], Tensor]]:
    """How an activation is brought into the layout [batch, seq, ...], and the hooks that this needs."""
    if site.name in ("z", "result"):
        return [], lambda t: t.unflatten(-1, (parts.n_heads, parts.d_head))
    if site.layer is None or not parts.layout(site.stack).flat_mlp:
        return [], lambda t: t
    lead: list[torch.Size] = []  # batch and seq, which the MLP of OPT does not see

    def remember(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        lead[:] = [first(args, kwargs).shape[:2]]

    handle = parts.block(site.layer, site.stack).register_forward_pre_hook(remember, with_kwargs=True)
    return [handle], lambda t: t.unflatten(0, lead[0]) if t.ndim == 2 else t


def by_head(parts: Parts, site: Site, z: Tensor) -> Tensor:
    """What each head adds to the output of its attention's projection, z W_O: [batch, seq, head, d_model]."""
    assert site.layer is not None
    return torch.einsum("bshd,hdm->bshm", z, parts.W_O(site.layer, site.stack).detach().to(z))
