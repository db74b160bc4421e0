"""A causal language model that can be traced, and what a pass through it leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.decomposition import residual_sites
from interp.families import Parts
from interp.hooks import Site
from interp.models.fidelity import check_fidelity
from interp.models.pretrained import DeviceMap, load_both
from interp.models.running import run
from interp.models.source import Source, describe_source, source_name
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
        kept: what was computed of this trace alone, where several others are compared with it; None keeps nothing.
    """

    policy: Policy
    batch: Batch
    logits: Float[Tensor, "batch seq vocab"]
    activations: Mapping[Site, Tensor]
    outside: Float[Tensor, " batch"] | None = None
    kept: dict[Any, Any] | None = field(default=None, compare=False, repr=False)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives of this trace alone: computed once where the trace keeps such things.

        Args:
            key: says what it is, and all that it depends on besides the trace.
            make: computes it.
        """
        if self.kept is None:
            return make()
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]

    def __getitem__(self, site: Site) -> Tensor:
        return self.activations[site]

    def last(self, site: Site) -> Tensor:
        """The activation at each prompt's last token, float64."""
        found: Tensor = self.once(("last", site), lambda: self.batch.at_last_prompt(self.activations[site]).double())
        return found

    @property
    def last_logits(self) -> Float[Tensor, "batch vocab"]:
        """Logits at each prompt's last token."""
        return self.batch.at_last_prompt(self.logits)


@dataclass(frozen=True)
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
        revision: str | None = None,
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
        device_map: DeviceMap = None,
        base: Source | Policy | None = None,
        check: bool = True,
    ) -> Policy:
        """Load a policy and check that its hooks add up.

        Args:
            source: hub id (with its revision as "id@revision"), folder of a model or of a LoRA adapter, a loaded
                module, or a Policy, which is returned as it is.
            tokenizer: its tokenizer, or where to load it from; None: the one at `source`, or at an adapter's base.
            dtype: dtype of the weights when loading; None keeps that of the files.
            device: device when loading; None is the CPU. A loaded module stays where it is.
            revision: revision of a hub id.
            trust_remote_code: off unless asked for.
            allow_pickle: accept pickled weights.
            device_map: where parts go, instead of `device`; "auto" spreads them over the GPUs there are.
            base: what an adapter is put on; a Policy or a loaded module shares its weights and is not changed. None:
                what the adapter's config names.
            check: run `check_fidelity`.

        Raises:
            LoadError: it cannot be loaded, or a loaded module came without a tokenizer.
            UnknownFamily: its architecture is not known.
            FidelityError: what is captured does not add up.
        """
        if isinstance(source, Policy):
            return source
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
        policy = cls(model, tokenizer, parts, _describe(source, model, parts, revision))
        if check:
            check_fidelity(model, source_name(policy.description))
        return policy

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


def _describe(source: Source, model: nn.Module, parts: Parts, revision: str | None) -> dict[str, Any]:
    return {
        **describe_source(source, revision=revision),
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
