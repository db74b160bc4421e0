"""The measures that join a reward to the models: implicit reward, token join, over-optimisation and probes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import xarray as xr

from interp.measures.findings import Row, Table
from interp.measures.measure import RECORDS, REMARKS, Context, Measure, Needs, Section
from interp.models import RewardModel
from interp.models.optimised import Optimised
from interp.reward.joins import (
    DRAWS,
    flattened,
    implicit_arrays,
    over_optimisation_of,
    probe_arrays,
    probes_of,
    records,
    token_arrays,
)
from interp.reward.over_optimisation import over_optimisation
from interp.sampling import Sampling

_SAMPLED = frozenset({"completion", "score", "text", "token", "token_log_ratio"})
"""Arrays of the implicit reward that a comparison has already."""


def _named(data: xr.Dataset, name: str, drop: frozenset[str] = frozenset()) -> xr.Dataset:
    """A join's arrays under its prefix, with what it says of itself."""
    record = {key: value for key, value in data.attrs.items() if key != "remark"}
    attrs = {RECORDS: json.dumps({name: record}), REMARKS: str(data.attrs.get("remark", ""))}
    return flattened(data, name, drop=drop).drop_attrs(deep=False).assign_attrs(attrs)


def _reward_of(context: Context) -> RewardModel:
    """The reward model, which `needs.reward` says is there; the policies leave memory for it."""
    assert context.settings.reward is not None
    context.settings.in_memory.only(None)
    return context.settings.reward


def _implicit_reward(context: Context) -> xr.Dataset:
    optimised = _reward_of(context).optimised or Optimised()
    found = implicit_arrays(context.data, optimised, context.settings.seed)
    return _named(found, "implicit_reward", _SAMPLED)


def _token_join(context: Context) -> xr.Dataset:
    reward = _reward_of(context)
    return _named(token_arrays(context.data, reward, context.base.tokenizer, context.settings.seed), "token_join")


def _over_optimisation(context: Context) -> xr.Dataset:
    settings, reward = context.settings, _reward_of(context)
    assert settings.pair is not None
    sampling = Sampling(max_new_tokens=settings.sampling.max_new_tokens)
    found = over_optimisation(settings.pair, reward, context.prompts, sampling=sampling, seed=settings.seed)
    return _named(found.dataset, "over_optimisation")


def _probes(context: Context) -> xr.Dataset:
    reward = _reward_of(context)
    assert context.settings.pair is not None
    return _named(probe_arrays(context.data, context.settings.pair, reward, context.settings.seed), "probes")


def _implicit_findings(table: Table) -> Iterator[Row]:
    """Slope, rank correlation and effective beta of the policy's shift against the reward."""
    reading = "implicit reward"
    yield table.fitted(
        reading,
        "log-ratio per unit of reward, within prompts (1 / effective beta)",
        "implicit_slope",
        "nats per reward",
        permuted="implicit_null_slope",
    )
    yield table.fitted(
        reading, "the same, base's samples alone", "implicit_slope_by_source", "nats per reward", source="base"
    )
    yield table.fitted(
        reading,
        "Spearman of reward and log-ratio within prompts",
        "implicit_spearman",
        "1",
        mean="_mean",
        permuted="implicit_null_spearman",
    )
    if np.isfinite(float(table.data["implicit_effective_beta"])):
        yield table.fitted(reading, "effective beta", "implicit_effective_beta", "reward per nat", ranked=False)
    share = "variance of the log-ratio within prompts that reward and length explain"
    yield table.fitted(reading, share, "implicit_explained", "share", bounds=False, ranked=False)


def _token_findings(table: Table) -> Iterator[Row]:
    """Rank correlations of the reward's token attribution and what the tuning did to the tokens."""
    for name, pair in (
        ("signed", "attribution and log-ratio"),
        ("size", "|attribution| and |log-ratio|"),
        ("size_given_surprise", "|attribution| and |log-ratio|, base's surprise held fixed"),
    ):
        yield table.fitted(
            "token join",
            f"Spearman of a token's {pair}, within texts",
            f"join_{name}_spearman",
            "1",
            mean="_mean",
            permuted=f"join_null_{name}_spearman",
        )


def _own_words(name: str, reading: str, of: Callable[[xr.Dataset], Any]) -> Callable[[Table], Iterator[Row]]:
    """Findings that a join's own summary has already."""

    def findings(table: Table) -> Iterator[Row]:
        if name in records(table.data):
            for record in of(table.data).summary().to_dict("records"):
                if np.isfinite(record["estimate"]):
                    yield table.given({**record, "reading": reading})

    return findings


IMPLICIT_REWARD = Measure(
    name="implicit_reward",
    title="Implicit reward",
    meaning=(
        "Whether the policy's shift follows the reward: how much likelier tuned finds a response for each unit of it."
    ),
    formula="slope of log pi_tuned(y | x) - log pi_base(y | x) on the reward within prompts, length taken out",
    source="Rafailov et al. 2023, Direct Preference Optimization",
    units="nats per unit of reward",
    misleads=(
        "At the optimum of reward minus beta times KL the slope is 1 / beta; a short training stays below, and "
        "tuned's own samples make it too steep."
    ),
    group="Reward",
    when="with a reward",
    needs=Needs(reward=True, samples=DRAWS, measures=("completions",)),
    arrays=("implicit_slope",),
    whole=_implicit_reward,
    findings=_implicit_findings,
    sections=(
        Section(
            "implicit_reward",
            "Does the shift follow the reward?",
            "Implicit reward",
            alt=(
                "Scatter plot of the log-ratio of sampled responses against their reward, within prompts, and the "
                "fitted line; beside it the slope among those of permuted rewards."
            ),
            caption=(
                "Each point is a sampled response: its reward, and how much likelier tuned finds it than base does, "
                "both minus the mean of the responses to its prompt and with the length taken out. At the optimum "
                "of reward minus beta times KL the slope is 1 / beta; a short training stays below. Tuned's samples "
                "were chosen by the very shift that is measured, which makes the slope over both too steep; that of "
                "base's samples alone is free of this."
            ),
            readings=(("implicit reward", "per unit of reward"),),
        ),
    ),
)

TOKEN_JOIN = Measure(
    name="token_join",
    title="Token join",
    meaning="Whether the tokens moved that the reward's attribution names.",
    formula="rank correlation within texts of integrated gradients of the reward and log pi_tuned - log pi_base",
    source="Sundararajan et al. 2017, Axiomatic Attribution for Deep Networks",
    units="1",
    misleads="The reward was paid for whole responses; nothing makes the policy move the very tokens that it reads.",
    group="Reward",
    when="with a reward",
    needs=Needs(reward=True, samples=1, measures=("completions",)),
    arrays=("join_signed_spearman",),
    whole=_token_join,
    findings=_token_findings,
    sections=(
        Section(
            "token_join",
            "Did the tokens move that the reward reads?",
            "Token join",
            alt=(
                "Scatter plot of the log-ratio of spans of characters against their reward attribution; beside it "
                "the rank correlation within texts among those of permuted attributions."
            ),
            caption=(
                "Each point is a piece of one of tuned's responses. To the right: integrated gradients of the "
                "reward; upward: how much likelier tuned finds it than base does after the same text. The reward "
                "was paid for whole responses; nothing makes the policy move the very tokens that the reward model "
                "reads."
            ),
            readings=(("token join", ""),),
        ),
        Section(
            "token_texts",
            "What the reward reads, and what the tuning moved",
            "Coloured texts",
            drawn_by="page",
        ),
    ),
)

OVER_OPTIMISATION = Measure(
    name="over_optimisation",
    title="Over-optimisation",
    meaning="How the reward grew with the distance from base, checkpoint by checkpoint of the training.",
    formula="mean reward of each checkpoint's samples against the square root of KL(checkpoint || base)",
    source="Gao et al. 2023, Scaling Laws for Reward Model Overoptimization",
    units="reward; nats",
    misleads="That the optimised reward rises says nothing of what it stands for; lay a second reward beside it.",
    group="Reward",
    needs=Needs(reward=True, checkpoints=True, samples=1, measures=("completions",)),
    arrays=("over_kl",),
    whole=_over_optimisation,
    findings=_own_words("over_optimisation", "over-optimisation", over_optimisation_of),
    sections=(
        Section(
            "over_optimisation",
            "Reward against distance over the training",
            "Over-optimisation",
            alt=(
                "Line chart of the reward gained against the square root of the KL divergence from base, checkpoint "
                "by checkpoint, and of the KL over the training."
            ),
            caption=(
                "Every stored checkpoint's samples, scored by the reward that was optimised, against how far they "
                "lie from base. That this reward rises says nothing of what it stands for: over_optimisation(pair, "
                "gold=...) lays a second reward model beside it."
            ),
            readings=(("over-optimisation", ": step [0-9]+$"),),
        ),
    ),
)

PROBES = Measure(
    name="probes",
    title="Probes",
    meaning="When in the training, and at which layer, a high reward could be read from policy and reward model.",
    formula="accuracy of a linear probe for a reward above the median, on texts that it did not see",
    source="Alain and Bengio 2016, Understanding intermediate layers using linear classifier probes",
    units="share",
    misleads="That a layer tells a high reward from a low one does not say that the model uses it.",
    group="Reward",
    needs=Needs(reward=True, checkpoints=True, samples=1, measures=("completions",)),
    arrays=("probes_best_layer",),
    whole=_probes,
    findings=_own_words("probes", "probes", probes_of),
    sections=(
        Section(
            "probes",
            "When a high reward could be read",
            "Probes",
            alt=(
                "Line charts of a linear probe's accuracy gained over step 0 by share of the training, and of its "
                "accuracy by depth."
            ),
            caption=(
                "Linear probes for a reward above the median, at every layer of every checkpoint, judged on texts "
                "that they did not see. That a layer tells a high reward from a low one does not say that the model "
                "uses it, nor that one model taught the other: the shares of two trainings are two clocks."
            ),
            readings=(("probes", "accuracy"),),
        ),
    ),
)
