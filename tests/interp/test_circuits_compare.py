"""Two models' circuits side by side: itself against itself, null runs, and what became of each component."""

from __future__ import annotations

import numpy as np
import pytest

from interp import circuits
from interp.circuits.components import component_changes
from interp.circuits.scores import EdgeScores
from interp.models import Policy
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


OPTIONS = {"sizes": [40, 150], "steps": 1, "random": 1, "draws": 4}


def test_a_model_and_itself_give_no_evidence_of_a_change(base, pairs) -> None:
    found = circuits.compare(base, base, pairs, **OPTIONS)
    data = found.dataset
    assert (data["edge_overlap"] == 1).all() and (data["node_overlap"] == 1).all()
    np.testing.assert_array_equal(data["faithfulness"].sel(circuit="base"), data["faithfulness"].sel(circuit="tuned"))
    assert (data["change"] == 0).all() and (data["wiring"] == 0).all()
    assert set(data["state"].values) <= {"no evidence of a change", "in neither circuit"}
    assert found.verdict.startswith(("no evidence of a change: base's", "no circuit found"))


def test_null_runs_and_replicates_are_put_beside(base, pairs, tokenizer) -> None:
    tuned, control = tiny_gpt2(seed=5), tiny_gpt2(seed=6)
    more = {"sizes": [40], "steps": 1, "random": 1, "draws": 4, "tokenizer": tokenizer}
    found = circuits.compare(base, tuned, pairs, control=control, replicates=[tuned], **more)
    data = found.dataset
    assert list(data["run"].values) == ["control 0", "replicate 0"]
    replicate = data.sel(run="replicate 0")
    np.testing.assert_allclose(replicate["run_edge_overlap"], data["edge_overlap"])
    shares = data["faithfulness"].sel(model="tuned")
    np.testing.assert_allclose(replicate["run_faithfulness"], shares.sel(circuit="base"))
    np.testing.assert_allclose(replicate["run_own_faithfulness"], shares.sel(circuit="tuned"))
    assert float(replicate["run_effect_change"]) == pytest.approx(float(data["effect_change"][0]))
    assert data.attrs["controls"] == 1


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
        EdgeScores(scores.dataset.assign(score=(("prompt", "edge"), row * noise, scores.dataset["score"].attrs)), graph)
        for row in (strength, after)
    )
    chosen = [
        circuits.Circuit(graph, tuple(np.flatnonzero(np.abs(row) > 0.5).tolist()))
        for row in (strength, np.where(np.arange(graph.size) == index["L2.mlp", "logits"], 1, after))
    ]
    both = (chosen[0], chosen[1])
    states = component_changes(before, later, both, [], seed=0)["state"]
    expected = {"L0H0": "strengthened", "L0H1": "gone", "L0H2": "new", "L1H0": "re-wired", "L1H3": "in neither circuit"}
    assert {name: states.sel(component=name).item() for name in expected} == expected
    beside = component_changes(before, later, both, [later], seed=0)["state"]  # a null run that changed as much
    assert set(beside.values) == {"no evidence of a change", "in neither circuit"}


def test_the_summary_is_a_row_a_size(base, pairs, tokenizer) -> None:
    found = circuits.compare(base, tiny_gpt2(seed=5), pairs, tokenizer=tokenizer, **OPTIONS)
    table = found.summary()
    assert list(table.index) == [40, 150]
    assert table.loc[150, "edge_overlap"] == float(found.dataset["edge_overlap"].sel(size=150))
    assert found.size in (40, 150)
    assert str(found).startswith(found.verdict)
    assert found.verdict.count("\n") == 0
