"""A classifier whose score for one label is a reward, and what a recipe made of that score."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from interp.errors import InterpError, LoadError
from interp.families import Parts
from interp.hooks import Site
from interp.models.optimised import Transform, reward_of, transform_name, transform_of
from interp.models.pretrained import DeviceMap, as_tokenizer, load_both, refuse_options
from interp.models.running import at_read_token, inference, run
from interp.models.source import Source, describe_source, source_name
from interp.pair import CheckpointPair, pair_at
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


@dataclass(frozen=True, repr=False)
class RewardModel:
    """A sequence classifier whose score for one label is a reward.

    Attributes:
        model: the module of transformers.
        tokenizer: its own tokenizer.
        label: the label that is scored.
        output: what the score is: `softmax` over the labels, `sigmoid` of the label's own logit, `logit`, or
            `probability`, which is softmax, but sigmoid where there is one label or the config says multi-label.
        description: where it comes from.
        optimised: what made the raw score the reward that was optimised, as an `Optimised` does; None: nothing.
    """

    model: nn.Module
    tokenizer: Any
    label: str
    output: Output
    description: Mapping[str, Any]

    optimised: Transform | None = None

    @classmethod
    def load(
        cls,
        source: Source | RewardModel | CheckpointPair,
        *,
        label: str | None = None,
        output: Output | None = None,
        optimised: Any = None,
        tokenizer: Any = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        device_map: DeviceMap = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
    ) -> RewardModel:
        """Load a reward model.

        Args:
            source: hub id, folder, a loaded classifier, a RewardModel, which may so be read by another label, or a pair
                or its folder, which give the reward model that the pair was tuned toward, read as its recipe says.
            label: name of the label to score; may be left out where there is one label only, or a pair says it.
            output: `probability`, `softmax`, `sigmoid` or `logit`; None: what the pair says, else `probability`, and
                `logit` of a model whose config says that its score has no bounds (regression).
            optimised: what made the raw score the reward that was optimised: an `Optimised`, a function of an array of
                scores, or a pair or its folder, whose recipe says it; None: what the pair says, else the raw score.
            tokenizer: its tokenizer, or where to load it from; None: the one at `source`.
            dtype: dtype of the weights; None keeps that of the files.
            device: device; None is the CPU.
            device_map: where parts go, instead of `device`; "auto" spreads them over the GPUs there are.
            revision: revision of a hub id.
            trust_remote_code: run code that comes with the model.
            allow_pickle: accept pickled weights.

        Raises:
            LoadError: it is no reward model, cannot be loaded, has no such label, has several and none is named, or has
                one label only and a softmax over it is asked for.
            MeasureError: the pair was tuned toward a function or a sum; or `optimised` is none of the above.
        """
        transform = transform_of(optimised)
        options: dict[str, Any] = {"dtype": dtype, "device": device, "device_map": device_map}
        if isinstance(source, RewardModel):
            refuse_options(source.name, revision=revision, **options)
            return source._read_as(label, output, transform, tokenizer, trust_remote_code)
        options |= {"tokenizer": tokenizer, "trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
        pair = pair_at(source)
        if pair is not None:
            source, recipe = reward_of(pair, {"label": label, "output": output, "optimised": transform})
            shared = {name: value for name, value in pair.loading.items() if name != "dtype" and not options[name]}
            return cls.load(source, revision=revision, **{**recipe, **options, **shared})
        model, tokenizer = load_both(_checked(source), revision=revision, head="classifier", **options)
        label, output = _reading(model.config, label, output)
        described = {**describe_source(source, revision=revision), "label": label, "output": output}
        return cls(model, tokenizer, label, output, described)._read_as(None, None, transform, None, False)

    def _read_as(
        self,
        label: str | None,
        output: Output | None,
        optimised: Transform | None,
        tokenizer: Any,
        trust_remote_code: bool,
    ) -> RewardModel:
        """The same module, read by another label, output, transform or tokenizer; None keeps what there is."""
        model = self
        if label is not None or output is not None:
            label, output = _reading(self.model.config, label or self.label, output or self.output)
            about = {**self.description, "label": label, "output": output}
            model = replace(model, label=label, output=output, description=about)
        if optimised is not None:
            about = {**model.description, "optimised": transform_name(optimised)}
            model = replace(model, optimised=optimised, description=about)
        if tokenizer is not None:
            model = replace(model, tokenizer=as_tokenizer(tokenizer, trust_remote_code=trust_remote_code))
        return model

    def __repr__(self) -> str:
        """Where it comes from, what its score is, and how large it is."""
        count = sum(parameter.numel() for parameter in self.model.parameters())
        labels = f"{self.label!r} of {len(self.labels)} labels" if len(self.labels) > 1 else f"{self.label!r}"
        made = "" if self.optimised is None else f", optimised as {self.description['optimised']}"
        kind = f"{type(self.model).__name__}, {self.parts.n_layers} layers, {count / 1e6:.3g} M parameters"
        return f"RewardModel({self.name!r}: {labels} as {self.squash}{made}; {kind}, {self.device})"

    @property
    def name(self) -> str:
        """Where it comes from, in a word: its folder, its hub id, or its class."""
        return source_name(self.description)

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


def _reading(config: Any, label: str | None, output: Output | None) -> tuple[str, Output]:
    """The label and output by which a classifier is read, checked.

    Raises:
        LoadError: it has no such label, several and none is named, or an output that its scores do not have.
    """
    if output is not None and output not in OUTPUTS:
        raise LoadError(f"output is {', '.join(OUTPUTS[:-1])} or {OUTPUTS[-1]}, not {output!r}")
    unbounded = getattr(config, "problem_type", None) == "regression"
    if output == "probability" and unbounded:
        raise LoadError('the reward model gives a score without bounds, no probability; pass output="logit"')
    labels = _labels(config)
    if output == "softmax" and len(labels) == 1:
        raise LoadError("the softmax over a reward model's one label is 1 for every text; use logit or sigmoid")
    names = ", ".join(map(str, labels))
    if label is None and len(labels) > 1:
        raise LoadError(
            f"the reward model has {len(labels)} labels; name one with interp.load_reward(..., label=...) (--label):"
            f" {names}"
        )
    if label is not None and label not in labels:
        raise LoadError(f"the reward model has no label {label!r}; pass label= (--label), one of {names}")
    return label or labels[0], output or ("logit" if unbounded else "probability")


def _checked(source: object) -> Source:
    """A source that may hold a reward model.

    Raises:
        LoadError: it is something else.
    """
    if isinstance(source, (str, os.PathLike, nn.Module)):
        return source
    what = "a function" if callable(source) else f"a {type(source).__name__}"
    raise LoadError(
        f"a reward model is a folder, a hub id, a loaded classifier, a RewardModel or a pair, not {what}; here its"
        " weights are read, so a function will not do"
    )


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
