"""Reading the value head: what it expected of a continuation, token by token, and what the reward came to."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.stats
import xarray as xr
from jaxtyping import Float

from interp.errors import renamed
from interp.measures.arrays import as_variable, strings
from interp.metrics import Reward, call_reward, check_whole, resolve_reward, reward_units
from interp.models import Policy, RewardModel, Source
from interp.models.load import as_policy
from interp.models.value_head import ValueHead, values_along
from interp.patching.result import counted
from interp.progress import Progress, no_progress
from interp.prompts import Prompts, response_texts
from interp.result import Result, number
from interp.sampling import Sampling, end_ids, sample
from interp.stats import MIN_PROMPTS, interval

SAMPLES = 16
"""Continuations a prompt where `Sampling` leaves their number open."""


@dataclass(frozen=True, eq=False, repr=False)
class ValueReading(Result):
    """What a value head says along sampled continuations.

    `dataset` has `value` [prompt, sample, step] (step 0 has read the prompt alone; NaN behind the end), `reward` and
    `completion` [prompt, sample], and by step `mean` with `mean_low` and `mean_high`, `correlation` (Pearson's, of
    value and final reward over all samples that reach the step) and `explained`, 1 - sum (reward - value)^2 / sum
    (reward - its mean)^2, which a value that is off by a constant makes negative.
    """

    kind = "value_reading"
    title = "Value reading"

    def headline(self) -> str:
        """What the head expects of a prompt alone, and what the reward came to."""
        data = self.dataset
        count = data.sizes["prompt"] * data.sizes["sample"]
        first, reward = float(data["mean"][0]), float(data["reward"].mean())
        return (
            f"The value head over {counted(count, 'sample')} of {counted(data.sizes['prompt'], 'prompt')}: it expects"
            f" {number(first)} of the prompt alone, and the reward came to {number(reward)} on average."
        )

    def notes(self) -> list[str]:
        """What the columns are, and why there is no interval."""
        notes = [
            "samples: those that reach the step; explained: 1 - squared error of the value / variance of the reward,"
            " negative where the value is off by a constant"
        ]
        if np.isnan(self.dataset["mean_low"].values).all():
            notes.append(f"no intervals: fewer than {MIN_PROMPTS} groups of prompts")
        return notes

    def summary(self) -> pd.DataFrame:
        """One row a step."""
        data = self.dataset
        reached = np.isfinite(data["value"].values).sum((0, 1))
        names = ("mean", "mean_low", "mean_high", "correlation", "explained")
        arrays = {name: data[name].values for name in names}
        return pd.DataFrame({"step": data["step"].values, "samples": reached, **arrays})


@renamed(samples="pass sampling=Sampling(samples=...)", max_new_tokens="pass sampling=Sampling(max_new_tokens=...)")
def value_reading(
    model: Source | Policy,
    head: ValueHead | str | os.PathLike[str],
    prompts: Prompts | Sequence[str],
    reward: Reward | Source,
    *,
    sampling: Sampling = Sampling(),
    batch_size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> ValueReading:
    """Sample from a tuned model, read its value head along the samples, and score them.

    Args:
        model: the model whose states the head reads.
        head: a value head, or the pair's folder.
        prompts: what is continued.
        reward: a reward model, what one is loaded from, or a function that is called as trlX calls it,
            f(samples=[prompt and continuation ...], prompts=[...], outputs=[...]), and returns one number a sample.
        sampling: how continuations are drawn, by default 16 a prompt.
        batch_size: rows a pass.
        seed: of the samples and of the resampling.
        progress: told of the "samples" drawn.

    Raises:
        LoadError: there is no such head, or it belongs to another model.
        MeasureError: the reward is not one finite number a sample.
        PromptError: the prompts do not fit.
    """
    check_whole(batch_size=batch_size)
    check_whole(0, seed=seed)
    policy, reward = as_policy(model), resolve_reward(reward)
    head = head if isinstance(head, ValueHead) else ValueHead.load(head)
    prompts = prompts if isinstance(prompts, Prompts) else Prompts(prompts)
    tokens = prompts.for_models([policy.tokenizer]).tokenize(policy.tokenizer, decoder_start=policy.decoder_start)
    count, samples = len(tokens), sampling.samples or SAMPLES
    ids = list(tokens.prompt_ids) * samples
    encoder = None if tokens.encoder_ids is None else list(tokens.encoder_ids) * samples
    responses: list[list[int]] = []
    for start in range(0, len(ids), batch_size):
        part = slice(start, start + batch_size)
        drawn = sample(
            policy.model, ids[part], max_new_tokens=sampling.max_new_tokens, temperature=sampling.temperature,
            top_k=sampling.top_k, top_p=sampling.top_p, seed=seed, first_index=start, pad_id=0,
            end_ids=end_ids(policy.model, policy.tokenizer), encoder=None if encoder is None else encoder[part],
        )  # fmt: skip
        responses += [row[mask].tolist() for row, mask in zip(drawn.response_ids, drawn.response_mask, strict=True)]
        (progress or no_progress)("samples", len(responses), len(ids))
    values = values_along(policy, head, ids, responses, encoder_ids=encoder, batch_size=batch_size)
    before = [[*first, *then] for first, then in zip(encoder or [()] * len(ids), ids, strict=True)]
    whole, heads, outputs = response_texts(policy.tokenizer, before, responses)
    scores = call_reward(reward, whole, heads, outputs, batch_size=batch_size)
    table = np.full((len(ids), sampling.max_new_tokens + 1), np.nan)
    for row, along in enumerate(values):
        table[row, : len(along)] = along.numpy()
    groups = np.unique(np.array(prompts.groups, dtype=object), return_inverse=True)[1]
    steps = table.reshape(samples, count, -1).transpose(1, 0, 2)
    shape = samples, count
    data = _dataset(
        steps, scores.reshape(shape).T, strings(outputs).reshape(shape).T, groups, reward_units(reward), seed
    )
    described = {"tuned": json.dumps(dict(policy.description)), "seed": seed}
    if isinstance(reward, RewardModel):
        described |= {"reward": json.dumps(dict(reward.description))}
    return ValueReading(data.assign_attrs(described))


def _dataset(
    value: Float[np.ndarray, "prompt sample step"],
    reward: Float[np.ndarray, "prompt sample"],
    completion: np.ndarray,
    groups: np.ndarray,
    units: str,
    seed: int,
) -> xr.Dataset:
    by_step = np.full((5, value.shape[2]), np.nan)
    # The first sample of every prompt first, which is the order that the resampling has always had.
    owners, scores = np.tile(groups, value.shape[1]), reward.T.ravel()
    for step in range(value.shape[2]):
        column = value[:, :, step].T.ravel()
        here = np.isfinite(column)
        by_step[:3, step] = interval(column, owners, seed=seed)
        seen, final = column[here], scores[here]
        if here.sum() > 2 and np.ptp(seen) > 0 and np.ptp(final) > 0:
            by_step[3, step] = scipy.stats.pearsonr(seen, final).statistic
        if here.sum() > 2 and np.ptp(final) > 0:
            by_step[4, step] = 1 - ((final - seen) ** 2).sum() / ((final - final.mean()) ** 2).sum()
    words = {
        "mean": ("mean value", units),
        "mean_low": ("lower bound of its 95 % interval over prompts", units),
        "mean_high": ("upper bound", units),
        "correlation": ("correlation of value and final reward", ""),
        "explained": ("share of the reward's variance that the value explains", ""),
    }
    variables = {
        name: as_variable(("step",), row, {"long_name": text, "units": unit})
        for row, (name, (text, unit)) in zip(by_step, words.items(), strict=True)
    }
    dims = ("prompt", "sample")
    text = "value before the token of this step"
    variables["value"] = as_variable((*dims, "step"), value, {"long_name": text, "units": units})
    variables["reward"] = as_variable(dims, reward, {"long_name": "reward", "units": units})
    variables["completion"] = as_variable(dims, completion, {"long_name": "continuation", "units": ""})
    return xr.Dataset(variables, coords={"step": range(value.shape[2]), "group": ("prompt", groups)})
