"""Reading and changing every site of every architecture."""

import pytest
import torch

from interp.errors import MeasureError
from interp.families import Parts
from interp.hooks import Site, capture, has_site, patch
from interp.hooks.attention import KERNEL
from interp.models.running import run
from interp.prompts import make_batch
from tests.interp import architectures

NAMES = "resid_pre resid_mid attn_out q k v pattern z result mlp_post mlp_out resid_post".split()
ROWS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15], [20, 21, 22]]
ENCODER = [[3, 4, 5, 6, 7, 8], [9, 3, 2], [4, 4, 4, 1]]


def batch_for(parts: Parts, side: str = "right"):
    return make_batch(ROWS, encoder=ENCODER if parts.family.encoder else None, padding_side=side)


def sites_of(parts: Parts, layer: int = 1) -> list[Site]:
    found = []
    for stack in parts.stacks:
        for name in NAMES:
            if stack == "cross" and (name.startswith("mlp") or name in ("resid_pre", "resid_post")):
                continue
            if has_site(parts, Site(name, layer, stack)):
                found.append(Site(name, layer, stack))
    return found


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", architectures.LANGUAGE_MODELS)
def test_a_changed_site_holds_what_was_put_there(name, side):
    recipient, source = (Parts(architectures.build(name, seed=seed).eval()) for seed in (0, 1))
    batch = batch_for(recipient, side)
    real = batch.attention_mask
    clean, _ = run(recipient, batch, eager=True)
    for site in sites_of(recipient):
        if site.name == "pattern" and recipient.family.name == "bloom":
            continue
        _, theirs = run(source, batch, [site], eager=True)
        with patch(recipient, {site: lambda value: value.clone()}):
            same, _ = run(recipient, batch, eager=True)
        with patch(recipient, {site: lambda value, new=theirs[site]: new}):
            patched, got = run(recipient, batch, [] if site.name == "result" else [site], eager=True)
        scale = clean[real].abs().max()
        assert (same - clean)[real].abs().max() <= 1e-6 * scale, site
        assert (patched - clean)[real].abs().max() > 1e-3 * scale, site
        if got:
            torch.testing.assert_close(got[site], theirs[site], atol=1e-5, rtol=1e-5)
    assert recipient.model.config._attn_implementation != KERNEL
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in recipient.model.modules())


@pytest.mark.parametrize("name", architectures.LANGUAGE_MODELS)
def test_values_times_pattern_are_z_and_results_sum_to_the_attention(name):
    parts = Parts(architectures.build(name).eval())
    batch = batch_for(parts)
    for stack in parts.stacks:
        names = ("v", "pattern", "z", "result", "attn_out")
        sites = {each: Site(each, 1, stack) for each in names}
        _, got = run(parts, batch, sites.values())
        values = got[sites["v"]].repeat_interleave(parts.n_heads // parts.n_kv_heads, dim=2)
        z = torch.einsum("bhqk,bkhd->bqhd", got[sites["pattern"]], values)
        mask = batch.encoder_mask if stack == "encoder" else batch.attention_mask
        torch.testing.assert_close(z[mask], got[sites["z"]][mask], atol=1e-5, rtol=1e-5)
        if parts.path("attn_post_norm", stack) is None:
            bias = parts.b_O(1, stack)
            total = got[sites["result"]].sum(2) + (0 if bias is None else bias)
            torch.testing.assert_close(total[mask], got[sites["attn_out"]][mask], atol=1e-5, rtol=1e-5)


def test_q_and_k_are_those_of_the_dot_product():
    """The pattern of a Llama, rotary embedding and grouped keys included, by hand from q and k."""
    parts = Parts(architectures.build("LlamaForCausalLM").eval())
    batch = make_batch([ROWS[0]])
    _, got = run(parts, batch, [Site("q", 1), Site("k", 1), Site("pattern", 1)])
    keys = got[Site("k", 1)].repeat_interleave(2, dim=2)
    scores = torch.einsum("bqhd,bkhd->bhqk", got[Site("q", 1)], keys) / parts.d_head**0.5
    scores = scores.masked_fill(~torch.ones(7, 7).tril().bool(), -torch.inf)
    torch.testing.assert_close(scores.softmax(-1), got[Site("pattern", 1)], atol=1e-6, rtol=1e-5)


def test_a_changed_resid_mid_changes_the_residual_itself():
    parts = Parts(architectures.build("GPT2LMHeadModel").eval())
    batch = batch_for(parts)
    sites = [Site("resid_mid", 1), Site("mlp_out", 1), Site("resid_post", 1)]
    with patch(parts, {sites[0]: lambda value: value + 1.0}):
        _, got = run(parts, batch, sites)
    _, plain = run(parts, batch, sites)
    torch.testing.assert_close(got[sites[0]], plain[sites[0]] + 1.0, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got[sites[2]], got[sites[0]] + got[sites[1]], atol=1e-5, rtol=1e-5)


def test_edits_of_one_module_follow_the_order_of_the_pass():
    """result, then attn_out, then resid_mid: each sees what the one before made."""
    parts = Parts(architectures.build("GPT2LMHeadModel").eval())
    batch = batch_for(parts)
    seen = {}

    def edit(name, value):
        seen[name] = value.clone()
        return torch.zeros_like(value)

    with patch(parts, {Site(name, 0): lambda value, name=name: edit(name, value) for name in ("resid_mid", "result")}):
        run(parts, batch)
    _, plain = run(parts, batch, [Site("resid_pre", 0)])
    expected = plain[Site("resid_pre", 0)] + parts.b_O(0)
    torch.testing.assert_close(seen["resid_mid"], expected, atol=1e-5, rtol=1e-5)


def test_nothing_is_left_after_an_error():
    model = architectures.build("GPT2LMHeadModel").eval()
    parts, kernel = Parts(model), model.config._attn_implementation
    before, _ = run(parts, batch_for(parts))

    def fails(value):
        raise ZeroDivisionError

    sites = [Site("q", 0), Site("z", 1), Site("result", 1), Site("resid_mid", 2)]
    for site in sites:
        with pytest.raises(ZeroDivisionError), patch(parts, {site: fails}):
            run(parts, batch_for(parts))
    with pytest.raises(MeasureError, match="layers 0 to 2"), patch(parts, {Site("q", 0): fails, Site("z", 9): fails}):
        raise AssertionError("there is no layer 9")
    after, _ = run(parts, batch_for(parts))
    assert torch.equal(before, after) and model.config._attn_implementation == kernel
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_bloom_says_that_its_pattern_cannot_be_changed():
    parts = Parts(architectures.build("BloomForCausalLM").eval())
    with (
        pytest.raises(MeasureError, match="patch q, k, v or z"),
        patch(parts, {Site("pattern", 0): lambda value: value}),
    ):
        raise AssertionError("refused before the pass")


def test_capture_keeps_the_graph_when_asked():
    parts = Parts(architectures.build("GPT2LMHeadModel").eval())
    batch = batch_for(parts)
    with capture(parts, [Site("z", 0), Site("q", 2)], keep_graph=True) as store:
        logits = parts.model(input_ids=batch.input_ids).logits
    gradient = torch.autograd.grad(logits.sum(), [store[Site("z", 0)], store[Site("q", 2)]])
    assert all(float(each.abs().max()) > 0 for each in gradient)
