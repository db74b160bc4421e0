from __future__ import annotations

import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from interp import report
from interp.errors import InterpError
from interp.report import views
from interp.report.verdict import verdict
from tests.interp.synthetic import Fake, make

FIGURES = {"lens", "attribution", "heads", "attention_change", "attention", "weights", "kl"}
CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.fixture(scope="module")
def cmp() -> Fake:
    return make()


@pytest.fixture(scope="module")
def html(cmp) -> str:
    return report.render(cmp)


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


def test_same_comparison_same_bytes(html):
    assert report.render(make()) == html


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
    assert len(described) == 6 and all(len(a["aria-label"] or "") > 30 for a in described)


def test_text_of_others_never_becomes_markup(html):
    page = Page(html)
    assert len(page.all("script")) == 2  # the data and the page's own
    assert "<script>alert(1)</script>" in page.text and "<b>loud</b>" in page.text
    assert not page.all("b") and "\u202e" not in html
    embedded = re.search(r'id="attention-data">(.*?)</script>', html, re.DOTALL)
    assert embedded and not set("<>&") & set(embedded[1])


def test_odd_characters_are_shown_and_can_be_written(cmp, tmp_path):
    text = '\x00\x1b[31m \ud800 a\u2028b <!-- ]]> "><img src=x onerror=alert(1)>'
    data = cmp.dataset[["text", "top_token", "top_prob", "tokens", "pattern", "completion", "kl"]].copy(deep=True)
    data["text"].values[0] = data["top_token"].values[0, 0, 0] = data["tokens"].values[0, 0] = text
    data["completion"].values[0, 0, 0] = text
    page = report.write(Fake(data, (), cmp.table), tmp_path / "r.html").read_text(encoding="utf-8")
    assert not Page(page).all("img") and not set("\x00\x1b\ud800") & set(page)
    assert Page(page).text.count("onerror=alert(1)") == 4  # twice as a prompt, a token, a completion


def test_missing_measures_are_named_and_left_out(cmp):
    data = cmp.dataset.drop_vars(["lens_logit_diff", "lens_kl", "pattern", "completion", "top_prob", "mlp_change"])
    page = Page(report.render(Fake(data, (), cmp.table)))
    assert {a["data-figure"] for a in page.all("figure")} == FIGURES - {"lens", "attention"}
    for measure in ("lens", "attention", "completions", "next_token"):
        assert f'measures=["{measure}"]' in page.text
    assert 'measures=["weights"]' not in page.text
    targets = {a["href"] for a in page.all("a")}
    assert "#lens" not in targets and "#weights" in targets


def test_page_of_a_comparison_without_measures():
    data = make().dataset[["text", "tokens"]]
    data.attrs = {}
    page = Page(report.render(Fake(data, (), pd.DataFrame(columns=["reading", "finding", "estimate"]))))
    assert not page.all("figure") and "No finding" in page.text and "Neither a logit difference" in page.text


def test_summary_table_has_the_numbers(cmp):
    columns, rows = views.headline(cmp.summary())
    assert columns == ["reading", "finding", "estimate", "95 % interval", "controls", "units", "n", "completeness"]
    first = cmp.summary().iloc[0]
    assert rows[0][2] == f"{first.estimate:.2f}" and rows[0][3] == f"{first.lower:.2f} to {first.upper:.2f}"
    assert [r[0] for r in rows] == ["logit difference", "", "divergence", "attribution by head", "reward"]
    assert rows[2][1].startswith("KL(tuned ‖ base)")
    assert "95 % interval" not in views.headline(make(prompts=3).summary())[0]
    assert "controls" not in views.headline(make(controls=0).summary())[0]


def test_verdict_says_what_the_numbers_say(cmp):
    text = " ".join(verdict(cmp))
    row = cmp.summary().iloc[0]
    assert f"Over 12 prompts, tuned prefers “␣bad” to “␣good” by {row.estimate:.2f} logits more than base" in text
    assert f"{row.lower:.2f} to {row.upper:.2f}" in text and "outside the range of the controls" in text
    assert "No control" not in text and "nats per response token in tuned's own samples" in text


def test_verdict_turns_with_the_sign_and_admits_doubt(cmp):
    def said(**cells) -> str:
        table = cmp.summary().copy()
        for name, value in cells.items():
            table.loc[0, name] = value
        return " ".join(verdict(Fake(cmp.dataset, cmp.controls, table)))

    less = said(estimate=-1.5, lower=-2.0, upper=-1.0)
    assert "by 1.50 logits less than base" in less and "1.00 to 2.00" in less and "outside" in less
    assert "so the direction is open" in said(lower=-0.5) and "so the direction is open" not in said()
    assert "within the range of the controls" in said(control_low=0.0, control_high=9.0)
    assert "exactly as much as base" in said(estimate=0.0)


def test_verdict_claims_no_cause_without_controls():
    few = " ".join(verdict(make(prompts=3, controls=0)))
    assert "not that the reward is the cause" in few and "No interval is given under 8 different prompts" in few
    assert "Over 3 prompts" in few and "On one prompt" in " ".join(verdict(make(prompts=1, controls=0)))
    assert "shows no spread" in " ".join(verdict(make(controls=1)))
    assert "prefers" not in " ".join(verdict(make(answers=False)))


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
    for words in ("runs/reviews/base", "b2" * 32, "2 100 000", "2.13.0", "lens, attribution", "runs/reviews/control"):
        assert words in text


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


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None or not Path(CHROMIUM).exists():
        pytest.skip("no chromium here: install it, or name one in $CHROMIUM")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a page; its list collects errors, dialogs and every request beyond the file itself."""
    contexts = []

    def open_(html: str, width: int = 1400, **options):
        path = tmp_path / "report.html"
        path.write_text(html, encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        trouble: list[str] = []
        page.on("console", lambda m: trouble.append(m.text))
        page.on("pageerror", lambda e: trouble.append(str(e)))
        page.on("dialog", lambda d: (trouble.append(d.message), d.dismiss()))
        page.on("request", lambda r: trouble.append(r.url) if r.url not in (path.as_uri(), "data:,") else None)
        page.goto(path.as_uri())
        return page, trouble

    yield open_
    for context in contexts:
        context.close()


def test_the_browser_tests_would_see_trouble(opened):
    policy = "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; script-src 'unsafe-inline'\">"
    _, trouble = opened(policy + '<img src="http://localhost:9/x.png"><script>alert(17); throw Error("no")</script>')
    assert "17" in trouble and any("no" in t for t in trouble) and any("Content Security Policy" in t for t in trouble)


@pytest.mark.parametrize("width", [360, 390, 1400])
def test_browser_draws_every_figure_without_a_request(html, opened, width):
    page, trouble = opened(html, width)
    assert trouble == []
    figures = page.query_selector_all("[data-figure]")
    assert {f.get_attribute("data-figure") for f in figures} == FIGURES
    for figure in figures:
        pictures = figure.query_selector_all("svg")
        assert len(pictures) == (3 if figure.get_attribute("data-figure") == "attention" else 1)
        for picture in pictures:
            box = picture.bounding_box()
            assert box["width"] > 150 and box["height"] > 100
            assert picture.evaluate("s => s.querySelectorAll('path, rect').length") > 5
    assert page.get_attribute("[data-figure=attention]", "data-drawn") == "true"
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_browser_shows_what_a_cell_holds(cmp, html, opened):
    page, trouble = opened(html)
    page.focus("[data-figure=attention] .grids")
    for _ in range(3):
        page.keyboard.press("ArrowUp")  # the first press goes to the last query and the first key
    pattern = cmp.dataset["pattern"].isel(example=0, changed_head=0, query=6, key=0)
    base, tuned = (float(pattern.sel(model=m)) for m in ("base", "tuned"))
    said = page.inner_text("#attention-readout")
    token = views.attention(cmp.dataset)["examples"][0]["tokens"][6]
    assert f"query 6 “{token}” → key 0" in said
    assert f"base {base:.3f}, tuned {tuned:.3f}" in said
    assert page.is_visible(".tip")
    page.keyboard.press("Escape")
    assert page.is_hidden(".tip")
    page.hover("[data-figure=attention] svg >> nth=1", position={"x": 120, "y": 10})
    assert page.inner_text(".tip").splitlines()[2].startswith("Tuned: ")
    assert trouble == []


def test_browser_redraws_for_another_head_prompt_or_width(html, opened):
    page, trouble = opened(html)
    picture = "[data-figure=attention] svg >> nth=0"
    before = page.inner_html(picture)
    page.select_option("#attention-head", label="L1H3")
    assert page.inner_html(picture) != before
    page.select_option("#attention-prompt", index=1)
    assert page.get_attribute("[data-figure=attention]", "data-cells") == "64"
    page.set_viewport_size({"width": 390, "height": 800})
    page.wait_for_function("document.querySelector('[data-figure=attention] svg').viewBox.baseVal.width < 360")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390 and trouble == []


def test_browser_with_64_tokens_and_in_the_dark(opened):
    long = make(prompts=2, positions=64, controls=0)
    html = report.render(Fake(long.dataset[["text", "tokens", "pattern"]], (), long.table))
    page, trouble = opened(html, 390, color_scheme="dark")
    assert page.get_attribute("[data-figure=attention]", "data-cells") == str(64 * 64)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 27)"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390 and trouble == []
