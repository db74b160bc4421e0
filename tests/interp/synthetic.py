"""A comparison made of random numbers with the shape of a real one, for the tests of figures and report."""

from __future__ import annotations

import json
from collections.abc import Callable
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
TOKEN_CLASSES = ["bos", "punctuation", "content", "antecedent"]
CHANGED = 5
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
    "logprob_diff": ("prompt", "model"),
    "mass_outside": ("prompt", "model"),
    "mover_change": ("prompt", "direction", "rank"),
    "position_entropy": ("prompt", "model", "pos"),
    "response_entropy": ("prompt", "source", "draw", "model", "step"),
    "resid_norm": ("prompt", "model", "site"),
    "resid_cosine": ("prompt", "site"),
    "resid_cosine_last": ("prompt", "site"),
    "lens_base_head_logit_diff": ("prompt", "site"),
    "lens_base_head_kl": ("prompt", "site"),
    "lens_pos_kl": ("prompt", "site", "pos"),
    "pattern_entropy": ("prompt", "model", "layer", "head"),
    "attention_to": ("prompt", "model", "layer", "head", "token_class"),
    "neuron_attribution": ("prompt", "model", "neuron"),
    "ov_singular_value": ("changed_head", "model", "ov_direction"),
    "param_change": ("param",),
    "effective_rank": ("param",),
    "singular_change": ("param", "weight_direction"),
    "singular_overlap": ("param", "weight_direction"),
}
UNITS = {
    "kl": "nats", "js": "nats", "entropy": "nats", "logprob": "nats", "prob": "probability", "mover": "probability",
    "mass": "probability", "resid_norm": "activation", "change": "relative", "reward": "probability",
}  # fmt: skip


@dataclass(frozen=True)
class Fake:
    """Stands in for a Comparison."""

    dataset: xr.Dataset
    controls: tuple[xr.Dataset, ...] = ()
    replicates: tuple[xr.Dataset, ...] = ()
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
    replicates: int = 0,
    answers: bool = True,
    seed: int = 0,
) -> Fake:
    """A comparison with every variable; `answers=False` leaves out what needs a given answer pair."""
    sizes = [1.0, *[0.25] * controls, *[0.9] * replicates]
    sets = [_dataset(prompts, layers, heads, positions, answers, seed + i, size) for i, size in enumerate(sizes)]
    split = 1 + controls
    return Fake(sets[0], tuple(sets[1:split]), tuple(sets[split:]), _summary(sets[:split], sets[split:], answers))


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
        "direction": ["up", "down"], "neuron": range(12), "token_class": TOKEN_CLASSES,
        "ov_direction": range(3), "weight_direction": range(8), "param": _params(layers),
    }  # fmt: skip
    _changed_heads(coords, layers, heads)
    sizes = {k: len(v) for k, v in coords.items()} | {"changed_head": CHANGED}
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
    _couple_readings(data, rng, size)
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
    for name in ("kl", "js", "position_entropy", "lens_pos_kl"):
        out[name] = out[name].where(out["pos"] < xr.DataArray(lengths, dims="prompt"))
    out["tokens"] = out["tokens"].where(out["pos"] < xr.DataArray(lengths, dims="prompt"), "")
    out.attrs = _attrs()
    given = ["logit_diff", "logprob_diff", "answer_prob", "answer_logprob", "lens_logit_diff"]
    return out if answers else out.drop_vars([*given, "lens_base_head_logit_diff"])


def _params(layers: int) -> list[str]:
    short = ("self_attn.q_proj.weight", "mlp.up_proj.weight", "input_layernorm.weight")
    return ["model.embed_tokens.weight", *(f"model.layers.{i}.{name}" for i in range(layers) for name in short)]


def _changed_heads(coords: dict[str, Any], layers: int, heads: int) -> None:
    picks = np.linspace(0, layers * heads - 1, CHANGED).astype(int)
    coords["changed_layer"] = ("changed_head", picks // heads)
    coords["changed_head_index"] = ("changed_head", picks % heads)
    coords["neuron_layer"] = ("neuron", np.arange(12) % layers)
    coords["neuron_index"] = ("neuron", np.arange(12) * 97)


def _couple_readings(data: dict[str, Any], rng: np.random.Generator, size: float) -> None:
    """Give the other readings the range and the coupling that they have in a real comparison."""

    def replace(name: str, values: np.ndarray) -> None:
        data[name] = (data[name][0], values)

    diff = data["logit_diff"][1]
    replace("logprob_diff", diff * 0.7)
    replace("mass_outside", np.abs(data["mass_outside"][1]) * [0.0, 0.3])
    change = -np.sort(-np.abs(data["mover_change"][1]) * 0.4, axis=-1)
    change[:, 1] *= -1
    change[0, :, -2:] = 0.0  # fewer tokens moved than there is room for
    replace("mover_change", change)
    for name in ("position_entropy", "response_entropy", "pattern_entropy"):
        replace(name, 1.5 + np.abs(data[name][1]))
    sites = data["resid_norm"][1].shape[-1]
    replace("resid_norm", np.exp(np.linspace(0, 2, sites)) * (3 + 0.2 * np.abs(data["resid_norm"][1])))
    for name, step in (("resid_cosine", 0.1), ("resid_cosine_last", 0.2)):
        replace(name, 1 - size * step * np.linspace(0, 1, sites) * np.abs(rng.normal(1, 0.2, (len(diff), sites))))
    ramp = np.linspace(0, 1, sites) ** 2
    replace("lens_base_head_logit_diff", data["lens_logit_diff"][1][:, 1] * 0.8)
    replace("lens_base_head_kl", np.abs(data["lens_base_head_kl"][1]) * ramp)
    replace("lens_pos_kl", np.abs(data["lens_pos_kl"][1]) * ramp[:, None])
    replace("attention_to", rng.dirichlet([4, 1, 3, 0.5], data["attention_to"][1].shape[:-1]))
    base = rng.normal(0, 0.1, (len(diff), 12))
    replace("neuron_attribution", np.stack([base, base + size * np.linspace(0.5, -0.1, 12)], axis=1))
    replace("ov_singular_value", np.abs(data["ov_singular_value"][1]) + [3, 2, 1])
    vectors = np.array(["norm" in name for name in _params((len(data["param_change"][1]) - 1) // 3)])
    replace("param_change", np.abs(data["param_change"][1]))
    replace("effective_rank", np.where(vectors, np.nan, 1 + 20 * np.abs(data["effective_rank"][1])))
    for name in ("singular_change", "singular_overlap"):
        values = -np.sort(-rng.uniform(0, 1, data[name][1].shape), axis=-1)
        replace(name, np.where(vectors[:, None], np.nan, values * (0.1 if name == "singular_change" else 1)))


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
    more = np.array([*words, " a", " b"], dtype=object)
    data["mover_token"] = (
        ("prompt", "direction", "rank"),
        np.stack([rng.permutation(more) for _ in range(prompts)]).reshape(shape),
    )
    data["mover_token"][1][0, :, -2:] = ""
    sites = sizes["site"]
    data["lens_pos_top_token"] = (
        ("prompt", "model", "site", "pos"),
        rng.choice(words, (prompts, 2, sites, sizes["pos"])),
    )
    for side in ("reads", "writes"):
        dims = ("changed_head", "model", "ov_direction", "rank")
        data[f"ov_{side}"] = (dims, rng.choice(words, (CHANGED, 2, 3, 10)))
    said = [
        [[f" {s} text {d} of {p}, <b>loud</b> & $x$\nnew line" for d in range(2)] for s in MODELS]
        for p in range(prompts)
    ]
    data["completion"] = (("prompt", "source", "draw"), np.array(said, dtype=object))


def _patterns(data: dict[str, Any], coords: dict[str, Any], rng: np.random.Generator, positions: int) -> None:
    examples = min(3, len(coords["prompt"]))
    weights = np.tril(rng.gamma(0.4, size=(examples, 2, CHANGED, positions, positions)) + 1e-6)
    pattern = weights / weights.sum(-1, keepdims=True)
    for e in range(examples):
        length = max(2, positions - e % 4)
        pattern[e, ..., length:, :] = np.nan
        pattern[e, ..., length:] = np.nan
    coords |= {"example": range(examples), "query": range(positions), "key": range(positions)}
    data["pattern"] = (("example", "model", "changed_head", "query", "key"), pattern)


def _attrs() -> dict[str, Any]:
    model = {"family": "gpt2", "architecture": "GPT2LMHeadModel", "parameters": 2_100_000, "dtype": "float32"}
    return {
        "format": 1, "interp_version": "0.1.0", "seed": 0,
        "base": json.dumps({"source": "runs/reviews/base", "sha256": "a1" * 32, **model}),
        "tuned": json.dumps({"source": "runs/reviews/tuned", "sha256": "b2" * 32, **model}),
        "versions": json.dumps({"torch": "2.13.0", "transformers": "5.23.0"}),
        "settings": json.dumps({"measures": ["lens", "completions"], "batch_size": 16, "note": "</script><b>"}),
        "controls": json.dumps([{"source": "runs/reviews/control", "sha256": "c3" * 32, **model}]),
    }  # fmt: skip


def _summary(sets: list[xr.Dataset], replicates: list[xr.Dataset], answers: bool) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    runs = [*sets, *replicates]

    def add(reading: str, finding: str, of: Callable[[xr.Dataset], np.ndarray], units: str) -> None:
        rows.append(_row(reading, finding, [of(s) for s in runs], units, len(sets) - 1))

    if answers:
        pair = "' bad' - ' good'"
        add(
            "logit difference",
            f"{pair}: tuned minus base",
            lambda s: s["logit_diff"].diff("model").values[:, 0],
            "logits",
        )
        add("logit difference", f"{pair}: base", lambda s: s["logit_diff"].sel(model="base").values, "logits")
    add("divergence", "KL(tuned || base), mean over prompt tokens", lambda s: s["kl"].mean("pos").values, "nats")
    add(
        "attribution by head", "L0H0: tuned minus base",
        lambda s: s["head_attribution"].diff("model")[:, 0, 0, 0].values, "logits",
    )  # fmt: skip
    reward = "reward: P(negative): tuned's samples minus base's"
    add("reward", reward, lambda s: s["completion_reward"].mean("draw").diff("source").values.ravel(), "probability")
    long = "encoder.block.11.layer.0.SelfAttention.relative_attention_bias_of_every_single_head.weight"
    add("weights", f"{long}: effective rank of its change", lambda s: s["effective_rank"].values[:1], "1")
    table = pd.DataFrame(rows)
    table.loc[table.reading == "attribution by head", "completeness"] = 1e-6
    if len(sets) > 19:
        nulls = np.array([[float(s["logit_diff"].diff("model").mean()) for s in sets[1:]]])
        table["rank_p"] = (1 + (np.abs(nulls) >= abs(table.estimate.iloc[0])).sum()) / len(sets)
    if sets[0].sizes["prompt"] < 8:
        table[["estimate_low", "estimate_high"]] = np.nan
    return table


def _row(reading: str, finding: str, values: list[np.ndarray], units: str, controls: int) -> dict[str, Any]:
    mean, error = values[0].mean(), values[0].std() / np.sqrt(len(values[0]))
    means = [v.mean() for v in values[1:]]
    nulls, again = means[:controls] or [np.nan], means[controls:] or [np.nan]
    return {
        "reading": reading, "finding": finding, "estimate": mean,
        "estimate_low": mean - 2 * error, "estimate_high": mean + 2 * error,
        "units": units, "n": len(values[0]), "control_low": min(nulls), "control_high": max(nulls),
        "replicate_low": min(again), "replicate_high": max(again), "rank_p": np.nan, "completeness": np.nan,
    }  # fmt: skip
