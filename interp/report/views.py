"""The parts of a comparison that the page shows as text or draws itself, as plain lists."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from markupsafe import Markup

from interp.plot.style import has, number, span
from interp.plot.text import clean, shorten, visible

RANGES = {
    "95 % interval": ("estimate_low", "estimate_high"),
    "control runs": ("control_low", "control_high"),
    "replicates": ("replicate_low", "replicate_high"),
    "permuted": ("permuted_low", "permuted_high"),
}
"""Columns that show a range, and the columns of the summary that hold its ends."""

SINGLE = {"p": "rank_p", "permutation p": "permutation_p", "completeness": "completeness"}
"""Columns of single numbers beside the estimate, and the columns of the summary that hold them."""

PROMPTS_SHOWN = 4
RANKS_SHOWN = 6
COMPLETIONS_SHOWN = 6
DRAWS_SHOWN = 3
EXAMPLES_SHOWN = 8
OV_DIRECTIONS = 2
OV_TOKENS = 7
NUMBERS = ("estimate", *SINGLE, "n")
_STEPS = 1000  # attention is shown to three decimals, so no more than that is embedded
_FIRST, _LAST = 8, 88  # tokens of a long prompt whose attention is shown
_CLIP = 240  # characters of a prompt that are shown at once
_WHOLE = 20_000  # characters of a prompt that the page holds


def headline(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Columns and cells of the summary; a column that no row fills is left out.

    The first cell of a row that goes on with the reading of the row above is empty.
    """
    known = {name for name in table.columns if table[name].notna().any()}
    columns = ["reading", "finding", "estimate"]
    columns += [name for name, ends in RANGES.items() if set(ends) & known]
    columns += [
        name for name in ("p", "permutation p", "units", "n", "completeness") if SINGLE.get(name, name) in known
    ]
    rows = [[_cell(name, record) for name in columns] for record in table.to_dict("records")]
    for above, row in reversed(list(pairwise(rows))):
        if row[0] == above[0]:
            row[0] = ""
    return columns, rows


def _cell(name: str, record: dict[Any, Any]) -> str:
    if name in RANGES:
        return span(*(float(record.get(end, np.nan)) for end in RANGES[name]))
    value = record.get(SINGLE.get(name, name))
    if name in NUMBERS and name != "n":
        return number(float(value if value is not None else np.nan))
    if name == "n":
        return str(value or "–")  # a finding about weights counts no prompts
    if name == "units":
        return "" if value == "1" else str(value)
    text = str(value).replace("||", "‖")
    return text if name == "finding" else text.replace("_", " ")


def lead(table: pd.DataFrame, readings: Sequence[tuple[str, str]]) -> str:
    """The first finding of a reading as a sentence, with its interval and what other runs give.

    Args:
        table: the summary.
        readings: name of a reading, and a pattern in its finding; the first pair that fits a row is taken.

    Returns:
        The sentence, empty where no row fits.
    """
    records = table.to_dict("records")
    for reading, pattern in readings:
        for record in records:
            if _cell("reading", record) == reading and re.search(pattern, str(record["finding"])):
                return _sentence(record)
    return ""


def _sentence(record: dict[Any, Any]) -> str:
    unit = _cell("units", record)
    beside = [
        f"{name.replace(' ', chr(160), 1) if name.startswith('95') else name} {cell}"
        for name in RANGES
        if (cell := _cell(name, record)) != number(np.nan)
    ]
    text = f"{_cell('finding', record)}: {_cell('estimate', record)}{f' {unit}' if unit else ''}"
    return f"{text} ({'; '.join(beside)})." if beside else f"{text}."


def top_tokens(data: xr.Dataset) -> list[dict[str, Any]] | None:
    """The likeliest tokens of both models for the first prompts; `new` marks one that the other list lacks."""
    if not has(data, "top_prob") or "top_token" not in data:
        return None
    out = []
    for index in range(min(PROMPTS_SHOWN, data.sizes["prompt"])):
        row = data[["top_token", "top_prob"]].isel(prompt=index, rank=slice(RANKS_SHOWN))
        models = {}
        for model in ("base", "tuned"):
            tokens, probs = (row[v].sel(model=model).values.tolist() for v in ("top_token", "top_prob"))
            models[model] = [(visible(t), p) for t, p in zip(tokens, probs, strict=True) if np.isfinite(p)]
        known = {m: {t for t, _ in rows} for m, rows in models.items()}
        other = {"base": "tuned", "tuned": "base"}
        rows = [
            {
                m: {"token": t, "prob": number(p), "width": f"{92 * p:.1f}", "new": t not in known[other[m]]}
                for m, (t, p) in zip(("base", "tuned"), pair, strict=True)
            }
            for pair in zip(models["base"], models["tuned"], strict=False)
        ]
        out.append({"prompt": passage(_text(data, index)), "rows": rows})
    return out


def completions(data: xr.Dataset) -> dict[str, Any] | None:
    """Sampled responses of the first prompts, one column a source, with their rewards where there are any."""
    if "completion" not in data:
        return None
    known = [str(s) for s in data["completion"]["source"].values]
    sources = [s for s in known if (data["completion"].sel(source=s) != "").any()] or known
    rewards = data["completion_reward"] if has(data, "completion_reward") else None
    prompts = []
    for index in range(min(COMPLETIONS_SHOWN, data.sizes["prompt"])):
        columns = []
        for source in sources:
            texts = data["completion"].isel(prompt=index).sel(source=source).values.tolist()[:DRAWS_SHOWN]
            given = [np.nan] * len(texts)
            if rewards is not None:
                given = rewards.isel(prompt=index).sel(source=source).values.tolist()[:DRAWS_SHOWN]
            samples = [
                {"text": str(t), "reward": number(r) if np.isfinite(r) else ""}
                for t, r in zip(texts, given, strict=True)
                if t or np.isfinite(r)
            ]
            columns.append(samples)
        prompts.append({"prompt": passage(_text(data, index)), "columns": columns})
    said = rewards.attrs if rewards is not None else {}
    words = str(said.get("long_name") or "reward")
    unit = str(said.get("units") or "")
    names = {"base": "Base", "tuned": "Tuned", "given": "Given"}
    return {
        "sources": [names.get(s, s) for s in sources],
        "prompts": prompts,
        "of": data.sizes["prompt"],
        "reward": f"{words} [{unit}]" if unit else words,
        "rewards": rewards is not None,
    }


def attention(data: xr.Dataset) -> dict[str, Any] | None:
    """Patterns for the page to draw: `patterns[head][model][query]` are thousandths, trailing zeros dropped."""
    if not has(data, "pattern"):
        return None
    pattern = data["pattern"].transpose("example", "changed_head", "model", "query", "key")
    pattern = pattern.sel(model=["base", "tuned"])
    layers = data["changed_layer"].values.tolist()
    heads = [f"L{a}H{b}" for a, b in zip(layers, data["changed_head_index"].values.tolist(), strict=True)]
    examples = [_example(data, pattern, int(i)) for i in pattern["example"].values[:EXAMPLES_SHOWN]]
    return {"steps": _STEPS, "heads": heads, "examples": examples}


def _example(data: xr.Dataset, pattern: xr.DataArray, example: int) -> dict[str, Any]:
    """One prompt's patterns. Of a long prompt the middle is left out: its keys become one, that sums them."""
    values = np.nan_to_num(pattern.sel(example=example).values)
    known = np.isfinite(pattern.sel(example=example).values).any((0, 1))
    queries, keys = (int(np.flatnonzero(known.any(axis))[-1]) + 1 if known.any() else 0 for axis in (1, 0))
    names = [visible(str(t)) for t in data["tokens"].sel(prompt=example).values.tolist()[: max(queries, keys)]]
    values = values[..., :queries, :keys]
    places, key_names = list(range(len(names))), names
    rows = list(range(queries))
    if keys > _FIRST + _LAST:
        middle = slice(_FIRST, keys - _LAST)
        left_out = values[..., middle].sum(-1, keepdims=True)
        values = np.concatenate([values[..., :_FIRST], left_out, values[..., keys - _LAST :]], axis=-1)
        places = [*range(_FIRST), -1, *range(keys - _LAST, keys)]
        key_names = [names[p] if p >= 0 else f"…{keys - _LAST - _FIRST} tokens" for p in places]
        rows = [p for p in places if p >= 0]
        values = values[..., rows, :]
    counts = np.rint(values * _STEPS).astype(int)
    return {
        "label": shorten(_text(data, example, by_label=True).replace("\n", " "), 70),
        "tokens": key_names,
        "queries": [names[r] for r in rows],
        "at": [places, rows],
        "keys": len(key_names) if keys > _FIRST + _LAST else keys,
        "patterns": [[[_trim(row) for row in model] for model in head] for head in counts.tolist()],
    }


def _trim(row: list[int]) -> list[int]:
    end = len(row)
    while end and row[end - 1] == 0:
        end -= 1
    return row[:end]


def ov_circuits(data: xr.Dataset) -> list[dict[str, Any]] | None:
    """What each changed head reads and writes: by direction, the top tokens of both models."""
    if not has(data, "ov_singular_value"):
        return None
    order = ("changed_head", "ov_direction", "model")
    places = zip(data["changed_layer"].values.tolist(), data["changed_head_index"].values.tolist(), strict=True)
    sizes = data["ov_singular_value"].transpose(*order).sel(model=["base", "tuned"]).values
    sides = [data[f"ov_{side}"].transpose(*order, "rank").sel(model=["base", "tuned"]) for side in ("reads", "writes")]
    words = [side.values[..., :OV_TOKENS] for side in sides]
    out = []
    for index, (layer, head) in enumerate(places):
        rows = [
            {
                "direction": direction + 1,
                "model": model,
                "size": number(float(sizes[index, direction, m])),
                "reads": [visible(str(t)) for t in words[0][index, direction, m]],
                "writes": [visible(str(t)) for t in words[1][index, direction, m]],
            }
            for direction in range(min(OV_DIRECTIONS, sizes.shape[1]))
            for m, model in enumerate(("base", "tuned"))
        ]
        out.append({"head": f"L{layer}H{head}", "rows": rows})
    return out


def passage(text: str) -> dict[str, Any]:
    """A prompt for the page: `short`, and where that is not all of it `whole`, with its `length` in characters."""
    if len(text) <= _CLIP:
        return {"short": text, "whole": "", "length": len(text), "cut": False}
    short = f"{text[: _CLIP // 2].rstrip()} … {text[-_CLIP // 2 :].lstrip()}"  # a response goes on from the end
    cut = len(text) > _WHOLE
    whole = f"{text[: _WHOLE // 2]} … {text[-_WHOLE // 2 :]}" if cut else text
    return {"short": short, "whole": whole, "length": f"{len(text):,}".replace(",", " "), "cut": cut}


def embed(value: Any) -> Markup:
    """JSON for a script element: no character that could end the element or open another."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def provenance(data: xr.Dataset) -> list[tuple[str, list[tuple[str, str]]]]:
    """Groups of (name, value) from the dataset's attributes: the models, the versions, the settings."""
    attrs = data.attrs
    groups = []
    for key, title in (("base", "Base"), ("tuned", "Tuned")):
        if key in attrs:
            groups.append((title, _flat(_parse(attrs[key]))))
    for i, control in enumerate(_parse(attrs.get("controls", "[]")) or [], 1):
        groups.append((f"Control run {i}", _flat(control)))
    for i, replicate in enumerate(_parse(attrs.get("replicates", "[]")) or [], 1):
        groups.append((f"Replicate {i}", _flat(replicate)))
    reward = _parse(attrs.get("reward", "null"))
    if isinstance(reward, dict):
        groups.append(("Reward", _flat(reward)))
    run = [(k.replace("_", " "), str(attrs[k])) for k in ("interp_version", "format", "seed") if k in attrs]
    groups.append(("Settings", run + _flat(_parse(attrs.get("settings", "{}")))))
    groups.append(("Versions", _flat(_parse(attrs.get("versions", "{}")))))
    return [(title, rows) for title, rows in groups if rows]


def settings(data: xr.Dataset) -> dict[str, Any]:
    """The settings on record."""
    found = _parse(data.attrs.get("settings", "{}"))
    return found if isinstance(found, dict) else {}


def source(data: xr.Dataset, model: str) -> str:
    """Where a model came from, or its role where that was not recorded."""
    described = _parse(data.attrs.get(model, ""))
    if not isinstance(described, dict):
        return model
    return str(next((described[k] for k in ("source", "folder", "id", "object") if described.get(k)), model))


def _parse(value: Any) -> Any:
    try:
        return json.loads(value)
    except (TypeError, ValueError):
        return value


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Leaves of nested mappings as (dotted name, words)."""
    if isinstance(value, dict):
        return [pair for k, v in value.items() for pair in _flat(v, f"{prefix}.{k}" if prefix else str(k))]
    if isinstance(value, list):
        value = ", ".join(v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in value)
    elif isinstance(value, bool) or value is None:
        value = {True: "yes", False: "no", None: "–"}[value]
    elif isinstance(value, int) and abs(value) >= 10_000:
        value = f"{value:,}".replace(",", " ")
    return [(prefix.replace("_", " ") or "value", str(value))] if value != "" else []


def _text(data: xr.Dataset, index: int, *, by_label: bool = False) -> str:
    if "text" not in data:
        return f"prompt {index}"
    row = data["text"].sel(prompt=index) if by_label else data["text"].isel(prompt=index)
    return clean(str(row.item()))
