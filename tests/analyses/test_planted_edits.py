"""What is planted by itself is found where it was planted, wholly, in both directions."""

import copy
import math

import pytest
import torch

from analyses.planted.edits import (
    Component,
    added,
    components,
    delta_of,
    own_weights,
    put,
    rank_one,
    rotate_ov,
    rotation,
    scale_ov,
    scaled,
    strength,
    swap_qk,
    typical_strength,
)
from interp.errors import MeasureError
from interp.families import Parts
from interp.models import Policy
from interp.patching import activation_patching
from interp.prompts import Prompts

TEXTS = [
    "the cat sat",
    "a dog ran",
    "the bird sang",
    "a cat ran",
    "the dog sat",
    "a bird sat",
    "the cat ran",
    "a dog sang",
    "the dog ran",
]
STORIES = [
    "Once upon a time there was a", "One day Tom went to the park and", "Lily liked to play with her",
    "The little dog was very", "Mom said that they could go to", "Ben saw a big red", "They ran home and told their",
    "The bird sat in the tree and",
]  # fmt: skip


def key_of(parts: Parts, layer: int) -> torch.Tensor:
    size = parts.W_down(layer)[0].shape[0]
    return torch.rand(size, generator=torch.Generator().manual_seed(1))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


PLANTS = {
    "ov scaled": (lambda parts: scale_ov(1, 2, 2.0), {("result", 1): [2]}),
    "ov removed": (lambda parts: scale_ov(0, 1, 0.0), {("result", 0): [1]}),
    "ov rotated": (lambda parts: rotate_ov(1, 3, 60.0, generator()), {("result", 1): [3]}),
    "qk swapped": (lambda parts: swap_qk(1, 0, 1), {("result", 1): [0, 1]}),
    "mlp rank one": (lambda parts: rank_one(1, 0.5, key_of(parts, 1), generator()), {("mlp_out", 1): None}),
}


def planted(policy: Policy, edit) -> Policy:
    other = copy.deepcopy(policy.model)
    put(policy.model, other, delta_of(policy.model, edit(policy.parts)))
    return Policy.load(other, tokenizer=policy.tokenizer)


def check(base: Policy, prompts: Prompts, name: str) -> None:
    edit, site = PLANTS[name]
    tuned = planted(base, edit)
    for recipient, source in ((base, tuned), (tuned, base)):
        found = activation_patching(recipient, source, prompts, sites=site, metric="kl", draws=0)
        assert float(found["recipient"].sum()) > 1e-5  # there is something to recover
        assert abs(float(found["recovery"][0]) - 1) <= 1e-4


@pytest.mark.parametrize("name", PLANTS)
def test_a_clean_plant_is_recovered_where_it_is(make_model, tokenizer, name):
    check(Policy.load(make_model(), tokenizer=tokenizer), Prompts(TEXTS), name)


@pytest.mark.parametrize("name", PLANTS)
def test_a_clean_plant_in_a_real_model_is_recovered_where_it_is(stories, name):
    check(Policy.load(str(stories)), Prompts(STORIES), name)


def test_elsewhere_it_is_not_recovered(make_model, tokenizer):
    base = Policy.load(make_model(), tokenizer=tokenizer)
    tuned = planted(base, PLANTS["ov scaled"][0])
    found = activation_patching(base, tuned, Prompts(TEXTS), sites={("result", 1): [1]}, metric="kl", draws=0)
    assert abs(float(found["recovery"][0])) <= 1e-4  # a head beside it reads and writes what it always did


def test_a_swap_is_an_exchange(make_model, tokenizer):
    """Twice is never; and each of the two attends as the other did, where no bias tells them apart."""
    model = make_model()
    once, parts = copy.deepcopy(model), Parts(model)
    with torch.no_grad():
        swap_qk(1, 0, 1)(Parts(once))
        assert torch.equal(Parts(once).W_Q(1)[0], parts.W_Q(1)[1])
        if parts.n_kv_heads == parts.n_heads:
            assert torch.equal(Parts(once).W_K(1)[1], parts.W_K(1)[0])
        swap_qk(1, 0, 1)(Parts(once))
    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), model.parameters(), strict=True))


def test_heads_that_read_shared_keys_are_swapped_within_a_group_only():
    from tests.conftest import tiny_llama

    with pytest.raises(MeasureError, match="swap two of one group of 2"):
        delta_of(tiny_llama(), swap_qk(0, 0, 2))


def test_a_rotation_turns_every_direction_by_the_angle():
    turned = rotation(6, 50.0, generator())
    torch.testing.assert_close(turned @ turned.T, torch.eye(6, dtype=torch.float64))
    vectors = torch.randn(9, 6, generator=generator(), dtype=torch.float64)
    cosines = torch.cosine_similarity(vectors, vectors @ turned, dim=-1)
    torch.testing.assert_close(cosines, torch.full((9,), 50.0, dtype=torch.float64).deg2rad().cos())


def test_a_rank_one_update_answers_to_its_key():
    from tests.conftest import tiny_llama

    model = tiny_llama()
    parts = Parts(model)
    key, weight = key_of(parts, 2), parts.W_down(2)[0].detach()
    delta = delta_of(model, rank_one(2, 0.25, key, generator()))
    other = copy.deepcopy(model)
    put(model, other, delta)
    change = Parts(other).W_down(2)[0].detach() - weight
    assert torch.linalg.matrix_rank(change, rtol=1e-4) == 1 and list(delta) == [next(iter(delta))]
    assert float(change.norm() / weight.norm()) == pytest.approx(0.25, rel=1e-5)
    across = torch.randn(len(key), generator=generator())
    across -= key * (across @ key) / (key @ key)
    assert (across @ change).norm() < 1e-4 * (key @ change).norm()


def test_the_weights_of_components_are_theirs_alone(make_model):
    model = make_model()
    parts, own = Parts(model), own_weights(model)
    assert list(own) == components(parts)
    assert str(Component(1, 2)) == "L1H2" and str(Component(1)) == "L1.mlp"
    counts = {name: torch.zeros(p.shape, dtype=torch.long) for name, p in model.named_parameters()}
    for component, masks in own.items():
        for name, mask in masks.items():
            counts[name] += mask
            assert f".{component.layer}." in name
    shared = parts.n_heads // parts.n_kv_heads
    assert {int(value) for count in counts.values() for value in count.unique()} <= {0, 1, shared}
    per_head = parts.d_model * parts.d_head * 4
    assert all(sum(int(m.sum()) for m in masks.values()) == per_head for c, masks in own.items() if c.head >= 0)


def test_strength_is_the_relative_norm(make_model):
    model = make_model()
    own, parts = own_weights(model), Parts(model)
    whole = {name: 0.3 * p.detach() for name, p in model.named_parameters()}
    assert all(strength(model, whole, own[c]) == pytest.approx(0.3, rel=1e-5) for c in own)
    assert typical_strength(model, scaled(whole, 2.0), own, list(own)) == pytest.approx(0.6, rel=1e-5)
    head = Component(1, 2)
    delta = delta_of(model, scale_ov(1, 2, 1.5))
    group = 2 // (parts.n_heads // parts.n_kv_heads)
    weights = [parts.W_Q(1)[2], parts.W_K(1)[group], parts.W_V(1)[group], parts.W_O(1)[2]]
    sizes = [float(weight.detach().double().norm()) for weight in weights]
    assert strength(model, delta, own[head]) == pytest.approx(0.5 * sizes[3] / math.hypot(*sizes), rel=1e-5)
    assert strength(model, delta, own[Component(1, 0)]) == 0 == strength(model, delta, own[Component(2)])


def test_an_edit_leaves_the_model_alone(make_model):
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    delta = delta_of(model, scale_ov(0, 0, 3.0))
    other = copy.deepcopy(model)
    put(model, other, added(delta, scaled(delta, -1.0)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(other.parameters(), model.parameters(), strict=True))
