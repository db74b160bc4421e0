"""The models of a comparison: adapters of base, vocabularies that differ, replicates."""

import copy
import json

import numpy as np
import pytest
import torch

import interp
from interp.errors import LoadError, MeasureError, TokenizerMismatch
from interp.models.matched import load_matched, shared_tokens
from tests.conftest import WORDS, save, tiny_gpt2, tiny_llama
from tests.interp.comparisons import compare
from tests.interp.test_adapters import adapted, merged, write
from tests.interp.test_models import classifier

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's call

PROMPTS = interp.Prompts(["this movie was really", "the plot was", "a film"] * 3, answers=(" bad", " good"))
TARGETS = {"gpt2": ["c_attn", "c_proj", "c_fc"], "llama": "all-linear"}


@pytest.fixture
def pair(tmp_path, make_model, family, tokenizer):
    """Folders of a base, of an adapter of it, and of both merged."""
    base = save(make_model(), tmp_path / "base", tokenizer)
    theirs = adapted(make_model, target_modules=TARGETS[family])
    adapter = write(theirs, tmp_path / "adapter", base_model_name_or_path=str(base))
    return base, adapter, save(merged(theirs), tmp_path / "merged", tokenizer)


def same(first, second, limit=1e-5):
    """Every number of two comparisons, to a fraction of the largest of its array."""
    assert set(first.keys()) == set(second.keys())
    for name in first.keys():
        a, b = first[name].values, second[name].values
        if a.dtype == object:
            assert (a == b).all(), name
        else:
            assert np.array_equal(np.isnan(a), np.isnan(b)), name
            np.testing.assert_allclose(a, b, atol=limit * max(1, np.nanmax(np.abs(b), initial=0)), err_msg=name)


def test_an_adapter_compares_like_its_merged_model(pair):
    base, adapter, whole = pair
    options = dict(measures="all", max_new_tokens=4)
    got, expected = (compare(base, tuned, PROMPTS, **options) for tuned in (adapter, whole))
    assert float(expected["kl"].max()) > 0.01 and float(expected["qk_change"].max()) > 0.01
    same(got, expected)
    between = compare(adapter, whole, PROMPTS, **options)
    assert float(between["kl"].max()) < 1e-6 and float(between["param_change"].max()) < 1e-6
    itself = compare(adapter, adapter, PROMPTS, **options)
    for name in ("kl", "pattern_js", "qk_change", "param_change", "attribution_write"):
        assert float(abs(itself[name]).max()) == 0, name


def test_the_adapter_shares_the_weights_of_base(pair):
    models = load_matched(pair[0], pair[1], controls=[pair[1]], options={})
    addresses = [
        {name: p.data_ptr() for name, p in policy.model.named_parameters()} for policy in (models.base, *models.others)
    ]
    assert addresses[0] == addresses[1] == addresses[2]
    assert json.loads(json.dumps(dict(models.tuned.description)))["folder"] == str(pair[1])
    assert models.tuned.description["sha256"].keys() == {"adapter_config.json", "adapter_model.safetensors"}
    alone = interp.Policy.load(pair[1])
    assert alone.tokenizer.get_vocab() == models.base.tokenizer.get_vocab()
    on_it = interp.Policy.load(pair[1], base=models.base)
    assert next(on_it.model.parameters()).data_ptr() == next(models.base.model.parameters()).data_ptr()


def test_a_module_is_given_back_as_it_was(pair, make_model, tokenizer):
    base = make_model()
    before, kinds = copy.deepcopy(base.state_dict()), [type(m) for m in base.modules()]
    first = compare(base, pair[1], PROMPTS, tokenizer=tokenizer, measures=["kl", "weights"])
    assert [type(m) for m in base.modules()] == kinds
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state_dict().items())
    assert all(p.requires_grad for p in base.parameters())
    same(first, compare(*pair[::2], PROMPTS, measures=["kl", "weights"]))


def test_a_model_of_peft_and_the_base_inside_it(pair, make_model, family, tokenizer):
    theirs = adapted(make_model, target_modules=TARGETS[family])
    inside = theirs.get_base_model()
    measures = ["kl", "weights", "attribution"]
    expected = compare(*pair[::2], PROMPTS, measures=measures)
    for base in (inside, make_model()):
        same(
            compare(base, theirs, PROMPTS, tokenizer=tokenizer, measures=["kl", "weights", "attribution"]),
            expected,
        )
    assert float(compare(theirs, theirs, PROMPTS, tokenizer=tokenizer, measures=["kl"])["kl"].max()) == 0
    assert any("lora" in name for name, _ in theirs.named_modules())


def test_an_adapter_of_another_base(tmp_path, tokenizer, pair, make_model, family):
    other = save(make_model(5), tmp_path / "other", tokenizer)
    with pytest.raises(LoadError, match=r"was made for .*base, and base is .*other; pass that as base, or"):
        compare(other, pair[1], PROMPTS)
    copied = save(make_model(), tmp_path / "copy", tokenizer)
    assert compare(copied, pair[1], PROMPTS, measures=["kl"])["kl"].max() > 0
    insisted = interp.Policy.load(pair[1], base=other)
    assert compare(other, insisted, PROMPTS, measures=["kl"])["kl"].max() > 0
    theirs = adapted(make_model, target_modules=TARGETS[family])
    nameless = write(theirs, tmp_path / "nameless", base_model_name_or_path=None)
    with pytest.raises(LoadError, match="does not name its base; pass base="):
        interp.Policy.load(nameless)
    assert compare(pair[0], nameless, PROMPTS, measures=["kl"])["kl"].max() > 0
    gone = write(theirs, tmp_path / "gone", base_model_name_or_path="/no/such/folder")
    with pytest.raises(LoadError, match="the base of the adapter .*there is no folder '/no/such/folder'"):
        interp.Policy.load(gone)
    named = write(theirs, tmp_path / "named", base_model_name_or_path="someone/else")
    assert compare(pair[0], named, PROMPTS, measures=["kl"])["kl"].max() > 0


class TestVocabularies:
    @pytest.fixture
    def longer(self, tokenizer):
        other = copy.deepcopy(tokenizer)
        other.add_tokens(["<extra>", "<more>"])
        return other

    @pytest.fixture
    def extended(self, tmp_path, tokenizer, longer, make_model):
        """A base, and a tuned version with two more tokens, of which the first is likely."""
        base, tuned = make_model(), make_model(1)
        tuned.resize_token_embeddings(len(longer) + 5, mean_resizing=False)
        return save(base, tmp_path / "b", tokenizer), save(tuned, tmp_path / "t", longer)

    def test_added_tokens_are_left_out_and_their_mass_is_told(self, extended, tokenizer):
        cmp = compare(*extended, PROMPTS, measures="all", max_new_tokens=8)
        assert (cmp["mass_outside"].sel(model="base") == 0).all()
        policy = interp.Policy.load(extended[1])
        size = len(tokenizer)
        ids = torch.tensor([tokenizer("this movie was really")["input_ids"]])
        with torch.no_grad():
            whole = policy.model(ids).logits[0, -1].double()
        outside = cmp["mass_outside"].sel(model="tuned").values[0]
        assert outside == pytest.approx(float(whole.softmax(-1)[size:].sum()), rel=1e-5) and outside > 0
        shared = whole[:size].softmax(-1)
        assert cmp["top_prob"].sel(model="tuned", rank=0).values[0] == pytest.approx(float(shared.max()), rel=1e-5)
        assert not any("<extra>" in text for text in cmp["top_token"].values.ravel())
        assert cmp["completeness_error"].max() < 1e-4
        assert any(cmp.summary()["finding"].str.contains("tuned's probability outside the shared vocabulary"))

    def test_an_adapter_that_brings_tokens_along(self, tmp_path, tokenizer, longer):
        def grown():
            model = tiny_llama()
            model.resize_token_embeddings(len(longer), mean_resizing=False)
            return model

        base = save(tiny_llama(), tmp_path / "base", tokenizer)
        theirs = adapted(grown, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
        adapter = write(theirs, tmp_path / "adapter", base_model_name_or_path=str(base))
        longer.save_pretrained(adapter)
        whole = save(merged(theirs), tmp_path / "merged", longer)
        measures = ["next_token", "kl", "lens", "attribution", "weights"]
        got, expected = (compare(base, tuned, PROMPTS, measures=measures) for tuned in (adapter, whole))
        same(got, expected)
        assert float(got["mass_outside"].sel(model="tuned").min()) > 0

    def test_a_sampled_token_that_base_does_not_know_ends_what_is_scored(self, tmp_path, tokenizer, longer, family):
        tuned = tiny_llama(1)
        tuned.resize_token_embeddings(len(longer), mean_resizing=False)
        with torch.no_grad():
            tuned.lm_head.weight[-1] *= 8
        base = save(tiny_llama(), tmp_path / "b", tokenizer)
        cmp = compare(base, save(tuned, tmp_path / "t", longer), PROMPTS, measures=["completions"], max_new_tokens=8)
        texts = cmp["completion"].sel(source="tuned", draw=0).values
        scored = np.isfinite(cmp["response_kl"].sel(source="tuned", draw=0).values).sum(1)
        assert any("<more>" in text for text in texts)
        for text, count in zip(texts, scored, strict=True):
            assert (count == 0) == text.startswith("<more>")

    def test_padded_logits(self, tmp_path, tokenizer, make_model):
        tuned, options = make_model(1), dict(tokenizer=tokenizer, measures=["kl", "lens"])
        expected = compare(make_model(), copy.deepcopy(tuned), PROMPTS, **options)
        tuned.resize_token_embeddings(len(tokenizer) + 18, mean_resizing=False)
        got = compare(make_model(), tuned, PROMPTS, **options)
        np.testing.assert_allclose(got["kl"], expected["kl"], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(got["lens_kl"], expected["lens_kl"], rtol=1e-4, atol=1e-6)
        assert "mass_outside" in got and "mass_outside" not in expected
        wide = make_model()
        wide.resize_token_embeddings(len(tokenizer) + 18, mean_resizing=False)
        assert "mass_outside" not in compare(wide, tuned, PROMPTS, tokenizer=tokenizer, measures=["kl"])

    def test_different_tokenizers_leave_what_the_models_say(self, tmp_path, tokenizer):
        other = other_ids(tokenizer)
        base = save(tiny_gpt2(), tmp_path / "b", tokenizer)
        tuned = save(tiny_llama(1, vocab_size=len(other)), tmp_path / "t", other)
        with pytest.raises(
            TokenizerMismatch, match=r"differ from id .*next_token.* need one vocabulary: pass measures="
        ):
            compare(base, save(tiny_gpt2(1), tmp_path / "t2", other), PROMPTS)
        scorer = interp.RewardModel.load(classifier(), tokenizer=tokenizer, label="POS")
        cmp = compare(base, tuned, PROMPTS, measures=["completions"], reward=scorer, max_new_tokens=5)
        assert "response_kl" not in cmp and np.isfinite(cmp["completion_reward"]).all()
        assert len(cmp.summary()) >= 3 and "reward" in repr(cmp)
        alone = compare(tuned, tuned, PROMPTS, measures=["completions"], max_new_tokens=5)
        assert (alone["completion"].sel(source="base").values == cmp["completion"].sel(source="tuned").values).all()
        cmp.save(tmp_path / "out")
        cmp.report(tmp_path / "report.html")
        with pytest.raises(MeasureError, match="its own tuned version"):
            compare(base, tuned, PROMPTS, measures=["weights"], tokenizer="base")

    def test_shared_tokens(self, tokenizer, longer):
        size = len(tokenizer)
        assert shared_tokens(tokenizer, tokenizer) == size
        assert shared_tokens(tokenizer, longer) == shared_tokens(longer, tokenizer) == size
        assert shared_tokens(tokenizer, other_ids(tokenizer)) is None

    def test_tokenizer_named_for_a_loaded_module(self, tokenizer):
        with pytest.raises(LoadError, match="base is a loaded module and comes without a tokenizer"):
            compare(tiny_gpt2(), tiny_gpt2(), PROMPTS, tokenizer="base")


def other_ids(tokenizer):
    """The same pieces under other ids."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    raw = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = raw["model"]["vocab"]
    last = max(vocabulary.values())
    end = "<|end|>"
    raw["model"]["vocab"] = {t: i if t == end else last + 1 - i for t, i in vocabulary.items()}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(raw)), bos_token=end, eos_token=end)


def test_replicates_show_their_range(tmp_path, make_model, tokenizer):
    base, tuned, again, null = (make_model(seed) for seed in range(4))
    options = dict(tokenizer=tokenizer, measures=["logit_diff", "kl"])
    cmp = compare(base, tuned, PROMPTS, controls=[null], replicates=[again, tuned], **options)
    frame = cmp.summary()
    alone = [float(compare(base, run, PROMPTS, **options).summary()["estimate"][0]) for run in (again, tuned)]
    assert frame["replicate_low"][0] == pytest.approx(min(alone))
    assert frame["replicate_high"][0] == pytest.approx(max(alone))
    loaded = interp.Comparison.load(cmp.save(tmp_path / "out"))
    assert [len(loaded.controls), len(loaded.replicates)] == [1, 2]
    for kept, read in zip((*cmp.controls, *cmp.replicates), (*loaded.controls, *loaded.replicates), strict=True):
        assert kept.identical(read)
    assert len(json.loads(loaded.dataset.attrs["replicates"])) == 2


def test_words_are_single_tokens(tokenizer):
    """What the vocabularies above rest on."""
    assert all(len(tokenizer(" " + word)["input_ids"]) == 1 for word in WORDS)
