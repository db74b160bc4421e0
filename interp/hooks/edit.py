"""Changing what passes through sites while a model runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from interp.errors import MeasureError
from interp.families.parts import Parts, StackName
from interp.hooks.attention import Tap, taps
from interp.hooks.shapes import by_head, first, remove_all, shaper, with_first
from interp.hooks.sites import INSIDE_ATTENTION, Site, module_of

Edit = Callable[[Tensor], Tensor]
"""From a site's activation, in the layout of `capture`, to what takes its place, of the same shape."""

# Where one module serves several sites, they are changed in the order of the pass.
_ORDER = (
    "embed",
    "pos_embed",
    "resid_pre",
    "z",
    "result",
    "attn_out",
    "resid_mid",
    "mlp_post",
    "mlp_out",
    "resid_post",
)


@contextlib.contextmanager
def patch(parts: Parts, edits: Mapping[Site, Edit]) -> Iterator[None]:
    """Change the activation of each site of `edits` during the forward passes made inside the context.

    What is computed later in the pass sees the change, a site changed later included. A changed `resid_mid` changes
    the residual itself, not only what the MLP reads of it; a changed `result` adds its difference to the output of
    the attention's projection; a changed `pattern` is multiplied with the values that there are. The model's weights
    are not touched; its attention kernel is another one while q, k, v or pattern are changed.

    Args:
        parts: the model.
        edits: a function by site.

    Raises:
        MeasureError: the model has no such site, or it cannot be changed there.
    """
    handles: list[RemovableHandle] = []
    listening: dict[tuple[int, StackName | None], Tap] = {}
    with contextlib.ExitStack() as stack:
        stack.callback(remove_all, handles)
        for site in sorted(edits, key=lambda each: _ORDER.index(each.name) if each.name in _ORDER else -1):
            if site.name in (*INSIDE_ATTENTION, "pattern"):
                assert site.layer is not None
                parts.inside(site.layer, "attn", site.stack)  # an error now if there is none
                tap = listening.setdefault((site.layer, site.stack), Tap())
                tap.changes.setdefault(site.name, []).append(edits[site])
            else:
                handles += _attach(parts, site, edits[site])
        stack.enter_context(taps(parts, listening))
        yield


def _attach(parts: Parts, site: Site, edit: Edit) -> list[RemovableHandle]:
    if site.name == "result":
        return _result(parts, site, edit)
    if site.name == "resid_mid" and not parts.layout(site.stack).norm_of_sum:
        return _resid_mid(parts, site, edit)
    module, side = module_of(parts, site)
    handles, shape = shaper(parts, site)
    if side == "in":

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            value = first(args, kwargs)
            return with_first(args, kwargs, edit(shape(value)).reshape(value.shape))

        return [*handles, module.register_forward_pre_hook(before, with_kwargs=True)]

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        value = output[0] if isinstance(output, tuple) else output
        changed = edit(shape(value)).reshape(value.shape)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return [*handles, module.register_forward_hook(after)]


def _result(parts: Parts, site: Site, edit: Edit) -> list[RemovableHandle]:
    """Heads are not computed one by one: the difference that the edit makes is added to their sum."""
    assert site.layer is not None
    module, shape = parts.inside(site.layer, "o", site.stack), shaper(parts, site)[1]
    difference: list[Tensor] = []

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        own = by_head(parts, site, shape(first(args, kwargs)))
        difference[:] = [(edit(own) - own).sum(2)]

    def after(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        return output + difference.pop().reshape(output.shape)

    return [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]


def _resid_mid(parts: Parts, site: Site, edit: Edit) -> list[RemovableHandle]:
    """The module that reads the sum gets a copy of it; the sum itself is changed through what is added to it."""
    assert site.layer is not None
    module_of(parts, site)  # an error where the sum does not exist (parallel blocks)
    cross = site.stack == "cross"
    start = parts.inside(site.layer, "resid_mid") if cross else parts.block(site.layer, site.stack)
    write, side = module_of(parts, Site("attn_out", site.layer, site.stack))
    if side != "out":
        raise MeasureError(f"{site} of a {parts.family.name} model cannot be changed; change resid_pre or attn_out")
    entering: list[Tensor] = []

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entering[:] = [first(args, kwargs)]

    def after(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        stream = entering.pop()
        return edit(stream + output) - stream

    return [start.register_forward_pre_hook(before, with_kwargs=True), write.register_forward_hook(after)]
