"""Token attribution of a reward model: the rule, completeness, captum and plain loops as oracles, bad input."""

import warnings

import numpy as np
import pytest
import torch

from interp import reward
from interp.errors import InterpError, MeasureError, PromptError
from interp.models import RewardModel
from interp.models.running import forward_inputs
from interp.reward.forward import baseline_vector
from interp.reward.quadrature import NEAR_SIZES, SIZES, rules
from interp.reward.texts import read_texts
from tests.interp.architectures import CONFIGS, build
from tests.interp.planted_reward import SPECIAL, planted, random_model, word_tokenizer

TEXTS = [
    "the film was really good!",
    "i think that the story is very bad, and the people say so.",
    "great",
    "you are so smart: john and mary like the great film! what a day!",
]
CLASSIFIERS = [name for name in CONFIGS if "SequenceClassification" in name]


class TestRule:
    def test_each_holds_the_points_of_the_one_before(self):
        found = rules()
        assert [len(rule.points) for rule in found] == list(SIZES)
        for small, large in zip(found, found[1:], strict=False):
            assert (large.points[: len(small.points)] == small.points).all()
            assert large.new == len(large.points) - len(small.points)
        assert len(set(found[-1].points)) == SIZES[-1]
        assert found[0].points.tolist() == [0, 1, 0.5]

    def test_exact_for_polynomials_through_its_points(self):
        for rule in rules():
            for degree in range(len(rule.points)):
                assert rule.weights @ rule.points**degree == pytest.approx(1 / (degree + 1), abs=1e-12)
            assert np.abs(rule.weights).sum() < 1.1  # it does not amplify rounding

    def test_the_family_for_nearly_linear_scores(self):
        found = rules(nearly_linear=True)
        assert [len(rule.points) for rule in found] == list(NEAR_SIZES)
        for rule, degree in zip(found, (2, 5, 5, 7, 10, 14, 18, 24, 34, 48, 64), strict=True):
            for power in range(degree + 1):
                assert rule.weights @ rule.points**power == pytest.approx(1 / (power + 1), abs=1e-12)
            assert np.abs(rule.weights).sum() < 1.1 and (rule.points >= 0).all() and (rule.points <= 1).all()

    def test_three_points_are_simpsons_rule(self):
        assert rules()[0].weights.tolist() == pytest.approx([1 / 6, 1 / 6, 2 / 3])


@pytest.mark.parametrize("baseline", ["mean", "zero", "mask", "unk"])
def test_integrated_gradients_add_up(baseline):
    model = random_model("BertForSequenceClassification")
    found = reward.attribute(model, TEXTS, labels="all", baseline=baseline, tolerance=1e-4)
    assert found.unconverged == ()
    total = found["token_attribution"].sum("pos")
    change = found["score"] - found["baseline_score"]
    spread = np.concatenate([found["score"].values, found["baseline_score"].values])
    assert (np.abs(total - change).values <= 1e-4 * np.ptp(spread, axis=0)).all()
    np.testing.assert_allclose(np.abs(total - change), found["completeness_error"], atol=1e-12)
    np.testing.assert_allclose(found["score"].values, model.score_labels(TEXTS), atol=1e-5)
    special = found["added"].values
    assert (found["token_attribution"].values[special] == 0).all()
    assert found.dataset.attrs["baseline"] == baseline


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("output", ["logit", "softmax"])
def test_every_classifier_is_complete_and_its_baseline_moves_no_position(name, output):
    """RoBERTa counts its positions by pad ids, causal classifiers find their last token by them: neither may move."""
    network = build(name, initializer_range=0.15)
    model = RewardModel.load(network, tokenizer=word_tokenizer(), label="LABEL_2", output=output)
    # Where only tokens enter the residual, an RMSNorm jumps at zero: no rule integrates that.
    baseline = "mask" if name.startswith(("Llama", "Qwen")) else "zero"
    found = reward.attribute(model, TEXTS, baseline=baseline, tolerance=0.02)
    assert found.unconverged == ()
    np.testing.assert_allclose(found["score"].values[:, 0], model.score(TEXTS), atol=1e-5)
    batch = model.batch(TEXTS)
    ids = batch.input_ids.clone()
    blank = build(name, initializer_range=0.15)
    own = batch.attention_mask & (ids != SPECIAL["[CLS]"]) & (ids != SPECIAL["[SEP]"])
    ids[own] = 70  # a token that no text has, whose embedding is made the baseline
    with torch.no_grad():
        blank.get_input_embeddings().weight[70] = baseline_vector(model, baseline)
        given = forward_inputs(model.parts, batch) | {"input_ids": ids}
        rows = []
        for index, length in enumerate(batch.lengths.tolist()):
            alone = {k: v[index : index + 1, :length] if torch.is_tensor(v) else v for k, v in given.items()}
            rows.append(model.output_of(blank(**alone).logits)[0, 2])
    np.testing.assert_allclose(found["baseline_score"].values[:, 0], torch.stack(rows).numpy(), atol=1e-5)


def captum_of(model, texts, baseline_id):
    """captum's method, its inputs and its baselines for the same texts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum's import warns of what it does not find
        from captum.attr import LayerGradientXActivation, LayerIntegratedGradients
    batch = model.batch(texts)
    rest = {name: value for name, value in forward_inputs(model.parts, batch).items() if name != "input_ids"}
    names = [name for name, value in rest.items() if torch.is_tensor(value)]

    def forward(ids, *values):
        return model.model(input_ids=ids, **dict(zip(names, values, strict=True))).logits

    base = batch.input_ids.clone()
    special = (base == SPECIAL["[CLS]"]) | (base == SPECIAL["[SEP]"]) | ~batch.attention_mask
    base[~special] = baseline_id
    extra = tuple(rest[name] for name in names)
    layers = LayerIntegratedGradients(forward, model.parts.embed), LayerGradientXActivation(forward, model.parts.embed)
    return layers, batch, base, extra


@pytest.mark.parametrize("name", ["DistilBertForSequenceClassification", "RobertaForSequenceClassification"])
@pytest.mark.parametrize("points", [5, 9])
def test_captum_at_equal_points(name, points, monkeypatch):
    model = random_model(name)
    (captum, _), batch, base, extra = captum_of(model, TEXTS, SPECIAL["[MASK]"])
    rule = rules()[SIZES.index(points)]
    import captum.attr._core.integrated_gradients as core

    given = (lambda n: rule.weights.tolist()), (lambda n: rule.points.tolist())
    monkeypatch.setattr(core, "approximation_parameters", lambda method: given)
    expected = captum.attribute(
        batch.input_ids, baselines=base, target=1, additional_forward_args=extra, n_steps=points
    ).sum(-1)
    found = reward.attribute(
        model, TEXTS, baseline="mask", tolerance=1e-9, first_points=points, max_points=points, score_range=1.0
    )
    assert (found["points"].values == points).all()
    got = found["token_attribution"].values[..., 0]
    real = batch.attention_mask.numpy()
    np.testing.assert_allclose(got[real], expected.detach().numpy()[real], atol=2e-5)
    assert np.isnan(got[~real]).all()


def test_gradient_x_input_is_captums():
    model = random_model("RobertaForSequenceClassification")
    (_, captum), batch, _, extra = captum_of(model, TEXTS, 0)
    expected = captum.attribute(batch.input_ids, target=1, additional_forward_args=extra).sum(-1)
    found = reward.attribute(model, TEXTS, method="gradient_x_input")
    real = batch.attention_mask.numpy()
    got = found["token_attribution"].values[..., 0]
    np.testing.assert_allclose(got[real], expected.detach().numpy()[real], atol=1e-5)


@pytest.mark.parametrize("baseline", ["mask", "delete"])
def test_leave_one_out_is_a_plain_loop(baseline):
    model = random_model("LlamaForSequenceClassification")
    found = reward.attribute(model, TEXTS, method="leave_one_out", baseline=baseline, labels="all")
    for row, text in enumerate(TEXTS):
        ids = model.tokenizer(text)["input_ids"]
        whole = model.model(torch.tensor([ids])).logits[0].detach().numpy()
        for place, token in enumerate(ids):
            if token in (SPECIAL["[CLS]"], SPECIAL["[SEP]"]):
                assert (found["token_attribution"].values[row, place] == 0).all()
                continue
            less = [*ids[:place], *([SPECIAL["[MASK]"]] if baseline == "mask" else []), *ids[place + 1 :]]
            expected = whole - model.model(torch.tensor([less])).logits[0].detach().numpy()
            np.testing.assert_allclose(found["token_attribution"].values[row, place], expected, atol=1e-5)


def test_labels_in_one_pass_are_those_of_passes_of_their_own():
    model = random_model()
    together = reward.attribute(model, TEXTS, labels="all", score_range=5.0)
    for label in model.labels:
        alone = reward.attribute(model, TEXTS, labels=[label], score_range=5.0)
        np.testing.assert_allclose(
            together["token_attribution"].sel(label=label), alone["token_attribution"].sel(label=label), atol=1e-6
        )
        assert (together["points"].sel(label=label) == alone["points"].sel(label=label)).all()


def test_other_texts_of_the_batch_change_nothing_and_the_same_call_gives_the_same_bytes():
    model = random_model("GPT2ForSequenceClassification")
    together = reward.attribute(model, TEXTS, score_range=3.0)
    for row, text in enumerate(TEXTS):
        alone = reward.attribute(model, [text], score_range=3.0)
        np.testing.assert_allclose(
            together.tokens(row)["LABEL_1"], alone.tokens(0)["LABEL_1"], atol=1e-5 * max(1, abs(alone["score"].max()))
        )
    again = reward.attribute(model, TEXTS, score_range=3.0)
    assert together["token_attribution"].values.tobytes() == again["token_attribution"].values.tobytes()


def test_only_the_texts_that_need_them_get_more_points_and_the_others_are_named():
    model = random_model()
    found = reward.attribute(model, TEXTS, labels="all", tolerance=1e-3)
    points = found["points"].values
    assert points.min() < points.max()
    short = reward.attribute(model, TEXTS, labels="all", tolerance=1e-3, max_points=3, first_points=3)
    assert (short["points"].values == 3).all()
    missed = {(TEXTS[row], model.labels[column]) for row, column in zip(*np.nonzero(points > 3), strict=True)}
    assert set(short.unconverged) == missed and missed
    assert not bool(short.summary()["converged"].all())


def test_a_nearly_linear_score_takes_two_points():
    network = build("BertForSequenceClassification", initializer_range=0.02)
    model = RewardModel.load(network, tokenizer=word_tokenizer(), label="LABEL_1", output="logit")
    texts = [f"{text} {word}" for text in TEXTS for word in ("film", "dog", "book", "day")]
    found = reward.attribute(
        model, texts, baseline="mask", score_range=20 * reward.score_range(model, texts)["LABEL_1"]
    )
    assert (found["points"].values == 2).all() and found.unconverged == ()
    np.testing.assert_allclose(found["score"].values[:, 0], model.score(texts), atol=1e-5)
    change = (found["score"] - found["baseline_score"]).values
    error = np.abs(found["token_attribution"].sum("pos") - change)
    np.testing.assert_allclose(error, found["completeness_error"], atol=1e-12)
    exact = reward.attribute(model, texts, baseline="mask", first_points=49, score_range=1.0)
    spread = float(np.nanmax(np.abs(exact["token_attribution"])))
    np.testing.assert_allclose(found["token_attribution"], exact["token_attribution"], atol=0.2 * spread)


def test_words_and_characters_hold_what_the_tokens_hold():
    model = random_model()
    found = reward.attribute(model, TEXTS, labels=["LABEL_0", "LABEL_1"])
    for row, text in enumerate(TEXTS):
        tokens, words = found.tokens(row), found.words(row)
        assert words["word"].tolist() == text.split()
        for label in found.labels:
            assert words[label].sum() == pytest.approx(tokens[label].sum())
            by_character = found.by_character(row, label)
            assert len(by_character) == len(text) and by_character.sum() == pytest.approx(tokens[label].sum())
            spans = list(zip(words["start"], words["end"], strict=True))
            np.testing.assert_allclose(found.on_spans(row, spans, label), words[label], atol=1e-12)
        inside = tokens[~tokens["added"] & (tokens["token"] != "[UNK]")]
        assert [text[a:b].lower() for a, b in zip(inside["start"], inside["end"], strict=True)] == list(inside["token"])
    with pytest.raises(MeasureError, match="no label None; name one of LABEL_0, LABEL_1"):
        found.by_character(0)


def test_two_baselines_are_compared_by_rank():
    model = random_model()
    mean, zero = (reward.attribute(model, TEXTS, baseline=name) for name in ("mean", "zero"))
    same, other = reward.rank_correlation(mean, mean), reward.rank_correlation(mean, zero)
    assert same.values[[0, 1, 3], 0] == pytest.approx(1)
    assert np.isnan(same.values[2, 0])  # one token has no order
    assert (np.abs(other.values[[0, 1, 3], 0]) <= 1).all() and not np.allclose(other.values[0], 1)
    with pytest.raises(MeasureError, match="other texts, tokens or labels"):
        reward.rank_correlation(mean, reward.attribute(model, TEXTS[:2]))


def test_the_mean_baseline_is_the_mean_of_the_table():
    model = random_model()
    expected = model.parts.embed.weight.detach().double().mean(0)
    np.testing.assert_allclose(baseline_vector(model, "mean").double(), expected, atol=1e-7)


@pytest.mark.parametrize("method", ["integrated_gradients", "leave_one_out"])
def test_a_planted_score_is_found_at_its_marks(method):
    model = planted()
    text = "the film! was good, and the plot was bad!! so"
    found = reward.attribute(model, [text], method=method, baseline="unk", tolerance=1e-3)
    tokens = found.tokens(0)
    marks = tokens["token"] == "!"
    assert marks.sum() == 3
    np.testing.assert_allclose(tokens["exclamation"][marks], 1, atol=0.02)
    assert tokens["exclamation"][~marks].abs().max() < 0.01


def state(model):
    module = model.model
    hooks = sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in module.modules())
    grads = [(p.requires_grad, p.grad is None) for p in module.parameters()]
    return hooks, grads, [each.training for each in module.modules()], module.config._attn_implementation


@pytest.mark.parametrize("method", ["integrated_gradients", "leave_one_out", "gradient_x_input"])
def test_the_model_comes_back_as_it_was(method, monkeypatch):
    model = random_model()
    model.model.train()
    next(model.model.parameters()).requires_grad_(False)
    before, weights = state(model), [p.clone() for p in model.model.parameters()]
    reward.attribute(model, TEXTS, method=method)
    assert state(model) == before
    assert all(torch.equal(a, b) for a, b in zip(weights, model.model.parameters(), strict=True))

    def broken(*_):
        raise RuntimeError("in the middle")

    monkeypatch.setattr(model.model.distilbert.transformer.layer[-1], "forward", broken)
    with pytest.raises(RuntimeError, match="in the middle"):
        reward.attribute(model, TEXTS, method=method)
    monkeypatch.undo()
    assert state(model) == before


class TestBadInput:
    @pytest.mark.parametrize(
        ("texts", "options", "error", "says"),
        [
            (TEXTS, {"labels": ["joy"]}, MeasureError, "no label 'joy'; its labels are LABEL_0, LABEL_1, LABEL_2"),
            (TEXTS, {"labels": []}, MeasureError, "labels are LABEL_0"),
            (TEXTS, {"labels": ["LABEL_1", "LABEL_1"]}, MeasureError, "named twice"),
            (["good", " "], {}, PromptError, "text 1 is empty"),
            ("good", {}, PromptError, "not one string"),
            ([], {}, PromptError, "no text"),
            ([3], {}, PromptError, "text 0 is a int"),
            (["good", "the " * 70], {}, PromptError, "text 1 .* has 72 tokens and the reward model reads 64; shorten"),
            (TEXTS, {"method": "lime"}, MeasureError, "method is integrated_gradients, leave_one_out or"),
            (TEXTS, {"baseline": "pad"}, MeasureError, "no baseline 'pad'; take one of mean, zero, mask, unk"),
            (TEXTS, {"baseline": "delete"}, MeasureError, "only leave_one_out"),
            (TEXTS, {"method": "gradient_x_input", "baseline": "zero"}, MeasureError, "has no baseline"),
            (TEXTS, {"tolerance": 2.0}, MeasureError, "tolerance is a share"),
            (TEXTS, {"max_points": 4}, MeasureError, "max_points no less; got 0.01, 5 and 4"),
            (TEXTS, {"first_points": 4}, MeasureError, "first_points one of 3, 5, 7"),
            (TEXTS, {"patched_texts": -1}, MeasureError, "0 for none; got -1"),
            (TEXTS, {"score_range": -1.0}, MeasureError, "a number above 0"),
            (TEXTS, {"score_range": {"LABEL_0": 1.0}}, MeasureError, "score_range has no 'LABEL_1'"),
        ],
        ids=lambda value: value if isinstance(value, str) and len(value) < 30 else None,
    )  # fmt: skip
    def test_one_clear_error(self, texts, options, error, says, as_a_user):
        with pytest.raises(error, match=says):
            reward.attribute(random_model(), texts, **options)

    @pytest.mark.parametrize("method", ["integrated_gradients", "leave_one_out", "gradient_x_input"])
    def test_nan_in_the_weights(self, method):
        model = random_model()
        with torch.no_grad():
            model.model.classifier.weight[1, 0] = float("nan")
        with pytest.raises(InterpError, match="of 'the film was really good!' is not finite; check its"):
            reward.attribute(model, TEXTS, method=method)

    def test_a_model_without_a_score_head(self, tokenizer):
        from tests.conftest import tiny_gpt2

        with pytest.raises(InterpError, match="a classifier with a score head"):
            RewardModel.load(tiny_gpt2(), tokenizer=tokenizer, label="joy")

    def test_no_mask_token(self):
        model = random_model()
        model.tokenizer.mask_token = None
        with pytest.raises(MeasureError, match='no mask token; take baseline="mean"'):
            reward.attribute(model, TEXTS, baseline="mask")

    def test_a_tokenizer_that_cannot_tell_characters(self):
        from types import SimpleNamespace

        slow = RewardModel(
            build("GPT2ForSequenceClassification"), SimpleNamespace(is_fast=False), "LABEL_1", "logit", {}
        )
        with pytest.raises(MeasureError, match="does not tell which characters"):
            read_texts(slow, TEXTS)
