"""The implicit reward: exact on toys that can be enumerated, silent where there is nothing to find."""

import itertools

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.stats import spearmanr

from interp import plot
from interp.errors import MeasureError, TokenizerMismatch
from interp.models import Policy, RewardModel
from interp.models.optimised import Optimised
from interp.pair import CheckpointPair
from interp.prompts import Prompts
from interp.reward.fixed_effects import centred, fixed_effects, permutations_within, spearman_within
from interp.reward.implicit_reward import calibrate, implicit_reward
from interp.reward.responses import read_prompts, respond, response_kl, response_log_probs
from interp.sampling import Sampling
from interp.stats import permutation_p
from tests.conftest import tiny_gpt2, word_tokenizer
from tests.interp.architectures import build
from tests.interp.figures import drawn, words

TEXTS = [
    "this movie was", "the film was", "a really good", "the plot", "boring great acting", "very fun",
    "this film and", "the acting was", "a bad film", "really", "good", "the movie was very",
]  # fmt: skip
BETA = 0.25


def toy(beta: float = BETA, *, prompts: int = 12, draws: int = 4, seed: int = 0, follows: bool = True) -> xr.Dataset:
    """Responses of one to three tokens of a vocabulary of three; tuned is proportional to base exp(r / beta)."""
    rng = np.random.default_rng(seed)
    responses = [r for n in (1, 2, 3) for r in itertools.product(range(3), repeat=n)]
    rows = {"log_ratio": [], "reward": [], "length": [], "completion": []}
    for _ in range(prompts):
        base = rng.dirichlet(np.full(len(responses), 0.7))
        reward = rng.normal(rng.normal(0, 3), 0.4, len(responses))
        pull = reward if follows else rng.normal(0, 0.4, len(responses))
        tuned = base * np.exp(pull / beta)
        tuned /= tuned.sum()
        picked = [rng.choice(len(responses), draws, p=p) for p in (base, tuned)]
        rows["log_ratio"].append([np.log(tuned[i]) - np.log(base[i]) for i in picked])
        rows["reward"].append([reward[i] for i in picked])
        rows["completion"].append([[str(responses[k]) for k in i] for i in picked])
        rows["length"].append([[float(len(responses[k])) for k in i] for i in picked])
    dims = ("prompt", "source", "draw")
    data = xr.Dataset({name: (dims, np.array(each)) for name, each in rows.items()})
    data["text"] = ("prompt", np.array([f"prompt {i}" for i in range(prompts)], dtype=object))
    return data.assign_coords(source=["base", "tuned"], prompt=range(prompts), group=("prompt", np.arange(prompts)))


@pytest.mark.parametrize("beta", [0.05, 0.25, 2.0])
def test_the_slope_of_an_exact_optimum_is_one_over_beta(beta):
    data = calibrate(toy(beta), draws=99).dataset
    for end in ("", "_low", "_high"):
        assert float(data[f"slope{end}"]) == pytest.approx(1 / beta, rel=1e-9)
        assert float(data[f"effective_beta{end}"]) == pytest.approx(beta, rel=1e-9)
        np.testing.assert_allclose(data[f"slope_by_source{end}"], 1 / beta, rtol=1e-9)
    assert float(data["spearman_mean"]) == pytest.approx(1, abs=1e-12)
    assert np.abs(data["residual"]).max() < 1e-9 and float(data["explained"]) == pytest.approx(1)
    # Across prompts the same numbers say something else: log Z(x) differs.
    flat = np.polyfit(data["reward"].values.ravel(), data["log_ratio"].values.ravel(), 1)
    assert abs(flat[0] - 1 / beta) > 0.1 / beta


def test_a_shift_that_has_nothing_to_do_with_the_reward_is_not_found():
    false = [calibrate(toy(seed=s, follows=False), draws=39) for s in range(40)]
    ps = np.array([r.summary().iloc[0]["p"] for r in false])
    covered = [r.summary().iloc[0]["estimate_low"] <= 0 <= r.summary().iloc[0]["estimate_high"] for r in false]
    assert (ps <= 0.05).mean() < 0.15 and np.mean(covered) > 0.8
    assert 0.3 < ps.mean() < 0.7


def test_length_left_out_and_in_by_dummies():
    toys = toy(draws=8, prompts=9)
    # What was paid for is the length alone; the reward goes with it.
    toys["log_ratio"] = 2.0 * toys["length"]
    toys["reward"] = toys["length"] + 0.3 * toys["reward"]
    data = calibrate(toys, draws=9).dataset
    y, r, length = (toys[name].values.ravel() for name in ("log_ratio", "reward", "length"))
    dummies = np.repeat(np.eye(9), 16, axis=0)
    both = np.linalg.lstsq(np.column_stack([r, length, dummies]), y, rcond=None)[0]
    alone = np.linalg.lstsq(np.column_stack([r, dummies]), y, rcond=None)[0]
    assert float(data["slope"]) == pytest.approx(both[0], abs=1e-9) and abs(both[0]) < 1e-9
    assert float(data["length_slope"]) == pytest.approx(2)
    assert float(data["slope_without_length"]) == pytest.approx(alone[0]) and alone[0] > 0.5
    assert float(data["slope_without_length_low"]) < alone[0] < float(data["slope_without_length_high"])


def test_it_prints_what_was_found_and_how_to_go_on():
    said = repr(calibrate(toy(), draws=19))
    assert said.startswith("12 prompts, 8 samples each: the log-ratio grows by 4 nats per unit of reward")
    assert "null: 19 permutations" in said and ".texts()" in said and "Dataset" not in said
    assert "is too steep where the policy also drifted" in said and "quote that of base's samples alone" in said


def test_drift_steepens_the_joint_slope_but_not_that_of_bases_samples():
    rng = np.random.default_rng(0)
    # Reward and drift are independent under base, both push the log-ratio, and tuned's samples are chosen by both.
    draws, slope, drift = 200, 1.0, 2.0
    r, d = rng.normal(size=(2, 40, 2, draws))
    r[:, 1], d[:, 1] = r[:, 1] + slope, d[:, 1] + drift
    data = toy(prompts=40, draws=draws).assign(log_ratio=(("prompt", "source", "draw"), slope * r + drift * d))
    data["reward"] = (("prompt", "source", "draw"), r)
    data["length"] = (("prompt", "source", "draw"), rng.integers(1, 5, r.shape).astype(float))
    found = calibrate(data, draws=9).dataset
    assert float(found["slope"]) > 1.5
    assert float(found["slope_by_source"].sel(source="base")) == pytest.approx(1, abs=0.08)


def test_fixed_effects_equal_least_squares_with_dummies():
    rng = np.random.default_rng(1)
    index = rng.integers(0, 9, 80)
    index = np.unique(index, return_inverse=True)[1]
    x = rng.normal(size=(80, 2))
    y = 2 * x[:, 0] - x[:, 1] + rng.normal(size=80) + index * 3.0
    design = np.concatenate([x, np.eye(index.max() + 1)[index]], axis=1)
    coefficients, *_ = np.linalg.lstsq(design, y, rcond=None)
    fit = fixed_effects(y, x, index)
    np.testing.assert_allclose(fit.values, coefficients[:2], rtol=1e-10)
    np.testing.assert_allclose(fit.residual, y - design @ coefficients, atol=1e-10)
    assert (fit.low < fit.values).all() and (fit.values < fit.high).all()
    few = fixed_effects(y[index < 5], x[index < 5], index[index < 5])
    assert np.isfinite(few.values).all() and np.isnan(few.low).all()


def test_intervals_cover_the_truth_and_follow_the_clusters():
    rng = np.random.default_rng(2)
    index, covered, widths = np.repeat(np.arange(40), 6), [], []
    for seed in range(80):
        x = rng.normal(size=(240, 1))
        # Errors that follow x alike within a prompt: the slope differs from prompt to prompt.
        y = (1 + rng.normal(0, 0.5, 40)[index]) * x[:, 0] + rng.normal(size=240)
        fit = fixed_effects(y, x, index, draws=400, seed=seed)
        covered.append(fit.low[0] <= 1 <= fit.high[0])
        doubled = fixed_effects(np.tile(y, 2), np.tile(x, (2, 1)), np.concatenate([index, index + 40]), draws=400,
                                clusters=np.tile(index, 2), seed=seed)  # fmt: skip
        widths.append((doubled.high[0] - doubled.low[0]) / (fit.high[0] - fit.low[0]))
    assert np.mean(covered) > 0.86
    np.testing.assert_allclose(widths, 1, rtol=1e-9)  # texts that are copied add nothing


def test_ranks_and_permutations_within_groups():
    rng = np.random.default_rng(3)
    index = np.array([2, 0, 1, 0, 2, 0, 1, 2, 2, 0, 1, 3, 3])
    x, y = np.round(rng.normal(size=(2, 13)), 1)
    want = [spearmanr(x[index == g], y[index == g]).statistic for g in range(3)]
    np.testing.assert_allclose(spearman_within(x, y, index), [*want, np.nan])
    orders = list(permutations_within(index, 50, seed=0))
    assert all((index[order] == index).all() and sorted(order) == list(range(13)) for order in orders)
    assert len({tuple(order) for order in orders}) > 45
    np.testing.assert_allclose([centred(x, index)[index == g].sum() for g in range(4)], 0, atol=1e-12)
    assert permutation_p(3.0, np.array([-3.0, 1.0, 2.0])) == pytest.approx(0.5)
    assert np.isnan(permutation_p(float("nan"), np.zeros(3)))


@pytest.fixture(scope="module")
def policies() -> tuple[Policy, Policy]:
    """Base, and the same with exactly 2 nats on the logit of " good": it is pi_base exp(2 [y is " good"]) / Z."""
    base, tuned = (tiny_gpt2(tie_word_embeddings=False) for _ in range(2))
    tokenizer = word_tokenizer()
    with torch.no_grad():
        for model in (base, tuned):
            model.lm_head.weight.mul_(0.3)
        # What the final norm gives is gain * unit + bias, and the unit vector sums to 0.
        gain, bias = tuned.transformer.ln_f.weight.double(), tuned.transformer.ln_f.bias.double()
        direction = 2.0 * (1 / gain) / (bias / gain).sum()
        tuned.lm_head.weight[tokenizer.encode(" good")[0]] += direction.float()
    return Policy.load(base, tokenizer=tokenizer), Policy.load(tuned, tokenizer=tokenizer)


def is_good(*, outputs, **_):
    return [float(text == " good") for text in outputs]


def test_models_that_are_an_exact_optimum(policies):
    result = implicit_reward(*policies, is_good, Prompts(TEXTS), sampling=Sampling(24, 1), draws=99, batch_size=7)
    data = result.dataset
    assert data["reward"].values.max() == 1 and (data["length"] == 1).all()
    assert float(data["slope"]) == pytest.approx(2, abs=2e-4)
    assert float(data["slope_by_source"].sel(source="base")) == pytest.approx(2, abs=2e-4)
    frame = result.summary()
    assert frame.iloc[0]["p"] == pytest.approx(0.01) and frame.iloc[0]["null_high"] < 2
    assert set(result.texts(2)["kind"]) <= {"drift toward", "drift away", "unclaimed"}


def test_batch_size_and_repetition_change_nothing(policies):
    def run(size: int) -> xr.Dataset:
        prompts = Prompts(TEXTS)
        return implicit_reward(
            *policies, is_good_share, prompts, sampling=Sampling(max_new_tokens=6), draws=19, batch_size=size
        ).dataset

    first = run(5)
    assert first.identical(run(5))
    other = run(96)
    same = (first["completion"] == other["completion"]).values
    assert same.mean() > 0.95  # rounding may tip a sample whose random number falls on the edge between two tokens
    np.testing.assert_allclose(first["log_ratio"].values[same], other["log_ratio"].values[same], atol=2e-4)
    np.testing.assert_allclose(first["token_log_ratio"].sum("step"), first["log_ratio"], rtol=1e-12)


def is_good_share(*, outputs, samples, prompts):
    assert all(s == p + o for s, p, o in zip(samples, prompts, outputs, strict=True))
    return np.array([text.count("o") + 0.1 * len(text) ** 0.5 for text in outputs])


def test_the_log_probabilities_are_those_of_a_plain_loop(policies):
    base, tuned = policies
    tokens = read_prompts([base], Prompts(TEXTS[:5]))
    said = respond(tuned, tokens, 2, Sampling(max_new_tokens=9), seed=1, batch_size=4)
    found = response_log_probs(base, tokens, said, batch_size=3)
    distance = response_kl(base, tuned, tokens, said, batch_size=4)
    ended = 0
    for row, ids, own, kl in zip(said.rows, said.ids, found, distance, strict=True):
        prompt = list(tokens.prompt_ids[row])
        for step, token in enumerate(ids):
            context = torch.tensor([[*prompt, *ids[:step]]])
            with torch.no_grad():
                p, q = (m.model(context).logits[0, -1].double().log_softmax(-1) for m in (tuned, base))
            assert own[step] == pytest.approx(float(q[token]), abs=2e-5)
            assert kl[step] == pytest.approx(float((p.exp() * (p - q)).sum()), abs=2e-5)
        assert len(own) == len(ids) == len(kl)
        ended += ids[-1] == 0
    assert ended, "no response ended, so that the end token was not looked at"


def test_a_model_and_itself_differ_by_nothing(policies):
    data = implicit_reward(policies[0], policies[0], is_good_share, Prompts(TEXTS), draws=19).dataset
    assert (data["log_ratio"] == 0).all() and float(data["slope"]) == 0
    assert np.isnan(data["spearman"]).all() and np.isnan(float(data["spearman_mean"]))
    assert np.isnan(float(data["effective_beta"]))
    assert (data["completion"].sel(source="base") == data["completion"].sel(source="tuned")).all()


def test_models_are_given_back_as_they_were(policies):
    base, tuned = policies
    tuned.model.train()
    state = [p.requires_grad for p in tuned.model.parameters()]

    def broken(**_):
        raise RuntimeError("in the middle")

    with pytest.raises(MeasureError, match="broken failed .RuntimeError: in the middle"):
        implicit_reward(base, tuned, broken, Prompts(TEXTS))
    assert tuned.model.training and [p.requires_grad for p in tuned.model.parameters()] == state
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tuned.model.modules())
    tuned.model.eval()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling": Sampling(9, 4)}, "even and at least 8"),
        ({"sampling": Sampling(6, 4)}, "even and at least 8"),
        ({"draws": 0}, "1"),
        ({"sampling": Sampling(temperature=0.5)}, "at temperature 1"),
        ({"reads": "both"}, "reads is"),
        ({"reward": lambda outputs, **_: [1.0] * len(outputs)}, "the same for all responses"),
        ({"reward": lambda outputs, **_: [1.0]}, "48 finite numbers"),
        ({"reward": lambda outputs, **_: [float("nan")] * len(outputs)}, "not all of them finite"),
        ({"optimised": lambda raw: raw[:1]}, "finite reward for each"),
    ],
    ids=["odd", "few", "draws", "temperature", "reads", "constant", "count", "nan", "optimised"],
)
@pytest.mark.usefixtures("as_a_user")
def test_bad_input(policies, changes, message):
    arguments = {"reward": is_good_share, "sampling": Sampling(max_new_tokens=4)} | changes
    reward = arguments.pop("reward")
    with pytest.raises(MeasureError, match=message):
        implicit_reward(*policies, reward, Prompts(TEXTS), **arguments)


@pytest.mark.usefixtures("as_a_user")
def test_what_is_no_reward_is_refused(policies):
    with pytest.raises(MeasureError, match="a reward is a reward model .*, not a int"):
        implicit_reward(*policies, 3, Prompts(TEXTS))


def test_a_reward_that_is_the_length_is_refused():
    data = toy()
    with pytest.raises(MeasureError, match="linear function of the length"):
        calibrate(data.assign(reward=data["length"] * 2 + 1))


def test_other_vocabularies_are_refused(policies):
    other = word_tokenizer()
    other.add_tokens(["<new>"])
    model = tiny_gpt2(vocab_size=len(other))
    with pytest.raises(TokenizerMismatch, match="tokens"):
        implicit_reward(policies[0], Policy.load(model, tokenizer=other), is_good, Prompts(TEXTS))


def test_the_reward_as_it_was_optimised():
    raw = np.array([-5.0, 0.0, 3.0, 9.0])
    np.testing.assert_allclose(Optimised(shift=1, scale=2, clip=2)(raw), [-2, -0.5, 1, 2])
    np.testing.assert_allclose(Optimised(shift=1, scale=2, clip=4, clip_first=True)(raw), [-2.5, -0.5, 1, 1.5])
    with pytest.raises(MeasureError, match="above 0"):
        Optimised(scale=0.0)


def manifest(engine: str = "native", temperature: float = 1.0, **ppo: object) -> CheckpointPair:
    settings = {"init_kl_coef": 0.1, "scale_reward": "none", "cliprange_reward": 10.0, "ref_mean": 3.0} | ppo
    return CheckpointPair(
        None, {"engine": engine, "config": {"ppo": settings, "generate": {"temperature": temperature}}}
    )


@pytest.mark.usefixtures("as_a_user")
def test_reading_a_recipe():
    assert Optimised.of(manifest()) == Optimised(clip=10.0, beta=0.1)
    ref = {"scale_reward": "ref", "ref_std": 2.0}
    assert Optimised.of(manifest(**ref)) == Optimised(shift=3.0, scale=2.0, clip=10.0, beta=0.1)
    # trlX clips before it scales, and never subtracts the mean.
    assert Optimised.of(manifest("trlx", **ref)) == Optimised(scale=2.0, clip=10.0, clip_first=True, beta=0.1)
    assert Optimised.of(manifest(target=6.0)).beta is None and Optimised.of(manifest(temperature=0.7)).beta is None
    for unknown in ({"scale_reward": "running"}, {"scale_reward": "ref", "ref_std": None}):
        with pytest.raises(MeasureError, match="not on record"):
            Optimised.of(manifest(**unknown))
    assert Optimised.of(CheckpointPair(None, {"engine": "trl", "config": {"grpo": {}}})) == Optimised()


@pytest.mark.parametrize("width", [17.0, 8.5])
def test_the_figure_shows_the_slope(width):
    result = calibrate(toy(seed=1), draws=99)
    result.dataset.attrs["beta"] = BETA
    figure = drawn(plot.implicit_reward(result, width=width))
    assert "Slope 4.00" in words(figure) and "the recipe's 1 / beta" in words(figure)
    with pytest.raises(MeasureError, match="over_optimisation"):
        plot.over_optimisation(result)


@pytest.mark.slow
def test_the_embedded_pair_follows_its_reward_and_its_control_less():
    pair = CheckpointPair.load("interp/data/demo")
    said = pair.manifest["reward"]
    reward = RewardModel.load(str(pair.reward), label=said["label"], output=said["output"])
    prompts = Prompts([line for line in (pair.path / "openings.txt").read_text().splitlines() if line][:24])
    rows = {}
    for name, tuned in (("pair", pair.tuned), ("control", pair.controls[0])):
        result = implicit_reward(pair.base, tuned, reward, prompts, optimised=Optimised.of(pair), draws=199)
        rows[name] = result.summary().iloc[0]
    assert rows["pair"]["p"] == pytest.approx(0.005) and rows["pair"]["estimate_low"] > 4
    assert rows["control"]["estimate_high"] < rows["pair"]["estimate_low"] / 2


def test_encoder_decoder_models_are_compared_too():
    tokenizer = word_tokenizer()
    size = {"vocab_size": len(tokenizer)}
    pair = [
        Policy.load(build("T5ForConditionalGeneration", seed, **size), tokenizer=tokenizer, check=False)
        for seed in (0, 1)
    ]

    def length_in_letters(*, outputs, prompts, samples):
        assert set(prompts) == {text.strip() for text in TEXTS}
        return [float(len(text)) for text in outputs]

    data = implicit_reward(
        *pair, length_in_letters, Prompts(TEXTS), sampling=Sampling(max_new_tokens=5), draws=9
    ).dataset
    ids = tokenizer(TEXTS[3])["input_ids"]
    tokens = read_prompts([pair[0]], Prompts(TEXTS))
    said = respond(pair[1], tokens, 4, Sampling(max_new_tokens=5), seed=0, batch_size=32)
    own = list(said.ids[3])
    with torch.no_grad():
        logits = [
            m.model(torch.tensor([ids]), decoder_input_ids=torch.tensor([[0, *own[:-1]]])).logits[0] for m in pair
        ]
    both = [each.double().log_softmax(-1)[range(len(own)), own].sum() for each in logits]
    want = float(both[1] - both[0])
    assert float(data["log_ratio"].sel(prompt=3, source="tuned", draw=0)) == pytest.approx(want, abs=1e-4)
