"""Reward models as recipients of the same patching: exact for every classifier, mixed with policies, bad input."""

import copy
import json

import numpy as np
import pytest
import torch
import transformers as hf

from interp import Policy, Prompts
from interp.errors import MeasureError, PromptError, TokenizerMismatch
from interp.hooks import Site, has_site
from interp.models import RewardModel
from interp.patching import ablation, activation_patching, attribution_patching, smallest_set, steering
from interp.patching.targets import NAMES
from interp.plot import patching as drawing
from interp.reward.direct_attribution import direct_attribution
from tests.interp.architectures import CONFIGS, build
from tests.interp.figures import drawn, words
from tests.interp.planted_reward import random_model, word_tokenizer

CLASSIFIERS = [name for name in CONFIGS if "SequenceClassification" in name]
SOME_SLOW = [
    pytest.param(name, marks=() if name.startswith(("Llama", "Bert")) else pytest.mark.slow) for name in CLASSIFIERS
]
TEXTS = [
    "the film was really good!",
    "i think that the story is very bad, and the people say so.",
    "great",
    "you are so smart: john and mary say the great film!",
]
MANY = [f"the {a} was {b}" for a in ("film", "book", "story") for b in ("good", "bad", "great", "terrible")]
WORSE = [text.replace("good", "bad").replace("great", "terrible").replace("film", "plot") for text in MANY]

# Where a module of each kind is: blocks, then in a block the projections of the attention, the MLP's last one, and,
# of models that norm sums, the two norms.
PLACES = {
    "GPT2": ("transformer.h", ("attn.c_attn",) * 3, "attn.c_proj", "mlp.c_proj", None),
    "Llama": (
        "model.layers", [f"self_attn.{x}_proj" for x in "qkv"], "self_attn.o_proj", "mlp.down_proj", None,
    ),
    "DistilBert": (
        "distilbert.transformer.layer", [f"attention.{x}_lin" for x in "qkv"], "attention.out_lin", "ffn.lin2",
        ("sa_layer_norm", "output_layer_norm"),
    ),
}  # fmt: skip
PLACES["Qwen2"] = PLACES["Llama"]
for _name in ("Bert", "Roberta"):
    PLACES[_name] = (
        f"{_name.lower()}.encoder.layer", [f"attention.self.{x}" for x in ("query", "key", "value")],
        "attention.output.dense", "output.dense", ("attention.output.LayerNorm", "output.LayerNorm"),
    )  # fmt: skip
POSITIONS = {"all": slice(None), "last": [-1], "0 and 2": [0, 2]}


def pair(name, output="logit", label="LABEL_1"):
    return [
        RewardModel.load(build(name, seed), tokenizer=word_tokenizer(), label=label, output=output) for seed in (0, 1)
    ]


class Plain:
    """A model's own pass over one unpadded text, with torch's hooks on its modules by their names."""

    def __init__(self, reward):
        self.model = reward.model
        self.kind = type(self.model).__name__.removesuffix("ForSequenceClassification")
        self.layers, self.qkv, self.o, self.down, self.norms = PLACES[self.kind]
        config = self.model.config
        self.heads = config.num_attention_heads
        self.kv_heads = getattr(config, "num_key_value_heads", None) or self.heads
        self.width = getattr(config, "head_dim", None) or config.hidden_size // self.heads

    def at(self, layer, path):
        return self.model.get_submodule(f"{self.layers}.{layer}.{path}" if path else f"{self.layers}.{layer}")

    def place(self, site, layer, unit):
        """(module, whether its input is meant, columns); resid_mid of a pre-norm block is what attention adds to."""
        part = slice(None)
        if site in ("q", "k", "v"):
            index = "qkv".index(site)
            part = slice(unit * self.width, (unit + 1) * self.width)
            if self.qkv[0] == self.qkv[1]:
                start = index * self.heads * self.width
                part = slice(start + part.start, start + part.stop)
            return self.at(layer, self.qkv[index]), False, part
        if site == "z":
            return self.at(layer, self.o), True, slice(unit * self.width, (unit + 1) * self.width)
        if site == "mlp_post":
            return self.at(layer, self.down), True, slice(unit, unit + 1)
        if site in ("attn_out", "mlp_out"):
            return self.at(layer, self.o if site == "attn_out" else self.down), False, part
        if site == "resid_pre" or self.norms is None:
            return self.at(layer, ""), site == "resid_pre", part
        return self.at(layer, self.norms[site == "resid_post"]), True, part

    def run(self, ids, place=None, change=None):
        """Logits, with `change` made of the value at `place`."""
        handles = []
        if place is not None:
            module, entering, part = place

            def edited(value):
                new = value.clone()
                new[..., part] = change(value[..., part])
                return new

            def before(_, args, kwargs):
                if args:
                    return (edited(args[0]), *args[1:]), kwargs
                return args, {**kwargs, "hidden_states": edited(kwargs["hidden_states"])}

            def after(_, __, out):
                return (edited(out[0]), *out[1:]) if isinstance(out, tuple) else edited(out)

            handles = [
                module.register_forward_pre_hook(before, with_kwargs=True)
                if entering
                else module.register_forward_hook(after)
            ]
        try:
            with torch.no_grad():
                return self.model(input_ids=torch.tensor([ids])).logits[0].double()
        finally:
            for handle in handles:
                handle.remove()

    def value(self, ids, place):
        kept = []
        self.run(ids, place, lambda value: kept.append(value) or value)
        return kept[0]

    def patched(self, ids, site, layer, unit, given, where):
        def put(value):
            new = value.clone()
            new[:, where] = given[:, where]
            return new

        if site != "resid_mid" or self.norms is not None:
            return self.run(ids, self.place(site, layer, unit), put)
        entering = self.value(ids, self.place("resid_pre", layer, 0))
        return self.run(ids, self.place("attn_out", layer, 0), lambda out: put(entering + out) - entering)

    def read(self, ids, site, layer, unit):
        if site != "resid_mid" or self.norms is not None:
            return self.value(ids, self.place(site, layer, unit))
        return self.value(ids, self.place("resid_pre", layer, 0)) + self.value(ids, self.place("attn_out", layer, 0))


SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v", "mlp_post")


@pytest.mark.parametrize(
    "position", ["all", *(pytest.param(each, marks=pytest.mark.slow) for each in ("last", "0 and 2"))]
)
@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=pytest.mark.slow) if each.startswith("Qwen2") else each for each in CLASSIFIERS]
)
def test_every_site_equals_whole_passes_of_single_texts_under_torch_hooks(name, position):
    recipient, source = pair(name)
    plain, other = Plain(recipient), Plain(source)
    has_units = {"z": 3, "q": 3, "k": 1, "v": 1, "mlp_post": 5}
    places = [(site, layer, has_units.get(site, 0)) for site in SITES for layer in range(3)]
    sites = [{(site, layer): [unit] if site in has_units else None} for site, layer, unit in places]
    where = POSITIONS[position]
    texts = TEXTS if position != "0 and 2" else [text for text in TEXTS if " " in text]
    found = activation_patching(
        recipient, source, texts, sites=sites, draws=0, batch_size=3,
        positions=position if isinstance(where, slice) or where == [-1] else where,
    )  # fmt: skip
    assert found.dataset.attrs["metric"] == "score" and found.dataset.attrs["units"] == "logits"
    expected = np.empty(found["effect"].shape)
    for row, text in enumerate(texts):
        ids = recipient.tokenizer(text)["input_ids"]
        own = plain.run(ids)[1]
        assert float(found["recipient"][row]) == pytest.approx(float(own), abs=1e-5 * max(1, abs(float(own))))
        for column, (site, layer, unit) in enumerate(places):
            given = other.read(ids, site, layer, unit)
            expected[row, column] = plain.patched(ids, site, layer, unit, given, where)[1] - own
    assert np.abs(found["effect"].values - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())
    assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize("name", SOME_SLOW)
def test_the_short_cut_equals_whole_passes(name):
    """Every kind of site that the model has, every head, and sets over several layers."""
    recipient, source = pair(name, "softmax")
    names = [site for site in NAMES if has_site(recipient.parts, Site(site, 0))]
    sites = [
        *(each for each in names if each != "mlp_post"),
        {("z", 0): [1, 2], ("mlp_out", 1): None, ("resid_mid", 1): None, ("mlp_post", 2): [3]},
        {("q", 1): [1], ("result", 1): [0, 3], ("attn_out", 2): None},
    ]
    for positions in ("all", [0, 2]):
        texts = TEXTS if positions == "all" else TEXTS[:2]
        both = [
            activation_patching(
                recipient, source, texts, sites=sites, positions=positions, draws=0, short_cut=each, batch_size=3
            )["effect"].values
            for each in (True, False)
        ]
        assert np.abs(both[0] - both[1]).max() <= 1e-5 and np.abs(both[0]).max() > 1e-2


def test_residuals_of_a_post_norm_encoder_are_sums_before_their_norm():
    """resid_post of a layer goes through that layer's norm before it is the next one's resid_pre."""
    recipient, source = pair("BertForSequenceClassification")
    sites = [Site("resid_post", 0), Site("resid_pre", 1), Site("resid_post", 2)]
    found = activation_patching(recipient, source, TEXTS, sites=sites)["effect"].values
    assert np.abs(found[:, 0] - found[:, 1]).max() > 1e-3  # the recipient's norm, and the source's
    with torch.no_grad():
        store = source.trace(TEXTS, [Site("resid_post", 2)])
        expected = recipient.parts.logits(store.read(Site("resid_post", 2))).double()[:, 1].numpy()
    np.testing.assert_allclose(found[:, 2] + recipient.score(TEXTS), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["LlamaForSequenceClassification", "DistilBertForSequenceClassification"])
def test_the_last_residual_at_the_token_that_is_read_brings_the_source_but_for_its_head(name):
    recipient, source = pair(name)
    read = -1 if name.startswith("Llama") else 0
    sites = Site("resid_post", 2)
    found = activation_patching(recipient, source, MANY, sites=sites, positions=[read])
    whole = activation_patching(recipient, source, MANY, sites=sites)
    np.testing.assert_allclose(found["effect"], whole["effect"], atol=1e-6)
    nothing = activation_patching(recipient, source, MANY, sites=sites, positions=[1])
    assert np.abs(nothing["effect"].values).max() < 1e-6  # a token that no score is read from
    back = activation_patching(source, recipient, MANY, sites=sites)
    np.testing.assert_allclose(back["readout"], found["effect"][:, 0] + found["recipient"], atol=1e-5)
    np.testing.assert_allclose(found["source"], source.score(MANY), atol=1e-6)


@pytest.mark.parametrize(
    ("output", "unit"), [("logit", "logits"), ("softmax", "probability"), ("sigmoid", "probability")]
)
def test_the_score_is_the_models_own_output(output, unit):
    recipient, source = pair("RobertaForSequenceClassification", output)
    found = activation_patching(recipient, source, MANY, sites="mlp_out")
    np.testing.assert_allclose(found["recipient"], recipient.score(MANY), atol=1e-6)
    np.testing.assert_allclose(found["source"], source.score(MANY), atol=1e-6)
    assert found.dataset.attrs["units"] == unit == found["effect"].attrs["units"]
    assert f"score (LABEL_1) of the recipient {float(found['recipient'].mean()):.4g}" in repr(found)
    assert unit in found.headline() and json.loads(found.dataset.attrs["recipient"])["label"] == "LABEL_1"
    assert np.isfinite(found["p"]).all() and set(found.summary()["site"]) == {f"L{i}.mlp_out" for i in range(3)}


def test_other_metrics_are_kl_over_labels_and_functions_of_the_labels_logits():
    recipient, source = pair("GPT2ForSequenceClassification", "softmax")
    found = activation_patching(recipient, source, MANY, sites="mlp_out", metric="kl")
    assert found.dataset.attrs["units"] == "nats" and (found["source"] == 0).all()
    both = [torch.as_tensor(model.score_labels(MANY)).log() for model in (source, recipient)]
    np.testing.assert_allclose(found["recipient"], (both[0].exp() * (both[0] - both[1])).sum(-1), atol=1e-6)

    seen = []

    def margin(logits, rows):
        seen.extend(rows.tolist())
        return logits[:, 2] - logits[:, 0]

    mine = activation_patching(recipient, source, MANY, sites="mlp_out", metric=margin, batch_size=5)
    logits = recipient.trace(MANY).logits
    np.testing.assert_allclose(mine["recipient"], logits[:, 2] - logits[:, 0], atol=1e-5)
    assert set(seen) == set(range(len(MANY))) and mine.dataset.attrs["metric"] == "margin"


def test_one_model_on_clean_and_corrupted_texts():
    model = random_model("BertForSequenceClassification")
    prompts = Prompts(MANY, corrupted=WORSE)
    last = {("resid_post", 2): None}
    found = activation_patching(model, model, prompts, sites=[last, "resid_pre"], draws=0)
    assert float(found["recovery"][0]) == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(found["recipient"], model.score(WORSE), atol=1e-6)
    np.testing.assert_allclose(found["source"], model.score(MANY), atol=1e-6)
    assert "readout" not in found.dataset
    turned = activation_patching(model, model, prompts, sites=last, draws=0, recipient_reads="clean")
    np.testing.assert_allclose(turned["recipient"], model.score(MANY), atol=1e-6)
    by_token = activation_patching(model, model, prompts, sites="resid_pre", positions="each")
    assert by_token.map("resid_pre").shape == (3, 6)  # [CLS] the film was good [SEP]
    same = np.array([text.split()[0] == other.split()[0] for text, other in zip(MANY, WORSE, strict=True)])
    assert same.all() and np.abs(by_token.map("resid_pre", "effect").sel(layer=0, pos=1)).max() < 1e-6


@pytest.mark.parametrize("by", ["zero", "mean"])
def test_ablation_by_hand(by):
    model = random_model("DistilBertForSequenceClassification")
    plain = Plain(model)
    found = ablation(model, TEXTS, by=by, sites=["mlp_out", {("z", 1): [2]}], draws=0)
    assert "recovery" not in found.dataset and found.dataset.attrs["units"] == "logits"
    ids = [model.tokenizer(text)["input_ids"] for text in TEXTS]
    for column, (site, layer, unit) in enumerate([*(("mlp_out", layer, 0) for layer in range(3)), ("z", 1, 2)]):
        mean = torch.cat([plain.read(row, site, layer, unit)[0] for row in ids]).double().mean(0)
        for row, each in enumerate(ids):
            value = torch.zeros_like(mean) if by == "zero" else mean
            given = value.float().expand(1, len(each), -1)
            expected = plain.patched(each, site, layer, unit, given, slice(None))[1] - plain.run(each)[1]
            assert float(found["effect"][row, column]) == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("name", ["GPT2ForSequenceClassification", "RobertaForSequenceClassification"])
def test_mean_ablation_is_what_direct_attribution_stands_beside(name):
    model = random_model(name)
    beside = direct_attribution(model, TEXTS)["patching_effect"].sel(label="LABEL_1")
    found = ablation(model, TEXTS, by="mean", sites=["attn_out", "mlp_out"])
    for column, label in enumerate(found.dataset["label"].values):
        component = str(label).removesuffix("_out")
        np.testing.assert_allclose(-found["effect"][:, column], beside.sel(component=component), atol=1e-5)


def test_ablation_by_another_text():
    model = random_model("LlamaForSequenceClassification")
    found = ablation(model, MANY, by="resample", sites="z")
    again = ablation(model, MANY, by="resample", sites="z")
    assert np.array_equal(found["effect"], again["effect"]) and np.abs(found["effect"].values).max() > 1e-3
    alike = ablation(model, ["the film was good"] * 4, by="resample", sites="z")
    assert np.abs(alike["effect"].values).max() < 1e-5


@pytest.mark.parametrize("name", SOME_SLOW)
def test_attribution_patching_is_the_slope_and_its_integral_the_effect(name):
    recipient = random_model(name)
    near = copy.deepcopy(recipient.model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in near.parameters():
            parameter += 1e-4 * torch.randn(parameter.shape, generator=generator)
    source = RewardModel.load(near, tokenizer=recipient.tokenizer, label="LABEL_1", output="logit")
    found = attribution_patching(recipient, source, MANY[:4], sites=["z", "resid_pre", "mlp_out", "q"], sample=20)
    chosen = np.isfinite(found["exact_effect"].values[0])
    estimate, exact = found["effect"].values[:, chosen], found["exact_effect"].values[:, chosen]
    assert chosen.sum() == 20 and np.abs(estimate - exact).max() < 0.05 * np.abs(exact).max()
    assert found.dataset.attrs["metric"] == "score" and all(p.grad is None for p in recipient.model.parameters())


def test_integrated_gradients_sum_to_the_exact_effect():
    model = random_model("GPT2ForSequenceClassification")
    prompts = Prompts(MANY[:4], corrupted=WORSE[:4])
    exact = activation_patching(model, model, prompts, sites="mlp_out")
    errors = [
        float(np.abs(attribution_patching(model, model, prompts, sites="mlp_out", steps=steps, sample=0)["effect"]
                     - exact["effect"]).max())
        for steps in (0, 24)
    ]  # fmt: skip
    assert errors[1] < 0.1 * errors[0]


def test_the_smallest_set_of_a_reward_model():
    recipient, source = pair("LlamaForSequenceClassification", "softmax")
    texts = [f"{text} {mark}" for text in MANY for mark in ("!", ".")]
    found = smallest_set(recipient, source, texts, sites="mlp_out", draws=2, most=2, metric="kl")
    assert found.dataset.attrs["metric"] == "kl" and found.dataset.attrs["units"] == "nats"


def trunk(reward):
    """A policy with the trunk of a score-headed Llama, moved a little."""
    model = hf.LlamaForCausalLM(copy.deepcopy(reward.model.config)).eval()
    model.model.load_state_dict(reward.model.model.state_dict())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return Policy.load(model, tokenizer=reward.tokenizer)


def test_a_policys_activations_in_the_reward_model_that_was_made_of_it():
    """The source has no score; its last residual, read by the recipient's head, is what recovery is measured by."""
    reward = random_model("LlamaForSequenceClassification")
    policy = trunk(reward)
    found = activation_patching(reward, policy, MANY, sites=["resid_pre", "z", Site("resid_post", 2)])
    ids = [reward.tokenizer(text)["input_ids"] for text in MANY]
    with torch.no_grad():
        norm, score = reward.model.model.norm, reward.model.score
        kept = []
        handle = policy.model.model.norm.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
        for row in ids:
            policy.model(input_ids=torch.tensor([row]))
        handle.remove()
        expected = torch.stack([score(norm(each[0, -1]))[1] for each in kept]).double()
    np.testing.assert_allclose(found["source"], expected, atol=1e-5)
    np.testing.assert_allclose(found["recipient"], reward.score(MANY), atol=1e-6)
    np.testing.assert_allclose(found["effect"][:, -1], found["source"] - found["recipient"], atol=1e-5)
    assert "readout" not in found.dataset and "read by the recipient's head" in " ".join(found.notes())
    assert "last residual" in found["source"].attrs["long_name"]
    estimate = attribution_patching(reward, policy, MANY, sites="z", sample=4)
    assert "read by the recipient's head" in " ".join(estimate.notes())


def test_a_reward_models_activations_in_a_policy():
    reward = random_model("LlamaForSequenceClassification")
    policy = trunk(reward)
    prompts = Prompts(MANY, answers=("good", "bad"))
    found = activation_patching(policy, reward, prompts, sites=[Site("resid_post", 2), "mlp_out"])
    assert found.dataset.attrs["metric"] == "logit_diff" and "label" not in found.dataset.attrs
    np.testing.assert_allclose(found["effect"][:, 0], found["source"] - found["recipient"], atol=1e-5)


def test_models_are_given_back_also_when_something_raises():
    models = pair("BertForSequenceClassification")
    for index, reward in enumerate(models):
        reward.model.train()
        for number, parameter in enumerate(reward.model.parameters()):
            parameter.requires_grad_(number % 2 == index)
    weights = [copy.deepcopy(reward.model.state_dict()) for reward in models]
    kernels = [reward.model.config._attn_implementation for reward in models]
    calls = []

    def breaks(logits, rows):
        calls.append(len(rows))
        if len(calls) > 3:
            raise RuntimeError("in the middle")
        return logits[:, 0]

    activation_patching(*models, TEXTS, sites=["q", "z", "pattern", "resid_mid"])
    attribution_patching(*models, TEXTS, sites=["k", "resid_mid"], steps=2, sample=2)
    with pytest.raises(RuntimeError, match="in the middle"):
        activation_patching(*models, TEXTS, sites=["q", "z"], metric=breaks, batch_size=2)
    for index, reward in enumerate(models):
        model = reward.model
        assert all(module.training for module in model.modules())
        assert model.config._attn_implementation == kernels[index]
        assert [p.requires_grad for p in model.parameters()] == [
            number % 2 == index for number in range(len(weights[index]))
        ][: len(list(model.parameters()))]
        assert all(torch.equal(value, weights[index][key]) for key, value in model.state_dict().items())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("output", ["logit", "softmax"])
def test_figures_name_the_score_and_its_units_and_nothing_is_clipped(output):
    model = random_model("DistilBertForSequenceClassification", output)
    found = ablation(model, MANY, sites="z")
    unit = f"[{found.dataset.attrs['units']}]"
    for figure in (drawing.recovery_map(found, "z"), drawing.bars(found)):
        figure = drawn(figure)
        assert unit in words(figure)
        for label in (each.yaxis.label for each in figure.axes):
            box = label.get_window_extent()
            assert box.y0 >= figure.bbox.y0 and box.y1 <= figure.bbox.y1, label.get_text()
    assert "score" in words(figure)


class TestMistakes:
    @pytest.fixture
    def model(self):
        return random_model("LlamaForSequenceClassification")

    @pytest.fixture
    def other(self):
        return random_model("LlamaForSequenceClassification", seed=1)

    @pytest.mark.parametrize(
        ("metric", "message"),
        [
            ("logit_diff", "next tokens, which a reward model does not predict"),
            ("logprob", "next tokens, which a reward model does not predict"),
            ("kl", "kl needs a softmax over the labels"),
            ("accuracy", "metric is score or kl"),
        ],
    )
    def test_metrics_of_policies(self, model, other, metric, message):
        for run in (activation_patching, attribution_patching):
            with pytest.raises(MeasureError, match=message):
                run(model, other, Prompts(MANY, answers=(" good", " bad")), sites="z", metric=metric)
        with pytest.raises(MeasureError, match=message):
            ablation(model, MANY, sites="z", metric=metric)

    def test_a_score_of_a_policy(self, model):
        with pytest.raises(MeasureError, match="score is a reward model's"):
            ablation(trunk(model), MANY, sites="mlp_out", metric="score")

    def test_models_that_do_not_fit(self, model, other):
        small = RewardModel.load(
            build("LlamaForSequenceClassification", num_hidden_layers=2), tokenizer=model.tokenizer, label="LABEL_1",
            output="logit",
        )  # fmt: skip
        with pytest.raises(MeasureError, match="recipient has layers 3, the source layers 2"):
            activation_patching(model, small, MANY)
        with pytest.raises(MeasureError, match="recipient has family llama.*, the source family gpt2"):
            activation_patching(model, random_model("GPT2ForSequenceClassification"), MANY)
        for changes in ({"label": "LABEL_0"}, {"output": "sigmoid"}):
            how = {"label": "LABEL_1", "output": "logit", **changes}
            wrong = RewardModel.load(other.model, tokenizer=model.tokenizer, **how)
            with pytest.raises(MeasureError, match="load both with one label and output"):
                activation_patching(model, wrong, MANY)
        renamed = build("LlamaForSequenceClassification")
        renamed.config.id2label = {0: "joy", 1: "LABEL_1", 2: "fear"}
        renamed.config.label2id = {"joy": 0, "LABEL_1": 1, "fear": 2}
        wrong = RewardModel.load(renamed, tokenizer=model.tokenizer, label="LABEL_1", output="logit")
        with pytest.raises(MeasureError, match="labels are LABEL_0, LABEL_1, LABEL_2, the source's joy"):
            activation_patching(model, wrong, MANY)

    def test_texts_that_become_different_tokens(self, model, other, tokenizer):
        spaced = word_tokenizer()
        spaced.backend_tokenizer.post_processor = None
        wrong = RewardModel.load(other.model, tokenizer=spaced, label="LABEL_1", output="logit")
        with pytest.raises(TokenizerMismatch, match="read text 0 .* as different tokens"):
            activation_patching(model, wrong, MANY)
        wrong = RewardModel.load(other.model, tokenizer=tokenizer, label="LABEL_1", output="logit")
        with pytest.raises(TokenizerMismatch, match="have different tokens"):
            activation_patching(model, wrong, MANY)

    @pytest.mark.parametrize(
        ("prompts", "message"),
        [
            (["the film was good", " "], "prompt 1 is empty"),
            (["the " * 80], "text 0 .* has 82 tokens and the reward model reads 64"),
            (Prompts(["the film"], corrupted=["the film was"]), "text 0 has 4 tokens and its corrupted counterpart 5"),
            (Prompts([[{"role": "user", "content": "hello"}]]), "reads texts, and these prompts are chats"),
            (Prompts([[5, 6]]), "reads texts, and these prompts are token ids"),
            (Prompts(["the film"], continuations=[" was"]), "without continuations; write them behind"),
            (Prompts(["the film"], bos=True), "leave bos out"),
        ],
    )
    def test_texts_that_do_not_fit(self, model, other, prompts, message):
        with pytest.raises(PromptError, match=message):
            activation_patching(model, other, prompts)

    def test_what_is_not_loaded(self, model, as_a_user):
        with pytest.raises(MeasureError, match="the source is a loaded model too"):
            activation_patching(model, "somewhere", MANY)
        with pytest.raises(TypeError, match="no parameter 'dtype' any more; load first"):
            ablation(model, MANY, dtype="float32")
        with pytest.raises(PromptError, match="its own run on the same prompts"):
            activation_patching(model, model, MANY)
        with pytest.raises(MeasureError, match="this takes policies"):
            steering(model, model, MANY, site=Site("resid_pre", 1))
