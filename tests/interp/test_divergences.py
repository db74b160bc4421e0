"""KL, JS and entropies of many rows at once, against the functions that give them one by one."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy as scipy_entropy

from interp.divergences import (
    KINDS,
    divergences,
    entropy,
    entropy_of_log_probs,
    js_divergence,
    kl_divergence,
    log_probs,
)


def by_scipy(tuned, base):
    p, q = (logits.double().softmax(-1).numpy() for logits in (tuned, base))
    return [
        scipy_entropy(p, q, axis=-1),
        jensenshannon(p, q, axis=-1) ** 2,
        scipy_entropy(q, axis=-1),
        scipy_entropy(p, axis=-1),
    ]


@pytest.mark.parametrize("block", [1, 40, 2**19])
def test_rows_in_blocks_against_scipy(monkeypatch, block):
    monkeypatch.setattr("interp.divergences._BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(3, 5, 17, generator=generator, dtype=torch.float64)
    tuned = base + 0.2 * torch.randn(base.shape, generator=generator, dtype=torch.float64)
    where = torch.rand(3, 5, generator=generator) > 0.4
    got = divergences(tuned, base, where)
    assert got.shape == (len(KINDS), int(where.sum()))
    np.testing.assert_allclose(got, by_scipy(tuned[where], base[where]), rtol=1e-9)


def test_equal_rows_differ_by_exactly_nothing_and_impossible_tokens_count_nothing():
    logits = torch.randn(4, 1000, generator=torch.Generator().manual_seed(1))
    everywhere = torch.ones(4, dtype=torch.bool)
    same = divergences(logits, logits.clone(), everywhere)
    assert (same[:2] == 0).all() and (same[2] == same[3]).all()
    logits[:, 10:20] = -torch.inf
    other = logits + torch.randn(1000, generator=torch.Generator().manual_seed(2))
    got, finite = divergences(other, logits, everywhere), torch.isfinite(logits[0])
    np.testing.assert_allclose(got, by_scipy(other[:, finite], logits[:, finite]), rtol=2e-4)
    other[:, 30] = -torch.inf  # tuned rules out what base allows: finite; the other way round: infinite
    assert torch.isfinite(divergences(other, logits, everywhere)).all()
    turned = divergences(logits, other, everywhere)
    assert torch.isinf(turned[0]).all() and torch.isfinite(turned[1:]).all()


def test_disjoint_distributions_and_certain_ones():
    certain = torch.full((2, 3), -torch.inf)
    certain[0, 0] = certain[1, 2] = 0
    kl, js, *entropies = divergences(certain[:1], certain[1:], torch.tensor([True]))
    assert kl.item() == torch.inf and js.item() == pytest.approx(np.log(2))
    assert [each.item() for each in entropies] == [0, 0]


def test_one_by_one_and_at_once_are_the_same_numbers():
    base, tuned = torch.randn(2, 6, 50, generator=torch.Generator().manual_seed(3))
    got = divergences(tuned, base, torch.ones(6, dtype=torch.bool))
    assert torch.equal(got[0], kl_divergence(tuned, base))
    assert torch.equal(got[1], js_divergence(log_probs(tuned).exp(), log_probs(base).exp()))
    assert torch.equal(got[2], entropy_of_log_probs(log_probs(base)))
    torch.testing.assert_close(got[3], entropy(tuned.double().softmax(-1)), atol=1e-6, rtol=1e-6)


def test_a_model_that_gives_nan_gives_nan():
    logits = torch.randn(2, 8)
    broken = logits.clone()
    broken[1, 3] = torch.nan
    kl = divergences(broken, logits, torch.tensor([True, True]))[0]
    assert torch.isfinite(kl[0]) and torch.isnan(kl[1])


def test_half_precision_is_read_as_single():
    base, tuned = torch.randn(2, 4, 300, generator=torch.Generator().manual_seed(4)).bfloat16()
    got = divergences(tuned, base, torch.ones(4, dtype=torch.bool))
    np.testing.assert_allclose(got, by_scipy(tuned.float(), base.float()), rtol=1e-4)
