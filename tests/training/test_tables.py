import gzip
import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from interp.errors import ConfigError
from training.tables import read_columns

ROWS = [("a, b", "1"), ('say "c"', "2")]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "t.csv").write_text('text,label\n"a, b",1\n"say ""c""",2\n')
    (tmp_path / "t.tsv").write_text('a, b\t1\nsay "c"\t2\n')
    lines = "".join(json.dumps({"label": label, "text": text}) + "\n" for text, label in ROWS)
    (tmp_path / "t.jsonl").write_text(lines + "\n")
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    columns = {"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]}
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    return tmp_path


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.jsonl.gz", "t.parquet"])
def test_every_format_gives_the_same(folder, name):
    assert read_columns(folder / name, ["text", "label"], keys=["x", "y"]) == ROWS
    assert read_columns(folder / name, ["text", "label"], keys=["x", "y"], limit=1) == ROWS[:1]


def test_numbers_where_there_is_no_header(folder):
    assert read_columns(folder / "t.tsv", ["1", "0"], keys=["x", "y"]) == [(label, text) for text, label in ROWS]


def test_a_quoted_line_break_and_a_byte_order_mark(tmp_path):
    (tmp_path / "t.csv").write_bytes(b'\xef\xbb\xbftext,x\r\n"one\r\ntwo",1\r\n')
    assert read_columns(tmp_path / "t.csv", ["text"], keys=["k"]) == [("one\ntwo",)]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"text\nx\n", "no column 'label'; it has text; correct k2"),
        ("b.tsv", b"text\tlabel\nx\n", "row 1 has fewer than 2 columns; correct k1 or k2"),
        ("c.jsonl", b'{"text": "x", "label": 1}\n{"text": "y"}\n', "line 2 has no 'label'; it has text; correct k2"),
        ("d.jsonl", b"[1]\n", "line 1 is a list, not an object"),
        ("e.jsonl", b'{"text": \n', "line 1 is not JSON"),
        ("f.jsonl.gz", gzip.compress(b"{}\n" * 99, mtime=0)[:20], "cannot unpack .*cut off"),
        ("g.jsonl.gz", b"plain", "cannot unpack"),
        ("h.parquet", b"plain", "is no parquet file"),
        ("i.txt", b"plain", "k1 = 'text' needs a .csv, .tsv, .jsonl, .jsonl.gz or .parquet file"),
    ],
)
def test_malformed_files_are_one_line(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        read_columns(tmp_path / name, ["text", "label"], keys=["k1", "k2"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.parquet"])
def test_an_absent_file(tmp_path, name):
    with pytest.raises(ConfigError, match="cannot read .*No such file"):
        read_columns(tmp_path / name, ["text"], keys=["k"])
