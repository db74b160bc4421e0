"""Does the code give the same numbers as another checkout of it?

    python benchmarks/behaviour record --code FOLDER --out OLD
    python benchmarks/behaviour record --code .      --out NEW
    python benchmarks/behaviour compare OLD NEW

`record` runs every case of `cases.py` with the checkout FOLDER, in a process of its own on one thread, and keeps every
array in one .npz file a case. `compare` says which arrays are equal bit for bit, which within 1e-12 of their largest
value, which differ, which are absent and which are new. What is meant to differ stands in exceptions.toml with its
reason; anything else ends it with exit status 1. $INTERP_DATA names the folder that holds stories3M-hf.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from comparison import compare

HERE = Path(__file__).parent


def record(code: Path, out: Path, only: str) -> int:
    """Run the cases with the checkout `code` first among the imported folders."""
    code, out = code.resolve(), out.resolve()
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONHASHSEED": "0"}
    environment = {**os.environ, **threads, **quiet, "PYTHONPATH": str(code)}
    command = [sys.executable, str(HERE / "recorder.py"), str(code), str(out), only]
    return subprocess.run(command, env=environment, cwd=code, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="run every case with a checkout")
    recording.add_argument("--code", type=Path, required=True, help="the checkout")
    recording.add_argument("--out", type=Path, required=True, help="folder for the arrays")
    recording.add_argument("--only", default="*", help="cases whose names match, as 'demo.*'")
    comparing = commands.add_parser("compare", help="compare two recordings")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    comparing.add_argument("--exceptions", type=Path, default=HERE / "exceptions.toml")
    given = parser.parse_args()
    if given.command == "record":
        return record(given.code, given.out, given.only)
    return compare(given.old, given.new, given.exceptions)


if __name__ == "__main__":
    sys.exit(main())
