"""Figures of circuits, and the verdict's words, from results made by hand."""

from __future__ import annotations

import re

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from interp import circuits
from interp.circuits.compare import CircuitComparison
from interp.circuits.verdict import verdict
from interp.errors import MeasureError
from interp.models import Policy
from interp.plot import circuits as drawing
from interp.prompts import Prompts
from tests.conftest import tiny_gpt2
from tests.interp.test_circuits import ANSWERS, OTHER, WIDE


@pytest.fixture(scope="module")
def compared(tokenizer) -> CircuitComparison:
    pairs = Prompts(WIDE, corrupted=OTHER, answers=ANSWERS)
    selection = circuits.Selection(steps=1, splits=4)
    base, tuned = (Policy.load(tiny_gpt2(seed=seed), tokenizer=tokenizer) for seed in (0, 5))
    return circuits.compare(base, tuned, pairs, sizes=[20, 60, 262], selection=selection, draws=1)


def _texts(figure: Figure) -> str:
    figure.canvas.draw()  # warnings of the layout are errors
    texts = [each for ax in figure.axes for each in (*ax.texts, ax.title, *ax.get_children())]
    return "\n".join(each.get_text() for each in texts if hasattr(each, "get_text"))


@pytest.mark.parametrize("width", [17.0, 8.5])
def test_a_comparison_is_drawn_at_both_widths(compared, width) -> None:
    figure = drawing.comparison(compared, width=width)
    text = _texts(figure)
    assert "Carried in base" in text and "Carried in tuned" in text and "Edges in common" in text
    line = figure.axes[0].get_lines()
    shown = [each.get_ydata() for each in line if each.get_label() == "base's circuit"]
    expected = compared.dataset["faithfulness"].sel(circuit="base", model="base").values
    np.testing.assert_allclose(shown[0], expected)


@pytest.mark.parametrize("model", ["base", "tuned"])
def test_a_circuit_is_drawn_with_the_nodes_on_its_paths(compared, model) -> None:
    names = _texts(compared.plot.circuit(model)).split("\n")
    assert set(compared.circuits[model].nodes) | {"logits"} <= set(names)
    assert not set(compared.scores[model].graph.nodes) - set(compared.circuits[model].nodes) & set(names) - {"input"}


def test_the_widest_edge_is_the_strongest(compared) -> None:
    scores, chosen = compared.scores["base"], compared.circuits["base"]
    figure = scores.plot.graph(chosen.edges)
    widths = [patch.get_linewidth() for patch in figure.axes[0].patches if hasattr(patch, "get_connectionstyle")]
    assert len(widths) == chosen.connected.size
    assert max(widths) == pytest.approx(0.4 + 5.2)
    with pytest.raises(MeasureError, match="no edge lies on a path"):
        drawing.graph(scores, [])


def test_a_curve_that_was_refused_says_why(compared) -> None:
    data = xr.Dataset(
        {
            "faithfulness": ("size", [0.2, 0.9]),
            "faithfulness_low": ("size", [0.1, 0.8]),
            "faithfulness_high": ("size", [0.3, 1.0]),
            "random": (("draw", "size"), [[0.0, 0.1]]),
        },
        coords={"size": [5, 50]},
        attrs={"reason": ""},
    )
    curve = circuits.Faithfulness(data)
    assert "What a circuit carries" in _texts(curve.plot.faithfulness())
    nothing = data.assign(faithfulness=data["faithfulness"] * np.nan).assign_attrs(reason="the interval holds 0")
    with pytest.raises(MeasureError, match="no faithfulness to draw: the interval holds 0"):
        circuits.Faithfulness(nothing).plot.faithfulness()


def _data(**changes) -> xr.Dataset:
    """What a comparison says, with one thing changed: base's circuit carries 87 % of tuned, tuned's own 91 %."""
    values = {
        "faithfulness": [[0.92, 0.87], [0.8, 0.91]],
        "random": 0.1,
        "excess": (0.04, 0.01),
        "change": (0.0, -0.1, 0.1),
        "effects": (2.0, 2.0),
        "states": ["no evidence of a change"],
        "controls": [],
        **changes,
    }
    count = len(values["controls"])
    data = xr.Dataset(
        {
            "faithfulness": (("circuit", "model", "size"), np.array(values["faithfulness"])[:, :, None]),
            "random_faithfulness": (("draw", "model", "size"), np.full((1, 2, 1), values["random"])),
            "excess": ("size", [values["excess"][0]]),
            "excess_low": ("size", [values["excess"][1]]),
            "effect_change": values["change"][0],
            "effect_change_low": values["change"][1],
            "effect_change_high": values["change"][2],
            "effect_of_corruption": (("prompt", "model"), np.tile(values["effects"], (9, 1))),
            "state": ("component", np.array(values["states"], dtype=object)),
            "edge_overlap": ("size", [0.6]),
            "random_edge_overlap": (("draw", "size"), [[0.05]]),
            "half_overlap": (("pair", "split", "size"), np.full((3, 2, 1), 0.5)),
            "run_effect_change": ("run", np.array(values["controls"], dtype=float)),
            "run_own_faithfulness": (("run", "size"), np.full((count, 1), 0.9)),
            "run_faithfulness": (("run", "size"), np.full((count, 1), 0.9 - values.get("control_excess", 0.0))),
        },
        coords={"circuit": ["base", "tuned"], "model": ["base", "tuned"], "size": [120],
                "pair": ["base-base", "tuned-tuned", "base-tuned"], "run": [f"control {i}" for i in range(count)]},
        attrs={"size": 120, "reason_base": "R", "reason_tuned": "R"},
    )  # fmt: skip
    return data


_UP = {"change": (1.0, 0.8, 1.2), "effects": (2.0, 3.0)}
_NEW = {"excess": (0.4, 0.3), "faithfulness": [[0.92, 0.5], [0.8, 0.9]]}


_NO_BASE, _NO_TUNED = [[np.nan, 0.5], [0.1, 0.9]], [[0.9, 0.5], [0.1, np.nan]]


@pytest.mark.parametrize(
    ("changes", "begins"),
    [
        ({}, "no evidence of a change: base's 120 edges carry 87 % of tuned's behaviour, tuned's own 120 carry 91 %"),
        (_UP, "existing circuit, up-weighted by 50 %: base's 120 edges carry 87 %"),
        ({"change": (-1.0, -1.2, -0.8), "effects": (2.0, 1.0)}, "existing circuit, down-weighted by 50 %"),
        ({"change": (-4.0, -4.2, -3.8), "effects": (2.0, -2.0)}, "existing circuit, turned round"),
        ({**_UP, "controls": [1.5]}, "no evidence of a change"),
        ({**_UP, "controls": [0.2]}, "existing circuit, up-weighted by 50 %"),
        (_NEW, "circuit new in part: base's 120 edges carry 50 % of tuned's behaviour, tuned's own 120 carry 90 %"),
        ({**_NEW, "controls": [0.0], "control_excess": 0.5}, "no evidence of a change"),
        ({"states": ["re-wired", "new"]}, "existing circuit, 2 components re-wired, new or gone"),
        ({"states": ["strengthened", "weakened"]}, "existing circuit, 2 components of another strength"),
        ({"random": 0.95}, "no circuit found: base's 120 edges carry 92 % of its behaviour, random ones up to 95 %"),
        ({**_UP, "faithfulness": _NO_BASE}, "the behaviour is new: .* nothing measurable in base"),
        ({**_UP, "faithfulness": _NO_TUNED}, "the behaviour is gone: .* nothing measurable in tuned"),
        ({"faithfulness": _NO_BASE}, "no verdict: .* cannot be told from nothing in base"),
        ({"change": (0.2, -0.1, 0.5), "faithfulness": _NO_TUNED}, "no verdict: .* from nothing in tuned"),
        ({**_UP, "controls": [1.5], "faithfulness": _NO_TUNED}, "no verdict: .* in tuned"),
        ({"faithfulness": [[np.nan, 0.5], [0.1, np.nan]]}, "no verdict: .* in either model"),
        ({"change": (1.0, np.nan, np.nan)}, "too few prompts for a verdict"),
    ],
)  # fmt: skip
def test_the_verdict_says_what_the_numbers_say(changes, begins) -> None:
    assert re.match(begins, verdict(_data(**changes)))
