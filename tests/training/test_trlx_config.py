"""Recipes from trlX's config and back; what needs trlX itself skips where it is not installed."""

import copy
import importlib.util
from pathlib import Path

import peft
import pytest
import yaml

from interp.errors import ConfigError
from training import RLHFConfig, from_trlx, to_trlx
from training.config import PromptsConfig
from training.config.trlx import BOOKKEEPING
from training.trlx import compat

RECIPES = Path(__file__).parents[2] / "training/recipes"
needs_trlx = pytest.mark.skipif(
    importlib.util.find_spec("trlx") is None, reason=f"trlX is not installed ({compat.COMMAND})"
)


def causal():
    """Every key that PPO uses, none at its default where another value will do."""
    return {
        "method": {
            "name": "PPOConfig",
            "num_rollouts": 48,
            "chunk_size": 12,
            "ppo_epochs": 3,
            "init_kl_coef": 0.02,
            "target": 5.0,
            "horizon": 900,
            "gamma": 0.9,
            "lam": 0.8,
            "cliprange": 0.1,
            "cliprange_value": 0.3,
            "vf_coef": 0.7,
            "scale_reward": "ref",
            "ref_mean": 0.2,
            "ref_std": 0.4,
            "cliprange_reward": 7.0,
            "gen_kwargs": {"max_new_tokens": 9, "top_k": 5, "top_p": 0.9, "temperature": 0.7, "do_sample": True},
            "gen_experience_kwargs": None,
            "num_value_layers_unfrozen": 0,
        },
        "model": {
            "model_path": "some/model",
            "model_arch_type": "causal",
            "num_layers_unfrozen": 2,
            "peft_config": None,
            "model_extra_configs": {},
        },
        "tokenizer": {
            "tokenizer_path": "another",
            "padding_side": "left",
            "truncation_side": "right",
            "tokenizer_extra_configs": {},
        },
        "optimizer": {
            "name": "adamw",
            "kwargs": {"lr": 2e-5, "betas": [0.8, 0.95], "eps": 1e-7, "weight_decay": 1e-3},
        },
        "scheduler": {"name": "cosine_annealing", "kwargs": {"T_max": 10**12, "eta_min": 1e-5}},
        "train": {
            "total_steps": 700,
            "seq_length": 64,
            "epochs": 20,
            "batch_size": 24,
            "checkpoint_interval": 50,
            "eval_interval": 10,
            "pipeline": "PromptPipeline",
            "trainer": "AcceleratePPOTrainer",
            "trainer_kwargs": {},
            "rollout_logging_dir": None,
            "resume_from_checkpoint": None,
            "save_optimizer": False,
            "tracker": "tensorboard",
            "seed": 17,
            "minibatch_size": 6,
        },
    }


def seq2seq():
    values = causal()
    values["model"] |= {
        "model_arch_type": "seq2seq",
        "num_layers_unfrozen": -1,
        "peft_config": {"peft_type": "LORA", "r": 4, "lora_alpha": 32.0, "lora_dropout": 0.1, "target_modules": ["q"]},
    }
    values["tokenizer"]["padding_side"] = "right"
    values["method"]["gen_kwargs"]["eos_token_id"] = -1
    values["scheduler"] = {"name": "linear", "kwargs": {"start_factor": 1.0, "end_factor": 0.5, "total_iters": 70}}
    values["train"]["tracker"] = None
    return values


@pytest.mark.parametrize("make", [causal, seq2seq])
def test_there_and_back(make):
    given = make()
    kept = copy.deepcopy(given)
    recipe = from_trlx(given)
    assert to_trlx(recipe) == given == kept
    assert recipe.train.engine == "trlx" and recipe.prompts == PromptsConfig(words=0)
    assert from_trlx(to_trlx(recipe)) == recipe
    assert RLHFConfig.from_dict(recipe.to_dict()) == recipe


def test_field_by_field():
    recipe = from_trlx(causal(), prompts={"files": ["a.txt"], "words": 4}, reward={"function": "package.module:name"})
    assert recipe.ppo.num_rollouts == 48 and recipe.ppo.target == 5.0 and recipe.ppo.ref_std == 0.4
    assert recipe.model.base == "some/model" and recipe.model.tokenizer == "another"
    assert recipe.generate.max_new_tokens == 9 and recipe.generate.temperature == 0.7 and not recipe.generate.ignore_end
    train = recipe.train
    assert (train.learning_rate, train.beta1, train.beta2, train.eps, train.weight_decay) == (
        2e-5,
        0.8,
        0.95,
        1e-7,
        1e-3,
    )
    assert (train.scheduler, train.scheduler_steps, train.eta_min) == ("cosine", 10**12, 1e-5)
    assert (train.total_steps, train.epochs, train.seq_length, train.seed) == (700, 20, 64, 17)
    assert recipe.prompts.words == 4 and recipe.reward.function == "package.module:name"
    other = from_trlx(seq2seq())
    assert other.generate.ignore_end and other.model.lora.alpha == 32 and other.model.lora.target_modules == ("q",)
    assert (other.train.scheduler, other.train.eta_min, other.train.scheduler_steps) == ("linear", 1e-5, 70)


def test_what_is_left_out_has_trlx_s_and_its_libraries_defaults():
    given = causal()
    for section, names in {
        "optimizer": ("kwargs",),
        "train": ("seed", "tracker"),
        "model": ("model_arch_type",),
    }.items():
        for name in names:
            del given[section][name]
    del given["method"]["gen_kwargs"]["top_k"]
    recipe = from_trlx(given)
    assert recipe.train.learning_rate == 1e-3 and recipe.train.weight_decay == 0.01  # torch's AdamW
    assert (
        recipe.train.seed == 1000 and recipe.train.trackers == ("wandb",) and recipe.model.model_arch_type == "causal"
    )
    assert recipe.generate.top_k == 50  # Hugging Face's generate


def test_a_constant_course_and_no_limits_come_back():
    values = from_trlx(causal()).to_dict()
    values["train"] |= {"scheduler": "constant", "eta_min": 0.0, "scheduler_steps": 0, "epochs": 0, "seq_length": 0}
    values["train"] |= {"checkpoint_interval": 0, "eval_interval": 0}
    recipe = RLHFConfig.from_dict(values)
    assert from_trlx(to_trlx(recipe)) == recipe


def test_everything_without_counterpart_is_named_at_once():
    given = causal()
    given["method"] |= {"num_value_layers_unfrozen": 2, "surprise": 1}
    given["method"]["gen_kwargs"]["repetition_penalty"] = 1.2
    given["tokenizer"] |= {"padding_side": "right", "truncation_side": "left"}
    given["train"]["rollout_logging_dir"] = "logs"
    with pytest.raises(ConfigError) as error:
        from_trlx(given)
    for name in (
        *("num_value_layers_unfrozen = 2", "surprise = 1", "repetition_penalty = 1.2", "truncation_side = 'left'"),
        *("padding_side = 'right' of a causal model", "rollout_logging_dir = 'logs'"),
    ):
        assert name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("method", {"name": "ILQLConfig"}, "made of trlX's PPOConfig, not of 'ILQLConfig'"),
        ("scheduler", {"name": "linear", "kwargs": {}}, "scheduler 'linear' with {} has no counterpart"),
        ("optimizer", {"name": "adam_8bit_bnb"}, "train.optimizer must be adam or adamw"),
        ("model", {"peft_config": {"peft_type": "PREFIX_TUNING"}}, "a recipe knows LORA only"),
        ("model", {"peft_config": {"peft_type": "LORA", "use_dora": True}}, "cannot say: use_dora"),
    ],
)
def test_what_a_recipe_cannot_say(section, change, message):
    given = causal()
    given[section] |= change
    with pytest.raises(ConfigError, match=message):
        from_trlx(given)


def test_what_trlx_cannot_do():
    native = from_trlx(causal()).to_dict()
    for section, change, message in [
        ("train", {"trackers": ["wandb", "tensorboard"]}, "any train.trackers but one"),
        ("model", {"revision": "main"}, "neither model.revision"),
    ]:
        values = copy.deepcopy(native)
        values[section] |= change
        with pytest.raises(ConfigError, match=message):
            to_trlx(RLHFConfig.from_dict(values))
    values = {"model": {"base": "x"}, "prompts": {"files": ["x"]}, "train": {"value_learning_rate": 1e-3}, "ppo": {}}
    with pytest.raises(ConfigError, match="value_learning_rate is not used by the engine trlx"):
        to_trlx(RLHFConfig.from_dict(values))


def test_files_and_objects(tmp_path):
    file = tmp_path / "config.yml"
    file.write_text(yaml.safe_dump(causal()))
    assert from_trlx(file) == from_trlx(str(file)) == from_trlx(causal())
    file.write_text("a: [")
    with pytest.raises(ConfigError, match="is not YAML"):
        from_trlx(file)
    with pytest.raises(ConfigError, match="cannot read trlX's config"):
        from_trlx(tmp_path / "absent.yml")
    given = causal()
    given["model"]["peft_config"] = peft.LoraConfig(r=4, lora_alpha=32, target_modules=["b", "a"])
    lora = from_trlx(given).model.lora
    assert (lora.r, lora.alpha, lora.dropout, lora.target_modules) == (4, 32.0, 0.0, ("a", "b"))


def flat(values, prefix=""):
    found = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return found


@needs_trlx
def test_trlx_s_own_default_and_its_own_object():
    kind = compat.load().config
    from trlx.data.default_configs import default_ppo_config

    given = default_ppo_config()
    back = kind.from_dict(to_trlx(from_trlx(given)))
    before, after = flat(given.to_dict()), flat(back.to_dict())
    differing = {key for key in {*before, *after} if before.get(key) != after.get(key)} - set(BOOKKEEPING)
    # "ignored" is no scaling, and a temperature that is left out is 1.
    assert differing == {"method.scale_reward", "method.gen_kwargs.temperature"}
    assert from_trlx(back) == from_trlx(given)


def test_the_recipe_of_the_study_is_trlx_s_default_but_for_its_length():
    recipe = RLHFConfig.load(RECIPES / "gpt2_imdb_negative.toml")
    settings = to_trlx(recipe)
    assert settings["optimizer"] == {
        "name": "adamw",
        "kwargs": {"lr": 3e-5, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 1e-6},
    }
    assert settings["scheduler"]["kwargs"]["eta_min"] == 3e-5 and settings["train"]["total_steps"] == 400
    assert settings["method"]["init_kl_coef"] == 0.001 and settings["model"]["num_layers_unfrozen"] == 2


@needs_trlx
@pytest.mark.parametrize("name", ["flan_t5_joy", "gpt2_imdb_negative"])
def test_recipes_for_trlx_are_configs_that_it_reads(name):
    settings = to_trlx(RLHFConfig.load(RECIPES / f"{name}.toml"))
    read = compat.load().config.from_dict(copy.deepcopy(settings)).to_dict()
    assert {key: read[section][key] for section in settings for key in settings[section]} == {
        key: value for section in settings.values() for key, value in section.items()
    }
