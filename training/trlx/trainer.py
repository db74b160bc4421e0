"""trlX's PPO trainer, with what it draws, scores and forgets put right from outside.

What stays trlX's own: `generate` of Hugging Face draws the samples, trlX reads and stores them, weighs the KL penalty,
estimates advantages (whitened over a minibatch, its padding included) and steps. It clips scores before it scales them.

What is put right, each at a method that trlX calls: prompts come from the run and keep their own ids, a round has
exactly `num_rollouts` samples, outputs keep the ids that were generated, the score lies on the last response token,
nothing after that token counts, and the adaptive controller is fed the exact KL (trlX's own figure is another
quantity, which is only logged, as `trlx_kl`).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers import BatchEncoding

from interp.errors import TrainingError
from training.job import Job
from training.losses import distinct_n, explained_variance, gae
from training.native.ppo import check_course
from training.native.scores import Moments, seen
from training.rollouts import Prompt, compared, prompt_stream
from training.seeding import derive, permutation
from training.trlx.policy import Ids

_Base: Any = object


class Stop(Exception):
    """Leaves trlX's loop: the run has what it asked for."""


@dataclasses.dataclass
class Round:
    """What is known of one round of rollouts, gathered while trlX makes it; lists have an entry a sample.

    Attributes:
        number: of the round, from 0.
        step: optimiser steps taken before it.
        kl_coef: weight of the penalty in it.
        started: when it began, in seconds.
        kept: ids of the responses, first end token included.
        scores: as the reward gave them.
        firsts: log-probability of the first response token under the reference.
        sums: totals over response tokens of `kl` and `entropy`, nats.
        retokenised: responses that tokenising their text again would have changed.
        explained: explained variance of the value head.
        losses: figures of the updates, one entry each.
        elsewhere: seconds that the run took meanwhile.
    """

    number: int
    step: int
    kl_coef: float
    started: float
    kept: list[list[int]] = dataclasses.field(default_factory=list)
    scores: list[float] = dataclasses.field(default_factory=list)
    firsts: list[float] = dataclasses.field(default_factory=list)
    sums: dict[str, float] = dataclasses.field(default_factory=lambda: {"kl": 0.0, "entropy": 0.0})
    retokenised: int = 0
    explained: float = math.nan
    losses: list[dict[str, float]] = dataclasses.field(default_factory=list)
    elsewhere: float = 0.0

    @property
    def tokens(self) -> int:
        """Response tokens, end tokens included."""
        return sum(map(len, self.kept))

    @property
    def kl(self) -> float:
        """KL(policy || reference), exact, nats per response token."""
        return self.sums["kl"] / self.tokens


class Trainer(_Base):
    """Mixed in before trlX's AcceleratePPOTrainer."""

    def __init__(self, config: Any, *, job: Job, ids: Ids, policy: Any) -> None:
        """Set up trlX's trainer.

        Args:
            config: a TRLConfig.
            job: what is to be done.
            ids: what token ids mean.
            policy: the wrapped model (see `training.trlx.policy`).
        """
        self.job, self.ids, self.given = job, ids, policy
        self.rounds = self.iter_count = 0
        self.first_kl = self.trlx_kl = math.nan
        self.moments = Moments()
        self.round: Round | None = None
        self.chunk: list[Prompt] = []
        self.texts: Any = None
        policy.settle(job.base, ids, self.observe)
        super().__init__(config, reward_fn=self.score)
        stream = prompt_stream(job.sampler.encode(job.prompts), derive(job.config.train.seed, "prompts of rollouts"))
        self.prompt_iterator = self._prompts(stream)
        self.add_eval_pipeline(_Nothing())

    def setup_model(self) -> Any:
        """The policy that was made for this trainer; trlX would load one, and print.

        Raises:
            TrainingError: accelerate was set up before, for another device than the base's.
        """
        there = next(self.job.base.parameters()).device
        if self.accelerator.device.type != there.type:
            raise TrainingError(f"accelerate is on {self.accelerator.device}, the base on {there}; move the base there")
        return self.given

    def _prompts(self, stream: Iterator[Prompt]) -> Iterator[BatchEncoding]:
        """Batches of prompts; those of a round are of nearly equal size, at most `chunk_size`."""
        total, size = self.config.method.num_rollouts, self.config.method.chunk_size
        parts = math.ceil(total / size)
        while True:
            for part in range(parts):
                count = total * (part + 1) // parts - total * part // parts
                self.chunk, self.texts = [next(stream) for _ in range(count)], None
                yield self._padded([list(prompt.ids) for prompt in self.chunk])

    def _padded(self, rows: Sequence[Sequence[int]]) -> BatchEncoding:
        """What a policy reads is padded on the left, what an encoder reads on the right."""
        left = self.ids.start is None
        lines = [torch.tensor(row[::-1] if left else row) for row in rows]
        ids = pad_sequence(lines, batch_first=True, padding_value=self.ids.pad)
        ids = (ids.flip(1) if left else ids).to(self.accelerator.device)
        return BatchEncoding({"input_ids": ids, "attention_mask": (ids != self.ids.pad).long()})

    def decode(
        self, prompts: Any, samples: Tensor, prompt_sizes: Any = None, append_eos_token: bool = False
    ) -> tuple[list[str], list[str], list[str]]:
        """Samples, prompts and outputs as the run decodes them; trlX asks twice for each batch of prompts."""
        if self.texts is None:
            assert self.round is not None
            begun = 1 if self.ids.start is not None else prompts.shape[1]
            kept = [[token for token in row if token != self.ids.pad] for row in samples[:, begun:].tolist()]
            said = [ids[:-1] if ids[-1] in self.ids.ends else ids for ids in kept]
            self.texts = self.job.sampler.decode(self.chunk, said)
            self.tokenizer.kept = kept
            self.round.kept += kept
            self.round.retokenised += self._changed(said)
        return self.texts.samples, self.texts.prompts, self.texts.outputs

    def _changed(self, said: list[list[int]]) -> int:
        """Outputs whose text gives other ids when it is tokenised again, even without a beginning-of-text token."""
        tokenizer = self.job.tokenizer
        options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        again = tokenizer([tokenizer.decode(ids, **options) for ids in said], add_special_tokens=False)["input_ids"]
        return sum(list(new) != old for new, old in zip(again, said, strict=True))

    def score(self, samples: list[str], prompts: list[str], outputs: list[str], **_: Any) -> list[list[float]]:
        """The reward, put on each response's last token; permuted within the batch for a null run."""
        assert self.round is not None
        scores = self.job.reward(samples, prompts, outputs).tolist()
        part = len(self.round.scores)
        self.round.scores += scores
        if self.job.shuffle is not None:
            order = permutation(len(scores), derive(self.job.shuffle, self.round.number, part))
            scores = [scores[index] for index in order]
        pairs = zip(scores, self.tokenizer.kept, strict=True)
        return [[0.0] * (len(ids) - 1) + [score] for score, ids in pairs]

    def observe(self, logits: Tensor, reference_logits: Tensor) -> None:
        """Exact KL and entropy of a batch of rollouts, from logits that trlX computes anyway."""
        assert self.round is not None
        ids, mask = _rows(self.tokenizer.kept, logits.device)
        where = slice(-ids.shape[1] - 1, -1)
        figures = compared(logits[:, where], reference_logits[:, where], ids, mask)
        for name in self.round.sums:
            self.round.sums[name] += float(figures[name].double().sum())
        self.round.firsts += figures["reference_logprobs"][:, 0].tolist()

    def make_experience(self, num_rollouts: int = 1024, iter_count: int = 0) -> None:
        """One round of rollouts.

        Raises:
            Stop: the policy has reached the KL that the run is to stop at.
            TrainingError: the run diverges, or the reward is constant.
        """
        self.round = Round(self.rounds, iter_count, float(self.kl_ctl.value), time.perf_counter())
        self.rounds += 1
        super().make_experience(num_rollouts, iter_count)
        self.trlx_kl = float(self.mean_kl)
        now = self.round
        self.first_kl = now.kl if now.number == 0 else self.first_kl
        self.moments = seen(self.moments, torch.tensor(now.scores))
        figures = {"kl": now.kl, "step": now.step}
        check_course(figures, self.moments.constant, self.moments.last, self.job.config.train.kl_limit)
        if self.job.stop_at_kl is not None and now.kl >= self.job.stop_at_kl:
            self.report()
            raise Stop

    def push_to_store(self, data: list[Any]) -> None:
        """Store a round's rollouts, cut after the last response token.

        Raises:
            TrainingError: trlX read other tokens than were generated, or scaling has made a score infinite.
        """
        assert self.round is not None
        data = [self._mended(index, element) for index, element in enumerate(data)]
        if not all(bool(torch.isfinite(element.rewards).all()) for element in data):
            raise TrainingError('a scaled score is not finite: all are equal; set ppo.scale_reward to "none"')
        values, rewards = (
            pad_sequence([getattr(element, name) for element in data], batch_first=True)
            for name in ("values", "rewards")
        )
        _, mask = _rows(self.round.kept, values.device)
        method = self.config.method
        _, returns = gae(rewards, values, mask, method.gamma, method.lam)
        self.round.explained = explained_variance(values, returns, mask)
        super().push_to_store(data)

    def _mended(self, index: int, element: Any) -> Any:
        """One rollout without what trlX stores of the padding behind it."""
        assert self.round is not None
        kept = self.round.kept[index]
        begun = 0 if self.ids.start is None else 1
        if element.response_tensor[begun : begun + len(kept)].tolist() != kept:
            raise TrainingError("trlX read other tokens than it generated; report this")
        cut = {name: getattr(element, name)[: len(kept)] for name in ("logprobs", "values", "rewards")}
        if begun:
            # trlX masks the penalty by the token before: the start token is padding to it, so the first has none.
            penalty = -self.round.kl_coef * (cut["logprobs"][0] - self.round.firsts[index])
            cut["rewards"] = torch.cat([cut["rewards"][:1] + penalty, cut["rewards"][1:]])
        return dataclasses.replace(element, **cut)

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        """As trlX's; of several backward passes in a step the mean, where trlX takes the sum."""
        assert self.round is not None
        loss, stats = super().loss(batch)
        if not bool(torch.isfinite(loss)):
            raise TrainingError(
                f"PPO diverged at step {self.iter_count}: loss {loss.item():.3g}; lower train.learning_rate or raise "
                "ppo.init_kl_coef"
            )
        names = {
            "policy_loss": "losses/policy_loss",
            "value_loss": "losses/value_loss",
            "clip_fraction": "policy/clipfrac",
            "value_clip_fraction": "values/clipfrac",
        }
        self.round.losses.append({ours: float(stats[theirs]) for ours, theirs in names.items()})
        return loss / self.num_mb, stats

    def evaluate(self) -> dict[str, Any]:
        """Called by trlX after every step, for every step is an evaluation's; the run decides what is measured."""
        if self.iter_count:
            assert self.round is not None
            started = time.perf_counter()
            figures = {"reward_mean": _mean(self.round.scores), "kl": self.round.kl}
            self.job.watch.progress({"stage": "ppo", "step": self.iter_count, "steps": self.total_steps, **figures})
            self.job.watch.stepped(self.iter_count, self.given.base_model)
            self.round.elsewhere += time.perf_counter() - started
        return {}

    def post_backward_callback(self) -> None:
        """Steer the penalty's weight by the exact KL of a whole response."""
        assert self.round is not None
        self.mean_kl = self.round.sums["kl"] / len(self.round.kept)
        super().post_backward_callback()

    def post_epoch_callback(self) -> None:
        """Log a round, and go on to the next."""
        self.report()
        super().post_epoch_callback()

    def report(self) -> None:
        """One line of figures: of the rollouts before the round's updates, and means over the updates."""
        now = self.round
        assert now is not None
        spread = torch.tensor(now.scores, dtype=torch.float64).std(correction=0)
        said = [ids[:-1] if ids[-1] in self.ids.ends else ids for ids in now.kept]
        names = now.losses[0] if now.losses else ()
        row = {
            "update": now.number,
            "step": now.step,
            "reward_mean": _mean(now.scores),
            "reward_std": float(spread),
            "kl": now.kl,
            "entropy": now.sums["entropy"] / now.tokens,
            "explained_variance": now.explained,
            "length": now.tokens / len(now.kept),
            "distinct_1": distinct_n(said, 1),
            "distinct_2": distinct_n(said),
            **{name: _mean([figures[name] for figures in now.losses]) for name in names},
            "kl_coef": now.kl_coef,
            "trlx_kl": self.trlx_kl,
            "retokenised": now.retokenised / len(now.kept),
        }
        if self.job.config.train.timings:
            row["samples_per_s"] = len(now.kept) / (time.perf_counter() - now.started - now.elsewhere)
        self.job.watch.log(row)

    def save(self, *_: Any, **__: Any) -> None:
        """Nothing: what trlX would write does not load again; the run saves."""

    save_pretrained = save


class _Nothing:
    """Stands where trlX wants prompts to evaluate on; `Trainer.evaluate` reads none."""

    def create_loader(self, batch_size: int) -> DataLoader:
        return DataLoader([0])  # type: ignore[arg-type]


def _rows(kept: Sequence[Sequence[int]], device: Any) -> tuple[Tensor, Tensor]:
    """Response ids as one tensor, padded on the right, and the mask of the real ones."""
    ids = pad_sequence([torch.tensor(row) for row in kept], batch_first=True).to(device)
    lengths = torch.tensor([len(row) for row in kept], device=device)
    return ids, torch.arange(ids.shape[1], device=device) < lengths[:, None]


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)
