"""The comparison of two recordings finds what differs, and a recording can be made."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
RULES = """
[[rename]]
old = '_lower$'
new = '_low'
[[exception]]
name = 'case/gone'
state = 'absent'
reason = 'it went on purpose'
"""


def run(*options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "behaviour"), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def recording(folder: Path, **arrays: object) -> Path:
    folder.mkdir()
    np.savez(folder / "case.npz", **{name: np.asarray(value) for name, value in arrays.items()})
    (folder / "log.json").write_text(json.dumps({"cases": {"case": {"dims": {}}}}))
    return folder


@pytest.fixture
def rules(tmp_path):
    file = tmp_path / "rules.toml"
    file.write_text(RULES)
    return file


def test_equal_close_renamed_and_explained_arrays_pass(tmp_path, rules):
    old = recording(tmp_path / "old", same=[1.0, np.nan], x_lower=[2.0], gone=[3.0], sum=[1.0, 3.0])
    new = recording(tmp_path / "new", same=[1.0, np.nan], x_low=[2.0], more=[1], sum=[1.0, 3.0 + 1e-15])
    done = run("compare", old, new, "--exceptions", rules)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 absent, 1 close, 2 equal, 1 new" in done.stdout and "it went on purpose" in done.stdout


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"same": [1.0, 2.0 + 1e-9]}, "differs    case/same  by 5.0e-10"),
        ({"same": [1.0, np.nan]}, "differs    case/same  1 NaN"),
        ({"same": [1.0, 2.0, 3.0]}, "shape (2,) -> (3,)"),
        ({"text": ["a", "c"]}, "1 of 2: 'b' -> 'c'"),
        ({}, "absent     case/same"),
    ],
)
def test_what_differs_or_is_absent_fails(tmp_path, rules, changed, said):
    arrays = {"same": [1.0, 2.0], "text": ["a", "b"]}
    old = recording(tmp_path / "old", **arrays)
    new = recording(tmp_path / "new", **(arrays | changed if changed else {"text": arrays["text"]}))
    done = run("compare", old, new, "--exceptions", rules)
    assert done.returncode == 1 and said in done.stdout and "1 unexplained" in done.stdout, done.stdout


@pytest.mark.slow
def test_a_recording_equals_its_repetition(tmp_path):
    for name in ("first", "again"):
        done = run("record", "--code", ROOT, "--out", tmp_path / name, "--only", "tiny.*patch*")
        assert done.returncode == 0 and "0 of them stopped" in done.stdout, done.stdout + done.stderr
    done = run("compare", tmp_path / "first", tmp_path / "again")
    assert done.returncode == 0 and "0 unexplained" in done.stdout and "differs" not in done.stdout
