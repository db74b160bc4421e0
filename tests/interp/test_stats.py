import numpy as np
import pytest
import scipy.stats

from interp.stats import bootstrap_mean, null_range, selection_halves


def test_interval_is_scipys_where_every_prompt_is_its_own_group():
    values = np.random.default_rng(0).gamma(2.0, size=30)
    mean, lower, upper = bootstrap_mean(values, seed=5)
    expected = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=2000, rng=np.random.default_rng(5)
    ).confidence_interval
    assert mean == pytest.approx(values.mean())
    assert (lower, upper) == pytest.approx((expected.low, expected.high), rel=0.02)


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
