"""Over depth: the logit lens, and the residual stream's size and direction."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from interp.plot.curves import curves, legend, site_axis
from interp.plot.registry import figure
from interp.plot.style import PAGE, Result, any_of, average, has, house_style, need, others, panels, units, zero_line
from interp.plot.text import drawable

_LENSES = {"lens_logit_diff": "lens_base_head_logit_diff", "lens_kl": "lens_base_head_kl"}
_STEEP = 20  # a norm that grows more than this is drawn on a logarithmic axis


@figure("comparison", needs=any_of(*_LENSES))
def lens(cmp: Result, *, width: float = PAGE) -> Figure:
    """Logit lens over depth: both models' logit difference, and how far the two read-outs are apart.

    Where it was measured, tuned's residual read through base's final norm and unembedding is a third line: what lies
    between it and tuned's own is the change of the read-out.

    Args:
        cmp: a comparison.
        width: of the figure in cm; under 12 the panels stand one above the other.

    Raises:
        MeasureError: neither `lens_logit_diff` nor `lens_kl` was measured.
    """
    data = cmp.dataset
    names = need(data, tuple(_LENSES), "lens")
    with house_style():
        figure, axes = panels(len(names), width, 3.1)
        handles: list[Any] = []
        for ax, name in zip(axes, names, strict=True):
            through_base = {"tuned through base's head": data[_LENSES[name]]} if has(data, _LENSES[name]) else {}
            runs = others(cmp, name)
            if name == "lens_logit_diff":
                both = {m: data[name].sel(model=m) for m in ("base", "tuned")}
                handles += curves(
                    ax, both | through_base, "site", {k: [r.sel(model="tuned") for r in v] for k, v in runs.items()}
                )
                ax.set_title(f"Logit difference\n{answer_words(data)}")
                ax.set_ylabel(f"logit difference [{units(data[name], 'logits')}]")
                zero_line(ax)
            else:
                handles += curves(ax, {"each through its own head": data[name]} | through_base, "site", runs)
                ax.set_title("How far apart they read\nKL(tuned ‖ base)")
                ax.set_ylabel(f"KL [{units(data[name], 'nats')}]")
                ax.set_ylim(bottom=0)
            ax.grid(axis="y")
            site_axis(ax, [str(s) for s in data["site"].values])
        legend(figure, handles)
        return figure


@figure("comparison", needs=any_of("resid_norm", "resid_cosine"))
def residual(cmp: Result, *, width: float = PAGE) -> Figure:
    """Norm of both models' residual stream by layer, and the cosine between the two.

    Args:
        cmp: a comparison.
        width: of the figure in cm; under 12 the panels stand one above the other.

    Raises:
        MeasureError: neither `resid_norm` nor `resid_cosine` was measured.
    """
    data = cmp.dataset
    names = need(data, ("resid_norm", "resid_cosine"), "residual")
    with house_style():
        figure, axes = panels(len(names), width, 3.1)
        handles: list[Any] = []
        for ax, name in zip(axes, names, strict=True):
            runs = others(cmp, name)
            if name == "resid_norm":
                tuned = {k: [r.sel(model="tuned") for r in v] for k, v in runs.items()}
                handles += curves(ax, {m: data[name].sel(model=m) for m in ("base", "tuned")}, "site", tuned)
                ax.set_title("Size of the stream\nmean over prompt tokens")
                ax.set_ylabel(f"norm ‖r‖ [{units(data[name], '1')}]" if units(data[name], "1") != "1" else "norm ‖r‖")
                _norm_scale(ax, average(data[name], "model", "site"))
            else:
                lines = {"mean over prompt tokens": data[name]}
                if has(data, "resid_cosine_last"):
                    lines["last prompt token"] = data["resid_cosine_last"]
                handles += curves(ax, lines, "site", runs)
                ax.set_title("Direction of the stream\ntuned against base")
                ax.set_ylabel("cosine (1: same direction)")
                low, _ = ax.get_ylim()
                ax.set_ylim(min(low, 0.99), 1 + 0.04 * (1 - min(low, 0.99)))
            ax.grid(axis="y")
            site_axis(ax, [str(s) for s in data["site"].values])
        legend(figure, handles)
        return figure


def _norm_scale(ax: Any, values: np.ndarray) -> None:
    known = values[np.isfinite(values) & (values > 0)]
    if known.size and known.max() > _STEEP * known.min():
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0)


def answer_words(data: xr.Dataset) -> str:
    """What is subtracted from what: the two tokens where all prompts share them, or else their roles."""
    if "answer_token" in data and "other_token" in data:
        pairs = set(zip(data["answer_token"].values.tolist(), data["other_token"].values.tolist(), strict=True))
        if len(pairs) == 1:
            answer, other = pairs.pop()
            return f"“{drawable(answer)}” minus “{drawable(other)}”"
    return "answer minus alternative" if "logit_diff" in data else "tuned's top token minus base's"
