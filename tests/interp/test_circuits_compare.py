"""Two models' circuits side by side: itself against itself, null runs, and what became of each component."""

from __future__ import annotations

import numpy as np
import pytest

from interp import circuits
from interp.circuits.scores import EdgeScores
from interp.circuits.verdict import component_changes
from interp.errors import MeasureError
from interp.models import Policy, load_pair
from interp.prompts import Prompts
from tests.conftest import tiny_gpt2
from tests.interp.test_circuits import ANSWERS, OTHER, WIDE


@pytest.fixture(scope="module")
def base(tokenizer) -> Policy:
    return Policy.load(tiny_gpt2(), tokenizer=tokenizer)


@pytest.fixture(scope="module")
def pairs() -> Prompts:
    return Prompts(WIDE, corrupted=OTHER, answers=ANSWERS)


@pytest.fixture(scope="module")
def scores(base, pairs) -> EdgeScores:
    return circuits.edge_attribution(base, pairs, steps=1)


SELECTION = circuits.Selection(steps=1, splits=4)
OPTIONS = {"sizes": [40, 150], "selection": SELECTION, "draws": 1}


def test_a_model_and_itself_give_no_evidence_of_a_change(base, pairs) -> None:
    found = circuits.compare(base, base, pairs, **OPTIONS)
    data = found.dataset
    assert (data["edge_overlap"] == 1).all() and (data["node_overlap"] == 1).all()
    np.testing.assert_array_equal(data["faithfulness"].sel(circuit="base"), data["faithfulness"].sel(circuit="tuned"))
    assert (data["change"] == 0).all() and (data["wiring"] == 0).all()
    assert set(data["state"].values) <= {"no evidence of a change", "in neither circuit"}
    assert found.verdict.startswith(("no evidence of a change: base's", "no circuit found"))


def test_null_runs_and_replicates_are_put_beside(base, pairs, tokenizer) -> None:
    tuned, control = (Policy.load(tiny_gpt2(seed=seed), tokenizer=tokenizer) for seed in (5, 6))
    seen = []
    found = circuits.compare(
        base, tuned, pairs, sizes=[40], selection=SELECTION, controls=[control], replicates=[tuned], draws=1,
        progress=lambda *told: seen.append(told),
    )  # fmt: skip
    assert seen[3] == ("scoring edges", 4, 4) and seen[-1] == ("running circuits", 4, 4)
    data = found.dataset
    assert list(data["run"].values) == ["control 0", "replicate 0"]
    replicate = data.sel(run="replicate 0")
    np.testing.assert_allclose(replicate["run_edge_overlap"], data["edge_overlap"])
    shares = data["faithfulness"].sel(model="tuned")
    np.testing.assert_allclose(replicate["run_faithfulness"], shares.sel(circuit="base"))
    np.testing.assert_allclose(replicate["run_own_faithfulness"], shares.sel(circuit="tuned"))
    assert float(replicate["run_effect_change"]) == pytest.approx(float(data["effect_change"]))
    assert "in 1 control run by up to" in found.verdict


def test_states_by_hand(scores) -> None:
    """Scores made by hand: one node's edges doubled, one node's silenced, one node's turned to other edges."""
    graph = scores.graph
    rng = np.random.default_rng(0)
    noise = 1 + 0.05 * rng.normal(size=scores.values.shape)
    strength = np.zeros(graph.size)
    index = {names: edge for edge, names in enumerate(zip(*graph.labels, strict=True))}
    for names in (("input", "L0H0.v"), ("L0H0", "logits"), ("input", "L0H1.v"), ("L0H1", "logits"),
                  ("input", "L1H0.q"), ("L1H0", "logits"), ("input", "logits"), ("input", "L0H2.v")):  # fmt: skip
        strength[index[names]] = 1.0
    strength[index["L0H2", "logits"]] = 0.2
    after = strength.copy()
    after[index["L0H0", "logits"]] = after[index["input", "L0H0.v"]] = 2.0
    after[index["L0H2", "logits"]] = 1.0
    after[index["L0H1", "logits"]] = 0.1
    after[index["L1H0", "logits"]], after[index["L1H0", "L2.mlp"]], after[index["L2.mlp", "logits"]] = 0.0, 1.0, 1e-3
    before, later = (
        EdgeScores(scores.dataset.assign(score=(("prompt", "edge"), row * noise, scores.dataset["score"].attrs)))
        for row in (strength, after)
    )
    chosen = [
        circuits.Circuit.of(graph, np.flatnonzero(np.abs(row) > 0.5))
        for row in (strength, np.where(np.arange(graph.size) == index["L2.mlp", "logits"], 1, after))
    ]
    both = (chosen[0], chosen[1])
    states = component_changes(before, later, both, [], seed=0)["state"]
    expected = {"L0H0": "strengthened", "L0H1": "gone", "L0H2": "new", "L1H0": "re-wired", "L1H3": "in neither circuit"}
    assert {name: states.sel(component=name).item() for name in expected} == expected
    beside = component_changes(before, later, both, [later], seed=0)["state"]  # a null run that changed as much
    assert set(beside.values) == {"no evidence of a change", "in neither circuit"}


@pytest.fixture(scope="module")
def compared(base, pairs, tokenizer) -> circuits.CircuitComparison:
    return circuits.compare(base, Policy.load(tiny_gpt2(seed=5), tokenizer=tokenizer), pairs, **OPTIONS)


def test_the_summary_is_a_row_a_size(compared) -> None:
    table = compared.summary().set_index("edges")
    assert list(table.index) == [40, 150]
    assert table.loc[150, "edge_overlap"] == float(compared.dataset["edge_overlap"].sel(size=150))
    shares = compared.dataset.sel(circuit="base", model="tuned", size=40)
    assert table.loc[40, "base_in_tuned"] == float(shares["faithfulness"])
    assert table.loc[40, "base_in_tuned_low"] == float(shares["faithfulness_low"])
    assert compared.size in (40, 150)
    assert compared.verdict.count("\n") == 0
    changes = compared.components()
    assert (changes["change"].abs().diff().dropna() <= 0).all() and "in neither circuit" not in set(changes["state"])


def test_scores_and_circuits_are_rebuilt_from_the_arrays(compared, base, pairs) -> None:
    ours = circuits.edge_attribution(base, pairs, steps=1)
    np.testing.assert_array_equal(compared.scores["base"].values, ours.values)
    assert compared.scores["base"].dataset["group"].equals(ours.dataset["group"])
    assert compared.scores["base"].dataset.attrs["model"] == ours.dataset.attrs["model"]
    for size in (40, 150):
        assert compared.circuit("base", size).edges == circuits.choose(ours.graph, ours.mean, size).edges
    assert compared.circuits["tuned"].size == compared.size
    with pytest.raises(MeasureError, match="circuits of 41 edges were not compared; there are those of 40, 150"):
        compared.circuit("base", 41)


def test_old_parameters_say_the_new_ones(base, pairs) -> None:
    for old, new in (("control", "controls="), ("random", "draws="), ("steps", "Selection"), ("dtype", "load first")):
        with pytest.raises(TypeError, match=f"no parameter {old!r} any more; .*{new}"):
            circuits.compare(base, base, pairs, **{old: None})


def test_a_pair_brings_its_own_models_and_controls(base, pairs, tokenizer) -> None:
    tuned, control = (Policy.load(tiny_gpt2(seed=seed), tokenizer=tokenizer) for seed in (5, 6))
    pair = load_pair(base=base, tuned=tuned, controls=[control])
    found = circuits.compare(pair, pairs, **OPTIONS)
    assert found.dataset["run"].values.tolist() == ["control 0"]
    apart = circuits.compare(base, tuned, pairs, controls=[control], **OPTIONS)
    np.testing.assert_array_equal(found["faithfulness"].values, apart["faithfulness"].values)


def test_one_control_run_goes_into_a_list(base, pairs, as_a_user) -> None:
    with pytest.raises(MeasureError, match="controls is a list of models, not a Policy; put it in brackets"):
        circuits.compare(base, base, pairs, controls=base)
