"""The good-vs-bad study: its steps on the embedded pair, its table by hand, its page, its notebook."""

from __future__ import annotations

import base64
import copy
import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from analyses.good_vs_bad import study, subjects
from analyses.good_vs_bad.__main__ import main
from analyses.good_vs_bad.page import FIGURES, said, write
from interp import Policy, Prompts
from interp.errors import InterpError, PromptError
from tests.conftest import save, tiny_gpt2

NOTEBOOK = Path(__file__).parent.parent.parent / "notebooks" / "good_vs_bad.ipynb"


@pytest.fixture(scope="module")
def demo() -> subjects.Subject:
    return subjects.subject()


@pytest.fixture(scope="module")
def found(demo) -> study.Study:
    steps: list[str] = []
    result = study.run(demo, samples=1, max_new_tokens=6, progress=steps.append)
    assert steps[0] == "both models side by side" and len(steps) == 6
    return result


def test_the_embedded_pair_comes_with_everything(demo) -> None:
    assert demo.one.texts == (subjects.PROMPT,) and demo.prompts.answers[0] == (" bad", " good")
    assert demo.reward is not None and demo.reward.label == "negative"
    assert demo.value_head is not None and len(demo.controls) == 1


def test_the_published_table_by_hand(demo) -> None:
    table = study.published_table(demo).set_index("quantity")["here"]
    tokenizer = demo.base.tokenizer
    ids = torch.tensor([tokenizer(subjects.PROMPT)["input_ids"]])
    bad, good = (tokenizer(word)["input_ids"][0] for word in (" bad", " good"))
    for name, policy in (("base", demo.base), ("tuned", demo.tuned)):
        with torch.no_grad():
            logits = policy.model(ids).logits[0, -1].double()
        assert float(table[f"logit difference bad - good, {name}"]) == pytest.approx(
            float(logits[bad] - logits[good]), abs=6e-5
        )
        assert table[f"P(' bad'), {name}"] == f"{float(logits.softmax(-1)[bad]):.2%}"
    assert float(table["attribution's terms miss the logit difference by"].split()[0]) < 1e-4
    assert table["heads that differ most by direct attribution"] == "L1H1, L3H0"


def test_what_the_wrong_norm_scale_misses_by_hand(demo) -> None:
    """The mistake of the published study, worked out with GPT-2's own modules."""
    model = copy.deepcopy(demo.base.model)
    with torch.no_grad():
        for parameter in model.transformer.h.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    tuned = Policy.load(model, tokenizer=demo.base.tokenizer)
    what = subjects.Subject(demo.base, tuned, demo.prompts, demo.one)
    ids = torch.tensor([demo.base.tokenizer(subjects.PROMPT)["input_ids"]])
    kept = []
    for policy in (demo.base, tuned):
        seen = []
        module = policy.model.transformer.ln_f
        handle = module.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].detach()))
        with torch.no_grad():
            policy.model(ids)
        handle.remove()
        kept.append(seen[0][0, -1].double())
    norm, head = demo.base.model.transformer.ln_f, demo.base.model.lm_head.weight.detach().double()
    bad, good = (demo.base.tokenizer(word)["input_ids"][0] for word in (" bad", " good"))
    spreads = [(each.var(unbiased=False) + norm.eps).sqrt() for each in kept]
    parts = [(each - each.mean()) * norm.weight.detach().double() @ (head[bad] - head[good]) for each in kept]
    right = parts[1] / spreads[1] - parts[0] / spreads[0]
    wrong = parts[1] / spreads[1] - parts[0] / spreads[1]
    assert study.scale_error(what) == pytest.approx(float((wrong - right).abs() / right.abs()), rel=1e-4)


@pytest.mark.slow
def test_every_step_is_taken_on_its_own_prompts(found, demo) -> None:
    count = len(demo.prompts)
    assert count == 20 and found.heads["effect"].shape == (20, 16)
    assert found.positions.map("mlp_out").dims == ("layer", "pos")
    assert found.positions.dataset.sizes["prompt"] < count
    assert set(found.nulls[0].dataset["name"].values) == {"z", "mlp_out"}
    assert found.needed["recipient"].mean() > 0 > found.heads["recipient"].mean()
    assert found.written is not None and found.written.dataset.sizes["site"] == 3
    assert found.value is not None and found.sets["random_recovery"].shape == (2, 20)
    first = found.written["recipient"].values
    assert first.shape == (count,) and np.isfinite(found.estimate.dataset.attrs["rank_correlation"])


@pytest.mark.slow
def test_the_page_needs_no_other_file(found, tmp_path) -> None:
    page = write(found, tmp_path / "out")
    html = page.read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!data:image/png;base64,)', html)
    assert "2.0157" in html and "L10H4, L10H9" in html and "null run" in html
    names = {each.stem for each in page.parent.glob("*.png")}
    assert names == set(FIGURES)
    inside = re.findall(r'base64,([^"]+)"', html)
    assert len(inside) == len(names) and all(base64.b64decode(each).startswith(b"\x89PNG") for each in inside)
    table = (page.parent / "published.csv").read_text(encoding="utf-8")
    assert table.splitlines()[0] == "quantity,published,here" and len(table.splitlines()) == 14
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(InterpError):
        write(found, tmp_path / "mine")


@pytest.mark.slow
def test_without_reward_and_null_runs_the_page_says_so(demo, found, tmp_path) -> None:
    bare = dataclasses.replace(found, written=None, value=None, nulls=())
    titles = {each.title: " ".join(each.lines) for each in said(bare)}
    assert "No reward model" in titles["What it writes"] and "The value head" not in titles
    assert "no null runs" in titles["How large are such effects by chance?"]


def test_two_models_by_folder_and_prompts_of_ones_own(tmp_path, tokenizer) -> None:
    folders = [str(save(tiny_gpt2(seed=s), tmp_path / str(s), tokenizer)) for s in (0, 1)]
    own = Prompts(["the movie was", "a film was", "the plot was"], answers=(" bad", " good"))
    what = subjects.subject(*folders, prompts=own)
    assert what.reward is None and what.controls == () and what.one.texts == ("the movie was",)
    with pytest.raises(PromptError, match="two answers"):
        subjects.subject(*folders, prompts=Prompts(["the movie was"]))
    with pytest.raises(PromptError, match="shapes are"):
        subjects.prompts_of("poems")


def test_the_shape_is_that_whose_answers_are_likelier(stories) -> None:
    assert subjects._likelier(Policy.load(str(stories)), subjects.SHAPES, None).texts[0] == subjects.STORIES[0]


def test_the_command_says_what_is_wrong(capsys, tmp_path) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--out", str(tmp_path / "out")])
    assert "FormatError" in capsys.readouterr().err


@pytest.mark.slow
def test_the_notebook_runs(tmp_path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    book = nbformat.read(NOTEBOOK, as_version=4)
    before = [len(cell.get("outputs", ())) for cell in book.cells]
    nbclient.NotebookClient(book, timeout=280, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    after = [cell.get("outputs", []) for cell in book.cells]
    assert [len(each) for each in after] == before
    assert not [output for each in after for output in each if output.output_type in ("error", "stream")]


def test_the_notebook_was_committed_with_its_figures() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 1_500_000 and text.count('"image/png"') >= 14
    assert "/home/" not in text and str(NOTEBOOK.parent.parent) not in text


@pytest.mark.hub
def test_the_published_figures() -> None:
    what = subjects.subject("published", allow_pickle=True)
    table = study.published_table(what).set_index("quantity")["here"]
    assert float(table["logit difference bad - good, base"]) == pytest.approx(-0.0891, abs=5e-4)
    assert float(table["logit difference bad - good, tuned"]) == pytest.approx(2.0157, abs=5e-4)
    assert table["heads that differ most by direct attribution"] == "L10H4, L10H9"
    assert table["head whose patch (tuned into base) moves it most"] == "L11H10"
    assert table["largest component of the difference"] == "L10.mlp"
    assert float(table["these heads together into base: recovery"]) == pytest.approx(0.0434, abs=5e-4)
    assert float(table["attribution's terms miss the logit difference by"].split()[0]) < 1e-3
    assert study.scale_error(what) > 0.05
