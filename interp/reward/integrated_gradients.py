"""Integrated gradients, by a nested rule that spends more points only on the texts that need them.

A_i = (x_i - x'_i) . integral over a from 0 to 1 of dF/dx_i at x' + a (x - x') (Sundararajan, Taly and Yan 2017,
equation 1), so that the parts sum to F(x) - F(x'). Points are evaluated rule by rule (`interp.reward.quadrature`), all
texts that are not done in one pass, until each text's sum meets F(x) - F(x') within the tolerance. A text whose error
does not fall as the rules grow has kinks on its way: from there on the gaps between its points are halved, those first
whose sum of attributions is furthest from the change of F over them (`interp.reward.quadrature.Path`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.models import RewardModel
from interp.progress import Progress, no_progress
from interp.prompts import Batch
from interp.reward.forward import (
    at_baseline,
    batches,
    embeddings,
    gradients,
    own_tokens,
    pull,
    scores_of,
    tokens_a_pass,
)
from interp.reward.quadrature import Path, Rule, rules
from interp.reward.texts import Texts, check_finite

FIRST_POINTS = 5
"""Points that every text gets: three may meet the sum by chance, while single tokens are off."""

MAX_POINTS = 257
"""Most points of a text."""


class Job(NamedTuple):
    """A point of a text's way, and the labels (their indices) whose gradients are wanted there."""

    row: int
    point: float
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Integrated:
    """Integrated gradients of texts.

    Attributes:
        parts: for each text, by token and label.
        score: F at the texts.
        baseline_score: F at the baselines.
        points: how many points each text and label took.
        error: |sum of the parts - (F(x) - F(x'))|.
    """

    parts: list[np.ndarray]
    score: np.ndarray
    baseline_score: np.ndarray
    points: np.ndarray
    error: np.ndarray


class _State:
    """What is known so far.

    Attributes:
        score: F at the texts.
        baseline_score: F at the baselines.
        found: for each text one array a rule, [new point, token, label], NaN where not computed; the first is at 0.
        scores: for each text one array a rule, F at the same points, [new point, label].
        parts: for each text the attributions of the smallest error so far.
        points: how many points each text and label took.
        error: the smallest completeness error so far.
        before: completeness errors of the rules so far, the last one last.
        open: which texts and labels need more points.
        rough: those of them to which rules of higher degree are no help.
    """

    def __init__(
        self,
        score: np.ndarray,
        baseline_score: np.ndarray,
        found: list[list[np.ndarray]],
        scores: list[list[np.ndarray]],
    ) -> None:
        self.score, self.baseline_score, self.found, self.scores = score, baseline_score, found, scores
        self.parts = [np.zeros_like(each[0][0]) for each in found]
        self.points = np.zeros(score.shape, dtype=int)
        self.error = np.full(score.shape, np.inf)
        self.before: list[np.ndarray] = []
        self.open = np.ones(score.shape, dtype=bool)
        self.rough = np.zeros(score.shape, dtype=bool)

    def take(self, row: int, labels: np.ndarray, parts: Float[np.ndarray, "token label"], points: int) -> np.ndarray:
        """Keep attributions whose error is smaller than what there was; the errors."""
        error = np.abs(parts.sum(0) - (self.score - self.baseline_score)[row, labels])
        better = error < self.error[row, labels]  # where the way has kinks, more points may be worse
        self.parts[row][:, labels[better]] = parts[:, better]
        self.error[row, labels[better]] = error[better]
        self.points[row, labels] = points
        return error


def integrate(
    model: RewardModel,
    texts: Texts,
    columns: Sequence[int],
    *,
    vector: Float[Tensor, " d_embed"],
    limits: Callable[[np.ndarray], np.ndarray],
    max_points: int = MAX_POINTS,
    first_points: int = FIRST_POINTS,
    progress: Progress = no_progress,
) -> Integrated:
    """Integrated gradients of every text and label, each to its limit.

    Args:
        model: the reward model, in evaluation mode.
        texts: the texts.
        columns: indices of the labels.
        vector: the baseline's embedding.
        limits: from scores at texts and baselines [score, label] to the completeness error of each label at which a
            text is done.
        max_points: most points of a text.
        first_points: points that every text gets.
        progress: told of the "attributions", one a text and label, that are done.
    """
    base, start = _at_baselines(model, texts, vector, columns)
    check_finite(base, texts.texts, "score of the baseline")
    state = _State(np.full_like(base, np.nan), base, [[each] for each in start], [[each[None]] for each in base])
    near = first_points == FIRST_POINTS and _nearly_linear(model, texts, columns, vector, limits, state)
    if near:
        rest = np.flatnonzero(np.isnan(state.score).any(1)).tolist()
        state.score[rest] = scores_of(model, texts.some(rest), columns)
    allowed, chosen = np.empty(0), rules(nearly_linear=near)
    for rule in chosen:
        if len(rule.points) > max_points or not (state.open & ~state.rough).any():
            break
        _evaluate(model, texts, columns, vector, rule, state)
        if rule.new == len(rule.points):
            check_finite(state.score, texts.texts, "score")
            allowed = limits(np.concatenate([state.score, base]))
        if near or len(rule.points) >= first_points:
            _settle(rule, state, allowed)
        progress("attributions", int((~state.open).sum()), state.open.size)
    if state.open.any():
        _refine(model, texts, columns, vector, chosen[-1].points, state, allowed, max_points)
    progress("attributions", state.open.size, state.open.size)
    return Integrated(state.parts, state.score, base, state.points, state.error)


_PROBED = 4  # texts


def _nearly_linear(
    model: RewardModel,
    texts: Texts,
    columns: Sequence[int],
    vector: Float[Tensor, " d_embed"],
    limits: Callable[[np.ndarray], np.ndarray],
    state: _State,
) -> bool:
    """Whether the first rule for nearly linear scores is enough for some texts out of many, which then are done.

    Few texts are not asked.
    """
    if len(texts) < 4 * _PROBED:
        return False
    rows = [len(texts) * index // _PROBED for index in range(_PROBED)]
    known = ([list(each[row]) for row in rows] for each in (state.found, state.scores))
    probe = _State(state.score[rows], state.baseline_score[rows], *known)
    some = texts.some(rows)
    probe.score[:] = scores_of(model, some, columns)
    check_finite(probe.score, some.texts, "score")
    rule = rules(nearly_linear=True)[0]
    _evaluate(model, some, columns, vector, rule, probe)
    _settle(rule, probe, limits(np.concatenate([probe.score, state.baseline_score])))
    if probe.open.any():
        return False
    for index, row in enumerate(rows):
        state.parts[row] = probe.parts[index]
    for of, found in ((state.score, probe.score), (state.points, probe.points), (state.error, probe.error)):
        of[rows] = found
    state.open[rows] = False
    return True


def _at_baselines(
    model: RewardModel, texts: Texts, vector: Float[Tensor, " d_embed"], columns: Sequence[int]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """F at each text's baseline, and the gradient there along the way to the text: [1, token, label].

    Texts of one length have one baseline: its pass and its gradient are computed once.
    """
    bare = [
        tuple(token if mark else None for token, mark in zip(ids, marks, strict=True))
        for ids, marks in zip(texts.ids, texts.special, strict=True)
    ]
    alike: dict[tuple[int | None, ...], list[int]] = {}
    for row, key in enumerate(bare):
        alike.setdefault(key, []).append(row)
    groups = list(alike.values())
    scores, along = np.empty((len(texts), len(columns))), [np.empty(0)] * len(texts)
    for chosen in batches([len(texts.ids[rows[0]]) for rows in groups], tokens_a_pass(model)):
        batch, _, base = _ends(model, texts, [groups[index][0] for index in chosen], vector)
        found, gradient = gradients(model, batch, base, columns)
        for place, index in enumerate(chosen):
            rows = groups[index]
            width = len(texts.ids[rows[0]])
            _, embedded, own_base = _ends(model, texts, rows, vector)
            dotted = torch.einsum("rsd,sdl->rsl", (embedded - own_base), gradient[place, :width]).double()
            scores[rows] = found[place, list(columns)].cpu().numpy()
            for row, each in zip(rows, dotted.cpu().numpy(), strict=True):
                along[row] = each[None]
    return scores, along


def _ends(
    model: RewardModel, texts: Texts, rows: list[int], vector: Float[Tensor, " d_embed"]
) -> tuple[Batch, Float[Tensor, "batch seq d_embed"], Float[Tensor, "batch seq d_embed"]]:
    """A batch of texts, their embeddings, and those of their baselines."""
    batch = texts.batch(rows).to(model.device)
    embedded = embeddings(model, batch)
    return batch, embedded, at_baseline(embedded, own_tokens(texts, rows, batch), vector)


def _at_points(
    model: RewardModel,
    texts: Texts,
    columns: Sequence[int],
    vector: Float[Tensor, " d_embed"],
    jobs: Sequence[Job],
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """For each job its index, F there by label, and gradients along the way by token and label asked for."""
    for chosen in batches([len(texts.ids[job.row]) for job in jobs], tokens_a_pass(model)):
        rows = [jobs[index].row for index in chosen]
        batch, embedded, base = _ends(model, texts, rows, vector)
        share = torch.tensor([jobs[index].point for index in chosen], dtype=embedded.dtype, device=model.device)
        asked = [[columns[label] for label in jobs[index].labels] for index in chosen]
        step = embedded - base
        scores, pulled = pull(model, batch, base + share[:, None, None] * step, step, asked)
        at_point = scores[:, list(columns)].cpu().numpy()
        for place, index in enumerate(chosen):
            yield index, at_point[place], pulled[place][: len(texts.ids[rows[place]])].cpu().numpy()


def _evaluate(
    model: RewardModel,
    texts: Texts,
    columns: Sequence[int],
    vector: Float[Tensor, " d_embed"],
    rule: Rule,
    state: _State,
) -> None:
    """Gradients at the rule's new points, for the texts and labels that are not done."""
    new = [float(point) for point in rule.points[len(rule.points) - rule.new :] if point]  # 0 is done
    active = state.open & ~state.rough
    jobs: list[Job] = []
    places: list[int] = []
    for row in np.flatnonzero(active.any(1)).tolist():
        state.found[row].append(np.full((len(new), len(texts.ids[row]), len(columns)), np.nan))
        state.scores[row].append(np.full((len(new), len(columns)), np.nan))
        jobs += [Job(row, point, tuple(np.flatnonzero(active[row]).tolist())) for point in new]
        places += range(len(new))
    for index, score, pulled in _at_points(model, texts, columns, vector, jobs):
        row, place = jobs[index].row, places[index]
        state.found[row][-1][place][:, list(jobs[index].labels)] = pulled
        state.scores[row][-1][place] = score
        if jobs[index].point == 1:
            state.score[row] = score


_TRUSTED = 11  # points of the smallest rule that can be called no help


def _settle(rule: Rule, state: _State, limits: np.ndarray) -> None:
    """Sum up by the rule what is open, close what meets its limit, and mark what does not get better."""
    active = state.open & ~state.rough
    errors = np.full(state.error.shape, np.inf)
    for row in np.flatnonzero(active.any(1)).tolist():
        labels = np.flatnonzero(active[row])
        values = np.concatenate([each[:, :, labels] for each in state.found[row]])
        errors[row, labels] = state.take(row, labels, np.tensordot(rule.weights, values, axes=1), len(rule.points))
    state.before.append(errors)
    state.open &= ~(state.error <= limits)
    if len(rule.points) >= _TRUSTED and len(state.before) > 2:
        state.rough |= state.open & active & (errors > state.before[-3] / 2)


def _refine(
    model: RewardModel,
    texts: Texts,
    columns: Sequence[int],
    vector: Float[Tensor, " d_embed"],
    points: np.ndarray,
    state: _State,
    limits: np.ndarray,
    max_points: int,
) -> None:
    """Halve the worst gaps of the ways that are open, until they meet their limits or have as many points as may be."""
    ways = {}
    for row, label in np.argwhere(state.open).tolist():
        count = int(state.points[row, label])  # of its last rule; other labels may have gone on
        gradients = np.concatenate([each[:, :, label] for each in state.found[row]])[:count]
        scores = np.concatenate([each[:, label] for each in state.scores[row]])[:count]
        ways[row, label] = Path(points[:count], gradients, scores)
    while ways:
        asked: dict[tuple[int, float], list[int]] = {}
        for (row, label), way in ways.items():
            for point in way.wanted(max_points):
                asked.setdefault((row, point), []).append(label)
        jobs = [Job(row, point, tuple(labels)) for (row, point), labels in asked.items()]
        if not jobs:
            break
        for index, score, pulled in _at_points(model, texts, columns, vector, jobs):
            job = jobs[index]
            for place, label in enumerate(job.labels):
                ways[job.row, label].add(job.point, pulled[:, place], float(score[label]))
        for row, label in list(ways):
            way = ways[row, label]
            state.take(row, np.array([label]), way.sum()[:, None], len(way))
            if state.error[row, label] <= limits[label]:
                del ways[row, label]
