import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from interp import io
from interp.errors import FormatError, InterpError
from interp.pair import CheckpointPair

ROOT = Path(__file__).parents[2]


def test_a_file_is_whole_or_absent(tmp_path):
    target = tmp_path / "a" / "b.txt"
    io.write_text(target, "one")
    assert target.read_text() == "one"
    with pytest.raises(RuntimeError), io.atomic_file(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "one"
    assert [p.name for p in target.parent.iterdir()] == ["b.txt"]


def test_a_full_disk_is_said_in_one_line(tmp_path):
    with pytest.raises(InterpError, match="the disk is full; free some space"), io.atomic_file(tmp_path / "x"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_whole_or_absent(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(RuntimeError), io.atomic_folder(out, owned_by="me") as folder:
        (folder / "me").write_text("1")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with io.atomic_folder(out, owned_by="me") as folder:
        (folder / "me").write_text("1")
    assert (out / "me").read_text() == "1"
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_can_be_read_by_whom_the_umask_allows(tmp_path):
    with io.atomic_folder(tmp_path / "out", owned_by="me") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "me").write_text("1")
        (folder / "sub" / "me").chmod(0o600)
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "out" / "sub" / "me").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_earlier_result_is_replaced_only_when_asked_and_only_if_it_is_one(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with (
            pytest.raises(InterpError, match="holds other files"),
            io.atomic_folder(out, owned_by="me", overwrite=overwrite),
        ):
            pass
    (out / "me").write_text("1")
    with pytest.raises(InterpError, match="--overwrite"), io.atomic_folder(out, owned_by="me", own=["me"]):
        pass
    with (
        pytest.raises(InterpError, match="also holds thesis.tex"),
        io.atomic_folder(out, owned_by="me", own=["me"], overwrite=True),
    ):
        pass
    assert (out / "thesis.tex").read_text() == "years of work"
    (out / "thesis.tex").unlink()
    with io.atomic_folder(out, owned_by="me", own=["me"], overwrite=True) as folder:
        (folder / "me").write_text("2")
    assert (out / "me").read_text() == "2"
    assert list(tmp_path.iterdir()) == [out]
    with pytest.raises(InterpError, match="is a file"), io.atomic_folder(out / "me", owned_by="me"):
        pass


def test_a_pair_is_replaced_only_if_it_holds_what_its_manifest_lists(tmp_path):
    (tmp_path / "pair").mkdir()
    CheckpointPair.write(tmp_path / "pair", MANIFEST)
    io.check_new_folder(tmp_path / "pair", owned_by="pair.json", overwrite=True)
    (tmp_path / "pair" / "notes.txt").write_text("mine")
    with pytest.raises(InterpError, match="also holds notes.txt"):
        io.check_new_folder(tmp_path / "pair", owned_by="pair.json", overwrite=True)


def test_hashes(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_bytes(b"abc")
    # FIPS 180-2, example B.1
    assert io.hash_folder(tmp_path) == {"sub/a": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}


MANIFEST = {
    "engine": "native", "config": {}, "seed": 0, "versions": {}, "final": {},
    "base": {"id": "gpt2", "revision": "abc"}, "tuned": {"path": "tuned"},
    "reward": {"folder": "/somewhere", "label": "x"}, "controls": [{"kind": "shuffled", "path": "controls/shuffled-0"}],
}  # fmt: skip


def test_pair_round_trip_and_references(tmp_path):
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "model.safetensors").write_bytes(b"weights")
    pair = CheckpointPair.write(tmp_path, MANIFEST)
    assert pair == CheckpointPair.load(tmp_path, verify=True)
    assert (pair.base, pair.tuned, pair.reward) == ("gpt2@abc", str(tmp_path / "tuned"), "/somewhere")
    assert pair.controls == (str(tmp_path / "controls/shuffled-0"),)
    (tmp_path / "tuned" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(FormatError, match="differs from its hash"):
        CheckpointPair.load(tmp_path, verify=True)
    (tmp_path / "tuned" / "model.safetensors").unlink()
    with pytest.raises(FormatError, match="absent"):
        CheckpointPair.load(tmp_path, verify=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "holds no pair.json"), ("{", "is not JSON"), ("[]", "lacks format"), ('{"format": 1}', "lacks engine")],
)
def test_a_broken_pair_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "pair.json").write_text(text)
    with pytest.raises(FormatError, match=message):
        CheckpointPair.load(tmp_path)


def test_a_newer_pair_is_refused(tmp_path):
    CheckpointPair.write(tmp_path, MANIFEST)
    manifest = json.loads((tmp_path / "pair.json").read_text())
    (tmp_path / "pair.json").write_text(json.dumps({**manifest, "format": 2}))
    with pytest.raises(FormatError, match="update rlhf-interp"):
        CheckpointPair.load(tmp_path)


def killed(tmp_path, code):
    """Run code in a process that is killed in the middle of it."""
    start = f"import os, signal; from interp import io; from pathlib import Path; root = Path({str(tmp_path)!r})\n"
    stop = "os.kill(os.getpid(), signal.SIGKILL)"
    done = subprocess.run([sys.executable, "-c", start + code.replace("KILL", stop)], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL


def test_the_next_save_removes_what_a_killed_process_left(tmp_path):
    code = 'with io.atomic_folder(root / "out", owned_by="me") as folder: (folder / "me").write_text("half"); KILL'
    killed(tmp_path, code)
    killed(tmp_path, 'with io.atomic_file(root / "text") as file: file.write_text("half"); KILL')
    (tmp_path / f".out.{socket.gethostname()}-{os.getppid()}.x.tmp").mkdir()  # of a process that runs
    (tmp_path / ".out.elsewhere-1.x.tmp").mkdir()
    assert len(list(tmp_path.iterdir())) == 4
    with io.atomic_folder(tmp_path / "out", owned_by="me") as folder:
        (folder / "me").write_text("whole")
    io.write_text(tmp_path / "text", "whole")
    left = sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".out."))
    assert left == ["out", "text"] and len(list(tmp_path.iterdir())) == 4


def test_a_result_that_a_killed_process_had_moved_aside_comes_back(tmp_path):
    with io.atomic_folder(tmp_path / "out", owned_by="me") as folder:
        (folder / "me").write_text("first")
    code = (
        "import os as system; move = system.replace\n"
        "def replace(source, target):\n    move(source, target)\n    KILL\n"
        "io.os.replace = replace\n"
        'with io.atomic_folder(root / "out", owned_by="me", own=["me"], overwrite=True) as folder:\n'
        '    (folder / "me").touch()'
    )
    killed(tmp_path, code)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InterpError, match="already holds a result"):
        io.atomic_folder(tmp_path / "out", owned_by="me", own=["me"]).__enter__()
    assert (tmp_path / "out" / "me").read_text() == "first" and list(tmp_path.iterdir()) == [tmp_path / "out"]
