"""Reaching q, k, v and the pattern: what lies between an attention's projections and its output projection.

Families rotate, norm, scale, cap and mask on the way to the dot product, each in its own manner. Models of
transformers hand the finished q, k and v to an attention function that is chosen by name; here a function of that kind
is registered which shows them to whoever listens and computes what the family's eager function computes. BLOOM has no
such function, and nothing between its projections and the dot product: there the projections' outputs are read.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from interp.errors import MeasureError
from interp.families.parts import Parts, StackName

Change = Callable[[Tensor], Tensor]
Given = tuple[Tensor, Tensor, Tensor, "Tensor | None", dict[str, Any]]
"""q, k, v ([batch, head, seq, d_head]), mask and options of an attention function."""
KERNEL = "interp_eager"
"""The name under which the listening attention function is registered with transformers."""


@dataclass
class Tap:
    """Who listens at one attention; functions run in order, and each gets what the one before returned.

    Attributes:
        changes: by "q", "k", "v" ([batch, seq, head, d_head]) and "pattern" ([batch, head, query, key]) the functions
            whose results take the place of what they are given.
        stops: the pass ends here; what the attention function was given goes to `stopping_at_attention`.
    """

    changes: dict[str, list[Change]] = field(default_factory=dict)
    stops: bool = False

    def apply(self, name: str, value: Tensor) -> Tensor:
        """What becomes of a value of the layout of `Site`."""
        for change in self.changes.get(name, ()):
            value = change(value)
        return value


class _Reached(Exception):
    """Carries what an attention function was given out of the pass that it ends."""

    def __init__(self, given: Given) -> None:
        super().__init__("the pass ends at this attention")
        self.given = given


_TAPS: dict[int, Tap] = {}
"""By id of an attention module that is being listened to."""


def attention_function(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """The family's eager attention, with q, k, v and pattern shown to the module's tap.

    The signature is that of transformers' attention functions: q, k and v are [batch, head, seq, d_head].
    """
    eager, tap = eager_function(module), _TAPS.get(id(module), Tap())
    if tap.stops:
        raise _Reached((query, key, value, attention_mask, kwargs))
    query, key, value = (
        tap.apply(name, each.transpose(1, 2)).transpose(1, 2) for name, each in (("q", query), ("k", key), ("v", value))
    )
    output, pattern = eager(module, query, key, value, _as_numbers(module, attention_mask, query, key), **kwargs)
    if "pattern" not in tap.changes:
        return output, pattern
    pattern = tap.apply("pattern", pattern)
    per_head = value.repeat_interleave(pattern.shape[1] // value.shape[1], dim=1)
    return (pattern @ per_head).transpose(1, 2).contiguous(), pattern


def _as_numbers(module: nn.Module, mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
    """A mask that is added to the scores, out of one that was made for another kernel (a replayed block's)."""
    if mask is None and getattr(module, "is_causal", False):
        ones = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device)
        mask = ones.tril(key.shape[-2] - query.shape[-2])[None, None]
    if mask is None or mask.dtype != torch.bool:
        return mask
    lowest = torch.finfo(query.dtype).min
    return torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill(~mask, lowest)


def eager_function(module: nn.Module) -> Callable[..., tuple[Tensor, Tensor]]:
    """The eager attention function of the file in which an attention's class is written.

    Raises:
        MeasureError: the file has none.
    """
    for kind in type(module).__mro__:
        found: Any = getattr(sys.modules.get(kind.__module__), "eager_attention_forward", None)
        if found is not None:
            return found
    raise MeasureError(f"{type(module).__name__} does not hand its q, k and v to an attention function")


AttentionInterface.register(KERNEL, attention_function)
AttentionMaskInterface.register(KERNEL, eager_mask)


def listens(attention: nn.Module) -> bool:
    """Whether an attention hands its q, k and v to an attention function."""
    try:
        eager_function(attention)
    except MeasureError:
        return False
    return True


@contextlib.contextmanager
def kernel(model: nn.Module, name: str) -> Iterator[None]:
    """Let a model use another attention kernel meanwhile."""
    config: Any = model.config
    found = config._attn_implementation
    if found == name:
        yield
        return
    try:
        model.set_attn_implementation(name)  # type: ignore[operator]
        yield
    finally:
        model.set_attn_implementation(found)  # type: ignore[operator]


@contextlib.contextmanager
def taps(parts: Parts, wanted: dict[tuple[int, StackName | None], Tap]) -> Iterator[None]:
    """Listen at attentions, given by layer and stack; q, k, v and pattern are the keys of their changes.

    Raises:
        MeasureError: the family computes its pattern where none can listen, and a change of it is wanted.
    """
    with contextlib.ExitStack() as stack:
        for (layer, of), tap in wanted.items():
            module = parts.inside(layer, "attn", of)
            if not listens(module):
                stack.enter_context(_at_projections(parts, layer, of, tap))
                continue
            stack.enter_context(kernel(parts.model, KERNEL))
            before = _TAPS.get(id(module))
            _TAPS[id(module)] = tap if before is None else _joined(before, tap)
            stack.callback(_put_back, id(module), before)
        yield


def _joined(first: Tap, second: Tap) -> Tap:
    names = {*first.changes, *second.changes}
    return Tap({name: [*first.changes.get(name, ()), *second.changes.get(name, ())] for name in names})


def _put_back(key: int, before: Tap | None) -> None:
    if before is None:
        _TAPS.pop(key, None)
    else:
        _TAPS[key] = before


def stopping_at_attention(parts: Parts, layer: int, run: Callable[[], object]) -> Given:
    """What a block's self-attention hands to its attention function when `run` runs the block; nothing after it runs.

    The mask is of the kind that the model's own kernel takes, as `run` was given it.
    """
    try:
        with taps(parts, {(layer, None): Tap(stops=True)}):
            run()
    except _Reached as reached:
        return reached.given
    raise MeasureError(f"block {layer} of a {parts.family.name} model ran without asking for its attention")


@contextlib.contextmanager
def _at_projections(parts: Parts, layer: int, stack: StackName | None, tap: Tap) -> Iterator[None]:
    """Listen at the outputs of the projections, of a family that does nothing more to q and k."""
    if "pattern" in tap.changes:
        raise MeasureError(
            f"a {parts.family.name} model computes its pattern inside one module; patch q, k, v or z there"
        )
    handles = []
    try:
        for part in ("q", "k", "v"):
            if tap.changes.get(part):
                hook = _projection_hook(parts, part, stack, tap)
                handles.append(parts.inside(layer, part, stack).register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _projection_hook(parts: Parts, part: str, stack: StackName | None, tap: Tap) -> Callable[..., Tensor]:
    def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        own = parts.of_projection(output, part, stack)
        changed = tap.apply(part, own)
        return output if changed is own else parts.in_projection(output, changed, part, stack)

    return hook


def no_change(store: Callable[[Tensor], None]) -> Change:
    """A change that stores what it is given and leaves it as it is."""

    def keep(value: Tensor) -> Tensor:
        store(value)
        return value

    return keep
