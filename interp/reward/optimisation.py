"""Over-optimisation: the reward against the distance from base along a training, with a second reward as the gold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from interp.errors import MeasureError
from interp.measures.arrays import dataset, variable
from interp.models import Policy, Source
from interp.pair import CheckpointPair
from interp.prompts import Prompts, check_same_vocabulary
from interp.reward.responses import Reads, Reward, read_prompts, respond, response_kl, reward_words, scores
from interp.stats import bootstrap_mean, selection_halves

_NAN = float("nan")
_ENDS = ("", "_lower", "_upper")


@dataclass(frozen=True)
class OverOptimisation:
    """Reward against KL over the checkpoints of one training (see `over_optimisation`).

    Attributes:
        dataset: by `step` `reward`, `gold` (raw, with bounds), `reward_gain`, `gold_gain` (against base, in standard
            deviations of base's scores), `kl_token`, `kl_response` and `distance` (its square root); by prompt, step
            and draw the scores and the KL they are means of; `peak` and what the gold reward lost after it.
    """

    dataset: xr.Dataset

    def summary(self) -> pd.DataFrame:
        """The findings, one a row, with their intervals."""
        return _summary(self.dataset)


def over_optimisation(
    pair: CheckpointPair | Mapping[int, Source | Policy],
    reward: Reward,
    prompts: Prompts | Sequence[str],
    *,
    gold: Reward | None = None,
    samples: int = 4,
    reads: Reads = "sample",
    max_new_tokens: int = 24,
    seed: int = 0,
    batch_size: int = 32,
) -> OverOptimisation:
    """Score the samples of every checkpoint of a training by the optimised reward and by another, against their KL.

    A policy that is pushed far enough toward a reward model gains by that model and loses by what it stood for (Gao et
    al. 2022, arXiv:2210.10760, figure 1, whose horizontal axis is sqrt(KL)). The second reward model, `gold`, stands
    for that: it says the more, the less it shares with the first in data and training, and what both mistake alike it
    cannot show. Their law of the two curves is not fitted: a few checkpoints do not pin its coefficients down.

    Every checkpoint responds to the same prompts with the same random numbers. KL(checkpoint || base) is exact over the
    vocabulary at every response token of the checkpoint's own samples: `kl_response` is its sum over a response, in the
    mean over responses, `kl_token` the mean over response tokens. Intervals resample prompts. The peak is the step
    of the highest mean gold reward on half of the prompts; what was lost from there to the last step is estimated on
    the other half (from 16 prompts on; else on the same, and is then too large).

    Args:
        pair: a pair with stored checkpoints, or policies by optimiser step, the first of them base.
        reward: what was optimised, the proxy.
        prompts: what is responded to.
        gold: another reward, which was not optimised.
        samples: responses to each prompt from each checkpoint.
        reads: what reward models read: prompt and response as one text, or the response.
        max_new_tokens: most tokens of a response; take the recipe's.
        seed: seed of samples and intervals.
        batch_size: responses a forward pass.

    Raises:
        MeasureError: there are no checkpoints between base and tuned, or too few samples.
        TokenizerMismatch: a checkpoint has another vocabulary than base.
    """
    if samples < 1:
        raise MeasureError(f"samples must be at least 1 a prompt, not {samples}")
    sources = _policies(pair)
    steps = sorted(sources)
    base = Policy.load(sources[steps[0]])
    prompts = prompts if isinstance(prompts, Prompts) else Prompts(prompts)
    tokens = read_prompts([base], prompts)
    known: dict[str, list[np.ndarray]] = {"score": [], "gold_score": [], "kl": [], "length": []}
    rewards = {"score": reward} if gold is None else {"score": reward, "gold_score": gold}
    for step in steps:
        # One checkpoint is in memory at a time beside base, however many there are.
        policy = base if step == steps[0] else Policy.load(sources[step])
        check_same_vocabulary(base.tokenizer, policy.tokenizer, f"step {step}")
        said = respond(policy, tokens, draws=samples, max_new_tokens=max_new_tokens, seed=seed, batch_size=batch_size)
        for name, each in rewards.items():
            known[name].append(scores(each, said, reads=reads))
        along = response_kl(base, policy, tokens, said, batch_size=batch_size)
        known["kl"].append(np.array([kl.sum() for kl in along]))
        known["length"].append(said.lengths)
    shape = (len(steps), samples, len(tokens))
    arrays = {name: np.stack(rows).reshape(shape).transpose(2, 0, 1) for name, rows in known.items() if rows}
    groups = np.unique(np.asarray(prompts.groups, dtype=object), return_inverse=True)[1]
    return curve(steps, arrays, groups, words={n: reward_words(r) for n, r in rewards.items()}, seed=seed)


def _policies(pair: CheckpointPair | Mapping[int, Source | Policy]) -> dict[int, Any]:
    if not isinstance(pair, CheckpointPair):
        if len(pair) < 2:
            raise MeasureError(f"give policies of at least two steps, base's first; {len(pair)} came")
        return dict(pair)
    if not pair.checkpoints:
        raise MeasureError(
            "the pair has no checkpoints, and base and tuned alone show no course; train it with"
            " --set train.checkpoint_interval=20, or pass policies by step"
        )
    last = int(pair.manifest["final"].get("steps", 1 + max(pair.checkpoints)))
    return {0: pair.base, **pair.checkpoints, last: pair.tuned}


def curve(
    steps: list[int],
    arrays: Mapping[str, np.ndarray],
    groups: np.ndarray,
    *,
    words: Mapping[str, tuple[str, str]],
    seed: int = 0,
) -> OverOptimisation:
    """Means, intervals and peak of scores that are there already (see `over_optimisation`).

    Args:
        steps: optimiser steps, base's first.
        arrays: `score`, `kl` (nats a response), `length` (tokens) and perhaps `gold_score`, each [prompt, step, draw].
        groups: group of each prompt.
        words: what each score is called, and its units.
        seed: seed of the intervals.

    Raises:
        MeasureError: base's scores are all equal, so that gains have no scale.
    """
    dims = "prompt step draw"
    found = {
        "kl": variable(dims, arrays["kl"], "KL(checkpoint || base), summed over the response", "nats"),
        "length": variable(dims, arrays["length"], "response tokens, the end token included", "tokens"),
    }
    for name, short in (("score", "reward"), ("gold_score", "gold")):
        if name not in arrays:
            continue
        values, (said, units) = arrays[name], words[name]
        spread = float(values[:, 0].std())
        if spread == 0:
            raise MeasureError(
                f"{said}: base's samples all score {values.flat[0]:g}, so a gain has no scale; take more"
            )
        found[name] = variable(dims, values, said, units)
        gain = (values - values[:, :1].mean()) / spread
        for short_name, each, unit in ((short, values, units), (f"{short}_gain", gain, "sd of base's scores")):
            for end, row in zip(_ENDS, _means(each, groups, seed), strict=True):
                found[f"{short_name}{end}"] = variable("step", row, said, unit)
        found |= _peak(short, values, steps, groups, seed)
    for end, row in zip(_ENDS, _means(arrays["kl"], groups, seed), strict=True):
        found[f"kl_response{end}"] = variable("step", row, "KL(checkpoint || base) per response", "nats")
        root = np.sqrt(np.maximum(row, 0))
        found[f"distance{end}"] = variable("step", root, "square root of KL(checkpoint || base)", "sqrt(nats)")
    for end, row in zip(_ENDS, _per_token(arrays, groups, seed), strict=True):
        found[f"kl_token{end}"] = variable("step", row, "KL(checkpoint || base) per response token", "nats")
    names = {"reward": "score", "gold": "gold_score"}
    found |= {
        k: v for s, n in names.items() if n in arrays for k, v in _peak(s, arrays[n], steps, groups, seed).items()
    }
    sizes = arrays["score"].shape
    data = dataset(found, step=steps, prompt=range(sizes[0]), draw=range(sizes[2]))
    return OverOptimisation(data.assign_coords(group=("prompt", groups)))


def _means(values: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """Mean over prompts and draws, and its bounds, at every step: [3, step]."""
    rows = [bootstrap_mean(values[:, step].mean(-1), groups, seed=seed) for step in range(values.shape[1])]
    return np.array(rows).T


def _per_token(arrays: Mapping[str, np.ndarray], groups: np.ndarray, seed: int) -> np.ndarray:
    """KL per response token: the sum over all responses over the number of their tokens, with bounds."""
    rows = []
    for step in range(arrays["kl"].shape[1]):
        total, count = (arrays[name][:, step].sum(-1) for name in ("kl", "length"))
        # A prompt weighs as its tokens: as many equal rows as it has tokens have the same sum and count.
        tokens = count.astype(int)
        rows.append(bootstrap_mean(np.repeat(total / count, tokens), np.repeat(groups, tokens), seed=seed))
    return np.array(rows).T


def _peak(short: str, values: np.ndarray, steps: list[int], groups: np.ndarray, seed: int) -> dict[str, Any]:
    """Where the mean is highest, and how far it falls from there to the last step."""
    chosen, rest = selection_halves(groups)
    at = int(values[chosen].mean((0, 2)).argmax())
    fall = (values[rest, -1] - values[rest, at]).mean(-1)
    ends = bootstrap_mean(fall, groups[rest], seed=seed)
    said = f"mean {short} at the last step minus that at the peak"
    found = {f"{short}_fall{n}": variable("", v, said) for n, v in zip(_ENDS, ends, strict=True)}
    return {f"{short}_peak": variable("", steps[at], f"step of the highest mean {short}", "steps"), **found}


def _summary(data: xr.Dataset) -> pd.DataFrame:
    rows = []

    def add(finding: str, name: str, units: str, at: int | None = None) -> None:
        values = [data[f"{name}{end}"] for end in _ENDS if f"{name}{end}" in data]
        numbers = [float(v if at is None else v.sel(step=at)) for v in values]
        low, high = numbers[1:] or (_NAN, _NAN)
        row = {"reading": "over-optimisation", "finding": finding, "estimate": numbers[0], "lower": low, "upper": high}
        rows.append({**row, "units": units, "n": data.sizes["prompt"]})

    last = int(data["step"].values[-1])
    for short, name in (("reward", "score"), ("gold", "gold_score")):
        if name not in data:
            continue
        said, units = data[name].attrs["long_name"], data[name].attrs["units"]
        role = f"optimised {said}" if short == "reward" else f"gold {said}"
        add(f"{role}: base", short, units, at=int(data["step"].values[0]))
        add(f"{role}: step {last}", short, units, at=last)
        add(f"{role}: step of the highest mean", f"{short}_peak", "steps")
        add(f"{role}: change from its peak to step {last}", f"{short}_fall", units)
    add(f"KL(step {last} || base) per response", "kl_response", "nats", at=last)
    add(f"KL(step {last} || base) per response token", "kl_token", "nats", at=last)
    return pd.DataFrame(rows)
