"""What the models do: logits of the answers, next tokens, divergence, sampled responses, rewards."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr

from interp.summary.table import ByPrompt, Cells, Row, Table, difference, of_model

_TOKENS = 50  # tokens among which those that moved most are sought


def _one_or(names: xr.DataArray, otherwise: str) -> str:
    """The name if all prompts share it."""
    found = {str(name) for name in names.values}
    return repr(found.pop()) if len(found) == 1 else otherwise


def _pair_name(data: xr.Dataset) -> str:
    return f"{_one_or(data['answer_token'], 'answer')} - {_one_or(data['other_token'], 'alternative')}"


def _change_and_levels(table: Table, reading: str, what: str, name: str, units: str) -> Iterator[Row]:
    yield table.row(reading, f"{what}: tuned minus base", difference(name), units)
    yield table.row(reading, f"{what}: base", of_model(name, "base"), units, of="base")
    yield table.row(reading, f"{what}: tuned", of_model(name, "tuned"), units, of="tuned")


def logit_diff(table: Table) -> Iterator[Row]:
    """The answers' logit difference and their probabilities."""
    reading = "logit difference"
    yield from _change_and_levels(table, reading, _pair_name(table.data), "logit_diff", "logits")
    for answer, token in (("answer", "answer_token"), ("alternative", "other_token")):
        name = _one_or(table.data[token], answer)
        change = difference("answer_prob", answer=answer)
        yield table.row(reading, f"P({name}): tuned minus base", change, "probability")


def logprob_diff(table: Table) -> Iterator[Row]:
    """The difference of the whole answers' log-probabilities, where answers have several tokens."""
    answer, alternative = _one_or(table.data["answer_text"], "answer"), _one_or(table.data["alternative_text"], "other")
    what = f"log P({answer}) - log P({alternative})"
    yield from _change_and_levels(table, "answers", what, "logprob_diff", "nats")


def next_token(table: Table) -> Iterator[Row]:
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


def mass_outside(table: Table) -> Iterator[Row]:
    """Probability of the tokens that only one of the models has."""
    for model in ("base", "tuned"):
        if float(table.data["mass_outside"].sel(model=model).max()) > 0 or model == "tuned":
            name, values = f"{model}'s probability outside the shared vocabulary", of_model("mass_outside", model)
            of = "base" if model == "base" else "tuned"
            yield table.row("next token", name, values, "probability", of=of)  # type: ignore[arg-type]


def divergence(table: Table) -> Iterator[Row]:
    """KL and JS of the next-token distributions over the prompt."""

    def last(data: xr.Dataset) -> np.ndarray:
        kl = data["kl"].values
        return np.asarray(kl[np.arange(len(kl)), np.isfinite(kl).sum(1) - 1])

    def mean(name: str) -> ByPrompt:
        return lambda data: np.nanmean(data[name].values, axis=1)

    yield table.row("divergence", "KL(tuned || base) after the prompt", last, "nats")
    yield table.row("divergence", "KL(tuned || base), mean over prompt tokens", mean("kl"), "nats")
    yield table.row("divergence", "JS, mean over prompt tokens", mean("js"), "nats")


def responses(table: Table) -> Iterator[Row]:
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


def reward(table: Table) -> Iterator[Row]:
    """Rewards of the sampled responses."""
    rewards = table.data["completion_reward"]
    units, name = str(rewards.attrs.get("units", "")), str(rewards.attrs.get("long_name", "reward"))

    def of(source: str) -> ByPrompt:
        return lambda data: data["completion_reward"].sel(source=source).mean("draw").values

    def change(data: xr.Dataset) -> np.ndarray:
        return of("tuned")(data) - of("base")(data)

    yield table.row("reward", f"{name}: tuned's samples minus base's", change, units)
    yield table.row("reward", f"{name}: base's samples", of("base"), units, of="base")
    yield table.row("reward", f"{name}: tuned's samples", of("tuned"), units, of="tuned")
