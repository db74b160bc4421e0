"""Figures of patching, read back from the artists."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray as xr

from interp import Policy, Prompts
from interp.errors import MeasureError
from interp.patching import Patching, ValueReading, activation_patching, smallest_set, steering
from interp.plot import patching as drawing
from tests.conftest import tiny_gpt2
from tests.interp.figures import drawn, words

TEXTS = [f"{a} {b}" for a in ("the", "a", "this", "very") for b in ("cat sat", "dog ran", "bird sang", "movie was")]


@pytest.fixture(scope="module")
def pair(tokenizer):
    first, second = tiny_gpt2(), tiny_gpt2()
    with torch.no_grad():
        for parameter in second.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return [Policy.load(model, tokenizer=tokenizer) for model in (first, second)]


@pytest.fixture(scope="module")
def patched(pair) -> Patching:
    sites = ["z", "resid_pre", {("z", 0): [1, 2]}]
    return activation_patching(*pair, Prompts(TEXTS), sites=sites, draws=5)


def test_a_map_shows_recovery_and_marks_what_is_significant(patched) -> None:
    figure = drawn(drawing.recovery_map(patched, "z"))
    mesh = next(each for each in figure.axes[0].collections if hasattr(each, "get_array"))
    table = patched.map("z")
    np.testing.assert_allclose(np.asarray(mesh.get_array()).ravel(), table.values.ravel())
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "."]
    assert len(dots) == int((patched.map("z", "p").values < 0.05).sum()) > 0
    assert figure.axes[0].get_ylim() == (2.5, -0.5) and "Heads (z)" in words(figure)
    assert not plt.get_fignums()


def test_a_map_by_position_names_the_tokens(pair) -> None:
    by_token = activation_patching(*pair, Prompts(TEXTS), sites="mlp_out", positions="each")
    width = by_token.map("mlp_out").sizes["pos"]
    figure = drawn(drawing.recovery_map(by_token, "mlp_out", tokens=[f" w{i}" for i in range(width)]))
    assert "' w0'" in words(figure) and "MLP: recovery" in words(figure)


def test_a_map_from_the_end_counts_back_and_leaves_rare_tokens_blank(pair) -> None:
    texts = [*TEXTS[:10], "the cat sat on the mat and sang a song"]
    found = activation_patching(*pair, Prompts(texts), sites="mlp_out", positions="each_from_end", metric="kl")
    figure = drawn(drawing.recovery_map(found))
    mesh = next(each for each in figure.axes[0].collections if hasattr(each, "get_array"))
    rare = found.map("mlp_out", "prompts").values < 8
    assert rare.any() and np.ma.getmaskarray(mesh.get_array()).ravel().tolist() == rare.ravel().tolist()
    labels = [int(each.get_text()) for each in figure.axes[0].get_xticklabels()]
    assert labels[0] == -found.map("mlp_out").sizes["pos"] and max(labels) < 0
    assert "fewer than 8 prompts have the token" in " ".join(words(figure).split())


def test_ticks_are_the_layers_and_heads_that_were_patched(pair) -> None:
    sites = [{("z", layer): [head]} for layer in (0, 2) for head in (1, 3)]
    ax = drawn(drawing.recovery_map(activation_patching(*pair, Prompts(TEXTS), sites=sites))).axes[0]
    ticks = [[each.get_text() for each in axis.get_ticklabels()] for axis in (ax.xaxis, ax.yaxis)]
    assert ticks == [["1", "3"], ["0", "2"]]


def test_few_prompts_have_no_dots_and_say_so(pair) -> None:
    few = activation_patching(*pair, Prompts(TEXTS[:3]), sites="z")
    figure = drawn(drawing.recovery_map(few, "z"))
    assert "fewer than 8 groups" in words(figure)
    assert not [line for line in figure.axes[0].lines if line.get_marker() == "."]


def test_a_map_without_recovery_shows_effects(pair) -> None:
    known = activation_patching(*pair, Prompts(TEXTS), sites="z").dataset
    figure = drawn(drawing.recovery_map(Patching(known.assign(recovery=known["recovery"] * np.nan)), "z"))
    assert "mean effect" in words(figure)


def test_by_layer_alone_there_is_no_map(patched) -> None:
    with pytest.raises(MeasureError, match="by layer alone"):
        drawing.recovery_map(patched, "resid_pre")


@pytest.mark.parametrize("width", [17.0, 8.5])
def test_bars_are_recoveries_with_random_sets_beside(patched, width) -> None:
    figure = drawn(drawing.bars(patched, width=width, most=30))
    ax = figure.axes[0]
    frame = patched.summary().set_index("site")
    names = [each.get_text() for each in ax.get_yticklabels()]
    assert len(names) == 16 and "L0.z.H1+2" in names
    lengths = [bar.get_width() for bar in ax.patches if bar.get_height() == pytest.approx(0.55)]
    np.testing.assert_allclose(lengths, [frame.loc[name, "recovery"] for name in names])
    ticks = [line for line in ax.lines if line.get_marker() == "|"]
    assert sum(len(line.get_xdata()) for line in ticks) == 5
    assert "readout alone" in words(figure)


def test_the_dose_curve_shows_the_mean_and_random_directions(pair) -> None:
    found = steering(*pair, Prompts(TEXTS), site=("resid_post", 1), doses=(0.0, 1.0, 2.0), draws=4)
    ax = drawn(drawing.dose_curve(found)).axes[0]
    lines = [line for line in ax.lines if len(line.get_xdata()) == 3]
    assert len(lines) == 5
    np.testing.assert_allclose(lines[-1].get_ydata(), found["mean"].values)
    assert ax.get_title(loc="left") == "Steering at L1.resid_post"


@pytest.mark.parametrize("width", [17.0, 8.5])
def test_the_search_shows_what_was_taken(pair, width) -> None:
    found = smallest_set(*pair, Prompts(TEXTS), sites=("z", "mlp_out"), most=3, draws=4)
    figure = drawn(drawing.search(found, width=width))
    np.testing.assert_allclose(figure.axes[0].lines[-2].get_ydata(), found["recovery"].values)
    assert [each.get_text()[:2] for each in figure.axes[0].get_xticklabels()] == ["+ "] * found.dataset.sizes["size"]


def test_the_value_heads_curve_ends_where_few_samples_are_left() -> None:
    values = np.linspace(0, 1, 4)[None, None] * np.ones((4, 5, 1))
    values[1:, :, 3] = np.nan
    by_step = {
        name: ("step", np.linspace(0.1, 0.4, 4))
        for name in ("mean", "mean_low", "mean_high", "correlation", "explained")
    }
    data = xr.Dataset(
        {"value": (("prompt", "sample", "step"), values), "reward": (("prompt", "sample"), np.ones((4, 5))), **by_step},
        coords={"step": range(4)},
    )
    figure = drawn(drawing.value(ValueReading(data)))
    assert len(figure.axes[0].lines[0].get_xdata()) == 3 and "Value against final reward" in words(figure)
