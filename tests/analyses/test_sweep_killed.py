"""A sweep that is killed or stopped goes on, and computes nothing twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from analyses.sweep import SweepConfig, status, sweep, work
from interp.pair import CheckpointPair
from tests.analyses.test_sweep import quiet, values  # noqa: F401 (a fixture)

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """They are not the matter here, and take the longest."""
    monkeypatch.setattr("analyses.sweep.report._draw", lambda *_: None)


RUN = """
import json, sys, time
from pathlib import Path
from analyses.sweep import SweepConfig, sweep, work

here, out, slow = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
own = work.KINDS["states"]

def states(cell):
    write = own(cell)
    def slowly(folder):
        write(folder)
        (here / "marker").touch()
        time.sleep(120)
    return slowly if cell.pair == slow else write

work.KINDS = {**work.KINDS, "states": states}
if __name__ == "__main__":
    sweep(SweepConfig.from_dict(json.loads((here / "config.json").read_text())), out, told=lambda text: None)
"""


def started(config, here, out, slow=""):
    (here / "config.json").write_text(json.dumps(config))
    (here / "run.py").write_text(RUN)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(here / "run.py"), str(here), str(out), slow], env=environment, cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(happened, child):
    for _ in range(1200):
        if happened():
            return
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.05)
    raise AssertionError("it did not come so far in a minute")


def killed(child):
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stderr.close()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_kill_9_while_a_cell_is_written(values, tmp_path, monkeypatch):  # noqa: F811
    values, out = values | {"cells": ["states"]}, tmp_path / "out"
    child = started(values, tmp_path, out, slow="fear")
    wait_for((tmp_path / "marker").exists, child)
    killed(child)
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("cell.json")}
    config, again, states = SweepConfig.from_dict(values), [], work.KINDS["states"]
    assert dict(status(config, out).loc[["joy", "fear"], "states"]) == {"joy": "done", "fear": "waiting"}
    monkeypatch.setattr(
        work, "KINDS", {**work.KINDS, "states": lambda cell: (again.append(cell.name), states(cell))[1]}
    )
    sweep(config, out, told=quiet)
    assert again == ["fear.states", "grief.states"]
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_kill_9_while_a_pair_is_trained(values, tmp_path, monkeypatch):  # noqa: F811
    (tmp_path / "openings.txt").write_text("\n".join(f"this {a} was {b}" for a in "abcdef" for b in "ghijkl"))
    own = {
        "prompts.files": [str(tmp_path / "openings.txt")], "prompts.unit": "line", "prompts.heldout": 8,
        "train.total_steps": 40, "train.batch_size": 8, "train.state_interval": 2, "train.timings": False,
        "ppo.num_rollouts": 8, "ppo.chunk_size": 8,
    }  # fmt: skip
    values = values | {"emotions": ["joy"], "given": {}, "cells": ["states"], "overrides": values["overrides"] | own}
    out, config = tmp_path / "out", SweepConfig.from_dict(values)
    child = started(values, tmp_path, out)
    unfinished = out / "pairs" / "joy.unfinished"
    wait_for(lambda: any(unfinished.rglob("*state*")), child)
    killed(child)
    assert not (out / "pairs" / "joy").exists() and status(config, out).loc["joy", "pair"] == "waiting"
    resumed, train = [], work._train
    monkeypatch.setattr(work, "_train", lambda *a, resume: (resumed.append(resume), train(*a, resume=resume))[1])
    assert (sweep(config, out, told=quiet).loc["joy", ["pair", "states"]] == "done").all()
    assert resumed == [True]
    whole = tmp_path / "whole"
    sweep(config, whole, told=quiet)
    both = [CheckpointPair.load(root / "pairs" / "joy").manifest["files"] for root in (out, whole)]
    assert both[0]["tuned/model.safetensors"] == both[1]["tuned/model.safetensors"]


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(values, tmp_path, monkeypatch):  # noqa: F811
    import typer.testing

    import analyses.sweep as package
    from interp.cli import app
    from training.config.schema import to_toml

    file = tmp_path / "sweep.toml"
    file.write_text(to_toml(SweepConfig.from_dict(values | {"cells": ["states"]})))

    def stopped(*_, **__):
        raise KeyboardInterrupt

    shell = typer.testing.CliRunner()
    set_one = shell.invoke(
        app, ["sweep", str(file), "--check", "--set", "prompt_limit=8", "--set", f"texts={values['texts']}"]
    )
    assert set_one.exit_code == 0 and "8 prompts" in set_one.output
    missing = shell.invoke(app, ["sweep", str(file), "--out", str(tmp_path / "none"), "--status"])
    assert missing.exit_code != 0 and "holds no sweep; run the command without --status" in str(missing.exception)
    monkeypatch.setattr(package, "sweep", stopped)
    found = shell.invoke(app, ["sweep", str(file), "--out", str(tmp_path / "out")])
    assert found.exit_code == 130
    assert f"stopped; what is done is in {tmp_path / 'out'}: run the same command again to go on" in found.output


def test_a_cell_that_cannot_be_written_fails_alone(values, tmp_path, monkeypatch):  # noqa: F811
    config, out, states = SweepConfig.from_dict(values | {"cells": ["states"]}), tmp_path / "out", work.KINDS["states"]

    def unwritable(folder):
        raise ValueError("no such font")

    fails = lambda cell: unwritable if cell.pair == "fear" else states(cell)  # noqa: E731
    monkeypatch.setattr(work, "KINDS", {**work.KINDS, "states": fails})
    table = sweep(config, out, told=quiet)
    assert dict(table.loc[["joy", "fear", "grief"], "states"]) == {"joy": "done", "fear": "failed", "grief": "done"}
