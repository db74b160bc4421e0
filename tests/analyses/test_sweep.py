"""The sweep over emotions: cells that are keyed, resumable and apart, and the tables across them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification

from analyses.sweep import SweepConfig, check, status, sweep, work
from analyses.sweep.cells import Cell, Store
from analyses.sweep.engines import engine
from analyses.sweep.run import errors
from analyses.sweep.tables import gates
from interp.errors import ConfigError, InterpError, LoadError, MissingExtra
from interp.pair import CheckpointPair
from tests.conftest import WORDS, save, tiny_gpt2, word_tokenizer

RECIPES = Path(__file__).parents[2] / "training/recipes"
LABELS = ("joy", "fear", "grief")


def reward_model(folder: Path) -> Path:
    torch.manual_seed(0)
    names = dict(enumerate(LABELS))
    config = GPT2Config(
        n_layer=1, n_head=2, n_embd=16, n_positions=64, vocab_size=len(word_tokenizer()), pad_token_id=0,
        bos_token_id=0, eos_token_id=0, initializer_range=0.5, id2label=names,
        label2id={name: i for i, name in names.items()}, problem_type="multi_label_classification",
    )  # fmt: skip
    save(GPT2ForSequenceClassification(config), folder, word_tokenizer())
    bounds = {"joy": [0.8, 0.9], "fear": [0.75, 0.95], "grief": [0.4, 1.0]}
    card = {"by_label": {name: {"auroc": sum(both) / 2, "auroc_interval": both} for name, both in bounds.items()}}
    (folder / "card.json").write_text(json.dumps(card))
    return folder


def pair(root: Path, name: str, seed: int) -> str:
    folder = root / name
    save(tiny_gpt2(seed), folder / "tuned", word_tokenizer())
    manifest = {
        "engine": "native", "seed": seed, "versions": {}, "base": {"folder": str(root / "base")},
        "config": {"ppo": {"init_kl_coef": 0.1}, "generate": {"temperature": 1.0}},
        "tuned": {"path": "tuned"}, "final": {"kl": 0.1, "reward": 0.5},
    }  # fmt: skip
    CheckpointPair.write(folder, manifest)
    return str(folder)


@pytest.fixture
def values(tmp_path):
    """A sweep of three given pairs of tiny models."""
    save(tiny_gpt2(0), tmp_path / "base", word_tokenizer())
    rng = np.random.default_rng(0)
    texts = dict.fromkeys(" ".join(rng.choice(WORDS, 5)) for _ in range(80))
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    (tmp_path / "prompts.txt").write_text("\n".join(["this movie was", "the plot was", "great acting and a"] * 3))
    return {
        "emotions": list(LABELS),
        "recipe": str(RECIPES / "emotion.toml"),
        "reward": str(reward_model(tmp_path / "reward")),
        "overrides": {"model.base": str(tmp_path / "base"), "generate.max_new_tokens": 4},
        "given": {name: pair(tmp_path, name, seed) for seed, name in enumerate(LABELS, start=1)},
        "texts": str(tmp_path / "texts.txt"),
        "prompts": str(tmp_path / "prompts.txt"),
        "cells": ["comparison", "states", "patching"],
        "permutations": 99,
    }


def quiet(_: str) -> None:
    pass


@pytest.mark.slow  # it draws every figure of three comparisons
def test_a_sweep_and_that_nothing_is_computed_twice(values, tmp_path, monkeypatch):
    config, out = SweepConfig.from_dict(values), tmp_path / "out"
    table = sweep(config, out, told=quiet)
    assert (table.loc[list(LABELS), ["pair", "comparison", "states", "patching"]] == "done").all().all()
    page = (out / "report.html").read_text()
    assert "grief is kept out" in page and "<script" not in page
    main = pd.read_csv(out / "tables" / "emotions.csv").set_index("pair")
    assert list(main["passes"]) == [True, True, False] and (main["kl"] > 0).all()
    served = pd.read_csv(out / "tables" / "parts.csv")
    assert set(served["of"]) == {2}  # grief does not pass
    monkeypatch.setattr(work, "compare", None)  # a cell that is there needs nothing
    monkeypatch.setattr(work, "KINDS", {})
    before = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    sweep(config, out, told=quiet)
    after = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    assert before.keys() == after.keys()
    assert all(after[path] == content for path, content in before.items() if path.suffix in (".html", ".json", ".csv"))


def test_killed_in_the_middle_it_goes_on(values, tmp_path, monkeypatch):
    config, out = SweepConfig.from_dict(values | {"cells": ["states"]}), tmp_path / "out"
    ran, states = [], work.KINDS["states"]

    def killed(cell):
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(cell.name)
        return states(cell)

    monkeypatch.setattr(work, "KINDS", {**work.KINDS, "states": killed})
    with pytest.raises(KeyboardInterrupt):
        sweep(config, out, told=quiet)
    assert set((status(config, out)["states"] == "done")[lambda s: s].index) == {"base", "joy"}
    again = []
    monkeypatch.setattr(
        work, "KINDS", {**work.KINDS, "states": lambda cell: (again.append(cell.name), states(cell))[1]}
    )
    sweep(config, out, told=quiet)
    assert sorted([*ran, *again]) == ["base.states", "fear.states", "grief.states", "joy.states"]


def test_a_failed_cell_is_recorded_and_the_rest_go_on(values, tmp_path, monkeypatch):
    config, out = SweepConfig.from_dict(values | {"cells": ["states"]}), tmp_path / "out"
    states = work.KINDS["states"]

    def fails(cell):
        if cell.pair == "fear":
            raise LoadError("<b>no memory</b>; buy some")
        return states(cell)

    monkeypatch.setattr(work, "KINDS", {**work.KINDS, "states": fails})
    table = sweep(config, out, told=quiet)
    assert dict(table.loc[list(LABELS), "states"]) == {"joy": "done", "fear": "failed", "grief": "done"}
    assert errors(config, out) == {"fear.states": "<b>no memory</b>; buy some"}
    assert "&lt;b&gt;no memory" in (out / "report.html").read_text()
    monkeypatch.setattr(work, "KINDS", {**work.KINDS, "states": states})
    assert sweep(config, out, told=quiet).loc["fear", "states"] == "failed"
    assert sweep(config, out, retry=True, told=quiet).loc["fear", "states"] == "done"
    assert errors(config, out) == {}


def test_a_changed_input_makes_its_cells_anew_and_no_others(values, tmp_path):
    config, out = SweepConfig.from_dict(values | {"cells": ["states"]}), tmp_path / "out"
    sweep(config, out, told=quiet)
    model = tiny_gpt2(9)
    folder = Path(values["given"]["fear"])
    save(model, folder / "tuned", word_tokenizer())
    CheckpointPair.write(folder, {k: v for k, v in CheckpointPair.load(folder).manifest.items() if k != "files"})
    states = status(config, out)
    assert states.loc["fear", "pair"] == "waiting" and states.loc["joy", "states"] == "done"
    assert (sweep(config, out, told=quiet).loc[list(LABELS), "states"] == "done").all()


@pytest.mark.slow
def test_processes_give_the_same_cells(values, tmp_path):
    config = SweepConfig.from_dict(values | {"cells": ["states", "comparison"]})
    for name, jobs in (("one", 1), ("two", 2)):
        sweep(config, tmp_path / name, jobs=jobs, told=quiet)
    for name in ("emotions.csv", "likeness-activations.csv", "likeness-weights.csv"):
        assert len({(tmp_path / out / "tables" / name).read_bytes() for out in ("one", "two")}) == 1, name


@pytest.mark.slow
def test_ray_gives_the_same_cells(values, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed (the extra 'ray')")
    config = SweepConfig.from_dict(values | {"cells": ["states", "comparison"]})
    sweep(config, tmp_path / "one", told=quiet)
    sweep(config, tmp_path / "ray", engine="ray", jobs=2, told=quiet)
    for name in ("emotions.csv", "likeness-activations.csv", "likeness-weights.csv"):
        assert len({(tmp_path / out / "tables" / name).read_bytes() for out in ("one", "ray")}) == 1, name


def test_engines_that_are_not_there(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtra, match="extra 'ray'"):
        engine("ray", 2)
    with pytest.raises(InterpError, match="an engine is local or ray, not 'slurm'"):
        engine("slurm", 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"emotoins": []}, "unknown key emotoins; did you mean emotions"),
        ({"emotions": ["joy", "joy"]}, "names 'joy' twice, so two cells would have one name"),
        ({"emotions": ["a b", "a.b"], "given": {}}, "'a.b' and 'a b' would have one name"),
        ({"emotions": ["joy", "joy-seed1"], "second_seeds": ["joy"], "given": {}}, "would have one name"),
        ({"emotions": []}, "emotions is empty"),
        ({"second_seeds": ["anger"]}, "second_seeds names 'anger', which is not among emotions"),
        ({"cells": ["comparison", "poems"]}, "cells must be .* not 'poems'"),
        ({"cells": ["circuit"]}, "needs circuit_prompts"),
        ({"samples": 9}, "even"),
        ({"gate": 2.0}, "gate must be"),
    ],
    ids=["key", "twice", "folders", "seed", "none", "second", "cells", "circuit", "odd", "gate"],
)
def test_bad_files(values, change, message):
    with pytest.raises(ConfigError, match=message):
        SweepConfig.from_dict(values | change)


def test_check_resolves_and_computes_nothing(values, tmp_path):
    config = SweepConfig.from_dict(values)
    assert check(config, tmp_path / "out")["pairs"] == "3, 3 of them given"
    assert not (tmp_path / "out").exists()
    strange = values | {"emotions": [*LABELS, "hunger"], "given": values["given"] | {"hunger": values["given"]["joy"]}}
    with pytest.raises(InterpError, match="no label 'hunger'; it has joy, fear, grief"):
        check(SweepConfig.from_dict(strange), tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(InterpError, match="holds other files"):
        sweep(config, tmp_path / "mine", told=quiet)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"


def test_the_keys_of_cells():
    cell = Cell("a", "states", "joy", {"x": 1}, {"where": "here"})
    assert cell.key == Cell("b", "states", "fear", {"x": 1}, {"where": "there"}).key
    assert cell.key != Cell("a", "states", "joy", {"x": 2}).key != Cell("a", "labels", "joy", {"x": 2}).key


def test_a_damaged_record_counts_as_none(tmp_path):
    store, cell = Store(tmp_path), Cell("a", "states", "joy", {"x": 1})
    store.finish(cell, lambda folder: (folder / "x.txt").write_text("1"), 0.0)
    assert store.state(cell) == "done"
    (tmp_path / "cells" / "a" / "cell.json").write_text("{")
    assert store.state(cell) == "waiting"
    store.finish(cell, lambda folder: (folder / "x.txt").write_text("2"), 0.0)
    assert store.state(cell) == "done" and (tmp_path / "cells" / "a" / "x.txt").read_text() == "2"


def test_gates(tmp_path):
    table = gates(str(reward_model(tmp_path / "r")), (*LABELS, "hunger"), 0.7)
    assert dict(table["passes"]) == {"joy": True, "fear": True, "grief": False, "hunger": False}
    assert not gates(str(tmp_path), LABELS, 0.7)["passes"].any()
