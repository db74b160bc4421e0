from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from interp import report
from interp.errors import InterpError
from interp.plot.style import number, span
from interp.plot.text import visible
from interp.report import views
from interp.report.sections import places
from interp.report.verdict import verdict as verdict_of
from tests.interp.synthetic import Fake, make
from tests.interp.traced import JOINED

# which made-up arrays do not have
PLACES = places()
FIGURES = {
    name for name, place in PLACES.items() if place.section.drawn_by == "plot" and place.measure.name not in JOINED
} | {"attention"}


@pytest.fixture(scope="module")
def cmp() -> Fake:
    return make()


@pytest.fixture(scope="module")
def html(cmp) -> str:
    return report.render(cmp)


def verdict(result: Fake) -> list[str]:
    return verdict_of(result, result.summary())


def part(result: Fake, *names: str) -> Fake:
    """A few of its variables, so that the page has a few figures."""
    runs = [d[["text", "tokens", *names]] for d in (result.dataset, *result.controls, *result.replicates)]
    split = 1 + len(result.controls)
    return Fake(runs[0], tuple(runs[1:split]), tuple(runs[split:]), result.table)


class Page(HTMLParser):
    """Elements with their attributes, in order, and the visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self.inside.pop()

    def handle_data(self, data):
        if not self.inside:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


def test_same_comparison_same_bytes():
    pages = [report.render(part(make(layers=24, heads=24), "kl", "pattern_js", "completion")) for _ in range(2)]
    assert pages[0] == pages[1] and "data:image/png" in pages[0]


def test_page_needs_nothing_else(html):
    page = Page(html)
    for tag, attrs in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            value = attrs.get(name) or "#"
            assert value.startswith(("#", "data:")), (tag, value)
    assert "@import" not in html and not re.search(r"url\((?!#)", html)
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert page.all("html")[0]["lang"] == "en" and any(m.get("name") == "viewport" for m in page.all("meta"))


def test_every_id_is_unique_and_every_reference_resolves(html):
    page = Page(html)
    ids = [attrs["id"] for _, attrs in page.elements if attrs.get("id")]
    assert len(ids) == len(set(ids))
    refs = set(re.findall(r'(?:href="|url\()#([^")]+)', html))
    refs |= {a[k] for _, a in page.elements for k in ("aria-labelledby", "aria-describedby") if k in a}
    assert len(refs) > 20 and refs <= set(ids)


def test_headings_are_in_order_and_figures_are_described(html):
    page = Page(html)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))
    assert {a["data-figure"] for a in page.all("figure")} == FIGURES
    described = [a for a in page.all("div") if a.get("role") == "img"]
    assert len(described) == len(FIGURES) - 1 and all(len(a["aria-label"] or "") > 30 for a in described)


def test_text_of_others_never_becomes_markup(html):
    page = Page(html)
    assert len(page.all("script")) == 2  # the data and the page's own
    assert "<script>alert(1)</script>" in page.text and "<b>loud</b>" in page.text
    assert not page.all("b") and "\u202e" not in html
    embedded = re.search(r'id="attention-data">(.*?)</script>', html, re.DOTALL)
    assert embedded and not set("<>&") & set(embedded[1])


def test_odd_characters_are_shown_and_can_be_written(cmp, tmp_path):
    text = '\x00\x1b[31m \ud800 a\u2028b <!-- ]]> "><img src=x onerror=alert(1)>'
    names = ["text", "top_token", "top_prob", "tokens", "pattern", "completion", "kl", "mover_token", "mover_change"]
    ov = ["ov_reads", "ov_writes", "ov_singular_value"]
    data = cmp.dataset[[*names, *ov, "lens_pos_kl", "lens_pos_top_token"]].copy(deep=True)
    data["text"].values[0] = data["top_token"].values[0, 0, 0] = data["tokens"].values[0, 0] = text
    data["completion"].values[0, 0, 0] = text
    data["mover_token"].values[0, 0, 0] = data["lens_pos_top_token"].values[0, :, :, 0] = text
    data["ov_reads"].values[0, 0, 0, 0] = data["ov_writes"].values[0, 1, 0, 0] = text
    page = report.write(Fake(data, (), (), cmp.table), tmp_path / "r.html").read_text(encoding="utf-8")
    assert not Page(page).all("img") and not set("\x00\x1b\ud800") & set(page)
    assert Page(page).text.count("onerror=alert(1)") == 6  # twice as a prompt, a token, a completion, an OV circuit


def test_missing_measures_are_named_and_left_out(cmp):
    data = cmp.dataset[["text", "kl", "head_attribution", "ov_change"]]
    page = Page(report.render(Fake(data, (), (), cmp.table)))
    assert {a["data-figure"] for a in page.all("figure")} == {"kl", "heads", "weights"}
    for measure in ("attention", "next_token", "residual", "neurons", "lens_positions"):
        assert f'measures=["{measure}"]' in page.text
    for measure in ("kl", "attribution", "weights", "lens", "completions"):  # settings say that the last two were taken
        assert f'measures=["{measure}"]' not in page.text
    targets = {a["href"] for a in page.all("a")}
    assert "#lens" not in targets and "#samples" not in targets and "#weights" in targets


def test_page_of_a_comparison_without_measures():
    data = make().dataset[["text", "tokens"]]
    data.attrs = {}
    page = Page(report.render(Fake(data, (), (), pd.DataFrame(columns=["reading", "finding", "estimate"]))))
    assert not page.all("figure") and "No finding" in page.text and "Neither a logit difference" in page.text


def test_summary_table_has_the_numbers(cmp):
    columns, rows = views.headline(cmp.summary())
    assert columns == ["reading", "finding", "estimate", "95 % interval", "control runs", "units", "n", "completeness"]
    first = cmp.summary().iloc[0]
    assert (
        rows[0][2] == f"{first.estimate:.2f}" and rows[0][3] == f"{first.estimate_low:.2f} to {first.estimate_high:.2f}"
    )
    assert [r[0] for r in rows] == ["logit difference", "", "divergence", "attribution by head", "reward", "weights"]
    assert rows[2][1].startswith("KL(tuned ‖ base)")
    assert "95 % interval" not in views.headline(make(prompts=3).summary())[0]
    assert "control runs" not in views.headline(make(controls=0).summary())[0]
    columns, rows = views.headline(make(controls=20, replicates=2).summary())
    assert columns[4:7] == ["control runs", "replicates", "p"] and rows[0][6] == "0.048"


def test_verdict_says_what_the_numbers_say(cmp):
    text = " ".join(verdict(cmp))
    row = cmp.summary().iloc[0]
    assert f"Over 12 prompts, tuned prefers “␣bad” to “␣good” by {row.estimate:.2f} logits more than base" in text
    assert (
        f"{row.estimate_low:.2f} to {row.estimate_high:.2f}" in text
        and "outside the range of the 2 control runs" in text
    )
    assert "No control run" not in text and "nats per response token in tuned's own samples" in text


def test_verdict_turns_with_the_sign_and_admits_doubt(cmp):
    def said(**cells) -> str:
        table = cmp.summary().copy()
        for name, value in cells.items():
            table.loc[0, name] = value
        return " ".join(verdict(Fake(cmp.dataset, cmp.controls, (), table)))

    less = said(estimate=-1.5, estimate_low=-2.0, estimate_high=-1.0)
    assert "by 1.50 logits less than base" in less and "1.00 to 2.00" in less and "outside" in less
    assert "so the direction is open" in said(estimate_low=-0.5) and "so the direction is open" not in said()
    assert "within the range of the 2 control runs" in said(control_low=0.0, control_high=9.0)
    assert "exactly as much as base" in said(estimate=0.0)


def test_verdict_claims_no_cause_without_controls():
    few = " ".join(verdict(make(prompts=3, controls=0)))
    assert "not that the reward is the cause" in few and "No interval is given under 8 different prompts" in few
    assert "Over 3 prompts" in few and "On one prompt" in " ".join(verdict(make(prompts=1, controls=0)))
    assert "one run has no spread" in " ".join(verdict(make(controls=1)))
    assert "prefers" not in " ".join(verdict(make(answers=False)))
    ranked = " ".join(verdict(make(controls=20, replicates=2)))
    assert "p = 0.048 by its rank among them" in ranked and "Replicates of the training give" in ranked


def test_embedded_patterns_are_the_datasets(cmp):
    view = views.attention(cmp.dataset)
    pattern = cmp.dataset["pattern"]
    assert view["heads"][1] == "L0H3" and len(view["examples"]) == 3
    for index, example in enumerate(view["examples"]):
        length = 9 - index % 4
        assert len(example["tokens"]) == example["keys"] == length
        rows = example["patterns"][1][1]
        full = np.array([row + [0] * (length - len(row)) for row in rows]) / view["steps"]
        expected = pattern.isel(example=index, changed_head=1).sel(model="tuned").values[:length, :length]
        np.testing.assert_allclose(full, expected, atol=0.5 / view["steps"])
    assert json.loads(str(views.embed(view))) == view


def test_top_tokens_mark_what_only_one_model_has():
    data = make(prompts=1).dataset
    data["top_token"].values[0, 0] = [f"t{i}" for i in range(10)]
    data["top_token"].values[0, 1] = ["t1", "new", *(f"t{i}" for i in range(2, 10))]
    (shown,) = views.top_tokens(data)
    new = {m: [r[m]["token"] for r in shown["rows"] if r[m]["new"]] for m in ("base", "tuned")}
    assert new == {"base": ["t0"], "tuned": ["new"]}


def test_completions_leave_out_a_source_without_text(cmp):
    data = cmp.dataset.copy(deep=True)
    data["completion"].loc[{"source": "base"}] = ""
    view = views.completions(data)
    assert view["sources"] == ["Tuned"] and view["reward"] == "reward: P(negative) [probability]"
    reward = float(cmp.dataset["completion_reward"].sel(source="tuned")[0, 1])
    sample = view["prompts"][0]["columns"][0][1]
    assert sample["text"] == " tuned text 1 of 0, <b>loud</b> & $x$\nnew line"
    assert float(sample["reward"]) == pytest.approx(reward, abs=1e-3)


def test_models_and_settings_are_on_record(html):
    text = Page(html).text
    for words in ("runs/reviews/base", "b2" * 32, "2 100 000", "2.13.0", "lens, completions", "runs/reviews/control"):
        assert words in text


def test_a_control_run_has_one_name():
    result = part(make(controls=20, replicates=2), "kl", "logit_diff", "pattern_js")
    text = Page(report.render(result)).text.lower()
    assert "null run" not in text
    for words in ("control runs", "control run 1", "range over 20 runs", "replicates", "range over 2 runs"):
        assert words in text


def test_every_figure_quotes_its_finding(cmp):
    table = pd.concat([cmp.table] * 2, ignore_index=True)
    table.loc[6, ["reading", "finding"]] = "attention", "L2H3: JS of the patterns"
    table.loc[7, ["reading", "finding"]] = "attention", "L2H2: entropy of the pattern: tuned minus base"
    pairs = {name: place.section.readings for name, place in PLACES.items()}
    row = table.iloc[7]
    said = views.lead(table, pairs["attention_entropy"])
    assert said.startswith("L2H2: entropy of the pattern: tuned minus base: " + number(row.estimate))
    interval, runs = span(row.estimate_low, row.estimate_high), span(row.control_low, row.control_high)
    assert said.endswith(f"interval {interval}; control runs {runs}).")
    assert views.lead(table, pairs["attention_change"]).startswith("L2H3: JS")
    assert views.lead(table, pairs["residual"]) == ""


def test_completeness_stands_with_the_attributions(html):
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", html)
    assert sum("Completeness: the parts miss the logit difference" in c for c in captions) == 2


def test_long_prompts_are_clipped_and_can_be_opened(cmp):
    data = cmp.dataset[["text", "completion", "top_token", "top_prob"]].copy(deep=True)
    texts = ["start " + "x" * 500 + " <b>end</b>", "first " + "y" * 1_000_000 + " last", "short"]
    data["text"].values[:3] = texts
    html = report.render(Fake(data, (), (), cmp.table))
    page = Page(html)
    assert len(html) < 1_000_000 and not page.all("b")
    assert len(page.all("details")) == 4 and texts[0] in page.text and "y" * 20_000 not in page.text
    assert page.text.count("the whole prompt, 1 000 011 characters (its middle left out)") == 2
    item = views.passage(texts[0])
    assert item["short"].startswith("start x") and item["short"].endswith("<b>end</b>") and len(item["short"]) < 250
    assert views.passage("short") == {"short": "short", "whole": "", "length": 5, "cut": False}


def test_attention_of_a_long_prompt_keeps_its_ends():
    long = make(prompts=1, positions=200, controls=0)
    view = views.attention(long.dataset)["examples"][0]
    assert len(view["tokens"]) == view["keys"] == 97 and len(view["queries"]) == 96
    assert view["tokens"][8] == "…104 tokens" and view["at"][0][7:10] == [7, -1, 112]
    assert view["at"][1][7:9] == [7, 112]
    row = view["patterns"][0][0][-1]
    pattern = long.dataset["pattern"].isel(example=0, changed_head=0, model=0, query=199).values
    assert row[8] == round(1000 * pattern[8:112].sum()) and row[9] == round(1000 * pattern[112])
    assert len(str(views.embed(views.attention(long.dataset)))) < 600_000


@pytest.mark.slow
def test_size_stays_small_for_a_large_model():
    large = make(prompts=12, layers=32, heads=32, positions=256, controls=20, replicates=3)
    assert len(report.render(large)) < 2_500_000


def test_ov_circuits_are_the_datasets(cmp):
    view = views.ov_circuits(cmp.dataset)
    assert [item["head"] for item in view][:2] == ["L0H0", "L0H3"]
    row = view[1]["rows"][3]
    part = cmp.dataset.isel(changed_head=1, ov_direction=1).sel(model="tuned")
    assert (row["direction"], row["model"]) == (2, "tuned")
    assert row["writes"] == [visible(t) for t in part["ov_writes"].values[:7]]
    assert row["size"] == number(float(part["ov_singular_value"]))
    assert views.ov_circuits(cmp.dataset.drop_vars("ov_singular_value")) is None


def test_write_is_whole_or_absent(cmp, html, tmp_path, monkeypatch):
    monkeypatch.setattr("interp.report.page.render", lambda _: html)
    path = report.write(cmp, tmp_path / "new" / "r.html")
    assert path.read_text(encoding="utf-8") == html
    assert [p.name for p in path.parent.iterdir()] == ["r.html"]
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(InterpError, match="cannot write"):
        report.write(cmp, tmp_path / "folder.html")
    with pytest.raises(InterpError, match="ends in .html"):
        report.write(cmp, tmp_path / "comparison.nc")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.html", "new"]
