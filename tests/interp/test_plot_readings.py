"""Figures of the readings beyond logit lens, attribution and weights: they draw what the dataset holds."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import QuadMesh

from interp import plot
from interp.plot import style
from interp.plot.spectrum import short_name
from interp.plot.text import drawable
from tests.interp.figures import drawn, line, mean_change, words
from tests.interp.synthetic import Fake, make


@pytest.fixture(scope="module")
def cmp() -> Fake:
    return make()


def test_entropy_and_residual_draw_both_models(cmp):
    data = cmp.dataset
    prompt, response = drawn(plot.entropy(cmp)).axes
    norm, cosine = drawn(plot.residual(cmp)).axes
    for model in ("base", "tuned"):
        np.testing.assert_allclose(line(prompt, model), data["position_entropy"].sel(model=model).mean("prompt"))
        own = data["response_entropy"].sel(model=model, source="tuned").mean(["prompt", "draw"])
        np.testing.assert_allclose(line(response, model), own)
        np.testing.assert_allclose(line(norm, model), data["resid_norm"].sel(model=model).mean("prompt"))
    np.testing.assert_allclose(line(cosine, "mean over prompt tokens"), data["resid_cosine"].mean("prompt"))
    np.testing.assert_allclose(line(cosine, "last prompt token"), data["resid_cosine_last"].mean("prompt"))
    assert "text of tuned" in response.get_title(loc="left") and prompt.get_ylim() == response.get_ylim()
    steep = data.assign(resid_norm=data["resid_norm"] ** 3)
    assert norm.get_yscale() == "linear" and plot.residual(Fake(steep)).axes[0].get_yscale() == "log"


def test_lens_positions_holds_tokens_where_they_fit(cmp):
    figure = drawn(plot.lens_positions(cmp))
    (mesh,) = figure.axes[0].findobj(QuadMesh)
    np.testing.assert_allclose(mesh.get_array(), cmp.dataset["lens_pos_kl"].isel(prompt=0))
    tokens = cmp.dataset["lens_pos_top_token"].isel(prompt=0)
    written = {t.get_position(): t for t in figure.axes[0].texts}
    assert len(written) == tokens.sel(model="tuned").size
    for (pos, site), text in written.items():
        base, tuned = (str(tokens.sel(model=m).values[site, pos]) for m in ("base", "tuned"))
        assert text.get_text().replace("\\$", "$").rstrip("…") in drawable(tuned, 99).replace("\\$", "$")
        assert (text.get_fontweight() == "bold") == (base != tuned)
    assert not plot.lens_positions(cmp, width=style.COLUMN).axes[0].texts
    (mean,) = plot.lens_positions(cmp, prompt=None).axes[0].findobj(QuadMesh)
    np.testing.assert_allclose(mean.get_array(), cmp.dataset["lens_pos_kl"].mean("prompt"))


def test_movers_of_all_prompts_are_means_over_all_of_them(cmp):
    data = cmp.dataset
    changes: dict[str, float] = {}
    for token, value in zip(data["mover_token"].values.ravel(), data["mover_change"].values.ravel(), strict=True):
        changes[token] = changes.get(token, 0.0) + value / data.sizes["prompt"]
    changes.pop("")  # where fewer tokens moved than there is room for
    ax = drawn(plot.movers(cmp, ranks=3)).axes[0]
    order = sorted(changes.values(), reverse=True)
    widths = [bar.get_width() for bars in ax.containers[:2] for bar in bars]
    np.testing.assert_allclose(widths, [*order[:3], *order[-3:]])
    first = max(changes, key=lambda token: changes[token])
    assert ax.get_yticklabels()[0].get_text() == drawable(first)
    one, two = plot.movers(cmp, prompts=(0, 1, 99), ranks=10).axes
    assert len(one.get_yticks()) == 16 and len(two.get_yticks()) == 20 and "of 12" not in words(one.figure)


def test_answers_are_points_of_base_against_tuned(cmp):
    for ax, name in zip(drawn(plot.answers(cmp)).axes, ("logit_diff", "logprob_diff"), strict=True):
        (points,) = [a for a in ax.lines if a.get_label() == "tuned, one prompt"]
        np.testing.assert_allclose(np.array(points.get_data()).T, cmp.dataset[name])
        (diagonal,) = [a for a in ax.lines if a.get_label() == "equal"]
        np.testing.assert_allclose(*diagonal.get_data())
    assert len(plot.answers(Fake(cmp.dataset.drop_vars("logprob_diff"))).axes) == 1


def test_mass_outside_is_sorted_by_tuned(cmp):
    (ax,) = drawn(plot.mass_outside(cmp)).axes
    tuned = cmp.dataset["mass_outside"].sel(model="tuned").values
    np.testing.assert_allclose(line(ax, "tuned"), np.sort(tuned)[::-1])
    np.testing.assert_allclose(line(ax, "base"), 0)


def test_neurons_are_named_by_layer_and_index(cmp):
    left, right = drawn(plot.neurons(cmp)).axes
    assert [t.get_text() for t in left.get_yticklabels()][:3] == ["L0.0", "L1.97", "L2.194"]
    delta = mean_change(cmp.dataset, "neuron_attribution", "neuron")
    np.testing.assert_allclose([b.get_width() for b in right.containers[0]], delta)
    largest = max(np.abs(mean_change(c, "neuron_attribution", "neuron")).max() for c in cmp.controls)
    ends = sorted(a.get_xdata()[0] for a in right.lines if a.get_color() == style.GREY)
    np.testing.assert_allclose(ends, [-largest, largest])


def test_attention_entropy_is_base_and_its_change(cmp):
    figure = drawn(plot.attention_entropy(cmp))
    left, right = (m for ax in figure.axes[:2] for m in ax.findobj(QuadMesh))
    np.testing.assert_allclose(left.get_array(), cmp.dataset["pattern_entropy"].sel(model="base").mean("prompt"))
    np.testing.assert_allclose(right.get_array(), mean_change(cmp.dataset, "pattern_entropy", "layer", "head"))
    assert left.norm.vmin == 0 and right.norm.vmin == -right.norm.vmax


def test_attention_change_draws_every_stack_of_an_encoder_decoder(cmp):
    data = cmp.dataset.copy()
    encoder = data["pattern_js"].rename(layer="encoder_layer").isel(encoder_layer=slice(2)) * 2
    data = data.assign(encoder_pattern_js=encoder, cross_pattern_js=data["pattern_js"] * 3)
    figure = drawn(plot.attention_change(Fake(data)))
    titles = [ax.get_title(loc="left") for ax in figure.axes[:4]]
    both = plot.attention_entropy(Fake(data.assign(cross_pattern_entropy=data["pattern_entropy"] * 2)))
    third = both.axes[2].findobj(QuadMesh)[0]
    np.testing.assert_allclose(third.get_array(), 2 * data["pattern_entropy"].sel(model="base").mean("prompt"))
    assert [t.split(",")[0] for t in titles] == ["Decoder", "Decoder", "Decoder to encoder", "Encoder"]
    (mesh,) = figure.axes[3].findobj(QuadMesh)
    np.testing.assert_allclose(mesh.get_array(), encoder.mean("prompt"))


def test_attention_classes_are_shares_of_the_changed_heads(cmp):
    data = cmp.dataset
    left, right = drawn(plot.attention_classes(cmp)).axes
    order = ["bos", "antecedent", "punctuation", "content"]
    shares = data["attention_to"].mean("prompt").sel(token_class=order)
    heads = list(zip(data["changed_layer"].values, data["changed_head_index"].values, strict=True))
    bars = [bar for bars in left.containers for bar in bars]
    expected = [shares.sel(model=m).values[a, b] for a, b in heads for m in ("base", "tuned")]
    np.testing.assert_allclose([b.get_width() for b in bars], np.concatenate(expected))
    np.testing.assert_allclose([b.get_x() + b.get_width() for b in bars[3::4]], 1)
    moved = np.array([[b.get_width() for b in bars] for bars in right.containers[:4]]).T
    np.testing.assert_allclose(moved, [np.diff(shares.values[:, a, b], axis=0)[0] for a, b in heads])
    plain = data.drop_vars(["changed_layer", "changed_head_index"])
    assert len(plot.attention_classes(Fake(plain)).axes[0].get_yticks()) == 10


def test_ov_circuits_is_a_table_of_tokens(cmp):
    text = words(drawn(plot.ov_circuits(cmp)))
    part = cmp.dataset.isel(changed_head=0, ov_direction=0).sel(model="tuned")
    assert "L0H0" in text and style.number(float(part["ov_singular_value"])) in text
    for side in ("reads", "writes"):
        assert drawable(str(part[f"ov_{side}"].values[0]), 14) in text
    two = drawn(plot.ov_circuits(cmp, directions=2, width=style.COLUMN))
    assert words(two).count("base") == 10 and words(two).count("→") == 20


def test_singular_directions_are_of_the_matrices_that_changed_most(cmp):
    figure = drawn(plot.singular_directions(cmp, rows=3))
    data = cmp.dataset
    matrices = data.isel(param=np.flatnonzero(np.isfinite(data["effective_rank"])))
    top = matrices.isel(param=np.argsort(-matrices["param_change"].values)[:3])
    np.testing.assert_allclose([b.get_width() for b in figure.axes[0].containers[0]], top["effective_rank"])
    for ax, name in zip(figure.axes[1:3], ("singular_change", "singular_overlap"), strict=True):
        (mesh,) = ax.findobj(QuadMesh)
        np.testing.assert_allclose(mesh.get_array(), top[name])
    assert short_name("transformer.h.3.mlp.c_fc.weight") == "3.mlp.c_fc"
    assert short_name("model.embed_tokens.weight") == "model.embed_tokens"


def test_heads_draws_cross_attention_apart(cmp):
    data = cmp.dataset
    cross = {f"cross_{n}": data[n] * 2 for n in data.data_vars if str(n).startswith("head_attribution")}
    figure = drawn(plot.heads(Fake(data.assign(cross))))
    meshes = [m for ax in figure.axes[:6] for m in ax.findobj(QuadMesh)]
    expected = mean_change(data, "head_attribution", "layer", "head")
    np.testing.assert_allclose(meshes[0].get_array(), expected)
    np.testing.assert_allclose(meshes[3].get_array(), 2 * expected)
    assert "Largest, to the encoder:" in words(figure)
