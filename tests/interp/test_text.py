"""A comparison in words."""

from __future__ import annotations

from interp.text import columns_text, text_rows
from tests.interp.synthetic import make


def test_columns_that_hold_something_are_shown():
    plain = make(controls=0)
    table = plain.summary().drop(columns=["replicate_low", "replicate_high", "rank_p"])
    table["completeness"] = float("nan")
    assert text_rows(table)[0] == ("reading", "finding", "estimate", "95 % interval", "units", "n")
    full = make(controls=20, replicates=2).summary()
    header, first, *_, heads, _, _ = text_rows(full)
    assert header[3:] == ("95 % interval", "null runs", "replicates", "p", "completeness", "units", "n")
    row = full.iloc[0]
    assert first[5] == f"[{row.replicate_low:.4g}, {row.replicate_high:.4g}]" and first[6] == "0.048"
    assert first[7] == "" and heads[7] == "1e-06"


def test_a_long_finding_goes_on_under_itself():
    finding = "one " * 30
    rows = [
        ("reading", "finding", "estimate", "n"),
        ("weights", finding.strip(), "0.5", "3"),
        ("other", "short", "1", "2"),
    ]
    lines = columns_text(rows).splitlines()
    assert len(lines) == 4 and max(map(len, lines)) < 105
    assert lines[1].endswith("0.5  3") and lines[2].strip() == ("one " * 11).strip()
    assert lines[3].split() == ["other", "short", "1", "2"]
