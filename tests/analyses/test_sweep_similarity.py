"""Similarity across emotions, against plain loops and scipy."""

import itertools

import numpy as np
import pytest
import scipy.stats

from analyses.sweep.similarity import centred_cosines, gram_of, mantel, order_of
from interp.errors import MeasureError


def test_centred_cosines_are_those_of_centred_vectors():
    vectors = np.random.default_rng(0).normal(size=(5, 40)) + 3
    own = [True, True, True, True, False]
    left = vectors - vectors[:4].mean(0)
    left[4] = vectors[4]  # a second seed stays whole
    expected = [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a in left] for b in left]
    np.testing.assert_allclose(centred_cosines(gram_of(vectors), own), expected, atol=1e-12)
    with pytest.raises(MeasureError, match="two pairs or more"):
        centred_cosines(gram_of(vectors), [True, *[False] * 4])


def test_second_seeds_that_share_nothing_are_not_alike():
    vectors = np.random.default_rng(0).normal(size=(9, 40_000))
    found = centred_cosines(gram_of(vectors), [True] * 7 + [False] * 2)
    assert abs(found[7, 8]) < 0.02 and np.abs(found[:7, 7:]).max() < 0.02
    own = found[:7, :7][np.triu_indices(7, 1)]
    np.testing.assert_allclose(own, -1 / 6, atol=0.02)


def test_a_change_that_all_share_leaves_nothing():
    assert np.isnan(centred_cosines(gram_of(np.ones((3, 7))), [True] * 3)).all()


def symmetric(seed, count):
    values = np.random.default_rng(seed).normal(size=(count, count))
    return values + values.T


def test_mantel_by_all_permutations():
    first, second = symmetric(0, 5), symmetric(1, 5)
    upper = np.triu_indices(5, 1)
    found = mantel(first, second, permutations=20_000, seed=0)
    value = scipy.stats.spearmanr(first[upper], second[upper]).statistic
    drawn = [
        scipy.stats.spearmanr(first[np.ix_(order, order)][upper], second[upper]).statistic
        for order in itertools.permutations(range(5))
    ]
    exact = np.mean(np.abs(drawn) >= abs(value) - 1e-12)
    assert found.correlation == pytest.approx(value) and found.p == pytest.approx(exact, abs=0.015)


def test_mantel_of_a_matrix_with_itself_and_of_too_few():
    table = symmetric(2, 8)
    found = mantel(table, 3 * table + 1, permutations=999, seed=0)
    assert found.correlation == pytest.approx(1) and found.p < 0.01
    assert np.isnan(mantel(table[:3, :3], table[:3, :3], permutations=99).p)
    assert np.isnan(mantel(np.ones((5, 5)), table[:5, :5], permutations=99).correlation)


def test_the_order_puts_like_beside_like():
    groups = np.array([0, 1, 0, 1, 0, 1])
    table = np.where(groups[:, None] == groups, 0.9, -0.5)
    np.fill_diagonal(table, 1)
    order, tree = order_of(table)
    assert tree is not None and len(set(groups[order[:3]])) == 1 and sorted(order) == list(range(6))
    assert order_of(table[:2, :2]) == ([0, 1], None)
