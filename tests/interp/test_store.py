"""Comparisons on disk."""

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest

import interp
from interp.errors import FormatError, InterpError
from tests.conftest import tiny_gpt2
from tests.interp.comparisons import compare

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cmp(tokenizer):
    prompts = interp.Prompts(["this movie was really", "the plot"], answers=(" bad", " good"))
    models = [tiny_gpt2(seed) for seed in range(4)]
    return compare(
        models[0], models[1], prompts, controls=[models[2]], replicates=[models[3]], tokenizer=tokenizer,
        measures=["next_token", "logit_diff", "kl", "attribution", "weights"],
    )  # fmt: skip


def test_tables_hold_every_number_once(cmp, tmp_path):
    folder = cmp.to_parquet(tmp_path / "tables")
    listed = json.loads((folder / "tables.json").read_text())["files"]
    assert sorted(p.name for p in folder.iterdir()) == sorted([*listed, "tables.json"])
    assert set(listed) == {f"{name}.parquet" for name in cmp.keys()} | {"prompts.parquet", "summary.parquet"}
    runs = {"tuned": cmp.dataset, "control_0": cmp.controls[0], "replicate_0": cmp.replicates[0]}
    for name in ("kl", "attribution", "qk_change", "top_token", "answer_prob"):
        frame = pd.read_parquet(folder / f"{name}.parquet")
        assert list(frame.columns) == ["run", *cmp[name].dims, "value"]
        for run, data in runs.items():
            rows = frame[frame["run"] == run].set_index(list(cmp[name].dims))["value"]
            values = data[name].values
            real = values.size if values.dtype == object else int(np.isfinite(values).sum())
            assert len(rows) == real and rows.index.is_unique
            expected = data[name].drop_vars([c for c in data[name].coords if c not in data[name].dims]).to_series()
            assert (rows == expected[rows.index]).all()
    about = pyarrow.parquet.read_schema(folder / "kl.parquet").metadata
    assert about[b"units"] == b"nats" and b"KL" in about[b"long_name"]
    assert pd.read_parquet(folder / "prompts.parquet")["text"].tolist() == ["this movie was really", "the plot"]
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "summary.parquet"), cmp.summary())


def test_tables_replace_only_tables(cmp, tmp_path):
    cmp.to_parquet(tmp_path / "tables")
    with pytest.raises(InterpError, match="already holds a result"):
        cmp.to_parquet(tmp_path / "tables")
    cmp.to_parquet(tmp_path / "tables", overwrite=True)
    saved = cmp.save(tmp_path / "out")
    with pytest.raises(InterpError, match="holds other files"):
        cmp.to_parquet(saved, overwrite=True)
    (tmp_path / "tables" / "thesis.tex").write_text("years of work")
    with pytest.raises(InterpError, match="also holds thesis.tex"):
        cmp.to_parquet(tmp_path / "tables", overwrite=True)


def test_what_version_1_wrote_can_be_read(cmp, tmp_path):
    attrs = {key: value for key, value in cmp.dataset.attrs.items() if key not in ("replicates", "remarks")}
    old = cmp.dataset.drop_attrs(deep=False).assign_attrs(attrs, format=1)
    old.to_netcdf(tmp_path / "comparison.nc", engine="h5netcdf")
    cmp.controls[0].to_netcdf(tmp_path / "comparison.nc", mode="a", group="control_0", engine="h5netcdf")
    loaded = interp.Comparison.load(tmp_path)
    assert len(loaded.controls) == 1 and loaded.replicates == ()
    assert loaded.summary()["estimate"].equals(cmp.summary()["estimate"])


@pytest.mark.parametrize("version", [3, 99, "two", 0])
def test_another_format_is_refused(cmp, tmp_path, version):
    with h5py.File(cmp.save(tmp_path / "out") / "result.nc", "a") as file:
        file.attrs["format"] = version
    with pytest.raises(FormatError, match=f"has format {version}, this version reads 1 and 2; update rlhf-interp"):
        interp.Comparison.load(tmp_path / "out")


def test_a_file_that_was_cut_off_anywhere_is_refused_or_whole(cmp, tmp_path):
    file = cmp.save(tmp_path / "out") / "result.nc"
    whole = file.read_bytes()
    for size in (0, 1, 100, 2000, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(FormatError, match="is damaged .*; make it again") as caught:
            interp.Comparison.load(tmp_path / "out")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("write", ["save", "to_parquet", "report"])
def test_a_full_disk_leaves_nothing(cmp, tmp_path, write):
    target = tmp_path / ("out.html" if write == "report" else "out")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
        with pytest.raises(InterpError, match="cannot write .*out(.html)?: ") as caught:
            getattr(cmp, write)(target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []
    getattr(cmp, write)(target)
    assert target.exists()


def test_a_folder_that_cannot_be_written(cmp, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InterpError, match="the disk is full; free some space and run the command again"):
        cmp.save(tmp_path / "out")
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with pytest.raises(InterpError, match="cannot write|is a file"):
        cmp.save(tmp_path / "file" / "out")
    with pytest.raises(InterpError, match="is a file; name a folder"):
        cmp.save(tmp_path / "file")


def test_a_killed_save_leaves_no_half_result(cmp, tmp_path):
    cmp.save(tmp_path / "first")
    code = f"""
import os, signal, interp
from interp.result import store
cmp = interp.Comparison.load({str(tmp_path / "first")!r})
real = store.write
def write(*arguments):
    real(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
store.write = write
cmp.save({str(tmp_path / "out")!r})
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT)
    assert not (tmp_path / "out").exists() and len(list(tmp_path.iterdir())) == 2
    cmp.save(tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["first", "out"]
