import json

import pytest
import tiny
import torch
from safetensors.torch import load_file

pytest.importorskip("trl", reason="TRL is not installed (the extra 'trl')")

from interp.errors import ConfigError, TrainingError
from interp.pair import CheckpointPair
from training import RLHFConfig, train
from training.trl.settings import arguments, as_pair, preference_rows

pytestmark = pytest.mark.filterwarnings(
    # TRL, torch and PEFT about options among themselves, in their own modules
    "ignore::FutureWarning",
    "ignore::UserWarning",
    "ignore::DeprecationWarning",
)


def recipe(folder, algorithm, **changes):
    values = tiny.recipe(folder).to_dict()
    values = {name: values[name] for name in ("model", "prompts", "reward")}
    values["generate"] = {"max_new_tokens": 6}
    values["train"] = {"engine": "trl", "total_steps": 12, "batch_size": 16, "learning_rate": 5e-3, "eval_samples": 4}
    if algorithm == "dpo":
        pairs = folder / "pairs.jsonl"
        rows = [{"chosen": f"the film was {w} good", "rejected": f"the film was {w} bad"} for w in tiny.WORDS[4:]]
        pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
        values["dpo"] = {"files": [str(pairs)]}
    else:
        values[algorithm] = {"num_generations": 4}
    for section, keys in changes.items():
        values[section] = values.get(section, {}) | keys
    return RLHFConfig.from_dict(values)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["grpo", "rloo", "dpo"])
def test_a_pair_by_each_algorithm(tmp_path, algorithm, capfd):
    config = recipe(tmp_path, algorithm, nulls={"shuffled": 1}, train={"timings": False})
    made = train(config, tmp_path / "run", reward=tiny.share_of_good)
    CheckpointPair.load(made.path, verify=True)
    final = made.manifest["final"]
    assert final["kl_at_step_0"] == 0 and final["kl"] > 1e-4
    assert final["reward"] > final["base_reward"]
    rows = [json.loads(line) for line in (made.path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(12))
    wanted = {"accuracy", "margin"} if algorithm == "dpo" else {"reward_mean", "kl", "entropy", "distinct_2", "length"}
    assert wanted <= set(rows[0])
    if algorithm != "dpo":
        assert rows[0]["kl"] == 0 and rows[-1]["kl"] > 1e-5
    assert not (made.path / "tuned/trl").exists() and "loss" not in capfd.readouterr().out
    control = load_file(f"{made.controls[0]}/model.safetensors")
    assert any(
        not torch.equal(value, control[name]) for name, value in load_file(f"{made.tuned}/model.safetensors").items()
    )


@pytest.mark.slow
def test_an_adapter(tmp_path):
    config = recipe(tmp_path, "grpo", model={"lora": {"r": 2}}, train={"total_steps": 3})
    made = train(config, tmp_path / "run", reward=tiny.share_of_good)
    assert made.manifest["tuned"] == {"path": "tuned", "adapter": True}
    assert (made.path / "tuned/adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_it_stops_at_a_kl_limit_and_passes_on_a_bad_reward(tmp_path):
    with pytest.raises(TrainingError, match="diverged: KL .* exceeds train.kl_limit"):
        train(recipe(tmp_path, "grpo", train={"kl_limit": 1e-6}), tmp_path / "a", reward=tiny.share_of_good)
    with pytest.raises(TrainingError, match="must return 16 numbers"):
        train(
            recipe(tmp_path, "rloo"),
            tmp_path / "b",
            reward=lambda samples, **_: [1.0] * (len(samples) - (len(samples) == 16)),
        )
    assert [path.name for path in tmp_path.glob("*.unfinished")] == ["a.unfinished"], "the figures of what was trained"
    assert (tmp_path / "a.unfinished/metrics.jsonl").stat().st_size and not (tmp_path / "b").exists()


def test_settings_that_do_not_fit(tmp_path):
    for changes, words in (
        ({"train": {"batch_size": 10}}, "must be a multiple of grpo.num_generations .4.: the responses"),
        ({"train": {"minibatch_size": 3}}, "must be a multiple of train.minibatch_size .3. here"),
        ({"train": {"weight_decay": 0.1}}, "no Adam with weight decay"),
        ({"train": {"scheduler": "linear", "eta_min": 1e-6}}, "decays linearly to 0 only"),
    ):
        with pytest.raises(ConfigError, match=words):
            arguments(recipe(tmp_path, "grpo", **changes), tmp_path)
    found = arguments(recipe(tmp_path, "grpo", train={"minibatch_size": 4, "scheduler": "cosine"}), tmp_path)
    assert (found["per_device_train_batch_size"], found["gradient_accumulation_steps"]) == (4, 4)
    assert found["beta"] == 0.05 and found["max_completion_length"] == 6 and found["lr_scheduler_type"] == "cosine"


def test_pairs_share_their_beginning():
    row = as_pair("\n\nHuman: hi\n\nAssistant: yes sir", "\n\nHuman: hi\n\nAssistant: yesterday")
    assert row == {"prompt": "\n\nHuman: hi\n\nAssistant:", "chosen": " yes sir", "rejected": " yesterday"}
    assert as_pair("a", "b") == {"prompt": "", "chosen": "a", "rejected": "b"}


def test_preferences_are_read_and_swapped(tmp_path):
    config = recipe(tmp_path, "dpo").dpo
    rows, again = preference_rows(config, None), preference_rows(config, 7)
    swapped = sum(a["chosen"] == b["rejected"] and a["prompt"] == b["prompt"] for a, b in zip(rows, again, strict=True))
    assert swapped == len(rows) // 2 and all(row["prompt"].startswith("the film was") for row in rows)
    (tmp_path / "bad.jsonl").write_text('{"chosen": "a", "rejected": 3}\n')
    with pytest.raises(ConfigError, match="must be texts"):
        preference_rows(type(config)(files=(str(tmp_path / "bad.jsonl"),)), None)
    with pytest.raises(ConfigError, match="missing key dpo.files"):
        preference_rows(type(config)(), None)
