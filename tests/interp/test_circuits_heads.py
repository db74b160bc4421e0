"""What changed in a head: parts planted one at a time, and the scores by hand."""

import copy

import numpy as np
import pytest
import torch

from interp import Policy, Prompts
from interp.circuits import head_changes
from interp.circuits.heads import head_scores, repeated_tokens
from interp.errors import MeasureError
from tests.interp import architectures
from tests.interp.test_patching import TEXTS

PARTS = {"W_Q": "q", "W_K": "k", "W_V": "v", "W_O": "o"}


@pytest.fixture(params=["q", "k", "v", "o"])
def planted(request, make_model, tokenizer):
    """A pair whose second model has other weights in one part of head 1 of layer 1 (its key-value group of k and v)."""
    base = make_model()
    tuned = copy.deepcopy(base)
    policy = Policy.load(tuned, tokenizer=tokenizer)
    parts, name = policy.parts, request.param
    weight = {"q": parts.W_Q, "k": parts.W_K, "v": parts.W_V, "o": parts.W_O}[name](1)
    head = 1 if name in "qo" else 1 // (parts.n_heads // parts.n_kv_heads)
    with torch.no_grad():
        weight[head] += torch.randn(weight[head].shape, generator=torch.Generator().manual_seed(0))
    return name, Policy.load(base, tokenizer=tokenizer), policy


def test_the_planted_part_is_named(planted):
    name, base, tuned = planted
    found = head_changes(base, tuned, Prompts(TEXTS), heads=[(1, 1)], metric="kl").dataset.isel(changed_head=0)
    recovery = dict(zip(found["part"].values.tolist(), found["recovery"].values.tolist(), strict=True))
    alone = base.parts.n_kv_heads == base.parts.n_heads  # else k and v of the group move other heads too
    if name in "qk":
        assert float(found["pattern_js"].mean()) > 1e-4
        assert float(found["pattern_recovery"].sel(part=name)) == pytest.approx(1.0, abs=1e-4)
        assert float(found["pattern_recovery"].sel(part="k" if name == "q" else "q")) == pytest.approx(0.0, abs=1e-4)
    else:
        assert float(found["pattern_js"].max()) < 1e-9 and np.isnan(found["pattern_recovery"].values).all()
    if name == "o":
        assert recovery["result"] == pytest.approx(1.0, abs=1e-3)
        assert max(abs(recovery[each]) for each in "qkvz") < 1e-3
    else:
        assert recovery[name] == pytest.approx(1.0, abs=1e-3)
        others = [each for each in "qkv" if each != name]
        assert max(abs(recovery[each]) for each in others) < 1e-3
        if alone:
            assert recovery["z"] == pytest.approx(1.0, abs=1e-3) and recovery["result"] == pytest.approx(1.0, abs=1e-3)


def test_the_heads_that_changed_most_come_first(planted):
    name, base, tuned = planted
    if name not in "qk":
        pytest.skip("v and o change no pattern of their own layer")
    found = head_changes(base, tuned, Prompts(TEXTS), count=3, metric="kl")
    order = found.dataset["pattern_js"].mean("prompt").values
    assert (np.diff(order) <= 0).all() and "L1H1" in found.summary()["head"].tolist()
    shares = found.dataset["attended_share"].values
    assert (np.diff(shares, axis=-1) <= 0).all() and shares.sum(-1).max() <= 1 + 1e-9
    assert "What changed in 3 heads; the pattern of L" in repr(found)


def test_scores_by_hand():
    length = 3
    pattern = torch.zeros(1, 7, 7)
    pattern[0, :, 0] = 0.5
    pattern[0, range(1, 7), range(6)] += 0.25  # the token before
    pattern[0, range(4, 7), range(1, 4)] += 0.125  # the earlier copy
    pattern[0, range(4, 7), range(2, 5)] += 0.0625  # the one after it
    previous, duplicate, induction = head_scores(pattern, length)
    assert previous == pytest.approx((6 * 0.25 + 0.5) / 6)  # the first query's token before is the first token
    assert duplicate == pytest.approx(0.125) and induction == pytest.approx(0.0625)


def test_an_induction_head_has_the_score():
    """A pattern that attends to the token after the earlier copy, in full."""
    length = 4
    pattern = torch.zeros(2, 9, 9)
    pattern[:, :, 0] = 1.0
    for query in range(5, 9):
        pattern[:, query] = 0.0
        pattern[:, query, query - length + 1] = 1.0
    assert head_scores(pattern, length)[2] == 1.0 and head_scores(pattern, length)[1] == 0.0


def test_random_tokens_are_repeated_and_none_is_special(make_model, tokenizer):
    policy = Policy.load(make_model(), tokenizer=tokenizer)
    ids = repeated_tokens(policy, 10, 0)
    assert ids.shape[1] == 21 and torch.equal(ids[:, 1:11], ids[:, 11:])
    assert not set(ids[:, 1:].flatten().tolist()) & set(tokenizer.all_special_ids)


def test_mistakes_are_one_sentence(make_model, tokenizer):
    base, tuned = make_model(), make_model()
    with torch.no_grad():
        next(tuned.parameters()).add_(0.1)
    pair = [Policy.load(model, tokenizer=tokenizer) for model in (base, tuned)]
    with pytest.raises(MeasureError, match="no head 99 in layer 0"):
        head_changes(*pair, TEXTS, heads=[(0, 99)])
    with pytest.raises(MeasureError, match="no heads were named"):
        head_changes(*pair, TEXTS, heads=[])
    name, size = "T5ForConditionalGeneration", len(tokenizer)
    models = [architectures.build(name, seed=seed, vocab_size=size).eval() for seed in (0, 1)]
    with pytest.raises(MeasureError, match="causal models"):
        head_changes(*(Policy.load(model, tokenizer=tokenizer) for model in models), TEXTS)
