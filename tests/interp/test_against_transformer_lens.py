"""Our sites against TransformerLens's hooks of the same name."""

import copy

import pytest
import torch
from transformers import AutoTokenizer

from interp.hooks import Site
from interp.models import Policy
from interp.prompts import make_batch

NAMES = {
    "resid_pre": "hook_resid_pre",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "z": "attn.hook_z",
    "pattern": "attn.hook_pattern",
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # its import warns in several places; what is tested is ours
def test_sites_equal_transformer_lens_hooks(make_model, family, tokenizer, tmp_path):
    bridge_module = pytest.importorskip("transformer_lens.model_bridge", reason="TransformerLens is not installed")
    model = make_model()
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    bridge = bridge_module.TransformerBridge.boot_transformers(
        str(folder), hf_model=copy.deepcopy(model), tokenizer=AutoTokenizer.from_pretrained(folder), dtype=torch.float32
    )
    ids = [5, 9, 2, 7, 11, 3]
    _, cache = bridge.run_with_cache(torch.tensor([ids]), prepend_bos=False)
    policy = Policy.load(model, tokenizer=tokenizer)
    sites = [Site(name, layer) for name in NAMES for layer in range(3)]
    trace = policy.trace(make_batch([ids]), sites)
    for site in sites:
        theirs = cache[f"blocks.{site.layer}.{NAMES[site.name]}"]
        torch.testing.assert_close(trace[site], theirs.reshape(trace[site].shape), atol=1e-5, rtol=1e-5, msg=str(site))
