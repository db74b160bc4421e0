"""The report as a browser shows it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from interp import report
from interp.report import views
from interp.report.sections import places
from tests.interp.synthetic import Fake, make
from tests.interp.traced import JOINED

# which made-up arrays do not have
PLACES = places()
FIGURES = {
    name for name, place in PLACES.items() if place.section.drawn_by == "plot" and place.measure.name not in JOINED
} | {"attention"}
CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.fixture(scope="module")
def cmp() -> Fake:
    return make()


@pytest.fixture(scope="module")
def html(cmp) -> str:
    return report.render(cmp)


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
        pictures = [s for s in figure.query_selector_all("svg") if s.is_visible()]
        assert len(pictures) == (3 if figure.get_attribute("data-figure") == "attention" else 1)
        for picture in pictures:
            box = picture.bounding_box()
            assert box["width"] > 150 and box["height"] > 100
            assert picture.evaluate("s => s.querySelectorAll('path, rect').length") > 5
        assert figure.evaluate("f => [...f.querySelectorAll('.card')].every(c => c.scrollWidth <= c.clientWidth + 1)")
    assert page.get_attribute("[data-figure=attention]", "data-drawn") == "true"
    table = page.query_selector(".summary")
    assert table.evaluate("t => t.parentElement.scrollWidth <= t.parentElement.clientWidth + 1")
    assert page.is_visible(".summary thead") == (width > 860)
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
    html = report.render(Fake(long.dataset[["text", "tokens", "pattern"]], (), (), long.table))
    page, trouble = opened(html, 390, color_scheme="dark")
    assert page.get_attribute("[data-figure=attention]", "data-cells") == str(64 * 64)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 27)"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390 and trouble == []
