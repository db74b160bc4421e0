"""Intervals of ratios and max-T against scipy, brute force and what they must hold."""

import itertools

import numpy as np
import pytest
import scipy.stats

from interp.resampling import max_t, ratio_of_sums


def test_the_interval_of_a_ratio_is_scipys():
    rng = np.random.default_rng(0)
    effects, gaps = rng.normal(1.0, 0.5, (40, 3)), rng.normal(2.0, 0.5, 40)
    value, low, high = ratio_of_sums(effects, gaps, np.arange(40), draws=20000)
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
    once = ratio_of_sums(effects, gaps, np.arange(12))
    five = ratio_of_sums(np.repeat(effects, 5, axis=0), np.repeat(gaps, 5), np.repeat(np.arange(12), 5))
    for first, second in zip(once, five, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-3)


def test_no_ratio_over_a_gap_of_chance():
    effects, gaps = np.ones((20, 1)), np.tile([1.0, -1.1], 10)
    assert all(np.isnan(each).all() for each in ratio_of_sums(effects, gaps, np.arange(20)))
    few = ratio_of_sums(np.ones((3, 1)), np.array([1.0, 2.0, 1.0]), np.arange(3))
    assert few[0] == pytest.approx([0.75]) and np.isnan(few[1]).all()


def test_max_t_by_all_flips():
    effects = np.random.default_rng(3).normal(0.4, 1.0, (9, 4))
    found = max_t(effects, np.arange(9), draws=10**6)
    own = np.abs(scipy.stats.ttest_1samp(effects, 0).statistic)
    largest = [
        np.abs(scipy.stats.ttest_1samp(effects * np.array(signs)[:, None], 0).statistic).max()
        for signs in itertools.product([1, -1], repeat=9)
    ]
    expected = [(np.array(largest) >= each - 1e-9).mean() for each in own]
    np.testing.assert_allclose(found, expected)


def test_max_t_holds_its_level():
    rng = np.random.default_rng(0)
    hits = sum(max_t(rng.normal(size=(16, 30)), np.arange(16), draws=199, seed=run).min() <= 0.05 for run in range(200))
    assert scipy.stats.binomtest(hits, 200, 0.05).pvalue > 0.01


def test_max_t_finds_a_planted_effect_and_nothing_in_zeros():
    effects = np.random.default_rng(0).normal(size=(16, 5))
    effects[:, 2] += 3.0
    effects[:, 4] = 0.0
    found = max_t(effects, np.arange(16))
    assert found[2] < 0.01 and found[4] == 1.0
    assert np.isnan(max_t(effects[:7], np.arange(7))).all()
