"""The benchmark itself: its scores, its plants, and that it goes on where it was stopped."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from analyses.planted import study as planted
from analyses.planted.bases import LENGTH, PROMPTS, open_base
from analyses.planted.edits import Component, own_weights, put, typical_strength
from analyses.planted.figure import PANELS, figure
from analyses.planted.kinds import KINDS, Nursery
from analyses.planted.lessons import log_probs_after, make_lesson, shift, taught_share
from analyses.planted.methods import METHODS, Case
from analyses.planted.results import NO_DRIFT, PlantedBenchmark, auroc, recall_at_k
from interp.divergences import kl_of_log_probs
from interp.errors import ConfigError, LoadError, MeasureError


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    found = open_base("demo", data=None, cache=tmp_path_factory.mktemp("cache"))
    assert found.ids.shape == (PROMPTS, LENGTH) and not {*map(tuple, found.ids.tolist())} & {
        *map(tuple, found.lesson_ids.tolist())
    }
    return found


@pytest.fixture(scope="module")
def bed(demo):
    return planted._bed(demo, planted.QUICK)


def test_auroc_equals_scikit_learns():
    rng = np.random.default_rng(0)
    for count in (5, 40):
        scores = rng.integers(0, 6, count).astype(float)
        found = np.arange(count) < 3
        assert auroc(scores, found) == pytest.approx(roc_auc_score(found, scores), abs=1e-12)
    assert auroc(np.array([3.0, 2.0, 1.0]), np.array([True, False, False])) == 1
    assert auroc(np.array([math.nan, math.inf, 1.0]), np.array([True, False, False])) == 0


def test_recall_shares_what_is_equal():
    yes = np.array([True, True, False, False])
    assert recall_at_k(np.array([4.0, 1, 3, 2]), yes) == 0.5
    assert recall_at_k(np.array([4.0, 3, 2, 1]), yes) == 1
    assert recall_at_k(np.zeros(4), yes) == 0.5  # nothing is said, and two of four are drawn
    assert recall_at_k(np.array([0.0, 0, 9, 0]), yes) == pytest.approx(1 / 3)  # one place left for three


def test_a_lesson_is_as_far_as_it_is_said_to_be(demo):
    model = demo.policy.model
    lesson = make_lesson(model, demo.lesson_ids, size=0.3, seed=5)
    assert float(kl_of_log_probs(lesson.taught, lesson.base).mean()) == pytest.approx(0.3, rel=1e-3)
    moved = (lesson.taught - lesson.base).argmax(-1)
    assert (moved == lesson.word).all()
    with torch.no_grad():
        plain = model(input_ids=demo.lesson_ids).logits[:, -1].log_softmax(-1)
    torch.testing.assert_close(log_probs_after(model, demo.lesson_ids).detach(), plain, atol=1e-5, rtol=0)
    assert shift(model, demo.ids, {}) == 0 and taught_share(model, lesson, {}) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_plant_changes_what_it_says_and_nothing_else(demo, kind):
    model = demo.policy.model
    before = [p.detach().clone() for p in model.parameters()]
    own = own_weights(model)
    plant = KINDS[kind](Nursery(demo, own, 2, 3))
    assert plant.kind == kind and plant.planted and all(component in own for component in plant.planted)
    assert shift(model, demo.ids, plant.delta) > 0
    allowed: dict[str, torch.Tensor] = {}
    for component in plant.planted:
        for name, mask in own[component].items():
            allowed[name] = allowed.get(name, torch.zeros_like(mask)) | mask
    for name, change in plant.delta.items():
        assert not bool(change[~allowed[name]].any()), name
    for component in plant.planted:
        assert typical_strength(model, plant.delta, own, [component]) > 0
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())
    again = KINDS[kind](Nursery(demo, own, 2, 3))
    assert all(torch.equal(plant.delta[name], again.delta[name]) for name in plant.delta)


@pytest.mark.slow
def test_of_a_pair_either_suffices_or_neither_does(demo):
    own = own_weights(demo.policy.model)
    redundant, conjunctive = (KINDS[f"{kind} pair"](Nursery(demo, own, 60, 3)) for kind in ("redundant", "conjunctive"))
    assert redundant.notes["taught"] > 0.5 and conjunctive.notes["taught"] > 0.5
    assert min(redundant.notes[name] for name in ("first", "second")) > 0.7 * redundant.notes["taught"]
    assert max(conjunctive.notes[name] for name in ("first", "second")) < 0.6 * conjunctive.notes["taught"]


def test_the_drift_is_as_strong_as_the_ratio_says(demo, bed):
    own = bed.own
    plant = KINDS["OV scaled"](Nursery(demo, own, 2, 1))
    heads = [component for component in own if component.head >= 0]
    size = typical_strength(demo.policy.model, plant.delta, own, plant.planted)
    for ratio in (0.5, 4.0):
        ground = planted.under(bed, plant, bed.drifts[0], size / ratio)
        assert typical_strength(demo.policy.model, ground, own, heads) == pytest.approx(size / ratio, rel=1e-6)
        assert set(ground) == {name for name, _ in demo.policy.model.named_parameters()}
    assert planted.under(bed, plant, bed.drifts[0], 0.0) == {}


def test_without_a_change_no_method_says_anything(demo, bed):
    put(demo.policy.model, bed.tuned.model, {})
    found = {name: scores for method in METHODS.values() for name, scores in method(Case(*bed_pair(bed))).items()}
    for row, scores in found.items():
        assert scores.shape == (20,) and np.abs(scores).max() <= 1e-9, row
    assert set(found) == {name for methods in PANELS.values() for name in methods}  # each has its line in the figure


def bed_pair(bed):
    return bed.base.policy, bed.tuned, bed.base.prompts


def test_a_clean_plant_is_found(demo, bed):
    """A large change of one MLP, and no drift: what patching and weights are for."""
    put(demo.policy.model, bed.tuned.model, {})
    with torch.no_grad():
        bed.tuned.parts.W_down(1)[0].mul_(1.5)
    case = Case(*bed_pair(bed))
    yes = np.array([component == Component(1) for component in case.candidates])
    wanted = ("weight change", "patching, tuned into base", "patching, base into tuned")
    for name in (*wanted, "attribution patching, tuned into base"):
        assert auroc(METHODS[name](case)[name], yes) == 1, name


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_stopped(tmp_path, capsys):
    options = {"bases": ["demo"], "kinds": ["head tuned"], "data": None, "told": lambda _: None}
    first = planted.run(tmp_path, planted.QUICK, plants=1, **options)
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "plants").iterdir()}
    assert len(times) == 1 == first.dataset.sizes["plant"]
    told: list[str] = []
    whole = planted.run(tmp_path, planted.QUICK, plants=2, **{**options, "told": told.append})
    assert len(told) == 1 and whole.dataset.sizes["plant"] == 2
    assert all((tmp_path / "plants" / name).stat().st_mtime_ns == when for name, when in times.items())
    other = tmp_path / "again"
    same = planted.run(other, planted.QUICK, plants=1, **options)
    for name in ("auroc", "recall", "drift_kl"):
        np.testing.assert_array_equal(same.dataset[name], first.dataset[name])
    with pytest.raises(ConfigError, match="another seed"):
        planted.run(tmp_path, dataclasses.replace(planted.QUICK, seed=1), plants=1, **options)
    planted.main(["--out", str(tmp_path), "--tables"])
    assert "auroc by plant-to-drift ratio" in capsys.readouterr().out


def test_mistakes_are_one_sentence(tmp_path, capsys):
    with pytest.raises(ConfigError, match="no base 'x'"):
        planted.run(tmp_path, planted.QUICK, bases=["x"])
    with pytest.raises(ConfigError, match="no kind 'x'"):
        planted.run(tmp_path, planted.QUICK, kinds=["x"])
    with pytest.raises(LoadError, match="set INTERP_DATA"):
        planted.run(tmp_path, planted.QUICK, bases=["stories3M"], data=tmp_path / "none")
    with pytest.raises(MeasureError, match="holds no plants"):
        planted.load(tmp_path / "none")
    with pytest.raises(SystemExit):
        planted.main(["--out", str(tmp_path / "none"), "--tables"])
    assert "holds no plants" in capsys.readouterr().err


def rows(kls: list[float]) -> pd.DataFrame:
    """A made-up result whose means are known: method a finds everything, b nothing."""
    found = [
        {
            "plant": f"demo {kind} {i}", "base": "demo", "kind": kind, "planted": "L0H0", "strength": 0.5, "kl": kl,
            "taught": math.nan, "first": math.nan, "second": math.nan, "ratio": ratio, "drift_kl": 0.1,
            "forward": 0.5, "method": method, "auroc": value, "recall": value, "seconds": 2.0,
        }
        for i, kl in enumerate(kls)
        for kind in ("OV scaled", "low rank")
        for ratio in (1.0, NO_DRIFT)
        for method, value in (("weight change", 1.0), ("EAP", i / (len(kls) - 1)))
    ]  # fmt: skip
    return pd.DataFrame(found)


def test_tables_and_figure_say_what_was_found():
    result = PlantedBenchmark.of(rows([0.5] * 8 + [0.001]))
    assert result.behaving().dataset.sizes["plant"] == 16 and result.behaving(False).dataset.sizes["plant"] == 2
    assert set(result.of_kinds(["low rank"]).dataset["kind"].values) == {"low rank"}
    table = result.table()
    assert list(table.index) == ["weight change", "EAP"] and list(table.columns) == ["1", "no drift", "mean", "cost"]
    assert table.loc["weight change", "1"] == "1.00 [1.00, 1.00]" and table.loc["EAP", "cost"] == "4.0"
    means = result.means()
    assert float(means["mean"].sel({"method": "EAP", "ratio": 1.0})) == pytest.approx(0.5)
    low, high = (float(means[name].sel({"method": "EAP", "ratio": 1.0})) for name in ("low", "high"))
    assert 0.3 < low < 0.5 < high < 0.7
    drawn = figure(means)
    lines = {line.get_label(): line for ax in drawn.axes for line in ax.lines if line.get_marker() not in ("None", "")}
    assert set(lines) == {"weight change", "EAP"} and lines["EAP"].get_ydata().tolist() == pytest.approx([0.5, 0.5])
    assert result.by_kind().loc["weight change", "low rank"] == 1
