"""compare_many: the numbers of separate comparisons, with base computed once."""

import pytest
import torch

import interp
from interp.errors import MeasureError, PromptError
from interp.models import Policy, RewardModel
from tests.conftest import save, tiny_gpt2, tiny_llama
from tests.interp.comparisons import compare, compare_many
from tests.interp.test_compare import PROMPTS, TEXTS
from tests.interp.test_models import classifier
from tests.interp.traced import JOINED


def prompts(**options):
    return interp.Prompts(TEXTS, **{**PROMPTS, **options})


def same(found, expected):
    assert found.dataset.identical(expected.dataset)
    for kind in ("controls", "replicates"):
        ours, theirs = getattr(found, kind), getattr(expected, kind)
        assert len(ours) == len(theirs) and all(a.identical(b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("answered", [True, False], ids=["answers", "none"])
def test_each_is_what_compare_gives(make_model, tokenizer, answered):
    base, models = make_model(), {str(seed): make_model(seed) for seed in (1, 2)}
    asked = prompts() if answered else interp.Prompts(TEXTS)
    names = [name for name in interp.MEASURES if name not in JOINED and (answered or name != "logit_diff")]
    options = dict(tokenizer=tokenizer, measures=names, max_new_tokens=4, batch_size=4)
    found = compare_many(base, models, asked, **options)
    assert list(found) == list(models)
    for name, model in models.items():
        same(found[name], compare(base, model, asked, **options))


def test_base_s_weights_and_what_it_says_of_its_own_samples_are_computed_once(tokenizer, monkeypatch):
    from interp.measures import spectra

    traced, shapes, trace, spectrum = [], [], Policy.trace, spectra.spectrum

    def counted(policy, *args, **options):
        traced.append(policy.model)
        return trace(policy, *args, **options)

    monkeypatch.setattr(Policy, "trace", counted)
    monkeypatch.setattr(spectra, "spectrum", lambda matrix: (shapes.append(matrix.shape), spectrum(matrix))[1])
    base, models = tiny_gpt2(), {str(seed): tiny_gpt2(seed) for seed in (1, 2, 3)}
    matrices = sum(parameter.ndim == 2 for parameter in base.parameters())
    options = dict(tokenizer=tokenizer, measures=["completions", "weights"], max_new_tokens=3, batch_size=64)
    compare_many(base, models, prompts(), **options)
    assert len(shapes) == matrices * (1 + len(models)), "base's matrices once, and each model's change"
    assert sum(model is base for model in traced) == 1 + len(models), "on its own samples once, then on each model's"
    assert all(sum(model is other for model in traced) == 2 for other in models.values())


def test_controls_replicates_and_a_reward(tokenizer):
    base, models, control = tiny_gpt2(), {"a": tiny_gpt2(1), "b": tiny_gpt2(2)}, tiny_gpt2(5)
    options = dict(tokenizer=tokenizer, measures=["kl", "completions"], max_new_tokens=3, controls=[control])
    options["reward"] = RewardModel.load(classifier(), label="POS", tokenizer=tokenizer)
    seeds = {"b": [tiny_gpt2(3)]}
    found = compare_many(base, models, prompts(), replicates=seeds, **options)
    for name, model in models.items():
        same(found[name], compare(base, model, prompts(), replicates=seeds.get(name), **options))


def test_from_folders_one_model_in_memory_and_different_vocabularies(tmp_path, tokenizer):
    folders = {name: save(tiny_gpt2(seed), tmp_path / name, tokenizer) for seed, name in enumerate(("base", "a", "b"))}
    base = folders.pop("base")
    for options in (dict(in_memory="one"), dict(in_memory="all")):
        found = compare_many(base, folders, prompts(), measures=["kl", "lens"], **options)
        for name, folder in folders.items():
            same(found[name], compare(base, folder, prompts(), measures=["kl", "lens"], **options))
    wide = tiny_gpt2(4, vocab_size=len(tokenizer) + 8)
    models = {"wide": wide, "a": tiny_gpt2(1)}
    found = compare_many(base, models, prompts(), tokenizer=tokenizer, measures=["kl"])
    for name, model in models.items():
        same(found[name], compare(base, model, prompts(), tokenizer=tokenizer, measures=["kl"]))


def test_base_is_traced_once_a_batch_and_sampled_from_once(tokenizer, monkeypatch):
    base = tiny_llama()
    traced, trace = [], Policy.trace

    def counted(self, batch, sites=()):
        traced.append(self.model is base)
        return trace(self, batch, sites)

    monkeypatch.setattr(Policy, "trace", counted)
    models = {str(seed): tiny_llama(seed) for seed in (1, 2, 3)}
    compare_many(base, models, prompts(), tokenizer=tokenizer, measures=["kl", "lens"], batch_size=5)
    assert traced.count(True) == 2 and traced.count(False) == 6
    from interp.measures import completions

    sampled, sample = [], completions.sample

    def listed(model, *args, **options):
        sampled.append(model is base)
        return sample(model, *args, **options)

    monkeypatch.setattr(completions, "sample", listed)
    compare_many(base, models, prompts(), tokenizer=tokenizer, measures=["completions"], max_new_tokens=2)
    assert sampled.count(True) == 1 and len(sampled) == 4


def test_bad_input(tokenizer):
    with pytest.raises(PromptError, match="no tuned model came"):
        interp.compare_many(tiny_gpt2(), {}, prompts())
    with pytest.raises(PromptError, match="replicates name 'joy', which is no pair"):
        interp.compare_many(tiny_gpt2(), {"fear": tiny_gpt2(1)}, prompts(), replicates={"joy": [tiny_gpt2(2)]})
    with pytest.raises(TypeError, match="no parameter 'tokenizer' any more; pass a pair"):
        interp.compare_many(tiny_gpt2(), {"a": tiny_gpt2(1)}, prompts(), tokenizer=tokenizer)
    with pytest.raises(TypeError, match="mesures"):
        compare_many(tiny_gpt2(), {"a": tiny_gpt2(1)}, prompts(), tokenizer=tokenizer, mesures=["kl"])


def test_models_are_given_back_as_they_were(tokenizer):
    base, models = tiny_gpt2().train(), {"a": tiny_gpt2(1), "b": tiny_gpt2(2)}
    before = {name: value.clone() for name, value in base.state_dict().items()}
    compare_many(base, models, prompts(), tokenizer=tokenizer, max_new_tokens=2)
    assert base.training and all(p.requires_grad for p in base.parameters())
    assert not any(module._forward_hooks for module in base.modules())
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())


def test_several_comparisons_are_one_result(tokenizer, tmp_path, as_a_user):
    base = tiny_gpt2()
    models = {name: tiny_gpt2(seed) for seed, name in enumerate(("joy", "fear"), 1)}
    many = compare_many(base, models, prompts(), tokenizer=tokenizer, measures=["kl"])
    lines = repr(many).split("\n")
    assert len(lines) <= 15 and max(map(len, lines)) <= 80 and "joy" in repr(many)
    assert list(many) == ["joy", "fear"] and len(many) == 2 and "joy" in many and "x" not in many
    assert set(many.summary()["comparison"]) == {"joy", "fear"}
    with pytest.raises(MeasureError, match="no comparison 'x'; there are joy, fear"):
        many["x"]
    back = interp.load_result(many.save(tmp_path / "out"))
    assert back["fear"].summary().equals(many["fear"].summary())
    page = many.report(tmp_path / "page.html").read_text()
    assert "Comparison: joy" in page and "Comparison: fear" in page
    with pytest.raises(PromptError, match="a list of tuned models came"):
        interp.compare_many(base, [tiny_gpt2(1)], prompts())
