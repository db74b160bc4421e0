"""compare() and compare_many(): from models and prompts to a Comparison."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from typing import Any

import torch
import xarray as xr

from interp import __version__
from interp.comparison import Comparison
from interp.errors import PromptError, TokenizerMismatch
from interp.measures import Settings
from interp.measures import measures as known_measures
from interp.measures.engine import run_measures
from interp.measures.registry import samples_needed
from interp.models import Policy, RewardModel, Source
from interp.models.matched import MatchedModels, load_matched_many, remarks
from interp.models.offload import AllInMemory, OneInMemory
from interp.models.optimised import Optimised
from interp.models.pretrained import DeviceMap
from interp.options import Options, pair_of, scorer_of, transform_of
from interp.progress import Progress, no_progress
from interp.prompts import Prompts
from interp.sampling import Sampling
from interp.store import FORMAT


def compare(
    base: Source | Policy,
    tuned: Source | Policy,
    prompts: Prompts | Sequence[str],
    *,
    measures: Iterable[str] | None = None,
    reward: Any = None,
    optimised: Any = None,
    control: Any = None,
    replicates: Any = None,
    tokenizer: Any = None,
    batch_size: int = 16,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    device_map: DeviceMap = None,
    trust_remote_code: bool = False,
    seed: int = 0,
    max_new_tokens: int = 24,
    draws: int | None = None,
    allow_pickle: bool = False,
    in_memory: str = "all",
    progress: Progress | None = None,
) -> Comparison:
    """Compare a base model with its tuned version on some prompts.

    Args:
        base: hub id (with its revision as "id@revision"), folder, loaded module (peft's too), or `Policy`.
        tuned: the same, of the same shape; or a LoRA adapter, which goes on base and shares its weights.
        prompts: a `Prompts`, or a list of texts.
        measures: names from `interp.MEASURES`, or "all"; None is `interp.DEFAULT_MEASURES`, and where a reward is given
            `completions`, `implicit_reward` and `token_join`.
        reward: a `RewardModel`, where one with a single label lies, or a `CheckpointPair` or its folder, which name
            theirs. It scores the sampled completions, and is joined to them: does the policy's shift follow the reward
            (`interp.reward.implicit_reward`), and did the tokens move that the reward's attribution names
            (`interp.reward.token_join`)? Of a pair that kept checkpoints `over_optimisation` and `probes` can be asked
            for.
        optimised: what made the raw score the reward that was optimised: an `Optimised`, a function of an array of
            scores, or a pair, whose recipe says it; None: what the recipe says where `reward` is a pair, else the raw
            score.
        control: one null run's model or a list of them (a shuffled reward, say); each is compared with base likewise,
            and the summary shows the range of what they give.
        replicates: one or more models of the same recipe with other seeds, whose spread the summary shows beside.
        tokenizer: a tokenizer for all, or "base" or "tuned"; None: each model's own. Where one has tokens added, models
            are compared on the shared ones, and `mass_outside` says how much lies outside; where they differ
            otherwise, `completions` alone can be compared, each model reading with its own.
        batch_size: prompts a forward pass; changes no result beyond rounding.
        dtype: dtype of the weights when loading; None keeps that of the files.
        device: device when loading; None is the CPU.
        device_map: where parts of a model go, instead of `device`; "auto" spreads them over the GPUs there are.
        trust_remote_code: run code that comes with a model.
        seed: seed of sampled completions and of the bootstrap.
        max_new_tokens: longest sampled completion.
        draws: completions sampled from each model to each prompt; None is 1, or 4 where the implicit reward is taken,
            which needs 8 from both.
        allow_pickle: accept pickled weights.
        in_memory: "all" models at a time, or "one": chunk by chunk of the prompts, base is traced into a scratch file
            (in TMPDIR, 2 GiB at most) and leaves memory before the next model comes. The results are the same; each
            chunk reads every model from its file once more.
        progress: called with what is being done, how much of it is done, and how much there is.

    Raises:
        LoadError: a model cannot be loaded, or with in_memory="one" came loaded.
        UnknownFamily: its architecture is not known.
        FidelityError: its hooks do not add up to the bare model.
        TokenizerMismatch: base and tuned do not share a vocabulary, as the measures need.
        PromptError: the prompts or answers do not fit.
        MeasureError: a measure is unknown, or the two models differ in shape.
    """
    options = Options(
        measures=measures,
        reward=reward,
        optimised=optimised,
        tokenizer=tokenizer,
        batch_size=batch_size,
        dtype=dtype,
        device=device,
        device_map=device_map,
        trust_remote_code=trust_remote_code,
        seed=seed,
        max_new_tokens=max_new_tokens,
        draws=draws,
        allow_pickle=allow_pickle,
        in_memory=in_memory,
        progress=progress,
    )
    return _compare_all(base, {"": tuned}, prompts, control=control, replicates={"": replicates}, options=options)[""]


def compare_many(
    base: Source | Policy,
    tuned: Mapping[str, Source | Policy],
    prompts: Prompts | Sequence[str],
    *,
    control: Any = None,
    replicates: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, Comparison]:
    """Compare a base model with several tuned versions of it, and compute once what concerns base alone.

    Each comparison is what `compare` gives of its pair, number for number. Base is loaded once, traced once a batch,
    and sampled from once; all models are in memory together, unless `in_memory` is "one".

    Args:
        base: see `compare`.
        tuned: the tuned models by the names of their comparisons.
        prompts: see `compare`.
        control: null runs that serve every pair; each is compared with base once.
        replicates: runs of the same recipe with other seeds, one or a list, by the name of their pair.
        **options: further arguments of `compare`.

    Raises:
        PromptError: no model is given, or replicates are those of an unknown pair.
        InterpError: as `compare`.
    """
    unknown = sorted(set(replicates or {}) - set(tuned))
    if not tuned or unknown:
        came = f"replicates name {unknown[0]!r}, which is no pair" if unknown else "no tuned model came"
        raise PromptError(f"{came}; give the tuned models by name, as compare_many(base, {{'joy': model}}, prompts)")
    chosen = Options(**options)
    return _compare_all(base, tuned, prompts, control=control, replicates=replicates or {}, options=chosen)


def _compare_all(
    base: Any,
    tuned: Mapping[str, Any],
    prompts: Prompts | Sequence[str],
    *,
    control: Any,
    replicates: Mapping[str, Any],
    options: Options,
) -> dict[str, Comparison]:
    prompts = prompts if isinstance(prompts, Prompts) else Prompts(prompts)
    names = options.checked(prompts)
    transform = transform_of(options)
    lineups = load_matched_many(
        base,
        tuned,
        controls=_as_list(control),
        replicates={name: _as_list(each) for name, each in replicates.items()},
        tokenizer=options.tokenizer,
        one_shape=any(known_measures()[name].needs.same_shape for name in names),
        one_in_memory=options.in_memory == "one",
        options={"dtype": options.dtype, **options.loading()},
    )
    for models in lineups.values():
        _check_tokens(models, names)
    scorer = scorer_of(options)
    run = _settings(options, names, scorer, lineups, transform)
    attributes = _run_attributes(run, prompts, transform)
    found: dict[str, Comparison] = {}
    for group in _with_one_base(lineups).values():
        others = _once([other for models in group.values() for other in models.others])
        first = next(iter(group.values()))
        own = replace(run, own_tokens=first.mismatch is not None)
        pairs = {id(models.tuned) for models in group.values()}
        of_the_pair = [index for index, other in enumerate(others) if id(other) in pairs]
        measured = run_measures(first.base, others, prompts, own, of_the_pair=of_the_pair)
        by_model = {id(other): data for other, data in zip(others, measured, strict=True)}
        found |= {name: _comparison(models, by_model, attributes) for name, models in group.items()}
    return {name: _about_pairs(found[name], options) for name in lineups}


def _about_pairs(cmp: Comparison, options: Options) -> Comparison:
    """A comparison with a remark where its tuned model is not that of the pair whose reward or recipe was named."""
    described = json.loads(cmp.dataset.attrs["tuned"])
    said = [str(cmp.dataset.attrs.get("remarks", ""))]
    for what, given in (("reward", options.reward), ("recipe (optimised)", options.optimised)):
        pair = pair_of(given)
        if pair is None or "folder" not in described:
            continue
        own = f"{pair.manifest['tuned'].get('path', '')}/"
        theirs = {digest for name, digest in pair.manifest["files"].items() if name.startswith(own)}
        weights = {d for name, d in described.get("sha256", {}).items() if name.endswith(".safetensors")}
        if not weights & theirs and os.path.realpath(described["folder"]) != os.path.realpath(pair.tuned):
            said.append(f"The {what} is that of the pair {pair.path}, whose tuned model is another than this one.")
    return replace(cmp, dataset=cmp.dataset.assign_attrs(remarks="\n".join(filter(None, said))))


def _settings(
    options: Options,
    names: tuple[str, ...],
    scorer: RewardModel | None,
    lineups: Mapping[str, MatchedModels],
    transform: Any,
) -> Settings:
    held = [policy.model for models in lineups.values() for policy in (models.base, *models.others)]
    in_turn = options.in_memory == "one"
    return Settings(
        names,
        options.batch_size,
        options.seed,
        Sampling(options.draws or samples_needed(names), options.max_new_tokens),
        scorer,
        pair_of(options.reward),
        transform,
        turns=OneInMemory.of([*_once(held), *([scorer.model] if scorer else [])]) if in_turn else AllInMemory(),
        progress=options.progress or no_progress,
    )


def _run_attributes(run: Settings, prompts: Prompts, transform: Any) -> dict[str, Any]:
    """What all comparisons of one call have in common."""
    settings = {
        "measures": list(run.measures),
        "batch_size": run.batch_size,
        "max_new_tokens": run.sampling.max_new_tokens,
        "draws": run.sampling.samples,
        "multi_token": prompts.multi_token,
        "bos": prompts.bos,
        "prompts": len(prompts),
    }
    described = None if run.reward is None else dict(run.reward.description)
    if described is not None and transform is not None:
        described["optimised"] = repr(transform) if isinstance(transform, Optimised) else _name_of(transform)
    return {"seed": run.seed, "settings": settings, "reward": described}


def _name_of(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _once(items: Iterable[Any]) -> list[Any]:
    """Every object once, in the order in which they first came."""
    return list({id(item): item for item in items}.values())


def _with_one_base(lineups: Mapping[str, MatchedModels]) -> dict[Any, dict[str, MatchedModels]]:
    """Lineups that can share what is computed of base: where tokens differ, each is by itself."""
    groups: dict[Any, dict[str, MatchedModels]] = {}
    for name, models in lineups.items():
        key = id(models.base) if models.mismatch is None else name
        groups.setdefault(key, {})[name] = models
    return groups


def _comparison(models: MatchedModels, measured: Mapping[int, xr.Dataset], common: Mapping[str, Any]) -> Comparison:
    """One pair's datasets with what must be known of them."""
    labelled = []
    for other in models.others:
        data = measured[id(other)]
        said = [str(data.attrs.get("remarks", "")), *remarks(models.base, other, _read_texts(data))]
        labelled.append(data.assign_attrs(_attributes(models, other, **common), remarks="\n".join(filter(None, said))))
    count = 1 + len(models.controls)
    return Comparison(labelled[0], tuple(labelled[1:count]), tuple(labelled[count:]))


def _read_texts(data: xr.Dataset) -> list[str]:
    return [str(text) for text in data["text"].values] if "text" in data.coords else []


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _check_tokens(models: MatchedModels, measures: Sequence[str]) -> None:
    """Refuse measures of tokens where the models share none."""
    refused = [name for name in measures if known_measures()[name].needs.shared_vocabulary]
    if models.mismatch is not None and refused:
        raise TokenizerMismatch(
            f"{models.mismatch}; {', '.join(refused)} need one vocabulary: pass measures=['completions'] (--measure"
            ' completions, with reward= if you have one) to compare what the models say, or tokenizer="base" where'
            " tuned's is a mistaken copy"
        )


def _attributes(models: MatchedModels, tuned: Policy, **common: Any) -> dict[str, Any]:
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "numpy", "xarray")}
    beside = tuned is models.tuned  # the datasets of null runs and replicates stand for one model each
    return {
        "format": FORMAT,
        "interp_version": __version__,
        "seed": common["seed"],
        "base": json.dumps(dict(models.base.description)),
        "tuned": json.dumps(dict(tuned.description)),
        "controls": json.dumps([dict(each.description) for each in models.controls] if beside else []),
        "replicates": json.dumps([dict(each.description) for each in models.replicates] if beside else []),
        "reward": json.dumps(common["reward"]),
        "settings": json.dumps(common["settings"]),
        "versions": json.dumps({"python": platform.python_version(), **versions}),
    }
