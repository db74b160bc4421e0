"""Every result of circuits: prints few lines, is saved and read again with all that is rebuilt from its arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from interp import circuits
from interp.circuits.graph import Graph
from interp.families import Parts
from interp.models import Policy
from interp.prompts import Prompts
from interp.result import Result, load_result
from tests.conftest import tiny_gpt2
from tests.interp.architectures import build
from tests.interp.test_circuits import ANSWERS, OTHER, WIDE

FIGURES = {
    "circuit": ["graph"],
    "circuit_comparison": ["circuit", "comparison"],
    "circuit_stability": [],
    "circuit_values": [],
    "edge_scores": ["graph"],
    "faithfulness": ["faithfulness"],
    "head_changes": ["parts"],
    "path_patching": ["paths"],
}


@pytest.fixture(scope="module")
def results(tokenizer) -> dict[str, Result]:
    base, tuned = (Policy.load(tiny_gpt2(seed=seed), tokenizer=tokenizer) for seed in (0, 5))
    pairs = Prompts(WIDE, corrupted=OTHER, answers=ANSWERS)
    scores = circuits.edge_attribution(base, pairs, steps=1)
    chosen = circuits.choose(scores.graph, scores.mean, 60)
    selection = circuits.Selection(steps=1, splits=3)
    made = [
        scores,
        chosen,
        circuits.circuit_values(base, pairs, [chosen]),
        circuits.faithfulness_curve(base, pairs, scores, sizes=[20, 100], draws=1),
        circuits.stability(scores, 30, draws=3),
        circuits.compare(base, tuned, pairs, sizes=[20, 100], selection=selection, controls=[tuned], draws=1),
        circuits.head_changes(base, tuned, Prompts(WIDE), count=3, metric="kl"),
        circuits.path_patching(base, tuned, Prompts(WIDE), senders=["L0H1", "L1.mlp"], metric="kl"),
    ]
    return {result.kind: result for result in made}


@pytest.mark.parametrize("kind", FIGURES)
def test_prints_and_draws(results, kind) -> None:
    result = results[kind]
    lines = repr(result).split("\n")
    assert len(lines) <= 15 and max(map(len, lines)) <= 80, repr(result)
    assert not any(line.endswith(" ...") for line in lines[:3]), "the headline fits"
    assert dir(result.plot) == FIGURES[kind]
    for name in FIGURES[kind]:
        assert isinstance(getattr(result.plot, name)(), Figure)
    assert result.headline() in " ".join(result._repr_html_().replace("&#39;", "'").split())


@pytest.mark.parametrize("kind", FIGURES)
def test_is_read_again_as_it_was(results, kind, tmp_path: Path) -> None:
    result = results[kind]
    result.save(tmp_path / "out")
    back = load_result(tmp_path / "out")
    assert type(back) is type(result)
    xr.testing.assert_identical(back.dataset, result.dataset)
    assert repr(back) == repr(result)
    result.to_parquet(tmp_path / "tables")
    rebuilt = {"edge_scores": "graph", "circuit": "edges", "circuit_comparison": "verdict"}
    if kind in rebuilt:
        assert getattr(back, rebuilt[kind]) == getattr(result, rebuilt[kind])
    if kind == "faithfulness":
        assert [circuit.edges for circuit in back.circuits] == [circuit.edges for circuit in result.circuits]
    if kind == "circuit_comparison":
        for model in ("base", "tuned"):
            assert back.circuits[model].edges == result.circuits[model].edges
            np.testing.assert_array_equal(back.scores[model].mean, result.scores[model].mean)
        pd_old, pd_new = result.components(), back.components()
        assert pd_old.equals(pd_new)


def test_a_comparison_carries_the_others(results, tmp_path: Path) -> None:
    whole = results["circuit_comparison"].add(results["head_changes"]).add(results["path_patching"])
    whole.save(tmp_path / "out")
    assert list(load_result(tmp_path / "out").added) == ["head_changes", "path_patching"]


def test_an_edge_is_named_in_tables(results) -> None:
    scores = results["edge_scores"]
    first = scores.summary().iloc[0]
    edge = int(np.abs(scores.mean).argmax())
    sources, destinations = scores.graph.labels
    assert (first["source"], first["destination"]) == (sources[edge], destinations[edge])
    assert first["score"] == scores.mean[edge]
    chosen = results["circuit"].summary()
    assert len(chosen) == 60 and chosen["on_path"].sum() == results["circuit"].connected.size
    values = results["circuit_values"].summary().iloc[0]
    assert (values["edges"], values["faithfulness"]) == (60, results["circuit_values"].faithfulness().value[0])


@pytest.mark.parametrize(
    "name", ["GPT2LMHeadModel", "GPTNeoXForCausalLM", "LlamaForCausalLM", "T5ForConditionalGeneration"]
)
def test_a_graph_is_built_again_without_its_model(name) -> None:
    graph = Graph.of(Parts(build(name)))
    data = graph.described(xr.Dataset({"strength": ("edge", np.zeros(graph.size))}))
    again = Graph.from_dataset(data)
    assert again.same_as(graph) and again.labels == graph.labels
    assert data["source"].values.tolist() == graph.labels[0]
    np.testing.assert_array_equal(again.edges, graph.edges)


def test_the_maps_show_their_numbers(results) -> None:
    for kind, name, table in (
        ("path_patching", "paths", results["path_patching"]["recovery"].values),
        ("head_changes", "parts", results["head_changes"]["recovery"].values),
    ):
        figure = getattr(results[kind].plot, name)(width=12.0)
        figure.canvas.draw()
        shown = [text.get_text() for text in figure.axes[0].texts]
        assert shown == [f"{value:.2g}" for value in table[np.isfinite(table)]]
