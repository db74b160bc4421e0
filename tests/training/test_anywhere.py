"""The command in any folder: recipes by name, paths relative to a recipe, and no file there that is taken for ours."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

from analyses.sweep import SweepConfig
from analyses.sweep.plan import pair_cells
from interp.errors import ConfigError
from interp.io import hash_folder
from interp.pair import CheckpointPair, pair_folder
from training import RewardModelConfig, RLHFConfig, check, train
from training.recipes import HOME, recipe_file, shipped
from training.reward import load_function
from training.run.workshop import unfinished

ROOT = Path(__file__).parents[2]
REWARD = {
    "label": "positive",
    "classifier": {"files": {"negative": "texts/neg.txt", "positive": "texts/pos.txt"}, "batch_size": 8},
}


def environment(**more):
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "0", **more}


def run(folder, *arguments, module="interp", **more):
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], cwd=folder, env=environment(**more),
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip


@pytest.fixture
def written(tmp_path):
    """A recipe with paths relative to its own file, in a folder of its own beside the working directory."""
    home = tmp_path / "study"
    (home / "texts").mkdir(parents=True)
    values = tiny.recipe(home).to_dict()
    values["model"]["base"], values["prompts"]["files"] = "./base-model", ["prompts.txt"]
    for name, word in (("neg", "bad"), ("pos", "good")):
        lines = [f"the {a} was {word} {b}" for a in ("film", "plot", "cast") for b in tiny.WORDS[4:9]]
        (home / f"texts/{name}.txt").write_text("\n".join(lines))

    def write(**sections):
        from training.config.schema import to_toml

        config = RLHFConfig.from_dict(values | sections)
        (home / "recipe.toml").write_text(to_toml(config, engine="native"))
        return home / "recipe.toml"

    return write


def test_a_shipped_recipe_has_a_name_which_wins_over_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").write_text("nothing = 1\n")
    (tmp_path / "mine").write_text("nothing = 1\n")
    assert recipe_file("demo", "train") == HOME / "demo.toml"
    for path in ("./demo", Path("demo"), "demo.toml", "mine"):
        assert recipe_file(path, "train") == Path(path)
    with pytest.raises(ConfigError, match="no recipe is called 'demmo'; name a TOML file, or one of demo, emotion"):
        RLHFConfig.load("demmo")
    with pytest.raises(ConfigError, match="hh_reward is one for interp train-reward; .* demo, emotion"):
        RLHFConfig.load("hh_reward")
    assert shipped("train-reward") == ["goemotions_reward", "hh_reward"] and shipped("sweep") == ["emotions"]
    assert RewardModelConfig.load("hh_reward").model.backbone == "gpt2"
    sweep = SweepConfig.load("emotions")
    assert sweep.recipe == "emotion" and sweep.circuit_prompts == str(HOME / "emotion_pairs.csv")
    assert sweep.training("joy").reward.model == str(tmp_path / "runs/goemotions")


def test_a_shipped_pair_has_a_name_which_wins_over_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert CheckpointPair.load("demo").manifest["engine"] == "native"
    assert pair_folder("./demo") == pair_folder(Path("demo")) == Path("demo")


def test_paths_are_relative_to_the_recipe_and_those_of_set_to_the_working_directory(written, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.txt").write_text((tmp_path / "study/prompts.txt").read_text())
    recipe = written(reward=REWARD)
    for path in ("study/recipe.toml", recipe):
        config = RLHFConfig.load(path)
        assert config.model.base == str(tmp_path / "study/base-model")
        assert config.prompts.files == (str(tmp_path / "study/prompts.txt"),)
        assert config.reward.classifier.files["negative"] == str(tmp_path / "study/texts/neg.txt")
    assert check(config)["reward.classifier"].startswith("30 texts")
    changed = RLHFConfig.load(recipe, {"prompts.files": '["other.txt"]', "model.tokenizer": "gpt2"})
    assert changed.prompts.files == (str(tmp_path / "other.txt"),)
    assert changed.model.tokenizer == "gpt2", "no folder here, so a hub id"
    kept = RLHFConfig.load(recipe, {"prompts.files": '["${SOME}/a", "~/b", "${PWD}/c"]'})
    assert kept.prompts.files == ("${SOME}/a", "~/b", f"{tmp_path}/c")


def test_a_links_folder_is_left_by_its_own_way_up(tmp_path):
    (tmp_path / "far/inside").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far/inside")
    tiny.recipe(tmp_path).save(tmp_path / "recipe.toml")
    text = (tmp_path / "recipe.toml").read_text().replace(str(tmp_path / "prompts.txt"), "link/../prompts.txt")
    (tmp_path / "recipe.toml").write_text(text)
    assert RLHFConfig.load(tmp_path / "recipe.toml").prompts.files == (str(tmp_path / "far/prompts.txt"),)


def test_a_rewards_module_beside_the_recipe_is_its_own(written, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = written(reward={"function": "rewards_of_the_study:share"})
    assert RLHFConfig.load(recipe).reward.function == "rewards_of_the_study:share", "nothing there: it is installed"
    (tmp_path / "study/rewards_of_the_study.py").write_text("def share(samples, prompts, outputs):\n    return [7.0]\n")
    name = RLHFConfig.load(recipe).reward.function
    assert name == f"{tmp_path}/study/rewards_of_the_study:share"
    assert load_function(name)([], [], []) == [7.0]


def test_a_sweeps_cells_do_not_depend_on_where_the_files_lie(written, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = "".join(f"text {i}\t0\n" for i in range(50))
    keys = []
    for folder in ("one", "two"):
        home = tmp_path / folder
        home.mkdir()
        tiny.recipe(home, reward={"model": "reward", "label": "joy"}).save(home / "recipe.toml")
        (home / "reward").mkdir()
        (home / "texts.tsv").write_text(texts)
        file = home / "sweep.toml"
        file.write_text(
            'emotions = ["joy"]\nrecipe = "recipe.toml"\ntexts = "texts.tsv"\nreward = "./reward"\n'
            'overrides = { "model.tokenizer" = "./base-model" }\n'
        )
        config = SweepConfig.load(file)
        assert config.training("joy").model.tokenizer == str(home / "base-model")
        (cell,) = pair_cells(config, home / "sweep")
        keys.append(cell.key)
        assert cell.how["recipe"]["reward"]["model"] == str(home / "reward")
    assert keys[0] == keys[1]


def test_without_its_data_a_shipped_recipe_says_in_one_sentence_what_is_missing(monkeypatch):
    monkeypatch.delenv("INTERP_DATA", raising=False)
    with pytest.raises(
        ConfigError, match="no part of the package, .* export INTERP_DATA=FOLDER, the folder that holds"
    ):
        check(RLHFConfig.load("stories3M_positive"))


@pytest.fixture
def foreign(tmp_path):
    """A folder with files that are called as our packages are."""
    folder = tmp_path / "foreign"
    (folder / "analyses").mkdir(parents=True)
    for file in ("training.py", "analyses/__init__.py"):
        (folder / file).write_text("raise SystemExit('a file of the working directory')\n")
    return folder


@pytest.mark.parametrize("module", ["interp", "interp.cli", "analyses.emotions"])
def test_a_file_called_training_is_not_taken_for_ours(foreign, module):
    arguments = ["train", "demo", "--check"]
    if module == "analyses.emotions":  # which is ours where the folder is not the first on the path
        done = subprocess.run(
            [sys.executable, "-P", "-m", module, "emotions", "--check", "--set", "reward=./gone"], cwd=foreign,
            env=environment(PYTHONPATH=f"{ROOT}{os.pathsep}{foreign}", INTERP_DATA="/nowhere"), capture_output=True,
            text=True,
        )  # fmt: skip
        assert done.returncode == 2 and "the reward model" in done.stderr, done.stderr
        return
    done = run(foreign, *arguments, module=module)
    assert done.returncode == 0 and "the recipe is sound" in done.stdout, done.stderr


def test_the_command_and_what_it_spawns_take_ours(foreign):
    (foreign / "where_is.py").write_text(
        "def where():\n    import analyses.sweep.cells as cells\n    return cells.__file__\n"
    )
    (foreign / "command.py").write_text(
        "import multiprocessing\n"
        "from interp.cli import _ours_before_others\n"
        "from where_is import where\n"
        "if __name__ == '__main__':\n"
        "    _ours_before_others()\n"
        "    import training\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(training.__file__, pool.apply(where))\n"
    )
    done = subprocess.run(
        [sys.executable, "command.py"], cwd=foreign, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == [str(ROOT / "training/__init__.py"), str(ROOT / "analyses/sweep/cells.py")], done


@pytest.mark.slow
def test_accelerate_launches_ours(foreign, tmp_path):
    pytest.importorskip("accelerate")
    done = run(
        foreign, "--num_processes=1", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "-m",
        "interp.cli", "train", "demo", "--check", module="accelerate.commands.launch",
    )  # fmt: skip
    assert done.returncode == 0 and "the recipe is sound" in done.stdout, done.stderr


def stopped_while_the_reward_trains(recipe, out, number):
    """Run the command on a recipe, and end it with a signal as soon as its reward model trains."""
    command = [sys.executable, "-m", "interp", "train", str(recipe), "--out", str(out)]
    child = subprocess.Popen(command, cwd=recipe.parent, env=environment(), stderr=subprocess.PIPE, text=True)
    seen = ""
    while "classifier" not in seen:
        line = child.stderr.readline()
        assert line, seen
        seen += line
    time.sleep(0.3)
    child.send_signal(number)
    rest = child.communicate(timeout=120)[1]
    return child.returncode, rest


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_run_that_is_stopped_while_its_reward_trains_goes_on(written, tmp_path, number):
    reward = REWARD | {"classifier": REWARD["classifier"] | {"epochs": 300, "heldout": 0.2}}
    recipe, out = written(reward=reward), tmp_path / "runs/pair"
    code, said = stopped_while_the_reward_trains(recipe, out, number)
    assert code == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}[number]
    assert (f"go on with: interp train --resume {out}" in said) == (number != signal.SIGKILL)
    assert (unfinished(out) / "config.toml").is_file() and not (unfinished(out) / "reward/card.json").is_file()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = run(elsewhere, "train", "--resume", "../runs/pair")
    assert done.returncode == 0, done.stderr
    done = run(elsewhere, "train", recipe, "--out", "../whole")
    assert done.returncode == 0, done.stderr
    assert hash_folder(out) == hash_folder(tmp_path / "whole")


def test_a_fault_while_it_is_resumed_does_not_take_the_run_away(written, tmp_path):
    recipe, out = written(), tmp_path / "pair"
    unfinished(out).mkdir()
    RLHFConfig.load(recipe).save(unfinished(out) / "config.toml")
    with pytest.raises(ConfigError, match="no reward"):
        train(None, out, resume=True)
    assert (unfinished(out) / "config.toml").is_file()
    assert train(None, out, resume=True, reward=tiny.share_of_good).manifest["final"]["steps"] == 4
    with pytest.raises(ConfigError, match="no reward"):
        train(RLHFConfig.load(recipe), tmp_path / "new")
    assert not unfinished(tmp_path / "new").exists()
