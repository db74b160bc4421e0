"""Reading what passes through sites."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from interp.errors import MeasureError
from interp.families.parts import Parts, StackName
from interp.hooks.attention import Tap, no_change, taps
from interp.hooks.shapes import by_head, first, remove_all, shaper, with_first
from interp.hooks.sites import INSIDE_ATTENTION, Site, module_of


@contextlib.contextmanager
def capture(parts: Parts, sites: Iterable[Site], *, keep_graph: bool = False) -> Iterator[dict[Site, Tensor]]:
    """Record the activation of every site in `sites` during the forward passes made inside the context.

    The tensors are the model's own, in the layout [batch, seq, ...]: residuals, attn_out and mlp_out [batch, seq,
    d_model]; mlp_post [batch, seq, neuron]; z and q [batch, seq, head, d_head], k and v the same by key-value head;
    result [batch, seq, head, d_model]; pattern [batch, head, query, key]. `pattern` needs eager attention (see
    `Policy.trace`); q, k and v bring it.

    Args:
        parts: the model.
        sites: what to record.
        keep_graph: leave the tensors attached to autograd's graph, for gradients.

    Yields:
        A dictionary that a forward pass fills.
    """
    store: dict[Site, Tensor] = {}
    wanted = list(dict.fromkeys(sites))
    handles: list[RemovableHandle] = []
    listening: dict[tuple[int, StackName | None], Tap] = {}
    with contextlib.ExitStack() as stack:
        stack.callback(remove_all, handles)
        for site in wanted:
            keep = _keeper(store, site, keep_graph)
            if site.name in INSIDE_ATTENTION:
                assert site.layer is not None
                parts.block(site.layer, site.stack)  # an error now if there is no such layer
                tap = listening.setdefault((site.layer, site.stack), Tap())
                tap.changes.setdefault(site.name, []).append(no_change(keep))
            else:
                handles += _attach(parts, site, keep, keep_graph)
        stack.enter_context(taps(parts, listening))
        yield store


def _keeper(store: dict[Site, Tensor], site: Site, keep_graph: bool) -> Callable[[Tensor], None]:
    def keep(value: Tensor) -> None:
        store[site] = value if keep_graph else value.detach()

    return keep


def _attach(parts: Parts, site: Site, keep: Callable[[Tensor], None], keep_graph: bool) -> list[RemovableHandle]:
    """With `keep_graph` the pass goes on with what was recorded, or a reshaped view would lie beside the graph."""
    module, side = module_of(parts, site)
    handles, shape = shaper(parts, site)
    if keep_graph and site.name == "result":
        raise MeasureError("result is not computed in a pass, so it has no gradient; take z's, times W_O")
    if side == "in":

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            given = first(args, kwargs)
            value = shape(given)
            keep(by_head(parts, site, value) if site.name == "result" else value)
            return with_first(args, kwargs, value.reshape(given.shape)) if keep_graph else None

        return [*handles, module.register_forward_pre_hook(before, with_kwargs=True)]

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        if side == "last":
            if not isinstance(output, tuple) or output[-1] is None:
                raise MeasureError("attention patterns need eager attention; trace through Policy.trace, which sets it")
            keep(output[-1])
            return None
        given = output[0] if isinstance(output, tuple) else output
        value = shape(given)
        keep(value)
        if not keep_graph:
            return None
        value = value.reshape(given.shape)
        return (value, *output[1:]) if isinstance(output, tuple) else value

    return [*handles, module.register_forward_hook(after)]
