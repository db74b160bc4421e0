"""compare() and compare_many(): two models and some prompts in, what the tuning changed out, as a `Comparison`."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, overload

import numpy as np
import pandas as pd
import xarray as xr

from interp import __version__
from interp.errors import LoadError, MeasureError, PromptError, TokenizerMismatch, renamed
from interp.measures import Settings, as_names, check_measures
from interp.measures import measures as known_measures
from interp.measures.arrays import strings
from interp.measures.engine import run_measures
from interp.measures.registry import samples_needed
from interp.measures.summary import interval_notes, remarks_of, summarise
from interp.models import Policy, Source, as_reward, load_pair, source_name
from interp.models.matched import MatchedModels, load_matched_many, remarks
from interp.models.offload import AllInMemory, OneInMemory
from interp.pair import CheckpointPair, pair_at
from interp.progress import Progress, no_progress
from interp.prompts import Prompts
from interp.report import render
from interp.report.verdict import verdict
from interp.result import Result, register_page
from interp.reward.implicit_reward import ImplicitReward
from interp.reward.joins import implicit_reward_of, over_optimisation_of, probes_of, token_join_of
from interp.reward.over_optimisation import OverOptimisation
from interp.reward.probes import Probes
from interp.reward.token_join import TokenJoin
from interp.sampling import Sampling

Place = str | os.PathLike[str]


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Result):
    """What a tuning changed, as labelled arrays.

    `cmp["logit_diff"]` is an `xarray.DataArray`; `cmp.summary()` the table to read first; `cmp.plot.lens()` a figure;
    `cmp.report("report.html")` a page; `cmp.save("out")` and `interp.load_result("out")` keep it; `cmp.add(result)`
    puts a patching, circuit or reward result of the same models on its page.
    """

    kind: ClassVar[str] = "comparison"
    title: ClassVar[str] = "Comparison"

    def table(self) -> pd.DataFrame:
        """The findings as a terminal shows them: what control runs give stands beside the estimate."""
        return self.summary().drop(columns=["reading"])

    def headline(self) -> str:
        """What is compared with what, and the first thing that it says."""
        base, tuned = (_short_name(json.loads(self.dataset.attrs[name])) for name in ("base", "tuned"))
        first = verdict(self, self.summary())[0]
        return f"{tuned} (tuned) against {base} (base), {prompts_in_words(self.dataset)}. {first}"

    def notes(self) -> list[str]:
        """What a reader must know to read the summary rightly."""
        said, remarked = interval_notes(self.dataset), len(remarks_of(self.dataset))
        alone = "No control runs: these two models differ here; it is open whether the reward did it."
        return [*said[:remarked], *([] if self.controls else [alone]), *said[remarked:]]

    def summary(self) -> pd.DataFrame:
        """The findings of every measure, largest first (see `interp.measures.summary.summarise`)."""
        return summarise(self.dataset, self.controls, self.replicates, seed=int(self.dataset.attrs["seed"]))

    @property
    def implicit_reward(self) -> ImplicitReward:
        """The policy's shift beside the reward that it was tuned toward (see `interp.reward.implicit_reward`).

        Raises:
            MeasureError: it was not taken, or left out; the message says why.
        """
        return implicit_reward_of(self.dataset)

    @property
    def token_join(self) -> TokenJoin:
        """The reward's attribution beside what the tokens moved (see `interp.reward.token_join`).

        Raises:
            MeasureError: it was not taken, or left out; the message says why.
        """
        return token_join_of(self.dataset)

    @property
    def over_optimisation(self) -> OverOptimisation:
        """The reward against the distance from base over the training (see `interp.reward.over_optimisation`).

        Raises:
            MeasureError: it was not taken, or left out; the message says why.
        """
        return over_optimisation_of(self.dataset)

    @property
    def probes(self) -> Probes:
        """When a high reward could be read from policy and reward model (see `interp.reward.probes`).

        Raises:
            MeasureError: it was not taken, or left out; the message says why.
        """
        return probes_of(self.dataset)


register_page(Comparison.kind, render)


def _short_name(description: Mapping[str, Any]) -> str:
    """A model in a word: of a folder the end of its path."""
    name = source_name(description)
    return "/".join(Path(name).parts[-2:]) if "folder" in description else name


def prompts_in_words(data: xr.Dataset) -> str:
    """How many prompts there are, and in how many groups where some are resampled together."""
    count, groups = data.sizes["prompt"], len(np.unique(data["group"].values))
    prompts = "1 prompt" if count == 1 else f"{count} prompts"
    return prompts if groups == count else f"{prompts} in {groups} {'group' if groups == 1 else 'groups'}"


_LOADING = "say it where the models are loaded: interp.load({0}=...), interp.load_reward({0}=...) or for the pair "
_LOADING += "interp.load_pair(base=..., tuned=..., {0}=...)"
_OLD = {
    **{name: _LOADING.format(name) for name in ("dtype", "device", "device_map", "trust_remote_code", "allow_pickle")},
    "tokenizer": "pass a pair: compare(interp.load_pair(base=..., tuned=..., tokenizer=...), prompts)",
    "in_memory": "pass a pair: compare(interp.load_pair(base=..., tuned=..., in_memory='one'), prompts)",
    "control": "pass controls=[...]",
    "draws": "pass sampling=interp.Sampling(samples=...)",
    "max_new_tokens": "pass sampling=interp.Sampling(max_new_tokens=...)",
    "optimised": "pass reward=interp.load_reward(..., optimised=...)",
}
"""Parameters that compare once had, and what is said instead."""


@overload
def compare(
    base: CheckpointPair | Place,
    tuned: Prompts | Sequence[str],
    prompts: None = None,
    *,
    measures: Iterable[str] | None = None,
    reward: Any = None,
    controls: Sequence[Any] | None = None,
    replicates: Sequence[Any] | None = None,
    sampling: Sampling = Sampling(),
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> Comparison: ...


@overload
def compare(
    base: Source | Policy,
    tuned: Source | Policy,
    prompts: Prompts | Sequence[str],
    *,
    measures: Iterable[str] | None = None,
    reward: Any = None,
    controls: Sequence[Any] | None = None,
    replicates: Sequence[Any] | None = None,
    sampling: Sampling = Sampling(),
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> Comparison: ...


@renamed(**_OLD)
def compare(
    base: Any,
    tuned: Any = None,
    prompts: Prompts | Sequence[str] | None = None,
    *,
    measures: Iterable[str] | None = None,
    reward: Any = None,
    controls: Sequence[Any] | None = None,
    replicates: Sequence[Any] | None = None,
    sampling: Sampling = Sampling(),
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Compare a base model with its tuned version on some prompts.

    Args:
        base: hub id (with its revision as "id@revision"), folder, loaded module (peft's too), or `Policy`. Or a pair
            (see `interp.load_pair`), its folder or its name, with the prompts behind it: `compare(pair, prompts)`; the
            pair says which models, reward, control runs and replicates it has, with which tokenizer they read and how
            many are in memory at a time.
        tuned: what base may be, of the same shape; or a LoRA adapter, which goes on base and shares its weights.
        prompts: a `Prompts`, or a list of texts.
        measures: names from `interp.MEASURES`, or "all"; None is `interp.DEFAULT_MEASURES`, and where a reward is given
            `completions`, `implicit_reward` and `token_join`.
        reward: what `interp.load_reward` takes. It scores the sampled completions, and is joined to them: does the
            policy's shift follow the reward (`interp.reward.implicit_reward`), and did the tokens move that the
            reward's attribution names (`interp.reward.token_join`)? Of a pair that kept checkpoints
            `over_optimisation` and `probes` can be asked for.
        controls: control runs (tuned toward a shuffled reward, say); each is compared with base likewise, and the
            summary shows the range of what they give.
        replicates: models of the same recipe with other seeds, whose spread the summary shows beside.
        sampling: how continuations are sampled; None samples are 1, or 4 where the implicit reward is taken, which
            needs 8 from both models.
        batch_size: prompts a forward pass; changes no result beyond rounding.
        seed: seed of sampled completions and of the bootstrap.
        progress: called with what is being done, how much of it is done, and how much there is.

    Raises:
        LoadError: a model cannot be loaded.
        UnknownFamily: its architecture is not known.
        FidelityError: its hooks do not add up to the bare model.
        TokenizerMismatch: base and tuned do not share a vocabulary, as the measures need.
        PromptError: the prompts or answers do not fit.
        MeasureError: a measure is unknown, or the two models differ in shape.
    """
    pair, tuned, prompts = _pair_and_prompts(base, tuned, prompts)
    call = _Call(pair, measures, reward, sampling, batch_size, seed, progress)
    runs = {"controls": pair.controls if controls is None else _listed(controls, "controls")}
    again = pair.replicates if replicates is None else _listed(replicates, "replicates")
    return _compare({"": tuned}, prompts, call, controls=runs["controls"], replicates={"": again})[""]


class Comparisons(Result):
    """Several tuned versions of one base model, each compared with it; a mapping from their names to `Comparison`s."""

    kind: ClassVar[str] = "comparisons"
    title: ClassVar[str] = "Comparisons"

    @classmethod
    def of(cls, comparisons: Mapping[str, Comparison]) -> Comparisons:
        """Put comparisons together by their names."""
        names = xr.Variable(("comparison",), strings(list(comparisons)), {"long_name": "names of the comparisons"})
        return cls(xr.Dataset({"name": names}), added=dict(comparisons))

    def headline(self) -> str:
        """How many there are, and where each says what it found."""
        count = len(self.added)
        return f"{count} {'comparison' if count == 1 else 'comparisons'} with one base; result[name] is one of them."

    def table(self) -> pd.DataFrame:
        """What each says first, a line each."""
        return pd.DataFrame({"name": list(self), "first": [other.headline() for other in self.values()]})

    def summary(self) -> pd.DataFrame:
        """The findings of all, with a column `comparison` before those of `Comparison.summary`."""
        frames = [other.summary().assign(comparison=name) for name, other in self.items()]
        whole = pd.concat(frames, ignore_index=True)
        return whole[["comparison", *(column for column in whole.columns if column != "comparison")]]

    def __getitem__(self, name: str) -> Any:
        """The comparison `name`.

        Raises:
            MeasureError: there is none; the message lists those there are.
        """
        if name not in self.added:
            raise MeasureError(f"there is no comparison {name!r}; there are {', '.join(self.added)}")
        return self.added[name]

    def __contains__(self, name: object) -> bool:
        return name in self.added

    def __len__(self) -> int:
        return len(self.added)

    def keys(self) -> list[str]:
        """Names of the comparisons."""
        return list(self.added)

    def values(self) -> list[Comparison]:
        """The comparisons."""
        return [other for other in self.added.values() if isinstance(other, Comparison)]

    def items(self) -> list[tuple[str, Comparison]]:
        """Names and comparisons."""
        return list(zip(self.keys(), self.values(), strict=True))


@renamed(**_OLD)
def compare_many(
    base: Source | Policy | CheckpointPair,
    tuned: Mapping[str, Source | Policy],
    prompts: Prompts | Sequence[str],
    *,
    measures: Iterable[str] | None = None,
    reward: Any = None,
    controls: Sequence[Any] | None = None,
    replicates: Mapping[str, Sequence[Any]] | None = None,
    sampling: Sampling = Sampling(),
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> Comparisons:
    """Compare a base model with several tuned versions of it, and compute once what concerns base alone.

    Each comparison has exactly the numbers that `compare` gives for that pair. Base is loaded once, traced once per
    batch, and sampled from once; all models are in memory together, unless a pair says otherwise.

    Args:
        base: see `compare`; of a `CheckpointPair` its base is taken, with its tokenizer and its way of loading, but
            neither its reward nor its control runs, as these belong to its own tuned model.
        tuned: the tuned models by the names of their comparisons.
        prompts: see `compare`.
        measures: see `compare`.
        reward: see `compare`.
        controls: control runs that serve every pair; each is compared with base once.
        replicates: runs of the same recipe with other seeds, by the name of their pair.
        sampling: see `compare`.
        batch_size: see `compare`.
        seed: see `compare`.
        progress: see `compare`.

    Raises:
        PromptError: no model is given, or replicates are those of an unknown pair.
        InterpError: as `compare`.
    """
    named = tuned if isinstance(tuned, Mapping) else {}
    unknown = sorted(set(replicates or {}) - set(named))
    if not named or unknown:
        none = "no tuned model came" if isinstance(tuned, Mapping) else f"a {type(tuned).__name__} of tuned models came"
        came = f"replicates name {unknown[0]!r}, which is no pair" if unknown else none
        raise PromptError(f"{came}; give the tuned models by name, as compare_many(base, {{'joy': model}}, prompts)")
    pair = base if isinstance(base, CheckpointPair) else load_pair(base=base, tuned=next(iter(tuned.values())))
    call = _Call(
        replace(pair, models={**pair.models, "reward": None}), measures, reward, sampling, batch_size, seed, progress
    )
    again = {name: _listed(runs, f"replicates of {name}") for name, runs in (replicates or {}).items()}
    return Comparisons.of(
        _compare(tuned, prompts, call, controls=_listed(controls or (), "controls"), replicates=again)
    )


def _pair_and_prompts(base: Any, tuned: Any, prompts: Any) -> tuple[CheckpointPair, Any, Prompts | Sequence[str]]:
    """The pair that is compared, its tuned model, and the prompts, out of two or three arguments."""
    pair = pair_at(base)
    if prompts is None and pair is not None:
        return pair, pair.tuned, tuned
    if isinstance(base, CheckpointPair):
        raise LoadError("a pair has its own tuned model: compare(pair, prompts); or name pair.base and another tuned")
    if prompts is None:
        what = "" if tuned is None else f"; {base!r} is no pair" if isinstance(base, (str, os.PathLike)) else ""
        raise PromptError(f"prompts are missing{what}; compare(base, tuned, prompts), or compare(pair, prompts)")
    return load_pair(base=base, tuned=tuned), tuned, prompts


def _listed(models: Any, name: str) -> list[Any]:
    if isinstance(models, (list, tuple)):
        return list(models)
    raise PromptError(f"{name} is a list of models, not a {type(models).__name__}; put it in brackets")


@dataclass(frozen=True)
class _Call:
    """The arguments of `compare` that are no model and no prompt; `pair` says how models are loaded."""

    pair: CheckpointPair
    measures: Iterable[str] | None
    reward: Any
    sampling: Sampling
    batch_size: int
    seed: int
    progress: Progress | None

    @property
    def reward_source(self) -> Any:
        """The reward that is meant: what was given, or the pair's own where it is a model."""
        if self.reward is not None:
            return self.reward
        return self.pair if self.pair.reward is not None and not callable(self.pair.reward) else None

    @property
    def trained(self) -> CheckpointPair | None:
        """The pair whose training the reward belongs to."""
        pair = pair_at(self.reward_source)
        return pair if pair is not None and pair.path is not None else None

    def checked(self, prompts: Prompts) -> tuple[str, ...]:
        """Names of the measures to take.

        Raises:
            MeasureError: they do not fit the arguments.
            PromptError: an argument is out of its range.
        """
        asked = None if self.measures is None else as_names(self.measures)
        with_checkpoints = self.trained is not None and bool(self.trained.checkpoints)
        names = check_measures(asked, with_reward=self.reward_source is not None, with_checkpoints=with_checkpoints)
        check_whole(batch_size=self.batch_size, seed=self.seed)
        for name in (each for each in asked or () if each != "all"):
            needs, samples = known_measures()[name].needs, self.sampling.samples
            if needs.answers and prompts.answers is None:
                raise MeasureError(
                    f"{name} needs answers: Prompts(..., answers=(' bad', ' good')), or --answer and --against"
                )
            if samples is not None and samples < needs.samples:
                raise MeasureError(f"{name} needs {needs.samples} samples or more, not {samples}; leave samples out")
        return names


def check_whole(**settings: Any) -> None:
    """Refuse numbers out of range before any model is loaded.

    Raises:
        PromptError: naming the range.
    """
    for name, value in settings.items():
        low = 0 if name == "seed" else 1
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 2**63:
            raise PromptError(f"{name} is a whole number from {low} on, not {value!r}")


def _compare(
    tuned: Mapping[str, Any],
    prompts: Prompts | Sequence[str],
    call: _Call,
    *,
    controls: Sequence[Any],
    replicates: Mapping[str, Sequence[Any]],
) -> dict[str, Comparison]:
    prompts = prompts if isinstance(prompts, Prompts) else Prompts(prompts)
    names, pair = call.checked(prompts), call.pair
    matched = load_matched_many(
        pair.base,
        tuned,
        controls=controls,
        replicates=replicates,
        tokenizer=pair.tokenizer,
        one_shape=any(known_measures()[name].needs.same_shape for name in names),
        one_in_memory=pair.in_memory == "one",
        options=pair.loading,
    )
    for models in matched.values():
        _check_tokens(models, names)
    settings = _settings(call, names, matched)
    common = _common_attributes(settings, prompts)
    compared: dict[str, Comparison] = {}
    for group in _with_one_base(matched).values():
        others = _once([other for models in group.values() for other in models.others])
        first = next(iter(group.values()))
        pairs = {id(models.tuned) for models in group.values()}
        measured = run_measures(
            first.base,
            others,
            prompts,
            replace(settings, own_tokens=first.mismatch is not None),
            of_the_pair=[index for index, other in enumerate(others) if id(other) in pairs],
        )
        by_model = {id(other): data for other, data in zip(others, measured, strict=True)}
        compared |= {name: _comparison(models, by_model, common) for name, models in group.items()}
    return {name: _with_pair_remark(compared[name], call.trained) for name in matched}


def _settings(call: _Call, names: tuple[str, ...], matched: Mapping[str, MatchedModels]) -> Settings:
    reward = None if call.reward_source is None else as_reward(call.reward_source)
    modules = [policy.model for models in matched.values() for policy in (models.base, *models.others)]
    modules += [] if reward is None else [reward.model]
    return Settings(
        names,
        call.batch_size,
        call.seed,
        replace(call.sampling, samples=call.sampling.samples or samples_needed(names)),
        reward,
        call.trained,
        in_memory=OneInMemory.of(_once(modules)) if call.pair.in_memory == "one" else AllInMemory(),
        progress=call.progress or no_progress,
    )


def _with_pair_remark(cmp: Comparison, pair: CheckpointPair | None) -> Comparison:
    """A comparison with a remark where its tuned model is not that of the pair whose reward was named."""
    described = json.loads(cmp.dataset.attrs["tuned"])
    if pair is None or "folder" not in described:
        return cmp
    inside = f"{pair.manifest['tuned'].get('path', '')}/"
    theirs = {digest for name, digest in pair.manifest["files"].items() if name.startswith(inside)}
    weights = {d for name, d in described.get("sha256", {}).items() if name.endswith(".safetensors")}
    if weights & theirs or os.path.realpath(described["folder"]) == os.path.realpath(pair.tuned):
        return cmp
    remark = f"The reward is that of the pair {pair.path}, whose tuned model is another than this one."
    said = [str(cmp.dataset.attrs.get("remarks", "")), remark]
    return replace(cmp, dataset=cmp.dataset.assign_attrs(remarks="\n".join(filter(None, said))))


def _common_attributes(settings: Settings, prompts: Prompts) -> dict[str, Any]:
    """What all comparisons of one call have in common."""
    used = {
        "measures": list(settings.measures),
        "batch_size": settings.batch_size,
        "max_new_tokens": settings.sampling.max_new_tokens,
        "samples": settings.sampling.samples,
        "multi_token": prompts.multi_token,
        "bos": prompts.bos,
        "prompts": len(prompts),
    }
    if not settings.sampling.is_plain:
        used |= {name: getattr(settings.sampling, name) for name in ("temperature", "top_k", "top_p")}
    reward = None if settings.reward is None else dict(settings.reward.description)
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "numpy", "xarray")}
    return {
        "interp_version": __version__,
        "seed": settings.seed,
        "reward": json.dumps(reward),
        "settings": json.dumps(used),
        "versions": json.dumps({"python": platform.python_version(), **versions}),
    }


def _once(items: Iterable[Any]) -> list[Any]:
    """Every object once, in the order in which they first came."""
    return list({id(item): item for item in items}.values())


def _with_one_base(matched: Mapping[str, MatchedModels]) -> dict[Any, dict[str, MatchedModels]]:
    """Models that can share what is computed of base: where tokens differ, each is by itself."""
    groups: dict[Any, dict[str, MatchedModels]] = {}
    for name, models in matched.items():
        key = id(models.base) if models.mismatch is None else name
        groups.setdefault(key, {})[name] = models
    return groups


def _comparison(models: MatchedModels, measured: Mapping[int, xr.Dataset], common: Mapping[str, Any]) -> Comparison:
    """One pair's datasets with what must be known of them."""
    labelled = []
    for other in models.others:
        data = measured[id(other)]
        texts = [str(text) for text in data["text"].values]
        said = [str(data.attrs.get("remarks", "")), *remarks(models.base, other, texts)]
        attrs = {**common, **_descriptions(models, other), "remarks": "\n".join(filter(None, said))}
        labelled.append(data.assign_attrs(attrs))
    count = 1 + len(models.controls)
    return Comparison(labelled[0], tuple(labelled[1:count]), tuple(labelled[count:]))


def _descriptions(models: MatchedModels, tuned: Policy) -> dict[str, str]:
    """Which models a dataset is of; those of control runs and replicates stand for one model each."""
    beside = (models.controls, models.replicates) if tuned is models.tuned else ((), ())
    lists = {
        name: [dict(one.description) for one in runs]
        for name, runs in zip(("controls", "replicates"), beside, strict=True)
    }
    parts = {"base": dict(models.base.description), "tuned": dict(tuned.description), **lists}
    return {name: json.dumps(part) for name, part in parts.items()}


def _check_tokens(models: MatchedModels, names: Sequence[str]) -> None:
    """Refuse measures of tokens where the models share none."""
    refused = [name for name in names if known_measures()[name].needs.shared_vocabulary]
    if models.mismatch is not None and refused:
        raise TokenizerMismatch(
            f"{models.mismatch}; {', '.join(refused)} need one vocabulary: pass measures=['completions'] (--measure"
            " completions, with reward= if you have one) to compare what the models say, or, where tuned's is a"
            ' mistaken copy, interp.load_pair(..., tokenizer="base")'
        )
