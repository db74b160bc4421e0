"""The models of one comparison: loaded, of one shape, and agreed on the tokens that they share."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from interp.errors import LoadError, MeasureError, TokenizerMismatch
from interp.models.adapters import without_adapter
from interp.models.offload import offloaded
from interp.models.policy import Policy
from interp.models.pretrained import adapter_base, adapter_folder, load_tokenizer
from interp.models.source import describe_source, local_folder, split_revision
from interp.pair import CheckpointPair
from interp.prompts import check_same_vocabulary


@dataclass(frozen=True)
class MatchedModels:
    """The models of one comparison.

    Attributes:
        base: base model.
        tuned: its tuned version.
        controls: control runs.
        replicates: runs of the same recipe with other seeds.
        mismatch: why base and tuned share no vocabulary, so that each reads with its own tokenizer, or None.
    """

    base: Policy
    tuned: Policy
    controls: tuple[Policy, ...] = ()
    replicates: tuple[Policy, ...] = ()
    mismatch: str | None = None

    @property
    def others(self) -> tuple[Policy, ...]:
        """Every model that is compared with base, tuned first."""
        return (self.tuned, *self.controls, *self.replicates)


def load_matched(
    base: Any,
    tuned: Any = None,
    *,
    controls: Sequence[Any] | None = None,
    replicates: Sequence[Any] | None = None,
    tokenizer: Any = None,
    one_shape: bool = True,
    one_in_memory: bool = False,
    loaded: Policy | None = None,
    options: Mapping[str, Any] | None = None,
) -> MatchedModels:
    """Load the models of a comparison.

    LoRA adapters of base share its weights. A loaded module that comes without a tokenizer reads with base's. Where
    vocabularies differ by added tokens, or by the width of the logits, every model is read on the tokens that all
    share.

    Args:
        base: what `interp.load` takes; or a pair, by itself, which names its models and says how they are loaded.
        tuned: the same; also control runs and replicates.
        controls: control runs; None: a pair's own.
        replicates: runs with other seeds; None: a pair's own.
        tokenizer: a tokenizer for all, or "base" or "tuned"; None: each model's own.
        one_shape: refuse models of different shapes.
        one_in_memory: each leaves memory when it is loaded and checked (see `interp.models.offload`).
        loaded: the first policy of an earlier call of this base, with the same tokenizer and options; it is not
            loaded again, unless tuned has been put around base.
        options: further arguments of `interp.load`, for what comes as a folder or an id.

    Raises:
        LoadError: a model cannot be loaded, or an adapter was made for another base.
        TokenizerMismatch: the models do not share their tokens; base and tuned alone may differ (see `MatchedModels`).
        MeasureError: the models differ in shape.
    """
    if isinstance(base, CheckpointPair):
        if tuned is not None:
            raise LoadError("a pair has its own tuned model; pass the pair alone, or pair.base and another tuned one")
        pair, base, tuned = base, base.base, base.tuned
        controls = pair.controls if controls is None else controls
        replicates = pair.replicates if replicates is None else replicates
        tokenizer = pair.tokenizer if tokenizer is None else tokenizer
        one_in_memory, options = one_in_memory or pair.in_memory == "one", {**pair.loading, **(options or {})}
    controls, replicates, options = controls or (), replicates or (), options or {}
    sources = [_alone(base, tuned), tuned, *controls, *replicates]
    names = ["base", "tuned", *_numbered("control", controls), *_numbered("replicate", replicates)]
    shared = _tokenizer_for_all(tokenizer, base, tuned, bool(options.get("trust_remote_code")))
    again = loaded is not None and sources[0] is base
    first = loaded if loaded is not None and again else _load(sources[0], shared, options)
    if one_in_memory and not again:
        first = offloaded(first, "base", sole=isinstance(sources[0], (str, os.PathLike)))
    if shared is not None and not isinstance(shared, (str, os.PathLike)) and first.tokenizer is not shared:
        first = replace(first, tokenizer=shared)
    shared = first.tokenizer if isinstance(shared, (str, os.PathLike)) else shared
    policies, mismatch = [first], None
    for name, source in zip(names[1:], sources[1:], strict=True):
        borrowed = first.tokenizer if shared is None and isinstance(source, nn.Module) else shared
        policy = _load(source, borrowed, {**_base_for(source, sources[0], first), **options})
        if one_in_memory:
            policy = offloaded(policy, name, sole=isinstance(source, (str, os.PathLike)))
        policies.append(policy if shared is None else replace(policy, tokenizer=shared))
        if one_shape:
            _check_same_shape(first, policy, name)
        if mismatch is None:
            mismatch = _mismatch(policies, name)
            if mismatch is not None and name != "tuned":
                raise TokenizerMismatch(mismatch)
    if mismatch is None:
        policies = _on_shared_tokens(policies, names)
    count = 2 + len(controls)
    return MatchedModels(policies[0], policies[1], tuple(policies[2:count]), tuple(policies[count:]), mismatch)


def _load(source: Any, tokenizer: Any, options: Mapping[str, Any]) -> Policy:
    """A policy; one that is loaded already stays what and where it is."""
    return Policy.load(source, tokenizer=tokenizer, **(options if isinstance(source, (str, os.PathLike)) else {}))


def load_matched_many(
    base: Any,
    tuned: Mapping[str, Any],
    *,
    controls: Sequence[Any],
    replicates: Mapping[str, Sequence[Any]],
    tokenizer: Any,
    one_in_memory: bool,
    **how: Any,
) -> dict[str, MatchedModels]:
    """Load several pairs of one base; base and the control runs are loaded once where all read the same tokens.

    Args:
        base: see `load_matched`.
        tuned: the tuned models by name.
        controls: control runs, which every pair has.
        replicates: runs with other seeds, by the name of their pair.
        tokenizer: see `load_matched`.
        one_in_memory: see `load_matched`.
        **how: further arguments of `load_matched`.

    Raises:
        InterpError: as `load_matched`.
    """
    matched: dict[str, MatchedModels] = {}
    first: MatchedModels | None = None
    for name, source in tuned.items():
        matched[name] = load_matched(
            base,
            source,
            controls=controls if first is None or one_in_memory else first.controls,
            replicates=replicates.get(name, ()),
            tokenizer=tokenizer,
            one_in_memory=one_in_memory,
            loaded=None if first is None else first.base,
            **how,
        )
        if first is None and tokenizer != "tuned" and matched[name].base.parts.vocab is None:
            first = matched[name]
    return matched


def _numbered(name: str, sources: Sequence[Any]) -> Iterator[str]:
    return (f"{name} {index}" for index in range(len(sources)))


def _alone(base: Any, tuned: Any) -> Any:
    """Base without the layers that peft has put into it for tuned, where tuned is wrapped around it."""
    if isinstance(base, nn.Module) and isinstance(tuned, nn.Module) and base is not tuned:
        if any(module is base for module in tuned.modules()):
            return without_adapter(base)
    return base


def _tokenizer_for_all(tokenizer: Any, base: Any, tuned: Any, trust_remote_code: bool) -> Any:
    owner = {"base": base, "tuned": tuned}.get(tokenizer) if isinstance(tokenizer, str) else None
    if owner is None:
        return tokenizer
    if isinstance(owner, nn.Module):
        raise LoadError(f"{tokenizer} is a loaded module and comes without a tokenizer; pass the tokenizer itself")
    return owner.tokenizer if isinstance(owner, Policy) else load_tokenizer(owner, trust_remote_code=trust_remote_code)


def _base_for(source: Any, base_source: Any, base: Policy) -> dict[str, Any]:
    """For an adapter: that it goes on base, whose weights it shares.

    Raises:
        LoadError: it names another base.
    """
    folder = adapter_folder(source) if isinstance(source, (str, os.PathLike)) else None
    if folder is None:
        return {}
    under = base_source
    if isinstance(base_source, (str, os.PathLike)):
        of_base = adapter_folder(base_source)
        under = base_source if of_base is None else adapter_base(of_base)
    try:
        named = adapter_base(folder)
    except LoadError:  # it names none
        return {"base": base}
    if isinstance(under, (str, os.PathLike)) and _differ(os.fspath(under), named):
        raise LoadError(
            f"the adapter {folder} was made for {named}, and base is {os.fspath(under)}; pass that as base, or, where"
            f" they are the same, interp.Policy.load({str(source)!r}, base=...) as tuned"
        )
    return {"base": base}


def _differ(base: str, named: str) -> bool:
    """Whether two sources are known to be different models; a folder and a hub id may be the same."""
    try:
        folders = [local_folder(base), local_folder(named)]
    except LoadError:  # the adapter was trained elsewhere: a path that is not here tells nothing
        return False
    if all(folders):
        first, second = (
            {name: value for name, value in describe_source(folder)["sha256"].items() if name != "config.json"}
            for folder in folders
        )
        return bool(first != second)
    if any(folders):
        return False
    return split_revision(base)[0].lower() != split_revision(named)[0].lower()


def _check_same_shape(base: Policy, other: Policy, name: str) -> None:
    keys = ("family", "layers", "heads", "d_model", "d_head", "kv_heads", "neurons")
    shapes = [{key: policy.description[key] for key in keys} for policy in (base, other)]
    differ = [key for key in keys if shapes[0][key] != shapes[1][key]]
    if differ:
        first, second = (", ".join(f"{key} {shape[key]}" for key in differ) for shape in shapes)
        raise MeasureError(f"base has {first}, {name} {second}; compare a model with its own tuned version")


def _mismatch(policies: Sequence[Policy], name: str) -> str | None:
    """Why base and the last of `policies` share no vocabulary, or None."""
    first, last = policies[0].tokenizer, policies[-1].tokenizer
    if first is last or shared_tokens(first, last) is not None:
        return None
    try:
        check_same_vocabulary(first, last, name)
    except TokenizerMismatch as error:
        return str(error).split(";")[0]
    raise AssertionError("equal vocabularies share their tokens")


def shared_tokens(first: Any, second: Any) -> int | None:
    """How many ids, from 0 on, mean the same token to two tokenizers, where one is the other with tokens added.

    Returns:
        The number, or None where the tokenizers differ otherwise.
    """
    small, large = sorted((first.get_vocab(), second.get_vocab()), key=len)
    if not small.items() <= large.items():
        return None
    end = 1 + max(small.values())
    added = [large[token] for token in large.keys() - small.keys()]
    return end if not added or min(added) >= end else None


def _on_shared_tokens(policies: Sequence[Policy], names: Sequence[str]) -> list[Policy]:
    """The policies, read on the tokens that all of them share."""
    base = policies[0].tokenizer
    widths = [policy.vocab_size for policy in policies]
    ends = [shared_tokens(base, policy.tokenizer) or min(widths) for policy in policies if policy.tokenizer is not base]
    known = min(ends, default=1 + max(base.get_vocab().values()))
    extended = any(policy.tokenizer.get_vocab() != base.get_vocab() for policy in policies[1:])
    narrow = min(widths)
    if len(set(widths)) == 1 and base.vocab_size > narrow:
        raise TokenizerMismatch(
            f"the models predict {narrow} tokens, the tokenizer has {base.vocab_size}: it belongs to another model;"
            " pass the one that they were trained with (tokenizer=)"
        )
    if len(set(widths)) == 1 and not extended:
        return list(policies)
    if narrow < known and len(set(widths)) > 1:
        raise TokenizerMismatch(
            f"{names[widths.index(narrow)]} predicts {narrow} tokens, the tokenizer has {known}; pass the one that"
            " the models were trained with (tokenizer=)"
        )
    shared = min(narrow, known) if extended else narrow
    return [policy.limited(shared) for policy in policies]


# Fields of a config that change nothing in a forward pass of these models.
_IDLE = """_name_or_path transformers_version architectures dtype torch_dtype use_cache vocab_size bos_token_id
eos_token_id pad_token_id sep_token_id decoder_start_token_id id2label label2id problem_type task_specific_params
initializer_range initializer_factor init_std tokenizer_class max_position_embeddings n_positions n_ctx peft_config
gradient_checkpointing return_dict output_attentions output_hidden_states auto_map tie_word_embeddings""".split()


def _config(model: Any) -> dict[str, Any]:
    return dict(model.config.to_dict())


def remarks(base: Policy, other: Policy, texts: Sequence[str] = (), name: str = "tuned") -> list[str]:
    """What a reader must know of two models that do not compute, or read, alike.

    Args:
        base: base model.
        other: the model that is compared with it.
        texts: the prompts, as both are to read them.
        name: how a remark calls the other model.
    """
    notes = []
    added = other.tokenizer.get_vocab().keys() - base.tokenizer.get_vocab().keys()
    shredded = sorted(token for token in added if any(token in text for text in texts))
    if shredded and shared_tokens(base.tokenizer, other.tokenizer) is not None:
        notes.append(
            f"The prompts hold {shredded[0]!r}, a token that only {name} has: both models read it in base's pieces, as"
            f" {name} was not trained to; pass tokenizer={name!r} where base's embedding has a row for it."
        )
    kinds = [policy.description["dtype"] for policy in (base, other)]
    if kinds[0] != kinds[1]:
        notes.append(
            f"base is in {kinds[0]}, {name} in {kinds[1]}: part of the difference is rounding; dtype= loads both alike."
        )
    first, second = (_config(policy.model) for policy in (base, other))
    keys = [key for key in sorted({*first, *second}) if key not in _IDLE and "drop" not in key and key[:1] != "_"]
    differ = [f"{key} ({first.get(key)} and {second.get(key)})" for key in keys if first.get(key) != second.get(key)]
    if differ:
        notes.append(f"The configs of base and {name} differ in {', '.join(differ[:3])}: not all of this is training.")
    return notes
