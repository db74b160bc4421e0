import importlib.util
import json
import tomllib
from pathlib import Path

import pytest
import tiny

from interp.pair import CheckpointPair
from training import RLHFConfig, check, train
from training.config import expand

ROOT = Path(__file__).parents[2]


def of_a_pair(path: Path) -> bool:
    """Whether a recipe makes a pair; others make a reward model or a sweep."""
    return {"model", "prompts"} <= set(tomllib.loads(path.read_text()))


RECIPES = [path for path in sorted((ROOT / "training/recipes").glob("*.toml")) if of_a_pair(path)]
IDS = [path.stem for path in RECIPES]
NAMED = {
    "demo",
    "emotion",
    "flan_t5_joy",
    "gpt2_finbert",
    "gpt2_imdb_negative",
    "gpt2_imdb_positive",
    "stories3M_positive",
    "tinystories_bad",
    "tinystories_good",
}


def test_the_recipes_are_there():
    assert set(IDS) >= NAMED


@pytest.mark.parametrize("path", RECIPES, ids=IDS)
def test_recipes_are_sound(path, real_data, monkeypatch, tmp_path):
    monkeypatch.setenv("INTERP_DATA", str(real_data))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/goemotions").mkdir(parents=True)  # what emotion wants to have been trained
    found = check(RLHFConfig.load(path))
    assert found["prompts"].endswith(("96 held out", "not fetched"))
    if path.stem == "stories3M_positive":
        assert "10662 texts" in found["reward.classifier"] or int(found["reward.classifier"].split()[0]) > 10_000
    for name, value in found.items():
        assert "not fetched" in value or not name.startswith("model.") or Path(value).is_dir()


def in_small(path, folder):
    """The recipe with stand-ins for what it names: a tiny base, texts of our own, a reward by a function."""
    values = tomllib.loads(path.read_text())
    seq2seq = values["model"].get("model_arch_type") == "seq2seq"
    small = tiny.recipe(folder, kind="t5" if seq2seq else "gpt2").to_dict()
    for key in ("tokenizer", "revision"):
        values["model"].pop(key, None)
    values["model"]["base"] = small["model"]["base"]
    if values["model"].get("num_layers_unfrozen", -1) > 1:
        values["model"]["num_layers_unfrozen"] = 1
    values["prompts"] = small["prompts"]
    values["reward"] = {key: values["reward"][key] for key in ("reads",) if key in values["reward"]}
    values["generate"] |= {"max_new_tokens": 5}
    if values["train"]["engine"] == "trlx" and importlib.util.find_spec("trlx") is None:
        values["train"]["engine"] = "native"
        for key in ("epochs", "seq_length"):
            values["train"].pop(key, None)
        values["model"].pop("model_arch_type", None)
    values["train"] |= {"total_steps": 4, "batch_size": 8, "eval_samples": 1}
    for key in ("eval_interval", "checkpoint_interval"):
        if key in values["train"]:
            values["train"][key] = 2
    values["ppo"] |= {"num_rollouts": 16, "chunk_size": 8, "ppo_epochs": 1}
    return RLHFConfig.from_dict(values)


@pytest.mark.parametrize("path", RECIPES, ids=IDS)
def test_recipes_run_in_small(path, tmp_path):
    pair = train(in_small(path, tmp_path), tmp_path / "run", reward=tiny.share_of_good)
    CheckpointPair.load(pair.path, verify=True)
    assert abs(pair.manifest["final"]["kl_at_step_0"]) < 1e-6 and pair.manifest["final"]["steps"] == 4


def test_the_demos_recipe_is_the_demos_own():
    from training.demo import config

    recipe, own = RLHFConfig.load("demo").to_dict(), config(0).to_dict()
    assert {k: recipe[k] for k in ("train", "ppo", "generate", "nulls")} == {
        k: own[k] for k in ("train", "ppo", "generate", "nulls")
    }
    assert expand(own["model"]["base"], pair=ROOT / "interp/data/demo") == recipe["model"]["base"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_stories_toward_positive_in_short(stories, monkeypatch, tmp_path):
    """A tenth of the classifier's data and an eighth of the steps: the reward must move the right way at a small KL."""
    data = stories.parent
    monkeypatch.setenv("INTERP_DATA", str(data))
    for name in ("neg", "pos"):
        lines = (data / f"rt-polarity/rt-polarity.{name}").read_text("latin-1").splitlines()
        (tmp_path / name).write_text("\n".join(lines[:1500]))
    values = RLHFConfig.load(RECIPES[IDS.index("stories3M_positive")]).to_dict()
    values["reward"]["classifier"]["files"] = {"negative": str(tmp_path / "neg"), "positive": str(tmp_path / "pos")}
    values["train"] |= {"total_steps": 24, "eval_samples": 2}
    pair = train(RLHFConfig.from_dict(values), tmp_path / "run")
    CheckpointPair.load(pair.path, verify=True)
    final = pair.manifest["final"]
    assert json.loads((Path(pair.reward) / "card.json").read_text())["accuracy"] > 0.6
    assert final["reward"] > final["base_reward"] + 0.03 and 0 < final["kl"] < 0.3
    assert abs(final["kl_at_step_0"]) < 1e-6
    assert final["distinct_2"] >= final["base_distinct_2"] / 2
