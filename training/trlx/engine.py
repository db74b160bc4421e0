"""`tune` by trlX."""

from __future__ import annotations

import contextlib
import copy
import os
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import GenerationConfig

from interp.errors import ConfigError
from interp.sampling import plain
from training.config.trlx import NEVER, to_trlx
from training.job import Job, Outcome
from training.native.policy import make_policy
from training.rollouts import ValueHead
from training.seeding import derive
from training.trlx.compat import Trlx, driven, load
from training.trlx.policy import Ids, Policy, Tokenizer
from training.trlx.trainer import Stop, Trainer


def tune(job: Job) -> Outcome:
    """Tune a copy of the job's base by trlX's PPO.

    trlX's own files are not touched, nothing is written to the working directory, and torch's, numpy's and Python's
    global generators, which trlX draws from, are as before afterwards.

    Raises:
        MissingTrlx: trlX is not installed.
        ConfigError: the recipe asks for what trlX cannot do.
        TrainingError: the reward misbehaves or is constant, or the run diverges.
    """
    trlx = load()
    settings = _settings(job)
    ids = Ids.of(job.base, job.sampler)
    _check(job)
    device = next(job.base.parameters()).device
    with _seeds(job.config.train.seed), _accelerate_on(device), driven(Tokenizer(ids)):
        wrapped = _wrapped(trlx, make_policy(job.base, job.config.model, job.config.train.seed), ids)
        kind: Any = type("DrivenTrainer", (Trainer, trlx.trainer), {})
        trainer = kind(trlx.config.from_dict(settings), job=job, ids=ids, policy=wrapped)
        reached = _learn(trainer)
    model: Any = wrapped.base_model
    inner: Any = plain(model)
    inner.generation_config = copy.deepcopy(getattr(job.base, "generation_config", None))
    return Outcome(
        model.requires_grad_(False).eval(),
        trainer.first_kl,
        trainer.iter_count,
        _value_head(wrapped.v_head),
        reached if job.stop_at_kl is not None else None,
    )


def _learn(trainer: Any) -> bool:
    """Run trlX's loop; returns whether the KL to stop at was reached."""
    try:
        trainer.learn()
        trainer.report()
        if trainer.job.stop_at_kl is not None:
            trainer.make_experience(trainer.config.method.num_rollouts, trainer.iter_count)
    except Stop:
        return True
    return False


def _wrapped(trlx: Trlx, policy: nn.Module, ids: Ids) -> Any:
    """The policy in trlX's wrapper, whose `generate` takes nothing from the base's own settings."""
    inner: Any = plain(policy)
    inner.generation_config = GenerationConfig(decoder_start_token_id=ids.start)
    kind: Any = type("DrivenPolicy", (Policy, trlx.causal if ids.start is None else trlx.seq2seq), {})
    return kind(policy).eval()


def _settings(job: Job) -> Mapping[str, Any]:
    """The recipe as trlX's config, with everything that writes or shows something switched off."""
    config = job.config
    settings = to_trlx(config)
    arch, said = "causal" if job.sampler.start is None else "seq2seq", config.model.model_arch_type
    if said not in (None, arch):
        raise ConfigError(f"model.model_arch_type is {said}, but the base is {arch}; correct it")
    settings["model"] |= {"model_arch_type": arch, "peft_config": None, "num_layers_unfrozen": -1}
    settings["train"] |= {
        "tracker": None,
        "eval_interval": 1,
        "checkpoint_interval": NEVER,
        "save_best": False,
        "save_optimizer": False,
    }
    settings["method"]["gen_kwargs"]["eos_token_id"] = list(job.sampler.end_ids) or None
    if settings["method"]["ref_std"] is not None:
        # A missing mean, which nothing uses, would have trlX replace the deviation by the first round's.
        settings["method"]["ref_mean"] = settings["method"]["ref_mean"] or 0.0
    return settings


def _check(job: Job) -> None:
    """Refuse what trlX cannot do.

    Raises:
        ConfigError: in one sentence.
    """
    config, ppo = job.config, job.config.ppo
    assert ppo is not None
    train = config.train
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError('the engine trlx runs in one process; start it alone, or set train.engine to "native"')
    if train.minibatch_size and (train.batch_size % train.minibatch_size or ppo.num_rollouts % train.batch_size):
        raise ConfigError(
            "trlX needs train.batch_size to be a multiple of train.minibatch_size, and ppo.num_rollouts one of "
            f"train.batch_size; they are {train.batch_size}, {train.minibatch_size} and {ppo.num_rollouts}"
        )
    if ppo.ref_mean is not None and ppo.ref_std is None:
        raise ConfigError("trlX reads ppo.ref_mean together with ppo.ref_std only; set both, or none")
    if job.shuffle is not None and min(ppo.chunk_size, ppo.num_rollouts) < 2:
        raise ConfigError("a null run permutes the scores of a batch, and ppo.chunk_size is 1; raise it")
    longest = max(len(prompt.ids) for prompt in job.sampler.encode(job.prompts))
    room = train.seq_length - config.generate.max_new_tokens
    if train.seq_length and longest > room:
        raise ConfigError(
            f"a prompt has {longest} tokens, train.seq_length leaves room for {room}; raise it or lower prompts.words"
        )


@contextlib.contextmanager
def _seeds(seed: int) -> Iterator[None]:
    """Python's, numpy's and torch's global generators seeded within the block and put back afterwards."""
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        number = derive(seed, "trlX") % 2**32
        random.seed(number)
        np.random.seed(number)
        torch.manual_seed(number)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


@contextlib.contextmanager
def _accelerate_on(device: torch.device) -> Iterator[None]:
    """Within the block accelerate, which takes the first GPU that it finds, stays on the CPU if the base is there."""
    name = "ACCELERATE_USE_CPU"
    before = os.environ.get(name)
    if device.type == "cpu":
        os.environ[name] = "true"
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


def _value_head(theirs: Any) -> ValueHead:
    """TrlX's value head as ours, which computes the same."""
    head = ValueHead(theirs[0].in_features, 0)
    for mine, its in ((head.hidden, theirs[0]), (head.out, theirs[2])):
        mine.load_state_dict(its.state_dict())
    return head.requires_grad_(False)
