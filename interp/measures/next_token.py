"""What both models predict next: their likeliest tokens, and the tokens whose probability moved most."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from interp.divergences import entropy_of_log_probs
from interp.measures.arrays import (
    TokenTexts,
    dataset,
    stack_models,
    variable,
)
from interp.measures.findings import (
    Cells,
    Row,
    Table,
    difference,
)
from interp.measures.measure import Measure, Section
from interp.models import Trace

TOP = 10
DIRECTIONS = ("up", "down")
_TOKENS = 50  # tokens among which those that moved most are sought


def next_token(base: Trace, tuned: Trace) -> xr.Dataset:
    """What both models predict after each prompt, and which tokens' probabilities moved most.

    `mover_change` is the change of a token's probability, tuned minus base; where fewer than `TOP` tokens moved in a
    direction, the rest is an empty token with change 0.
    """
    count = min(TOP, base.logits.shape[-1])
    both = [trace.once("next token", partial(_next_token, trace, count)) for trace in (base, tuned)]
    tops, probs, entropies = zip(*both, strict=True)
    change, moved = movers(probs[0], probs[1], count)
    texts = TokenTexts(base.policy.tokenizer)
    mover_texts = texts.of(moved)
    mover_texts[change.numpy() == 0] = ""
    return dataset(
        {
            "top_token": variable(
                "prompt model rank", texts.of(stack_models(*(t.indices for t in tops))), "likeliest next tokens"
            ),
            "top_prob": variable(
                "prompt model rank",
                stack_models(*(t.values.exp() for t in tops)),
                "probability of the next token",
                "probability",
            ),
            "entropy": variable("prompt model", stack_models(*entropies), "entropy of the next token", "nats"),
            "mover_token": variable("prompt direction rank", mover_texts, "tokens whose probability moved most"),
            "mover_change": variable(
                "prompt direction rank", change, "change of the token's probability, tuned minus base", "probability"
            ),
        },
        rank=range(count),
        direction=list(DIRECTIONS),
    )


def _next_token(trace: Trace, count: int) -> tuple[Any, Tensor, Tensor]:
    """The likeliest next tokens, the probabilities of all, and their entropy."""
    log_p = trace.last_logits.cpu().double().log_softmax(-1)
    return log_p.topk(count, dim=-1), log_p.exp(), entropy_of_log_probs(log_p)


def movers(
    base: Float[Tensor, "prompt vocab"], tuned: Float[Tensor, "prompt vocab"], count: int
) -> tuple[Float[Tensor, "prompt direction rank"], Int[Tensor, "prompt direction rank"]]:
    """The tokens whose probability rose most and those whose fell most.

    Args:
        base: probabilities under base.
        tuned: probabilities under tuned.
        count: tokens in each direction.

    Returns:
        (changes, token ids), largest change first; a change is 0 where fewer tokens moved in that direction.
    """
    change = tuned - base
    both = [change.topk(count, dim=-1, largest=up) for up in (True, False)]
    values = torch.stack([both[0].values.clamp_min(0), both[1].values.clamp_max(0)], dim=1)
    return values, torch.stack([found.indices for found in both], dim=1)


def findings(table: Table) -> Iterator[Row]:
    """How often the likeliest token changed, which tokens moved most, and the entropy of the prediction."""
    reading = "next token"

    def changed(data: xr.Dataset) -> np.ndarray:
        top = data["top_token"].isel(rank=0)
        return np.asarray(top.sel(model="tuned").values != top.sel(model="base").values).astype(float)

    yield table.row(reading, "share of prompts whose top token changed", changed, "share")
    moved = table.largest(
        reading, lambda token, _: f"moved most: P({token!r}): tuned minus base", _moved, "probability"
    )
    yield from (row for row in moved if row["estimate"] != 0)  # one that moved on the selecting prompts alone
    yield table.row(reading, "entropy: tuned minus base", difference("entropy"), "nats")


def _moved(data: xr.Dataset) -> Cells:
    """Change of each token's probability, 0 at prompts where it is not among the largest movers.

    Of many tokens those that moved most over all prompts, as a map of all would not fit in memory for many prompts.
    """
    tokens, changes = (data[name].values.reshape(data.sizes["prompt"], -1) for name in ("mover_token", "mover_change"))
    labels, found = np.unique(tokens.astype(str), return_inverse=True)
    found = found.reshape(tokens.shape)
    totals = np.abs(np.bincount(found.ravel(), weights=changes.ravel(), minlength=len(labels)))
    totals[labels == ""] = -1
    kept = [index for index in np.argsort(-totals, kind="stable")[:_TOKENS] if totals[index] >= 0]
    values = [np.where(found == index, changes, 0).sum(1) for index in kept]
    empty = np.zeros((len(tokens), 0))
    return Cells(np.stack(values, axis=1) if kept else empty, [str(labels[index]) for index in kept], absent=0.0)


NEXT_TOKEN = Measure(
    name="next_token",
    title="Next token",
    meaning="Which tokens each model finds likeliest after the prompt, and which tokens' probabilities moved most.",
    formula="softmax of the logits at the last prompt token; movers by tuned's probability minus base's",
    units="probability; entropy in nats",
    misleads=(
        "Only the ten tokens that moved most in each direction are kept for each prompt; elsewhere a token's change "
        "counts as 0."
    ),
    group="Next token",
    when="by default",
    arrays=("top_token", "top_prob", "entropy", "mover_token", "mover_change"),
    per_batch=next_token,
    findings=findings,
    sections=(
        Section(
            "tokens",
            "Likeliest next tokens",
            "Top tokens",
            drawn_by="page",
        ),
        Section(
            "movers",
            "Tokens that moved most",
            "Movers",
            alt="Bars of the change of probability of the tokens that rose and fell most, tuned minus base.",
            caption=(
                "Change of the probability as next token, summed over the prompts that list the token among the ten "
                "that rose or fell most and divided by the number of all prompts; what it changed by elsewhere "
                "counts as 0. Beside a bar: its value, and how many prompts list the token."
            ),
            readings=(("next token", "^moved most"), ("next token", "^share")),
        ),
    ),
)
