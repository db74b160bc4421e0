"""Circuits: corrupted prompts, the graph, scores, faithfulness, stability, and two models side by side."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp import circuits
from interp.circuits.faithfulness import folds
from interp.circuits.graph import Graph
from interp.circuits.passes import circuit_pass, plain_pass
from interp.circuits.scores import EdgeScores
from interp.circuits.selection import choose, jaccard, random_circuits
from interp.circuits.verdict import node_effects
from interp.errors import MeasureError, PromptError
from interp.families import Parts
from interp.models import Policy
from interp.prompts import Prompts
from tests.conftest import tiny_gpt2, tiny_llama
from tests.interp.architectures import build

CLEAN = ["this movie was really", "the plot was very", "a great film and the plot was", "this film was fun and"]
CORRUPT = ["this plot was really", "the film was very", "a boring film and the plot was", "this movie was fun and"]
WIDE = [f"{a} {b} was {c}" for a in ("this", "the", "a") for b in ("movie", "film", "plot") for c in ("very", "really")]
OTHER = [text.replace("movie", "acting").replace("film", "acting").replace("plot", "acting") for text in WIDE]
ANSWERS = (" bad", " good")


@pytest.fixture(scope="module")
def policies(tokenizer) -> dict[str, Policy]:
    models = {"gpt2": tiny_gpt2(), "llama": tiny_llama()}
    return {name: Policy.load(model, tokenizer=tokenizer) for name, model in models.items()}


@pytest.fixture(scope="module")
def pairs() -> Prompts:
    return Prompts(WIDE, corrupted=OTHER, answers=ANSWERS)


@pytest.fixture(scope="module")
def scores(policies, pairs) -> EdgeScores:
    return circuits.edge_attribution(policies["gpt2"], pairs, steps=3)


# Prompts


def test_corrupted_prompts_are_tokenised_beside_theirs(tokenizer) -> None:
    prompts = Prompts(CLEAN, corrupted=CORRUPT, answers=ANSWERS)
    assert prompts.corrupt.texts == tuple(CORRUPT)
    assert prompts.corrupt.answers == prompts.answers
    assert prompts.corrupt.corrupted is None
    tokens = prompts.tokenize(tokenizer)
    assert tokens.corrupt is not None
    assert [len(row) for row in tokens.corrupt.prompt_ids] == [len(row) for row in tokens.prompt_ids]
    assert tokens.corrupt.prompt_ids == Prompts(CORRUPT).tokenize(tokenizer).prompt_ids


def test_a_corrupted_prompt_of_another_length_is_named_with_both_counts(tokenizer) -> None:
    prompts = Prompts(CLEAN[:2], corrupted=[CORRUPT[0], "the plot was very very"])
    with pytest.raises(PromptError, match=r"prompt 1 has 5 tokens and its corrupted counterpart 6"):
        prompts.tokenize(tokenizer)


def test_corrupted_prompts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(PromptError, match="2 prompts but 1 corrupted"):
        Prompts(CLEAN[:2], corrupted=CORRUPT[:1])
    with pytest.raises(PromptError, match=r"corrupted prompt 0 is of another kind \(ids\)"):
        Prompts(CLEAN[:1], corrupted=[[1, 2]])
    with pytest.raises(PromptError, match="no corrupted counterparts"):
        Prompts(CLEAN).corrupt  # noqa: B018


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_prompt_files_have_a_column_of_corrupted_prompts(tmp_path, ending) -> None:
    file = tmp_path / f"prompts.{ending}"
    rows = {
        "csv": "text,corrupted\nthis movie,this plot\na film,a plot\n",
        "jsonl": '{"text": "this movie", "corrupted": "this plot"}\n{"text": "a film", "corrupted": "a plot"}\n',
    }
    file.write_text(rows[ending], encoding="utf-8")
    assert Prompts.from_file(file).corrupted == ("this plot", "a plot")


# Graph


def test_the_graph_of_a_small_model_by_hand() -> None:
    graph = Graph.of(Parts(tiny_llama(num_hidden_layers=1)))
    assert graph.nodes == ("input", "L0H0", "L0H1", "L0H2", "L0H3", "L0.mlp")
    assert graph.destinations == (
        "L0H0.q", "L0H1.q", "L0H2.q", "L0H3.q", "L0H0-1.k", "L0H2-3.k", "L0H0-1.v", "L0H2-3.v", "L0.mlp", "logits",
    )  # fmt: skip
    # input to 8 inputs of heads; input and 4 heads to the MLP; all 6 nodes to the logits
    assert graph.size == 8 + 5 + 6
    assert graph.feeds[4] == (1, 2)
    assert graph.feeds[-1] == ()


def test_parallel_blocks_have_no_edge_from_a_head_to_the_mlp_beside_it() -> None:
    graph = Graph.of(Parts(build("GPTNeoXForCausalLM")))
    edges = set(zip(*graph.labels, strict=True))
    assert ("L1H0", "L1.mlp") not in edges
    assert ("L1H0", "L2.mlp") in edges
    assert ("L1H0", "L1.mlp") in set(zip(*Graph.of(Parts(build("GPT2LMHeadModel"))).labels, strict=True))


def test_an_encoder_decoder_reads_its_encoder_through_cross_attention_alone() -> None:
    graph = Graph.of(Parts(build("T5ForConditionalGeneration")))
    edges = set(zip(*graph.labels, strict=True))
    assert ("encoder.L2.mlp", "cross.L0H1.k") in edges
    assert ("encoder.L2.mlp", "cross.L0H1.q") not in edges
    assert ("L0H1", "cross.L0H0.q") in edges
    assert not any(source.startswith("encoder") and to == "logits" for source, to in edges)


@pytest.mark.parametrize("name", ["OPTForCausalLM, as OPT-350m", "BertForMaskedLM", "GPT2ForSequenceClassification"])
def test_models_without_such_a_graph_are_refused(name) -> None:
    with pytest.raises(MeasureError, match="circuits are for language models whose residual is a sum"):
        Graph.of(Parts(build(name)))


def test_edges_on_no_path_are_dropped() -> None:
    graph = Graph.of(Parts(tiny_gpt2(n_layer=2)))
    index = {names: edge for edge, names in enumerate(zip(*graph.labels, strict=True))}
    path = [index["input", "L0H0.v"], index["L0H0", "L1.mlp"], index["L1.mlp", "logits"]]
    dangling = [index["input", "L0H1.q"], index["L1H2", "logits"], index["L0H3", "L1H1.k"]]
    chosen = circuits.Circuit.of(graph, [*path, *dangling])
    assert chosen.connected.edges == tuple(sorted(path))
    assert chosen.nodes == ("input", "L0H0", "L1.mlp")
    # A head that gets its queries writes: a path does not need all three inputs.
    short = circuits.Circuit.of(graph, [index["input", "L0H1.q"], index["L0H1", "logits"]])
    assert short.connected.nodes == ("input", "L0H1")


# Scores


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_scores_of_the_inputs_edges_sum_to_the_change_of_the_metric(make, tokenizer) -> None:
    policy = Policy.load(make(initializer_range=0.15), tokenizer=tokenizer)  # smooth enough for few steps
    prompts = Prompts(CLEAN, corrupted=CORRUPT, answers=ANSWERS)
    few, many = (circuits.edge_attribution(policy, prompts, steps=n) for n in (1, 32))
    assert many.dataset.attrs["completeness"] < 5e-3
    assert many.dataset.attrs["completeness"] < few.dataset.attrs["completeness"]
    inputs = np.array([source == "input" for source in many.graph.labels[0]])
    change = many.dataset["corrupted"].values - many.dataset["clean"].values
    np.testing.assert_allclose(many.values[:, inputs].sum(1), change, atol=1e-2 * np.abs(change).max())


def test_scores_do_not_depend_on_padding_or_batches(policies) -> None:
    prompts = Prompts(CLEAN, corrupted=CORRUPT, answers=ANSWERS)
    together, alone = (circuits.edge_attribution(policies["llama"], prompts, batch_size=n) for n in (4, 1))
    np.testing.assert_allclose(together.values, alone.values, atol=1e-4)


def test_the_clean_metric_is_the_models_own(policies, scores, pairs, tokenizer) -> None:
    model = policies["gpt2"].model
    answer, other = (tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in ANSWERS)
    for name, texts in (("clean", WIDE), ("corrupted", OTHER)):
        with torch.no_grad():
            logits = model(torch.tensor([tokenizer(texts[0])["input_ids"]])).logits[0, -1]
        assert float(scores.dataset[name][0]) == pytest.approx(float(logits[answer] - logits[other]), abs=1e-4)


def test_kl_and_a_metric_of_ones_own(policies, scores, pairs, tokenizer) -> None:
    policy = policies["gpt2"]
    answer, other = (tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in ANSWERS)
    seen: list[int] = []

    def difference(logits, rows):
        seen.extend(rows.tolist())
        return logits[:, answer] - logits[:, other]

    mine = circuits.edge_attribution(policy, pairs, difference, steps=3, batch_size=7)
    np.testing.assert_allclose(mine.values, scores.values, atol=1e-4)
    assert set(seen) == set(range(len(pairs)))
    kl = circuits.edge_attribution(policy, pairs, "kl", steps=8)
    assert np.abs(kl.dataset["clean"].values).max() < 1e-5
    assert (kl.dataset["corrupted"].values > 0).all()
    assert kl.dataset.attrs["completeness"] < 0.1
    assert kl.dataset["score"].attrs["units"] == "nats"


def test_what_cannot_be_scored_is_refused(policies, pairs) -> None:
    policy = policies["gpt2"]
    with pytest.raises(MeasureError, match='derivative is 0 there and "eap" finds nothing'):
        circuits.edge_attribution(policy, pairs, "kl", method="eap")
    with pytest.raises(MeasureError, match="logit_diff needs answers"):
        circuits.edge_attribution(policy, Prompts(CLEAN, corrupted=CORRUPT), "logit_diff")
    with pytest.raises(MeasureError, match="metric is logit_diff, kl or a function"):
        circuits.edge_attribution(policy, pairs, "logprob")
    with pytest.raises(PromptError, match="no corrupted counterparts"):
        circuits.edge_attribution(policy, Prompts(CLEAN, answers=ANSWERS))
    with pytest.raises(PromptError, match="prompt 0 and its corrupted counterpart are the same tokens"):
        circuits.edge_attribution(policy, Prompts(CLEAN, corrupted=CLEAN, answers=ANSWERS))
    with pytest.raises(MeasureError, match="returns one number a row, here"):
        circuits.edge_attribution(policy, pairs, lambda logits, rows: logits)
    with pytest.raises(MeasureError, match="cannot be differentiated"):
        circuits.edge_attribution(policy, pairs, lambda logits, rows: logits.detach()[:, 0])


def test_the_model_is_given_back_as_it_was(pairs, tokenizer) -> None:
    model = tiny_gpt2(seed=3).train()
    first = next(model.parameters())
    first.requires_grad_(False)
    policy = Policy.load(model, tokenizer=tokenizer)
    model.train()

    def breaks(logits, rows):
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        circuits.edge_attribution(policy, pairs, breaks)
    circuits.edge_attribution(policy, pairs, steps=1)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [p.requires_grad for p in model.parameters()].count(False) == 1


def test_a_pass_by_edges_that_breaks_leaves_no_hook(policies, pairs, scores) -> None:
    policy = policies["gpt2"]
    (batch,) = pairs.tokenize(policy.tokenizer).batches(len(pairs))
    corrupted = plain_pass(policy.parts, scores.graph, batch)
    with pytest.raises((IndexError, RuntimeError)):
        circuit_pass(policy.parts, scores.graph, batch, corrupted, torch.ones(3, scores.graph.size))
    modules = list(policy.model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def test_pooled_scores_are_the_means_of_batches(policies, scores, pairs, monkeypatch) -> None:
    monkeypatch.setattr("interp.circuits.scores.MOST_SCORES", 1)
    pooled = circuits.edge_attribution(policies["gpt2"], pairs, steps=3, batch_size=5)
    assert pooled.weights.tolist() == [5, 5, 5, 3]
    np.testing.assert_allclose(pooled.mean, scores.mean, atol=1e-5)
    assert len(folds(pooled)) == 1
    assert len(folds(scores)) == 2


def test_a_nodes_effect_is_its_own_attribution(policies, pairs) -> None:
    """The sum of a node's edges is the difference of its output times the whole gradient there: checked for an MLP."""
    policy = policies["gpt2"]
    found = circuits.edge_attribution(policy, pairs, method="eap")
    node = found.graph.nodes.index("L1.mlp")
    module = policy.parts.inside(1, "mlp_down")
    tokens = pairs.tokenize(policy.tokenizer)
    assert tokens.corrupt is not None and tokens.answer_ids is not None
    kept: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda _, __, output: kept.append(output))
    logits = policy.model(torch.tensor([tokens.prompt_ids[0]])).logits[0, -1]
    (gradient,) = torch.autograd.grad(logits[tokens.answer_ids[0, 0]] - logits[tokens.answer_ids[0, 1]], kept[0])
    policy.model(torch.tensor([tokens.corrupt.prompt_ids[0]]))
    handle.remove()
    expected = float(((kept[1] - kept[0]).detach() * gradient).sum())
    assert node_effects(found)[0, node] == pytest.approx(expected, rel=1e-3, abs=1e-4)


# Choice, faithfulness, stability


def test_the_strongest_edges_and_the_greedy_ones(scores) -> None:
    graph, strength = scores.graph, scores.mean
    top = choose(graph, strength, 20)
    least = np.abs(strength[list(top.edges)]).min()
    assert (np.abs(np.delete(strength, list(top.edges))) <= least).all()
    greedy = choose(graph, strength, 20, by="greedy")
    leads_on = {graph.destinations.index("logits")}
    for _ in range(greedy.size):  # every edge of it leads to the logits
        nodes = {graph.edges[e, 0] for e in greedy.edges if graph.edges[e, 1] in leads_on}
        leads_on |= {d for d, fed in enumerate(graph.feeds) if nodes & set(fed)}
    assert all(graph.edges[e, 1] in leads_on for e in greedy.edges)
    assert choose(graph, strength, graph.size, by="greedy").size == graph.size
    with pytest.raises(MeasureError, match="has 0 to"):
        choose(graph, strength, graph.size + 1)


def test_another_choice_is_refused(scores, policies, as_a_user) -> None:
    with pytest.raises(MeasureError, match='by "top" or "greedy"'):
        choose(scores.graph, scores.mean, 3, by="best")
    with pytest.raises(MeasureError, match='method is "eap-ig" or "eap"'):
        circuits.edge_attribution(policies["gpt2"], Prompts(CLEAN), method="ig")
    with pytest.raises(TypeError, match="no parameter 'device' any more; load first: interp.load"):
        circuits.edge_attribution(tiny_gpt2(), Prompts(CLEAN), device="cpu")
    with pytest.raises(TypeError, match="no parameter 'random' any more; it is draws="):
        circuits.faithfulness_curve(policies["gpt2"], Prompts(CLEAN), scores, random=2)


def test_overlap_by_hand() -> None:
    assert jaccard([1, 2, 3], [2, 3, 4, 5]) == 2 / 5
    assert jaccard([1], [2]) == 0
    assert np.isnan(jaccard([], []))


def test_faithfulness_is_one_for_the_whole_model_and_zero_for_nothing(policies, pairs, scores) -> None:
    graph = scores.graph
    for edges, expected in ((tuple(range(graph.size)), 1.0), ((), 0.0)):
        found = circuits.faithfulness(policies["gpt2"], pairs, circuits.Circuit.of(graph, edges))
        assert found.value == pytest.approx(expected, abs=1e-4)
        assert found.low == pytest.approx(expected, abs=1e-4)


def test_dangling_edges_carry_nothing(policies, pairs, scores) -> None:
    chosen = choose(scores.graph, scores.mean, 60)
    assert chosen.connected.size < chosen.size
    values = circuits.circuit_values(policies["gpt2"], pairs, [chosen, chosen.connected])
    np.testing.assert_allclose(values.circuits[:, 0], values.circuits[:, 1], atol=1e-4)
    part = circuits.circuit_values(policies["gpt2"], pairs, [chosen], rows=[4, 1])
    np.testing.assert_allclose(part.circuits[:, 0], values.circuits[[4, 1], 0], atol=1e-4)


def test_the_curve_ends_at_one_and_is_the_same_again(policies, pairs, scores) -> None:
    graph = scores.graph
    first, again = (
        circuits.faithfulness_curve(policies["gpt2"], pairs, scores, sizes=[10, graph.size], draws=1) for _ in range(2)
    )
    assert first.dataset.identical(again.dataset)
    assert float(first.dataset["faithfulness"][-1]) == pytest.approx(1, abs=1e-4)
    assert first.dataset["random"].dims == ("draw", "size")
    assert f"{graph.size} edges carry 1 [1, 1] of the model's logit difference" in str(first)
    assert [circuit.size for circuit in first.circuits] == [10, graph.size]
    with pytest.raises(MeasureError, match="sizes are numbers of edges"):
        circuits.faithfulness_curve(policies["gpt2"], pairs, scores, sizes=[0])
    with pytest.raises(MeasureError, match="other nodes than this model"):
        circuits.faithfulness_curve(policies["llama"], pairs, scores, sizes=[10])


def test_stability(scores) -> None:
    found = circuits.stability(scores, 30, draws=20)
    assert float(found.dataset["frequency"].sum()) == pytest.approx(30)
    assert (found.dataset["overlap"] <= 1).all()
    whole = circuits.stability(scores, scores.graph.size, draws=3)
    assert (whole.dataset["split_half"] == 1).all()
    few = EdgeScores(scores.dataset.isel(prompt=slice(5)))
    with pytest.raises(MeasureError, match="stability needs 8 groups"):
        circuits.stability(few, 30)


def test_random_circuits_lead_to_the_logits_and_have_their_size(scores) -> None:
    drawn = random_circuits(scores.graph, 40, draws=4, seed=1)
    assert [circuit.size for circuit in drawn] == [40] * 4
    assert len({circuit.edges for circuit in drawn}) == 4
    again = random_circuits(scores.graph, 40, draws=4, seed=1)
    assert [circuit.edges for circuit in drawn] == [circuit.edges for circuit in again]


def test_an_encoder_decoder_end_to_end(tokenizer) -> None:
    model = build("T5ForConditionalGeneration", vocab_size=len(tokenizer))
    policy = Policy.load(model, tokenizer=tokenizer)
    pairs = Prompts(WIDE, corrupted=OTHER, answers=ANSWERS, decoder_prefixes="the plot was")
    found = circuits.edge_attribution(policy, pairs, steps=4)
    assert found.dataset.attrs["completeness"] < 0.2
    whole = circuits.Circuit.of(found.graph, range(found.graph.size))
    assert circuits.faithfulness(policy, pairs, whole).value == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_a_real_model_keeps_its_pronouns_in_few_edges(stories) -> None:
    """He or she after a name and a noun: 60 of 1300 edges carry it, and EAP-IG finds them better than EAP."""
    girls, boys = ["Lily", "Anna", "Lucy", "Amy", "Sara", "Mia"], ["Tim", "Tom", "Ben", "Max", "Sam", "Jack"]
    texts, other, answers = [], [], []
    for template in ("Once upon a time, there was a little {} named {}. One day,", "A little {}, {}, was sad, so"):
        for girl, boy in zip(girls, boys, strict=True):
            both = [template.format("girl", girl), template.format("boy", boy)]
            texts, other = [*texts, *both], [*other, *both[::-1]]
            answers += [(" she", " he"), (" he", " she")]
    policy = Policy.load(stories)
    pairs = Prompts(texts, corrupted=other, answers=answers)
    shares = {}
    for method in ("eap", "eap-ig"):
        scores = circuits.edge_attribution(policy, pairs, method=method)
        curve = circuits.faithfulness_curve(policy, pairs, scores, sizes=[28, 60], draws=2).dataset
        shares[method] = curve["faithfulness"].values
        assert float(curve["random"].max()) < 0.2
    assert shares["eap-ig"][1] > 0.8
    assert shares["eap-ig"][0] > shares["eap"][0]
