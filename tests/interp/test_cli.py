"""The command line, as a hurried user meets it."""

import sys

import pytest
import torch

import interp
from interp.cli import main
from tests.conftest import save, tiny_gpt2
from tests.interp.test_matched import other_ids


@pytest.fixture
def shell(monkeypatch, capsys, tmp_path, as_a_user):
    """Run `interp ARGS` in an empty folder; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["interp", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "tuned", "null")):
        save(tiny_gpt2(seed), folder / name, tokenizer)
    save(tiny_gpt2(), folder / "other_words", other_ids(tokenizer))
    save(tiny_gpt2(), folder / "pickled", tokenizer)
    state = tiny_gpt2().state_dict()
    (folder / "pickled" / "model.safetensors").unlink()
    torch.save({k: v for k, v in state.items() if k != "lm_head.weight"}, folder / "pickled" / "pytorch_model.bin")
    save(tiny_gpt2(), folder / "cut", tokenizer)
    weights = folder / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-500])
    save(tiny_gpt2(), folder / "empty", tokenizer)
    (folder / "empty" / "model.safetensors").unlink()
    return folder


ASK = ("--prompt", "this movie was really", "--answer", " bad", "--against", " good")


def test_compare_and_report(shell, models, tmp_path):
    code, out, err = shell(
        "compare", models / "base", models / "tuned", *ASK, "--control", models / "null", "--out", "out"
    )
    assert (code, err) == (0, "")
    assert "' bad' - ' good': tuned minus base" in out and "  control  " in out and "wrote out/report.html" in out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["report.html", "result.nc", "summary.csv"]
    page = (tmp_path / "out" / "report.html").read_bytes()
    (tmp_path / "out" / "report.html").unlink()
    code, out, _ = shell("report", "out")
    assert (code, out) == (0, "wrote out/report.html\n")
    assert (tmp_path / "out" / "report.html").read_bytes() == page
    loaded = interp.Comparison.load(tmp_path / "out")
    assert loaded["logit_diff"].shape == (1, 2) and len(loaded.controls) == 1


def test_prompts_from_a_file_and_chosen_measures(shell, models, tmp_path):
    (tmp_path / "prompts.txt").write_text("this movie was\n\nthe plot was\n")
    arguments = ("--prompts", "prompts.txt", "--measure", "kl", "--measure", "weights", "--out", "out")
    assert shell("compare", models / "base", models / "tuned", *arguments)[0] == 0
    loaded = interp.Comparison.load(tmp_path / "out")
    assert loaded.dataset.sizes["prompt"] == 2 and "attribution" not in loaded.dataset


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{m}/nowhere", "{m}/tuned", *ASK), "there is no folder"),
        (("{m}/base", "{m}/empty", *ASK), "no weights; copy model.safetensors into it"),
        (("{m}/base", "{m}/cut", *ASK), "cut off or damaged"),
        (("{m}/base", "{m}/pickled", *ASK), "--allow-pickle"),
        (("{m}/base", "{m}/other_words", *ASK), "need one vocabulary"),
        (("{m}/base", "{m}/tuned", "--prompt", "a", "--answer", " terrible", "--against", " good"), "(' ', 't', 'e"),
        (
            ("{m}/base", "{m}/tuned", "--prompt", "a", "--answer", " terrible", "--against", " good"),
            'multi_token="first"',
        ),
        (("{m}/base", "{m}/tuned", "--prompt", "a", "--answer", " bad"), "--answer and --against go together"),
        (("{m}/base", "{m}/tuned"), "there are no prompts"),
        (("{m}/base", "{m}/tuned", "--prompt", " "), "prompt 0 is empty"),
        (("{m}/base", "{m}/tuned", "--prompts", "absent.txt"), "cannot read prompts from absent.txt"),
        (("{m}/base", "{m}/tuned", *ASK, "--measure", "synapses"), "unknown measure 'synapses'; choose among"),
        (("{m}/base", "{m}/tuned", *ASK, "--dtype", "int3"), "dtype is float32, bfloat16, float16 or float64"),
        (("{m}/base", "{m}/tuned", *ASK, "--device", "abacus"), "there is no device 'abacus'"),
        (("{m}/base", "{m}/tuned", *ASK, "--reward", "{m}/base"), "not a classifier"),
    ],
)
def test_bad_input_is_one_line_with_the_remedy_and_leaves_nothing(shell, models, tmp_path, arguments, message):
    code, out, err = shell("compare", *(a.replace("{m}", str(models)) for a in arguments), "--out", "out")
    assert code == 2
    assert message in err and err.startswith("interp: ") and err.count("\n") == 1
    assert out == ""
    assert [p.name for p in tmp_path.iterdir()] == []


def test_pickles_are_read_when_asked_for(shell, models):
    code, _, _ = shell("compare", models / "base", models / "pickled", *ASK, "--allow-pickle", "--out", "out")
    assert code == 0


def test_nobodys_folder_is_overwritten(shell, models, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "a.tex").write_text("years")
    code, _, err = shell("compare", models / "base", models / "tuned", *ASK, "--out", "thesis", "--overwrite")
    assert code == 2 and "holds other files" in err
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["a.tex"]
    code, _, err = shell("demo", "--out", "thesis")
    assert code == 2 and "holds other files" in err


@pytest.mark.parametrize(
    ("folder", "words"), [("nowhere", "there is no folder 'nowhere'"), (".", "holds no result.nc")]
)
def test_report_of_nothing(shell, folder, words):
    code, _, err = shell("report", folder)
    assert code == 2 and words in err and err.count("\n") == 1


def test_an_interrupted_save_leaves_nothing(shell, models, tmp_path, monkeypatch):
    import interp.comparison
    from interp.result import result

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setitem(result._PAGES, interp.comparison.Comparison.kind, stop)
    code, _, _ = shell("compare", models / "base", models / "tuned", *ASK, "--out", "out")
    assert code == 130
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_command(shell):
    code, out, _ = shell("--help")
    assert code == 0 and all(name in out for name in ("compare", "report", "demo", "train"))
    code, out, _ = shell("--version")
    assert out.startswith("rlhf-interp ")


def test_train_refuses_a_bad_recipe(shell, tmp_path):
    code, _, err = shell("train", "absent.toml", "--out", "run")
    assert code == 2 and "absent.toml" in err and err.count("\n") == 1
    (tmp_path / "r.toml").write_text("[model]\npth = 1\n")
    code, _, err = shell("train", "r.toml", "--out", "run")
    assert code == 2 and "pth" in err and err.count("\n") == 1
    code, _, err = shell("train", "r.toml", "--out", "run", "--set", "seed")
    assert code == 2 and "section.key=value" in err
    assert not (tmp_path / "run").exists()


def test_a_pair_by_name_gives_its_reward_model(shell):
    code, out, _ = shell("score", "demo", "a dull film")
    assert code == 0 and "negative" in out and "positive" in out
    code, out, _ = shell("reward", "demo", "a dull film", "--label", "negative")
    assert code == 0 and "dull" in out
