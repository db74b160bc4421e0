import json
from pathlib import Path

import pytest

from interp.pair import CheckpointPair
from training import RLHFConfig, check, train

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_load(path):
    RLHFConfig.load(path)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_find_their_data(path, real_data, monkeypatch):
    monkeypatch.setenv("INTERP_DATA", str(real_data))
    found = check(RLHFConfig.load(path))
    assert found["prompts"].endswith("96 held out")
    assert "10662 texts" in found["reward.classifier"] or int(found["reward.classifier"].split()[0]) > 10_000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_stories_toward_positive_in_short(stories, monkeypatch, tmp_path):
    """A tenth of the classifier's data and an eighth of the steps: the reward must move the right way at a small KL."""
    data = stories.parent
    monkeypatch.setenv("INTERP_DATA", str(data))
    for name in ("neg", "pos"):
        lines = (data / f"rt-polarity/rt-polarity.{name}").read_text("latin-1").splitlines()
        (tmp_path / name).write_text("\n".join(lines[:1500]))
    values = RLHFConfig.load(RECIPES[[path.stem for path in RECIPES].index("stories3M_positive")]).to_dict()
    values["reward"]["classifier"]["files"] = {"negative": str(tmp_path / "neg"), "positive": str(tmp_path / "pos")}
    values["train"] |= {"total_steps": 24, "eval_samples": 2}
    pair = train(RLHFConfig.from_dict(values), tmp_path / "run")
    CheckpointPair.load(pair.path, verify=True)
    final = pair.manifest["final"]
    assert json.loads((Path(pair.reward) / "card.json").read_text())["accuracy"] > 0.6
    assert final["reward"] > final["base_reward"] + 0.03 and 0 < final["kl"] < 0.3
    assert abs(final["kl_at_step_0"]) < 1e-6
    assert final["distinct_2"] >= final["base_distinct_2"] / 2
