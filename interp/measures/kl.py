"""How far apart the two models' predictions lie, token by token of prompt and response."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from interp.divergences import KINDS, divergences
from interp.measures.arrays import (
    Variable,
    dataset,
    stack_models,
    variable,
)
from interp.measures.findings import (
    ByPrompt,
    Row,
    Table,
    difference,
)
from interp.measures.measure import Measure, Section
from interp.models import Trace


def kl(base: Trace, tuned: Trace) -> xr.Dataset:
    """KL(tuned || base), JS and entropy of the next-token distributions, prompt and response apart.

    `kl[prompt, pos]` is what the models predict after reading the prompt's tokens 0 to pos. `response_kl[prompt,
    source, draw, step]` is what they predict for response token `step` of the given continuation, so step 0 is the last
    prompt position's prediction.
    """
    batch = base.batch
    real = batch.attention_mask.cpu()
    values = torch.full((len(KINDS), *real.shape), torch.nan, dtype=torch.float64)
    values[:, real] = divergences(tuned.logits, base.logits, real, kept=base.cache)
    values = batch.to("cpu").aligned(values.permute(1, 2, 0)).permute(2, 0, 1)
    lengths = batch.prompt_lengths.cpu()[:, None]
    positions = torch.arange(values.shape[2])
    prompt_width = int(lengths.max())
    prompt = values[:, :, :prompt_width].masked_fill(positions[:prompt_width] >= lengths, torch.nan)
    variables = {
        "kl": variable("prompt pos", prompt[0], "KL(tuned || base) of the next token", "nats"),
        "js": variable("prompt pos", prompt[1], "Jensen-Shannon divergence of the next token", "nats"),
        "position_entropy": variable(
            "prompt model pos", stack_models(prompt[2], prompt[3]), "entropy of the next token by position", "nats"
        ),
    }
    steps = int((batch.lengths - batch.prompt_lengths).max())
    if steps:
        response = response_steps(values, batch.prompt_lengths.cpu(), batch.lengths.cpu(), steps)
        variables |= response_variables(response[:, :, None, None])
    return dataset(variables, pos=range(prompt_width), source=["given"], draw=[0], step=range(steps))


def response_steps(
    values: Float[Tensor, "kind row pos"], prompt_lengths: Int[Tensor, " row"], lengths: Int[Tensor, " row"], steps: int
) -> Float[Tensor, "kind row step"]:
    """Values at the positions that predict response tokens 0, 1, ...; NaN behind the response's end."""
    columns = prompt_lengths[:, None] - 1 + torch.arange(steps)
    inside = torch.arange(steps) < (lengths - prompt_lengths)[:, None]
    picked = values.gather(2, columns.clamp_max(values.shape[2] - 1).expand(len(values), -1, -1))
    return picked.masked_fill(~inside, torch.nan)


def response_variables(values: Float[Tensor, "kind prompt source draw step"]) -> dict[str, Variable]:
    """The variables `response_kl`, `response_js` and `response_entropy` out of what `divergences` gives."""
    dims = "prompt source draw step"
    return {
        "response_kl": variable(dims, values[0], "KL(tuned || base) by response token", "nats"),
        "response_js": variable(dims, values[1], "Jensen-Shannon divergence by response token", "nats"),
        "response_entropy": variable(
            "prompt source draw model step",
            torch.stack([values[2], values[3]], dim=3),
            "entropy of the next token by response token",
            "nats",
        ),
    }


def findings(table: Table) -> Iterator[Row]:
    """KL and JS over the prompt, and KL and entropy per response token."""
    if "kl" in table.data:
        yield from _over_prompt(table)
    if "response_kl" in table.data:
        yield from _over_responses(table)


def _over_prompt(table: Table) -> Iterator[Row]:
    """KL and JS of the next-token distributions over the prompt."""

    def last(data: xr.Dataset) -> np.ndarray:
        kl = data["kl"].values
        return np.asarray(kl[np.arange(len(kl)), np.isfinite(kl).sum(1) - 1])

    def mean(name: str) -> ByPrompt:
        return lambda data: np.nanmean(data[name].values, axis=1)

    yield table.row("divergence", "KL(tuned || base) after the prompt", last, "nats")
    yield table.row("divergence", "KL(tuned || base), mean over prompt tokens", mean("kl"), "nats")
    yield table.row("divergence", "JS, mean over prompt tokens", mean("js"), "nats")


def _over_responses(table: Table) -> Iterator[Row]:
    """KL per response token, by whose responses they are, and the entropy along tuned's own."""

    def of(source: str) -> ByPrompt:
        return lambda data: _mean_over_steps(data["response_kl"].sel(source=source).values)

    names = {"given": "given responses", "tuned": "tuned's own samples", "base": "base's samples"}
    sources = [source for source in names if source in table.data["source"].values]
    for source in sources:
        yield table.row("divergence", f"KL(tuned || base) per response token, {names[source]}", of(source), "nats")

    def entropy(data: xr.Dataset) -> np.ndarray:
        return _mean_over_steps(difference("response_entropy", source=sources[0])(data))

    if "response_entropy" in table.data and sources:
        what = f"entropy per response token, {names[sources[0]]}: tuned minus base"
        yield table.row("divergence", what, entropy, "nats")


def _mean_over_steps(values: np.ndarray) -> np.ndarray:
    """Mean over draws and steps, NaN for a prompt without any."""
    flat = values.reshape(len(values), -1)
    real = np.isfinite(flat)
    return np.where(real.any(1), np.nansum(flat, axis=1) / np.maximum(real.sum(1), 1), np.nan)


KL = Measure(
    name="kl",
    title="Divergence of the predictions",
    meaning="How far apart the two models' next-token distributions are, at every token of prompt and response.",
    formula=(
        "KL(tuned || base) = sum over tokens of p_tuned log(p_tuned / p_base), exact over the vocabulary; "
        "Jensen-Shannon divergence likewise"
    ),
    source="Kullback and Leibler 1951; Lin 1991",
    units="nats",
    misleads=(
        "It weighs what tuned finds likely: a token that tuned dropped counts little. Few prompts reach the last "
        "positions."
    ),
    group="Next token",
    when="by default",
    arrays=("kl", "js", "position_entropy", "response_kl", "response_js", "response_entropy"),
    per_batch=kl,
    findings=findings,
    sections=(
        Section(
            "kl",
            "Where the predictions differ",
            "Divergence",
            alt="Line charts of KL and JS divergence by prompt position and by token of the response.",
            caption=(
                "KL(tuned ‖ base) and Jensen-Shannon divergence of the next-token distributions, exact over the "
                "vocabulary: after every prompt token, and along the response on the text of the model named. Few "
                "prompts reach the last positions, so the right end of a curve is the least sure."
            ),
            readings=(("divergence", "per response token, tuned"), ("divergence", "KL")),
        ),
        Section(
            "entropy",
            "How sure the predictions are",
            "Entropy",
            alt="Line charts of the entropy of both models' predictions by prompt position and along the response.",
            caption=(
                "Entropy of the next-token distribution in nats: 0 is certainty. Where tuned's line is lower, it "
                "concentrates on fewer tokens than base does on the same text."
            ),
            readings=(("divergence", "entropy"), ("next token", "entropy")),
        ),
    ),
)
