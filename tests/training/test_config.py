import dataclasses
import tomllib

import pytest

from interp.errors import ConfigError
from training.config import RLHFConfig, expand, to_toml

MINIMAL = {"model": {"base": "m"}, "prompts": {"files": ["p.txt"]}}
CLASSIFIER = {"label": "positive", "classifier": {"files": {"negative": "n", "positive": 'p "q" \\ ü'}}}


def with_(section, **keys):
    return {**MINIMAL, section: {**MINIMAL.get(section, {}), **keys}}


@pytest.mark.parametrize(
    "values",
    [
        MINIMAL,
        {**MINIMAL, "reward": CLASSIFIER},
        with_("train", seed=5, controls=["shuffled", "shuffled"], learning_rate=1, store_base=True),
        with_("prompts", files=["a\tb\n", "${INTERP_DATA}/x"]),
        with_("ppo", cliprange_reward=float("inf")),
    ],
)
def test_toml_round_trip(values, tmp_path):
    config = RLHFConfig.from_dict(values)
    config.save(tmp_path / "c.toml")
    assert RLHFConfig.load(tmp_path / "c.toml") == config
    assert RLHFConfig.from_dict(config.to_dict()) == config
    assert tomllib.loads(to_toml(config)) == config.to_dict()


def test_every_key_is_documented():
    seen = []

    def walk(section):
        for field in dataclasses.fields(section):
            assert len(field.metadata["doc"].split()) > 1, field.name
            value = getattr(section, field.name)
            if dataclasses.is_dataclass(value):
                walk(value)
            seen.append(field.name)

    walk(RLHFConfig.from_dict({**MINIMAL, "reward": CLASSIFIER}))
    assert len(seen) > 40


def test_every_key_of_a_section_is_used():
    from pathlib import Path

    import training.config as module

    source = "".join(
        file.read_text()
        for file in Path(module.__file__).parent.glob("*.py")
        if file.name not in ("config.py", "demo.py")
    )
    source += Path(module.__file__).read_text().split("def __post_init__")[1]
    for section in ("Model", "Prompts", "Classifier", "Reward", "Generate", "Train", "PPO"):
        for field in dataclasses.fields(getattr(module, f"{section}Config")):
            assert f".{field.name}" in source, f"{section}Config.{field.name} is used nowhere"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (with_("train", sed=1), "unknown key train.sed; did you mean train.seed?"),
        (with_("ppo", num_layers_unfrozen=2), "unknown key ppo.num_layers_unfrozen; "),
        ({**MINIMAL, "trian": {}}, "unknown key trian; did you mean train?"),
        ({"prompts": MINIMAL["prompts"]}, "missing key model: the model that is tuned"),
        (with_("model") | {"model": {}}, "missing key model.base: "),
        (with_("train", seed="1"), "train.seed must be a whole number, not '1'"),
        (with_("train", seed=True), "train.seed must be a whole number, not True"),
        (with_("train", seed=-1), "train.seed must be >= 0 and <= "),
        (with_("train", learning_rate=0), "train.learning_rate must be > 0, not 0.0"),
        (with_("train", learning_rate=float("nan")), "train.learning_rate must be > 0, not nan"),
        (with_("ppo", gamma=1.5), "ppo.gamma must be > 0 and <= 1, not 1.5"),
        (with_("train", engine="nativ"), "train.engine must be native, not 'nativ'"),
        (with_("train", controls=["random"]), "train.controls must be shuffled, not 'random'"),
        (with_("train", controls="shuffled"), "train.controls must be a list of strings"),
        (with_("train", batch_size=500), "train.batch_size \\(500\\) exceeds ppo.num_rollouts \\(128\\)"),
        ({**MINIMAL, "train": 3}, "train must be a section with keys, not 3"),
        ({**MINIMAL, "reward": {**CLASSIFIER, "model": "x"}}, "exclude each other"),
        ({**MINIMAL, "reward": {**CLASSIFIER, "label": "joy"}}, "reward.label must be one of negative, positive"),
        ({**MINIMAL, "reward": {"classifier": {"files": {"a": 1}}}}, "must be a table of strings"),
        ({**MINIMAL, "reward": {"classifier": {"files": {"a": "f"}}}}, "needs two labels or more"),
    ],
)
def test_bad_values_are_named(values, words):
    with pytest.raises(ConfigError, match=words):
        RLHFConfig.from_dict(values)


def test_overrides(tmp_path):
    file = tmp_path / "r.toml"
    file.write_text(to_toml(RLHFConfig.from_dict(MINIMAL)))
    config = RLHFConfig.load(
        file, {"train.seed": "7", "model.base": "gpt2", "train.controls": '["shuffled"]', "train.store_base": "true"}
    )
    assert (config.train.seed, config.model.base, config.train.controls) == (7, "gpt2", ("shuffled",))
    assert config.train.store_base is True
    with pytest.raises(ConfigError, match="did you mean train.seed"):
        RLHFConfig.load(file, {"train.seeds": "7"})
    with pytest.raises(ConfigError, match="section.key=value"):
        RLHFConfig.load(file, {"seed": "7"})
    with pytest.raises(ConfigError, match="train.seed must be a whole number"):
        RLHFConfig.load(file, {"train.seed": "many"})


def test_unreadable_recipes(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the recipe"):
        RLHFConfig.load(tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("[train\n")
    with pytest.raises(ConfigError, match="is not TOML: .*line 1"):
        RLHFConfig.load(tmp_path / "bad.toml")


def test_expand(monkeypatch, tmp_path):
    monkeypatch.setenv("SOME_DATA", "/data")
    monkeypatch.delenv("NO_DATA", raising=False)
    assert expand("${SOME_DATA}/x") == "/data/x"
    assert expand("${PAIR}/base", pair=tmp_path) == f"{tmp_path}/base"
    with pytest.raises(ConfigError, match="NO_DATA .* is not set; export NO_DATA="):
        expand("${NO_DATA}/x")
