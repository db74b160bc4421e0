import json
import multiprocessing
import os
import signal
import sys

import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from interp.errors import ConfigError, InterpError, TrainingError
from interp.io import hash_folder
from interp.pair import CheckpointPair
from training import RLHFConfig, check, train


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    events = []
    config = tiny.recipe(folder, kind=request.param, train={"timings": True}, nulls={"shuffled": 1})
    made = train(config, folder / "run", reward=tiny.share_of_good, progress=events.append)
    return made, config, events


def test_the_pair_is_complete(pair):
    made, config, _ = pair
    CheckpointPair.load(made.path, verify=True)
    assert made.base == config.model.base and made.tuned == str(made.path / "tuned")
    assert made.controls == (str(made.path / "controls/shuffled-0"),)
    assert made.reward is None and made.manifest["reward"]["function"].endswith("share_of_good")
    assert RLHFConfig.load(made.path / "config.toml") == config == RLHFConfig.from_dict(made.manifest["config"])
    assert {"python", "torch", "transformers", "rlhf-interp"} <= set(made.manifest["versions"])
    assert made.manifest["base"]["sha256"]["model.safetensors"]
    final = made.manifest["final"]
    assert {"reward", "base_reward", "kl", "distinct_2", "base_distinct_2", "kl_at_step_0", "heldout_prompts"} <= set(
        final
    )
    names = {file.suffix for file in made.path.rglob("*") if file.is_file()}
    assert names == {".json", ".jsonl", ".toml", ".safetensors", ".parquet", ".png"}, "weights are safetensors"
    assert not list(made.path.rglob("state")) and not list(made.path.parent.glob("*.unfinished"))


def test_what_was_saved_loads_again_whole(pair):
    made, _, _ = pair
    for source in (made.tuned, *made.controls):
        _, report = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
        assert (type(made.path)(source) / "tokenizer.json").is_file()
    assert set(load_file(made.path / "value_head.safetensors")) == {
        "hidden.weight",
        "hidden.bias",
        "out.weight",
        "out.bias",
    }


def test_kl_at_step_0_is_0_and_grows(pair):
    made, _, _ = pair
    assert abs(made.manifest["final"]["kl_at_step_0"]) < 1e-6
    assert made.manifest["final"]["kl"] > 1e-6


def test_metrics(pair):
    made, config, events = pair
    rows = [json.loads(line) for line in (made.path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0]  # 16 rollouts in batches of 8, twice: all 4 steps in one round
    wanted = (
        "reward_mean reward_std kl entropy clip_fraction value_loss explained_variance length distinct_2 samples_per_s"
    )
    assert set(wanted.split()) <= set(rows[0])
    assert [event["stage"] for event in events] == ["evaluation", "ppo", "evaluation", "control", "evaluation"]
    assert events[1]["step"] == events[1]["steps"] == config.train.total_steps


def test_heldout_completions(pair):
    made, config, _ = pair
    rows = json.loads((made.path / "heldout.json").read_text())
    assert len(rows) == config.prompts.heldout == made.manifest["final"]["heldout_prompts"]
    for row in rows:
        for name in ("base", "tuned"):
            output = row[name]["completion"]
            assert row[name]["reward"] == tiny.share_of_good([], [], [output])[0]
            assert row["prompt"] not in output and "<" not in output


def test_same_seed_same_bytes(tmp_path):
    config = tiny.recipe(tmp_path, nulls={"shuffled": 1})
    hashes = []
    for name in ("a", "b"):
        torch.manual_seed(len(hashes))  # whatever state the caller's generators are in
        hashes.append(hash_folder(train(config, tmp_path / name, reward=tiny.share_of_good).path))
    assert hashes[0] == hashes[1]
    other = RLHFConfig.from_dict(config.to_dict() | {"train": config.to_dict()["train"] | {"seed": 1}})
    third = hash_folder(train(other, tmp_path / "c", reward=tiny.share_of_good).path)
    assert third["tuned/model.safetensors"] != hashes[0]["tuned/model.safetensors"]


def test_the_callers_generator_is_left_alone(tmp_path):
    config = tiny.recipe(tmp_path)
    before = torch.get_rng_state()
    train(config, tmp_path / "run", reward=tiny.share_of_good)
    assert torch.equal(before, torch.get_rng_state())


def test_chunk_size_changes_nothing_but_rounding(tmp_path):
    tensors = []
    for chunk in (4, 16):
        config = tiny.recipe(tmp_path, ppo={"chunk_size": chunk})
        made = train(config, tmp_path / f"run{chunk}", reward=tiny.share_of_good)
        tensors.append(load_file(made.path / "tuned/model.safetensors"))
    for name, value in tensors[0].items():
        assert torch.allclose(value, tensors[1][name], atol=1e-4), name


def test_controls_of_one_kind_are_numbered_and_differ(tmp_path):
    config = tiny.recipe(tmp_path, nulls={"shuffled": 2})
    made = train(config, tmp_path / "run", reward=tiny.share_of_good)
    assert [control["path"] for control in made.manifest["controls"]] == ["controls/shuffled-0", "controls/shuffled-1"]
    first, second = (load_file(f"{folder}/model.safetensors") for folder in made.controls)
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_base_can_be_stored(tmp_path):
    made = train(tiny.recipe(tmp_path, train={"store_base": True}), tmp_path / "run", reward=tiny.share_of_good)
    assert made.base == str(tmp_path / "run/base")
    stored, given = (load_file(f"{folder}/model.safetensors") for folder in (made.base, tmp_path / "base-model"))
    assert all(torch.equal(stored[name], given[name]) for name in given)


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (lambda **_: [1.0], "must return 10 numbers"),
        (lambda samples, **_: [float("nan")] * len(samples), "returned nan"),
        (lambda **_: 1 / 0, "raised ZeroDivisionError"),
    ],
)
def test_a_bad_reward_leaves_nothing(tmp_path, reward, words):
    config = tiny.recipe(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(TrainingError, match=words):
        train(config, tmp_path / "run", reward=reward)
    assert sorted(tmp_path.iterdir()) == before


def test_divergence_is_an_error_that_leaves_nothing(tmp_path):
    config = tiny.recipe(tmp_path, train={"learning_rate": 1e30, "total_steps": 40})
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InterpError, match="diverged|NaN"):
        train(config, tmp_path / "run", reward=tiny.share_of_good)
    assert sorted(tmp_path.iterdir()) == before


def test_interruption_leaves_what_can_be_resumed_and_nothing_else(tmp_path):
    def reward(**_):
        raise KeyboardInterrupt

    config = tiny.recipe(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", reward=reward)
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "run.unfinished"])
    assert train(None, tmp_path / "run", resume=True, reward=tiny.share_of_good).manifest["final"]["steps"] > 0
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "run"])


def test_kill_in_the_middle_leaves_no_pair(tmp_path):
    calls = []

    def reward(samples, prompts, outputs):
        calls.append(len(samples))
        if len(calls) == 2:  # the evaluation of the base is done, the first rollouts are drawn
            os.kill(os.getpid(), signal.SIGKILL)
        return tiny.share_of_good(samples, prompts, outputs)

    config = tiny.recipe(tmp_path)
    process = multiprocessing.get_context("fork").Process(
        target=train, args=(config, tmp_path / "run"), kwargs={"reward": reward}
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "run").exists()


def test_an_earlier_pair_is_replaced_only_when_asked(tmp_path):
    config = tiny.recipe(tmp_path)
    train(config, tmp_path / "run", reward=tiny.share_of_good)
    with pytest.raises(InterpError, match="already holds a result"):
        train(config, tmp_path / "run", reward=tiny.share_of_good)
    train(config, tmp_path / "run", reward=tiny.share_of_good, overwrite=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine.txt").write_text("x")
    with pytest.raises(InterpError, match="holds other files"):
        train(config, tmp_path / "other", reward=tiny.share_of_good, overwrite=True)


def test_check(tmp_path):
    config = tiny.recipe(tmp_path, model={"base": "gpt2"})
    assert check(config, reward=tiny.share_of_good)["model.base"] == "gpt2: no folder here, so a hub id, not fetched"
    assert check(config, reward=tiny.share_of_good)["prompts"].endswith("5 held out")
    with pytest.raises(ConfigError, match="no reward: set reward.model"):
        check(config)
    named = tiny.recipe(tmp_path, reward={"model": "some/classifier", "label": "joy"})
    assert check(named)["reward.model"] == "some/classifier: no folder here, so a hub id, not fetched, label joy"
    with pytest.raises(ConfigError, match="keep one"):
        check(named, reward=tiny.share_of_good)
    with pytest.raises(ConfigError, match="absent is no folder; correct the path"):
        check(tiny.recipe(tmp_path, model={"base": str(tmp_path / "absent")}), reward=tiny.share_of_good)


def test_importing_training_is_cheap():
    import subprocess
    from pathlib import Path

    code = "import sys, training; assert 'torch' not in sys.modules and 'numpy' not in sys.modules; training.RLHFConfig"
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)})


def test_prompts_are_passed_in_python(tmp_path):
    import dataclasses

    import datasets

    from training.config import PromptsConfig

    texts = list(tiny.prompts())
    named = tiny.recipe(tmp_path)
    config = dataclasses.replace(named, prompts=PromptsConfig(words=3, heldout=5, column="story"))
    first = train(config, tmp_path / "a", reward=tiny.share_of_good, prompts=texts)
    data = datasets.Dataset.from_dict({"story": texts})
    second = train(config, tmp_path / "b", reward=tiny.share_of_good, prompts=data)
    assert hash_folder(first.path) == hash_folder(second.path)
    with pytest.raises(ConfigError, match="no prompts: set prompts.files or prompts.dataset"):
        train(config, tmp_path / "c", reward=tiny.share_of_good)
    with pytest.raises(ConfigError, match="names prompts and others were passed"):
        check(named, reward=tiny.share_of_good, prompts=texts)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reward": {"function": "no_module_of_that_name:f"}}, "cannot import no_module_of_that_name"),
        ({"reward": {"function": "f"}}, "is package.module:name, not 'f'"),
        ({"reward": {"model": ""}}, "a model's name is empty"),
        ({"generate": {"max_new_tokens": 32}}, "leaves no room for a prompt in the base's context of 32 tokens"),
        ({"model": {"num_layers_unfrozen": 3}}, "num_layers_unfrozen is 3, the base has 2 layers"),
        ({"train": {"trackers": ["tensorboard"]}}, "tensorboard is not installed; pip install tensorboard"),
    ],
)
def test_check_finds_what_a_run_would_stumble_over(tmp_path, changes, words, monkeypatch):
    module = sys.modules["training.run.check"]  # the package's own attribute of that name is the function
    monkeypatch.setattr(module, "not_installed", lambda names: list(names) if "torch" not in names else [])
    reward = None if "reward" in changes else tiny.share_of_good
    with pytest.raises(ConfigError, match=words):
        check(tiny.recipe(tmp_path, **changes), reward=reward)


def test_a_base_that_says_nothing_is_refused(tmp_path):
    config = tiny.recipe(tmp_path)
    model = tiny.model()
    with torch.no_grad():  # whatever is read, the end token has the largest logit by far
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.copy_(1e6 * model.transformer.wte.weight[0])
    model.save_pretrained(tmp_path / "base-model")
    with pytest.raises(TrainingError, match="answers all 10 samples of the held-out prompts with nothing"):
        train(config, tmp_path / "run", reward=tiny.share_of_good)
    assert not list(tmp_path.glob("run*"))
