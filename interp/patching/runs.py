"""The two runs of a patching experiment: policies, reward models, or one of each, and what they read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int

from interp.errors import MeasureError, PromptError, TokenizerMismatch
from interp.families import Parts
from interp.measures.engine import check_lengths
from interp.models import Policy, RewardModel
from interp.models.matched import load_matched, shared_tokens
from interp.models.source import Source
from interp.prompts import Batch, Prompts, TokenizedPrompts

Model = Policy | RewardModel

_POLICIES_ONLY = (
    "this takes policies; reward models go into activation_patching, attribution_patching, ablation and smallest_set"
)


@dataclass(frozen=True)
class Runs:
    """The two runs of a patching experiment.

    Attributes:
        recipient: the model that is patched.
        source: the model whose activations go in.
        reads: tokens that the recipient reads.
        source_reads: tokens that the source reads, of the same lengths.
        prompts: the prompts.
        numbers: each prompt's number among those that the user gave; None where these are all of them.
    """

    recipient: Model
    source: Model
    reads: TokenizedPrompts
    source_reads: TokenizedPrompts
    prompts: Prompts
    numbers: tuple[int, ...] | None = None

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.prompts)

    @property
    def groups(self) -> Int[np.ndarray, " prompt"]:
        """The group of each prompt, as a number."""
        groups: np.ndarray = np.unique(np.array(self.prompts.groups, dtype=object), return_inverse=True)[1]
        return groups

    @property
    def width(self) -> int:
        """Tokens of the longest prompt; of an encoder-decoder, of the longest text that the encoder reads."""
        return max(map(len, self.reads.encoder_ids or self.reads.prompt_ids))

    def take(self, rows: Sequence[int] | np.ndarray) -> Runs:
        """The runs on some of the prompts, by index."""
        rows = [int(row) for row in rows]
        names = ("texts", "answers", "continuations", "groups", "decoder_prefixes", "corrupted")
        whole: dict[str, Any] = {name: getattr(self.prompts, name) for name in names}
        some: dict[str, Any] = {
            name: None if value is None else [value[row] for row in rows] for name, value in whole.items()
        }
        numbers = self.numbers or tuple(range(len(self)))
        return replace(
            self,
            reads=_take(self.reads, rows),
            source_reads=_take(self.source_reads, rows),
            prompts=replace(self.prompts, **some),
            numbers=tuple(numbers[row] for row in rows),
        )

    def numbers_of(self, start: int, count: int) -> Sequence[int]:
        """Numbers among all that the user gave of `count` prompts from `start` on, which a custom metric is told."""
        return range(start, start + count) if self.numbers is None else self.numbers[start : start + count]

    def batches(self, size: int) -> list[tuple[Batch, Batch]]:
        """Batches of what the two read."""
        both = (self.reads.batches(size), self.source_reads.batches(size))
        return [(a.to(self.recipient.device), b.to(self.source.device)) for a, b in zip(*both, strict=True)]

    @property
    def policies(self) -> tuple[Policy, Policy]:
        """Recipient and source, where both are policies.

        Raises:
            MeasureError: one is a reward model.
        """
        if isinstance(self.recipient, Policy) and isinstance(self.source, Policy):
            return self.recipient, self.source
        raise MeasureError(_POLICIES_ONLY)

    @property
    def mixed(self) -> bool:
        """Whether one is a policy and the other a reward model, so that the source has no metric of its own."""
        return isinstance(self.recipient, RewardModel) != isinstance(self.source, RewardModel)

    @property
    def source_reader(self) -> Parts:
        """What reads the source's last residual: its own head, or, of a mixed pair, the recipient's."""
        return self.recipient.parts if self.mixed else self.source.parts


def _take(tokens: TokenizedPrompts, rows: Sequence[int]) -> TokenizedPrompts:
    """Ids and answers of some of the prompts."""
    picked: dict[str, Any] = {
        name: None if values is None else tuple(values[row] for row in rows)
        for name in ("prompt_ids", "response_ids", "encoder_ids")
        for values in [getattr(tokens, name)]
    }
    answers = None if tokens.answer_ids is None else tokens.answer_ids[list(rows)]
    return TokenizedPrompts(answer_ids=answers, **picked)


LOADING = {
    name: f"load first: interp.load(source, {name}=...)"
    for name in ("dtype", "device", "device_map", "tokenizer", "trust_remote_code", "allow_pickle", "revision")
}
"""Former parameters that belong to loading, and what to do instead (`interp.errors.renamed`)."""


def open_runs(
    recipient: Source | Policy | RewardModel,
    source: Source | Policy | RewardModel,
    prompts: Prompts | Sequence[str],
    *,
    recipient_reads: str | None = None,
    rewards: bool = False,
) -> Runs:
    """Load both models, with the defaults where they are not loaded, and tokenise.

    Args:
        recipient: see `activation_patching`.
        source: see there.
        prompts: see there.
        recipient_reads: see there.
        rewards: accept reward models.

    Raises:
        MeasureError: the models differ in shape, or a reward model came where only policies are taken.
        PromptError: the prompts do not fit, or `recipient_reads` needs corrupted prompts and there are none.
    """
    prompts = prompts if isinstance(prompts, Prompts) else Prompts(prompts)
    if isinstance(recipient, RewardModel) or isinstance(source, RewardModel):
        if not rewards:
            raise MeasureError(_POLICIES_ONLY)
        models: tuple[Model, Model] = (_loaded(recipient, "recipient"), _loaded(source, "source"))
    else:
        matched = load_matched(recipient, source)
        models = (matched.base, matched.tuned)
    return runs_of(*models, prompts, recipient_reads=recipient_reads)


def _loaded(model: Any, which: str) -> Model:
    if isinstance(model, (Policy, RewardModel)):
        return model
    raise MeasureError(
        f"beside a reward model the {which} is a loaded model too, interp.load_reward(...) with its label, or"
        f" interp.load(...), not {type(model).__name__}"
    )


def runs_of(recipient: Model, source: Model, prompts: Prompts, *, recipient_reads: str | None = None) -> Runs:
    """The runs of two loaded models (see `open_runs`)."""
    if recipient_reads not in (None, "clean", "corrupted"):
        raise PromptError(f'recipient_reads is "clean" or "corrupted", not {recipient_reads!r}')
    if recipient_reads == "corrupted" and prompts.corrupted is None:
        raise PromptError("the recipient cannot read corrupted prompts, there are none; pass Prompts(corrupted=[...])")
    if recipient.model is source.model and prompts.corrupted is None:
        raise PromptError(
            "a model cannot be patched with its own run on the same prompts; pass Prompts(texts, corrupted=[...]), or"
            " another model as source"
        )
    if isinstance(recipient, Policy) and isinstance(source, Policy):
        prompts = prompts.for_models([recipient.tokenizer, source.tokenizer])
    else:
        _check_fit(recipient, source)
    tokens = tokens_of(recipient, prompts)
    _check_source_reads(recipient, source, prompts, tokens)
    corrupt = tokens.corrupt
    clean = replace(tokens, corrupt=None)
    if corrupt is None:
        return Runs(recipient, source, clean, clean, prompts)
    if recipient_reads == "clean":
        return Runs(recipient, source, clean, corrupt, prompts)
    return Runs(recipient, source, corrupt, clean, prompts)


def tokens_of(model: Model, prompts: Prompts) -> TokenizedPrompts:
    """The prompts as a model reads them; a reward model reads whole texts, with the tokens that its tokenizer adds.

    Raises:
        PromptError: a prompt does not fit the model.
        TokenizerMismatch: a token is beyond the model's embedding.
    """
    if isinstance(model, RewardModel):
        return _reward_tokens(model, prompts)
    tokens = prompts.tokenize(model.tokenizer, decoder_start=model.decoder_start)
    check_lengths(tokens, [model])
    return tokens


def _reward_tokens(model: RewardModel, prompts: Prompts) -> TokenizedPrompts:
    """Of the prompts' fields, texts and corrupted texts; answers, which no score reads, are left aside."""
    if prompts.kind != "text":
        what = "chats" if prompts.kind == "chat" else "token ids"
        raise PromptError(
            f"a reward model reads texts, and these prompts are {what}; pass them as they would be written"
        )
    for name in ("continuations", "decoder_prefixes"):
        if getattr(prompts, name) is not None:
            raise PromptError(f"a reward model reads whole texts, without {name}; write them behind the texts")
    if prompts.bos is not None:
        raise PromptError("a reward model's own tokenizer says which tokens frame a text; leave bos out")
    texts = tuple(str(text) for text in prompts.texts)
    tokens = TokenizedPrompts(_ids(model, texts, "text"), None, None, texts=texts)
    if prompts.corrupted is None:
        return tokens
    other = tuple(str(text) for text in prompts.corrupted)
    corrupt = TokenizedPrompts(_ids(model, other, "corrupted text"), None, None, texts=other)
    for index, (one, two) in enumerate(zip(tokens.prompt_ids, corrupt.prompt_ids, strict=True)):
        if len(one) != len(two):
            raise PromptError(
                f"text {index} has {len(one)} tokens and its corrupted counterpart {len(two)} ({texts[index][:60]!r},"
                f" {other[index][:60]!r}); change it so that both have the same number, as positions are compared one"
                " with one"
            )
    return replace(tokens, corrupt=corrupt)


def _ids(model: RewardModel, texts: Sequence[str], what: str) -> tuple[tuple[int, ...], ...]:
    limit, rows = model.context_length, model.parts.embedding().shape[0]
    tokens = []
    for index, text in enumerate(texts):
        ids = tuple(int(token) for token in model.tokenizer(text, verbose=False)["input_ids"])
        if not ids:
            raise PromptError(f"{what} {index} ({text[:40]!r}) has no tokens; leave it out")
        if limit is not None and len(ids) > limit:
            raise PromptError(
                f"{what} {index} ({text[:40]!r}...) has {len(ids)} tokens and the reward model reads {limit};"
                " shorten it or leave it out"
            )
        if max(ids) >= rows:
            raise TokenizerMismatch(
                f"{what} {index} has the token id {max(ids)}, the reward model has {rows} tokens; load it with the"
                " tokenizer that it was trained with"
            )
        tokens.append(ids)
    return tuple(tokens)


def _check_source_reads(recipient: Model, source: Model, prompts: Prompts, tokens: TokenizedPrompts) -> None:
    """The source must be able to read the recipient's tokens, and of two reward models each must make the same ones."""
    if isinstance(recipient, Policy) and isinstance(source, Policy):
        check_lengths(tokens, [recipient, source])
        return
    if isinstance(recipient, RewardModel) and isinstance(source, RewardModel):
        theirs = tokens_of(source, prompts)
        for mine, other in ((tokens, theirs), (tokens.corrupt, theirs.corrupt)):
            if mine is None or other is None:
                continue
            for index, (one, two) in enumerate(zip(mine.prompt_ids, other.prompt_ids, strict=True)):
                if one != two:
                    raise TokenizerMismatch(
                        f"the two reward models read text {index} ({mine.texts[index][:40]!r}) as different tokens"
                        f" ({len(one)} and {len(two)}); positions are compared one with one, so give both one tokenizer"
                    )
        return
    limit, rows = source.context_length, source.parts.embedding().shape[0]
    for mine in (tokens, tokens.corrupt):
        for index, ids in enumerate(mine.prompt_ids if mine is not None else ()):
            long = len(ids) + (len(mine.response_ids[index]) if mine is not None and mine.response_ids else 0)
            if (limit is not None and long > limit) or max(ids) >= rows:
                raise PromptError(
                    f"text {index} has {long} tokens with ids up to {max(ids)}; the source reads {limit} tokens and has"
                    f" {rows} ids: shorten it or leave it out"
                )


def _check_fit(recipient: Model, source: Model) -> None:
    """Refuse two models, at least one a reward model, whose activations or scores cannot stand for each other's."""
    shapes = [_shape(model.parts) for model in (recipient, source)]
    differ = [key for key in shapes[0] if shapes[0][key] != shapes[1][key]]
    if differ:
        first, second = (", ".join(f"{key} {shape[key]}" for key in differ) for shape in shapes)
        raise MeasureError(
            f"the recipient has {first}, the source {second}; patch between models that were tuned from one"
        )
    if isinstance(recipient, RewardModel) and isinstance(source, RewardModel):
        if recipient.labels != source.labels:
            first, second = (", ".join(map(str, model.labels[:6])) for model in (recipient, source))
            raise MeasureError(f"the recipient's labels are {first}, the source's {second}; they must be the same")
        scores = [f"{model.label!r} as {model.squash}" for model in (recipient, source)]
        if scores[0] != scores[1]:
            raise MeasureError(
                f"the recipient scores {scores[0]}, the source {scores[1]}; load both with one label and output"
            )
    if recipient.tokenizer is not source.tokenizer and shared_tokens(recipient.tokenizer, source.tokenizer) is None:
        raise TokenizerMismatch(
            "recipient and source have different tokens, so that one cannot read the other's; patch between models of"
            " one tokenizer"
        )


def _shape(parts: Parts) -> dict[str, Any]:
    return {
        "family": parts.family.name,
        "layers": parts.n_layers,
        "heads": parts.n_heads,
        "d_model": parts.d_model,
        "d_head": parts.d_head,
        "kv_heads": parts.n_kv_heads,
        "neurons": parts.W_down(0)[0].shape[0],
    }
