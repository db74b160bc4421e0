"""Reward and policy joined inside a comparison, out of what it sampled: no further pass of the policies is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import xarray as xr

from interp.errors import MeasureError
from interp.measures.arrays import MODELS, variable
from interp.models import RewardModel
from interp.prompts import response_ends
from interp.reward.attributing import attribute
from interp.reward.flat import restored
from interp.reward.implicit import FEWEST, ImplicitReward, calibrate
from interp.reward.tokens import TokenJoin, join_spans, spans_of

DRAWS = FEWEST // 2
"""Responses of each model to each prompt, where the implicit reward is asked for."""

PERMUTATIONS = 999

Transform = Callable[[np.ndarray], np.ndarray]


def implicit_reward_of(data: xr.Dataset) -> ImplicitReward:
    """The implicit reward that a comparison holds.

    Args:
        data: the comparison's dataset.

    Raises:
        MeasureError: it holds none.
    """
    own, sampled = restored(data, "implicit_reward"), _sampled(data)
    return ImplicitReward(
        own.assign(
            completion=sampled["completion"],
            score=sampled["completion_reward"],
            token_log_ratio=_token_log_ratio(sampled),
            text=("prompt", data["text"].values, {"long_name": "prompt"}),
        )
    )


def token_join_of(data: xr.Dataset) -> TokenJoin:
    """The token join that a comparison holds.

    Args:
        data: the comparison's dataset.

    Raises:
        MeasureError: it holds none.
    """
    return TokenJoin(restored(data, "token_join"))


def _sampled(data: xr.Dataset) -> xr.Dataset:
    """What both models sampled, without the responses that were given."""
    if "response_logprob" not in data:
        raise MeasureError("the models share no tokens, so a response has no log-ratio; compare what they say")
    names = ["completion", "completion_reward", "response_id", "response_logprob"]
    return data[names].sel(source=list(MODELS)).drop_vars("group", errors="ignore")


def _token_log_ratio(sampled: xr.Dataset) -> xr.DataArray:
    log_probs = sampled["response_logprob"]
    found = log_probs.sel(model="tuned", drop=True) - log_probs.sel(model="base", drop=True)
    found.attrs = {"long_name": "log pi_tuned - log pi_base of a response token", "units": "nats"}
    return found


def implicit_arrays(data: xr.Dataset, optimised: Transform, seed: int) -> xr.Dataset:
    """The implicit reward of a comparison's samples (see `interp.reward.calibrate`)."""
    sampled = _sampled(data)
    if 2 * sampled.sizes["draw"] < FEWEST:
        raise MeasureError(f"it needs {FEWEST} responses to each prompt, half from each model; pass draws={DRAWS}")
    ratios, real = _token_log_ratio(sampled), sampled["response_id"] >= 0
    if bool((real & ~np.isfinite(ratios)).any()):
        raise MeasureError("a response holds a token that only one of the models has")
    raw = sampled["completion_reward"].values
    reward = np.asarray(optimised(raw), dtype=np.float64)
    if reward.shape != raw.shape or not np.isfinite(reward).all():
        raise MeasureError(f"optimised must return a finite reward for each of {raw.size} scores; correct the function")
    dims = "prompt source draw"
    arrays = {
        "log_ratio": variable(dims, ratios.sum("step").values, "log pi_tuned - log pi_base of the response", "nats"),
        "reward": variable(dims, reward, "reward as it was optimised", "reward"),
        "length": variable(dims, real.sum("step").values.astype(float), "response tokens, end included", "tokens"),
    }
    given = sampled[["completion"]].assign(arrays).assign_coords(group=("prompt", data["group"].values))
    found = calibrate(given, permutations=PERMUTATIONS, seed=seed).dataset
    beta = getattr(optimised, "beta", None)
    words = str(data["completion_reward"].attrs.get("long_name", "reward"))
    return found.assign_attrs(
        reward=words, seed=seed, beta=float("nan") if beta is None else float(beta), samples=2 * sampled.sizes["draw"]
    )


def token_arrays(data: xr.Dataset, reward: RewardModel, tokenizer: Any, seed: int) -> xr.Dataset:
    """The join on tuned's first response to each prompt."""
    sampled = _sampled(data).sel(source="tuned", drop=True).isel(draw=0, drop=True)
    heads = [str(text) for text in data["completion_prompt"].values]
    said = [str(text) for text in sampled["completion"].values]
    texts = [head + text for head, text in zip(heads, said, strict=True)]
    usable = [row for row, text in enumerate(texts) if said[row].strip() and not reward.too_long([text])]
    if not usable:
        raise MeasureError("no response has text that the reward model can read")
    attributed: list[Any] = [[] for _ in texts]
    found = spans_of(attribute(reward, [texts[row] for row in usable], patched_texts=0))
    for row, spans in zip(usable, found, strict=True):
        attributed[row] = spans
    moved = [
        list(_moved(sampled.isel(prompt=row), tokenizer, len(heads[row]), said[row])) if spans else []
        for row, spans in enumerate(attributed)
    ]
    starts = [len(head) for head in heads]
    groups = np.asarray(data["group"].values)
    result = join_spans(texts, attributed, moved, starts=starts, groups=groups, permutations=PERMUTATIONS, seed=seed)
    left_out = len(texts) - len(usable)
    remark = (
        f"{left_out} of {len(texts)} responses are empty or too long for the reward model, and not in the token join."
    )
    return result.dataset.assign_attrs(remark=remark if left_out else "")


def _moved(row: xr.Dataset, tokenizer: Any, start: int, text: str) -> Iterator[tuple[int, int, float, float]]:
    """(first character, the one after the last, log-ratio, base's surprise) of a response's tokens."""
    ids = [int(each) for each in row["response_id"].values if each >= 0]
    base, tuned = (row["response_logprob"].sel(model=model).values for model in MODELS)
    begin, pending = start, np.zeros(2)
    for place, end in enumerate(response_ends(tokenizer, ids, text)):
        pending += tuned[place] - base[place], -base[place]
        if end is not None and start + end > begin:  # else a character goes on in the next token
            yield begin, start + end, float(pending[0]), float(pending[1])
            begin, pending = start + end, np.zeros(2)
