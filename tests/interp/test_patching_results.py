"""What patching returns: it prints, draws, saves and comes back, also of one row, one prompt or no random set."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure

from interp import Policy, Prompts
from interp.hooks import Site
from interp.models.value_head import ValueHead
from interp.patching import (
    Patching,
    ablation,
    activation_patching,
    attribution_patching,
    reward_patching,
    smallest_set,
    steering,
    value_reading,
)
from interp.patching.result import NO_POSITION
from interp.patching.targets import Intervention, Target
from interp.result import Result, load_result
from interp.sampling import Sampling
from tests.conftest import tiny_gpt2

TEXTS = [f"{a} {b}" for a in ("the", "a", "this", "very") for b in ("cat sat", "dog ran", "bird sang", "movie was")]
SHORT = Sampling(samples=2, max_new_tokens=3)


@pytest.fixture(scope="module")
def pair(tokenizer) -> list[Policy]:
    first, second = tiny_gpt2(), tiny_gpt2()
    with torch.no_grad():
        for parameter in second.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return [Policy.load(model, tokenizer=tokenizer) for model in (first, second)]


def length(samples: list[str], prompts: list[str], outputs: list[str]) -> list[float]:
    return [float(len(sample)) for sample in samples]


def head(width: int) -> ValueHead:
    draw = torch.Generator().manual_seed(0)
    shapes = {"hidden.weight": (8, width), "hidden.bias": (8,), "out.weight": (1, 8), "out.bias": (1,)}
    return ValueHead({name: torch.randn(shape, generator=draw) for name, shape in shapes.items()})


VERBS: dict[str, Callable[[list[Policy]], Result]] = {
    "patching": lambda pair: activation_patching(*pair, TEXTS, sites=["z", {("z", 0): [0, 1]}], draws=3),
    "one site": lambda pair: activation_patching(*pair, TEXTS, sites=Site("mlp_out", 1)),
    "one prompt": lambda pair: activation_patching(*pair, TEXTS[:1], sites=["z", {("z", 0): [0, 1]}], draws=1),
    "no random set": lambda pair: activation_patching(*pair, TEXTS, sites={("z", 0): [0, 1]}, draws=0),
    "by token": lambda pair: activation_patching(*pair, [*TEXTS, "fun"], sites="mlp_out", positions="each"),
    "ablation": lambda pair: ablation(pair[0], TEXTS, sites="mlp_out"),
    "attribution": lambda pair: attribution_patching(*pair, TEXTS, sites="z", sample=4),
    "reward": lambda pair: reward_patching(*pair, TEXTS[:2], length, sites=Site("mlp_out", 0), sampling=SHORT),
    "set": lambda pair: smallest_set(*pair, Prompts(TEXTS), sites=("z", "mlp_out"), most=3, draws=2, metric="kl"),
    "set of one": lambda pair: smallest_set(*pair, TEXTS, sites="mlp_out", target=0.01, metric="kl"),
    "set of one, few prompts": lambda pair: smallest_set(*pair, TEXTS[:2], sites=Site("z", 0), most=1, draws=0),
    "steering": lambda pair: steering(*pair, TEXTS, site=("resid_post", 1), doses=(0, 1), draws=2),
    "one dose, nothing drawn": lambda pair: steering(*pair, TEXTS[:1], site=("resid_post", 1), doses=[1], draws=0),
    "value": lambda pair: value_reading(pair[1], head(pair[1].parts.d_model), TEXTS, length, sampling=SHORT),
    "one sample": lambda pair: value_reading(
        pair[1], head(pair[1].parts.d_model), TEXTS[:1], length, sampling=Sampling(samples=1, max_new_tokens=1)
    ),
}


@pytest.fixture(scope="module")
def made(pair) -> Callable[[str], Result]:
    """The results by name, each made once."""
    return functools.cache(lambda name: VERBS[name](pair))


@pytest.mark.parametrize("name", VERBS)
def test_every_result_prints_draws_and_comes_back(made, name: str, tmp_path: Path) -> None:
    result = made(name)
    lines = repr(result).split("\n")
    assert len(lines) <= 15 and max(map(len, lines)) <= 80, repr(result)
    assert len(lines) >= 3 and "nan" not in repr(result)
    assert "<table" in result._repr_html_()
    for figure in dir(result.plot):
        assert isinstance(getattr(result.plot, figure)(), Figure)
    result.save(tmp_path / "saved")
    back = load_result(tmp_path / "saved")
    assert type(back) is type(result) and repr(back) == repr(result)
    xr.testing.assert_identical(back.dataset, result.dataset)
    pd.testing.assert_frame_equal(back.summary(), result.summary())
    tables = result.to_parquet(tmp_path / "tables")
    assert {file.stem for file in tables.glob("*.parquet")} >= set(result.keys())


def test_which_figures_there_are(made) -> None:
    expected = {
        "patching": ["bars", "recovery_map"],
        "one site": ["bars"],
        "by token": ["bars", "recovery_map"],
        "set": ["search"],
        "steering": ["dose_curve"],
        "value": ["value"],
    }
    assert {name: dir(made(name).plot) for name in expected} == expected


def test_the_sets_and_the_vector_come_back(pair, made, tmp_path: Path) -> None:
    found = made("set")
    assert [patch.size for patch in found.sets] == [1, 2, 3]
    assert str(found.sets[0]) == found["added"].values[0]
    assert {str(target) for target in found.sets[0].targets} <= {str(t) for t in found.sets[2].targets} | {
        f"L{t.site.layer}.z.H{unit}" for t in found.sets[2].targets if t.units for unit in t.units
    }
    again = activation_patching(*pair, TEXTS[1::2], sites=list(found.sets), metric="kl", draws=0)
    np.testing.assert_allclose(again["recovery"], found["recovery"], rtol=1e-6)
    found.save(tmp_path / "set")
    assert load_result(tmp_path / "set").sets == found.sets
    steered = made("steering")
    steered.save(tmp_path / "steering")
    back = load_result(tmp_path / "steering").vector
    assert torch.equal(back, steered.vector) and back.dtype == torch.float64
    assert float(back.norm()) == pytest.approx(steered.dataset.attrs["norm"])


def test_a_set_at_one_position_and_of_whole_sites_comes_back(pair) -> None:
    sites = [{("mlp_out", 0): None, ("z", 1): [0, 2]}, Site("mlp_out", 1)]
    found = smallest_set(*pair, TEXTS, sites=sites, positions="last", most=2, metric="kl", draws=0)
    both = (Target(Site("mlp_out", 0)), Target(Site("mlp_out", 1)), Target(Site("z", 1), (0, 2)))
    assert found.sets[-1] == Intervention(both, -1)
    numbers = smallest_set(*pair, TEXTS, sites=sites, positions=[0, 1], most=1, metric="kl", draws=0)
    assert numbers.sets[0].position == (0, 1)


def test_a_map_by_token_can_be_counted_from_the_end(pair) -> None:
    texts = [*TEXTS, "fun", "it"]
    first, last = (
        activation_patching(*pair, texts, sites="resid_pre", positions=way, metric="kl")
        for way in ("each", "each_from_end")
    )
    lengths = [len(ids) for ids in Prompts(texts).tokenize(pair[0].tokenizer).prompt_ids]
    width, layer = max(lengths), 1
    assert last.map("resid_pre")["pos"].values.tolist() == list(range(-width, 0))
    assert last["prompts"].values[-1] == len(texts) > last["prompts"].values[0]
    by_first, by_last = (result.map("resid_pre", "effect").sel(layer=layer) for result in (first, last))
    for row, count in enumerate(lengths):
        for place in range(count):
            one, other = by_first.sel(prompt=row, pos=place), by_last.sel(prompt=row, pos=place - count)
            assert float(one) == pytest.approx(float(other), abs=1e-6)
    whole = activation_patching(*pair, texts, sites="resid_pre", positions="last", metric="kl")
    np.testing.assert_allclose(by_last.sel(pos=-1), whole["effect"][:, layer], atol=1e-6)


def test_rows_of_too_few_prompts_are_left_out_and_counted(pair, made) -> None:
    texts = [*TEXTS[:9], "the cat sat on the mat and sang a song"]
    found = activation_patching(*pair, texts, sites=Site("resid_pre", 1), positions="each", metric="kl")
    few = int((found["prompts"].values < 8).sum())
    assert few > 1 and len(found.summary()) == found.dataset.sizes["site"] - few
    assert (found.summary()["prompts"] >= 8).all()
    assert f"{few} rows left out: fewer than 8 prompts have the token" in " ".join(found.notes())
    assert len(found.summary(least=1)) == found.dataset.sizes["site"]
    assert "rows left out" in repr(found)
    assert "left out" not in " ".join(made("one prompt").notes())


def test_a_long_table_says_how_many_rows_are_not_shown(pair) -> None:
    found = activation_patching(*pair, TEXTS, sites=["z", "q", "k", "v", "mlp_out"])
    shown = sum(line.startswith("L") for line in repr(found).split("\n"))
    assert f"... {found.dataset.sizes['site'] - shown} more rows" in repr(found)


def test_a_position_far_from_the_end_is_a_position(pair) -> None:
    texts = ["the cat sat on the mat and sang a song"] * 2
    found = activation_patching(*pair, texts, sites=["mlp_out", {("z", 0): [0, 1]}], positions=[-9], metric="kl")
    assert set(found["pos"].values.tolist()) == {-9}
    assert set(activation_patching(*pair, texts, sites="mlp_out", metric="kl")["pos"].values) == {NO_POSITION}


def test_intervals_are_named_after_their_number(made) -> None:
    assert {"effect", "effect_low", "effect_high"} <= set(made("patching").summary())
    assert {"mean", "mean_low", "mean_high", "random_low", "random_high"} <= set(made("steering").summary())
    table = made("value").summary()
    assert list(table) == ["step", "samples", "mean", "mean_low", "mean_high", "correlation", "explained"]
    assert table["samples"][0] == 2 * len(TEXTS)


def test_progress_has_one_shape(pair) -> None:
    calls: list[tuple[str, int, int]] = []

    def watch(what: str, done: int, total: int) -> None:
        calls.append((what, done, total))

    activation_patching(*pair, TEXTS, sites="mlp_out", batch_size=5, progress=watch)
    smallest_set(*pair, TEXTS, sites="mlp_out", most=1, metric="kl", draws=0, progress=watch)
    steering(*pair, TEXTS, site=("resid_post", 1), draws=0, progress=watch)
    attribution_patching(*pair, TEXTS, sites="z", sample=2, progress=watch)
    reward_patching(*pair, TEXTS[:2], length, sites=Site("mlp_out", 0), sampling=SHORT, progress=watch)
    ends = {what: total for what, done, total in calls if done == total}
    assert ends.keys() == {"patches", "sites", "prompts"} == {what for what, _, _ in calls}
    assert all(0 <= done <= total for _, done, total in calls)


def test_a_reading_of_loaded_arrays_is_a_result(made) -> None:
    data = made("patching").dataset
    assert repr(Patching(copy.deepcopy(data))) == repr(Patching(data))
