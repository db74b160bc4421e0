"""RLHFConfig: everything that decides a training run, in frozen sections, as TOML on disk.

Paths may name environment variables as `${NAME}`. They are kept as written, so that a stored config can be used on
another machine, and expanded where they are used (`expand`); `${PAIR}` is the folder of the pair itself. Relative paths
are relative to the working directory.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interp.errors import ConfigError
from interp.io import os_reason, write_text

_REQUIRED = object()


def setting(
    default: Any,
    doc: str,
    *,
    low: float | int | None = None,
    high: float | int | None = None,
    above: float | int | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A field of a section with its meaning (unit included) and the range it must lie in.

    Args:
        default: its value where the file does not say; `_REQUIRED` makes the key compulsory.
        doc: what it means, with its unit.
        low: smallest value allowed.
        high: largest value allowed.
        above: the value must exceed this.
        choices: the values allowed (of each item, where the field is a list).
    """
    metadata = {"doc": doc, "low": low, "high": high, "above": above, "choices": choices}
    return field(metadata=metadata) if default is _REQUIRED else field(default=default, metadata=metadata)


@dataclass(frozen=True)
class ModelConfig:
    """The model that is tuned."""

    base: str = setting(_REQUIRED, "folder or hub id of the causal language model to start from")
    revision: str | None = setting(None, "branch, tag or commit of a hub id")


@dataclass(frozen=True)
class PromptsConfig:
    """Where prompts come from: the first words of texts."""

    files: tuple[str, ...] = setting(_REQUIRED, "text, .csv or .tsv files (UTF-8, else Latin-1), read in this order")
    column: str | None = setting(None, "column of .csv and .tsv files that holds the texts: a name, or a number from 0")
    unit: str = setting("line", "what one text is in a text file", choices=("line", "sentence"))
    words: int = setting(4, "words kept of each text, split at white space; 0 keeps all of it", low=0)
    train: int = setting(0, "most prompts to train on; 0 takes all that are not held out", low=0)
    heldout: int = setting(64, "prompts held out for the evaluation, never trained on", low=1)


@dataclass(frozen=True)
class ClassifierConfig:
    """A sequence classifier to be trained as the reward model."""

    files: Mapping[str, str] = setting(_REQUIRED, "text file of each label, one text a line, by label name")
    init: str | None = setting(None, "causal language model whose backbone it starts from; default model.base")
    epochs: int = setting(3, "passes over the training texts", low=1)
    batch_size: int = setting(32, "texts in a step", low=1)
    learning_rate: float = setting(3e-4, "peak learning rate of AdamW; linear warm-up over 10 %, linear decay", above=0)
    weight_decay: float = setting(0.01, "decoupled weight decay of AdamW", low=0)
    max_length: int = setting(64, "tokens kept of each text", low=2)
    heldout: float = setting(0.1, "fraction of the texts held out for the accuracy in card.json", above=0, high=0.5)


@dataclass(frozen=True)
class RewardConfig:
    """What is rewarded: a stored reward model, one trained first (`classifier`), or neither for a Python callable."""

    model: str | None = setting(None, "folder or hub id of a sequence classifier")
    revision: str | None = setting(None, "branch, tag or commit of a hub id")
    label: str | None = setting(None, "the label that is rewarded; may be left out of a model with one output")
    output: str = setting("probability", "what of the label is the reward", choices=("probability", "logit"))
    batch_size: int = setting(64, "texts scored at a time", low=1)
    classifier: ClassifierConfig | None = setting(None, "train this classifier first and use it")


@dataclass(frozen=True)
class GenerateConfig:
    """How responses are sampled, in rollouts and in the evaluation."""

    max_new_tokens: int = setting(24, "most tokens in a response, the end token included", low=1)
    temperature: float = setting(1.0, "divides the logits; PPO assumes 1", above=0)
    top_k: int = setting(0, "keep the k likeliest tokens; 0 keeps all, as PPO assumes", low=0)
    top_p: float = setting(1.0, "keep the likeliest tokens up to this probability; 1 keeps all", above=0, high=1)


@dataclass(frozen=True)
class TrainConfig:
    """The run: engine, seed, length, optimiser and what is written."""

    engine: str = setting("native", "what trains", choices=("native",))
    seed: int = setting(0, "seed of prompts, sampling, minibatches and initial values", low=0, high=2**63 - 1)
    total_steps: int = setting(800, "optimiser steps", low=1)
    batch_size: int = setting(32, "rollouts in an optimiser step", low=1)
    learning_rate: float = setting(1e-4, "learning rate of Adam, constant", above=0)
    value_learning_rate: float | None = setting(
        None, "learning rate of the value head, which starts from nothing; default learning_rate", above=0
    )
    max_grad_norm: float = setting(1.0, "the gradient is scaled down to this 2-norm", above=0)
    eval_samples: int = setting(4, "samples of each held-out prompt in the evaluation", low=1)
    controls: tuple[str, ...] = setting(
        (), "null runs, one an entry; the n-th of a kind differs in its seed", choices=("shuffled",)
    )
    store_base: bool = setting(False, "keep a copy of the base model in the pair's folder")
    store_reward: bool = setting(False, "keep a copy of the reward model in the pair's folder")
    timings: bool = setting(True, "write samples/s to metrics.jsonl; without it two runs give the same bytes")


@dataclass(frozen=True)
class PPOConfig:
    """Proximal policy optimisation; the names are trlX's."""

    num_rollouts: int = setting(128, "samples drawn before each round of optimiser steps", low=1)
    chunk_size: int = setting(128, "samples drawn and scored at a time (memory only: no result depends on it)", low=1)
    ppo_epochs: int = setting(4, "passes over the rollouts in each round", low=1)
    init_kl_coef: float = setting(0.05, "weight of the per-token KL penalty to the base, reward per nat", low=0)
    gamma: float = setting(1.0, "discount per token", above=0, high=1)
    lam: float = setting(0.95, "lambda of generalised advantage estimation", low=0, high=1)
    cliprange: float = setting(0.2, "clip range of the probability ratio", above=0)
    cliprange_value: float = setting(0.2, "clip range of the value head's change", above=0)
    vf_coef: float = setting(1.0, "weight of the value loss", low=0)
    scale_reward: str = setting(
        "none",
        "divide scores by a standard deviation: of all scores so far (running) or of the first round (ref)",
        choices=("none", "running", "ref"),
    )
    cliprange_reward: float = setting(10.0, "scores are clipped to plus or minus this, after scaling", above=0)


@dataclass(frozen=True)
class RLHFConfig:
    """One training run. `load` reads it from TOML, `save` writes it back; both check every key and range."""

    model: ModelConfig = setting(_REQUIRED, "the model that is tuned")
    prompts: PromptsConfig = setting(_REQUIRED, "where prompts come from")
    reward: RewardConfig = setting(RewardConfig(), "what is rewarded")
    generate: GenerateConfig = setting(GenerateConfig(), "how responses are sampled")
    train: TrainConfig = setting(TrainConfig(), "the run")
    ppo: PPOConfig = setting(PPOConfig(), "the algorithm")

    def __post_init__(self) -> None:
        """Check what concerns several keys."""
        if self.reward.model is not None and self.reward.classifier is not None:
            raise ConfigError("reward.model and reward.classifier exclude each other; keep one")
        if self.reward.classifier is not None:
            labels = sorted(self.reward.classifier.files)
            if len(labels) < 2:
                raise ConfigError(f"reward.classifier.files needs two labels or more, {len(labels)} came; add a file")
            if self.reward.label not in labels:
                raise ConfigError(f"reward.label must be one of {', '.join(labels)}, not {self.reward.label!r}")
        if self.train.batch_size > self.ppo.num_rollouts:
            raise ConfigError(
                f"train.batch_size ({self.train.batch_size}) exceeds ppo.num_rollouts ({self.ppo.num_rollouts})"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RLHFConfig:
        """Make a config of nested mappings, as TOML gives them.

        Raises:
            ConfigError: a key is unknown or missing, or a value has the wrong type or lies out of its range.
        """
        return typing.cast(RLHFConfig, _section(cls, values, ""))

    @classmethod
    def load(cls, path: str | os.PathLike[str], overrides: Mapping[str, str] | None = None) -> RLHFConfig:
        """Read a recipe.

        Args:
            path: the TOML file.
            overrides: values by dotted key, such as `{"train.seed": "1"}`; each is read as TOML, or else as a string.

        Raises:
            ConfigError: the file cannot be read or parsed, or `from_dict` refuses its content.
        """
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read the recipe {path}: {os_reason(error)}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not TOML: {error}; correct that line") from error
        for key, text in (overrides or {}).items():
            _override(values, key, text)
        return cls.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries without the keys that are None; `from_dict` reads them back."""
        return typing.cast(dict[str, Any], _plain(self))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the config as TOML, every key with its meaning as a comment."""
        return write_text(path, to_toml(self))


def expand(text: str, *, pair: str | os.PathLike[str] | None = None) -> str:
    """Replace every `${NAME}` by the environment variable, and a leading `~` by the home folder.

    Args:
        text: a path, or a hub id.
        pair: the pair's own folder, which `${PAIR}` stands for.

    Raises:
        ConfigError: a variable is not set.
    """

    def value(match: re.Match[str]) -> str:
        if match[1] == "PAIR" and pair is not None:
            return os.fspath(pair)
        if match[1] not in os.environ:
            raise ConfigError(f"the environment variable {match[1]} in {text!r} is not set; export {match[1]}=...")
        return os.environ[match[1]]

    return os.path.expanduser(re.sub(r"\$\{(\w+)\}", value, text))


def to_toml(config: Any, prefix: str = "") -> str:
    """A section and its subsections as TOML text, every key with its meaning."""
    lines: list[str] = []
    tables: list[str] = []
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if value is None:
            continue
        if dataclasses.is_dataclass(value):
            name = f"{prefix}{f.name}"
            tables.append(f"[{name}]\n{to_toml(value, name + '.')}")
        else:
            lines.append(f"{f.name} = {_toml_value(value)}  # {f.metadata['doc']}\n")
    return "\n".join(filter(None, ["".join(lines), *tables]))


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda m: f"\\u{ord(m[0]):04x}", escaped) + '"'
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_toml_value(str(k))} = {_toml_value(v)}" for k, v in value.items()) + " }"
    return "[" + ", ".join(_toml_value(item) for item in value) + "]"


def _plain(value: Any) -> Any:
    """Dataclasses as dictionaries, tuples as lists: what JSON and TOML know."""
    if dataclasses.is_dataclass(value):
        pairs = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {name: _plain(item) for name, item in pairs if item is not None}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _override(values: dict[str, Any], key: str, text: str) -> None:
    *sections, name = key.split(".")
    if not sections:
        raise ConfigError(f"--set needs section.key=value, not {key}={text}; see the sections of a recipe")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {key}={text}: {section} is no section")
    try:
        values[name] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        values[name] = text  # a bare word: --set train.engine=native without inner quotes


def _section(cls: type, values: Any, where: str) -> Any:
    """A section from a mapping, every key checked."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where.rstrip('.')} must be a section with keys, not {values!r}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            remedy = f"did you mean {where}{near[0]}?" if near else f"the keys are {', '.join(fields)}"
            raise ConfigError(f"unknown key {where}{key}; {remedy}")
    hints = typing.get_type_hints(cls)
    made: dict[str, Any] = {}
    for name, f in fields.items():
        if name in values:
            made[name] = _value(values[name], hints[name], f"{where}{name}")
            _check_range(made[name], f.metadata, f"{where}{name}")
        elif f.default is dataclasses.MISSING:
            raise ConfigError(f"missing key {where}{name}: {f.metadata['doc']}; add it")
    return cls(**made)


def _value(value: Any, hint: Any, where: str) -> Any:
    """`value` as the annotated type, without guessing: only whole numbers become floats."""
    if isinstance(hint, types.UnionType):
        hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    if dataclasses.is_dataclass(hint):
        return _section(typing.cast(type, hint), value, where + ".")
    origin = typing.get_origin(hint)
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
            raise ConfigError(f'{where} must be a list of strings such as ["a", "b"], not {value!r}')
        return tuple(value)
    if origin is not None:
        if not isinstance(value, Mapping) or not all(isinstance(item, str) for item in value.values()):
            raise ConfigError(f'{where} must be a table of strings such as {{ name = "value" }}, not {value!r}')
        return {str(key): item for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        name = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}[hint]
        raise ConfigError(f"{where} must be {name}, not {value!r}")
    return value


def _check_range(value: Any, limits: Mapping[str, Any], where: str) -> None:
    low, high, above, choices = limits["low"], limits["high"], limits["above"], limits["choices"]
    if choices is not None:
        for item in [value] if isinstance(value, str) else value:
            if item not in choices:
                raise ConfigError(f"{where} must be {' or '.join(choices)}, not {item!r}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        within = (low is None or value >= low) and (high is None or value <= high) and (above is None or value > above)
        if not within:  # also where value is NaN
            parts = [
                f"{sign} {limit}" for sign, limit in ((">=", low), (">", above), ("<=", high)) if limit is not None
            ]
            raise ConfigError(f"{where} must be {' and '.join(parts)}, not {value}")
