"""The benchmarks stay runnable: each at tiny sizes, every figure there, every limit named."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(script: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, ROOT / "benchmarks" / script, *options], capture_output=True, text=True)


@pytest.mark.slow
def test_compare_runs_at_tiny_sizes(tmp_path: Path) -> None:
    done = run("compare.py", "--quick", "--only", "speed,one", "--json", str(tmp_path / "rows.json"))
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {row["what"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert rows["default set, whole"]["limit"] == "1.4" and rows["default set, whole"]["value"] > 0
    assert {"  of it: both traces", "  of it: kl", "  of it: lens", "  of it: attention"} <= set(rows)
    assert {f"by name: {name} alone" for name in ("lens_positions", "neurons", "weights", "completions")} <= set(rows)
    assert rows['peak memory, default set, in_memory="one"']["limit"] == "1.15"
    assert "default set, whole" in done.stdout


@pytest.mark.slow
def test_memory_is_measured_on_real_prompts(stories: Path, tmp_path: Path) -> None:
    done = run("compare.py", "--quick", "--only", "memory", "--json", str(tmp_path / "rows.json"))
    assert done.returncode == 0, done.stderr[-2000:]
    *each, ratio = json.loads((tmp_path / "rows.json").read_text())
    assert len(each) == 2 and all(row["figure"].endswith("MB") for row in each)
    assert ratio["limit"] == "1.1" and 0.5 < ratio["value"] < 1.5


@pytest.mark.slow
def test_training_runs_at_tiny_sizes(tmp_path: Path) -> None:
    options = ("--quick", "--engines", "native,trlx", "--json", str(tmp_path / "rows.json"))
    done = run("training.py", *options)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {row["what"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    for kind in ("gpt2", "t5"):
        assert rows[f"{kind}: native PPO"]["value"] > 0
        ratio = rows[f"{kind}: native over trlX, processor"]
        assert ratio["limit"] == "1.5" and (ratio["figure"] == "not installed") is ("value" not in ratio)
    assert "samples/s" in done.stdout


@pytest.mark.slow
def test_patching_runs_at_tiny_sizes(tmp_path: Path) -> None:
    done = run("patching.py", "--quick", "--json", str(tmp_path / "rows.json"))
    assert done.returncode == 0, done.stderr[-2000:]
    exact, attributed, error = json.loads((tmp_path / "rows.json").read_text())
    assert (exact["limit"], attributed["limit"]) == ("3", "40") and min(exact["value"], attributed["value"]) > 0
    assert error["value"] < 1e-5


@pytest.mark.slow
def test_sweep_runs_at_tiny_sizes(tmp_path: Path) -> None:
    done = run("sweep.py", "--quick", "--json", str(tmp_path / "rows.json"))
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) == 3 and all(row["limit"] == "0.6" and row["value"] > 0 for row in rows)
