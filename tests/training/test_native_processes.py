"""Two processes under `accelerate launch` do what one does."""

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

from interp.errors import InterpError, TrainingError
from training.native import tune
from training.native.learner import make_learner, update
from training.native.policy import make_policy
from training.native.ppo import targets
from training.native.processes import Processes, add_up, gathered, processes, share
from training.rollouts import ValueHead, collect

# 18 samples and batches of 5: neither is even between two processes.
SETTINGS = {"train": {"total_steps": 8, "batch_size": 5, "minibatch_size": 2, "learning_rate": 1e-3},
            "ppo": {"num_rollouts": 18, "chunk_size": 4}}  # fmt: skip


def stored_rollouts(folder, kind):
    job = tiny.job(folder, kind, **SETTINGS)
    prompts = job.sampler.encode(job.prompts[:18])
    head = ValueHead(16, seed=0)
    return collect(job.base, head, job.base, job.sampler, prompts, job.reward, first_index=0, chunk_size=18)


def one_update(folder, kind, rollouts, team):
    """Weights of policy and value head after the steps of one round on these rollouts."""
    job = tiny.job(folder, kind, **SETTINGS)
    learner = make_learner(make_policy(job.base, job.config.model, 0), job.config, team)
    goals = targets(rollouts, rollouts.scores, job.config.ppo, 0.05)
    figures = update(learner, rollouts, goals, number=0, step=0)
    return [p.detach().clone() for p in learner.parameters], figures


def failing_in_the_second(samples, prompts, outputs):
    if os.environ.get("RANK") == "1":
        raise ValueError("not here")
    return tiny.share_of_good(samples, prompts, outputs)


def relative(got, want):
    """Length of the difference over length, of all weights as one vector.

    By tensor it would say nothing: the gradient of a key's bias is 0 but for rounding, and Adam makes steps of it.
    """
    a, b = (torch.cat([value.flatten().double() for value in values]) for values in (got, want))
    return float((a - b).norm() / b.norm())


SCRIPT = """
import sys
sys.path[:0] = [{root!r}, {here!r}]
import torch
torch.set_num_threads(1)
import tiny
from pathlib import Path
from interp.errors import InterpError
from test_native_processes import SETTINGS, failing_in_the_second, one_update
from training.native import tune
from training.native.processes import processes

folder, team = Path(sys.argv[1]), processes()
found = {{"team": (team.count, team.index)}}
for kind in ("gpt2", "t5"):
    rollouts = torch.load(folder / f"{{kind}}.pt", weights_only=False)
    found[kind] = one_update(folder / "update", kind, rollouts, team)
    job = tiny.job(folder / f"tuned-{{kind}}", kind, **SETTINGS)
    outcome = tune(job)
    found[f"tuned {{kind}}"] = (job.watch.rows, job.watch.steps, outcome.model.state_dict(), outcome.kl_at_step_0)
try:
    tune(tiny.job(folder / "failed", reward=failing_in_the_second, **SETTINGS))
except InterpError as error:
    found["error"] = str(error)
torch.save(found, folder / f"found-{{team.index}}.pt")
"""


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path):
    rollouts = {kind: stored_rollouts(tmp_path / "stored", kind) for kind in ("gpt2", "t5")}
    for kind, each in rollouts.items():
        torch.save(each, tmp_path / f"{kind}.pt")
    here = Path(__file__).parent
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(here.parent.parent), here=str(here)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2",
              "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", f"--main_process_port={port}",
              str(script), str(tmp_path)]  # fmt: skip
    done = subprocess.run(
        launch,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [torch.load(tmp_path / f"found-{index}.pt", weights_only=False) for index in (0, 1)]
    assert [each["team"] for each in found] == [(2, 0), (2, 1)]
    for kind in ("gpt2", "t5"):
        want, figures = one_update(tmp_path / "one", kind, rollouts[kind], Processes())
        for each in found:
            weights, theirs = each[kind]
            assert relative(weights, want) <= 1e-5
            for a, b in zip(theirs, figures, strict=True):
                assert a == pytest.approx(b, rel=1e-3, abs=1e-5)
        job = tiny.job(tmp_path / "alone" / kind, kind, **SETTINGS)
        outcome = tune(job)
        (rows, steps, weights, first_kl), (silent, none, others, _) = (each[f"tuned {kind}"] for each in found)
        assert steps == job.watch.steps and silent == [] and none == [], "only the first process speaks"
        assert all(torch.equal(value, others[name]) for name, value in weights.items()), "all end with the same bytes"
        assert first_kl == pytest.approx(0, abs=1e-6)
        for row, want_row in zip(rows, job.watch.rows, strict=True):
            assert row == pytest.approx(want_row, rel=1e-3, abs=1e-5)
        assert rows[0]["reward_mean"] == job.watch.rows[0]["reward_mean"], "the union of samples is one process's"
        want = list(outcome.model.state_dict().values())
        assert relative(weights.values(), want) <= 1e-5 < relative(tiny.model(kind).state_dict().values(), want)
    assert all("the reward function raised ValueError: not here" in each["error"] for each in found)


def test_shares_are_even_and_leave_nothing_out():
    for count in (0, 1, 5, 18):
        for processes_ in (1, 2, 7):
            parts = [list(range(count))[share(count, Processes(processes_, i))] for i in range(processes_)]
            assert sum(parts, []) == list(range(count))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    team = processes()
    assert team == Processes(1, 0) and team.main and not Processes(2, 1).main
    parameter = torch.nn.Parameter(torch.zeros(2))
    figures = torch.ones(3)
    assert add_up([parameter], figures, team) is figures and parameter.grad is None
    assert gathered(lambda: 5, team) == [5]

    def fails():
        raise TrainingError("no")

    with pytest.raises(InterpError, match="no"):
        gathered(fails, team)


def test_rollouts_move_as_a_whole(tmp_path):
    from training.native.processes import moved

    rollouts = stored_rollouts(tmp_path, "t5")
    there = moved(rollouts, torch.device("meta"))
    tensors = [*vars(there).values(), *vars(there.samples).values()]
    assert {t.device.type for t in tensors if isinstance(t, torch.Tensor)} == {"meta"}
    assert there.texts == rollouts.texts and dataclasses.fields(there) == dataclasses.fields(rollouts)
