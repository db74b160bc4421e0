"""`interp demo`, and what the README shows, on the embedded pair."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import interp
from interp.cli import main

ROOT = Path(__file__).parent.parent.parent
DEMO = ROOT / "interp" / "data" / "demo"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder that `interp demo` writes, and what it prints."""
    out = tmp_path_factory.mktemp("demo") / "demo"
    command = [sys.executable, "-m", "interp.cli", "demo", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=out.parent)
    assert (done.returncode, done.stderr) == (0, "")
    return out, done.stdout


def test_the_preference_turns_round_and_the_controls_does_not(demo):
    cmp = interp.Comparison.load(demo[0])
    base, tuned = (cmp["logit_diff"].sel(model=model).values for model in ("base", "tuned"))
    control = cmp.controls[0]["logit_diff"].sel(model="tuned").values
    assert len(base) >= 16 and base.mean() < 0 < tuned.mean() and control.mean() < 0
    text = list(cmp.dataset["text"].values).index("This movie was really")
    assert base[text] < 0 < tuned[text] and control[text] < 0


def test_the_reward_rises_at_a_small_kl():
    pair = interp.CheckpointPair.load(DEMO, verify=True)
    final = pair.manifest["final"]
    assert final["reward"] - final["base_reward"] >= 0.3
    assert final["kl"] < 0.3 and final["kl_at_step_0"] < 1e-6
    assert final["distinct_2"] >= final["base_distinct_2"] / 2
    assert sum(p.stat().st_size for p in DEMO.rglob("*")) <= 6e6


def test_held_out_figures_are_measured_again(demo):
    """compare() on its own prompts and samples sees what training reported on its held-out ones."""
    cmp = interp.Comparison.load(demo[0])
    rewards = cmp["completion_reward"].mean(("prompt", "draw"))
    assert float(rewards.sel(source="tuned") - rewards.sel(source="base")) >= 0.3
    kl = cmp["response_kl"].sel(source="tuned").values
    assert np.nanmean(kl) < 0.3
    assert float(cmp["completeness_error"].max()) < 1e-4


def test_what_a_newcomer_sees(demo):
    out, printed = demo
    assert "' bad' - ' good': tuned minus base" in printed and "  control  " in printed
    assert sorted(p.name for p in out.iterdir()) == ["report.html", "result.nc", "summary.csv"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)


def test_the_readmes_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks("python")[0], "README.md", "exec"), {})
    assert (tmp_path / "report.html").is_file() and (tmp_path / "out" / "result.nc").is_file()


def test_the_readmes_patching_runs_and_shows_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(blocks("python")[1], "README.md", "exec"), names)
    shown = next(block for block in blocks("console") if "print(enough)" in block).splitlines()[1:]
    printed = str(names["enough"]).splitlines()
    assert shown[0] == printed[0] and shown[-1] == printed[-1]
    for ours, theirs in zip(printed[3:8], shown[3:8], strict=True):
        assert ours.split()[0] == theirs.split()[0]
        assert float(ours.split()[1]) == pytest.approx(float(theirs.split()[1]), abs=2e-3)
    assert float(names["null"]["effect"].mean("prompt").max()) < 0.1 * float(
        names["enough"]["effect"].mean("prompt").max()
    )


def test_the_readmes_circuits_and_reward_reading_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pair = interp.CheckpointPair.load(DEMO)
    prompts = interp.Prompts.from_file(DEMO / "openings.txt", answers=(" bad", " good"))
    prompts = interp.Prompts(prompts.texts[:200], answers=(" bad", " good"))
    names: dict[str, Any] = {"interp": interp, "pair": pair, "prompts": prompts}
    exec(compile(blocks("python")[2], "README.md", "exec"), names)
    shown = next(block for block in blocks("console") if "found.verdict" in block).splitlines()[1:]
    start = "existing circuit, down-weighted by"
    assert names["found"].verdict.startswith(start) and " ".join(shown).startswith(start)
    exec(compile(blocks("python")[3], "README.md", "exec"), names)
    by_word = dict(zip(names["words"].words(0)["word"], names["words"].words(0)["negative"], strict=True))
    assert by_word["great"] < -1 and by_word["dull"] > 1


def test_the_readmes_training_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks("python")[4], "README.md", "exec"), {"__name__": "readme"})
    final = interp.CheckpointPair.load(tmp_path / "runs" / "plot", verify=True).manifest["final"]
    assert final["reward"] > final["base_reward"] + 0.1 and final["kl_at_step_0"] < 1e-6


def test_the_readmes_commands_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if re.match(r"    interp (compare|report) ", line)]
    assert len(lines) == 2
    for line in lines:
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
    assert (tmp_path / "out" / "report.html").is_file()


def test_the_readmes_figures_are_those_of_the_pair():
    text = (ROOT / "README.md").read_text()
    final = interp.CheckpointPair.load(DEMO).manifest["final"]
    row = next(line for line in text.splitlines() if line.startswith("| demo"))
    for value in (final["base_reward"], final["reward"], final["kl"], final["base_distinct_2"], final["distinct_2"]):
        assert f"{value:.3f}" in row
