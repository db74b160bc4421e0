"""compare(), and the Comparison that it returns: a thin frozen face over an xarray Dataset."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import xarray as xr

from interp import __version__, store
from interp.engine import TEXT_MEASURES, Progress, Settings, no_progress, run_measures
from interp.errors import MeasureError, PromptError, TokenizerMismatch
from interp.io import atomic_folder
from interp.loading import DeviceMap
from interp.measures import as_names, check_measures
from interp.models import Policy, RewardModel, Source
from interp.models.lineup import Lineup, load_lineups, remarks
from interp.plot import Plots
from interp.prompts import Prompts
from interp.report import write as write_report
from interp.store import FILE, FORMAT
from interp.summary import summarise
from interp.text import columns_text, headline, text_rows
from interp.text import notes as notes_on
from interp.turns import InTurn, Together

SUMMARY = "summary.csv"
REPORT = "report.html"
OWN = (FILE, SUMMARY, REPORT)
"""Every file that a saved comparison may hold; `overwrite` touches a folder only if it holds no other."""


@dataclass(frozen=True)
class Comparison:
    """What a tuning changed, as labelled arrays.

    `cmp["logit_diff"]` is an `xarray.DataArray`; `cmp.summary()` the table to read first; `cmp.plot.lens()` a figure;
    `cmp.report("report.html")` a page; `cmp.save("out")` and `Comparison.load("out")` keep it.

    Attributes:
        dataset: every array, with units and a description in its attrs.
        controls: the same arrays of base against each null run.
        replicates: the same arrays of base against each run of the same recipe with another seed.
    """

    dataset: xr.Dataset
    controls: tuple[xr.Dataset, ...] = ()
    replicates: tuple[xr.Dataset, ...] = ()

    def __getitem__(self, name: str) -> xr.DataArray:
        """The array `name`.

        Raises:
            MeasureError: there is none; the message lists those there are.
        """
        try:
            return self.dataset[name]
        except KeyError:
            names = ", ".join(sorted(map(str, self.dataset.data_vars)))
            raise MeasureError(f"this comparison holds no {name!r}; it holds {names}") from None

    def __contains__(self, name: object) -> bool:
        return name in self.dataset.data_vars or name in self.dataset.coords

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def keys(self) -> list[str]:
        """Names of the arrays."""
        return list(map(str, self.dataset.data_vars))

    def __repr__(self) -> str:
        frame = self.summary()
        notes = notes_on(frame, self.dataset)
        return "\n".join([headline(self.dataset), columns_text(text_rows(frame)), *notes])

    def summary(self) -> pd.DataFrame:
        """The findings of every reading, largest first (see `interp.summary.summarise`)."""
        return summarise(self.dataset, self.controls, self.replicates, seed=int(self.dataset.attrs["seed"]))

    @property
    def plot(self) -> Plots:
        """Figures: `cmp.plot.lens()`, `.attribution()`, `.heads()` ... (see `interp.plot`)."""
        return Plots(self)

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Write one self-contained HTML page to `path`, atomically.

        Raises:
            InterpError: it cannot be written.
        """
        return write_report(self, path)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the folder `path`: comparison.nc (netCDF 4, other runs as groups) and summary.csv, whole or not at all.

        Args:
            path: a new folder.
            overwrite: replace an earlier comparison there.

        Raises:
            InterpError: the folder holds something, or cannot be written.
        """
        with atomic_folder(path, owned_by=FILE, own=OWN, overwrite=overwrite) as folder:
            self.write_into(folder)
        return Path(path)

    def write_into(self, folder: Path) -> None:
        """Write the files of `save` into an existing folder."""
        store.write(folder / FILE, self.dataset, self._runs)
        (folder / SUMMARY).write_text(self.summary().to_csv(index=False), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Comparison:
        """Read what `save` wrote.

        Raises:
            FormatError: there is no comparison, it is damaged, or it comes from a newer version.
        """
        data, runs = store.read(path)
        return cls(data, runs["control"], runs["replicate"])

    def to_parquet(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the folder `path` of Parquet files, a long table for each array (see `interp.store.write_tables`).

        Args:
            path: a new folder.
            overwrite: replace what an earlier call wrote there.

        Raises:
            InterpError: the folder holds something else, or cannot be written.
        """
        return store.write_tables(path, self.dataset, self._runs, self.summary(), overwrite=overwrite)

    @property
    def _runs(self) -> store.Runs:
        return {"control": self.controls, "replicate": self.replicates}


def compare(
    base: Source | Policy,
    tuned: Source | Policy,
    prompts: Prompts | Sequence[str],
    *,
    measures: Iterable[str] | None = None,
    reward: Any = None,
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
    draws: int = 1,
    allow_pickle: bool = False,
    in_memory: str = "all",
    progress: Progress | None = None,
) -> Comparison:
    """Compare a base model with its tuned version on some prompts.

    Args:
        base: hub id (with its revision as "id@revision"), folder, loaded module (peft's too), or `Policy`.
        tuned: the same, of the same shape; or a LoRA adapter, which goes on base and shares its weights.
        prompts: a `Prompts`, or a list of texts.
        measures: names from `interp.MEASURES`, or "all"; None is `interp.DEFAULT_MEASURES`, and `completions` where a
            reward is given.
        reward: a `RewardModel`, or where one with a single label lies; scores the sampled completions.
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
        draws: completions sampled from each model to each prompt.
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
    return _compare_all(
        base,
        {"": tuned},
        prompts,
        control=control,
        replicates={"": replicates},
        measures=measures,
        reward=reward,
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
    )[""]


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
    return _compare_all(base, tuned, prompts, control=control, replicates=replicates or {}, **options)


def _compare_all(
    base: Any,
    tuned: Mapping[str, Any],
    prompts: Prompts | Sequence[str],
    *,
    control: Any,
    replicates: Mapping[str, Any],
    measures: Iterable[str] | None = None,
    reward: Any = None,
    tokenizer: Any = None,
    batch_size: int = 16,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    device_map: DeviceMap = None,
    trust_remote_code: bool = False,
    seed: int = 0,
    max_new_tokens: int = 24,
    draws: int = 1,
    allow_pickle: bool = False,
    in_memory: str = "all",
    progress: Progress | None = None,
) -> dict[str, Comparison]:
    measures = None if measures is None else as_names(measures)
    names = check_measures(measures, with_reward=reward is not None)
    if not isinstance(prompts, Prompts):
        prompts = Prompts(prompts)
    check_settings(batch_size=batch_size, max_new_tokens=max_new_tokens, draws=draws, seed=seed)
    if measures is not None and "logit_diff" in measures and prompts.answers is None:
        raise MeasureError(
            "logit_diff needs answers: Prompts(..., answers=(' bad', ' good')), or --answer and --against"
        )
    if in_memory not in ("all", "one"):
        raise PromptError(f'in_memory is "all" or "one", not {in_memory!r}')
    trust: dict[str, Any] = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
    lineups = load_lineups(
        base,
        tuned,
        controls=_as_list(control),
        replicates={name: _as_list(each) for name, each in replicates.items()},
        tokenizer=tokenizer,
        one_shape=any(name not in TEXT_MEASURES for name in names),
        one_in_memory=in_memory == "one",
        options={"dtype": dtype, "device": device, "device_map": device_map, **trust},
    )
    for models in lineups.values():
        _check_tokens(models, names)
    scorer = RewardModel.load(reward, device=device, device_map=device_map, **trust) if reward is not None else None
    held = [policy.model for models in lineups.values() for policy in (models.base, *models.others)]
    run = Settings(
        names,
        batch_size,
        seed,
        max_new_tokens,
        scorer,
        draws,
        turns=InTurn.of([*_once(held), *([scorer.model] if scorer else [])]) if in_memory == "one" else Together(),
        progress=progress or no_progress,
    )
    settings = {
        "measures": list(names),
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "draws": draws,
        "multi_token": prompts.multi_token,
        "bos": prompts.bos,
        "prompts": len(prompts),
    }
    common = {"seed": seed, "settings": settings, "reward": dict(scorer.description) if scorer else None}
    found: dict[str, Comparison] = {}
    for group in _with_one_base(lineups).values():
        others = _once([other for models in group.values() for other in models.others])
        mismatch = next(iter(group.values())).mismatch
        own = replace(run, own_tokens=mismatch is not None)
        measured = run_measures(next(iter(group.values())).base, others, prompts, own)
        by_model = {id(other): data for other, data in zip(others, measured, strict=True)}
        found |= {name: _comparison(models, by_model, common) for name, models in group.items()}
    return {name: found[name] for name in lineups}


def _once(items: Iterable[Any]) -> list[Any]:
    """Every object once, in the order in which they first came."""
    return list({id(item): item for item in items}.values())


def _with_one_base(lineups: Mapping[str, Lineup]) -> dict[Any, dict[str, Lineup]]:
    """Lineups that can share what is computed of base: where tokens differ, each is by itself."""
    groups: dict[Any, dict[str, Lineup]] = {}
    for name, models in lineups.items():
        key = id(models.base) if models.mismatch is None else name
        groups.setdefault(key, {})[name] = models
    return groups


def _comparison(models: Lineup, measured: Mapping[int, xr.Dataset], common: Mapping[str, Any]) -> Comparison:
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


def check_settings(**settings: Any) -> None:
    """Refuse numbers out of range before any model is loaded.

    Raises:
        PromptError: naming the range.
    """
    for name, value in settings.items():
        low = 0 if name == "seed" else 1
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 2**63:
            raise PromptError(f"{name} is a whole number from {low} on, not {value!r}")


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _check_tokens(models: Lineup, measures: Sequence[str]) -> None:
    """Refuse measures of tokens where the models share none."""
    refused = [name for name in measures if name not in TEXT_MEASURES]
    if models.mismatch is not None and refused:
        raise TokenizerMismatch(
            f"{models.mismatch}; {', '.join(refused)} need one vocabulary: pass measures=['completions'] (--measure"
            ' completions, with reward= if you have one) to compare what the models say, or tokenizer="base" where'
            " tuned's is a mistaken copy"
        )


def _attributes(models: Lineup, tuned: Policy, **common: Any) -> dict[str, Any]:
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
