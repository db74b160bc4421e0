"""Changes that are known because they were made: edits of single heads and MLPs, and a change's size by component.

A *component* is what a method points at: a head, judged by its `result`, or an MLP, judged by its `mlp_out`. A *delta*
is the change of a model's weights, by the parameter's name.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from interp.errors import MeasureError
from interp.families import Parts

Delta = Mapping[str, Tensor]
"""What is added to each parameter that changes, by its name."""


@dataclass(frozen=True, order=True)
class Component:
    """A head or an MLP.

    Attributes:
        layer: index of the block.
        head: the head; -1 is the block's MLP.
    """

    layer: int
    head: int = -1

    def __str__(self) -> str:
        return f"L{self.layer}.mlp" if self.head < 0 else f"L{self.layer}H{self.head}"


def components(parts: Parts) -> list[Component]:
    """Every head and MLP of a causal model, by layer: the heads first, then the MLP."""
    return [Component(layer, head) for layer in range(parts.n_layers) for head in (*range(parts.n_heads), -1)]


def own_weights(model: nn.Module) -> dict[Component, dict[str, Bool[Tensor, "..."]]]:
    """For each component, of each parameter that it has weights in, which of them are its own.

    Those of a head are its columns of W_Q, W_K, W_V and its rows of W_O; W_K and W_V of grouped queries belong to every
    head that reads them. Biases of the attention belong to no head. Those of an MLP are all its weights and biases.
    """
    blank = copy.deepcopy(model)
    found = {}
    with torch.no_grad():
        for parameter in blank.parameters():
            parameter.zero_()
        parts = Parts(blank)
        for component in components(parts):
            views = weights_of(parts, component)
            for view in views:
                view.fill_(1)
            found[component] = {name: p != 0 for name, p in blank.named_parameters() if bool(p.any())}
            for view in views:
                view.zero_()
    return found


def weights_of(parts: Parts, component: Component) -> list[Tensor]:
    """Views of a component's own weights: what is written into them changes the model."""
    layer, head = component.layer, component.head
    if head < 0:
        return parts.mlp_weights(layer)
    shared = head // (parts.n_heads // parts.n_kv_heads)
    queries, output = parts.W_Q(layer)[head], parts.W_O(layer)[head]
    return [queries, parts.W_K(layer)[shared], parts.W_V(layer)[shared], output]


def delta_of(model: nn.Module, edit: Callable[[Parts], None]) -> dict[str, Tensor]:
    """What an edit in place changes in a model, which itself stays as it is."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        edit(Parts(other))
        before = dict(model.named_parameters())
        changes = {name: p.detach() - before[name].detach() for name, p in other.named_parameters()}
    return {name: change for name, change in changes.items() if bool(change.any())}


def added(*deltas: Delta) -> dict[str, Tensor]:
    """The sum of several deltas."""
    total: dict[str, Tensor] = {}
    for delta in deltas:
        for name, change in delta.items():
            total[name] = total[name] + change if name in total else change
    return total


def scaled(delta: Delta, factor: float) -> dict[str, Tensor]:
    """A delta times a number."""
    return {name: change * factor for name, change in delta.items()}


def put(model: nn.Module, into: nn.Module, delta: Delta) -> None:
    """Write the weights of `model` plus `delta` into another module of the same shape."""
    with torch.no_grad():
        for (name, ours), theirs in zip(model.named_parameters(), into.parameters(), strict=True):
            theirs.copy_(ours)
            if name in delta:
                theirs.add_(delta[name])


def strength(model: nn.Module, delta: Delta, own: Mapping[str, Bool[Tensor, "..."]]) -> float:
    """Relative change of a component: the Frobenius norm of its weights' change over that of its weights.

    Args:
        model: the base model.
        delta: the change.
        own: the component's weights (one entry of `own_weights`).
    """
    weights = dict(model.named_parameters())
    change = sum(float(delta[name][mask].double().pow(2).sum()) for name, mask in own.items() if name in delta)
    size = sum(float(weights[name].detach()[mask].double().pow(2).sum()) for name, mask in own.items())
    return math.sqrt(change / size) if size else 0.0


def typical_strength(
    model: nn.Module,
    delta: Delta,
    own: Mapping[Component, Mapping[str, Bool[Tensor, "..."]]],
    among: Collection[Component],
) -> float:
    """Root mean square of `strength` over some components."""
    squares = [strength(model, delta, own[component]) ** 2 for component in among]
    return math.sqrt(sum(squares) / len(squares))


def scale_ov(layer: int, head: int, factor: float) -> Callable[[Parts], None]:
    """Multiply a head's W_V W_O by a factor (in W_O, which no other head shares)."""

    def edit(parts: Parts) -> None:
        parts.W_O(layer)[head].mul_(factor)

    return edit


def rotate_ov(layer: int, head: int, degrees: float, generator: torch.Generator) -> Callable[[Parts], None]:
    """Turn what a head moves: W_V R W_O, where R turns every direction of the head's space by an angle.

    R is block-diagonal in a random basis, with rotations by `degrees` in planes.
    """

    def edit(parts: Parts) -> None:
        weight = parts.W_O(layer)[head]
        weight.copy_(rotation(len(weight), degrees, generator).to(weight) @ weight)

    return edit


def rotation(size: int, degrees: float, generator: torch.Generator) -> Float[Tensor, "size size"]:
    """An orthogonal matrix that turns each of size // 2 random orthogonal planes by an angle, float64."""
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    turned = torch.eye(size, dtype=torch.float64)
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    for first in range(0, size - 1, 2):
        plane = slice(first, first + 2)
        turned[plane, plane] = torch.tensor([[cosine, -sine], [sine, cosine]], dtype=torch.float64)
    found: Tensor = basis @ turned @ basis.T
    return found


def swap_qk(layer: int, one: int, other: int) -> Callable[[Parts], None]:
    """Exchange the weights by which two heads ask and are asked: each attends as the other did (biases stay).

    With grouped queries both must read the same keys, and their queries are exchanged.

    Raises:
        MeasureError: the heads read different keys that other heads read too.
    """

    def edit(parts: Parts) -> None:
        group = parts.n_heads // parts.n_kv_heads
        weights = [parts.W_Q(layer)[[one, other]]]
        if group == 1:
            weights.append(parts.W_K(layer)[[one, other]])
        elif one // group != other // group:
            raise MeasureError(
                f"heads {one} and {other} read keys that other heads read too; swap two of one group of {group}"
            )
        parts.W_Q(layer)[[other, one]] = weights[0]
        if group == 1:
            parts.W_K(layer)[[other, one]] = weights[1]

    return edit


def rank_one(
    layer: int, size: float, key: Float[Tensor, " neuron"], generator: torch.Generator
) -> Callable[[Parts], None]:
    """Add k u^T to an MLP's output weights, `size` times as large as these (Frobenius): where the key k is, write u.

    The form of a rank-one model edit (Meng et al. 2022), with a random direction u instead of a fact.

    Args:
        layer: index of the block.
        size: relative norm of the update.
        key: the neurons' activation that it answers to; its length does not matter.
        generator: of u.
    """

    def edit(parts: Parts) -> None:
        weight: Any = parts.W_down(layer)[0]
        direction = torch.randn(weight.shape[1], generator=generator, dtype=torch.float64)
        change = torch.outer(key.double() / key.double().norm(), direction / direction.norm())
        weight.add_((size * float(weight.double().norm()) * change).to(weight))

    return edit
