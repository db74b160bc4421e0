"""A recipe from trlX's own config, and the other way round. TrlX need not be installed for either.

Most fields have the same name on both sides. These do not, or need a word:

- trlX takes prompts and reward as arguments of `trlx.train`, not from its config; here they are sections.
- `scale_reward`: trlX reads every word but "running" and "ref" as none, such as its default "ignored".
- `gen_kwargs.eos_token_id = -1`, by which trlX's T5 example has every response run to its full length, is
  `generate.ignore_end`; a `top_k` that is left out is Hugging Face's 50.
- trlX's scheduler "linear" is torch's LinearLR: a constant one is `start_factor = end_factor = 1`.
- On which side prompts are padded decides no result where it works at all; here it is not a setting.
- A long prompt is cut by trlX and refused here, so `truncation_side` must be "right", its default.
- Where trlX writes and what it calls its runs (`checkpoint_dir`, `project_name` ..., `save_best`, `save_optimizer`) has
  no counterpart: a run here has a folder, and saves what it must.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interp.errors import ConfigError
from interp.io import os_reason
from training.config.recipe import RLHFConfig
from training.config.schema import plain
from training.config.sections import LoraConfig

NEVER = 10**9
"""Written for trlX where 0 means never, or no limit: it knows no such number."""

UNNAMED_PROMPTS: Mapping[str, Any] = {"words": 0}
"""Prompts of a config that came without: whole texts, which are passed to `training.train` as they were to trlX."""

_DIRECT = {
    **{
        f"method.{name}": f"ppo.{name}"
        for name in (
            *("num_rollouts", "chunk_size", "ppo_epochs", "init_kl_coef", "target", "horizon", "gamma", "lam"),
            *("cliprange", "cliprange_value", "vf_coef", "ref_mean", "ref_std", "cliprange_reward"),
        )
    },
    **{f"method.gen_kwargs.{n}": f"generate.{n}" for n in ("max_new_tokens", "temperature", "top_k", "top_p")},
    "model.model_path": "model.base",
    "model.model_arch_type": "model.model_arch_type",
    "model.num_layers_unfrozen": "model.num_layers_unfrozen",
    "tokenizer.tokenizer_path": "model.tokenizer",
    "optimizer.name": "train.optimizer",
    "optimizer.kwargs.lr": "train.learning_rate",
    "optimizer.kwargs.eps": "train.eps",
    "optimizer.kwargs.weight_decay": "train.weight_decay",
    **{
        f"train.{name}": f"train.{name}"
        for name in (
            *("total_steps", "epochs", "seq_length", "batch_size", "minibatch_size", "seed"),
            *("checkpoint_interval", "eval_interval"),
        )
    },
}
_NEVER = ("train.epochs", "train.seq_length", "train.checkpoint_interval", "train.eval_interval")
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "method.num_value_layers_unfrozen": (0,),
    "method.gen_experience_kwargs": (None,),
    "method.gen_kwargs.do_sample": (True,),
    "method.gen_kwargs.eos_token_id": (-1,),
    "model.model_extra_configs": ({},),
    "tokenizer.truncation_side": ("right",),
    "tokenizer.tokenizer_extra_configs": ({},),
    "train.pipeline": ("PromptPipeline",),
    "train.trainer": ("AcceleratePPOTrainer",),
    "train.trainer_kwargs": ({},),
    "train.rollout_logging_dir": (None,),
    "train.resume_from_checkpoint": (None,),
    "train.tracker": (None, "wandb", "tensorboard"),
}
"""What trlX can be told and a recipe cannot, with the values that a recipe's run amounts to."""

BOOKKEEPING = tuple(
    f"train.{name}"
    for name in (
        *("project_name", "run_name", "entity_name", "group_name", "tags"),
        *("checkpoint_dir", "logging_dir", "save_best", "save_optimizer"),
    )
)
"""What trlX's config says of names and folders."""

_ELSEWHERE = ("method.name", "method.scale_reward", "model.peft_config", "tokenizer.padding_side", "scheduler.name")
_DEFAULTS: Mapping[str, Any] = {
    "model.model_arch_type": "causal",
    "model.num_layers_unfrozen": -1,
    "method.gen_kwargs.top_k": 50,
    "optimizer.kwargs.lr": 1e-3,
    "optimizer.kwargs.betas": (0.9, 0.999),
    "train.tracker": "wandb",
    "train.seed": 1000,
}
_ADAPTER = {"r": "r", "lora_alpha": "alpha", "lora_dropout": "dropout", "target_modules": "target_modules"}


def from_trlx(
    config: Any, *, prompts: Mapping[str, Any] | None = None, reward: Mapping[str, Any] | None = None
) -> RLHFConfig:
    """A recipe for the engine trlx that does what trlX does with `config`.

    Args:
        config: a TRLConfig with a PPOConfig, the same as nested dictionaries, or the path of its YAML file.
        prompts: the recipe's section `prompts`; None is `UNNAMED_PROMPTS`.
        reward: the recipe's section `reward`; None leaves it to `training.train(..., reward=)`.

    Raises:
        ConfigError: the file cannot be read, it is no PPO's, or something in it has no counterpart; all that has none
            is named.
    """
    given = _flat(_dictionary(config))
    name = given.get("method.name")
    if not isinstance(name, str) or name.lower() != "ppoconfig":
        raise ConfigError(f"a recipe can be made of trlX's PPOConfig, not of {name!r}; train that with trlX itself")
    found = {**_DEFAULTS, **given}
    known = {*_DIRECT, *_FIXED, *BOOKKEEPING, *_ELSEWHERE, *_schedule_keys(found), "optimizer.kwargs.betas"}
    foreign = [f"{key} = {value!r}" for key, value in given.items() if key not in known]
    foreign += [f"{k} = {found[k]!r}" for k, allowed in _FIXED.items() if k in found and found[k] not in allowed]
    if found["model.model_arch_type"] == "causal" and found.get("tokenizer.padding_side", "left") != "left":
        foreign.append("tokenizer.padding_side = 'right' of a causal model")
    if foreign:
        raise ConfigError(f"trlX's config has what a recipe cannot say: {', '.join(foreign)}; change or remove it")
    values: dict[str, Any] = {"prompts": dict(prompts or UNNAMED_PROMPTS), "reward": dict(reward or {})}
    for theirs, ours in _DIRECT.items():
        if found.get(theirs) is not None:
            unlimited = theirs in _NEVER and found[theirs] == NEVER
            _put(values, ours, 0 if unlimited else found[theirs])
    return RLHFConfig.from_dict(_joined(values, _particular(found)))


def _particular(found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The keys whose values are said in another way."""
    first, second = found["optimizer.kwargs.betas"]
    tracker = found["train.tracker"]
    train = {"engine": "trlx", "beta1": first, "beta2": second, "trackers": [tracker] if tracker else []}
    if "optimizer.kwargs.weight_decay" not in found:
        train["weight_decay"] = 0.01 if found.get("optimizer.name") == "adamw" else 0.0
    scale = found.get("method.scale_reward")
    model: dict[str, Any] = {}
    if found.get("tokenizer.tokenizer_path") == found.get("model.model_path"):
        model["tokenizer"] = None
    adapter = _adapter(found.get("model.peft_config"))
    if adapter is not None:
        model |= {"lora": adapter, "num_layers_unfrozen": -1}  # trlX ignores it beside an adapter
    return {
        "train": train | _schedule(found),
        "ppo": {"scale_reward": scale if scale in ("running", "ref") else "none"},
        "generate": {"ignore_end": found.get("method.gen_kwargs.eos_token_id") == -1},
        "model": model,
    }


def _schedule_keys(found: Mapping[str, Any]) -> tuple[str, ...]:
    names = {"cosine_annealing": ("T_max", "eta_min"), "linear": ("start_factor", "end_factor", "total_iters")}
    return tuple(f"scheduler.kwargs.{name}" for name in names.get(found.get("scheduler.name", ""), ()))


def _schedule(found: Mapping[str, Any]) -> dict[str, Any]:
    """The course of the learning rate: CosineAnnealingLR and LinearLR of torch, with torch's defaults."""
    name, rate = found.get("scheduler.name"), found["optimizer.kwargs.lr"]
    options = {key.rsplit(".", 1)[1]: value for key, value in found.items() if key.startswith("scheduler.kwargs.")}
    if name == "cosine_annealing" and "T_max" in options:
        return {"scheduler": "cosine", "eta_min": options.get("eta_min", 0.0), **_steps(options["T_max"], found)}
    first, last = options.get("start_factor", 1 / 3), options.get("end_factor", 1.0)
    if name == "linear" and first == last == 1:
        return {"scheduler": "constant"}
    if name == "linear" and first == 1:
        return {"scheduler": "linear", "eta_min": last * rate, **_steps(options.get("total_iters", 5), found)}
    raise ConfigError(
        f"trlX's scheduler {name!r} with {options} has no counterpart; use cosine_annealing with T_max, or linear with "
        "start_factor = 1"
    )


def _steps(count: float | int, found: Mapping[str, Any]) -> dict[str, int]:
    return {"scheduler_steps": 0 if count == found.get("train.total_steps") else int(count)}


def _adapter(config: Any) -> dict[str, Any] | None:
    """The section `model.lora` of a PEFT config, an object or a mapping.

    Raises:
        ConfigError: it is no LoRA, or says more of it than a recipe can.
    """
    if config is None:
        return None
    if isinstance(config, Mapping):
        values = dict(config)
    else:
        usual = type(config)().to_dict()
        values = {key: value for key, value in config.to_dict().items() if value != usual.get(key)}
        values["peft_type"] = config.peft_type
    kind = values.pop("peft_type", "LORA")
    values.pop("task_type", None)  # says what the base's own config says
    if str(getattr(kind, "value", kind)) != "LORA":
        raise ConfigError(f"model.peft_config is {kind}, a recipe knows LORA only; use that")
    foreign = sorted(set(values) - set(_ADAPTER))
    if foreign or isinstance(values.get("target_modules"), str):
        raise ConfigError(f"model.peft_config has what a recipe cannot say: {', '.join(foreign or ['target_modules'])}")
    values = {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0, **values}  # PEFT's defaults
    found = {_ADAPTER[key]: value for key, value in values.items() if value is not None}
    return found | ({"target_modules": sorted(found["target_modules"])} if "target_modules" in found else {})


def to_trlx(config: RLHFConfig) -> dict[str, Any]:
    """A recipe with PPO as trlX's config: `trlx.data.configs.TRLConfig.from_dict` takes it.

    Prompts and reward are arguments of `trlx.train` there.

    Raises:
        ConfigError: it is no PPO's, or has what trlX cannot do.
    """
    ppo = config.ppo
    if ppo is None:
        raise ConfigError(f"trlX's config is made of a recipe with ppo, not with {config.algorithm}")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, engine="trlx"))
    train, model = config.train, config.model
    if model.revision is not None or len(train.trackers) > 1 or "trackio" in train.trackers:
        raise ConfigError("trlX knows neither model.revision nor any train.trackers but one of wandb and tensorboard")
    flat = _flat(plain(config))
    settings: dict[str, Any] = {}
    for theirs, ours in _DIRECT.items():
        value = flat.get(ours)
        _put(settings, theirs, NEVER if theirs in _NEVER and value == 0 else value)
    settings["method"] |= {
        "name": "PPOConfig",
        "scale_reward": None if ppo.scale_reward == "none" else ppo.scale_reward,
        "gen_experience_kwargs": None,
        "num_value_layers_unfrozen": 0,
    }
    settings["method"]["gen_kwargs"] |= {"do_sample": True} | (
        {"eos_token_id": -1} if config.generate.ignore_end else {}
    )
    settings["model"] |= {"model_arch_type": model.model_arch_type or "causal", "model_extra_configs": {}}
    settings["model"]["peft_config"] = _peft_config(model.lora)
    settings["tokenizer"] = {
        "tokenizer_path": model.tokenizer or model.base,
        "padding_side": "right" if model.model_arch_type == "seq2seq" else "left",
        "truncation_side": "right",
        "tokenizer_extra_configs": {},
    }
    settings["optimizer"]["kwargs"]["betas"] = [train.beta1, train.beta2]
    settings["scheduler"] = _scheduler(config)
    settings["train"] |= {
        "minibatch_size": train.minibatch_size or None,
        "tracker": train.trackers[0] if train.trackers else None,
        "pipeline": "PromptPipeline",
        "trainer": "AcceleratePPOTrainer",
        "trainer_kwargs": {},
        "rollout_logging_dir": None,
        "resume_from_checkpoint": None,
        "save_optimizer": False,  # trlX's default fails on tied weights
    }
    return settings


def _peft_config(lora: LoraConfig | None) -> dict[str, Any] | None:
    if lora is None:
        return None
    found = {"peft_type": "LORA"} | {theirs: getattr(lora, ours) for theirs, ours in _ADAPTER.items()}
    modules = list(found.pop("target_modules"))
    return found | ({"target_modules": modules} if modules else {})


def _scheduler(config: RLHFConfig) -> dict[str, Any]:
    train = config.train
    steps = train.scheduler_steps or train.total_steps
    if train.scheduler == "cosine":
        return {"name": "cosine_annealing", "kwargs": {"T_max": steps, "eta_min": train.eta_min}}
    last, count = (1.0, 1) if train.scheduler == "constant" else (train.eta_min / train.learning_rate, steps)
    return {"name": "linear", "kwargs": {"start_factor": 1.0, "end_factor": last, "total_iters": count}}


def _dictionary(config: Any) -> Mapping[str, Any]:
    """TrlX's config as nested mappings."""
    if isinstance(config, (str, os.PathLike)):
        import yaml  # type: ignore[import-untyped]

        try:
            config = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read trlX's config {config}: {os_reason(error)}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"trlX's config is not YAML: {error}; correct that line") from error
    if hasattr(config, "to_dict"):
        config = config.to_dict()
    if not isinstance(config, Mapping):
        raise ConfigError(f"trlX's config is a TRLConfig, nested dictionaries or a YAML file, not {config!r}")
    return config


_WHOLE = ("peft_config", "model_extra_configs", "tokenizer_extra_configs", "trainer_kwargs", "gen_experience_kwargs")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, by dotted key."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and key not in _WHOLE:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[name] = value


def _joined(values: dict[str, Any], more: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The sections of both, without what is None."""
    sections = {name: {**values.get(name, {}), **more.get(name, {})} for name in {**values, **more}}
    return {name: {k: v for k, v in section.items() if v is not None} for name, section in sections.items()}
