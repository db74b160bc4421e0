"""Policy and RewardModel: a model, its tokenizer and its named parts, checked when it is loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.errors import FidelityError, InterpError, LoadError
from interp.families import Parts
from interp.hooks import Site, capture
from interp.loading import Source, describe_source, load_both, load_model, load_tokenizer
from interp.prompts import Batch, make_batch
from interp.sampling import evaluating

__all__ = ["Policy", "RewardModel", "Source", "Trace", "describe_source", "load_model", "load_tokenizer"]


@contextlib.contextmanager
def as_found(model: nn.Module, *, eager: bool = False) -> Iterator[None]:
    """Run a model in eval mode without gradients, and give it back as it was found.

    Args:
        model: a model of transformers.
        eager: use eager attention meanwhile, the one kernel that returns its patterns.
    """
    config: Any = model.config
    kernel = config._attn_implementation
    try:
        if eager and kernel != "eager":
            model.set_attn_implementation("eager")  # type: ignore[operator]
        with evaluating(model), torch.no_grad():
            yield
    finally:
        if config._attn_implementation != kernel:
            model.set_attn_implementation(kernel)  # type: ignore[operator]


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


def check_fidelity(policy: Policy) -> dict[str, float]:
    """Compare a traced pass with the bare model on a small padded batch.

    Checked, each as a fraction of the largest magnitude in what it is compared with: captured logits equal the bare
    model's; embeddings, attention and MLP outputs sum to the final residual; heads (z W_O, and b_O) sum to attn_out.

    Returns:
        The three relative errors: `logits`, `residual`, `heads`.

    Raises:
        FidelityError: one is above 1e-6 (logits), 1e-5 (sums), or 10 rounding errors of the model's dtype.
    """
    parts = policy.parts
    generator = torch.Generator().manual_seed(0)
    length = min(8, policy.context_length or 8)
    ids = torch.randint(policy.vocab_size, (2, length), generator=generator).tolist()
    batch = make_batch([ids[0], ids[1][: max(1, length - 3)]]).to(policy.device)
    layers = range(parts.n_layers)
    final = Site("resid_post", parts.n_layers - 1)
    sites = [*policy.residual_sites(), final, *(Site(n, layer) for layer in layers for n in ("z", "pattern"))]
    trace = policy.trace(batch, sites)
    with as_found(policy.model, eager=True):
        bare = policy.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask.long(),
            position_ids=batch.position_ids,
            use_cache=False,
        ).logits
    real = batch.attention_mask
    errors = {"logits": _relative_error(trace.logits[real], bare[real])}
    total = torch.stack([trace[site].expand_as(trace[final])[real].double() for site in policy.residual_sites()]).sum(0)
    errors["residual"] = _relative_error(total, trace[final][real])
    errors["heads"] = max(_head_error(parts, trace, layer, real) for layer in layers)
    rounding = 10 * torch.finfo(next(policy.model.parameters()).dtype).eps
    for name, error in errors.items():
        limit = max(1e-6 if name == "logits" else 1e-5, rounding)
        if not error <= limit:
            raise FidelityError(
                f"{source_name(policy.description)}: {name} differ from the bare model by {error:.1e} of their size,"
                f" over the limit {limit:.0e}; the weights hold NaN or the module was changed: load it anew"
            )
    return errors


def source_name(description: Mapping[str, Any]) -> str:
    """Where a model comes from, in a word: its folder, its hub id, or its class."""
    return str(description.get("folder") or description.get("id") or description.get("object"))


def _head_error(parts: Parts, trace: Trace, layer: int, real: Tensor) -> float:
    z = trace[Site("z", layer)][real].double()
    summed = torch.einsum("nhd,hdm->nm", z, parts.W_O(layer).detach().double())
    bias = parts.b_O(layer)
    if bias is not None:
        summed = summed + bias.detach().double()
    return _relative_error(summed, trace[Site("attn_out", layer)][real])


def _relative_error(got: Tensor, expected: Tensor) -> float:
    expected = expected.double()
    return float((got.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


@dataclass(frozen=True)
class RewardModel:
    """A sequence classifier whose score for one label is a reward.

    Attributes:
        model: the module of transformers.
        tokenizer: its own tokenizer.
        label: the label that is scored.
        output: what the score is: `probability` (softmax over labels; sigmoid where there is one label or the config
            says multi-label) or `logit`.
        description: where it comes from.
    """

    model: nn.Module
    tokenizer: Any
    label: str
    output: Literal["probability", "logit"]
    description: Mapping[str, Any]

    @classmethod
    def load(
        cls,
        source: Source | RewardModel,
        *,
        label: str | None = None,
        output: Literal["probability", "logit"] = "probability",
        tokenizer: Any = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
    ) -> RewardModel:
        """Load a reward model.

        Args:
            source: hub id, folder, a loaded classifier, or a RewardModel, which is returned as it is.
            label: name of the label to score; may be left out where there is one label only.
            output: `probability` or `logit`.
            tokenizer: its tokenizer, or where to load it from; None: the one at `source`.
            dtype: dtype of the weights; None keeps that of the files.
            device: device; None is the CPU.
            revision: revision of a hub id.
            trust_remote_code: off unless asked for.
            allow_pickle: accept pickled weights.

        Raises:
            LoadError: it cannot be loaded, has no such label, or has several and none is named.
        """
        if isinstance(source, RewardModel):
            return source
        if output not in ("probability", "logit"):
            raise LoadError(f'output is "probability" or "logit", not {output!r}')
        model, tokenizer = load_both(
            source,
            tokenizer,
            revision=revision,
            trust_remote_code=trust_remote_code,
            head="classifier",
            dtype=dtype,
            device=device,
            allow_pickle=allow_pickle,
        )
        config: Any = model.config
        labels = list(config.label2id)
        if label is None and len(labels) == 1:
            label = labels[0]
        if label is None or label not in labels:
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

    def score(self, texts: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
        """The reward of each text.

        Args:
            texts: texts; one longer than the model's context is cut at its end.
            batch_size: texts a forward pass.

        Returns:
            float64 [text], in the order of `texts`.

        Raises:
            InterpError: a score is not finite.
        """
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        scores = np.empty(len(texts))
        with as_found(self.model):
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                scores[rows] = self._score_batch([texts[row] for row in rows])
        if not np.isfinite(scores).all():
            text = texts[int(np.argmin(np.isfinite(scores)))]
            raise InterpError(f"the reward model's score of {text[:60]!r} is not finite; check its weights for NaN")
        return scores

    def _score_batch(self, texts: Sequence[str]) -> np.ndarray:
        config: Any = self.model.config
        limit = getattr(config, "max_position_embeddings", None)
        ids = [list(self.tokenizer(text)["input_ids"])[:limit] or [self.tokenizer.eos_token_id or 0] for text in texts]
        batch = make_batch(ids).to(next(self.model.parameters()).device)
        # The score head of a causal model reads the last token that is not padding, which it finds by pad id; padding
        # goes to the right and the head is read at the column we know, so that the reward never depends on a pad id.
        backbone = self.model.get_submodule(self.model.base_model_prefix)  # type: ignore[arg-type]
        hidden = backbone(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask.long(),
            position_ids=batch.position_ids,
            use_cache=False,
        ).last_hidden_state
        logits = Parts(self.model).readout(batch.at_last_prompt(hidden)).double()
        column = config.label2id[self.label]
        if self.output == "logit":
            return logits[:, column].cpu().numpy()
        several = logits.shape[1] > 1 and getattr(config, "problem_type", None) != "multi_label_classification"
        return (logits.softmax(-1) if several else logits.sigmoid())[:, column].cpu().numpy()
