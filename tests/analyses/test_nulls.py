"""Runs that differ by chance alone: what is called significant among them."""

import numpy as np
import pytest
import torch
import xarray as xr

from analyses.nulls import ROUNDING, Nulls, judge_nulls, largest, main, noisy, run
from interp.errors import FormatError
from interp.models import Policy
from interp.pair import CheckpointPair
from interp.prompts import Prompts
from tests.conftest import tiny_gpt2

TEXTS = [
    "this movie was really",
    "the film was very",
    "this plot was",
    "the acting was",
    "a film was",
    "the plot was very",
    "a movie was",
    "this film was really",
]


@pytest.fixture(scope="module")
def found(tokenizer) -> Nulls:
    model = tiny_gpt2(n_layer=2)
    base = Policy.load(model, tokenizer=tokenizer)
    kinds = {"float noise": [noisy(model, seed=number) for number in range(20)]}
    return judge_nulls(base, kinds, Prompts(TEXTS, answers=(" bad", " good")), told=lambda _: None)


def test_noise_is_of_the_size_of_rounding():
    model = tiny_gpt2()
    one, same, other = (noisy(model, seed=seed) for seed in (0, 0, 1))
    weights, ones, sames = (each.state_dict() for each in (model, one, same))  # detached
    moved, rounded = 0.0, 0.0
    for name, weight in weights.items():
        change = (ones[name] - weight).abs()
        assert float((change / weight.abs().clamp_min(1e-12)).max()) <= ROUNDING * 1.001
        assert torch.equal(ones[name], sames[name])
        moved, rounded = moved + float(change.sum()), rounded + float((weight.bfloat16().float() - weight).abs().sum())
    assert 0.5 < moved / rounded < 2
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


@pytest.mark.slow
def test_of_each_statistic_one_run_in_twenty_is_significant(found):
    """Exactly, as each value is ranked among the other nineteen and none are equal."""
    data = found.dataset.sel(kind="float noise")
    assert data.sizes["run"] == 20
    for name in data["statistic"].values:
        own = data.sel(statistic=name)
        hit = np.flatnonzero(own["p"].values <= 0.05)
        assert hit.tolist() == [int(np.argmax(own["value"].values))], name
        ranks = (own["value"].values[None] >= own["value"].values[:, None]).sum(1) / 20
        np.testing.assert_allclose(own["p"], ranks)


@pytest.mark.slow
def test_rates_hold_the_level_and_say_how_sure_they_are(found):
    rates = found.rates().set_index("what")
    assert rates.loc["statistics", "rate"] == pytest.approx(0.05)
    low, high = rates.loc["statistics", ["low", "high"]]
    count, share, z = rates.loc["statistics", "cases"], 0.05, 1.959964
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
    assert (low, high) == pytest.approx((centre - half, centre + half), rel=1e-5)  # Wilson 1927
    assert rates.loc["findings", "cases"] >= 20 * 20 and rates.loc["findings", "low"] <= 0.05
    assert {name for name in rates.index if name.startswith("sign flips")} == {
        "sign flips: attribution by head", "sign flips: patching of result", "sign flips: patching of mlp_out",
    }  # fmt: skip


def test_the_largest_mean_leaves_padding_out():
    values = np.array([[1.0, -4.0, np.nan], [3.0, np.nan, np.nan]])
    assert largest(values) == 4.0
    assert largest(values[:, :1]) == 2.0


def test_ties_only_make_it_stricter():
    same = xr.Dataset(
        {
            "value": (("kind", "run", "statistic"), np.ones((1, 20, 1))),
            "p": (("kind", "run", "statistic"), np.ones((1, 20, 1))),
            "findings": (("kind", "run"), np.zeros((1, 20), dtype=int)),
            "significant": (("kind", "run"), np.zeros((1, 20), dtype=int)),
            "sign_flip_p": (("kind", "run", "reading"), np.ones((1, 20, 1))),
        },
        coords={"kind": ["a"], "reading": ["r"], "statistic": ["s"]},
    )
    rates = Nulls(same).rates().set_index("what")
    assert rates.loc["statistics", "rate"] == 0 and np.isnan(rates.loc["findings", "rate"])


def test_a_pair_without_null_runs_is_refused(capsys):
    from importlib import resources

    demo = str(resources.files("interp") / "data" / "demo")
    with pytest.raises(FormatError, match="20 are needed: train it with --controls shuffled=20 --replicates 20"):
        run(CheckpointPair.load(demo), Prompts(TEXTS, answers=(" bad", " good")))
    with pytest.raises(SystemExit):
        main([demo])
    assert "are needed" in capsys.readouterr().err
