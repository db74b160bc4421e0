"""An installed trlX 0.7.0 beside today's torch and transformers: imported without its other dependencies, never edited.

trlX imports deepspeed, ray and torchtyping at its top and uses none of them for PPO, and a name that peft no longer
has. During its import stand-ins take their places; afterwards whatever was there before is there again. What else
breaks is mended by subclasses (`training.trlx.policy`, `training.trlx.trainer`) and, while a run lasts, by `driven`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from interp.errors import InterpError, MissingExtra, TrainingError

VERSION = "0.7.0"
COMMIT = "3340c2f3a56d1d14fdd5f13ad575121fa26b6d92"
"""The last commit of trlX (January 2024): the tag v0.7.0 is half a year older and has another PPO section."""

COMMAND = f"pip install --no-deps git+https://github.com/CarperAI/trlx.git@{COMMIT}"


class MissingTrlx(MissingExtra):
    """TrlX is not installed; it is in no package index, so no extra brings it."""

    def __init__(self) -> None:
        InterpError.__init__(self, f"the engine trlx needs trlX {VERSION}: {COMMAND}")


@dataclass(frozen=True)
class Trlx:
    """The classes of an installed trlX that the engine builds on.

    Attributes:
        config: TRLConfig.
        trainer: AcceleratePPOTrainer.
        causal: the wrapper of a causal policy with a value head.
        seq2seq: the wrapper of an encoder-decoder policy with a value head.
    """

    config: Any
    trainer: Any
    causal: Any
    seq2seq: Any


def load() -> Trlx:
    """Import trlX.

    Raises:
        MissingTrlx: it is not installed.
        TrainingError: another version is installed, or it does not import.
    """
    if importlib.util.find_spec("trlx") is None:
        raise MissingTrlx
    try:
        version = importlib.metadata.version("trlx")
    except importlib.metadata.PackageNotFoundError:
        version = "of no known version"
    if version != VERSION:
        raise TrainingError(f"the engine trlx drives trlX {VERSION}, installed is trlX {version}: {COMMAND}")
    try:
        with _standing_in():
            configs, ppo, models = (
                importlib.import_module(f"trlx.{name}")
                for name in ("data.configs", "trainer.accelerate_ppo_trainer", "models.modeling_ppo")
            )
            importlib.import_module("trlx")  # registers what TRLConfig.from_dict looks up
    except (ImportError, AttributeError) as error:
        raise TrainingError(
            f"trlX {VERSION} does not import here ({error}); install its last commit: {COMMAND}"
        ) from error
    if "num_value_layers_unfrozen" not in models.PPOConfig.__dataclass_fields__:
        raise TrainingError(f"this trlX {VERSION} is older than its last commit, install that: {COMMAND}")
    return Trlx(
        configs.TRLConfig,
        ppo.AcceleratePPOTrainer,
        models.AutoModelForCausalLMWithValueHead,
        models.AutoModelForSeq2SeqLMWithValueHead,
    )


class _Shape:
    """Stands in for torchtyping's TensorType, which trlX uses in annotations only."""

    def __class_getitem__(cls, item: Any) -> Any:
        return cls


def _stand_ins() -> dict[str, types.ModuleType]:
    contents: dict[str, dict[str, Any]] = {
        "torchtyping": {"TensorType": _Shape},
        "deepspeed": {},
        "ray": {"is_initialized": lambda: False},
        "ray.air": {"session": None},
    }
    made = {}
    for name, content in contents.items():
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(module).update(content)
        made[name] = module
    return made


@contextlib.contextmanager
def _standing_in() -> Iterator[None]:
    """Stand-ins in `sys.modules`, and peft's old name, within the block only."""
    # Imported first: they look for deepspeed too, and must not find the stand-in.
    import accelerate  # noqa: F401
    import peft
    import transformers  # noqa: F401

    made, old = _stand_ins(), "prepare_model_for_int8_training"
    before = {name: sys.modules.get(name) for name in made}
    aliased = not hasattr(peft, old)
    sys.modules.update(made)
    if aliased:
        setattr(peft, old, peft.prepare_model_for_kbit_training)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of code from 2023, about itself
            yield
    finally:
        if aliased:
            delattr(peft, old)
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module


@contextlib.contextmanager
def driven(tokenizer: Any) -> Iterator[None]:
    """Within the block trlX's trainer takes `tokenizer`, asks no git for a tag, and shows neither log nor bars.

    It looks up log-probabilities of its padding too, whose id lies outside the vocabulary here; they are masked
    afterwards, so any token serves.
    """
    base: Any = sys.modules["trlx.trainer.accelerate_base_trainer"]
    ppo: Any = sys.modules["trlx.trainer.accelerate_ppo_trainer"]
    logging: Any = sys.modules["trlx.utils.logging"]
    find = ppo.logprobs_of_labels

    def logprobs_of_labels(logits: Any, labels: Any) -> Any:
        return find(logits, labels.clamp(max=logits.shape[-1] - 1))

    changes = [
        (base, "AutoTokenizer", types.SimpleNamespace(from_pretrained=lambda *names, **options: tokenizer)),
        (base, "get_git_tag", lambda: ("unknown", "unknown")),
        (ppo, "logprobs_of_labels", logprobs_of_labels),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in changes]
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    for module, name, value in changes:
        setattr(module, name, value)
    logging.set_verbosity(logging.ERROR)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
