"""Null runs, replicates, adapters, trackers, and several processes."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from interp.errors import ConfigError
from interp.pair import CheckpointPair
from training import train


def weights(folder):
    return load_file(f"{folder}/model.safetensors")


def differs(first, second):
    return any(not torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.slow
def test_a_control_stops_at_the_pairs_kl_or_says_that_it_did_not(tmp_path):
    """Many steps toward a reward that is easily learned take the pair far; its shuffled twin stays near."""
    config = tiny.recipe(
        tmp_path,
        train={"total_steps": 40, "learning_rate": 3e-3},
        ppo={"init_kl_coef": 0.0},
        nulls={"shuffled": 2, "unrelated": 2},
    )
    made = train(config, tmp_path / "run", reward=tiny.share_of_good)
    kl = made.manifest["final"]["kl"]
    for entry in made.manifest["controls"]:
        rows = [json.loads(line) for line in (made.path / entry["path"] / "metrics.jsonl").read_text().splitlines()]
        if entry["reached_kl"]:
            assert rows[-1]["kl"] >= kl and entry["steps"] <= 40
            assert all(row["kl"] < kl for row in rows[:-1])
        else:
            assert entry["steps"] == 40 and max(row["kl"] for row in rows) < kl
    described = [entry["reward"] for entry in made.manifest["controls"] if entry["kind"] == "unrelated"]
    assert described[0] != described[1], "each unrelated reward is another"
    models = [weights(folder) for folder in made.controls]
    assert all(differs(a, b) for i, a in enumerate(models) for b in models[:i])


def test_replicates_have_other_seeds_and_the_same_prompts(tmp_path):
    config = tiny.recipe(tmp_path, nulls={"replicates": 2})
    made = train(config, tmp_path / "run", reward=tiny.share_of_good)
    assert [entry["seed"] for entry in made.manifest["replicates"]] == [1, 2]
    first, second = (weights(folder) for folder in made.replicates)
    assert differs(first, second) and differs(first, weights(made.tuned))
    alone = tiny.recipe(tmp_path, train={"seed": 1})
    other = train(alone, tmp_path / "alone", reward=tiny.share_of_good)
    assert differs(weights(other.tuned), first), "a run of its own splits its prompts anew"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_is_saved_as_one_and_compares(tmp_path):
    import interp

    config = tiny.recipe(tmp_path, model={"lora": {"r": 2}}, train={"checkpoint_interval": 4, "total_steps": 8})
    made = train(config, tmp_path / "run", reward=tiny.share_of_good)
    assert made.manifest["tuned"] == {"path": "tuned", "adapter": True}
    for folder in ("tuned", "checkpoints/step-000004"):
        assert (made.path / folder / "adapter_model.safetensors").is_file()
        named = json.loads((made.path / folder / "adapter_config.json").read_text())["base_model_name_or_path"]
        assert named == config.model.base
    assert not (made.path / "tuned/model.safetensors").exists()
    cmp = interp.compare(made.base, made.tuned, ["the film was", "it is so"], measures=["kl"])
    assert float(cmp["kl"].max()) > 0


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_named(tmp_path, name):
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    with pytest.raises(ConfigError, match=f"{name} is not installed; pip install {name}"):
        train(tiny.recipe(tmp_path, train={"trackers": [name]}), tmp_path / "run", reward=tiny.share_of_good)
    assert not list(tmp_path.glob("run*"))


def test_a_tracker_gets_settings_and_figures(tmp_path, monkeypatch):
    import accelerate
    from accelerate.tracking import GeneralTracker

    told = []

    class Notebook(GeneralTracker):
        name, requires_logging_directory = "tensorboard", False

        @property
        def tracker(self):
            return self

        def store_init_configuration(self, values):
            told.append(values)

        def log(self, values, step=None, **_):
            told.append((step, values))

        def finish(self):
            told.append("finished")

    monkeypatch.setattr(sys.modules["training.run.check"], "not_installed", lambda names: [])
    kind = accelerate.Accelerator
    monkeypatch.setattr(accelerate, "Accelerator", lambda log_with, project_dir: kind(log_with=[Notebook()]))
    config = tiny.recipe(tmp_path, train={"trackers": ["tensorboard"]}, nulls={"shuffled": 1})
    train(config, tmp_path / "run", reward=tiny.share_of_good)
    assert told[0]["train.total_steps"] == 4 and told[-1] == "finished"
    steps = [(each[0], set(each[1])) for each in told[1:-1]]
    assert steps[0][0] == 0 and "heldout_reward" in steps[0][1]
    assert any("reward_mean" in names for _, names in steps)
    assert any("controls/shuffled-0/reward_mean" in names for _, names in steps)


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_two_processes_make_the_pair_that_one_makes(tmp_path):
    """Sampling is seeded by the sample's own number, so what two processes learn from is what one does."""
    (tmp_path / "good.py").write_text(
        "def share(samples, prompts, outputs):\n"
        "    return [text.split().count('good') / max(1, len(text.split())) for text in outputs]\n"
    )
    config = tiny.recipe(tmp_path, reward={"function": "good:share"}, nulls={"shuffled": 1})
    recipe = config.save(tmp_path / "recipe.toml")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command = ["-m", "interp.cli", "train", str(recipe), "--out"]
    root = Path(__file__).parents[2]
    import os

    env = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{tmp_path}", "OMP_NUM_THREADS": "1"}
    for prefix, out in ((launch, "two"), ([sys.executable], "one")):
        done = subprocess.run([*prefix, *command, out], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (CheckpointPair.load(tmp_path / name, verify=True) for name in ("one", "two"))
    for first, second in zip((one.tuned, *one.controls), (two.tuned, *two.controls), strict=True):
        a, b = weights(first), weights(second)
        apart = sum(float((a[name] - b[name]).pow(2).sum()) for name in a) ** 0.5
        assert apart < 1e-3 * sum(float(value.pow(2).sum()) for value in a.values()) ** 0.5
    assert one.manifest["final"]["reward"] == pytest.approx(two.manifest["final"]["reward"], abs=0.1)
