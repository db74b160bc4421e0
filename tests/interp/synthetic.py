"""A comparison made of random numbers with the shape of a real one, for the tests of figures and report."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

NASTY = [
    " bad",
    "$x_1$",
    "\n\n",
    "<script>alert(1)</script>",
    "你好",
    "\t",
    "\\$a",
    " naïve",
    "🙂",
    "</script>",
    "\u202eevil",
    "_",
    '"',
]
MODELS = ["base", "tuned"]
ARRAYS = {
    "answer_prob": ("prompt", "model", "answer"),
    "answer_logprob": ("prompt", "model", "answer"),
    "logit_diff": ("prompt", "model"),
    "kl": ("prompt", "pos"),
    "js": ("prompt", "pos"),
    "response_kl": ("prompt", "source", "draw", "step"),
    "response_js": ("prompt", "source", "draw", "step"),
    "lens_logit_diff": ("prompt", "model", "site"),
    "lens_kl": ("prompt", "site"),
    "attribution_write": ("prompt", "component"),
    "attribution_readout": ("prompt", "component"),
    "completeness_error": ("prompt", "model"),
    "head_attribution_write": ("prompt", "layer", "head"),
    "head_attribution_readout": ("prompt", "layer", "head"),
    "pattern_js": ("prompt", "layer", "head"),
    "pattern_js_last": ("prompt", "layer", "head"),
    "qk_change": ("layer", "head"),
    "ov_change": ("layer", "head"),
    "mlp_change": ("layer",),
    "completion_reward": ("prompt", "source", "draw"),
}
UNITS = {"kl": "nats", "js": "nats", "prob": "probability", "change": "relative", "reward": "probability"}


@dataclass(frozen=True)
class Fake:
    """Stands in for a Comparison."""

    dataset: xr.Dataset
    controls: tuple[xr.Dataset, ...] = ()
    table: pd.DataFrame = field(default_factory=pd.DataFrame)

    def summary(self) -> pd.DataFrame:
        return self.table


def make(
    *,
    prompts: int = 12,
    layers: int = 4,
    heads: int = 4,
    positions: int = 9,
    controls: int = 2,
    answers: bool = True,
    seed: int = 0,
) -> Fake:
    """A comparison with every variable; `answers=False` leaves out what needs a given answer pair."""
    sets = [
        _dataset(prompts, layers, heads, positions, answers, seed + i, 1.0 if i == 0 else 0.25)
        for i in range(1 + controls)
    ]
    return Fake(sets[0], tuple(sets[1:]), _summary(sets, answers))


def _dataset(
    prompts: int, layers: int, heads: int, positions: int, answers: bool, seed: int, size: float
) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    components = ["embed", "pos_embed", *(f"L{i}.{p}" for i in range(layers) for p in ("attn", "mlp")), "bias"]
    sites = [*(f"L{i}.resid_pre" for i in range(layers)), f"L{layers - 1}.resid_post"]
    coords: dict[str, Any] = {
        "prompt": range(prompts), "model": MODELS, "layer": range(layers), "head": range(heads),
        "component": components,
        "site": sites, "answer": ["answer", "alternative"], "rank": range(10), "pos": range(positions),
        "source": MODELS, "draw": range(2), "step": range(8),
    }  # fmt: skip
    sizes = {k: len(v) for k, v in coords.items()}
    scale = {"attribution": 0.6, "head_attribution": 0.2, "pattern_js": 0.1, "pattern_js_last": 0.15}
    data: dict[str, Any] = {}
    for name, dims in ARRAYS.items():
        values = rng.normal(
            0, size * scale.get(name.removesuffix("_write").removesuffix("_readout"), 0.5), [sizes[d] for d in dims]
        )
        data[name] = (dims, values)
        if any(key in name for key in ("kl", "js", "change", "prob", "reward")):
            data[name] = (dims, np.abs(values) * 0.4)
    _couple(data, rng, size)
    _strings(data, rng, sizes, answers)
    _patterns(data, coords, rng, positions)
    out = xr.Dataset(data, coords=coords).set_coords("text")
    out = out.assign_coords(group=("prompt", np.arange(prompts)))
    for name in out.data_vars:
        out[name].attrs = {
            "long_name": str(name).replace("_", " "),
            "units": next((u for k, u in UNITS.items() if k in str(name)), "logits"),
        }
    out["completion_reward"].attrs["long_name"] = "reward: P(negative)"
    lengths = np.maximum(2, positions - np.arange(prompts) % 4)
    for name in ("kl", "js"):
        out[name] = out[name].where(out["pos"] < xr.DataArray(lengths, dims="prompt"))
    out["tokens"] = out["tokens"].where(out["pos"] < xr.DataArray(lengths, dims="prompt"), "")
    out.attrs = _attrs()
    return out if answers else out.drop_vars(["logit_diff", "answer_prob", "answer_logprob", "lens_logit_diff"])


def _couple(data: dict[str, Any], rng: np.random.Generator, size: float) -> None:
    """Make the parts add up as they do in a real comparison."""
    for name in ("attribution", "head_attribution"):
        dims, write = data[f"{name}_write"]
        delta = write + data[f"{name}_readout"][1]
        base = rng.normal(0, 0.8, delta.shape)
        data[name] = ((dims[0], "model", *dims[1:]), np.stack([base, base + delta], axis=1))
    diff = data["logit_diff"][1]
    diff[:, 1] = diff[:, 0] + size * (1.9 + 0.3 * rng.normal(size=len(diff)))
    sites = data["lens_logit_diff"][1].shape[-1]
    ramp = np.linspace(0, 1, sites) ** 2
    data["lens_logit_diff"] = (data["lens_logit_diff"][0], diff[:, :, None] * ramp + 0.1 * data["lens_logit_diff"][1])
    data["lens_kl"] = (data["lens_kl"][0], data["lens_kl"][1] * ramp)


def _strings(data: dict[str, Any], rng: np.random.Generator, sizes: dict[str, int], answers: bool) -> None:
    prompts = sizes["prompt"]
    texts = [
        "This movie was really",
        "<script>alert(1)</script>",
        "Cost: $5_000 and $6",
        "你好，世界\nsecond line",
        "a" * 130,
    ]
    words = np.array([*NASTY, " the", " of", " film", " was", "ly"], dtype=object)
    data["text"] = (
        "prompt",
        np.array([texts[i % 5] + ("" if i < 5 else f" {i}") for i in range(prompts)], dtype=object),
    )
    data["answer_token"] = (
        "prompt",
        np.array([" bad" if answers else words[i % 13] for i in range(prompts)], dtype=object),
    )
    data["other_token"] = ("prompt", np.array([" good"] * prompts, dtype=object))
    data["tokens"] = (("prompt", "pos"), rng.choice(words, (prompts, sizes["pos"])))
    shape = (prompts, 2, 10)
    data["top_token"] = (
        ("prompt", "model", "rank"),
        np.stack([rng.permutation(words)[:10] for _ in range(prompts * 2)]).reshape(shape),
    )
    data["top_prob"] = (
        ("prompt", "model", "rank"),
        -np.sort(-rng.dirichlet(np.full(12, 0.5), (prompts, 2)), axis=-1)[..., :10],
    )
    said = [
        [[f" {s} text {d} of {p}, <b>loud</b> & $x$\nnew line" for d in range(2)] for s in MODELS]
        for p in range(prompts)
    ]
    data["completion"] = (("prompt", "source", "draw"), np.array(said, dtype=object))


def _patterns(data: dict[str, Any], coords: dict[str, Any], rng: np.random.Generator, positions: int) -> None:
    examples = min(3, len(coords["prompt"]))
    weights = np.tril(rng.gamma(0.4, size=(examples, 2, 5, positions, positions)) + 1e-6)
    pattern = weights / weights.sum(-1, keepdims=True)
    for e in range(examples):
        length = max(2, positions - e % 4)
        pattern[e, ..., length:, :] = np.nan
        pattern[e, ..., length:] = np.nan
    coords |= {"example": range(examples), "query": range(positions), "key": range(positions)}
    layers, heads = len(coords["layer"]), len(coords["head"])
    picks = np.linspace(0, layers * heads - 1, 5).astype(int)
    coords["changed_layer"] = ("changed_head", picks // heads)
    coords["changed_head_index"] = ("changed_head", picks % heads)
    data["pattern"] = (("example", "model", "changed_head", "query", "key"), pattern)


def _attrs() -> dict[str, Any]:
    model = {"family": "gpt2", "architecture": "GPT2LMHeadModel", "parameters": 2_100_000, "dtype": "float32"}
    return {
        "format": 1, "interp_version": "0.1.0", "seed": 0,
        "base": json.dumps({"source": "runs/reviews/base", "sha256": "a1" * 32, **model}),
        "tuned": json.dumps({"source": "runs/reviews/tuned", "sha256": "b2" * 32, **model}),
        "versions": json.dumps({"torch": "2.13.0", "transformers": "5.23.0"}),
        "settings": json.dumps({"measures": ["lens", "attribution"], "batch_size": 16, "note": "</script><b>"}),
        "controls": json.dumps([{"source": "runs/reviews/control", "sha256": "c3" * 32, **model}]),
    }  # fmt: skip


def _summary(sets: list[xr.Dataset], answers: bool) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    data, controls = sets[0], sets[1:]
    if answers:
        diffs = [s["logit_diff"] for s in sets]
        changes = [(d.sel(model="tuned") - d.sel(model="base")).values for d in diffs]
        rows.append(_row("logit difference", "' bad' - ' good': tuned minus base", changes, "logits"))
        rows.append(
            _row("logit difference", "' bad' - ' good': base", [d.sel(model="base").values for d in diffs], "logits")
        )
    kls = [s["kl"].mean("pos").values for s in sets]
    rows.append(_row("divergence", "KL(tuned || base), mean over prompt tokens", kls, "nats"))
    heads = [s["head_attribution"].diff("model")[:, 0, 0, 0].values for s in sets]
    rows.append(_row("attribution by head", "L0H0: tuned minus base", heads, "logits"))
    rewards = [s["completion_reward"].mean("draw").diff("source").values.ravel() for s in sets]
    rows.append(_row("reward", "reward: P(negative): tuned's samples minus base's", rewards, "probability"))
    table = pd.DataFrame(rows)
    table.loc[table.reading == "attribution by head", "completeness"] = 1e-6
    if len(controls) == 0:
        table[["control_low", "control_high"]] = np.nan
    if data.sizes["prompt"] < 8:
        table[["lower", "upper"]] = np.nan
    return table


def _row(reading: str, finding: str, values: list[np.ndarray], units: str) -> dict[str, Any]:
    mean, error = values[0].mean(), values[0].std() / np.sqrt(len(values[0]))
    others = [v.mean() for v in values[1:]] or [np.nan]
    return {
        "reading": reading, "finding": finding, "estimate": mean, "lower": mean - 2 * error, "upper": mean + 2 * error,
        "units": units, "n": len(values[0]), "control_low": min(others), "control_high": max(others),
        "completeness": np.nan,
    }  # fmt: skip
