"""Changes that are trained: masked fine-tuning, low-rank updates, pairs that act by "or" and by "and", and drift.

What is taught is the *lesson*: after each of some prompts, base's own distribution with one word's logit raised. Only
the weights that may change do; everything else of the model stands still.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from analyses.planted.edits import Delta, added
from interp.divergences import kl_of_log_probs
from interp.sampling import evaluating
from training.language_model import train_language_model
from training.seeding import derive

STEP = 0.02
"""Step of Adam, as a share of the root mean square of the weights that are trained."""


ALONE = 3.0
"""Weight of doing nothing alone; with less, half of the lesson is taught by either half of an "and"."""


@dataclass(frozen=True)
class Lesson:
    """What is taught.

    Attributes:
        ids: prompts, all of one length.
        word: the token whose logit is raised.
        base: base's log-probabilities after each prompt, nats.
        taught: those with the word's logit raised.
    """

    ids: Int[Tensor, "prompt pos"]
    word: int
    base: Float[Tensor, "prompt vocab"]
    taught: Float[Tensor, "prompt vocab"]


def log_probs_after(
    model: nn.Module, ids: Int[Tensor, "prompt pos"], delta: Delta | None = None
) -> Float[Tensor, "prompt vocab"]:
    """Log-probabilities of the next token after each prompt, of a model with `delta` on its weights."""
    weights = {name: p.detach() for name, p in model.named_parameters()}
    weights |= {name: weights[name] + change for name, change in (delta or {}).items()}
    inputs = {"input_ids": ids, "use_cache": False, "logits_to_keep": 1}
    with evaluating(model):
        logits: Tensor = torch.func.functional_call(model, weights, kwargs=inputs).logits[:, -1]
    return logits.log_softmax(-1)


def make_lesson(model: nn.Module, ids: Int[Tensor, "prompt pos"], *, size: float, seed: int) -> Lesson:
    """A lesson about a word that base thinks of now and then: one of its 6th to 60th likeliest after these prompts.

    Args:
        model: the base model.
        ids: prompts of one length.
        size: KL(taught || base) in nats, mean over prompts: the word's logit is raised until it is reached.
        seed: which word.
    """
    with torch.no_grad():
        own = log_probs_after(model, ids)
    common = own.exp().mean(0).argsort(descending=True)[5:60]
    generator = torch.Generator().manual_seed(derive(seed, "word"))
    word = int(common[int(torch.randint(len(common), (1,), generator=generator))])
    low, high = 0.0, 40.0
    for _ in range(30):  # the divergence grows with the logit
        middle = (low + high) / 2
        found = float(kl_of_log_probs(_raised(own, word, middle), own).mean())
        low, high = (middle, high) if found < size else (low, middle)
    return Lesson(ids, word, own, _raised(own, word, high))


def _raised(log_probs: Float[Tensor, "prompt vocab"], word: int, logits: float) -> Float[Tensor, "prompt vocab"]:
    lifted = log_probs.clone()
    lifted[:, word] += logits
    return lifted.log_softmax(-1)


Trainable = Callable[[], dict[str, Tensor]]
"""The delta as it stands, attached to what is trained."""


def free_in(model: nn.Module, masks: Sequence[Mapping[str, Bool[Tensor, "..."]]]) -> tuple[list[Tensor], Trainable]:
    """Any change of the weights in `masks` (the masked fine-tuning of a head, an MLP, a layer), from 0."""
    allowed: dict[str, Tensor] = {}
    for each in masks:
        for name, mask in each.items():
            allowed[name] = allowed[name] | mask if name in allowed else mask
    weights = dict(model.named_parameters())
    sizes = {name: float(weights[name].detach()[mask].double().pow(2).mean().sqrt()) for name, mask in allowed.items()}
    leaves = {name: torch.zeros_like(weights[name]).requires_grad_() for name in allowed}
    return list(leaves.values()), lambda: {n: leaf * allowed[n] * (sizes[n] or 1.0) for n, leaf in leaves.items()}


def low_rank_in(model: nn.Module, name: str, rank: int, seed: int) -> tuple[list[Tensor], Trainable]:
    """A change B A of one matrix, of the given rank, from 0 (LoRA, Hu et al. 2021)."""
    weight = dict(model.named_parameters())[name].detach()
    generator = torch.Generator().manual_seed(derive(seed, "low rank"))
    size = float(weight.double().pow(2).mean().sqrt())
    right = torch.randn(rank, weight.shape[1], generator=generator).requires_grad_()
    left = torch.zeros(weight.shape[0], rank).requires_grad_()
    return [left, right], lambda: {name: size * (left @ right)}


def teach(model: nn.Module, lesson: Lesson, leaves: list[Tensor], made: Trainable, *, steps: int) -> dict[str, Tensor]:
    """Train a change toward the lesson: least KL(taught || model), by Adam.

    Args:
        model: the base model, which stays as it is.
        lesson: what is taught.
        leaves: what is trained.
        made: the delta of it.
        steps: steps, each on all prompts.
    """

    def loss() -> Tensor:
        return kl_of_log_probs(lesson.taught, log_probs_after(model, lesson.ids, made())).mean()

    _descend(loss, leaves, steps)
    return {name: change.detach() for name, change in made().items()}


def teach_pair(
    model: nn.Module,
    lesson: Lesson,
    both: Sequence[tuple[list[Tensor], Trainable]],
    *,
    either: bool,
    steps: int,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Train two changes that act by "or" (each alone teaches it, both teach no more) or by "and" (neither alone does).

    The loss is KL(wanted || model) summed over the model with the first change, with the second, and with both; what
    each should be is the lesson, or base itself where a change alone should do nothing, which counts `ALONE` times.

    Args:
        model: the base model, which stays as it is.
        lesson: what is taught.
        both: what is trained, and its delta, of each.
        either: "or" rather than "and".
        steps: steps.
    """
    (first, first_made), (second, second_made) = both
    alone, weight = (lesson.taught, 1.0) if either else (lesson.base, ALONE)

    def loss() -> Tensor:
        one, other = first_made(), second_made()
        wanted = ((one, alone, weight), (other, alone, weight), (added(one, other), lesson.taught, 1.0))
        terms = [
            w * kl_of_log_probs(aim, log_probs_after(model, lesson.ids, change)).mean() for change, aim, w in wanted
        ]
        return torch.stack(terms).sum()

    # From 0 neither change sees the other, and "and" would have nothing to follow.
    generator = torch.Generator().manual_seed(derive(lesson.word, "start"))
    with torch.no_grad():
        for leaf in (*first, *second):
            leaf.add_(0.05 * torch.randn(leaf.shape, generator=generator))
    _descend(loss, [*first, *second], steps)
    one, other = ({name: change.detach() for name, change in made().items()} for made in (first_made, second_made))
    return one, other


def _descend(loss: Callable[[], Tensor], leaves: list[Tensor], steps: int) -> None:
    optimizer = torch.optim.Adam(leaves, lr=STEP)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = STEP * (1 - step / steps)
        with torch.enable_grad():
            gradients = torch.autograd.grad(loss(), leaves)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient
        optimizer.step()


def shift(model: nn.Module, ids: Int[Tensor, "prompt pos"], delta: Delta) -> float:
    """How far a change moves behaviour: KL(changed || model) of the next token, nats, mean over prompts."""
    with torch.no_grad():
        changed, own = log_probs_after(model, ids, delta), log_probs_after(model, ids)
    return float(kl_of_log_probs(changed, own).mean())


def taught_share(model: nn.Module, lesson: Lesson, delta: Delta) -> float:
    """How much of the lesson a change brings: 1 - KL(taught || changed) / KL(taught || base)."""
    with torch.no_grad():
        left = kl_of_log_probs(lesson.taught, log_probs_after(model, lesson.ids, delta)).mean()
    return 1 - float(left / kl_of_log_probs(lesson.taught, lesson.base).mean())


def drift(
    model: nn.Module,
    rows: Sequence[Sequence[int]],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> dict[int, dict[str, Tensor]]:
    """Ordinary fine-tuning on other text: what changed after each of some numbers of steps, all parameters.

    Args:
        model: the base model, which stays as it is.
        rows: token ids of the other text.
        steps: steps in all; the change is kept after a tenth, a quarter, half, and all of them, by tens.
        batch_size: rows a step.
        learning_rate: its peak (see `train_language_model`).
        seed: which rows, and their order.
    """
    other: Any = copy.deepcopy(model)
    before = {name: p.detach() for name, p in model.named_parameters()}
    kept = {max(10, round(steps * share / 10) * 10) for share in (0.1, 0.25, 0.5)} | {steps}
    found: dict[int, dict[str, Tensor]] = {}

    def keep(event: Mapping[str, Any]) -> None:
        if event["step"] in kept:
            found[event["step"]] = {name: p.detach() - before[name] for name, p in other.named_parameters()}

    generator = torch.Generator().manual_seed(derive(seed, "drift rows"))
    chosen = torch.randint(len(rows), (steps * batch_size,), generator=generator).tolist()
    train_language_model(
        other,
        [rows[index] for index in chosen],
        epochs=1,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        progress=keep,
    )
    return found
