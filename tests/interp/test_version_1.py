"""What version 1 wrote is still read, with the numbers that it held."""

from pathlib import Path

import numpy as np
import pytest

import interp

V1 = Path(__file__).parents[1] / "fixtures" / "v1"


@pytest.fixture(scope="module")
def comparison():
    return interp.load_result(V1 / "comparison")


@pytest.fixture(scope="module")
def over_training():
    return interp.load_result(V1 / "comparison_of_training")


@pytest.fixture(scope="module")
def pair():
    return interp.load_pair(V1 / "pair")


def test_a_comparison_is_read_with_its_control_and_replicate(comparison):
    assert isinstance(comparison, interp.Comparison)
    runs = (comparison.dataset, *comparison.controls, *comparison.replicates)
    assert len(comparison.controls) == len(comparison.replicates) == 1
    means = {
        "kl": (0.25327998399734497, 0.007360121235251427, 0.2507011294364929),
        "js": (0.06911139190196991, 0.0018455827375873923, 0.06821737438440323),
        "lens_logit_diff": (0.7176852822303772, -0.6014546155929565, 0.6966090798377991),
        "lens_kl": (0.5906921625137329, 0.00544909480959177, 0.5811892747879028),
    }
    for name, wanted in means.items():
        np.testing.assert_allclose([float(run[name].mean()) for run in runs], wanted, rtol=1e-6, err_msg=name)
    np.testing.assert_array_equal(comparison["logit_diff"][0], [-0.5298070907592773, 3.1413493156433105])
    assert comparison["lens_top_token"][0, 1].values.tolist() == [" really", " bad", " bad", " bad", " bad"]
    assert comparison["text"].values[0] == "This movie was really"


def test_its_summary_is_that_of_version_1(comparison):
    frame = comparison.summary()
    row = frame[frame["finding"] == "' bad' - ' good': tuned minus base"].iloc[0]
    assert row["estimate"] == pytest.approx(3.7657915353775024)
    low, high = (row[name] for name in ("estimate_low", "estimate_high"))
    assert (low, high) == pytest.approx((3.704908847808838, 3.8556586503982544))
    assert row["control_low"] == pytest.approx(0.1032721996307373)
    assert row["replicate_high"] == pytest.approx(3.698195695877075)
    assert "tuned minus base" in repr(comparison) or "logits more than base" in repr(comparison)


def test_it_is_drawn_reported_and_written_again(comparison, tmp_path):
    assert {"lens", "logit_diff"} & set(dir(comparison.plot))
    comparison.report(tmp_path / "report.html")
    comparison.save(tmp_path / "again")
    again = interp.load_result(tmp_path / "again")
    for name in comparison:
        np.testing.assert_array_equal(again[name], comparison[name])
    assert len(again.controls) == len(again.replicates) == 1


def test_a_reward_s_joins_are_read(over_training):
    frame = over_training.summary()
    assert {"implicit reward", "token join", "over-optimisation", "probes"} <= set(frame["reading"])
    found = frame.set_index(["reading", "finding"])["estimate"]
    wanted = {
        ("implicit reward", "log-ratio per unit of reward, within prompts (1 / effective beta)"): 0.3134468349193264,
        ("token join", "Spearman of a token's attribution and log-ratio, within texts"): -0.1,
        ("over-optimisation", "optimised reward: POS: step 4"): -0.4179999,
        ("probes", "policy, layer 1 of 2: gain over step 0"): 0.06578947368421052,
    }
    for key, value in wanted.items():
        assert found[key] == pytest.approx(value, rel=1e-5), key


def test_a_pair_is_read_whole(pair):
    assert isinstance(pair, interp.CheckpointPair)
    folder = V1 / "pair"
    assert [Path(path) for path in (pair.base, pair.tuned, pair.reward)] == [
        folder / name for name in ("base", "tuned", "reward")
    ]
    assert [Path(path) for path in pair.controls] == [folder / "controls" / "shuffled-0"]
    assert [Path(path) for path in pair.replicates] == [folder / "replicates" / "seed-1"]
    assert {step: Path(path) for step, path in pair.checkpoints.items()} == {2: folder / "checkpoints" / "step-000002"}
    pair.verify()


def test_a_pair_s_models_are_loaded(pair):
    reward = interp.load_reward(pair)
    np.testing.assert_allclose(reward.score(["the movie was good"]), 0.60055721, rtol=1e-5)
    assert interp.load(pair.tuned).parts.n_layers == 2
    found = interp.compare(pair, ["the movie was really", "a film is very"], measures=["kl"])
    assert float(found["kl"].max()) > 0.01 and len(found.controls) == len(found.replicates) == 1
