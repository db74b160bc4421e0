"""Over-optimisation: the reward against the distance from base along a training, with a second reward as the gold."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import xarray as xr

from interp.errors import MeasureError, renamed
from interp.measures.arrays import dataset, variable
from interp.metrics import Reward, RewardFunction, resolve_reward
from interp.models import Policy, RewardModel, Source, as_policy, as_reward
from interp.pair import CheckpointPair, pair_at
from interp.progress import Progress, no_progress
from interp.prompts import Prompts, check_same_vocabulary
from interp.result import Result
from interp.reward.checkpoints import (
    Place,
    load_gold,
    pair_prompts,
    pair_reads,
    pair_setting,
    pair_steps,
    same_reward,
)
from interp.reward.fixed_effects import unit_ranks
from interp.reward.responses import Reads, read_prompts, respond, response_kl, reward_words, scores
from interp.reward.texts import RewardLike
from interp.sampling import Sampling
from interp.stats import MIN_PROMPTS, SPLIT_PROMPTS, bootstrap_mean, selection_halves

CAVEAT = (
    "Over-optimisation is gold falling while the optimised reward still rises. A gap by itself may come of scale: gains"
    " are in each reward's own sd, and a score that saturates gains less. What both mistake alike, neither shows."
)

_NAN = float("nan")

_ENDS = ("", "_low", "_high")

_SD = "sd of base's scores"

_RESAMPLES = 2000

SAMPLES = 4
"""Responses to each prompt from each checkpoint, where `sampling` does not say."""


@dataclass(frozen=True, eq=False, repr=False)
class OverOptimisation(Result):
    """Reward against KL over the checkpoints of one training (see `over_optimisation`).

    Attributes:
        dataset: by `step` `reward`, `gold` (raw, with bounds), `reward_gain`, `gold_gain` (against base, in standard
            deviations of base's scores), `gap` (gold's gain minus the optimised one's), `agreement` (rank correlation
            of the two over the step's samples), `kl_token`, `kl_response` and `distance` (its square root); by prompt,
            step and draw the scores and the KL they are means of; `peak` and what the gold reward lost after it.
    """

    kind: ClassVar[str] = "over_optimisation"
    title: ClassVar[str] = "Over-optimisation"

    def summary(self) -> pd.DataFrame:
        """The findings, one a row, with their intervals."""
        return _summary(self.dataset)

    def by_step(self) -> pd.DataFrame:
        """One row a checkpoint: KL, both rewards, their gains and how far they agree."""
        names = ("kl_token", "distance", "reward", "gold", "reward_gain", "gold_gain", "gap", "agreement")
        return pd.DataFrame(
            {"step": self.dataset["step"].values}
            | {name: self.dataset[name].values for name in names if name in self.dataset}
        )

    def headline(self) -> str:
        """The checkpoints, and how many samples each."""
        data = self.dataset
        steps = ", ".join(map(str, data["step"].values.tolist()))
        return f"reward over the steps {steps}: {data.sizes['prompt']} prompts, {data.sizes['draw']} samples each."

    def notes(self) -> list[str]:
        """What a gap between two rewards does not say."""
        data = self.dataset
        caveat = [data.attrs["caveat"]] if "gold" in data and "caveat" in data.attrs else []
        return [*caveat, ".by_step(): a row a checkpoint"]


@renamed(
    samples="pass sampling=Sampling(samples=...)",
    max_new_tokens="pass sampling=Sampling(max_new_tokens=...)",
    gold_label="pass gold=interp.load_reward(..., label=...)",
)
def over_optimisation(
    pair: CheckpointPair | Place | Mapping[int, Source | Policy],
    reward: RewardLike | RewardFunction | None = None,
    prompts: Prompts | Sequence[str] | None = None,
    *,
    gold: RewardLike | RewardFunction | None = None,
    sampling: Sampling | None = None,
    reads: Reads | None = None,
    seed: int = 0,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> OverOptimisation:
    """Score the samples of every checkpoint of a training by the optimised reward and by another, against their KL.

    A policy that is pushed far enough toward a reward model gains by that model and loses by what it stood for (Gao et
    al. 2022, arXiv:2210.10760, figure 1, whose horizontal axis is sqrt(KL)). The second reward model, `gold`, stands
    for that: it says the more, the less it shares with the first in data and training, and what both mistake alike it
    cannot show. Their law of the two curves is not fitted: a few checkpoints do not pin its coefficients down.

    `over_optimisation("runs/joy", gold="runs/other_reward")` is enough where the pair was trained with
    `train.checkpoint_interval`: reward, held-out prompts, length and what the reward read are then the pair's own.

    Every checkpoint responds to the same prompts with the same random numbers. KL(checkpoint || base) is exact over the
    vocabulary at every response token of the checkpoint's own samples: `kl_response` is its sum over a response, in the
    mean over responses, `kl_token` the mean over response tokens. Intervals resample prompts. The peak is the step of
    the highest mean gold reward on half of the prompts; what was lost from there to the last step is estimated on the
    other half (from 16 prompts on; else on the same, and is then too large).

    Gains are in standard deviations of base's own scores, as two reward models need not share a scale; their intervals
    resample that standard deviation too. A score that saturates (a probability, a reward model that is never sure)
    gains fewer of them, so the sign of `gap` alone says little, and its course says more.

    Args:
        pair: a pair with stored checkpoints or its folder, or policies by optimiser step, the first of them base.
        reward: what was optimised, the proxy. None: the pair's own. A folder or id is read for the pair's label.
        prompts: what is responded to. None: the pair's held-out prompts.
        gold: another reward, which was not optimised; a folder or id is read for the optimised label. Load it with
            `interp.load_reward(..., label=...)` where its label has another name.
        sampling: how responses are drawn, `samples` to each prompt from each checkpoint (4, where that is None). None:
            as long as in the pair's recipe, else up to 24 tokens.
        reads: what reward models read: prompt and response as one text, or the response. None: as in the pair's
            recipe, else "sample".
        seed: seed of samples and intervals.
        batch_size: responses a forward pass.
        progress: told of the "checkpoints" whose responses are drawn and scored.

    Raises:
        MeasureError: there are no checkpoints between base and tuned, gold is the optimised reward, or
            something is left out that the pair does not tell.
        TokenizerMismatch: a checkpoint has another vocabulary than base.
        LoadError: a model cannot be loaded, or lacks the label.
    """
    pair = _found(pair)
    sources = _policies(pair)
    rewards = _rewards(pair, reward, gold)
    reads = reads or pair_reads(pair)
    sampling = sampling or Sampling(max_new_tokens=pair_setting(pair, "generate", "max_new_tokens", 24))
    samples, told = sampling.samples or SAMPLES, progress or no_progress
    if prompts is None:
        if not isinstance(pair, CheckpointPair):
            raise MeasureError("policies by step do not say what they were judged on; pass prompts=")
        prompts = pair_prompts(pair)
    prompts = prompts if isinstance(prompts, Prompts) else Prompts(prompts)
    steps = sorted(sources)
    base = as_policy(sources[steps[0]])
    tokens = read_prompts([base], prompts)
    known: dict[str, list[np.ndarray]] = {"score": [], "gold_score": [], "kl": [], "length": []}
    for done, step in enumerate(steps):
        told("checkpoints", done, len(steps))
        # One checkpoint is in memory at a time beside base, however many there are.
        policy = base if step == steps[0] else as_policy(sources[step])
        check_same_vocabulary(base.tokenizer, policy.tokenizer, f"step {step}")
        said = respond(policy, tokens, samples, sampling, seed=seed, batch_size=batch_size)
        for name, each in rewards.items():
            known[name].append(scores(each, said, reads=reads))
        along = response_kl(base, policy, tokens, said, batch_size=batch_size)
        known["kl"].append(np.array([kl.sum() for kl in along]))
        known["length"].append(said.lengths)
    told("checkpoints", len(steps), len(steps))
    shape = (len(steps), samples, len(tokens))
    arrays = {name: np.stack(rows).reshape(shape).transpose(2, 0, 1) for name, rows in known.items() if rows}
    groups = np.unique(np.asarray(prompts.groups, dtype=object), return_inverse=True)[1]
    return curve(steps, arrays, groups, words={n: reward_words(r) for n, r in rewards.items()}, seed=seed)


def _found(pair: CheckpointPair | Place | Mapping[int, Source | Policy]) -> CheckpointPair | Mapping[int, Any]:
    if not isinstance(pair, (str, os.PathLike)):
        return pair
    found = pair_at(pair)
    if found is None:
        raise MeasureError(
            f"{os.fspath(pair)} is no pair's folder (there is no pair.json); pass one, or models by step"
        )
    return found


def _policies(pair: CheckpointPair | Mapping[int, Source | Policy]) -> dict[int, Any]:
    if isinstance(pair, CheckpointPair):
        return pair_steps(pair)
    if len(pair) < 2:
        raise MeasureError(f"give policies of at least two steps, base's first; {len(pair)} came")
    return dict(pair)


def _rewards(
    pair: CheckpointPair | Mapping[int, Any],
    reward: RewardLike | RewardFunction | None,
    gold: RewardLike | RewardFunction | None,
) -> dict[str, Reward]:
    """The optimised reward as `score`, and gold, where there is one, as `gold_score`."""
    if reward is None:
        if not isinstance(pair, CheckpointPair):
            raise MeasureError("policies by step do not say what they were tuned toward; pass reward=")
        scorer: Reward = as_reward(pair)
    elif isinstance(reward, (str, os.PathLike)):
        how = pair.manifest.get("reward") or {} if isinstance(pair, CheckpointPair) else {}
        scorer = RewardModel.load(reward, label=how.get("label"), output=how.get("output"))
    else:
        scorer = resolve_reward(reward)
    if gold is None:
        return {"score": scorer}
    if isinstance(gold, (str, os.PathLike)) and isinstance(scorer, RewardModel):
        other: Reward = load_gold(gold, label=scorer.label, output=scorer.output)
    else:
        other = resolve_reward(gold)
    if same_reward(scorer, other):
        raise MeasureError(
            "gold is the very reward that was optimised (same weights and label), so it cannot fall behind; pass a"
            " reward model of other data, or at least of another seed"
        )
    return {"score": scorer, "gold_score": other}


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
    gains: dict[str, np.ndarray] = {}
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
        gains[short] = _gains(values, groups, seed)
        rows = ((short, _means(values, groups, seed), units), (f"{short}_gain", _bounds(gains[short]), _SD))
        for key, ends, unit in rows:
            for end, row in zip(_ENDS, ends, strict=True):
                found[f"{key}{end}"] = variable("step", row, said, unit)
    if len(gains) == 2:
        found |= _together(gains, arrays)
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
    data = dataset(found, step=steps, prompt=range(sizes[0]), draw=range(sizes[2])).assign_attrs(caveat=CAVEAT)
    return OverOptimisation(data.assign_coords(group=("prompt", groups)))


def _means(values: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """Mean over prompts and draws, and its bounds, at every step: [3, step]."""
    rows = [bootstrap_mean(values[:, step].mean(-1), groups, seed=seed) for step in range(values.shape[1])]
    return np.array(rows).T


def _gains(values: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """Gain over base in standard deviations of base's scores: [1 + resample, step], the estimate first.

    Each resample of the groups has a standard deviation of its own: where base's scores are skewed, as those of a rare
    label are, a few prompts set the scale, and bounds that took it for known would be far too narrow.
    """
    _, cluster = np.unique(groups, return_inverse=True)
    count = int(cluster.max()) + 1
    shifted = values - values[:, 0].mean()
    sums = np.zeros((count, values.shape[1] + 2))  # of each step's scores, of base's squares, and of how many
    columns = [shifted.sum(-1), (shifted[:, 0] ** 2).sum(-1)[:, None], np.full((len(values), 1), values.shape[2])]
    np.add.at(sums, cluster, np.concatenate(columns, axis=1))
    weights = np.ones((1, count))
    if count >= MIN_PROMPTS:
        drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=_RESAMPLES)
        weights = np.concatenate([weights, drawn])
    totals = weights @ sums
    means, square = totals[:, :-2] / totals[:, -1:], totals[:, -2] / totals[:, -1]
    spread = np.sqrt(np.maximum(square - means[:, 0] ** 2, 0))
    spread[spread == 0] = np.nan
    return np.asarray((means - means[:, :1]) / spread[:, None])


def _bounds(rows: np.ndarray) -> np.ndarray:
    """An estimate and the bounds that its resamples give: [3, step]."""
    if len(rows) == 1:
        return np.concatenate([rows, np.full((2, rows.shape[1]), np.nan)])
    return np.concatenate([rows[:1], np.nanquantile(rows[1:], (0.025, 0.975), axis=0)])


def _together(gains: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """How far gold's gain is behind the optimised one's, and whether the two still rank a step's samples alike."""
    rows = _bounds(gains["gold"] - gains["reward"])  # both have the same resamples
    said = "gain of gold minus that of the optimised reward"
    found = {f"gap{end}": variable("step", row, said, _SD) for end, row in zip(_ENDS, rows, strict=True)}
    count = arrays["score"].shape[1]
    flat = [arrays[name].transpose(1, 0, 2).ravel() for name in ("score", "gold_score")]
    index = np.repeat(np.arange(count), len(flat[0]) // count)
    both = np.bincount(index, weights=unit_ranks(flat[0], index) * unit_ranks(flat[1], index))
    found["agreement"] = variable("step", both, "Spearman of gold and optimised reward over all samples")
    return found


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
        row = {"finding": finding, "estimate": numbers[0], "estimate_low": low, "estimate_high": high}
        rows.append({**row, "units": units, "n": data.sizes["prompt"]})

    first, last = (int(data["step"].values[at]) for at in (0, -1))
    count = len(np.unique(data["group"].values)) if "group" in data.coords else data.sizes["prompt"]
    # The peak is chosen on one half of the prompts and the change estimated on the other, so the two need not agree.
    split = count >= SPLIT_PROMPTS
    chosen, estimated = (
        (", on one half of the prompts", ", on the other half of the prompts")
        if split
        else ("", ", on the same prompts (so too low)")
    )
    unsure = f" (unsure: base's sd is that of {count} prompts)" if count < MIN_PROMPTS else ""
    for short, name in (("reward", "score"), ("gold", "gold_score")):
        if name not in data:
            continue
        said, units = data[name].attrs["long_name"], data[name].attrs["units"]
        role = f"optimised {said}" if short == "reward" else f"gold {said}"
        add(f"{role}: base", short, units, at=first)
        add(f"{role}: step {last}", short, units, at=last)
        add(f"{role}: step of the highest mean{chosen}", f"{short}_peak", "steps")
        add(f"{role}: change from its peak to step {last}{estimated}", f"{short}_fall", units)
    if "gap" in data:
        unit = data["gap"].attrs["units"]
        for role, name in (("optimised reward", "reward_gain"), ("gold reward", "gold_gain")):
            add(f"gain of the {role} at step {last}{unsure}", name, unit, at=last)
        add(f"gain of gold minus that of the optimised reward at step {last}{unsure}", "gap", unit, at=last)
        for step in (first, last):
            add(f"Spearman of gold and optimised reward over samples of step {step}", "agreement", "", at=step)
    add(f"KL(step {last} || base) per response", "kl_response", "nats", at=last)
    add(f"KL(step {last} || base) per response token", "kl_token", "nats", at=last)
    return pd.DataFrame(rows)
