"""Loading in one place: what a policy, a reward model and a pair may be given as, and what each says of itself."""

import numpy as np
import pytest
import torch

import interp
from interp.errors import FormatError, LoadError, MeasureError
from interp.models import Optimised, Policy, as_policy, as_reward
from interp.models.matched import load_matched
from interp.pair import CheckpointPair
from tests.conftest import save, tiny_gpt2
from tests.interp.planted_reward import planted, random_model
from tests.interp.test_models import classifier

TEXTS = ["the film was good!", "a bad day", "very great!!"]


@pytest.fixture
def folder(tmp_path, tokenizer):
    return save(tiny_gpt2(), tmp_path / "policy", tokenizer)


def written(path, reward, **manifest):
    """A pair on disk, whose models lie elsewhere."""
    how = {"base": {"folder": "elsewhere/base"}, "tuned": {"folder": "elsewhere/tuned"}, "final": {"kl": 1.0}}
    how |= {"engine": "native", "seed": 0, "versions": {}}
    path.mkdir(exist_ok=True)
    how["config"] = {"ppo": {"init_kl_coef": 0.1, "cliprange_reward": 10.0}, "generate": {"temperature": 1}}
    return CheckpointPair.write(path, {**how, "reward": reward, **manifest})


class TestPolicies:
    def test_one_place_takes_all(self, folder, tokenizer):
        module = tiny_gpt2()
        loaded = interp.load(folder)
        assert as_policy(loaded) is loaded is interp.load(loaded)
        for policy in (interp.load(str(folder)), as_policy(folder), as_policy(module, tokenizer=tokenizer)):
            assert isinstance(policy, Policy)
            torch.testing.assert_close(policy.parts.embedding(), module.transformer.wte.weight)

    @pytest.mark.usefixtures("as_a_user")
    @pytest.mark.parametrize(
        ("source", "message"),
        [
            (lambda: interp.load_pair("demo"), r"the pair .*demo is two models; pass pair.base or pair.tuned"),
            (lambda: "demo", r"'demo' names a pair, .* interp.load_pair\('demo'\).base or .tuned, and './demo'"),
            (random_model, "the reward model DistilBertForSequenceClassification predicts no tokens"),
            (lambda: len, "a folder, a hub id or a loaded module, not a function"),
            (lambda: None, "not a NoneType"),
        ],
    )
    def test_what_is_none_is_refused(self, source, message):
        for load in (interp.load, as_policy):
            with pytest.raises(LoadError, match=message):
                load(source())

    @pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"device": "cpu"}, {"revision": "main"}])
    def test_options_of_loading_for_what_is_loaded(self, options, folder, tokenizer):
        (name,) = options
        for source in (interp.load(folder), tiny_gpt2()):
            with pytest.raises(LoadError, match=f"is loaded already, so {name} cannot be heeded; leave it out"):
                interp.load(source, tokenizer=tokenizer, **options)

    def test_a_revision_of_a_folder(self, folder):
        for load in (interp.load, interp.load_reward):
            with pytest.raises(LoadError, match=r"is a folder, and a folder has no revisions; leave .*\(--revision\)"):
                load(folder, revision="main")

    def test_another_tokenizer(self, folder, tokenizer):
        policy = interp.load(folder)
        assert interp.load(policy, tokenizer=tokenizer).tokenizer is tokenizer is not policy.tokenizer
        assert interp.load(policy, tokenizer=folder).tokenizer.get_vocab() == tokenizer.get_vocab()

    def test_it_prints_in_a_few_lines(self, folder):
        text = repr(interp.load(folder))
        assert str(folder) in text and "GPT2LMHeadModel, 3 layers of 4 heads, d_model 32" in text and "float32" in text
        assert len(text) < 600 and "\n" not in text


class TestRewards:
    def test_another_label_of_a_loaded_one(self, tokenizer):
        first = interp.load_reward(classifier(), tokenizer=tokenizer, label="POS", output="logit")
        other = interp.load_reward(first, label="NEG")
        assert (other.label, other.output, other.description["label"]) == ("NEG", "logit", "NEG")
        assert other.model is first.model and interp.load_reward(first) is first is as_reward(first, label="NEG")
        np.testing.assert_array_equal(first.score_labels(TEXTS), other.score_labels(TEXTS))
        np.testing.assert_array_equal(other.score(TEXTS), first.score_labels(TEXTS)[:, 0])
        with pytest.raises(LoadError, match="no label 'joy'"):
            interp.load_reward(first, label="joy")

    def test_a_score_without_bounds_is_a_logit(self, tokenizer):
        model = classifier(problem_type="regression")
        assert interp.load_reward(model, tokenizer=tokenizer, label="POS").output == "logit"
        assert interp.load_reward(classifier(), tokenizer=tokenizer, label="POS").output == "probability"
        with pytest.raises(LoadError, match='gives a score without bounds, no probability; pass output="logit"'):
            interp.load_reward(model, tokenizer=tokenizer, label="POS", output="probability")

    def test_a_pair_gives_its_reward_as_its_recipe_says(self, tmp_path):
        model = random_model()
        place = save(model.model, tmp_path / "reward", model.tokenizer)
        reference = {"folder": str(place), "label": "LABEL_2", "output": "softmax"}
        pair = written(tmp_path / "pair", reference)
        for source in (pair, pair.path, str(pair.path)):
            reward = as_reward(source)
            assert (reward.label, reward.output) == ("LABEL_2", "softmax")
            assert reward.optimised == Optimised(clip=10.0, beta=0.1)
            assert reward.description["optimised"] == repr(reward.optimised)
        asked = interp.load_reward(pair, label="LABEL_0", output="logit", optimised=np.tanh)
        assert (asked.label, asked.output, asked.optimised) == ("LABEL_0", "logit", np.tanh)
        alone = interp.load_reward(place, label="LABEL_0")
        assert alone.optimised is None and "optimised" not in alone.description
        assert interp.load_reward(place, label="LABEL_0", optimised=pair).optimised == Optimised(clip=10.0, beta=0.1)
        np.testing.assert_array_equal(reward.score(TEXTS), interp.load_reward(place, label="LABEL_2").score(TEXTS))

    def test_a_scale_that_is_not_on_record_is_told_where_it_is_needed(self, tmp_path):
        model = planted()
        place = save(model.model, tmp_path / "reward", model.tokenizer)
        config = {"ppo": {"scale_reward": "running", "init_kl_coef": 0.1}, "generate": {"temperature": 1}}
        pair = written(tmp_path / "pair", {"folder": str(place)}, config=config)
        reward = as_reward(pair)
        assert reward.score(TEXTS).shape == (3,)
        with pytest.raises(MeasureError, match=r"not on record; pass optimised=.* to interp.load_reward"):
            reward.optimised(reward.score(TEXTS))
        assert interp.load_reward(pair, optimised=Optimised(scale=2.0)).optimised == Optimised(scale=2.0)
        with pytest.raises(MeasureError, match="not on record"):
            interp.load_reward(place, optimised=pair)

    @pytest.mark.usefixtures("as_a_user")
    def test_what_is_none_is_refused(self, folder, tmp_path, tokenizer):
        for source, message in (
            (len, "not a function; here its weights are read, so a function will not do"),
            (3, "a RewardModel or a pair, not a int"),
            (interp.load(folder), "a RewardModel or a pair, not a"),
            (folder, "is a GPT2LMHeadModel, not a classifier with a score head"),
        ):
            with pytest.raises(LoadError, match=message):
                as_reward(source)
        for wrong in (3, "somewhere"):
            with pytest.raises(
                MeasureError, match="optimised is an Optimised, a function of scores or a pair's folder"
            ):
                interp.load_reward(random_model(), optimised=wrong)
        with pytest.raises(MeasureError, match="tuned toward a function or a sum of rewards, so there is no reward"):
            as_reward(written(tmp_path / "pair", None))
        with pytest.raises(MeasureError, match="the pair 'a' to 'b' names no reward"):
            as_reward(interp.load_pair(base="a", tuned="b"))

    def test_it_prints_in_a_few_lines(self, tokenizer):
        model = interp.load_reward(classifier(), tokenizer=tokenizer, label="POS", optimised=Optimised(clip=2.0))
        text = repr(model)
        assert "'POS' of 2 labels as softmax, optimised as Optimised(" in text and "2 layers" in text
        assert len(text) < 600 and "\n" not in text


class TestPairs:
    def test_the_shipped_one_wins_over_a_folder_of_its_name(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        own = written(tmp_path / "demo", None)
        shipped = interp.load_pair("demo")
        assert shipped.manifest["engine"] == "native" and shipped.path != own.path and shipped.reward is not None
        for source in ("./demo", tmp_path / "demo", own):
            assert interp.load_pair(source).reward is None
        monkeypatch.chdir(tmp_path / "demo")
        assert interp.load_pair(".").base == "elsewhere/base"

    def test_named_models(self, tokenizer):
        base, tuned, run = tiny_gpt2(0), tiny_gpt2(1), tiny_gpt2(2)
        pair = interp.load_pair(
            base=base, tuned=tuned, controls=[run], reward=random_model(), tokenizer=tokenizer, in_memory="all"
        )
        assert (pair.base, pair.tuned, pair.controls, pair.replicates) == (base, tuned, (run,), ())
        assert pair.checkpoints == {} and as_reward(pair).label == "LABEL_1" and pair.path is None
        models = load_matched(pair)
        assert (models.base.model, models.tuned.model) == (base, tuned) and models.tuned.tokenizer is tokenizer
        assert [policy.model for policy in models.controls] == [run]
        assert load_matched(pair, controls=()).controls == ()
        with pytest.raises(LoadError, match="no folder, and so no recipe, samples or checkpoints; name the folder"):
            pair.folder  # noqa: B018

    def test_what_is_named_goes_before_the_manifest(self, tmp_path):
        pair = written(tmp_path, None, controls=[{"folder": "one"}, {"folder": "two"}])
        assert pair.controls == ("one", "two")
        changed = interp.load_pair(pair, tuned="other", controls=[], dtype="bfloat16", in_memory="one")
        assert (changed.base, changed.tuned, changed.controls) == ("elsewhere/base", "other", ())
        assert changed.loading == {"dtype": "bfloat16"} and changed.in_memory == "one"
        again = interp.load_pair(changed)
        assert (again.tuned, again.loading, again.in_memory) == ("other", {"dtype": "bfloat16"}, "one")

    def test_its_options_reach_every_model(self, folder, tmp_path, tokenizer):
        other = save(tiny_gpt2(1), tmp_path / "other", tokenizer)
        pair = interp.load_pair(base=folder, tuned=other, replicates=[tiny_gpt2(2).bfloat16()], dtype="bfloat16")
        models = load_matched(pair)
        assert {policy.description["dtype"] for policy in (models.base, *models.others)} == {"bfloat16"}
        with pytest.raises(LoadError, match="a pair has its own tuned model; pass the pair alone"):
            load_matched(pair, other)

    @pytest.mark.usefixtures("as_a_user")
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, 'name a pair\'s folder, "demo", or both models'),
            ({"base": "a"}, "or both models"),
            ({"source": 3}, "a pair is a folder or a name, not a int"),
            ({"source": "demo", "in_memory": "two"}, 'in_memory is "all" or "one", not \'two\''),
            ({"source": "demo", "dtype": "int8"}, "dtype is float32, bfloat16, float16 or float64"),
            ({"base": "a", "tuned": "b", "controls": "c"}, "controls is a list of models, not one; put it in brackets"),
        ],
    )
    def test_what_is_none_is_refused(self, options, message):
        with pytest.raises(LoadError, match=message):
            interp.load_pair(**options)

    def test_an_absent_one(self, tmp_path):
        with pytest.raises(FormatError, match="holds no pair.json"):
            interp.load_pair(tmp_path)

    def test_it_prints_in_a_few_lines(self, tmp_path):
        demo = repr(interp.load_pair("demo"))
        assert "native, reward " in demo and "KL" in demo and "1 control" in demo
        named = interp.load_pair(base="a/" + 200 * "x", tuned=tiny_gpt2(), reward=random_model(), replicates=["r"])
        text = repr(named)
        assert "'...xxx" in text and "a loaded GPT2LMHeadModel" in text and "1 replicate" in text
        assert "reward 'DistilBertForSequenceClassification'" in text
        assert max(map(len, (demo, text))) < 400 and "\n" not in demo + text
