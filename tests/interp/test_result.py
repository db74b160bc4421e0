"""The one Result: what it prints, shows, draws, keeps, and joins."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.figure import Figure

from interp.errors import FormatError, InterpError, MeasureError
from interp.plot.registry import figure, forget_figure
from interp.result import Result, cells, frame_text, interval, load_result, number

A, B, C = ({"folder": f"/{x}", "sha256": {"model.safetensors": x, "config.json": "same"}} for x in "abc")


class Rows(Result):
    kind = "test_rows"
    title = "Rows"

    def headline(self) -> str:
        return "Forty rows of a test <b>."

    def notes(self) -> list[str]:
        return ["A note that a reader must know, " + "with many words " * 40]

    def summary(self) -> pd.DataFrame:
        count = self.dataset.sizes["prompt"]
        return pd.DataFrame(
            {
                "finding": ["a long finding in words " * 5] * count,
                "effect": self.dataset["effect"].values,
                "effect_low": self.dataset["effect"].values - 1,
                "effect_high": self.dataset["effect"].values + 1,
                "empty": np.nan,
                "n": range(count),
            }
        )


def rows(count: int = 40, **attrs: object) -> Rows:
    effect = xr.Variable(("prompt",), np.arange(count) / 3, {"long_name": "an effect", "units": "nats"})
    text = np.array([f"text {i}" for i in range(count)], dtype=object)
    data = {"effect": effect, "flag": ("prompt", np.arange(count) % 2 == 0)}
    return Rows(xr.Dataset(data, coords={"text": ("prompt", text)}, attrs={"seed": 1, **attrs}))


@pytest.fixture
def drawn() -> Iterator[None]:
    @figure("test_rows", needs=("effect",))
    def effects(result: Result, *, width: float = 3) -> Figure:
        """Effects as a line."""
        shown = Figure(figsize=(width, 2))
        shown.add_subplot().plot(result["effect"].values)
        return shown

    figure("test_rows", needs=("absent",), name="other")(effects)
    yield
    forget_figure("test_rows", "effects")
    forget_figure("test_rows", "other")


@pytest.mark.parametrize("count", [0, 1, 3, 8, 9, 10, 40])
def test_prints_few_narrow_lines_and_says_what_is_left_out(count: int) -> None:
    lines = repr(rows(count)).split("\n")
    assert len(lines) <= 15
    assert max(map(len, lines)) <= 80
    shown = sum("a long finding" in line for line in lines)
    left = [line for line in lines if "more row" in line]
    assert shown == count or left == [f"... {count - shown} more {'row' if count - shown == 1 else 'rows'}"]
    assert str(rows(count)) == repr(rows(count))


def test_one_row_alone_is_never_left_out_for_the_line_that_says_so() -> None:
    for count in range(1, 15):
        assert "... 1 more row" not in repr(rows(count))


def test_shows_itself_in_a_notebook_escaped_and_with_the_rest_named(drawn: None) -> None:
    html = rows()._repr_html_()
    assert "Forty rows of a test &lt;b&gt;." in html and "<b>" not in html
    assert "20 more rows" in html and ".plot.effects()" in html and ".plot.other()" not in html


def test_figures_are_listed_where_they_can_be_drawn(drawn: None) -> None:
    result = rows(3)
    assert dir(result.plot) == ["effects"]
    assert result.plot.effects(width=5).get_figwidth() == 5
    assert result.plot.effects.__doc__ == "Effects as a line."
    assert "effects()" in repr(result.plot)
    with pytest.raises(AttributeError, match="no figure 'nothing'; this one has effects"):
        result.plot.nothing()
    assert not hasattr(result.plot, "nothing")


def test_names_are_looked_up_with_a_remedy() -> None:
    result = rows(2)
    assert result["effect"].sizes == {"prompt": 2} and "effect" in result and "x" not in result
    assert list(result) == ["effect", "flag"]
    with pytest.raises(MeasureError, match="this rows holds no 'x'; it holds effect, flag"):
        result["x"]


def test_saves_and_loads_everything(tmp_path: Path) -> None:
    other = rows(2, settings=["a", None, {"b": True}], yes=True)
    run = rows(40).dataset
    whole = Rows(rows(40).dataset, controls=(run, run), replicates=(run,)).add(other, "second").add(rows(1).add(other))
    whole.save(tmp_path / "out")
    back = load_result(tmp_path / "out")
    assert type(back) is Rows
    xr.testing.assert_identical(back.dataset, whole.dataset)
    assert len(back.controls) == 2 and len(back.replicates) == 1
    xr.testing.assert_identical(back.controls[1], run)
    assert list(back.added) == ["second", "test_rows"]
    assert back.added["second"].dataset.attrs["settings"] == ["a", None, {"b": True}]
    assert back.added["second"].dataset.attrs["yes"] is True
    xr.testing.assert_identical(back.added["test_rows"].added["test_rows"].dataset, other.dataset)
    assert back["flag"].dtype == bool
    assert len(pd.read_csv(tmp_path / "out" / "summary.csv")) == 40
    xr.testing.assert_identical(Rows.load(tmp_path / "out" / "result.nc").dataset, whole.dataset)
    with pytest.raises(InterpError, match="already holds a result"):
        whole.save(tmp_path / "out")
    rows(3).save(tmp_path / "out", overwrite=True)
    assert load_result(tmp_path / "out").dataset.sizes["prompt"] == 3


def test_a_damaged_a_newer_and_an_unknown_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="holds no result.nc"):
        load_result(tmp_path)
    (tmp_path / "result.nc").write_bytes(b"no netCDF")
    with pytest.raises(FormatError, match="is damaged"):
        load_result(tmp_path)
    data = rows(1).dataset.assign_attrs(runs="{}", added_results="[]")
    data.assign_attrs(format=3, kind="test_rows").to_netcdf(tmp_path / "result.nc", engine="h5netcdf")
    with pytest.raises(FormatError, match="has format 3, this version reads 1 and 2; update"):
        load_result(tmp_path)
    data.assign_attrs(format=2, kind="of tomorrow").to_netcdf(tmp_path / "result.nc", engine="h5netcdf")
    with pytest.raises(FormatError, match="kind 'of tomorrow'"):
        load_result(tmp_path)


def test_parquet_tables(tmp_path: Path) -> None:
    rows(5).to_parquet(tmp_path / "tables")
    frame = pd.read_parquet(tmp_path / "tables" / "effect.parquet")
    assert list(frame) == ["run", "prompt", "value"] and len(frame) == 5
    assert len(pd.read_parquet(tmp_path / "tables" / "summary.parquet")) == 5
    listed = json.loads((tmp_path / "tables" / "tables.json").read_text())
    assert listed["kind"] == "test_rows" and "effect.parquet" in listed["files"]


def test_add_refuses_other_models_and_taken_names() -> None:
    pair = rows(2, base=json.dumps(A), tuned=json.dumps(B))
    patched = rows(2, recipient=json.dumps(B), source=json.dumps(A))
    joined = pair.add(patched).add(patched).add(patched)
    assert list(joined.added) == ["test_rows", "test_rows_2", "test_rows_3"] and not pair.added
    assert pair.add(rows(2, base=json.dumps(A), tuned=json.dumps(B), controls=json.dumps([C]))).added
    with pytest.raises(MeasureError, match="the source of this rows is none of the models"):
        pair.add(rows(2, recipient=json.dumps(B), source=json.dumps(C)))
    with pytest.raises(MeasureError, match="added already"):
        joined.add(patched, "test_rows")
    with pytest.raises(MeasureError, match="takes a result, and int is none"):
        pair.add(3)  # type: ignore[arg-type]
    assert list(pair.add(rows(2)).added) == ["test_rows"]  # says nothing of its models


def test_two_classes_of_one_kind_are_refused() -> None:
    with pytest.raises(TypeError, match="both of the kind 'test_rows'"):

        class Others(Result):
            kind = "test_rows"


def test_numbers_and_intervals() -> None:
    assert [number(x) for x in (1.23456, 3, True, np.nan, 1e-9)] == ["1.235", "3", "yes", "-", "1e-09"]
    assert [interval(0.1, 2), interval(1, 1), interval(np.nan, 1)] == ["[0.1, 2]", "1", ""]


def test_a_table_merges_ends_drops_what_is_empty_and_says_what_it_leaves_out() -> None:
    frame = pd.DataFrame(
        {"what": ["x", "y"], "a": [1.0, 2.0], "a_low": [0.0, 1], "a_high": [2.0, 3], "control_low": [0.1, np.nan],
         "control_high": [0.2, np.nan], "none": [np.nan, np.nan]}
    )  # fmt: skip
    table = cells(frame)
    assert list(table) == ["what", "a", "95 % of a", "control"]
    assert table["control"].tolist() == ["[0.1, 0.2]", ""]
    assert frame_text(frame, rows=1).split("\n")[-1] == "... 1 more row"
    narrow = frame_text(frame, width=20).split("\n")
    assert narrow[-1].startswith("not shown:") and max(map(len, narrow)) <= 20
    assert frame_text(frame.head(0)) == "(nothing)"
    words = pd.DataFrame({"text": ["many words that go on and on and on"], "n": [1]})
    cut, folded = (frame_text(words, width=30, fold=fold) for fold in (False, True))
    assert "…" in cut and "…" not in folded and "on and on" in folded


def test_any_result_has_a_page_that_needs_nothing_else_and_is_the_same_twice(tmp_path: Path, drawn: None) -> None:
    result = rows(3, base=json.dumps(A)).add(rows(2))
    page = result.report(tmp_path / "x.html").read_text()
    assert page == result.report(tmp_path / "y.html").read_text()
    assert "Forty rows of a test &lt;b&gt;." in page and page.count("<svg") >= 5
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page
    assert 'id="result-0"' in page and "model.safetensors" in page
    with pytest.raises(InterpError, match="ends in .html"):
        result.report(tmp_path / "x.txt")
