"""A recipe as TRL's arguments, and its preference pairs as TRL's rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from interp.errors import ConfigError
from training.config import DPOConfig, RLHFConfig, expand
from training.seeding import permutation
from training.tables import read_columns


def arguments(config: RLHFConfig, folder: Path) -> dict[str, Any]:
    """The keyword arguments of GRPOConfig, RLOOConfig or DPOConfig.

    Raises:
        ConfigError: settings do not fit together.
    """
    train, generate = config.train, config.generate
    size = train.minibatch_size or train.batch_size
    if train.batch_size % size:
        raise ConfigError(
            f"train.batch_size ({train.batch_size}) must be a multiple of train.minibatch_size ({size}) here"
        )
    common = {
        "output_dir": str(folder),
        "max_steps": train.total_steps,
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": train.batch_size // size,
        "learning_rate": train.learning_rate,
        **_optimizer(config),
        "max_grad_norm": train.max_grad_norm,
        "seed": train.seed % 2**32,
        "bf16": train.dtype == "bfloat16",
        "use_cpu": not torch.cuda.is_available(),
        "disable_dropout": True,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    if config.dpo is not None:
        dpo = config.dpo
        return common | {"beta": dpo.beta, "loss_type": [dpo.loss_type], "label_smoothing": dpo.label_smoothing}
    own = config.grpo if config.grpo is not None else config.rloo
    assert own is not None
    if train.batch_size % own.num_generations:
        raise ConfigError(
            f"train.batch_size ({train.batch_size}) must be a multiple of {config.algorithm}.num_generations "
            f"({own.num_generations}): the responses to a prompt belong to one step"
        )
    return (
        common
        | dataclasses.asdict(own)
        | {
            "max_completion_length": generate.max_new_tokens,
            "temperature": generate.temperature,
            "top_k": generate.top_k,
            "top_p": generate.top_p,
        }
    )


def _optimizer(config: RLHFConfig) -> dict[str, Any]:
    """Optimiser and course of the learning rate."""
    train = config.train
    if train.optimizer == "adam" and train.weight_decay:
        raise ConfigError("the engine trl has no Adam with weight decay; set train.optimizer to adamw")
    chosen: dict[str, Any] = {"lr_scheduler_type": train.scheduler}
    if train.eta_min and train.scheduler == "cosine":
        chosen = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": train.eta_min}}
    elif train.eta_min and train.scheduler == "linear":
        raise ConfigError("the engine trl decays linearly to 0 only; leave train.eta_min out or take cosine")
    return chosen | {
        "optim": "adamw_torch",
        "adam_beta1": train.beta1,
        "adam_beta2": train.beta2,
        "adam_epsilon": train.eps,
        "weight_decay": train.weight_decay,
    }


def preference_rows(config: DPOConfig, shuffle: int | None) -> list[dict[str, str]]:
    """Prompt, chosen and rejected of every pair; a seed in `shuffle` swaps a random half of them (a null run).

    Of whole texts without a prompt, as in the hh-rlhf files, the prompt is the beginning that the two share, up to the
    last line or word that is whole.

    Raises:
        ConfigError: there is no file, one cannot be read, or a pair is missing a text.
    """
    if not config.files:
        raise ConfigError("missing key dpo.files: the preference pairs; add it")
    rows = []
    for file in config.files:
        for chosen, rejected in read_columns(Path(expand(file)), ["chosen", "rejected"], keys=["chosen", "rejected"]):
            if not isinstance(chosen, str) or not isinstance(rejected, str):
                raise ConfigError(f"{file}: chosen and rejected must be texts; correct the pair {chosen!r}")
            if chosen.strip() and rejected.strip() and chosen != rejected:
                rows.append(as_pair(chosen, rejected))
    if not rows:
        raise ConfigError("dpo.files hold no pair of two different texts; name other files")
    if shuffle is not None:
        for index in permutation(len(rows), shuffle)[: len(rows) // 2]:
            row = rows[index]
            rows[index] = {"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]}
    return rows


def as_pair(chosen: str, rejected: str) -> dict[str, str]:
    """One pair with the beginning that both share as the prompt, cut before a white space of both."""
    shared = 0
    for first, second in zip(chosen, rejected, strict=False):
        if first != second:
            break
        shared += 1
    while shared and not (chosen[shared : shared + 1].isspace() and rejected[shared : shared + 1].isspace()):
        shared -= 1
    return {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}
