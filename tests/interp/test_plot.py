from __future__ import annotations

import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from interp import plot
from interp.errors import MeasureError
from interp.plot import style
from interp.plot.text import clean, drawable, visible
from tests.interp.synthetic import NASTY, Fake, make

NAMES = ["lens", "attribution", "heads", "attention_change", "weights", "kl", "top_tokens"]
NEEDS = {
    "lens": (["lens_logit_diff", "lens_kl"], "lens"),
    "attribution": (["attribution"], "attribution"),
    "heads": (["head_attribution"], "attribution"),
    "attention_change": (["pattern_js", "pattern_js_last"], "attention"),
    "weights": (["qk_change", "ov_change", "mlp_change"], "weights"),
    "kl": (["kl", "response_kl"], "kl"),
    "top_tokens": (["top_prob"], "next_token"),
}
SHAPES = {
    "single prompt": {"prompts": 1, "controls": 0},
    "smallest": {"layers": 1, "heads": 1, "positions": 2, "prompts": 2, "controls": 1},
    "GPT-2-small": {"prompts": 40, "layers": 12, "heads": 12, "positions": 30, "controls": 3},
    "32 by 32": {"layers": 32, "heads": 32, "positions": 64, "controls": 1},
    "no answers": {"answers": False},
}


@pytest.fixture(scope="module")
def cmp() -> Fake:
    return make()


def drawn(figure: Figure) -> Figure:
    """Lay the figure out and render it, which is when warnings on glyphs and layout come."""
    figure.draw_without_rendering()
    return figure


def words(figure: Figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(Text))


def line(ax, label: str) -> np.ndarray:
    (found,) = [artist for artist in ax.lines if artist.get_label() == label]
    return np.asarray(found.get_ydata(), dtype=float)


def mean_change(data, name: str, *dims: str) -> np.ndarray:
    delta = data[name].sel(model="tuned") - data[name].sel(model="base")
    return delta.mean("prompt").transpose(*dims).values


def test_lens_draws_both_models_means_and_their_spread(cmp):
    figure = drawn(plot.lens(cmp))
    left, right = figure.axes
    for model, colour in (("base", style.BASE), ("tuned", style.TUNED)):
        expected = cmp.dataset["lens_logit_diff"].sel(model=model).mean("prompt").values
        np.testing.assert_allclose(line(left, model), expected)
        (artist,) = [a for a in left.lines if a.get_label() == model]
        assert artist.get_color() == colour
    base, tuned = (next(a for a in left.lines if a.get_label() == m) for m in ("base", "tuned"))
    assert base.get_linestyle() != tuned.get_linestyle() and base.get_marker() != tuned.get_marker()
    np.testing.assert_allclose(line(right, "tuned from base"), cmp.dataset["lens_kl"].mean("prompt").values)
    band = left.collections[1].get_paths()[0].vertices
    low, high = np.quantile(cmp.dataset["lens_logit_diff"].sel(model="tuned").values[:, -1], (0.25, 0.75))
    last = band[band[:, 0] == 4][:, 1]
    assert last.min() == pytest.approx(low) and last.max() == pytest.approx(high)
    assert "[logits]" in left.get_ylabel() and "[nats]" in right.get_ylabel()
    assert "␣bad" in left.get_title(loc="left") and "middle half of prompts" in words(figure)
    assert [t.get_text() for t in left.get_xticklabels()] == ["0", "1", "2", "3", "end"]


def test_controls_are_grey_lines_and_absent_without_controls(cmp):
    left = plot.lens(cmp).axes[0]
    grey = [a for a in left.lines if a.get_color() == style.GREY]
    expected = [c["lens_logit_diff"].sel(model="tuned").mean("prompt").values for c in cmp.controls]
    assert len(grey) == 2
    for artist, values in zip(grey, expected, strict=True):
        np.testing.assert_allclose(artist.get_ydata(), values)
    alone = Fake(cmp.dataset)
    for name in NAMES:
        assert "control" not in words(getattr(plot, name)(alone)), name
    for name in ("lens", "attribution", "heads", "attention_change", "weights", "kl"):
        assert "control" in words(getattr(plot, name)(cmp)), name


def test_attribution_bars_add_up_to_the_difference(cmp):
    left, right = drawn(plot.attribution(cmp)).axes
    data = cmp.dataset
    write, readout = right.containers
    np.testing.assert_allclose([b.get_width() for b in write], data["attribution_write"].mean("prompt"))
    np.testing.assert_allclose([b.get_width() for b in readout], data["attribution_readout"].mean("prompt"))
    assert write[0].get_hatch() != readout[0].get_hatch()
    (total,) = [a for a in right.lines if a.get_label() == "sum"]
    expected = mean_change(data, "attribution", "component")
    np.testing.assert_allclose(total.get_xdata(), expected)
    for a, b, whole in zip(write, readout, expected, strict=True):
        ends = sorted([a.get_x(), a.get_x() + a.get_width(), b.get_x(), b.get_x() + b.get_width()])
        if a.get_width() * b.get_width() > 0:  # stacked: the far end is the sum
            assert min(abs(ends[0] - whole), abs(ends[-1] - whole)) < 1e-12
    for model in ("base", "tuned"):
        (dots,) = [a for a in left.lines if a.get_label() == model]
        np.testing.assert_allclose(dots.get_xdata(), data["attribution"].sel(model=model).mean("prompt"))
    assert [t.get_text() for t in left.get_yticklabels()][:4] == ["embed", "pos embed", "L0 attn", "L0 mlp"]


def test_attribution_leaves_out_components_that_the_family_lacks(cmp):
    data = cmp.dataset.copy()
    data["attribution"] = data["attribution"].where(data["component"] != "pos_embed")
    figure = drawn(plot.attribution(Fake(data)))
    assert "pos embed" not in words(figure) and "L0 attn" in words(figure)
    without = data.drop_vars(["attribution_write", "attribution_readout"])
    assert "what is written" not in words(plot.attribution(Fake(without)))


def test_heads_map_is_the_mean_difference_on_a_scale_centred_at_zero(cmp):
    figure = drawn(plot.heads(cmp))
    meshes = [m for ax in figure.axes[:3] for m in ax.findobj(QuadMesh)]
    expected = mean_change(cmp.dataset, "head_attribution", "layer", "head")
    np.testing.assert_allclose(meshes[0].get_array(), expected)
    np.testing.assert_allclose(meshes[1].get_array() + meshes[2].get_array(), expected, atol=1e-12)
    assert all(m.norm.vmin == -m.norm.vmax and m.norm.vmax == meshes[0].norm.vmax for m in meshes)
    assert meshes[0].norm.vmax >= np.abs(expected).max()
    order = np.argsort(-np.abs(expected), axis=None)[:5]
    outlined = [p for p in figure.axes[0].patches if isinstance(p, Rectangle) and not p.get_fill()]
    assert [(p.get_y() + 0.5, p.get_x() + 0.5) for p in outlined] == [divmod(i, 4) for i in order]
    layer, head = divmod(int(order[0]), 4)
    assert f"1 L{layer}H{head} {style.number(expected[layer, head], signed=True)}" in words(figure)
    assert "[logits]" in words(figure)


def test_attention_change_and_weights_start_at_zero(cmp):
    for name, variables in (
        ("attention_change", ["pattern_js", "pattern_js_last"]),
        ("weights", ["qk_change", "ov_change"]),
    ):
        figure = drawn(getattr(plot, name)(cmp))
        for ax, variable in zip(figure.axes, variables, strict=False):
            (mesh,) = ax.findobj(QuadMesh)
            values = cmp.dataset[variable]
            np.testing.assert_allclose(mesh.get_array(), values.mean([d for d in values.dims if d == "prompt"]))
            assert mesh.norm.vmin == 0
    (bars,) = [c for ax in plot.weights(cmp).axes for c in ax.containers]
    np.testing.assert_allclose([b.get_width() for b in bars], cmp.dataset["mlp_change"])


def test_weights_draws_what_the_family_has(cmp):
    only = Fake(cmp.dataset[["mlp_change"]])
    assert len(drawn(plot.weights(only)).axes) == 1
    figure = drawn(plot.weights(Fake(cmp.dataset.drop_vars("mlp_change"))))
    assert "MLP" not in words(figure) and "OV circuit" in words(figure)


def test_kl_keeps_prompt_and_response_apart(cmp):
    prompt, response = drawn(plot.kl(cmp)).axes
    np.testing.assert_allclose(line(prompt, "tuned from base"), cmp.dataset["kl"].mean("prompt"))
    for source in ("base", "tuned"):
        expected = cmp.dataset["response_kl"].sel(source=source).mean(["prompt", "draw"])
        np.testing.assert_allclose(line(response, f"text of {source}"), expected)
    for ax in (prompt, response):
        bottom, top = ax.get_ylim()
        assert bottom == 0 and "[nats]" in ax.get_ylabel()
        assert all(np.nanmax(a.get_ydata()) <= top for a in ax.lines)
    assert len(plot.kl(Fake(cmp.dataset.drop_vars("response_kl"))).axes) == 1


def test_kl_ends_where_the_longest_prompt_ends(cmp):
    data = cmp.dataset.copy()
    data["kl"] = data["kl"].where(data["pos"] < 3)
    assert len(line(drawn(plot.kl(Fake(data))).axes[0], "tuned from base")) == 3


def test_top_tokens_bars_are_the_probabilities(cmp):
    figure = drawn(plot.top_tokens(cmp, prompts=(1, 99), ranks=4))
    base, tuned = figure.axes
    for ax, model in ((base, "base"), (tuned, "tuned")):
        row = cmp.dataset.isel(prompt=1, rank=slice(4)).sel(model=model)
        np.testing.assert_allclose([b.get_width() for b in ax.patches], row["top_prob"])
        assert [t.get_text() for t in ax.get_yticklabels()] == [drawable(t) for t in row["top_token"].values]
    assert to_hex(base.patches[0].get_facecolor()) == style.BASE.lower()
    assert base.get_title(loc="left") == "<script>alert(1)</script>"


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_measure_is_named(cmp, name):
    variables, measure = NEEDS[name]
    with pytest.raises(MeasureError, match=f"measures=\\['{measure}'"):
        getattr(plot, name)(Fake(cmp.dataset.drop_vars(variables)))
    empty = cmp.dataset.copy()
    for variable in variables:
        empty[variable] = empty[variable] * np.nan
    with pytest.raises(MeasureError, match=variables[0]):
        getattr(plot, name)(Fake(empty))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_size_is_drawn_within_the_figure(shape):
    result = make(**SHAPES[shape])
    for name in NAMES:
        figure = drawn(getattr(plot, name)(result))
        box, whole = figure.get_tightbbox(), figure.bbox_inches
        assert box.x0 >= -0.01 and box.y0 >= -0.01, name
        assert box.x1 <= whole.x1 + 0.01 and box.y1 <= whole.y1 + 0.01, name
        sizes = [t.get_fontsize() for t in figure.findobj(Text) if t.get_text() and t.get_visible()]
        assert min(sizes) >= 8, name
        if shape == "single prompt":
            assert "middle half" not in words(figure), name


def test_no_difference_draws_a_flat_map(cmp):
    data = cmp.dataset.copy()
    data["head_attribution"] = data["head_attribution"] * 0
    data = data.drop_vars(["head_attribution_write", "head_attribution_readout"])
    assert "every cell is zero" in words(drawn(plot.heads(Fake(data))))


def test_tokens_are_drawn_as_they_are():
    assert visible(" a\n\tb") == "␣a↵⇥b" and visible("") == "(empty)" and visible("\xa0") == "\\xa0"
    assert clean("a\x00\u202eb\n") == "a\\x00\\u202eb\n" and clean("\ud800") == "\\ud800"
    assert drawable("你$") == "\\u4f60\\$" and drawable("🙂") == "\\U0001f642"
    assert drawable("x" * 30, 10) == "x" * 9 + "…"
    with style.house_style():
        figure = Figure()
        for token in NASTY:
            text = figure.text(0.5, 0.5, drawable(token))
            rendered, math = text._preprocess_math(text.get_text())
            assert math is False and rendered.replace("$", "") == drawable(token).replace("\\$", "")
    drawn(figure)


def test_numbers_have_three_digits_and_a_true_minus():
    expected = {
        1.8412: "1.84",
        -0.03126: "−0.031",
        123.456: "123",
        0.0: "0",
        1e-5: "1.0e−05",
        float("nan"): "–",
        2.0: "2.00",
    }
    assert {v: style.number(v) for v in expected} == expected
    assert style.number(0.5, signed=True) == "+0.500"
    assert style.span(0.0201, 0.0202) == "0.020" and style.span(-1.0, 2.0) == "−1.00 to 2.00"


def test_methods_are_the_functions(cmp):
    plots = plot.Plots(cmp)
    assert sorted([*NAMES, "Plots"]) == sorted(plot.__all__)
    for name in NAMES:
        assert words(getattr(plots, name)()) == words(getattr(plot, name)(cmp))


def test_the_callers_settings_stay_and_do_not_matter(cmp):
    before = dict(matplotlib.rcParams)
    plain = plot.lens(cmp).axes[0].yaxis.label.get_fontsize()
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context({"font.size": 30, "text.parse_math": False}):
        assert plot.lens(cmp).axes[0].yaxis.label.get_fontsize() == plain


def test_pyplot_is_never_imported():
    code = "import interp.plot, interp.report, sys; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
