"""The parts of a comparison that the page shows as text or draws itself, as plain lists."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from markupsafe import Markup

from interp.plot.style import has, number, span
from interp.plot.text import clean, shorten, visible

PROMPTS_SHOWN = 4
RANKS_SHOWN = 6
COMPLETIONS_SHOWN = 6
DRAWS_SHOWN = 3
EXAMPLES_SHOWN = 8
_STEPS = 1000  # attention is shown to three decimals, so no more than that is embedded


def headline(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Columns and cells of the summary; a column that no row fills is left out.

    The first cell of a row that goes on with the reading of the row above is empty.
    """
    ranges = {"95 % interval": ("lower", "upper"), "controls": ("control_low", "control_high")}
    known = {name for name in table.columns if table[name].notna().any()}
    columns = ["reading", "finding", "estimate"]
    columns += [name for name, ends in ranges.items() if set(ends) & known]
    columns += [name for name in ("units", "n", "completeness") if name in known]
    rows = []
    for record in table.to_dict("records"):
        cells = []
        for name in columns:
            if name in ranges:
                low, high = (float(record.get(end, np.nan)) for end in ranges[name])
                cells.append(span(low, high))
            elif name in ("estimate", "completeness"):
                cells.append(number(float(record[name])))
            else:
                cells.append(_cell(name, record[name]))
        rows.append(cells)
    for above, row in reversed(list(pairwise(rows))):
        if row[0] == above[0]:
            row[0] = ""
    return columns, rows


def _cell(name: str, value: Any) -> str:
    if name == "n":
        return str(value or "–")  # a finding about weights counts no prompts
    if name == "units":
        return "ratio" if value == "1" else str(value)
    return str(value).replace("_", " ").replace("||", "‖") if name != "finding" else str(value).replace("||", "‖")


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
        out.append({"prompt": _text(data, index), "rows": rows})
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
        prompts.append({"prompt": _text(data, index), "columns": columns})
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
    examples = []
    for example in pattern["example"].values[:EXAMPLES_SHOWN].tolist():
        values = pattern.sel(example=example).values
        known = np.isfinite(values).any((0, 1))
        queries, keys = (int(np.flatnonzero(known.any(axis))[-1]) + 1 if known.any() else 0 for axis in (1, 0))
        counts = np.rint(np.nan_to_num(values[..., :queries, :keys]) * _STEPS).astype(int)
        tokens = [visible(str(t)) for t in data["tokens"].sel(prompt=example).values.tolist()[: max(queries, keys)]]
        examples.append(
            {
                "label": shorten(_text(data, example, by_label=True).replace("\n", " "), 70),
                "tokens": tokens,
                "keys": keys,
                "patterns": [[[_trim(row) for row in model] for model in head] for head in counts.tolist()],
            }
        )
    return {"steps": _STEPS, "heads": heads, "examples": examples}


def _trim(row: list[int]) -> list[int]:
    end = len(row)
    while end and row[end - 1] == 0:
        end -= 1
    return row[:end]


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
        groups.append((f"Control {i}", _flat(control)))
    reward = _parse(attrs.get("reward", "null"))
    if isinstance(reward, dict):
        groups.append(("Reward", _flat(reward)))
    run = [(k.replace("_", " "), str(attrs[k])) for k in ("interp_version", "format", "seed") if k in attrs]
    groups.append(("Settings", run + _flat(_parse(attrs.get("settings", "{}")))))
    groups.append(("Versions", _flat(_parse(attrs.get("versions", "{}")))))
    return [(title, rows) for title, rows in groups if rows]


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
