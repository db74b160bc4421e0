"""The summary on arrays made by hand: what is chosen, where it is estimated, and what stands beside it."""

import numpy as np
import pytest
import xarray as xr

from interp.measures.findings import COLUMNS
from interp.measures.summary import interval_notes, summarise
from interp.stats import selection_halves

MODELS = ["base", "tuned"]


def made(variables, prompts=20, **coords):
    """A Dataset with `model` and `group`, as `compare` gives it."""
    fixed = {"model": MODELS, "group": ("prompt", np.arange(prompts))}
    used = {dim for dims, _ in variables.values() for dim in dims.split()}
    known = {name: value for name, value in {**fixed, **coords}.items() if name in used or isinstance(value, tuple)}
    return xr.Dataset({name: (dims.split(), values) for name, (dims, values) in variables.items()}, coords=known)


def heads(seed, planted=(1, 2), size=0.0, prompts=20, layers=3, count=4):
    """Head attributions of noise 0.1, with `size` added to one head of tuned."""
    rng = np.random.default_rng(seed)
    base = rng.normal(0, 0.1, (prompts, layers, count))
    change = rng.normal(0, 0.1, (prompts, layers, count))
    change[(slice(None), *planted)] += size
    zero = np.zeros_like(change)
    return made(
        {
            "head_attribution": ("prompt model layer head", np.stack([base, base + change], axis=1)),
            "head_attribution_write": ("prompt layer head", change),
            "head_attribution_readout": ("prompt layer head", zero),
            "completeness_error": ("prompt model", np.full((prompts, 2), 1e-6)),
        }
    )


def changes(data):
    values = data["head_attribution"]
    return (values.sel(model="tuned") - values.sel(model="base")).values


class TestLargest:
    def test_chosen_on_one_half_estimated_on_the_other(self):
        data = heads(0, size=2.0)
        frame = summarise(data)
        select, estimate = selection_halves(np.arange(20))
        change = changes(data)
        order = np.argsort(-np.abs(change[select].mean(0)), axis=None)[:3]
        expected = {f"L{i // 4}H{i % 4}": change[estimate].reshape(10, -1)[:, i].mean() for i in order}
        found = {
            str(name).split(":")[0]: value for name, value in zip(frame["finding"], frame["estimate"], strict=True)
        }
        assert found == pytest.approx(expected) and len(found) == 3
        mean = change[estimate, 1, 2].mean()
        assert frame["finding"][0] == f"L1H2: tuned minus base (write {mean:+.3f}, readout +0.000)"
        assert (frame["n"] == 10).all() and (frame["completeness"] == 1e-6).all()
        assert frame["estimate"].abs().is_monotonic_decreasing
        assert (frame["estimate_low"] < frame["estimate"]).all() and (frame["estimate"] < frame["estimate_high"]).all()

    def test_a_null_run_gives_its_own_largest_cell(self):
        nulls = [heads(seed, planted=(seed % 3, 0), size=0.5) for seed in range(1, 4)]
        frame = summarise(heads(0, size=2.0), nulls)
        largest = []
        for null in nulls:
            means = changes(null).mean(0)
            largest.append(means.flat[np.abs(means).argmax()])
        for row in frame.itertuples():
            assert (row.control_low, row.control_high) == pytest.approx((min(largest), max(largest)))
        assert frame["rank_p"].isna().all(), "fewer than 19"

    def test_p_is_the_rank_among_nineteen(self):
        nulls = [heads(seed, size=0.1 * seed) for seed in range(1, 20)]
        data = heads(0, size=1.55)
        row = summarise(data, nulls).iloc[0]
        largest = [np.abs(changes(null).mean(0)).max() for null in nulls]
        assert row["rank_p"] == (1 + sum(value >= abs(row["estimate"]) for value in largest)) / 20
        assert 1 / 20 < row["rank_p"] < 1

    def test_a_replicate_gives_the_same_cell_on_the_same_prompts(self):
        replicates = [heads(seed, planted=(0, 0), size=3.0) for seed in (5, 6)]
        row = summarise(heads(0, size=2.0), (), replicates).iloc[0]
        _, estimate = selection_halves(np.arange(20))
        same = [changes(replicate)[estimate, 1, 2].mean() for replicate in replicates]
        assert (row["replicate_low"], row["replicate_high"]) == pytest.approx((min(same), max(same)))
        assert np.isnan(row["control_low"])

    def test_prompts_without_a_value_are_left_out(self):
        data = heads(0, size=2.0)
        data["head_attribution"][::3, 1, 0, 0] = np.nan
        data["head_attribution"][:, 1, 2, 2] = np.nan
        frame = summarise(data, [data])
        assert frame["finding"][0].startswith("L1H2") and frame["estimate"].notna().all()
        assert frame["control_high"].notna().all()

    def test_nothing_changed(self):
        data = heads(0)
        data["head_attribution"][:, 1] = data["head_attribution"][:, 0]
        frame = summarise(data, [data] * 19)
        assert (frame["estimate"] == 0).all() and (frame["rank_p"] == 1).all()


def test_movers_are_ranked_over_prompts_and_count_zero_elsewhere():
    tokens = np.full((20, 2, 2), "", dtype=object)
    change = np.zeros((20, 2, 2))
    tokens[:, 0, 0], change[:, 0, 0] = " bad", 0.3
    tokens[::4, 1, 0], change[::4, 1, 0] = " good", -0.8  # on 5 prompts of 20: 5 of the selecting half
    tokens[1::2, 0, 1], change[1::2, 0, 1] = " fun", 0.1
    top = np.array([[[" good"], [" bad"]]] * 20, dtype=object)
    data = made(
        {
            "top_token": ("prompt model rank", top),
            "entropy": ("prompt model", np.tile([2.0, 1.5], (20, 1))),
            "mover_token": ("prompt direction rank2", tokens),
            "mover_change": ("prompt direction rank2", change),
        }
    )
    frame = summarise(data).set_index("finding")["estimate"]
    assert frame["share of prompts whose top token changed"] == 1
    assert frame["moved most: P(' bad'): tuned minus base"] == pytest.approx(0.3)
    assert "moved most: P(' good'): tuned minus base" not in frame, "it did not move on the estimating half"
    assert frame["moved most: P(' fun'): tuned minus base"] == pytest.approx(0.1)
    assert frame["entropy: tuned minus base"] == -0.5
    still = data.copy()
    still["mover_token"] = still["mover_token"].where(False, "")
    still["mover_change"] = still["mover_change"] * 0
    assert not summarise(still)["finding"].str.contains("moved most").any()
    low = summarise(data, [still]).query("finding.str.contains('bad')")["control_low"].item()
    assert low == 0, "a control run in which no token moved"


def neurons(layers, indices, change):
    count = len(layers)
    values = np.zeros((20, 2, count))
    values[:, 1] = change
    return made(
        {
            "neuron_attribution": ("prompt model neuron", values),
            "neuron_attribution_write": ("prompt neuron", values[:, 1]),
            "neuron_attribution_readout": ("prompt neuron", values[:, 1] * 0),
            "neuron_completeness_error": ("prompt model", np.full((20, 2), 2e-6)),
        },
        neuron_layer=("neuron", layers),
        neuron_index=("neuron", indices),
    )


def test_a_neuron_is_the_same_in_a_replicate_only_if_that_names_it():
    data = neurons([1, 0], [7, 3], [0.5, 0.2])
    replicate, control = neurons([0, 2], [3, 9], [0.4, 0.3]), neurons([2], [1], [-0.1])
    frame = summarise(data, [control], [replicate])
    assert frame["finding"].tolist() == [
        "L1.mlp neuron 7: tuned minus base (write +0.500, readout +0.000)",
        "L0.mlp neuron 3: tuned minus base (write +0.200, readout +0.000)",
    ]
    assert frame["control_low"].tolist() == pytest.approx([-0.1, -0.1])
    assert np.isnan(frame["replicate_low"][0]) and frame["replicate_low"][1] == pytest.approx(0.4)
    assert (frame["completeness"] == 2e-6).all()


def test_attention_is_moved_once_a_head():
    shares = np.full((20, 2, 2, 2, 4), 0.25)
    shares[:, 1, 0, 1] = [0.75, 0.05, 0.05, 0.15]
    shares[:, 1, 1, 0] = [0.25, 0.3, 0.2, 0.25]
    data = made(
        {"attention_to": ("prompt model layer head token_class", shares)},
        token_class=["bos", "punctuation", "content", "antecedent"],
    )
    frame = summarise(data)
    assert frame["finding"].tolist()[0] == "L0H1: the last token's attention to the first token: tuned minus base"
    assert frame["estimate"].tolist()[0] == pytest.approx(0.5)
    assert frame["finding"].str[:4].is_unique and len(frame) == 3
    assert frame["units"].tolist() == ["share"] * 3


def test_a_changed_head_says_what_it_reads_and_writes():
    data = made(
        {
            "pattern_js": ("prompt layer head", np.arange(40.0).reshape(1, 1, 40).repeat(20, 0) / 100),
            "pattern_entropy": ("prompt model layer head", np.zeros((20, 2, 1, 40))),
            "ov_reads": ("changed_head model ov_direction rank", np.array([[[[" a", " b"]]] * 2], dtype=object)),
            "ov_writes": ("changed_head model ov_direction rank", np.array([[[[" c", " d"]]] * 2], dtype=object)),
        },
        changed_layer=("changed_head", [0]),
        changed_head_index=("changed_head", [39]),
    )
    findings = summarise(data)["finding"].tolist()
    assert findings[0] == "L0H39: JS of the patterns (OV reads ' a', ' b'; writes ' c', ' d')"
    assert findings[1] == "L0H38: JS of the patterns"


def test_levels_have_no_rank_and_base_no_null():
    values = np.stack([np.full(20, 1.0), np.full(20, 3.0)], axis=1)
    data = made(
        {
            "logit_diff": ("prompt model", values),
            "answer_prob": ("prompt model answer", np.zeros((20, 2, 2))),
            "answer_token": ("prompt", np.array([" bad"] * 20, dtype=object)),
            "other_token": ("prompt", np.array([" good"] * 20, dtype=object)),
        },
        answer=["answer", "alternative"],
    )
    frame = summarise(data, [data] * 19, [data]).set_index("finding")
    change, base, tuned = (frame.loc[f"' bad' - ' good': {of}"] for of in ("tuned minus base", "base", "tuned"))
    assert (change["estimate"], change["rank_p"], change["control_low"]) == (2, 1, 2)
    assert np.isnan(base["control_low"]) and np.isnan(base["rank_p"]) and np.isnan(base["replicate_low"])
    assert tuned["control_low"] == 3 and np.isnan(tuned["rank_p"]) and tuned["replicate_high"] == 3


def test_columns_and_an_empty_comparison():
    frame = summarise(made({"kl": ("prompt pos", np.ones((20, 3)))}, prompts=20).drop_vars("kl"))
    assert tuple(frame.columns) == COLUMNS and len(frame) == 0


def test_prompts_and_the_groups_that_are_resampled_are_both_counted():
    data = heads(0, size=2.0).assign_coords(group=("prompt", np.arange(20) // 2), prompt=range(20))
    frame = summarise(data)
    assert (frame["n"] == 20).all() and (frame["groups"] == 10).all()
    assert any("n counts prompts; they are resampled in 10 groups" in note for note in interval_notes(data))
    apart = heads(0, size=2.0).assign_coords(prompt=range(20))
    assert (summarise(apart)["n"] == summarise(apart)["groups"]).all()
    assert not any("n counts prompts" in note for note in interval_notes(apart))
