"""A classifier whose score for one label is a reward, and what a recipe made of that score."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from interp.errors import InterpError, LoadError, MeasureError
from interp.families import Parts
from interp.hooks import Site
from interp.models.pretrained import DeviceMap, load_both
from interp.models.running import at_read_token, inference, run
from interp.models.source import Source, describe_source
from interp.pair import CheckpointPair
from interp.prompts import Batch, make_batch

Output = Literal["probability", "softmax", "sigmoid", "logit"]
OUTPUTS: tuple[str, ...] = get_args(Output)


@dataclass(frozen=True)
class RewardTrace:
    """What a reward model computed on one batch.

    Attributes:
        model: the reward model.
        batch: the tokens.
        logits: of all labels.
        scores: the same as the model's `output`; float64.
        activations: what was captured, by site (shapes: see `interp.hooks.capture`).
    """

    model: RewardModel
    batch: Batch
    logits: Float[Tensor, "batch label"]
    scores: Float[Tensor, "batch label"]
    activations: Mapping[Site, Tensor]

    def __getitem__(self, site: Site) -> Tensor:
        return self.activations[site]

    def read(self, site: Site) -> Shaped[Tensor, " batch *rest"]:
        """The activation at the token from which the score is read."""
        return at_read_token(self.model.parts, self.batch, self.activations[site])

    @property
    def reward(self) -> Float[Tensor, " batch"]:
        """The score of the model's own label."""
        return self.scores[:, self.model.labels.index(self.model.label)]


@dataclass(frozen=True)
class RewardModel:
    """A sequence classifier whose score for one label is a reward.

    Attributes:
        model: the module of transformers.
        tokenizer: its own tokenizer.
        label: the label that is scored.
        output: what the score is: `softmax` over the labels, `sigmoid` of the label's own logit, `logit`, or
            `probability`, which is softmax, but sigmoid where there is one label or the config says multi-label.
        description: where it comes from.
    """

    model: nn.Module
    tokenizer: Any
    label: str
    output: Output
    description: Mapping[str, Any]

    @classmethod
    def load(
        cls,
        source: Source | RewardModel,
        *,
        label: str | None = None,
        output: Output = "probability",
        tokenizer: Any = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
        device_map: DeviceMap = None,
    ) -> RewardModel:
        """Load a reward model.

        Args:
            source: hub id, folder, a loaded classifier, or a RewardModel, which is returned as it is.
            label: name of the label to score; may be left out where there is one label only.
            output: `probability`, `softmax`, `sigmoid` or `logit`.
            tokenizer: its tokenizer, or where to load it from; None: the one at `source`.
            dtype: dtype of the weights; None keeps that of the files.
            device: device; None is the CPU.
            revision: revision of a hub id.
            trust_remote_code: off unless asked for.
            allow_pickle: accept pickled weights.
            device_map: where parts go, instead of `device`; "auto" spreads them over the GPUs there are.

        Raises:
            LoadError: it cannot be loaded, has no such label, has several and none is named, or has one label only and
                a softmax over it is asked for.
        """
        if isinstance(source, RewardModel):
            return source
        if output not in OUTPUTS:
            raise LoadError(f"output is {', '.join(OUTPUTS[:-1])} or {OUTPUTS[-1]}, not {output!r}")
        model, tokenizer = load_both(
            source,
            tokenizer,
            revision=revision,
            trust_remote_code=trust_remote_code,
            head="classifier",
            dtype=dtype,
            device=device,
            device_map=device_map,
            allow_pickle=allow_pickle,
        )
        config: Any = model.config
        if output == "probability" and getattr(config, "problem_type", None) == "regression":
            raise LoadError('the reward model gives a score without bounds, no probability; pass output="logit"')
        labels = _labels(config)
        if label is None and len(labels) == 1:
            label = labels[0]
        if output == "softmax" and len(labels) == 1:
            raise LoadError("the softmax over a reward model's one label is 1 for every text; use logit or sigmoid")
        if label is None:
            raise LoadError(
                f"the reward model has {len(labels)} labels; name one with label= (--label):"
                f" {', '.join(map(str, labels))}"
            )
        if label not in labels:
            raise LoadError(
                f"the reward model has no label {label!r}; pass label= (--label), one of {', '.join(map(str, labels))}"
            )
        return cls(
            model,
            tokenizer,
            label,
            output,
            {**describe_source(source, revision=revision), "label": label, "output": output},
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of all labels, by index."""
        names: Mapping[int, str] = self.model.config.id2label  # type: ignore[assignment, union-attr]
        return tuple(names[index] for index in sorted(names))

    @cached_property
    def parts(self) -> Parts:
        """The model's modules and weights by the field's names."""
        return Parts(self.model)

    @property
    def device(self) -> torch.device:
        """Device of the token embedding."""
        return next(self.parts.embed.parameters()).device

    @property
    def context_length(self) -> int | None:
        """Most tokens that the model reads, or None where it has no limit."""
        return _context(self.parts)

    @property
    def squash(self) -> Literal["softmax", "sigmoid", "logit"]:
        """What `output` makes of the logits: "probability" is one of the other two."""
        if self.output != "probability":
            return self.output
        multi = getattr(self.model.config, "problem_type", None) == "multi_label_classification"
        return "softmax" if len(self.labels) > 1 and not multi else "sigmoid"

    @property
    def units(self) -> str:
        """Units of its scores."""
        return "logits" if self.squash == "logit" else "probability"

    def output_of(self, logits: Float[Tensor, "*batch label"]) -> Float[Tensor, "*batch label"]:
        """The scores that logits of all labels stand for, by `output`; gradients pass."""
        if self.squash == "logit":
            return logits
        return logits.softmax(-1) if self.squash == "softmax" else torch.sigmoid(logits)

    def batch(self, texts: Sequence[str]) -> Batch:
        """The texts as the model reads them: cut to the context, an empty one as the end token, padded on the right."""
        ids = [list(self._encode(text, self.parts)) or [self.tokenizer.eos_token_id or 0] for text in texts]
        return make_batch(ids)

    def trace(self, texts: Sequence[str] | Batch, sites: Iterable[Site] = ()) -> RewardTrace:
        """Run the model and capture `sites`, the same as a policy's; the module is given back as it was.

        Args:
            texts: texts, or a batch of their tokens.
            sites: what to capture.
        """
        batch = (texts if isinstance(texts, Batch) else self.batch(texts)).to(self.device)
        logits, store = run(self.parts, batch, sites)
        scores = self.output_of(logits.double())
        return RewardTrace(self, batch, logits, scores, {site: value.to(self.device) for site, value in store.items()})

    def score(self, texts: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
        """The reward of each text.

        Args:
            texts: texts; one longer than the model's context is cut at its end (see `too_long`), and one without any
                token, as an empty text may be, is read as the tokenizer's end token.
            batch_size: texts a forward pass.

        Returns:
            float64 [text], in the order of `texts`.

        Raises:
            InterpError: a score is not finite.
        """
        return self.score_labels(texts, batch_size=batch_size)[:, self.labels.index(self.label)]

    def score_labels(self, texts: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
        """The scores of all labels for each text, by the same `output`.

        Args:
            texts: as `score` takes them.
            batch_size: texts a forward pass.

        Returns:
            float64 [text, label], in the order of `texts` and of `labels`.

        Raises:
            InterpError: a score is not finite.
        """
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        scores = np.empty((len(texts), len(self.labels)))
        with inference(self.model):
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                scores[rows] = self._score_batch([texts[row] for row in rows])
        finite = np.isfinite(scores).all(axis=1)
        if not finite.all():
            text = texts[int(np.argmin(finite))]
            raise InterpError(f"the reward model's score of {text[:60]!r} is not finite; check its weights for NaN")
        return scores

    def too_long(self, texts: Sequence[str]) -> int:
        """How many of the texts exceed the model's context, so that `score` cuts them."""
        limit = self.context_length
        if limit is None:
            return 0
        # A token covers a byte at least, but for the two or so that frame a text: short texts need no tokenizer.
        long = [text for text in texts if len(text.encode()) > limit - 4]
        return sum(len(self.tokenizer(text)["input_ids"]) > limit for text in long)

    def _score_batch(self, texts: Sequence[str]) -> np.ndarray:
        return self.trace(texts).scores.cpu().numpy()

    def _encode(self, text: str, parts: Parts) -> list[int]:
        """Token ids of a text, cut to the context: at its end, so that the tokenizer's own last token stays."""
        ids = list(self.tokenizer(text)["input_ids"])
        limit = _context(parts)
        if limit is None or len(ids) <= limit:
            return ids
        return list(self.tokenizer(text, truncation=True, max_length=limit)["input_ids"])


def _context(parts: Parts) -> int | None:
    """The most tokens that the model can read; None where its positions have no end."""
    limit: int | None = getattr(parts.model.config, "max_position_embeddings", None)
    return None if limit is None else limit - parts.family.position_offset(parts.model.config)


def _labels(config: Any) -> list[str]:
    """The names of a classifier's labels.

    Raises:
        LoadError: `label2id` and `id2label` contradict each other, so that a name could mean either column.
    """
    by_id, by_name = getattr(config, "id2label", None) or {}, getattr(config, "label2id", None) or {}
    if {name: index for index, name in by_id.items()} != by_name or sorted(by_id) != list(range(len(by_id))):
        raise LoadError(
            f"the reward model's config has id2label {str(by_id)[:80]} and label2id {str(by_name)[:80]}, which do not"
            " fit together; correct its config.json"
        )
    return list(by_name)


@dataclass(frozen=True)
class Optimised:
    """The reward as the optimiser saw it: the raw score shifted, scaled and clipped.

    r = clip((score - shift) / scale, -clip, clip); with `clip_first` r = (clip(score, -clip, clip) - shift) / scale.

    Attributes:
        shift: subtracted from the raw score.
        scale: what it is divided by.
        clip: most that remains in size.
        clip_first: clip the raw score, not the scaled one (trlX).
        beta: weight of the KL penalty in reward per nat, where the objective was E[r] - beta KL with a fixed beta; None
            where it was another one, or is not known.
    """

    shift: float | int = 0.0
    scale: float | int = 1.0
    clip: float | int = float("inf")
    clip_first: bool = False
    beta: float | None = None

    def __post_init__(self) -> None:
        if not self.scale > 0 or not self.clip > 0:
            raise MeasureError(
                f"scale and clip must be above 0, not {self.scale} and {self.clip}; leave out what is not used"
            )

    def __call__(self, raw: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """The reward of raw scores."""
        if self.clip_first:
            return np.asarray((np.clip(raw, -self.clip, self.clip) - self.shift) / self.scale)
        return np.asarray(np.clip((raw - self.shift) / self.scale, -self.clip, self.clip))

    @classmethod
    def of(cls, pair: CheckpointPair) -> Optimised:
        """Read it from a pair's recipe.

        Raises:
            MeasureError: scores were divided by a standard deviation that the run did not keep.
        """
        config = pair.manifest["config"]
        ppo = config.get("ppo")
        if ppo is None:
            return cls()  # the other algorithms take the score as it is, or set it against the group's
        trlx = pair.manifest["engine"] == "trlx"
        fixed = ppo.get("target") is None and config["generate"]["temperature"] == 1
        kind, spread = ppo.get("scale_reward", "none"), ppo.get("ref_std")
        if kind == "running" or (kind == "ref" and spread is None):
            raise MeasureError(
                f'the pair was trained with scale_reward = "{kind}", whose standard deviation is not on record; pass'
                " optimised=Optimised(scale=..., clip=...) with the scale that held at the end"
            )
        scaled = kind == "ref"
        return cls(
            shift=0.0 if trlx or not scaled else float(ppo.get("ref_mean") or 0.0),
            scale=float(spread) if scaled else 1.0,
            clip=float(ppo.get("cliprange_reward", "inf")),
            clip_first=trlx,
            beta=(ppo["init_kl_coef"] or None) if fixed else None,
        )
