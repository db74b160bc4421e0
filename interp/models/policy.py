"""A causal language model that can be traced, and what a pass through it leaves."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.decomposition import residual_sites
from interp.errors import LoadError
from interp.families import Parts
from interp.hooks import Site
from interp.models.fidelity import check_fidelity
from interp.models.memo import facts
from interp.models.pretrained import DeviceMap, as_tokenizer, load_both, refuse_options
from interp.models.reward_model import RewardModel
from interp.models.running import run
from interp.models.source import Source, describe_source, source_name
from interp.pair import CheckpointPair, shipped_pair
from interp.prompts import Batch


@dataclass(frozen=True)
class Trace:
    """What one model computed on one batch.

    Attributes:
        policy: the model.
        batch: the tokens.
        logits: float32 or better.
        activations: what was captured, by site (shapes: see `interp.hooks.capture`).
        outside: probability, at each prompt's last token, of the tokens that `logits` leaves out (see
            `Policy.limited`), or None where it leaves out none.
        cache: what was computed of this trace alone, where several others are compared with it; None keeps nothing.
    """

    policy: Policy
    batch: Batch
    logits: Float[Tensor, "batch seq vocab"]
    activations: Mapping[Site, Tensor]
    outside: Float[Tensor, " batch"] | None = None
    cache: dict[Any, Any] | None = field(default=None, compare=False, repr=False)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives of this trace alone: computed once where the trace keeps such things.

        Args:
            key: says what it is, and all that it depends on besides the trace.
            make: computes it.
        """
        if self.cache is None:
            return make()
        if key not in self.cache:
            self.cache[key] = make()
        return self.cache[key]

    def __getitem__(self, site: Site) -> Tensor:
        return self.activations[site]

    def last(self, site: Site) -> Tensor:
        """The activation at each prompt's last token, float64."""
        state: Tensor = self.once(("last", site), lambda: self.batch.at_last_prompt(self.activations[site]).double())
        return state

    @property
    def last_logits(self) -> Float[Tensor, "batch vocab"]:
        """Logits at each prompt's last token."""
        return self.batch.at_last_prompt(self.logits)


@dataclass(frozen=True, repr=False)
class Policy:
    """A causal language model that can be traced.

    Attributes:
        model: the module of transformers; never changed beyond a forward pass.
        tokenizer: its tokenizer.
        parts: its parts by the field's names.
        description: where it comes from (see `interp.models.describe_source`), family, architecture, parameters, dtype.
    """

    model: nn.Module
    tokenizer: Any
    parts: Parts
    description: Mapping[str, Any]

    @classmethod
    def load(
        cls,
        source: Source | Policy,
        *,
        tokenizer: Any = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        device_map: DeviceMap = None,
        revision: str | None = None,
        base: Source | Policy | None = None,
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
        check: bool = True,
        refresh: bool = False,
    ) -> Policy:
        """Load a policy and check that its hooks add up.

        The check, and the hash of a loaded module's weights, are done once for a model's content in a process; whatever
        changes it, a write through `.data` included, is noticed (see `interp.models.memo`).

        Args:
            source: hub id (with its revision as "id@revision"), folder of a model or of a LoRA adapter, a loaded
                module, or a Policy, which is returned as it is.
            tokenizer: its tokenizer, or where to load it from; None: the one at `source`, or at an adapter's base.
            dtype: dtype of the weights when loading; None keeps that of the files.
            device: device when loading; None is the CPU. A loaded module stays where it is.
            device_map: where parts go, instead of `device`; "auto" spreads them over the GPUs there are.
            revision: revision of a hub id.
            base: what an adapter is put on; a Policy or a loaded module shares its weights and is not changed. None:
                what the adapter's config names.
            trust_remote_code: run code that comes with the model.
            allow_pickle: accept pickled weights.
            check: run `check_fidelity`.
            refresh: check and hash again what is known.

        Raises:
            LoadError: it is no policy, cannot be loaded, or a loaded module came without a tokenizer.
            UnknownFamily: its architecture is not known.
            FidelityError: what is captured does not add up.
        """
        if isinstance(source, Policy):
            refuse_options(source.name, dtype=dtype, device=device, device_map=device_map, revision=revision, base=base)
            if tokenizer is None:
                return source
            return replace(source, tokenizer=as_tokenizer(tokenizer, trust_remote_code=trust_remote_code))
        _refuse_other(source)
        otherwise = None
        if isinstance(base, Policy):
            otherwise, base = base.tokenizer, base.model
        model, tokenizer = load_both(
            source,
            tokenizer,
            revision=revision,
            trust_remote_code=trust_remote_code,
            base=base,
            otherwise=otherwise,
            dtype=dtype,
            device=device,
            device_map=device_map,
            allow_pickle=allow_pickle,
        )
        parts = Parts(model)
        known = facts(source if isinstance(source, nn.Module) else model, refresh=refresh)
        policy = cls(model, tokenizer, parts, _describe(source, model, parts, revision, known))
        if check and known.get("fidelity") is not parts.family:  # one row may take another's place
            check_fidelity(model, policy.name)
            known["fidelity"] = parts.family
        return policy

    def __repr__(self) -> str:
        """Where it comes from, and how large it is."""
        about = self.description
        size = f"{about['layers']} layers of {about['heads']} heads, d_model {about['d_model']}"
        kind = f"{about['architecture']}, {size}, {about['parameters'] / 1e6:.3g} M parameters, {about['dtype']}"
        return f"Policy({self.name!r}: {kind}, {self.device})"

    @property
    def name(self) -> str:
        """Where it comes from, in a word: its folder, its hub id, or its class."""
        return source_name(self.description)

    @property
    def device(self) -> torch.device:
        """Device of the token embedding."""
        return next(self.parts.embed.parameters()).device

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        return self.parts.n_outputs

    @property
    def decoder_start(self) -> int | None:
        """Of an encoder-decoder, the token with which the decoder starts; None for other models."""
        if self.parts.family.encoder is None:
            return None
        config: Any = self.model.config
        start = config.decoder_start_token_id
        return int(config.pad_token_id if start is None else start)

    @property
    def context_length(self) -> int | None:
        """Most tokens that the model reads, or None where it has no limit."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        return None if limit is None else limit - self.parts.family.position_offset(self.model.config)

    def trace(self, batch: Batch, sites: Iterable[Site] = ()) -> Trace:
        """Run the model on `batch` and capture `sites`.

        Eager attention is used while a `pattern` is captured, no cache, and positions that count real tokens only; the
        module, its mode and its kernel are given back as they were.

        Args:
            batch: tokens.
            sites: what to capture.
        """
        batch = batch.to(self.device)
        logits, store = run(self.parts, batch, sites)
        # A model that is spread over devices leaves activations on all of them; measures find them on one.
        logits, store = logits.to(self.device), {site: value.to(self.device) for site, value in store.items()}
        outside, shared = None, self.vocab_size
        if logits.shape[-1] > shared:
            outside = batch.at_last_prompt(logits).double().softmax(-1)[:, shared:].sum(-1)
            logits = logits[..., :shared]
        return Trace(self, batch, logits if logits.dtype == torch.float64 else logits.float(), store, outside)

    def limited(self, vocab: int) -> Policy:
        """The same policy, of whose logits only the first `vocab` are read; it still samples from all."""
        return replace(self, parts=self.parts.limited(vocab))

    def residual_sites(self) -> list[Site]:
        """The sites whose activations sum to the final residual: embeddings, then attention and MLP of each layer."""
        return residual_sites(self.parts)


def _refuse_other(source: object) -> None:
    """Refuse what is no policy, and cannot be loaded as one.

    Raises:
        LoadError: saying what to pass instead.
    """
    if isinstance(source, CheckpointPair):
        raise LoadError(f"the pair {source.name} is two models; pass pair.base or pair.tuned, or the pair to compare()")
    if isinstance(source, str) and shipped_pair(source):
        raise LoadError(
            f"{source!r} names a pair, which is two models; pass interp.load_pair({source!r}).base or .tuned, and"
            f" './{source}' for a folder"
        )
    if isinstance(source, RewardModel):
        raise LoadError(f"the reward model {source.name} predicts no tokens; pass a language model")
    if not isinstance(source, (str, os.PathLike, nn.Module)):
        what = "a function" if callable(source) else f"a {type(source).__name__}"
        raise LoadError(f"a model is a folder, a hub id or a loaded module, not {what}")


def _describe(
    source: Source, model: nn.Module, parts: Parts, revision: str | None, known: dict[str, Any]
) -> dict[str, Any]:
    return {
        **describe_source(source, revision=revision, known=known),
        "family": parts.family.name,
        "architecture": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "layers": parts.n_layers,
        "heads": parts.n_heads,
        "d_model": parts.d_model,
        "d_head": parts.d_head,
        "kv_heads": parts.n_kv_heads,
        "neurons": parts.W_down(0)[0].shape[0],
    }
