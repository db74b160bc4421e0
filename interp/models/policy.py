"""A causal language model that can be traced, and what a pass through it leaves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.families import Parts
from interp.hooks import Site, capture
from interp.loading import Source, describe_source, load_both
from interp.models.fidelity import check_fidelity
from interp.models.running import as_found
from interp.prompts import Batch


@dataclass(frozen=True)
class Trace:
    """What one model computed on one batch.

    Attributes:
        policy: the model.
        batch: the tokens.
        logits: float32 or better.
        activations: what was captured, by site (shapes: see `interp.hooks.capture`).
    """

    policy: Policy
    batch: Batch
    logits: Float[Tensor, "batch seq vocab"]
    activations: Mapping[Site, Tensor]

    def __getitem__(self, site: Site) -> Tensor:
        return self.activations[site]

    def last(self, site: Site) -> Tensor:
        """The activation at each prompt's last token, float64."""
        return self.batch.at_last_prompt(self.activations[site]).double()

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
        description: where it comes from (`interp.loading.describe_source`), family, architecture, parameters, dtype.
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
        check: bool = True,
    ) -> Policy:
        """Load a policy and check that its hooks add up.

        Args:
            source: hub id, folder, a loaded module, or a Policy, which is returned as it is.
            tokenizer: its tokenizer, or where to load it from; None: the one at `source`.
            dtype: dtype of the weights when loading; None keeps that of the files.
            device: device when loading; None is the CPU. A loaded module stays where it is.
            revision: revision of a hub id.
            trust_remote_code: off unless asked for.
            allow_pickle: accept pickled weights.
            check: run `check_fidelity`.

        Raises:
            LoadError: it cannot be loaded, or a loaded module came without a tokenizer.
            UnknownFamily: its architecture is not known.
            FidelityError: what is captured does not add up.
        """
        if isinstance(source, Policy):
            return source
        model, tokenizer = load_both(
            source,
            tokenizer,
            revision=revision,
            trust_remote_code=trust_remote_code,
            dtype=dtype,
            device=device,
            allow_pickle=allow_pickle,
        )
        parts = Parts(model)
        policy = cls(model, tokenizer, parts, _describe(source, model, parts, revision))
        if check:
            check_fidelity(policy)
        return policy

    @property
    def device(self) -> torch.device:
        """Device of the token embedding."""
        return next(self.parts.embed.parameters()).device

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        return self.parts.unembedding()[0].shape[1]

    @property
    def context_length(self) -> int | None:
        """Most tokens that the model reads, or None where it has no limit."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def trace(self, batch: Batch, sites: Iterable[Site] = ()) -> Trace:
        """Run the model on `batch` and capture `sites`.

        Eager attention is used while a `pattern` is captured, no cache, and positions that count real tokens only; the
        module, its mode and its kernel are given back as they were.

        Args:
            batch: tokens.
            sites: what to capture.
        """
        batch, wanted = batch.to(self.device), list(sites)
        eager = any(site.name == "pattern" for site in wanted)
        with as_found(self.model, eager=eager), capture(self.parts, wanted) as store:
            output = self.model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask.long(),
                position_ids=batch.position_ids,
                use_cache=False,
            )
        logits = output.logits
        return Trace(self, batch, logits if logits.dtype == torch.float64 else logits.float(), store)

    def residual_sites(self) -> list[Site]:
        """The sites whose activations sum to the final residual: embeddings, then attention and MLP of each layer."""
        sites = [Site("embed")] + ([Site("pos_embed")] if self.parts.pos_embed is not None else [])
        return sites + [Site(name, layer) for layer in range(self.parts.n_layers) for name in ("attn_out", "mlp_out")]


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
    }
