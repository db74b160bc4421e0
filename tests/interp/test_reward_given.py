"""Readings of a reward model given by its folder, what is said where it is something else, and how readings print."""

import numpy as np
import pytest

from interp import reward
from interp.errors import FormatError, LoadError, MeasureError
from interp.io import write_json
from interp.models import RewardModel
from interp.pair import FORMAT
from tests.conftest import save
from tests.interp.planted_reward import planted, random_model

TEXTS = ["the film was really good!", "i think that the story is very bad", "great book it was", "the dog and john!!"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = random_model()
    return save(model.model, tmp_path_factory.mktemp("given") / "model", model.tokenizer)


@pytest.fixture
def pair(tmp_path, folder):
    """A pair's folder, as far as its manifest."""

    def make(reference):
        manifest = {name: {} for name in ("config", "versions", "files", "final")}
        models = {"base": {"folder": "base"}, "tuned": {"path": "tuned"}, "reward": reference}
        write_json(tmp_path / "pair.json", {"format": FORMAT, "engine": "ppo", "seed": 0, **manifest, **models})
        return tmp_path

    return make


def test_a_folder_is_read_as_the_model_in_it(folder):
    loaded = RewardModel.load(folder, label="LABEL_2")
    names = {"labels": ["LABEL_2"]}
    for read, name in (
        (reward.lens, "lens_score"),
        (reward.direct_attribution, "component_attribution"),
        (reward.attribute, "token_attribution"),
    ):
        given, own = read(folder, TEXTS, **names), read(loaded, TEXTS)
        np.testing.assert_array_equal(given[name], own[name])
        assert given.dataset.attrs["model"] == str(folder.resolve())
    assert reward.lens(str(folder), TEXTS, labels="all").dataset.sizes["label"] == 3
    assert reward.score_range(folder, TEXTS, labels="LABEL_0").keys() == {"LABEL_0"}


def test_a_folder_of_one_label_needs_none_named(tmp_path):
    model = planted()
    place = save(model.model, tmp_path / "model", model.tokenizer)
    labels = [True, False, False, True]
    found = reward.counterexamples(place, TEXTS, labels, swaps=0)
    np.testing.assert_allclose(
        found.at_odds.sort_values("text")["score"],
        RewardModel.load(place).score(sorted(TEXTS)),
    )


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("name", ["attribute", "lens", "spurious", "direct_attribution", "counterexamples"])
def test_what_is_no_reward_model_is_refused_in_one_sentence(name, folder):
    labels = {"labels": [True, False] * 2} if name == "counterexamples" else {}
    read = getattr(reward, name)
    with pytest.raises(
        MeasureError, match=r"has 3 labels and none is named; pass interp.load_reward\(..., label=...\), one of"
    ):
        read(folder, TEXTS, **labels)
    with pytest.raises(LoadError, match="not a dict"):
        read({}, TEXTS, **labels)


def test_a_pair_gives_the_reward_that_it_was_tuned_toward(folder, pair):
    found = reward.lens(pair({"folder": str(folder), "label": "LABEL_2", "output": "logit"}), TEXTS)
    assert found.dataset.attrs["output"] == "logit" and list(found["label"].values) == ["LABEL_2"]
    own = reward.lens(RewardModel.load(folder, label="LABEL_2", output="logit"), TEXTS)
    np.testing.assert_array_equal(found["lens_score"], own["lens_score"])
    with pytest.raises(MeasureError, match="tuned toward a function or a sum of rewards"):
        reward.lens(pair(None), TEXTS)
    damaged = pair(None)
    (damaged / "pair.json").write_text("{}")
    with pytest.raises(FormatError):
        reward.lens(damaged, TEXTS)


@pytest.mark.usefixtures("as_a_user")
def test_several_baselines_are_several_attributions():
    with pytest.raises(
        MeasureError, match=r"not a list; .* attribute twice and take rank_correlation\(first, second\)"
    ):
        reward.attribute(random_model(), TEXTS, baseline=["mean", "mask"])


def test_a_direct_attribution_prints_its_largest_components_and_patching():
    model = random_model()
    found = reward.direct_attribution(model, TEXTS)
    said, table = repr(found), found.summary()
    assert "xarray" not in said and "rank correlation with patching over 4 texts: " in said
    assert table["size"].is_monotonic_decreasing and set(table["component"]) == set(found["component"].values)
    first = found["component_attribution"].sel(component=table["component"][0], label="LABEL_1")
    assert table["attribution"][0] == pytest.approx(float(first.mean()))
    assert table.attrs["patching"] == found.beside_patching()
    assert found.patching()["rank_correlation"][0] == pytest.approx(float(found["patching_rank_correlation"].mean()))
    assert "not measured (patching=True" in repr(reward.direct_attribution(model, TEXTS, patching=False))


def test_a_lens_says_what_its_dashes_and_its_shares_mean():
    one = repr(reward.lens(planted(), ["the film!", "the film!! was good!", "the film"], threshold=0.5))
    assert "no rank correlation: the score read there is the same for every text" in one.replace("\n  ", " ")
    assert "to be decided" not in one
    high = " ".join(reward.lens(planted(), TEXTS[:2], threshold=9.0).notes())
    assert "fewer than three texts" in high and "every text ends below the threshold: to be decided" in high
    all_labels = " ".join(reward.lens(random_model(), TEXTS, labels="all", threshold=-99.0).notes())
    assert "for 3 of 3 labels every text ends on one side of the threshold" in all_labels


def test_an_attribution_says_which_texts_were_not_patched():
    texts = [f"the film was {word}" for word in ("good", "bad", "great", "terrible", "not")]
    note = "2 texts were patched (patched_texts=); the others have no patching_rank_correlation"
    assert note in reward.attribute(random_model(), texts, patched_texts=2).notes()
    assert note not in reward.attribute(random_model(), texts).notes()
