"""Reward and policy joined inside a comparison: made of what it sampled or of checkpoints, and read back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import xarray as xr

from interp.errors import MeasureError
from interp.measures.arrays import MODELS, variable
from interp.models import RewardModel
from interp.pair import CheckpointPair
from interp.prompts import response_ends
from interp.reward.attribution import attribute
from interp.reward.implicit_reward import FEWEST, ImplicitReward, calibrate
from interp.reward.over_optimisation import OverOptimisation
from interp.reward.probes import Probes, probes
from interp.reward.token_join import TokenJoin, join_spans, spans_of

PREFIX = {
    "implicit_reward": "implicit_",
    "token_join": "join_",
    "over_optimisation": "over_",
    "probes": "probes_",
}
"""How a join's arrays begin."""

_SHARED = {
    "implicit_reward": frozenset({"prompt", "source", "draw", "step", "permutation"}),
    "token_join": frozenset({"prompt", "permutation"}),
    "over_optimisation": frozenset({"prompt"}),
    "probes": frozenset[str](),
}
"""Dims that mean the same in the join and in the comparison; others get the prefix too."""

RECORD = "joins"
"""Attribute of a comparison that keeps what its joins say of themselves, as JSON by measure."""


def records(data: xr.Dataset) -> Mapping[str, Any]:
    """What the joins of a comparison say of themselves, by measure."""
    return dict(json.loads(data.attrs.get(RECORD, "{}")))


def flattened(data: xr.Dataset, measure: str, *, drop: frozenset[str] = frozenset()) -> xr.Dataset:
    """A join's arrays, named so that they can stand beside the comparison's.

    Args:
        data: the join's own dataset.
        measure: its name.
        drop: variables that the comparison has already.
    """
    own = data.drop_vars([name for name in (*drop, "group") if name in data.variables])
    names = [*map(str, own.data_vars), *(str(dim) for dim in own.dims if dim not in _SHARED[measure])]
    return own.rename({name: f"{PREFIX[measure]}{name}" for name in names})


def restored(data: xr.Dataset, measure: str) -> xr.Dataset:
    """A join's own dataset, out of the comparison's.

    Raises:
        MeasureError: the comparison has none; the message says why.
    """
    record, prefix = records(data), PREFIX[measure]
    if measure not in record:
        why = [each for each in str(data.attrs.get("remarks", "")).split("\n") if each.startswith(measure)]
        words = measure.replace("_", " ")
        raise MeasureError(why[0] if why else f"this comparison holds no {words}; compare with reward=")
    own = data[[str(name) for name in data.data_vars if str(name).startswith(prefix)]]
    own = own.drop_vars([name for name in own.coords if name not in (*own.dims, "group")])
    names = [str(name) for name in (*own.data_vars, *own.dims) if str(name).startswith(prefix)]
    own = own.rename({name: name.removeprefix(prefix) for name in names})
    ends = {"lower": "low", "upper": "high"}  # as version 1 wrote them
    former = {str(name): str(name).rpartition("_") for name in own.data_vars}
    own = own.rename({name: f"{stem}_{ends[end]}" for name, (stem, _, end) in former.items() if end in ends})
    own.attrs = dict(record[measure])
    return own


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
    """The implicit reward of a comparison's samples (see `interp.reward.implicit_reward`)."""
    sampled = _sampled(data)
    if 2 * sampled.sizes["draw"] < FEWEST:
        raise MeasureError(
            f"it needs {FEWEST} responses to each prompt, half from each model; pass sampling=interp.Sampling({DRAWS})"
        )
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
    found = calibrate(given, draws=PERMUTATIONS, seed=seed).dataset
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
    result = join_spans(texts, attributed, moved, starts=starts, groups=groups, draws=PERMUTATIONS, seed=seed)
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


MOST_TEXTS = 256
"""Responses that are probed, of which half have a reward above the median."""


def probe_arrays(data: xr.Dataset, pair: CheckpointPair, reward: RewardModel, seed: int) -> xr.Dataset:
    """Probes for a high reward, on what both models said.

    Raises:
        MeasureError: as `probes`.
    """
    own = data[["completion", "completion_reward"]].sel(source=["base", "tuned"]).transpose("draw", "source", "prompt")
    heads = np.broadcast_to(data["completion_prompt"].values, own["completion"].shape)
    groups = np.broadcast_to(data["group"].values, own["completion"].shape)
    found = (
        (f"{head}{said}", float(score), str(group))
        for head, said, score, group in zip(
            heads.ravel(), own["completion"].values.ravel(), own["completion_reward"].values.ravel(), groups.ravel(),
            strict=True,
        )
        if str(said).strip() and not reward.too_long([f"{head}{said}"])
    )  # fmt: skip
    rows = list(islice(found, MOST_TEXTS))
    if not rows:
        raise MeasureError("no response has text that can be probed")
    texts, scores, owners = zip(*rows, strict=True)
    high = (np.array(scores) > np.median(scores)).astype(int).tolist()
    return probes(pair, list(texts), high, groups=list(owners), seed=seed).dataset


def over_optimisation_of(data: xr.Dataset) -> OverOptimisation:
    """The over-optimisation that a comparison holds.

    Args:
        data: the comparison's dataset.

    Raises:
        MeasureError: it holds none.
    """
    return OverOptimisation(restored(data, "over_optimisation"))


def probes_of(data: xr.Dataset) -> Probes:
    """The probes that a comparison holds.

    Args:
        data: the comparison's dataset.

    Raises:
        MeasureError: it holds none.
    """
    return Probes(restored(data, "probes"))
