"""A measure from outside: one object, and compare, summary, plots, report and help know it."""

import pytest
from matplotlib.figure import Figure

import interp
from interp.errors import MeasureError
from interp.measures import Measure, Section, dataset, difference, stack_models, unregister_measure, variable
from interp.measures.registry import check_measures
from interp.plot import figure
from interp.plot.registry import forget_figure
from tests.conftest import tiny_gpt2
from tests.interp.comparisons import compare

TEXTS = ["this movie was really", "the plot was", "a film"]


def largest(base, tuned):
    top = [trace.last_logits.max(-1).values for trace in (base, tuned)]
    return dataset({"top_logit": variable("prompt model", stack_models(*top), "largest logit", "logits")})


TOP_LOGIT = Measure(
    name="top_logit", title="Largest logit", meaning="How large the largest logit is.", per_batch=largest,
    findings=lambda table: [table.row("top logit", "tuned minus base", difference("top_logit"), "logits")],
    sections=(Section("top_logit", "How large the largest logit is", "Top logit", alt="Dots.", caption="Dots."),),
)  # fmt: skip


@pytest.fixture
def registered():
    interp.register_measure(TOP_LOGIT)

    @figure("comparison", needs=("top_logit",))
    def top_logit(cmp, *, width=17):
        drawing = Figure(figsize=(width / 2.54, 2))
        drawing.subplots().plot(cmp["top_logit"].values)
        return drawing

    yield
    unregister_measure("top_logit")
    forget_figure("comparison", "top_logit")


def test_it_is_found_everywhere(registered, tokenizer, tmp_path):
    assert interp.MEASURES[-1] == "top_logit" and check_measures("all")[-1] == "top_logit"
    assert "top_logit" not in interp.DEFAULT_MEASURES
    cmp = compare(tiny_gpt2(0), tiny_gpt2(1), TEXTS, tokenizer=tokenizer, measures=["kl", "top_logit"])
    (row,) = cmp.summary().query("reading == 'top logit'").to_dict("records")
    change = float((cmp["top_logit"].sel(model="tuned") - cmp["top_logit"].sel(model="base")).mean())
    assert row["estimate"] == pytest.approx(change) and change != 0
    assert "top_logit" in dir(cmp.plot) and cmp.plot.top_logit().axes
    page = cmp.report(tmp_path / "page.html").read_text()
    assert "How large the largest logit is" in page and 'data-figure="top_logit"' in page and "Other measures" in page
    loaded = interp.load_result(cmp.save(tmp_path / "out"))
    assert loaded.summary().equals(cmp.summary())


def test_it_goes_again(tokenizer):
    assert "top_logit" not in interp.MEASURES
    with pytest.raises(MeasureError, match="unknown measure 'top_logit'"):
        check_measures(["top_logit"])


def test_what_cannot_be_registered(registered):
    with pytest.raises(MeasureError, match="there is a measure 'kl' already"):
        interp.register_measure(Measure(name="kl", title="", meaning="", per_batch=largest))
    with pytest.raises(MeasureError, match="there is a measure 'top_logit' already"):
        interp.register_measure(TOP_LOGIT)
    with pytest.raises(MeasureError, match="'idle' computes nothing"):
        interp.register_measure(Measure(name="idle", title="", meaning=""))
    with pytest.raises(MeasureError, match="'kl' was not added by register_measure"):
        unregister_measure("kl")


@pytest.mark.parametrize("name", interp.MEASURES)
def test_every_measure_says_what_it_is(name):
    from interp.measures import measures

    known = measures()[name]
    assert known.name == name and known.title and known.meaning.endswith(".") and known.formula and known.units
    assert known.misleads.endswith(".") and known.arrays


def test_one_that_says_nothing_of_its_own_has_a_row_for_each_array(tokenizer):
    interp.register_measure(Measure(name="top_logit", title="Largest logit", meaning="x", per_batch=largest))
    try:
        cmp = compare(tiny_gpt2(0), tiny_gpt2(1), TEXTS, tokenizer=tokenizer, measures=["top_logit"])
        (row,) = cmp.summary().to_dict("records")
    finally:
        unregister_measure("top_logit")
    change = float((cmp["top_logit"].sel(model="tuned") - cmp["top_logit"].sel(model="base")).mean())
    assert row["estimate"] == pytest.approx(change) and row["units"] == "logits"
    assert (row["reading"], row["finding"]) == ("largest logit", "largest logit: tuned minus base")
