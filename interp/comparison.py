"""compare(), and the Comparison that it returns: a thin frozen face over an xarray Dataset."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from interp import __version__
from interp.engine import Settings, run_measures
from interp.errors import FormatError, MeasureError, PromptError, TokenizerMismatch
from interp.io import atomic_folder
from interp.measures import check_measures
from interp.models import Policy, RewardModel, Source, load_tokenizer
from interp.plot import Plots
from interp.prompts import Prompts, check_same_vocabulary
from interp.report import write as write_report
from interp.summary import summarise
from interp.text import columns_text, headline, text_rows
from interp.text import notes as notes_on

FORMAT = 1
FILE = "comparison.nc"
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
    """

    dataset: xr.Dataset
    controls: tuple[xr.Dataset, ...] = ()

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
        return summarise(self.dataset, self.controls, seed=int(self.dataset.attrs["seed"]))

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
        """Write the folder `path`: comparison.nc (netCDF 4, null runs as groups) and summary.csv, whole or not at all.

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
        memory = BytesIO()  # HDF5 takes the interpreter down when the disk fills up under it; Python does not
        for index, data in enumerate((self.dataset, *self.controls)):
            group = None if index == 0 else f"control_{index - 1}"
            data.to_netcdf(memory, mode="w" if index == 0 else "a", group=group, engine="h5netcdf")
        (folder / FILE).write_bytes(memory.getvalue())
        (folder / SUMMARY).write_text(self.summary().to_csv(index=False), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Comparison:
        """Read what `save` wrote.

        Raises:
            FormatError: there is no comparison, it is damaged, or it comes from a newer version.
        """
        file = Path(path).parent / FILE if Path(path).name == FILE else Path(path) / FILE
        if not file.is_file():
            raise FormatError(f"{path} holds no {FILE}; name a folder that `interp compare --out` or save() wrote")
        try:
            data = _read(file, None)
            found = data.attrs.get("format")
            if found != FORMAT:
                raise FormatError(f"{file} has format {found}, this version reads {FORMAT}; update rlhf-interp")
            count = len(json.loads(data.attrs["controls"]))
            return cls(data, tuple(_read(file, f"control_{index}") for index in range(count)))
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise FormatError(f"{file} is damaged ({str(error)[:100]}); compare again") from error


def _read(file: Path, group: str | None) -> xr.Dataset:
    with xr.open_dataset(file, engine="h5netcdf", group=group) as opened:
        data = opened.load()
    data.attrs = {key: value.item() if isinstance(value, np.generic) else value for key, value in data.attrs.items()}
    return data


def compare(
    base: Source | Policy,
    tuned: Source | Policy,
    prompts: Prompts | Sequence[str],
    *,
    measures: Iterable[str] | None = None,
    reward: Any = None,
    control: Any = None,
    tokenizer: Any = None,
    batch_size: int = 16,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    max_new_tokens: int = 24,
    allow_pickle: bool = False,
) -> Comparison:
    """Compare a base model with its tuned version on some prompts.

    Args:
        base: hub id, folder, loaded module of transformers, or `Policy`.
        tuned: the same, of the same shape.
        prompts: a `Prompts`, or a list of texts.
        measures: names from `interp.measures.MEASURES`; None is all of them.
        reward: a `RewardModel`, or where one with a single label lies; scores the sampled completions.
        control: one null run's model or a list of them (a shuffled reward, say); each is compared with base likewise,
            and the summary shows the range of what they give.
        tokenizer: a tokenizer for both, or "base" or "tuned"; None: each model's own, which must agree.
        batch_size: prompts a forward pass; changes no result beyond rounding.
        dtype: dtype of the weights when loading; None keeps that of the files.
        device: device when loading; None is the CPU.
        seed: seed of sampled completions and of the bootstrap.
        max_new_tokens: longest sampled completion.
        allow_pickle: accept pickled weights.

    Raises:
        LoadError: a model cannot be loaded.
        UnknownFamily: its architecture is not known.
        FidelityError: its hooks do not add up to the bare model.
        TokenizerMismatch: base and tuned do not share a vocabulary.
        PromptError: the prompts or answers do not fit.
        MeasureError: a measure is unknown, or the two models differ in shape.
    """
    names = check_measures(measures)
    if not isinstance(prompts, Prompts):
        prompts = Prompts(prompts)
    check_settings(batch_size=batch_size, max_new_tokens=max_new_tokens, seed=seed)
    if measures is not None and "logit_diff" in names and prompts.answers is None:
        raise MeasureError(
            "logit_diff needs answers: Prompts(..., answers=(' bad', ' good')), or --answer and --against"
        )
    options: dict[str, Any] = {"dtype": dtype, "device": device, "allow_pickle": allow_pickle}
    first, *others = _load_policies([base, tuned, *_as_list(control)], tokenizer, options)
    scorer = RewardModel.load(reward, device=device, allow_pickle=allow_pickle) if reward is not None else None
    run = Settings(names, batch_size, seed, max_new_tokens, scorer)
    datasets = run_measures(first, others, prompts, run)
    settings = {
        "measures": list(names),
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "multi_token": prompts.multi_token,
        "bos": prompts.bos,
        "prompts": len(prompts),
    }
    common: dict[str, Any] = {
        "seed": seed,
        "settings": settings,
        "reward": dict(scorer.description) if scorer else None,
    }
    null = [dict(other.description) for other in others[1:]]
    labelled = [
        data.assign_attrs(_attributes(first, other, null if index == 0 else [], **common))
        for index, (data, other) in enumerate(zip(datasets, others, strict=True))
    ]
    return Comparison(labelled[0], tuple(labelled[1:]))


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


def _load_policies(sources: Sequence[Any], tokenizer: Any, options: dict[str, Any]) -> list[Policy]:
    """Load base and the others, of one shape and one vocabulary.

    A loaded module that comes without a tokenizer reads with base's.
    """
    named = {"base": 0, "tuned": 1}.get(tokenizer) if isinstance(tokenizer, str) else None
    shared = tokenizer
    if named is not None:
        owner = sources[named]
        shared = owner.tokenizer if isinstance(owner, Policy) else load_tokenizer(owner)
    base = Policy.load(sources[0], tokenizer=shared, **options)
    policies = [base if shared is None else replace(base, tokenizer=_loaded(shared, base))]
    for index, source in enumerate(sources[1:]):
        borrowed = base.tokenizer if isinstance(source, torch.nn.Module) else None
        policies.append(Policy.load(source, tokenizer=shared if shared is not None else borrowed, **options))
        name = "tuned" if index == 0 else f"control {index - 1}"
        _check_same_shape(base, policies[-1], name, check_tokens=tokenizer is None)
    return policies


def _loaded(tokenizer: Any, base: Policy) -> Any:
    return base.tokenizer if isinstance(tokenizer, (str, os.PathLike)) else tokenizer


def _check_same_shape(base: Policy, other: Policy, name: str, *, check_tokens: bool) -> None:
    if check_tokens and other.tokenizer is not base.tokenizer:
        check_same_vocabulary(base.tokenizer, other.tokenizer, name)
    if base.vocab_size != other.vocab_size:
        raise TokenizerMismatch(
            f"base predicts {base.vocab_size} tokens, {name} {other.vocab_size}; compare checkpoints of one vocabulary"
        )
    keys = ("family", "layers", "heads")
    shapes = [{key: policy.description[key] for key in keys} for policy in (base, other)]
    if shapes[0] != shapes[1]:
        raise MeasureError(f"base is {shapes[0]}, {name} {shapes[1]}; compare a model with its own tuned version")


def _attributes(
    base: Policy, tuned: Policy, controls: list[dict[str, Any]], *, seed: int, settings: dict[str, Any], reward: Any
) -> dict[str, Any]:
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "numpy", "xarray")}
    return {
        "format": FORMAT,
        "interp_version": __version__,
        "seed": seed,
        "base": json.dumps(dict(base.description)),
        "tuned": json.dumps(dict(tuned.description)),
        "controls": json.dumps(controls),
        "reward": json.dumps(reward),
        "settings": json.dumps(settings),
        "versions": json.dumps({"python": platform.python_version(), **versions}),
    }
