"""Reading the value head: what it expected of a continuation, token by token, and what the reward came to."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats
import xarray as xr

from interp.measures.arrays import as_variable, strings
from interp.models import Policy, RewardModel
from interp.models.source import Source
from interp.models.value_head import ValueHead, values_along
from interp.prompts import Prompts
from interp.sampling import end_ids, sample
from interp.stats import interval

Scores = Callable[[list[str]], Sequence[float]]


@dataclass(frozen=True)
class ValueReading:
    """What a value head says along sampled continuations.

    `dataset` has `value` [prompt, sample, step] (step 0 has read the prompt alone; NaN behind the end), `reward` and
    `completion` [prompt, sample], and by step `mean` with `low` and `high`, `correlation` (Pearson's, of value and
    final reward over all samples that reach the step) and `explained`, 1 - sum (reward - value)^2 / sum (reward - its
    mean)^2, which a value that is off by a constant makes negative.

    Attributes:
        dataset: all arrays.
    """

    dataset: xr.Dataset

    def __getitem__(self, name: str) -> xr.DataArray:
        return self.dataset[name]


def value_reading(
    model: Source | Policy,
    head: ValueHead | str | os.PathLike[str],
    prompts: Prompts | Sequence[str],
    reward: RewardModel | Scores,
    *,
    samples: int = 16,
    max_new_tokens: int = 24,
    batch_size: int = 64,
    seed: int = 0,
) -> ValueReading:
    """Sample from a tuned model, read its value head along the samples, and score them.

    Args:
        model: the model whose states the head reads.
        head: a value head, or the pair's folder.
        prompts: what is continued.
        reward: a reward model, or a function from texts (prompt and continuation) to numbers.
        samples: continuations a prompt.
        max_new_tokens: longest continuation, in tokens.
        batch_size: rows a pass.
        seed: of the samples and of the resampling.

    Raises:
        LoadError: there is no such head, or it belongs to another model.
        PromptError: the prompts do not fit.
    """
    policy = Policy.load(model)
    head = head if isinstance(head, ValueHead) else ValueHead.load(head)
    prompts = prompts if isinstance(prompts, Prompts) else Prompts(prompts)
    tokens = prompts.for_models([policy.tokenizer]).tokenize(policy.tokenizer, decoder_start=policy.decoder_start)
    ids = list(tokens.prompt_ids) * samples
    encoder = None if tokens.encoder_ids is None else list(tokens.encoder_ids) * samples
    responses: list[list[int]] = []
    for start in range(0, len(ids), batch_size):
        part = slice(start, start + batch_size)
        drawn = sample(
            policy.model, ids[part], max_new_tokens=max_new_tokens, seed=seed, first_index=start, pad_id=0,
            end_ids=end_ids(policy.model, policy.tokenizer), encoder=None if encoder is None else encoder[part],
        )  # fmt: skip
        responses += [row[mask].tolist() for row, mask in zip(drawn.response_ids, drawn.response_mask, strict=True)]
    values = values_along(policy, head, ids, responses, encoder_ids=encoder, batch_size=batch_size)
    before = encoder or [()] * len(ids)
    whole = [[*e, *p, *r] for e, p, r in zip(before, ids, responses, strict=True)]
    texts = [policy.tokenizer.decode(row, skip_special_tokens=True) for row in whole]
    scored = reward.score(texts) if isinstance(reward, RewardModel) else reward(texts)
    table = np.full((len(ids), max_new_tokens + 1), np.nan)
    for row, each in enumerate(values):
        table[row, : len(each)] = each.numpy()
    said = [policy.tokenizer.decode(row, skip_special_tokens=True) for row in responses]
    groups = np.unique(np.array(prompts.groups, dtype=object), return_inverse=True)[1]
    return ValueReading(_dataset(table, np.asarray(scored, dtype=np.float64), said, samples, groups, seed))


def _dataset(
    table: np.ndarray, scores: np.ndarray, said: list[str], samples: int, groups: np.ndarray, seed: int
) -> xr.Dataset:
    steps, count = table.shape[1], len(scores) // samples
    by_step = np.full((5, steps), np.nan)
    owner = np.tile(groups, samples)
    for step in range(steps):
        here = np.isfinite(table[:, step])
        by_step[:3, step] = interval(table[:, step], owner, seed=seed)
        value, final = table[here, step], scores[here]
        if here.sum() > 2 and np.ptp(value) > 0 and np.ptp(final) > 0:
            by_step[3, step] = scipy.stats.pearsonr(value, final).statistic
        if here.sum() > 2 and np.ptp(final) > 0:
            by_step[4, step] = 1 - ((final - value) ** 2).sum() / ((final - final.mean()) ** 2).sum()
    words = {
        "mean": "mean value",
        "low": "lower bound of its 95 % interval over prompts",
        "high": "upper bound",
        "correlation": "correlation of value and final reward",
        "explained": "share of the reward's variance that the value explains",
    }
    variables = {
        name: as_variable(("step",), by_step[row], {"long_name": text, "units": "reward" if row < 3 else ""})
        for row, (name, text) in enumerate(words.items())
    }
    variables |= {
        "value": as_variable(
            ("prompt", "sample", "step"),
            table.reshape(samples, count, steps).transpose(1, 0, 2),
            {"long_name": "value before the token of this step", "units": "reward"},
        ),
        "reward": as_variable(
            ("prompt", "sample"), scores.reshape(samples, count).T, {"long_name": "reward", "units": "reward"}
        ),
        "completion": as_variable(
            ("prompt", "sample"), strings(said).reshape(samples, count).T, {"long_name": "continuation", "units": ""}
        ),
    }
    return xr.Dataset(variables, coords={"step": range(steps), "group": ("prompt", groups)}, attrs={"seed": seed})
