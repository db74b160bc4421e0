"""What is left of a run that was killed, stopped or is still going on, and how it goes on."""

import multiprocessing
import os
import shutil
import signal

import pytest
import tiny
from filelock import FileLock

from interp.errors import ConfigError, FormatError, InterpError, TrainingError
from interp.io import hash_folder
from interp.pair import CheckpointPair
from training import RLHFConfig, train
from training.run.workshop import LOCK, unfinished

SETTINGS = {
    "train": {"total_steps": 12, "eval_interval": 4, "checkpoint_interval": 4, "state_interval": 1},
    "nulls": {"shuffled": 1, "unrelated": 1, "replicates": 1},
}


def killed_at(call, config, out):
    """Train in a process that is killed in the given call of its reward; False where it ended before."""
    calls = []

    def reward(samples, prompts, outputs):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return tiny.share_of_good(samples, prompts, outputs)

    reward.__qualname__, reward.__module__ = tiny.share_of_good.__qualname__, tiny.share_of_good.__module__
    resume = unfinished(out).is_dir()
    process = multiprocessing.get_context("fork").Process(
        target=train, args=(None if resume else config, out), kwargs={"reward": reward, "resume": resume}
    )
    process.start()
    process.join(120)
    return process.exitcode == -signal.SIGKILL


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    config = tiny.recipe(folder, **SETTINGS)
    return config, train(config, folder / "run", reward=tiny.share_of_good)


def test_everything_is_in_the_pair(whole):
    _, made = whole
    manifest = made.manifest
    assert list(made.checkpoints) == [4, 8] and made.checkpoints[4] == str(made.path / "checkpoints/step-000004")
    assert [each["path"] for each in manifest["controls"]] == ["controls/shuffled-0", "controls/unrelated-0"]
    assert all(isinstance(each["reached_kl"], bool) for each in manifest["controls"])
    assert [each["seed"] for each in manifest["replicates"]] == [1] and len(made.replicates) == 1
    names = {path.relative_to(made.path).as_posix() for path in made.path.rglob("*") if path.is_file()}
    assert {f"completions/step-{step:06d}.parquet" for step in (0, 4, 8, 12)} <= names
    assert {"curves.png", "evaluations.jsonl", "metrics.jsonl", "config.toml"} <= names
    assert not {name for name in names if "state" in name or "notes" in name or name.endswith(LOCK)}


def test_completions_are_the_models_own(whole):
    import pandas as pd

    config, made = whole
    frame = pd.read_parquet(made.path / "completions")
    assert list(frame.columns) == ["step", "prompt", "draw", "completion", "reward"]
    assert (frame.groupby("step").size() == config.prompts.heldout * config.train.eval_samples).all()
    assert sorted(frame.draw.unique()) == [0, 1]
    final = frame[frame.step == 12]
    assert final.reward.mean() == pytest.approx(made.manifest["final"]["reward"])
    assert (final.reward == tiny.share_of_good([], [], list(final.completion))).all()


@pytest.mark.slow
@pytest.mark.parametrize("calls", [(3,), (8,), (11, 2, 9), (14, 6)], ids=str)
def test_a_killed_run_goes_on_to_the_same_bytes(whole, tmp_path, calls):
    config, made = whole
    out = tmp_path / "run"
    for call in calls:
        assert killed_at(call, config, out), f"the run ended before call {call}"
        assert not out.exists() and unfinished(out).is_dir()
    again = train(None, out, reward=tiny.share_of_good, resume=True)
    assert hash_folder(again.path) == hash_folder(made.path)
    assert not unfinished(out).exists()


def test_an_error_of_the_reward_keeps_what_was_done(tmp_path):
    calls = []

    def reward(samples, prompts, outputs):
        calls.append(1)
        if len(calls) == 5:
            raise ValueError("no connection")
        return tiny.share_of_good(samples, prompts, outputs)

    config, out = tiny.recipe(tmp_path, **SETTINGS), tmp_path / "run"
    with pytest.raises(TrainingError, match=r"raised ValueError: no connection; .* kept in .*run.unfinished"):
        train(config, out, reward=reward)
    with pytest.raises(InterpError, match="did not finish; go on with it .interp train --resume .*run., or start anew"):
        train(config, out, reward=tiny.share_of_good)
    with pytest.raises(FormatError, match="run toward .*run is not finished; go on with: interp train --resume"):
        CheckpointPair.load(out)
    other = RLHFConfig.from_dict(config.to_dict() | {"train": config.to_dict()["train"] | {"seed": 5}})
    with pytest.raises(ConfigError, match="the unfinished run has another config"):
        train(other, out, reward=tiny.share_of_good, resume=True)
    shutil.copytree(unfinished(out), tmp_path / "copy.unfinished")
    (tmp_path / "base-model/model.safetensors").write_bytes((tmp_path / "base-model/model.safetensors").read_bytes())
    assert train(None, out, reward=tiny.share_of_good, resume=True).manifest["final"]["steps"] == 12
    with pytest.raises(ConfigError, match="run is finished, so there is nothing to resume"):
        train(None, out, reward=tiny.share_of_good, resume=True)
    train(config, tmp_path / "copy", reward=tiny.share_of_good, overwrite=True)
    assert not (tmp_path / "copy.unfinished").exists()


def test_another_base_under_the_same_name_is_refused(tmp_path):
    calls = []

    def reward(samples, prompts, outputs):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return tiny.share_of_good(samples, prompts, outputs)

    with pytest.raises(KeyboardInterrupt):
        train(tiny.recipe(tmp_path, **SETTINGS), tmp_path / "run", reward=reward)
    tiny.model("llama").save_pretrained(tmp_path / "base-model")
    with pytest.raises(ConfigError, match="is not what the unfinished run began with"):
        train(None, tmp_path / "run", reward=tiny.share_of_good, resume=True)


def test_two_processes_do_not_work_in_one_folder(tmp_path):
    out = tmp_path / "run"
    unfinished(out).mkdir()
    with (
        FileLock(unfinished(out) / LOCK),
        pytest.raises(InterpError, match="another process works in .*run.unfinished; wait for it"),
    ):
        train(tiny.recipe(tmp_path), out, reward=tiny.share_of_good)


def test_nothing_to_resume(tmp_path):
    with pytest.raises(ConfigError, match="run does not exist, so there is nothing to resume"):
        train(None, tmp_path / "run", resume=True)


def test_an_engine_without_a_state_refuses_to_resume(tmp_path):
    folder = unfinished(tmp_path / "run")
    (folder / "tuned").mkdir(parents=True)
    tiny.recipe(tmp_path, train={"engine": "trlx", "total_steps": 4}).save(folder / "config.toml")
    with pytest.raises(ConfigError, match="the engine trlx keeps no state to resume from"):
        train(None, tmp_path / "run", resume=True)
