"""What every reading of a reward returns: it prints shortly, and is saved, read again, drawn and put on a page."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from interp import reward
from interp.result import Result, load_result
from interp.reward.implicit_reward import calibrate
from interp.reward.over_optimisation import curve
from interp.reward.token_join import correlate
from tests.interp.planted_reward import planted, random_model
from tests.interp.test_implicit import toy
from tests.interp.test_optimisation import STEPS, WORDS, course
from tests.interp.test_reward_spurious import TEXTS

LABELS = [True, False] * 18
ROWS = [[(0, 3, 0.1, 0.2, 1.0), (4, 8, 0.3, -0.2, 2.0), (9, 12, -0.4, 0.1, 0.5)]] * 9

MAKERS = {
    "reward_attribution": lambda: reward.attribute(random_model(), TEXTS[:9], labels="all", patched_texts=4),
    "reward_direct_attribution": lambda: reward.direct_attribution(random_model(), TEXTS[:10], labels="all"),
    "reward_lens": lambda: reward.lens(random_model(), TEXTS, labels="all"),
    "spurious": lambda: reward.spurious(planted(), TEXTS),
    "counterexamples": lambda: reward.counterexamples(planted(), TEXTS, LABELS, threshold=0.5, swapped_texts=1),
    "implicit_reward": lambda: calibrate(toy(), draws=19),
    "token_join": lambda: correlate(["the film was"] * 9, ROWS, np.arange(9), draws=19),
    "probes": lambda: reward.probes(
        {"model": {0: random_model(), 5: random_model()}}, TEXTS, [0, 1] * 18, draws=2, folds=2
    ),
    "over_optimisation": lambda: curve(STEPS, *course([0.0, 0.5, 1.0, 0.4, -0.6]), words=WORDS),
}
FIGURES = {
    "reward_attribution": ["reward_words"],
    "reward_direct_attribution": ["reward_components"],
    "reward_lens": ["reward_lens"],
    "counterexamples": [],
}


def check(found, path):
    """All that a result does for its reader."""
    assert isinstance(found, Result) and type(found)(found.dataset).headline() == found.headline()
    lines = repr(found).split("\n")
    assert len(lines) <= 15 and max(map(len, lines)) <= 80, repr(found)
    assert dir(found.plot) == FIGURES.get(found.kind, [found.kind])
    for name in dir(found.plot):
        assert f".plot.{name}()" in repr(found)
        assert getattr(found.plot, name)().axes
    again = load_result(found.save(path / "saved"))
    assert type(again) is type(found)
    xr.testing.assert_identical(again.dataset, found.dataset)
    pd.testing.assert_frame_equal(again.summary(), found.summary())
    assert repr(again) == repr(found)
    assert found.to_parquet(path / "tables").is_dir()
    page = found.report(path / "page.html").read_text(encoding="utf-8")
    assert page.lower().lstrip().startswith("<!doctype html>")
    assert again.report(path / "again.html").read_text(encoding="utf-8") == page
    assert found._repr_html_().count("<tr") >= 2


@pytest.mark.parametrize("kind", MAKERS)
def test_a_reading_is_a_result(kind, tmp_path):
    found = MAKERS[kind]()
    assert found.kind == kind
    check(found, tmp_path)


def test_tables_without_rows_are_kept(tmp_path):
    found = reward.counterexamples(planted(), TEXTS, LABELS, threshold=99.0, swaps=0)
    again = load_result(found.save(tmp_path / "saved"))
    for name in ("at_odds", "pairs", "swaps"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(found, name))
    assert again.pairs.empty and again.swaps.empty and repr(again) == repr(found)


def test_every_reading_tells_how_far_it_is():
    texts, model = TEXTS[:20], random_model()
    verbs = {
        "attributions": lambda told: reward.attribute(model, texts, patched_texts=0, progress=told),
        "components": lambda told: reward.direct_attribution(model, texts, progress=told),
        "texts": lambda told: reward.lens(model, texts, batch_size=8, progress=told),
        "scorings": lambda told: reward.spurious(model, TEXTS, progress=told),
        "checkpoints": lambda told: reward.probes(
            {"model": {0: model, 5: model}}, texts, [0, 1] * 10, draws=0, folds=2, progress=told
        ),
    }
    for what, verb in verbs.items():
        heard = []
        verb(lambda *news, heard=heard: heard.append(news))
        assert {name for name, _, _ in heard} == {what} and len(heard) > 2
        assert [done for _, done, _ in heard] == sorted(done for _, done, _ in heard)
        assert heard[-1][1] == heard[-1][2] > 1
