"""A killed run goes on to the same bytes."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from interp.errors import FormatError, InterpError, TrainingError
from training.native import state_step, tune

SETTINGS = {"train": {"total_steps": 24, "state_interval": 1, "scheduler": "cosine"},
            "ppo": {"target": 0.05, "horizon": 200, "scale_reward": "running"}}  # fmt: skip


def digest(outcome):
    parts = [*outcome.model.state_dict().items(), *outcome.value_head.state_dict().items()]
    return hashlib.sha256(b"".join(name.encode() + v.numpy().tobytes() for name, v in parts)).hexdigest()


def merged(settings, **changes):
    return {
        section: settings.get(section, {}) | changes.get(section, {}) for section in settings.keys() | changes.keys()
    }


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    ("kind", "model"),
    [("gpt2", {}), ("t5", {}), ("gpt2", {"lora": {"dropout": 0.2}}), ("llama", {"num_layers_unfrozen": 1})],
)
@pytest.mark.parametrize("interval", [1, 4])
def test_a_run_stopped_between_rounds_goes_on_to_the_same_bytes(tmp_path, kind, model, interval):
    settings = merged(SETTINGS, model=model, train={"state_interval": interval})
    whole = tiny.job(tmp_path / "whole", kind, **settings)
    want = digest(tune(whole))
    first = tiny.job(tmp_path / "cut", kind, **settings)

    def stepped(step, model):
        if step == 20:
            raise Stop

    first.watch.stepped = stepped
    with pytest.raises(Stop):
        tune(first)
    done = state_step(first.folder)
    assert done == 16
    second = tiny.job(tmp_path / "cut", kind, **settings)
    outcome = tune(second)
    assert digest(outcome) == want and outcome.steps == 24 and abs(outcome.kl_at_step_0) < 1e-6
    assert [row["step"] for row in second.watch.rows] == [16, 20]
    rows = [row for row in first.watch.rows if row["step"] < done] + second.watch.rows
    assert rows == whole.watch.rows
    assert len(list((tmp_path / "cut" / "state").iterdir())) == 2, "earlier states are removed"


def test_a_reward_that_raises_costs_no_round(tmp_path, as_a_user):
    calls = []

    def failing(samples, prompts, outputs):
        calls.append(1)
        if len(calls) == 9:
            raise ValueError("no connection")
        return tiny.share_of_good(samples, prompts, outputs)

    settings = merged(SETTINGS, train={"state_interval": 10})
    want = digest(tune(tiny.job(tmp_path / "whole", **settings)))
    with pytest.raises(TrainingError, match="the reward function raised ValueError: no connection"):
        tune(tiny.job(tmp_path / "cut", reward=failing, **settings))
    assert state_step(tmp_path / "cut") == 16, "the four rounds before are kept"
    assert digest(tune(tiny.job(tmp_path / "cut", **settings))) == want


def test_a_diverged_run_keeps_its_last_good_state(tmp_path, as_a_user):
    job = tiny.job(tmp_path, train={"total_steps": 24, "state_interval": 1, "kl_limit": 1e-4, "learning_rate": 3e-3})
    with pytest.raises(TrainingError, match="exceeds train.kl_limit"):
        tune(job)
    assert state_step(tmp_path) == 4


def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    job = tiny.job(tmp_path)
    want = digest(tune(job))
    assert state_step(tmp_path) == 8
    again = tiny.job(tmp_path)
    assert digest(tune(again)) == want and again.watch.rows == []


def test_no_state_where_none_is_asked_for(tmp_path):
    tune(tiny.job(tmp_path, train={"state_interval": 0}))
    assert state_step(tmp_path) is None and not (tmp_path / "state").exists()


def test_a_state_of_another_recipe_or_null_run(tmp_path, as_a_user):
    tune(tiny.job(tmp_path))
    with pytest.raises(TrainingError, match="is the state of another recipe"):
        tune(tiny.job(tmp_path, train={"seed": 1}))
    with pytest.raises(TrainingError, match="is the state of another recipe"):
        tune(tiny.job(tmp_path, shuffle=1))


def test_a_state_that_cannot_be_read(tmp_path, as_a_user):
    tune(tiny.job(tmp_path))
    next((tmp_path / "state").glob("*.safetensors")).write_bytes(b"x")
    with pytest.raises(FormatError, match="cannot read .*; remove .* and start anew"):
        tune(tiny.job(tmp_path))
    (tmp_path / "state" / "state.json").write_text('{"format": 99}')
    with pytest.raises(FormatError, match="is no state that this version reads"):
        state_step(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_line_and_the_state_before_stays(tmp_path, as_a_user, monkeypatch):
    job = tiny.job(tmp_path, train={"total_steps": 24, "state_interval": 1})

    def full(tensors, file):
        from safetensors.torch import save

        with open("/dev/full", "wb") as device:  # every write to it fails as on a full disk
            device.write(save(tensors))

    def stepped(step, model):
        if step == 8:
            monkeypatch.setattr("training.native.state.save_file", full)

    job.watch.stepped = stepped
    with pytest.raises(InterpError, match="the disk is full"):
        tune(job)
    assert state_step(tmp_path) == 4


MOMENTS = ((4, 0.0), (4, 0.004), (8, 0.008), (8, 0.012), (12, 0.016), (12, 0.02), (16, 0.03), (20, 0.002))
"""After which step, and how many seconds later, the run is killed: at another place of the round each time."""

SCRIPT = """
import os, sys, time
sys.path[:0] = [{root!r}, {here!r}]
import torch
torch.set_num_threads(1)
import tiny
from pathlib import Path
from test_native_state import MOMENTS, SETTINGS, digest
from training.native import state_step, tune

def run(told):
    job = tiny.job(Path(sys.argv[1]), **SETTINGS)
    job.watch.stepped = lambda step, model: told.write(f"{{step}}\\n") and told.flush()
    return digest(tune(job))

for until, wait in MOMENTS:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        run(os.fdopen(write, "w"))
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as lines:
        next((line for line in lines if int(line) >= until), None)
        time.sleep(wait)
        os.kill(child, 9)
    _, status = os.waitpid(child, 0)
    print("killed" if os.WIFSIGNALED(status) else "ended", state_step(Path(sys.argv[1])))
print(run(sys.stderr))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_kill_9_at_several_moments(tmp_path):
    want = digest(tune(tiny.job(tmp_path / "whole", **SETTINGS)))
    here = Path(__file__).parent
    code = SCRIPT.format(root=str(here.parent.parent), here=str(here))
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "cut")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *kills, got = done.stdout.splitlines()
    words = [line.split() for line in kills]
    assert [word for word, _ in words[:5]] == ["killed"] * 5
    steps = [int(step) for _, step in words if step != "None"]
    assert steps == sorted(steps) and len(set(steps)) > 2, "each run goes on where the one before was killed"
    assert got == want
