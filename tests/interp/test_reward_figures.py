"""Figures and the command of a reward model's reading."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from typer.testing import CliRunner

from interp import reward
from interp.cli import app
from interp.errors import InterpError, MeasureError
from interp.plot import reward as plot
from tests.conftest import save
from tests.interp.planted_reward import planted, random_model
from tests.interp.test_reward_spurious import TEXTS


def inside(figure):
    """Every text of a figure lies on its canvas."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    whole = figure.bbox
    for ax in figure.axes:
        titles = [each for each in ax.findobj(Text) if each.get_text() and each.get_text() == ax.get_title(loc="left")]
        for text in [*titles, ax.xaxis.label, ax.yaxis.label, *ax.get_yticklabels()]:
            box = text.get_window_extent(canvas.get_renderer())
            if text.get_text() and text.get_visible() and box.width:
                if not whole.y0 <= box.y0 <= whole.y1:  # a tick beyond the axes is not drawn
                    continue
                assert whole.x0 - 1 <= box.x0 and box.x1 <= whole.x1 + 1, text.get_text()
    return figure


@pytest.mark.parametrize("width", [17.0, 8.5])
def test_figures_show_what_the_result_holds(width):
    model = random_model()
    found = reward.attribute(model, TEXTS[:3], labels="all")
    bars = inside(plot.reward_words(found, prompt=1, label="LABEL_2", width=width)).axes[0].patches
    words = found.words(1)["LABEL_2"]
    assert sorted(bar.get_width() for bar in bars) == pytest.approx(sorted(words))
    direct = reward.direct_attribution(model, TEXTS[:10])
    bars = inside(plot.reward_components(direct, width=width)).axes[0].patches
    means = direct["component_attribution"].mean("prompt").values[:, 0]
    assert [bar.get_width() for bar in bars] == pytest.approx(list(means))
    lens = reward.lens(model, TEXTS[:10])
    figure = inside(plot.reward_lens(lens, width=width))
    assert len(figure.axes[0].lines) >= 11
    spurious = reward.spurious(planted(), TEXTS)
    left = inside(plot.spurious(spurious, width=width)).axes[0]
    table = spurious.summary()
    edits = table[(table["way"] == "edits") & table["effect"].notna()]
    marks = [line for line in left.lines if line.get_marker() in ("o", "x")]
    assert [float(line.get_xdata()[0]) for line in marks] == pytest.approx(list(edits["effect"]))
    with pytest.raises(MeasureError, match="no label 'joy'"):
        plot.reward_words(found, label="joy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = planted()
    return save(model.model, tmp_path_factory.mktemp("planted") / "model", model.tokenizer)


def test_the_command_shows_the_words_and_writes_the_page(folder, tmp_path):
    page = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["reward", str(folder), "the film! was <b>good", "--html", str(page)])
    assert done.exit_code == 0, done.output
    assert "film!(+" in done.output and "rank correlation with patching" in done.output
    assert "was(" not in done.output
    assert done.output.count("rank correlation with patching") == 1
    text = page.read_text()
    assert "&lt;" in text and "<b>" not in text and "Rank correlation with patching" in text


def test_the_command_says_what_is_wrong(folder):
    for arguments, says in ((["good", ""], "text 1 is empty"), (["good", "--label", "joy"], "one of exclamation")):
        with pytest.raises(InterpError, match=says):
            CliRunner().invoke(app, ["reward", str(folder), *arguments], catch_exceptions=False)


def test_the_command_refuses_a_pages_name_before_the_work(tmp_path):
    with pytest.raises(InterpError, match="ends in .html, not .*o.txt"):  # not that there is no such model
        CliRunner().invoke(app, ["reward", "/no/model", "x", "--html", str(tmp_path / "o.txt")], catch_exceptions=False)


@pytest.mark.slow
def test_real_texts_on_a_pretrained_story_model_with_a_score_head(stories, real_data):
    """A Llama whose score head is random: what is read of it still has to add up on real texts."""
    import torch
    from transformers import AutoTokenizer, LlamaForSequenceClassification

    from interp.models import RewardModel

    torch.manual_seed(0)
    network = LlamaForSequenceClassification.from_pretrained(stories, num_labels=2, pad_token_id=0).eval()
    model = RewardModel.load(network, tokenizer=AutoTokenizer.from_pretrained(stories), label="LABEL_1", output="logit")
    lines = (real_data / "goemotions" / "test.tsv").read_text(encoding="utf-8").splitlines()
    texts = [line.split("\t")[0] for line in lines[:24]]
    found = reward.attribute(model, texts, labels="all", tolerance=0.02)
    assert len(found.unconverged) <= 2
    for row, text in enumerate(texts):
        assert len(found.by_character(row, "LABEL_1")) == len(text)
    direct = reward.direct_attribution(model, texts)
    assert float(direct["linearisation_error"].max()) < 1e-3
