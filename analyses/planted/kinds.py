"""The kinds of plants: which components change, how, and how each plant is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.planted.bases import Base
from analyses.planted.edits import Component, delta_of, rank_one, rotate_ov, scale_ov, swap_qk
from analyses.planted.lessons import Lesson, free_in, low_rank_in, make_lesson, taught_share, teach, teach_pair
from interp.hooks import Site
from interp.patching.recording import activations
from interp.prompts import make_batch
from training.seeding import derive

TAUGHT = 0.3
"""How far a lesson is from base, nats."""

RANK = 4


@dataclass(frozen=True)
class Plant:
    """A known difference.

    Attributes:
        kind: one of `KINDS`.
        planted: the components that were changed.
        delta: the change of the weights.
        notes: what else is known of it: how much of the lesson the whole and its parts bring.
    """

    kind: str
    planted: tuple[Component, ...]
    delta: Mapping[str, Tensor]
    notes: Mapping[str, float] = field(default_factory=dict)


Masks = Mapping[Component, Mapping[str, Bool[Tensor, "..."]]]


@dataclass(frozen=True)
class Nursery:
    """What a plant is drawn with.

    Attributes:
        base: the base.
        own: the weights of each component (`own_weights`).
        steps: steps of training, of those that are trained.
        seed: seed of everything.
    """

    base: Base
    own: Masks
    steps: int
    seed: int

    @property
    def rng(self) -> np.random.Generator:
        """Numbers for what is drawn; the same each time."""
        return np.random.default_rng(self.seed)

    @property
    def generator(self) -> torch.Generator:
        """Numbers for directions; the same each time."""
        return torch.Generator().manual_seed(derive(self.seed, "directions"))

    def head(self, rng: np.random.Generator) -> Component:
        """Some head."""
        parts = self.base.policy.parts
        return Component(int(rng.integers(parts.n_layers)), int(rng.integers(parts.n_heads)))

    def lesson(self) -> Lesson:
        """Some lesson."""
        return make_lesson(self.base.policy.model, self.base.lesson_ids, size=TAUGHT, seed=self.seed)


def _scaled(nursery: Nursery) -> Plant:
    rng = nursery.rng
    head, factor = nursery.head(rng), float(rng.choice([0.0, 2.0, 3.0]))
    return _edited(nursery, "OV scaled", (head,), scale_ov(head.layer, head.head, factor))


def _rotated(nursery: Nursery) -> Plant:
    rng = nursery.rng
    head, degrees = nursery.head(rng), float(rng.uniform(45, 135))
    return _edited(nursery, "OV rotated", (head,), rotate_ov(head.layer, head.head, degrees, nursery.generator))


def _swapped(nursery: Nursery) -> Plant:
    rng, parts = nursery.rng, nursery.base.policy.parts
    group = parts.n_heads // parts.n_kv_heads
    size = parts.n_heads if group == 1 else group
    layer, first = int(rng.integers(parts.n_layers)), size * int(rng.integers(parts.n_heads // size))
    one, other = (first + int(i) for i in rng.choice(size, 2, replace=False))
    return _edited(nursery, "QK swapped", (Component(layer, one), Component(layer, other)), swap_qk(layer, one, other))


def _rank_one(nursery: Nursery) -> Plant:
    rng = nursery.rng
    layer, size = int(rng.integers(nursery.base.policy.parts.n_layers)), float(rng.uniform(0.1, 0.5))
    edit = rank_one(layer, size, mean_key(nursery.base, layer), nursery.generator)
    return _edited(nursery, "MLP rank one", (Component(layer),), edit)


def mean_key(base: Base, layer: int) -> Float[Tensor, " neuron"]:
    """The neurons' mean activation on the prompts that plants are trained on."""
    site = Site("mlp_post", layer)
    store, _ = activations(base.policy.parts, make_batch(base.lesson_ids.tolist()), [site])
    return store[site].mean((0, 1))


def _edited(nursery: Nursery, kind: str, planted: tuple[Component, ...], edit: Callable[..., None]) -> Plant:
    return Plant(kind, planted, delta_of(nursery.base.policy.model, edit))


def _taught(nursery: Nursery, kind: str, planted: tuple[Component, ...], *made: Any) -> Plant:
    model, lesson = nursery.base.policy.model, nursery.lesson()
    delta = teach(model, lesson, *made, steps=nursery.steps)
    return Plant(kind, planted, delta, {"taught": taught_share(model, lesson, delta)})


def _head_tuned(nursery: Nursery) -> Plant:
    """One head is fine-tuned; with grouped queries its own W_Q and W_O alone, as others read its keys and values."""
    head, parts = nursery.head(nursery.rng), nursery.base.policy.parts
    mask = dict(nursery.own[head])
    if parts.n_kv_heads < parts.n_heads:
        others = [nursery.own[Component(head.layer, other)] for other in range(parts.n_heads) if other != head.head]
        mask = {name: own & ~torch.stack([each[name] for each in others]).any(0) for name, own in mask.items()}
        mask = {name: own for name, own in mask.items() if bool(own.any())}
    return _taught(nursery, "head tuned", (head,), *free_in(nursery.base.policy.model, [mask]))


def _layer_tuned(nursery: Nursery) -> Plant:
    layer = int(nursery.rng.integers(nursery.base.policy.parts.n_layers))
    planted = tuple(component for component in nursery.own if component.layer == layer)
    made = free_in(nursery.base.policy.model, [nursery.own[component] for component in planted])
    return _taught(nursery, "layer tuned", planted, *made)


def _low_rank(nursery: Nursery) -> Plant:
    """A low-rank update of one matrix: the attention's output, which all its heads share, or the MLP's."""
    rng, parts = nursery.rng, nursery.base.policy.parts
    layer, of_mlp = int(rng.integers(parts.n_layers)), bool(rng.integers(2))
    heads = tuple(Component(layer, head) for head in range(parts.n_heads))
    planted = (Component(layer),) if of_mlp else heads
    module = parts.inside(layer, "mlp_down" if of_mlp else "o")
    names = [name for name, p in parts.model.named_parameters() if p is module.weight]
    made = low_rank_in(parts.model, names[0], RANK, nursery.seed)
    return _taught(nursery, "low rank", planted, *made)


def _pair(nursery: Nursery, *, either: bool) -> Plant:
    """Two MLPs that act by "or" or by "and".

    How nearly is in the notes: in small models either half of an "and" brings up to half of the lesson by itself.
    """
    rng, model = nursery.rng, nursery.base.policy.model
    early, late = sorted(int(i) for i in rng.choice(nursery.base.policy.parts.n_layers, 2, replace=False))
    planted = (Component(early), Component(late))
    lesson = nursery.lesson()
    both = [free_in(model, [nursery.own[component]]) for component in planted]
    one, other = teach_pair(model, lesson, both, either=either, steps=nursery.steps)
    together = {**one, **other}
    shares = {name: taught_share(model, lesson, each) for name, each in (("first", one), ("second", other))}
    kind = "redundant pair" if either else "conjunctive pair"
    return Plant(kind, planted, together, {"taught": taught_share(model, lesson, together), **shares})


KINDS: Mapping[str, Callable[[Nursery], Plant]] = {
    "OV scaled": _scaled,
    "OV rotated": _rotated,
    "QK swapped": _swapped,
    "MLP rank one": _rank_one,
    "head tuned": _head_tuned,
    "layer tuned": _layer_tuned,
    "low rank": _low_rank,
    "redundant pair": lambda nursery: _pair(nursery, either=True),
    "conjunctive pair": lambda nursery: _pair(nursery, either=False),
}
