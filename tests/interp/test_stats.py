"""Intervals against scipy, tests against brute force, and what both must hold."""

import itertools
import tracemalloc

import numpy as np
import pytest
import scipy.stats

from interp.stats import (
    holm,
    interval,
    max_t,
    null_range,
    permutation_p,
    random_halves,
    rank_p,
    resamples,
    selection_halves,
    sign_flip_p,
)


@pytest.mark.parametrize("groups", [None, np.arange(30) // 2, np.arange(30) % 11])
@pytest.mark.parametrize("drawn", [2**20, 100])
def test_interval_is_scipys(groups, drawn, monkeypatch):
    monkeypatch.setattr("interp.stats._INDICES", drawn)  # few at once changes nothing
    values = np.random.default_rng(0).gamma(2.0, size=30)
    labels = np.arange(30) if groups is None else groups
    sums, counts = np.bincount(labels, weights=values), np.bincount(labels).astype(float)

    def ratio(s, n, axis):
        return s.sum(axis) / n.sum(axis)

    expected = scipy.stats.bootstrap(
        (sums, counts), ratio, paired=True, n_resamples=2000, rng=np.random.default_rng(5)
    ).confidence_interval
    mean, lower, upper = interval(values, groups, seed=5)
    assert mean == pytest.approx(values.mean())
    assert (lower, upper) == pytest.approx((expected.low, expected.high), rel=1e-12)


def test_many_prompts_take_little_memory():
    values = np.random.default_rng(0).normal(size=20_000)
    tracemalloc.start()
    mean, lower, upper = interval(values, draws=200)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60e6, "no array of resamples by prompts, nor of prompts by prompts"
    assert upper - lower == pytest.approx(2 * 1.96 * values.std() / np.sqrt(len(values)), rel=0.2)
    assert lower < mean < upper


def test_interval_covers_at_its_rate():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        _, lower, upper = interval(rng.normal(0.3, 1, size=40), seed=trial, draws=500)
        covered += lower <= 0.3 <= upper
    # 95 % nominal; 200 trials have a standard error of 1.5 %
    assert 0.89 <= covered / 200 <= 0.99


def test_prompts_of_one_group_are_no_independent_evidence():
    rng = np.random.default_rng(2)
    by_group = rng.normal(size=12)
    values, groups = np.repeat(by_group, 10), np.repeat(np.arange(12), 10)
    _, lower, upper = interval(values, groups)
    _, low, high = interval(by_group)
    assert (upper - lower) == pytest.approx(high - low, rel=0.1)
    _, naive_low, naive_high = interval(values)
    assert naive_high - naive_low < 0.5 * (upper - lower)


def test_the_interval_scales_with_the_values():
    values = np.random.default_rng(0).gamma(2.0, size=20)
    wanted = np.array(interval(values))
    for scale in (1e-160, 1e-12, 1e12):
        np.testing.assert_allclose(interval(values * scale), wanted * scale, rtol=1e-9)
    rounding = np.where(np.arange(9) % 2, 0.1, np.nextafter(0.1, 1))
    assert np.isfinite(interval(rounding)).all()


def test_no_interval_for_few_prompts_and_a_point_for_equal_ones():
    mean, lower, upper = interval(np.arange(7.0))
    assert mean == 3 and np.isnan([lower, upper]).all()
    assert np.isnan(interval(np.arange(20.0), np.arange(20) % 5).low)
    assert tuple(interval(np.full(9, 2.5))) == (2.5, 2.5, 2.5)
    assert np.isnan([*interval(np.array([np.nan]))]).all()
    mean, lower, _ = interval(np.array([np.nan, *range(8)]))
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


def test_the_interval_of_a_ratio_is_scipys():
    rng = np.random.default_rng(0)
    effects, gaps = rng.normal(1.0, 0.5, (40, 3)), rng.normal(2.0, 0.5, 40)
    value, low, high = interval(effects, over=gaps, draws=20000)
    np.testing.assert_allclose(value, effects.sum(0) / gaps.sum())
    for site in range(3):
        expected = scipy.stats.bootstrap(
            (effects[:, site], gaps), lambda a, b, axis: a.sum(axis) / b.sum(axis), paired=True, n_resamples=20000,
            method="BCa", rng=np.random.default_rng(1),
        ).confidence_interval  # fmt: skip
        assert low[site] == pytest.approx(expected.low, abs=0.01) and high[site] == pytest.approx(
            expected.high, abs=0.01
        )


def test_groups_are_resampled_whole():
    rng = np.random.default_rng(0)
    effects, gaps = rng.normal(1.0, 0.5, (12, 2)), rng.normal(2.0, 0.5, 12)
    once = interval(effects, over=gaps)
    five = interval(np.repeat(effects, 5, axis=0), np.repeat(np.arange(12), 5), over=np.repeat(gaps, 5))
    for first, second in zip(once, five, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-3)


def test_no_ratio_over_a_gap_of_chance():
    effects, gaps = np.ones((20, 1)), np.tile([1.0, -1.1], 10)
    refused = interval(effects, over=gaps, what="what corrupting changes")
    assert all(np.isnan(each).all() for each in refused)
    assert refused.reason.startswith("the interval of what corrupting changes holds 0 (mean in [-")
    few = interval(np.ones(3), over=np.array([1.0, 2.0, 1.0]))
    assert few.value == 0.75 and np.isnan(few.low) and "fewer than 8" in few.reason
    assert str(interval(np.ones(2), over=np.array([1.0, -1.0]), what="it")) == "none (the sum of it is 0)"


def test_max_t_by_all_flips():
    effects = np.random.default_rng(3).normal(0.4, 1.0, (9, 4))
    p = max_t(effects, np.arange(9), draws=10**6)
    own = np.abs(scipy.stats.ttest_1samp(effects, 0).statistic)
    largest = [
        np.abs(scipy.stats.ttest_1samp(effects * np.array(signs)[:, None], 0).statistic).max()
        for signs in itertools.product([1, -1], repeat=9)
    ]
    expected = [(np.array(largest) >= each - 1e-9).mean() for each in own]
    np.testing.assert_allclose(p, expected)


def test_max_t_holds_its_level():
    rng = np.random.default_rng(0)
    hits = sum(max_t(rng.normal(size=(16, 30)), np.arange(16), draws=199, seed=run).min() <= 0.05 for run in range(200))
    assert scipy.stats.binomtest(hits, 200, 0.05).pvalue > 0.01


def test_max_t_finds_a_planted_effect_and_nothing_in_zeros():
    effects = np.random.default_rng(0).normal(size=(16, 5))
    effects[:, 2] += 3.0
    effects[:, 4] = 0.0
    p = max_t(effects, np.arange(16))
    assert p[2] < 0.01 and p[4] == 1.0
    assert np.isnan(max_t(effects[:7], np.arange(7))).all()


def test_a_share_by_hand():
    below = np.linspace(1, 2, 10)
    shares = interval(np.stack([below * 0.7, np.linspace(2, 1, 10)], axis=1), over=below)
    assert [each[0] for each in shares] == pytest.approx([0.7, 0.7, 0.7])
    assert shares.value[1] == pytest.approx(1) and shares.low[1] < 1 < shares.high[1]
    assert str(shares) == "2 estimates"


@pytest.mark.parametrize("grouped", [False, True])
def test_the_interval_of_a_rank_correlation_is_scipys(grouped):
    rng = np.random.default_rng(4)
    x = rng.normal(size=24)
    y = x + rng.normal(size=24)

    def spearman(rows):
        return scipy.stats.spearmanr(x[rows], y[rows]).statistic

    groups = np.arange(24) // 2 if grouped else np.arange(24)
    units = np.arange(24).reshape(-1, 2) if grouped else np.arange(24)[:, None]
    expected = scipy.stats.bootstrap(
        (np.arange(len(units)),), lambda drawn: spearman(units[drawn].ravel()), n_resamples=300, vectorized=False,
        rng=np.random.default_rng(9),
    ).confidence_interval  # fmt: skip
    value, low, high = interval(spearman, groups, draws=300, seed=9)
    assert value == spearman(np.arange(24))
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert np.isnan(interval(spearman, groups // 4, draws=3).low)


def test_a_statistic_of_columns_is_that_of_each():
    values = np.random.default_rng(0).gamma(2.0, size=(15, 3))
    together = interval(lambda rows: values[rows].mean(0), np.arange(15), draws=200)
    np.testing.assert_allclose([*together], interval(values, draws=200), rtol=1e-12)


def test_columns_are_as_if_alone():
    values = np.random.default_rng(0).gamma(2.0, size=(30, 4))
    values[:3, 1], values[:, 2], values[7:, 3] = np.nan, 0.25, np.nan
    groups = np.arange(30) // 2
    together = interval(values, groups, seed=2)
    for column in range(4):
        alone = interval(values[:, column], groups, seed=2)
        np.testing.assert_array_equal([each[column] for each in together], [*alone])
    assert together.reason == "fewer than 8 groups of prompts: no interval"


def test_groups_are_resampled_and_halved_whole():
    groups = np.repeat(np.arange(9), 2)
    weights, split = resamples(groups, draws=50), random_halves(groups, draws=50)
    assert weights is not None and split is not None
    for table in (weights, split):
        assert (table[:, ::2] == table[:, 1::2]).all()
    assert (weights.sum(1) == len(groups)).all()
    assert (split[:, ::2].sum(1) == 4).all()
    assert resamples(np.arange(7), draws=2) is None and random_halves(np.arange(3), draws=2) is None


def test_the_sign_flip_is_the_exact_test():
    values = np.random.default_rng(0).normal(0.4, 1, 10)
    signs = np.array(list(itertools.product([1, -1], repeat=10)))
    exact = (np.abs(signs @ values) >= abs(values.sum()) * (1 - 1e-12)).mean()
    assert sign_flip_p(values) == pytest.approx(exact, abs=0.01)
    assert sign_flip_p(np.append(values, np.nan)) == sign_flip_p(values)
    assert np.isnan(sign_flip_p(values[:7]))


def test_holm_by_hand():
    assert holm(np.array([0.01, 0.04, 0.03, np.nan])) == pytest.approx([0.03, 0.06, 0.06, np.nan], nan_ok=True)
    assert holm(np.array([0.9, 0.8])) == pytest.approx([1, 1])


def test_a_permutation_p_is_two_sided_about_the_centre():
    assert permutation_p(3.0, np.array([-3.0, 1.0, 2.0])) == pytest.approx(0.5)
    assert permutation_p(1.0, np.full(9, 1.0)) == 1.0
    assert np.isnan(permutation_p(float("nan"), np.zeros(3))) and np.isnan(permutation_p(1.0, np.zeros(0)))
