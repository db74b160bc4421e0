"""A reward model's trace, its direct attribution and its lens, against plain passes of the model itself."""

import numpy as np
import pytest
import torch

from interp import reward
from interp.errors import InterpError, MeasureError, PromptError
from interp.hooks import Site, patch
from interp.models import RewardModel
from tests.interp.architectures import CONFIGS, build
from tests.interp.planted_reward import planted, random_model, word_tokenizer

TEXTS = [
    "the film was really good!",
    "i think that the story is very bad, and the people say so.",
    "great book",
    "you are so smart: john and mary said the great film! what a day!",
]
CLASSIFIERS = [name for name in CONFIGS if "SequenceClassification" in name]


def load(name, **options):
    return RewardModel.load(build(name), tokenizer=word_tokenizer(), label="LABEL_1", output="logit", **options)


@pytest.mark.parametrize("name", CLASSIFIERS)
class TestEveryClassifier:
    def test_its_trace_is_the_bare_model(self, name):
        model = load(name)
        final = Site("resid_post", model.parts.n_layers - 1)
        trace = model.trace(TEXTS, [final, Site("z", 0), Site("mlp_out", 1)])
        for row, text in enumerate(TEXTS):
            ids = torch.tensor([model.tokenizer(text)["input_ids"]])
            with torch.no_grad():
                expected = model.model(ids).logits[0]
            torch.testing.assert_close(trace.logits[row], expected, atol=1e-5, rtol=1e-4)
        assert trace[Site("z", 0)].shape[:2] == trace.batch.input_ids.shape
        torch.testing.assert_close(model.parts.logits(trace.read(final)), trace.logits)
        assert trace.reward.shape == (len(TEXTS),)
        torch.testing.assert_close(trace.reward, trace.logits[:, 1].double())

    def test_direct_attribution_is_complete_and_heads_sum_to_their_attention(self, name):
        model = load(name)
        found = reward.direct_attribution(model, TEXTS, labels="all", batch_size=3)
        size = float(np.abs(found["logit"]).max())
        assert float(found["completeness_error"].max()) < 1e-4 * max(1, size)
        names = [f"L{layer}.attn" for layer in range(model.parts.n_layers)]
        heads = found["head_attribution"].sum("head") + found["attn_bias_attribution"]
        attention = found["component_attribution"].sel(component=names).transpose("prompt", "component", "label")
        np.testing.assert_allclose(heads.transpose("prompt", "layer", "label"), attention, atol=1e-4 * max(1, size))
        if model.parts.head.after is None or "DistilBert" in name:  # linear, or a ReLU
            assert float(found["linearisation_error"].max()) < 1e-4 * max(1, size)
        else:
            assert float(found["linearisation_error"].max()) > 0

    def test_the_lens_ends_at_the_score(self, name):
        model = load(name)
        found = reward.lens(model, TEXTS, labels="all", batch_size=2)
        np.testing.assert_allclose(found["lens_score"].isel(site=-1), model.score_labels(TEXTS), atol=1e-5)
        trace = model.trace(TEXTS, [Site("resid_pre", 1)])
        expected = model.parts.logits(trace.read(Site("resid_pre", 1)))
        np.testing.assert_allclose(found["lens_score"].isel(site=1), expected, atol=1e-5)


def test_a_component_put_at_its_mean_is_a_patched_pass():
    model = load("LlamaForSequenceClassification")
    found = reward.direct_attribution(model, TEXTS)
    site = Site("mlp_out", 1)
    trace = model.trace(TEXTS, [site])
    mean = trace[site][trace.batch.attention_mask].mean(0)
    with patch(model.parts, {site: lambda value: mean.expand_as(value)}):
        less = model.trace(TEXTS).logits[:, 1].double()
    expected = trace.logits[:, 1].double() - less
    got = found["patching_effect"].sel(component="L1.mlp", label="LABEL_1")
    np.testing.assert_allclose(got, expected, atol=1e-5)
    ranks = found["patching_rank_correlation"].values
    assert np.isfinite(ranks).all() and (np.abs(ranks) <= 1).all()


def test_token_attribution_beside_patching():
    model = random_model("BertForSequenceClassification")
    found = reward.against_patching(model, reward.attribute(model, TEXTS))
    effect = reward.attribute(model, TEXTS, method="leave_one_out")
    np.testing.assert_array_equal(found["patching_effect"], effect["token_attribution"])
    np.testing.assert_array_equal(found["patching_rank_correlation"], reward.rank_correlation(found, effect))
    itself = reward.against_patching(model, effect)
    ranks = itself["patching_rank_correlation"].values[:, 0]
    assert ranks[[0, 1, 3]] == pytest.approx(1) and np.isnan(ranks[2])  # two tokens have no order
    assert "patching_rank_correlation" in found.summary()


def test_which_layer_decides():
    model = random_model()
    found = reward.lens(model, TEXTS, labels="all")
    scores = found["lens_score"].values
    sites = [str(site) for site in found["site"].values]
    for row in range(len(TEXTS)):
        for column in range(3):
            sides = (scores[row, :, column] > 0).tolist()
            place = len(sides) - 1
            while place and sides[place - 1] == sides[-1]:
                place -= 1
            assert found["deciding_site"].values[row, column] == sites[place]
            changes = sum(a != b for a, b in zip(sides, sides[1:], strict=False))
            assert int(found["changes"].values[row, column]) == changes
        tops = scores[row].argmax(-1).tolist()
        place = next(i for i in range(len(tops)) if tops[i:] == [tops[-1]] * (len(tops) - i))
        assert found["deciding_site_of_top"].values[row] == sites[place]
        assert found["lens_top_label"].values[row, -1] == model.labels[tops[-1]]
    assert found["lens_rank_correlation"].values[-1] == pytest.approx(1)
    table = found.summary()
    assert table.groupby("label")["decided"].sum().to_numpy() == pytest.approx(1)
    np.testing.assert_allclose(table["score"], scores.mean(0).T.ravel())
    changes = found.changes()
    assert changes["changes"].to_numpy() == pytest.approx(found["changes"].values.mean(0))
    for row in changes.itertuples():
        shares = table[table["label"] == row.label].set_index("site")["decided"]
        assert shares[row.decided_at] == shares.max()


def test_the_lens_of_a_planted_score_knows_nothing_before_its_attention():
    found = reward.lens(planted(), ["the film!", "the film!! was good!", "the film"])
    assert np.ptp(found["lens_score"].values[:, 0, 0]) == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(found["lens_score"].values[:, -1, 0], [1, 3, 0], atol=0.05)


@pytest.mark.parametrize("read", [reward.lens, reward.direct_attribution], ids=["lens", "direct_attribution"])
def test_bad_input(read):
    model = random_model()
    with pytest.raises(MeasureError, match="no label 'joy'; its labels are LABEL_0"):
        read(model, TEXTS, labels=["joy"])
    with pytest.raises(PromptError, match="text 1 is empty"):
        read(model, ["good", ""])
    with pytest.raises(PromptError, match="72 tokens and the reward model reads 64"):
        read(model, ["the " * 70])
    with torch.no_grad():
        model.model.classifier.weight[1, 0] = float("nan")
    with pytest.raises(InterpError, match="is not finite; check its weights for NaN"):
        read(model, TEXTS)


def test_the_model_comes_back_as_it_was_when_a_pass_fails(monkeypatch):
    model = random_model()
    model.model.train()

    def hooks():
        return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.model.modules())

    def broken(*_):
        raise RuntimeError("in the middle")

    monkeypatch.setattr(model.model.distilbert.transformer.layer[-1], "forward", broken)
    for read in (reward.lens, reward.direct_attribution):
        with pytest.raises(RuntimeError, match="in the middle"):
            read(model, TEXTS)
    assert hooks() == 0 and model.model.training
