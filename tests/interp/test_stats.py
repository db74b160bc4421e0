import tracemalloc

import numpy as np
import pytest
import scipy.stats

from interp.stats import bootstrap_mean, null_range, rank_p, selection_halves


@pytest.mark.parametrize("groups", [None, np.arange(30) // 2, np.arange(30) % 11])
@pytest.mark.parametrize("drawn", [2**20, 100])
def test_interval_is_scipys(groups, drawn, monkeypatch):
    monkeypatch.setattr("interp.stats._DRAWN", drawn)  # few at once changes nothing
    values = np.random.default_rng(0).gamma(2.0, size=30)
    labels = np.arange(30) if groups is None else groups
    sums, counts = np.bincount(labels, weights=values), np.bincount(labels).astype(float)

    def ratio(s, n, axis):
        return s.sum(axis) / n.sum(axis)

    expected = scipy.stats.bootstrap(
        (sums, counts), ratio, paired=True, n_resamples=2000, rng=np.random.default_rng(5)
    ).confidence_interval
    mean, lower, upper = bootstrap_mean(values, groups, seed=5)
    assert mean == pytest.approx(values.mean())
    assert (lower, upper) == pytest.approx((expected.low, expected.high), rel=1e-12)


def test_many_prompts_take_little_memory():
    values = np.random.default_rng(0).normal(size=20_000)
    tracemalloc.start()
    mean, lower, upper = bootstrap_mean(values, draws=200)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60e6, "no array of resamples by prompts, nor of prompts by prompts"
    assert upper - lower == pytest.approx(2 * 1.96 * values.std() / np.sqrt(len(values)), rel=0.2)
    assert lower < mean < upper


def test_interval_covers_at_its_rate():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        _, lower, upper = bootstrap_mean(rng.normal(0.3, 1, size=40), seed=trial, draws=500)
        covered += lower <= 0.3 <= upper
    # 95 % nominal; 200 trials have a standard error of 1.5 %
    assert 0.89 <= covered / 200 <= 0.99


def test_prompts_of_one_group_are_no_independent_evidence():
    rng = np.random.default_rng(2)
    by_group = rng.normal(size=12)
    values, groups = np.repeat(by_group, 10), np.repeat(np.arange(12), 10)
    _, lower, upper = bootstrap_mean(values, groups)
    _, low, high = bootstrap_mean(by_group)
    assert (upper - lower) == pytest.approx(high - low, rel=0.1)
    _, naive_low, naive_high = bootstrap_mean(values)
    assert naive_high - naive_low < 0.5 * (upper - lower)


def test_the_interval_scales_with_the_values():
    values = np.random.default_rng(0).gamma(2.0, size=20)
    wanted = np.array(bootstrap_mean(values))
    for scale in (1e-160, 1e-12, 1e12):
        np.testing.assert_allclose(bootstrap_mean(values * scale), wanted * scale, rtol=1e-9)
    rounding = np.where(np.arange(9) % 2, 0.1, np.nextafter(0.1, 1))
    assert np.isfinite(bootstrap_mean(rounding)).all()


def test_no_interval_for_few_prompts_and_a_point_for_equal_ones():
    mean, lower, upper = bootstrap_mean(np.arange(7.0))
    assert mean == 3 and np.isnan([lower, upper]).all()
    assert np.isnan(bootstrap_mean(np.arange(20.0), np.arange(20) % 5)[1])
    assert bootstrap_mean(np.full(9, 2.5)) == (2.5, 2.5, 2.5)
    assert np.isnan(bootstrap_mean(np.array([np.nan]))).all()
    mean, lower, _ = bootstrap_mean(np.array([np.nan, *range(8)]))
    assert mean == 3.5 and np.isfinite(lower)


def test_halves_split_groups_not_prompts():
    groups = np.array([7, 7, 3, 3, *range(20, 40)])
    select, estimate = selection_halves(groups)
    assert sorted([*select, *estimate]) == list(range(24))
    assert not set(groups[select]) & set(groups[estimate])
    assert abs(len(set(groups[select])) - len(set(groups[estimate]))) <= 1
    for few in (np.arange(15), np.repeat(np.arange(15), 4)):
        select, estimate = selection_halves(few)
        assert (select == estimate).all() and len(select) == len(few)


def test_null_range():
    assert null_range([2.0, np.nan, -1.0]) == (-1.0, 2.0)
    assert np.isnan(null_range([])).all()


def test_rank_among_null_runs():
    nulls = [0.1 * i for i in range(1, 20)]
    assert rank_p(5.0, nulls) == 1 / 20 and rank_p(-5.0, nulls) == 1 / 20
    assert rank_p(1.75, nulls) == 3 / 20  # 1.8 and 1.9 are larger
    assert rank_p(1.9, nulls) == 2 / 20, "as large counts"
    assert rank_p(0.0, nulls) == 1
    assert rank_p(1.75, [-null for null in nulls]) == 3 / 20, "the size counts, not the sign"
    assert np.isnan(rank_p(5.0, nulls[:18])) and np.isnan(rank_p(5.0, [*nulls[:18], np.nan]))
    assert np.isnan(rank_p(np.nan, nulls))


def test_rank_holds_its_level():
    rng = np.random.default_rng(3)
    found = [rank_p(rng.normal(), list(rng.normal(size=19))) for _ in range(4000)]
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.012)  # 3.5 standard errors
