"""The implicit reward: does the policy's shift, sample by sample, follow the reward that it was tuned toward?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import xarray as xr

from interp.errors import MeasureError, renamed
from interp.measures.arrays import MODELS, TokenTexts, dataset, strings, variable
from interp.metrics import RewardFunction, check_whole, resolve_reward
from interp.models import Policy, Source, as_policy
from interp.models.optimised import Optimised
from interp.progress import Progress, no_progress
from interp.prompts import Prompts, TokenizedPrompts, check_same_vocabulary
from interp.result import Result, number
from interp.reward.fixed_effects import Slopes, centred, fixed_effects, permutations_within, spearman_within, unit_ranks
from interp.reward.responses import (
    Reads,
    Responses,
    read_prompts,
    respond,
    response_log_probs,
    reward_words,
    scores,
)
from interp.reward.texts import RewardLike
from interp.sampling import Sampling
from interp.stats import bootstrap_mean, permutation_p

FEWEST = 8
"""Fewest completions of a prompt."""

_NAN = float("nan")

CAUTION = (
    "The slope over both models' samples is too steep where the policy also drifted in ways that no reward explains;"
    " quote that of base's samples alone."
)


@dataclass(frozen=True, eq=False, repr=False)
class ImplicitReward(Result):
    """The policy's shift beside the reward, sample by sample (see `implicit_reward`).

    Attributes:
        dataset: `log_ratio`, `reward` (as optimised), `score` (raw), `length`, `residual`, `completion`, the same
            centred within prompts with the length taken out (`reward_within`, `log_ratio_within`), token log-ratios to
            look at (`token`, `token_log_ratio`), `spearman` by prompt, `slope` with its bounds, `slope_without_length`,
            `effective_beta`, and the nulls by permutation.
    """

    kind: ClassVar[str] = "implicit_reward"
    title: ClassVar[str] = "Implicit reward"

    def summary(self) -> pd.DataFrame:
        """The findings, one a row, with their intervals and what permuted rewards give."""
        return implicit_findings(self.dataset)

    def texts(self, count: int = 5) -> pd.DataFrame:
        """The samples that the reward explains least, by kind, largest residual first.

        `drift toward`: the policy moved to them beyond what their reward explains. `drift away`: it left them beyond
        that, and their reward is not above their prompt's mean. `unclaimed`: it left them, or moved to them less than
        the fit says, though their reward is above their prompt's mean: reward that lay there and was not taken. Reward
        and log-ratio are differences from the prompt's mean.

        Args:
            count: rows of each kind.
        """
        return least_explained(self.dataset, count)

    def headline(self) -> str:
        """How many samples, and the slope."""
        data = self.dataset
        samples = data.sizes["draw"] * data.sizes["source"]
        slope, units = float(data["slope"]), data["slope"].attrs["units"]
        return (
            f"{data.sizes['prompt']} prompts, {samples} samples each: the log-ratio grows by {number(slope)} {units},"
            " within prompts."
        )

    def notes(self) -> list[str]:
        """What the null is, and which slope to quote."""
        permutations = self.dataset.attrs["permutations"]
        return [
            f"null: {permutations} permutations of the rewards within prompts",
            CAUTION,
            ".texts(): the samples that reward explains least",
        ]


@renamed(
    samples="pass sampling=Sampling(samples=...)",
    max_new_tokens="pass sampling=Sampling(max_new_tokens=...)",
    permutations="pass draws=...",
)
def implicit_reward(
    base: Source | Policy,
    tuned: Source | Policy,
    reward: RewardLike | RewardFunction,
    prompts: Prompts | Sequence[str],
    *,
    sampling: Sampling = Sampling(),
    optimised: Callable[[np.ndarray], np.ndarray] | None = None,
    reads: Reads = "sample",
    draws: int = 999,
    seed: int = 0,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> ImplicitReward:
    """Regress the policy's shift on the reward: log pi_tuned(y|x) - log pi_base(y|x) against r(x, y).

    At the optimum of E[r] - beta KL(pi || pi_base), sampled at temperature 1, log pi_tuned(y|x) - log pi_base(y|x) =
    r(x, y) / beta - log Z(x) (Rafailov et al. 2023, arXiv:2305.18290, eq. 5). Z(x) sums over all responses to x and is
    not known, so the log-ratios of two prompts cannot be compared: an easy prompt, to which any response is rewarded,
    has a large Z(x) and a small log-ratio. Within one prompt log Z(x) cancels. Hence every prompt has an intercept of
    its own, and rank correlations are taken within prompts:

        log-ratio[i, j] = a[i] + slope * r[i, j] + length_slope * length[i, j] + residual[i, j]

    for response j to prompt i. The slope is 1 / effective beta. It is the recipe's 1 / beta only at the optimum, which
    a short training does not reach: then it is smaller. A reward that the policy could not see, or a shift that has
    nothing to do with the reward, gives a slope near 0 and large residuals. Half of the samples come from each model,
    with the same random numbers, because samples of one model rarely contain what the other tends to write. The
    log-ratio is a sum over the whole response, its end token included; the reward is of the whole response too, so
    token log-ratios are stored for inspection only, no fit uses them.

    Where the policy also drifted in ways that no reward explains, tuned's own samples hold more of that drift (that is
    how they were chosen) and more reward, and the slope over both models' samples is too steep. `slope_by_source` fits
    each model's samples alone; base's were not chosen by the log-ratio, and their slope is free of this, though wider.

    `slope_without_length` leaves the length out; where the two differ, part of what follows the reward is length.

    Intervals are bootstrap intervals over prompts (groups of prompts). The null permutes the rewards within each
    prompt, where a text that was sampled twice keeps one reward: what a reward of the same values would give that has
    nothing to do with the texts.

    Args:
        base: base model.
        tuned: tuned model, of the same vocabulary.
        reward: what it was tuned toward: what `interp.load_reward` takes, or a function called with keywords as
            f(samples=[...], prompts=[...], outputs=[...]).
        prompts: what is responded to.
        sampling: how responses are drawn: `samples` to each prompt, half of them each model's (even, at least 8, which
            is what None means); `max_new_tokens` of the recipe; temperature 1 and the whole distribution, as the
            formula asks.
        optimised: what made the raw score the reward that was optimised: an `Optimised`, any function of an array of
            scores, or None: what the reward model was loaded with, else the raw score.
        reads: what a reward model reads: prompt and response as one text, or the response.
        draws: permutations of the null.
        seed: seed of samples, intervals and null.
        batch_size: responses a forward pass.
        progress: told of the "models" whose responses are drawn and scored.

    Raises:
        MeasureError: too few or an odd number of samples, or the reward is the same for all responses to each prompt,
            or fully told by their length.
        TokenizerMismatch: the models do not share one vocabulary.
    """
    samples, steps = sampling.samples or FEWEST, sampling.max_new_tokens
    if samples < FEWEST or samples % 2:
        raise MeasureError(f"samples must be even and at least {FEWEST}, half from each model, not {samples}")
    if not sampling.is_plain:
        raise MeasureError(
            "the log-ratio follows the reward at temperature 1 and without top_k and top_p; leave them out"
        )
    scorer, told = resolve_reward(reward), progress or no_progress
    optimised = optimised or getattr(scorer, "optimised", None)
    first, second = as_policy(base), as_policy(tuned)
    check_same_vocabulary(first.tokenizer, second.tokenizer)
    check_whole(batch_size=batch_size, draws=draws)
    check_whole(0, seed=seed)
    prompts = prompts if isinstance(prompts, Prompts) else Prompts(prompts)
    tokens, groups = read_prompts([first, second], prompts), np.asarray(prompts.groups, dtype=object)
    shape = (samples // 2, len(tokens))
    responses, raw, ratios = [], [], []
    for done, policy in enumerate((first, second)):
        told("models", done, 2)
        drawn = respond(policy, tokens, shape[0], sampling, seed=seed, batch_size=batch_size)
        raw.append(scores(scorer, drawn, reads=reads))
        both = [response_log_probs(model, tokens, drawn, batch_size=batch_size) for model in (second, first)]
        ratios.append([after - before for after, before in zip(*both, strict=True)])
        responses.append(drawn)
    told("models", 2, 2)
    data = _samples(first, tokens, responses, np.stack(raw), ratios, shape, steps, optimised or Optimised())
    data = data.assign_coords(group=("prompt", np.unique(groups, return_inverse=True)[1]))
    words, units = reward_words(scorer)
    data["score"].attrs.update(long_name=f"{words}, raw score", units=units)
    beta = getattr(optimised, "beta", None)
    data.attrs.update(reward=words, seed=seed, beta=_NAN if beta is None else float(beta), samples=samples)
    return calibrate(data, draws=draws, seed=seed)


def calibrate(data: xr.Dataset, *, draws: int = 999, seed: int = 0) -> ImplicitReward:
    """Fit log-ratios that are there already (see `implicit_reward`).

    Args:
        data: `log_ratio`, `reward`, `length` and `completion` by [prompt, source, draw], and the coordinate `group` by
            prompt.
        draws: permutations of the null.
        seed: seed of intervals and null.

    Raises:
        MeasureError: the reward does not vary within prompts, or only as the length does.
    """
    shape = data["log_ratio"].transpose("prompt", "source", "draw").shape
    index = np.repeat(np.arange(shape[0]), shape[1] * shape[2])
    y, r, length = (
        data[name].transpose("prompt", "source", "draw").values.ravel().astype(np.float64)
        for name in ("log_ratio", "reward", "length")
    )
    _check_varies(r, length, index)
    clusters = np.asarray(data["group"].values)[index]
    x = np.stack([r, length], 1)
    fit = fixed_effects(y, x, index, clusters=clusters, seed=seed)
    plain = fixed_effects(y, r[:, None], index, clusters=clusters, seed=seed)
    free = [fixed_effects(v, length[:, None], index).residual for v in (r, y)]
    side = np.arange(len(y)) // shape[2] % 2
    apart = [_of_source(y, x, index, clusters, side == each, seed) for each in (0, 1)]
    texts = data["completion"].transpose("prompt", "source", "draw").values.ravel()
    nulls = _nulls(y, r, length, index, texts, draws, seed)
    by_prompt = spearman_within(r, y, index)
    names = ("reward_within", "log_ratio_within", "residual")
    arrays = [each.reshape(shape) for each in (*free, fit.residual)]
    units = (str(data["reward"].attrs.get("units", "")), "nats", "nats")
    titles = (
        "reward minus its prompt's mean, length taken out",
        "log-ratio minus its prompt's mean, length taken out",
        "log-ratio that neither reward nor length explains",
    )
    dims = "prompt source draw"
    found = {n: variable(dims, a, s, u) for n, a, s, u in zip(names, arrays, titles, units, strict=True)}
    per = "nats per unit of reward"
    for end, row in zip(("", "_low", "_high"), np.array(apart).T, strict=True):
        found[f"slope_by_source{end}"] = variable("source", row, "slope of one model's samples", per)
    for end, (value,) in zip(("", "_low", "_high"), (plain.values, plain.low, plain.high), strict=True):
        found[f"slope_without_length{end}"] = variable("", value, "slope where length is left out of the fit", per)
    found["spearman"] = variable("prompt", by_prompt, "rank correlation of reward and log-ratio within a prompt")
    out = data.assign({name: xr.Variable(*each) for name, each in {**found, **_scalars(fit, nulls)}.items()})
    mean = bootstrap_mean(by_prompt, np.asarray(data["group"].values), seed=seed)
    for name, value in zip(("spearman_mean", "spearman_low", "spearman_high"), mean, strict=True):
        out[name] = xr.Variable((), value, {"long_name": "mean over prompts of spearman", "units": ""})
    out.attrs["permutations"] = draws
    return ImplicitReward(out)


def _of_source(
    y: np.ndarray, x: np.ndarray, index: np.ndarray, clusters: np.ndarray, own: np.ndarray, seed: int
) -> tuple[float, float, float]:
    """Slope of one model's samples with its bounds; NaN where their reward does not vary within prompts."""
    if np.abs(centred(x[own, 0], index[own])).max() == 0:
        return _NAN, _NAN, _NAN
    fit = fixed_effects(y[own], x[own], index[own], clusters=clusters[own], seed=seed)
    return float(fit.values[0]), float(fit.low[0]), float(fit.high[0])


def _check_varies(r: np.ndarray, length: np.ndarray, index: np.ndarray) -> None:
    own = centred(r, index)
    size = float(np.abs(own).max())
    if size <= 1e-12 * max(1.0, float(np.abs(r).max())):
        raise MeasureError(
            "the reward is the same for all responses to each prompt, so there is nothing to compare; take more"
            " samples, longer responses, or optimised= with less clipping"
        )
    left = fixed_effects(r, length[:, None], index).residual
    if float(np.abs(left).max()) <= 1e-9 * size:
        raise MeasureError("within prompts the reward is a linear function of the length; the two cannot be told apart")


def _nulls(
    y: np.ndarray, r: np.ndarray, length: np.ndarray, index: np.ndarray, texts: np.ndarray, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The slope and the mean Spearman that permuted rewards give; one text that was sampled twice keeps one reward."""
    numbers = np.unique(texts.astype(str), return_inverse=True)[1]
    _, first, kind = np.unique(index * (numbers.max() + 1) + numbers, return_index=True, return_inverse=True)
    owner, reward = index[first], r[first]
    target = fixed_effects(y, length[:, None], index).residual
    own_length = centred(length, index)
    size = float(own_length @ own_length)
    rank_y = unit_ranks(y, index)
    slopes, ranks = [], []
    for order in permutations_within(owner, count, seed=seed):
        drawn = reward[order][kind]
        x = centred(drawn, index)
        free = x - own_length * (float(own_length @ x) / size) if size > 0 else x
        square = float(free @ free)
        slopes.append(float(free @ target) / square if square > 0 else 0.0)
        by_prompt = np.bincount(index, weights=unit_ranks(drawn, index) * rank_y)
        ranks.append(float(np.nanmean(by_prompt)) if np.isfinite(by_prompt).any() else _NAN)
    return np.array(slopes), np.array(ranks)


def _scalars(fit: Slopes, nulls: tuple[np.ndarray, np.ndarray]) -> Mapping[str, Any]:
    per = "nats per unit of reward"
    beta = [1 / v if fit.low[0] > 0 else _NAN for v in (fit.values[0], fit.high[0], fit.low[0])]
    names = ("", "_low", "_high")
    values = (fit.values, fit.low, fit.high)
    found = {}
    for n, v in zip(names, values, strict=True):
        found[f"slope{n}"] = variable("", v[0], "change of the log-ratio with the reward", per)
        found[f"length_slope{n}"] = variable("", v[1], "change of the log-ratio with the length", "nats per token")
    for n, inverse in zip(names, beta, strict=True):
        title = "1 / slope; not given where the slope's interval reaches 0"
        found[f"effective_beta{n}"] = variable("", inverse, title, "reward per nat")
    title = "share of the log-ratio's variance within prompts that reward and length explain"
    found["explained"] = variable("", fit.explained, title, "share")
    found["null_slope"] = variable("permutation", nulls[0], "slope with rewards permuted within prompts", per)
    found["null_spearman"] = variable("permutation", nulls[1], "mean Spearman with rewards permuted within prompts")
    return found


def _samples(
    policy: Policy,
    tokens: TokenizedPrompts,
    responses: list[Responses],
    raw: np.ndarray,
    ratios: list[list[np.ndarray]],
    shape: tuple[int, int],
    steps: int,
    optimised: Callable[[np.ndarray], np.ndarray],
) -> xr.Dataset:
    """What was sampled, by [prompt, source, draw]."""

    def by_prompt(values: np.ndarray) -> np.ndarray:
        return np.moveaxis(values.reshape(2, *shape, *values.shape[2:]), 2, 0)

    table = np.full((2, shape[0] * shape[1], steps), np.nan)
    names = np.full(table.shape, "", dtype=object)
    known = TokenTexts(policy.tokenizer)
    for source, (own, found) in enumerate(zip(responses, ratios, strict=True)):
        for row, (ids, each) in enumerate(zip(own.ids, found, strict=True)):
            table[source, row, : len(each)] = each
            names[source, row, : len(ids)] = [known[i] for i in ids]
    rewards = np.asarray(optimised(raw), dtype=np.float64)
    if rewards.shape != raw.shape or not np.isfinite(rewards).all():
        raise MeasureError(f"optimised must return a finite reward for each of {raw.size} scores; correct the function")
    dims = "prompt source draw"
    total = np.nansum(table, axis=-1)
    lengths = np.stack([own.lengths for own in responses])
    texts = strings([own.texts for own in responses])
    return dataset(
        {
            "completion": variable(dims, by_prompt(texts), "sampled response"),
            "score": variable(dims, by_prompt(raw), "raw score"),
            "reward": variable(dims, by_prompt(rewards), "reward as it was optimised", "reward"),
            "length": variable(dims, by_prompt(lengths), "response tokens, the end token included", "tokens"),
            "log_ratio": variable(dims, by_prompt(total), "log pi_tuned - log pi_base of the response", "nats"),
            "token": variable(f"{dims} step", by_prompt(names), "response token"),
            "token_log_ratio": variable(f"{dims} step", by_prompt(table), "the same of a token", "nats"),
            "text": variable("prompt", strings(list(tokens.texts)), "prompt"),
        },
        source=list(MODELS),
        prompt=range(len(tokens)),
        draw=range(shape[0]),
        step=range(steps),
    )


def _finding(
    data: xr.Dataset, finding: str, name: str, units: str, null: str | None = None, suffix: str = ""
) -> dict[str, Any]:
    value, low, high = (float(data[f"{name}{end}"]) for end in (suffix, "_low", "_high"))
    drawn = data[null].values if null else np.empty(0)
    ends = np.quantile(drawn, (0.025, 0.975)) if len(drawn) and np.isfinite(drawn).all() else (_NAN, _NAN)
    return {
        "finding": finding,
        "estimate": value,
        "estimate_low": low,
        "estimate_high": high,
        "null_low": float(ends[0]),
        "null_high": float(ends[1]),
        "p": permutation_p(value, drawn),
        "units": units,
        "n": data.sizes["prompt"],
    }


def implicit_findings(data: xr.Dataset) -> pd.DataFrame:
    """The findings of an implicit reward, one a row, with intervals and what permuted rewards give."""
    recipe = float(data.attrs.get("beta", _NAN))
    beside = f" (the recipe's beta: {recipe:g})" if np.isfinite(recipe) else ""
    rows = [
        _finding(
            data,
            "log-ratio per unit of reward, within prompts (1 / effective beta)",
            "slope",
            "nats per reward",
            "null_slope",
        ),
        *(
            _finding(data.sel(source=each), f"the same, {each}'s samples alone", "slope_by_source", "nats per reward")
            for each in MODELS
        ),
        _finding(data, f"effective beta{beside}", "effective_beta", "reward per nat"),
        _finding(data, "Spearman of reward and log-ratio within prompts", "spearman", "", "null_spearman", "_mean"),
        _finding(data, "log-ratio per token of length", "length_slope", "nats per token"),
        _finding(data, "log-ratio per unit of reward, length left out", "slope_without_length", "nats per reward"),
    ]
    share = float(data["explained"])
    blank = {"estimate_low": _NAN, "estimate_high": _NAN, "null_low": _NAN, "null_high": _NAN, "p": _NAN}
    finding = "variance of the log-ratio within prompts that reward and length explain"
    rows.append({**rows[0], **blank, "finding": finding, "estimate": share, "units": "share"})
    return pd.DataFrame(rows)


Kind = Literal["drift toward", "drift away", "unclaimed"]


def least_explained(data: xr.Dataset, count: int) -> pd.DataFrame:
    """The samples that the reward explains least, by kind (see `ImplicitReward.texts`)."""
    flat = data[["reward", "log_ratio", "residual", "completion"]].stack(sample=("prompt", "source", "draw"))
    prompt = flat["prompt"].values
    reward, ratio = (centred(flat[name].values.astype(float), prompt) for name in ("reward", "log_ratio"))
    residual = flat["residual"].values.astype(float)
    kinds: dict[Kind, np.ndarray] = {
        "drift toward": residual > 0,
        "drift away": (residual < 0) & (reward <= 0),
        "unclaimed": (residual < 0) & (reward > 0),
    }
    rows = []
    for kind, fits in kinds.items():
        places = np.flatnonzero(fits)
        for place in places[np.argsort(-np.abs(residual[places]), kind="stable")][:count]:
            rows.append(
                {
                    "kind": kind,
                    "prompt": str(data["text"].values[prompt[place]]),
                    "completion": str(flat["completion"].values[place]),
                    "source": str(flat["source"].values[place]),
                    "reward": reward[place],
                    "log_ratio": ratio[place],
                    "residual": residual[place],
                }
            )
    columns = ["kind", "prompt", "completion", "source", "reward", "log_ratio", "residual"]
    return pd.DataFrame(rows, columns=columns)
