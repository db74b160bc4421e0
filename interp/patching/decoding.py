"""Recipient and source reading one growing text in step, each with its key-value cache.

What a causal model computed at a token does not change when more tokens follow, nor does it under a patch: that takes
the place of what there is at its token, and later tokens read it through the cache. So each token is computed once.
The cache keeps keys and values as they were before a patch of k or v, and a pattern is over all keys at once: where
these are patched, and in an encoder-decoder, whole texts must be read at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.families import Parts
from interp.hooks import Edit, Site, capture, patch
from interp.models.running import inference
from interp.patching.opening import Runs
from interp.patching.rows import edits, writes
from interp.patching.targets import Intervention
from interp.patching.values import captured_sites, values_of
from interp.prompts import Batch, TokenizedPrompts, make_batch

NOT_CACHED = ("k", "v", "pattern")


def can_be_cached(parts: Parts, patched: Intervention | None) -> bool:
    """Whether a patch leaves what earlier tokens put into the cache as it is."""
    if parts.family.encoder is not None or not parts.family.causal:
        return False
    return patched is None or all(target.site.name not in NOT_CACHED for target in patched.targets)


class Stream:
    """One model's reading of a batch, padded on the left, that grows by a token a row.

    Args:
        parts: a causal model.
        batch: what it reads first.
    """

    def __init__(self, parts: Parts, batch: Batch) -> None:
        self.parts, self.batch = parts, batch
        self._ids, self._mask, self._positions = batch.input_ids, batch.attention_mask, batch.position_ids
        self._cache: Any = None

    def read(
        self, sites: Sequence[Site] = (), changes: dict[Site, Edit] | None = None
    ) -> tuple[Float[Tensor, "row d_model"], dict[Site, Tensor]]:
        """Read what has not been read yet, under `changes`: the last residual of the last token, and activations."""
        parts = self.parts
        final = Site("resid_post", parts.n_layers - 1)
        inputs: dict[str, Any] = {"input_ids": self._ids, "attention_mask": self._mask.long()}
        if parts.takes_positions:
            inputs["position_ids"] = self._positions + parts.family.position_offset(parts.model.config)
        with inference(parts.model), patch(parts, changes or {}), capture(parts, {*sites, final}) as store:
            output = parts.backbone(**inputs, past_key_values=self._cache, use_cache=True)
        self._cache = output.past_key_values
        return store[final][:, -1], {site: store[site] for site in sites}

    def append(self, tokens: Int[Tensor, " row"]) -> None:
        """Give every row its next token."""
        self._ids = tokens.to(self._ids.device)[:, None]
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)
        self._positions = self._positions[:, -1:] + 1


class InStep:
    """Recipient, and where something is patched the source, reading the same text in step.

    Args:
        runs: the two.
        numbers: for each row its prompt.
        patched: what is patched, or None.
    """

    def __init__(self, runs: Runs, numbers: Sequence[int], patched: Intervention | None) -> None:
        self._patched = patched
        self._recipient = Stream(runs.recipient.parts, _left(runs.reads, numbers).to(runs.recipient.device))
        self._source: Stream | None = None
        if patched is not None:
            self._source = Stream(runs.source.parts, _left(runs.source_reads, numbers).to(runs.source.device))

    def read(self, tokens: Int[Tensor, " row"] | None) -> Float[Tensor, "row d_model"]:
        """The recipient's last residual at the last token, once both have read `tokens` too; None: the prompts alone.

        A position other than "all" is one of the prompt, so that what follows it is not patched.
        """
        if tokens is not None:
            for stream in (self._recipient, self._source):
                if stream is not None:
                    stream.append(tokens)
        changes: dict[Site, Edit] = {}
        if (
            self._patched is not None
            and self._source is not None
            and (tokens is None or self._patched.position == "all")
        ):
            _, store = self._source.read(captured_sites([self._patched]))
            changes = edits(writes([self._patched], self._recipient.batch, values_of(self._source.parts, store)))
        return self._recipient.read((), changes)[0]


def _left(reads: TokenizedPrompts, numbers: Sequence[int]) -> Batch:
    return make_batch([reads.prompt_ids[each] for each in numbers], padding_side="left")
