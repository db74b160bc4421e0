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

import interp
from interp import plot
from interp.errors import MeasureError
from interp.plot import style
from interp.plot.registry import figures_of
from interp.plot.text import clean, drawable, visible
from tests.interp.figures import drawn, line, mean_change, words
from tests.interp.synthetic import NASTY, Fake, make
from tests.interp.traced import JOINED

NEEDS = {
    "top_tokens": (["top_prob"], "next_token"),
    "movers": (["mover_change"], "next_token"),
    "answers": (["logit_diff", "logprob_diff"], "logit_diff"),
    "mass_outside": (["mass_outside"], "next_token"),
    "kl": (["kl", "response_kl"], "kl"),
    "entropy": (["position_entropy", "response_entropy"], "kl"),
    "lens": (["lens_logit_diff", "lens_kl"], "lens"),
    "lens_positions": (["lens_pos_kl"], "lens_positions"),
    "residual": (["resid_norm", "resid_cosine"], "residual"),
    "attribution": (["attribution"], "attribution"),
    "heads": (["head_attribution"], "attribution"),
    "neurons": (["neuron_attribution"], "neurons"),
    "attention_change": (["pattern_js", "pattern_js_last"], "attention"),
    "attention_entropy": (["pattern_entropy"], "attention"),
    "attention_classes": (["attention_to"], "attention"),
    "ov_circuits": (["ov_singular_value"], "attention"),
    "weights": (["qk_change", "ov_change", "mlp_change"], "weights"),
    "singular_directions": (["effective_rank"], "weights"),
}
NAMES = list(NEEDS)
WITHOUT_RUNS = {"top_tokens", "mass_outside", "lens_positions", "ov_circuits"}
SHAPES = {
    "single prompt": {"prompts": 1, "controls": 0},
    "smallest": {"layers": 1, "heads": 1, "positions": 2, "prompts": 2, "controls": 1},
    "replicates": {"replicates": 2},
    "GPT-2-small": {"prompts": 40, "layers": 12, "heads": 12, "positions": 30, "controls": 3, "replicates": 1},
    "32 by 32": {"layers": 32, "heads": 32, "positions": 64, "controls": 1},
    "no answers": {"answers": False},
}
SIZES = [
    ("replicates", style.COLUMN),
    *(pytest.param(shape, width, marks=pytest.mark.slow) for shape in SHAPES for width in (style.PAGE, style.COLUMN)),
]


@pytest.fixture(scope="module")
def cmp() -> Fake:
    return make()


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
    np.testing.assert_allclose(line(right, "each through its own head"), cmp.dataset["lens_kl"].mean("prompt").values)
    for ax, name in ((left, "lens_base_head_logit_diff"), (right, "lens_base_head_kl")):
        np.testing.assert_allclose(line(ax, "tuned through base's head"), cmp.dataset[name].mean("prompt"))
    alone = plot.lens(Fake(cmp.dataset.drop_vars(["lens_base_head_logit_diff", "lens_base_head_kl"])))
    assert "through base's head" not in words(alone)
    band = left.collections[1].get_paths()[0].vertices
    low, high = np.quantile(cmp.dataset["lens_logit_diff"].sel(model="tuned").values[:, -1], (0.25, 0.75))
    last = band[band[:, 0] == 4][:, 1]
    assert last.min() == pytest.approx(low) and last.max() == pytest.approx(high)
    assert "[logits]" in left.get_ylabel() and "[nats]" in right.get_ylabel()
    assert "␣bad" in left.get_title(loc="left") and "middle half of prompts" in words(figure)
    assert [t.get_text() for t in left.get_xticklabels()] == ["0", "1", "2", "3", "end"]


def test_several_null_runs_are_a_range_and_one_is_a_line(cmp):
    def edges(result: Fake, kind: str) -> np.ndarray:
        return np.array([a.get_ydata() for a in plot.lens(result).axes[0].lines if a.get_label() == kind])

    means = [c["lens_logit_diff"].sel(model="tuned").mean("prompt").values for c in cmp.controls]
    np.testing.assert_allclose(edges(cmp, "control runs"), [np.min(means, 0), np.max(means, 0)])
    np.testing.assert_allclose(edges(Fake(cmp.dataset, cmp.controls[:1]), "control runs"), means[:1])
    assert len(edges(cmp, "replicates")) == 0
    np.testing.assert_allclose(edges(Fake(cmp.dataset, (), cmp.controls), "replicates")[0], np.min(means, 0))


def test_other_runs_are_named_where_there_are_any(cmp):
    with_replicates = make(replicates=2)
    for name in NAMES:
        text = words(getattr(plot, name)(with_replicates))
        assert ("control runs" in text and "replicates" in text) == (name not in WITHOUT_RUNS), name
        assert "null run" not in text, name
        if name in ("lens", "attribution", "heads", "movers"):
            assert "control run" not in words(getattr(plot, name)(Fake(cmp.dataset)))


def test_ranges_of_other_runs_stand_behind_the_bars(cmp):
    ax = plot.attribution(cmp).axes[1]
    values = [mean_change(c, "attribution", "component") for c in cmp.controls]
    (band,) = ax.containers[2:]
    np.testing.assert_allclose([b.get_x() for b in band], np.min(values, 0))
    np.testing.assert_allclose([b.get_width() for b in band], np.ptp(values, 0))
    assert all(b.get_zorder() < ax.containers[0][0].get_zorder() for b in band)
    assert all(b.get_height() > ax.containers[0][0].get_height() for b in band)


def test_attribution_bars_add_up_to_the_difference(cmp):
    left, right = drawn(plot.attribution(cmp)).axes
    data = cmp.dataset
    write, readout = right.containers[:2]
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
    error = style.number(float(data["completeness_error"].mean()))
    for name in ("attribution", "heads"):
        assert f"completeness error {error} logits" in words(getattr(plot, name)(cmp))


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
    bars = plot.weights(cmp).axes[2].containers[0]
    np.testing.assert_allclose([b.get_width() for b in bars], cmp.dataset["mlp_change"])


def test_weights_draws_what_the_family_has(cmp):
    only = Fake(cmp.dataset[["mlp_change"]])
    assert len(drawn(plot.weights(only)).axes) == 1
    figure = drawn(plot.weights(Fake(cmp.dataset.drop_vars("mlp_change"))))
    assert "MLP" not in words(figure) and "OV circuit" in words(figure)


def test_kl_keeps_prompt_and_response_apart(cmp):
    prompt, response, js_prompt, js_response = drawn(plot.kl(cmp)).axes
    np.testing.assert_allclose(line(prompt, "prompt"), cmp.dataset["kl"].mean("prompt"))
    np.testing.assert_allclose(line(js_prompt, "prompt"), cmp.dataset["js"].mean("prompt"))
    for ax, name in ((response, "response_kl"), (js_response, "response_js")):
        for source in ("base", "tuned"):
            expected = cmp.dataset[name].sel(source=source).mean(["prompt", "draw"])
            np.testing.assert_allclose(line(ax, f"text of {source}"), expected)
    for ax in (prompt, response, js_prompt, js_response):
        bottom, top = ax.get_ylim()
        assert bottom == 0 and "[nats]" in ax.get_ylabel()
        assert all(np.nanmax(a.get_ydata()) <= top for a in ax.lines)
    assert len(plot.kl(Fake(cmp.dataset.drop_vars(["response_kl", "response_js", "js"]))).axes) == 1


def test_a_long_curve_has_no_marks_and_a_running_mean():
    result = make(prompts=2, positions=200, controls=0)
    ax = plot.kl(result).axes[0]
    thin, smooth = [a for a in ax.lines if a.get_label().startswith("prompt")]
    mean = result.dataset["kl"].mean("prompt").values
    np.testing.assert_allclose(thin.get_ydata(), mean)
    assert thin.get_marker() == smooth.get_marker() == "None" and thin.get_linewidth() < smooth.get_linewidth()
    expected = [np.nanmean(mean[max(0, i - 2) : i + 3]) for i in range(len(mean))]
    np.testing.assert_allclose(smooth.get_ydata(), expected)
    assert smooth.get_label() == "prompt, running mean of 5"
    short = plot.kl(make(prompts=2, positions=60, controls=0)).axes[0]
    assert [a.get_marker() for a in short.lines] == ["o"]


def test_kl_ends_where_the_longest_prompt_ends(cmp):
    data = cmp.dataset.copy()
    data["kl"] = data["kl"].where(data["pos"] < 3)
    assert len(line(drawn(plot.kl(Fake(data))).axes[0], "prompt")) == 3


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
    said = {"answers": "give the prompts answers", "mass_outside": "both models have the same tokens"}
    with pytest.raises(MeasureError, match=said.get(name, f"measures=\\['{measure}'")):
        getattr(plot, name)(Fake(cmp.dataset.drop_vars(variables)))
    empty = cmp.dataset.copy()
    for variable in variables:
        empty[variable] = empty[variable] * np.nan
    with pytest.raises(MeasureError, match=variables[0]):
        getattr(plot, name)(Fake(empty))


@pytest.mark.parametrize(("shape", "width"), SIZES)
def test_every_size_is_drawn_within_the_figure(shape, width):
    result = make(**SHAPES[shape])
    for name in NAMES:
        if shape == "no answers" and name == "answers":
            continue
        figure = drawn(getattr(plot, name)(result, width=width))
        box, whole = figure.get_tightbbox(), figure.bbox_inches
        assert box.x0 >= -0.01 and box.y0 >= -0.01, name
        assert box.x1 <= whole.x1 + 0.01 and box.y1 <= whole.y1 + 0.01, name
        assert whole.width <= width / 2.54 + 1e-9, name
        sizes = [t.get_fontsize() for t in figure.findobj(Text) if t.get_text() and t.get_visible()]
        assert min(sizes) >= 8, name
        if shape == "single prompt":
            assert "middle half" not in words(figure), name


def test_no_difference_draws_a_flat_map(cmp):
    data = cmp.dataset.copy()
    data["head_attribution"] = data["head_attribution"] * 0
    data = data.drop_vars(["head_attribution_write", "head_attribution_readout"])
    assert "every cell is zero" in words(drawn(plot.heads(Fake(data))))


def test_a_model_beside_itself_is_drawn(cmp):
    data = cmp.dataset.copy(deep=True)
    for name, array in data.data_vars.items():
        if "model" in array.dims and array.dtype != object:
            data[name] = array.sel(model=["base", "base"]).assign_coords(model=["base", "tuned"])
        elif "model" not in array.dims and array.dtype != object and name not in ("effective_rank", "pattern"):
            data[name] = array * 0 + (1.0 if "cosine" in str(name) else 0.0)
    data["effective_rank"] = data["effective_rank"] * 0
    data["mover_token"] = data["mover_token"].copy(data=np.full(data["mover_token"].shape, "", dtype=object))
    for name in ("movers", "kl", "lens", "residual", "heads", "neurons", "attention_classes", "singular_directions"):
        drawn(getattr(plot, name)(Fake(data)))
    assert "no token moved" in words(plot.movers(Fake(data)))


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
    plots = interp.Comparison(cmp.dataset, cmp.controls).plot
    assert set(dir(plots)) == {name for name in NAMES if name in figures_of("comparison")}
    assert {*NAMES, *JOINED} == set(figures_of("comparison"))  # those of JOINED are drawn in test_joins
    for name in (*NAMES, *JOINED):
        assert getattr(plots, name).__doc__ == getattr(plot, name).__doc__
    assert words(plots.movers(ranks=3, width=8.5)) == words(plot.movers(cmp, ranks=3, width=8.5))


def test_the_callers_settings_stay_and_do_not_matter(cmp):
    before = dict(matplotlib.rcParams)
    plain = plot.lens(cmp).axes[0].yaxis.label.get_fontsize()
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context({"font.size": 30, "text.parse_math": False}):
        assert plot.lens(cmp).axes[0].yaxis.label.get_fontsize() == plain


def test_pyplot_is_never_imported():
    code = "import interp.plot, interp.report, sys; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
