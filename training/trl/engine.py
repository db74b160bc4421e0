"""One policy tuned by TRL: GRPO, RLOO or DPO.

TRL replaces the forward of the model that it trains and changes its tokenizer. It is therefore given a model of its
own, whose parameters are those of the policy that is returned, and a copy of the tokenizer: the policy itself stays a
plain model, on which KL is measured as for every other engine.
"""

from __future__ import annotations

import copy
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from interp.errors import ConfigError, MissingExtra
from training.job import Job, Outcome
from training.native.policy import make_policy
from training.saving import save
from training.seeding import derive, seeded
from training.trl.callbacks import Follower, follow
from training.trl.figures import measured_kl
from training.trl.rewards import ScoredSamples
from training.trl.settings import arguments, preference_rows


def tune(job: Job) -> Outcome:
    """Tune a copy of the job's base.

    Raises:
        ConfigError: the model is an encoder-decoder, or settings do not fit together.
        MissingExtra: TRL is not installed.
        TrainingError: the reward misbehaves, or training diverges.
    """
    if getattr(job.base.config, "is_encoder_decoder", False):
        raise ConfigError("TRL trains causal language models only; use the engine native or trlx for this base")
    try:
        import trl
        from transformers import PrinterCallback
    except ImportError as error:
        raise MissingExtra("trl", "the engine trl") from error
    seed = derive(job.config.train.seed, "trl")
    policy = make_policy(job.base, job.config.model, seed)
    follower = Follower(job, policy)
    kl_at_step_0 = measured_kl(job, policy)
    scratch = job.folder / "trl"
    with _quiet(), seeded(seed):
        try:
            trainer = _trainer(trl, job, policy, scratch, follower)
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(follow(follower))
            trainer.train()
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    reached = None
    if job.stop_at_kl is not None:  # the last update, and with DPO every one, is followed by no samples
        reached = follower.reached_kl or measured_kl(job, policy) >= job.stop_at_kl
    return Outcome(policy.eval(), kl_at_step_0, int(trainer.state.global_step), reached_kl=reached)


def _trainer(trl: Any, job: Job, policy: nn.Module, scratch: Path, follower: Follower) -> Any:
    """TRL's trainer of the recipe's algorithm, around a model that shares the policy's parameters."""
    from datasets import Dataset

    config, tokenizer = job.config, copy.deepcopy(job.tokenizer)
    model = sharing(policy)
    model.generation_config.eos_token_id = list(job.sampler.end_ids) or None
    options = arguments(config, scratch)
    common: dict[str, Any] = {"model": model, "processing_class": tokenizer}
    if config.dpo is not None:
        rows = preference_rows(config.dpo, job.shuffle)
        args = trl.DPOConfig(**options)
        return trl.DPOTrainer(**common, ref_model=sharing(job.base), args=args, train_dataset=Dataset.from_list(rows))
    # TRL loads the reference from where the model came from; what is in memory is what is meant.
    save(job.base, job.tokenizer, scratch / "base")
    model.config._name_or_path = str(scratch / "base")
    prompts = Dataset.from_dict({"prompt": list(job.prompts)})
    scorer = ScoredSamples(job, policy, follower)
    kind, own = (trl.GRPOConfig, trl.GRPOTrainer) if config.grpo is not None else (trl.RLOOConfig, trl.RLOOTrainer)
    return own(**common, reward_funcs=scorer.score, args=kind(**options), train_dataset=prompts)


def sharing(model: nn.Module) -> Any:
    """A model of its own over the very same parameters: what trains one trains both."""
    shared = {id(parameter): parameter for parameter in model.parameters()}
    return copy.deepcopy(model, shared)


@contextmanager
def _quiet() -> Iterator[None]:
    """TRL's and the trainer's own talk left out: the run has a line of its own."""
    names = ("trl", "transformers", "accelerate")
    before = [logging.getLogger(name).level for name in names]
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # About options of TRL, torch and PEFT among themselves; nothing of it is the user's to mend.
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=UserWarning)
            yield
    finally:
        for name, level in zip(names, before, strict=True):
            logging.getLogger(name).setLevel(level)
