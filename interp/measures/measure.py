"""What a measure is: one object that holds what it needs, its computation, its rows of the summary and its figures.

from interp.measures import Measure, dataset, difference, stack_models, variable

def largest(base, tuned):
    top = [trace.last_logits.max(-1).values for trace in (base, tuned)]
    return dataset({"top_logit": variable("prompt model", stack_models(*top), "largest logit", "logits")})

interp.register_measure(Measure(
    name="top_logit", title="Largest logit", meaning="The largest logit after the prompt.", per_batch=largest,
    findings=lambda table: [table.row("top logit", "tuned minus base", difference("top_logit"), "logits")],
))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import xarray as xr

from interp.hooks import Site
from interp.measures.findings import Row, Table
from interp.models import Policy, RewardModel, Trace
from interp.models.offload import AllInMemory, InMemory, TracePair
from interp.pair import CheckpointPair
from interp.progress import Progress, no_progress
from interp.prompts import Prompts, TokenizedPrompts
from interp.sampling import Sampling

REMARKS = "remarks"
"""Name of the Dataset attribute that holds remarks for the reader, one per line."""

RECORDS = "joins"
"""Name of the Dataset attribute that holds each measure's own description: JSON by the measure's name."""


def no_sites(_: Policy) -> list[Site]:
    """No activation is needed."""
    return []


@dataclass(frozen=True)
class Needs:
    """What a measure cannot be taken without.

    Attributes:
        sites: the sites whose activations it reads.
        answers: prompts with an answer and an alternative.
        reward: a reward model.
        checkpoints: a pair that kept checkpoints of its training.
        samples: continuations sampled from each model to each prompt.
        weights: it reads the weights themselves, not what they compute.
        shared_vocabulary: base and tuned read the same tokens.
        same_shape: base and tuned have as many layers, heads and so on.
        measures: measures whose arrays it reads.
    """

    sites: Callable[[Policy], list[Site]] = no_sites
    answers: bool = False
    reward: bool = False
    checkpoints: bool = False
    samples: int = 0
    weights: bool = False
    shared_vocabulary: bool = True
    same_shape: bool = True
    measures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """One section of the report: a figure, or something that the page draws itself.

    Attributes:
        name: of the section, and of its figure in `interp.plot`.
        title: heading.
        short: the same in a word or two, for the list of sections.
        alt: what a reader who does not see the figure should know.
        caption: how to read it.
        readings: pairs of (reading, pattern in `finding`) that select rows of the summary; the first that fits is
            quoted above it.
        drawn_by: "plot" where it is a figure, "page" where the page draws it.
        optional: it may have nothing to show although the measure was taken.
    """

    name: str
    title: str
    short: str
    alt: str = ""
    caption: str = ""
    readings: tuple[tuple[str, str], ...] = ()
    drawn_by: Literal["plot", "page"] = "plot"
    optional: bool = False


@dataclass(frozen=True)
class Settings:
    """How measures are taken.

    Attributes:
        measures: names from `interp.MEASURES`.
        batch_size: prompts a forward pass.
        seed: seed of samples, intervals and nulls.
        sampling: how continuations are sampled.
        reward: scores sampled continuations.
        pair: whose reward that is, where it is a pair's.
        in_memory: which models are in memory when.
        progress: told how far the work is.
        own_tokens: the models share no tokens, so that each reads the prompts with its own tokenizer; only measures of
            texts can be taken then.
    """

    measures: tuple[str, ...]
    batch_size: int = 16
    seed: int = 0
    sampling: Sampling = Sampling(samples=1)
    reward: RewardModel | None = None
    pair: CheckpointPair | None = None
    in_memory: InMemory = field(default_factory=AllInMemory)
    progress: Progress = no_progress
    own_tokens: bool = False


@dataclass(frozen=True)
class Context:
    """Everything that a measure of whole models may read.

    Attributes:
        base: base model.
        tuned: the model that is compared with it.
        prompts: what they read.
        tokens: the prompts as base's tokenizer reads them.
        tuned_tokens: the same by tuned's, which differ where `settings.own_tokens`.
        data: what was measured so far.
        settings: how measures are taken.
        first: what the measure's `first_batch` gave, None where it has none.
        of_base: what measures computed of base alone, kept for the next tuned model; None if there is one tuned model
        only.
    """

    base: Policy
    tuned: Policy
    prompts: Prompts
    tokens: TokenizedPrompts
    tuned_tokens: TokenizedPrompts
    data: xr.Dataset
    settings: Settings
    first: Any = None
    of_base: dict[Any, Any] | None = None


When = Literal["by default", "with a reward", "on request", "where vocabularies differ"]


@dataclass(frozen=True)
class Measure:
    """One measure of what changed from base to tuned.

    Attributes:
        name: by which it is asked for.
        title: heading for people.
        meaning: what it says, in one sentence.
        formula: how it is computed.
        source: where it comes from.
        units: of its arrays.
        misleads: when it misleads.
        group: the part of the report in which its sections stand.
        when: whether it is taken without being asked for.
        needs: what it cannot be taken without.
        arrays: names of its arrays; empty if its only array has the measure's name.
        per_batch: from both models' traces of a batch to a Dataset whose first dim is `prompt`, so that batches
            concatenate.
        finish: function of the Dataset of all prompts that returns what is kept of it, if a choice needs all prompts.
        first_batch: from the traces of the first batch and the number of all prompts to what `whole` may use.
        whole: from a `Context` to a Dataset, for what needs weights, samples, checkpoints, a reward or the arrays of
            another measure.
        findings: function of the summary's table that gives its rows; None: the mean of each of its arrays by prompt,
            of one with the dim `model` tuned minus base.
        sections: of the report, in reading order.
    """

    name: str
    title: str
    meaning: str
    formula: str = ""
    source: str = ""
    units: str = ""
    misleads: str = ""
    group: str = "Other measures"
    when: When = "on request"
    needs: Needs = Needs()
    arrays: tuple[str, ...] = ()
    per_batch: Callable[[Trace, Trace], xr.Dataset] | None = None
    finish: Callable[[xr.Dataset], xr.Dataset] | None = None
    first_batch: Callable[[TracePair, int], Any] | None = None
    whole: Callable[[Context], xr.Dataset] | None = None
    findings: Callable[[Table], Iterable[Row]] | None = None
    sections: tuple[Section, ...] = ()

    def rows(self, table: Table) -> Iterable[Row]:
        """Its rows of the summary."""
        return self._means(table) if self.findings is None else self.findings(table)

    def _means(self, table: Table) -> Iterable[Row]:
        for name in self.arrays or (self.name,):
            array = table.data.get(name)
            if array is None or array.dims[:1] != ("prompt",) or array.dtype.kind not in "fiu":
                continue
            words = str(array.attrs.get("long_name", name))
            change = "model" in array.dims

            def values(data: xr.Dataset, name: str = name, change: bool = change) -> np.ndarray:
                each = data[name].sel(model="tuned") - data[name].sel(model="base") if change else data[name]
                return np.asarray(each.mean([dim for dim in each.dims if dim != "prompt"]).values)

            finding = f"{words}: tuned minus base" if change else words
            yield table.row(self.title.lower(), finding, values, str(array.attrs.get("units") or self.units or "1"))

    def holds(self, data: xr.Dataset) -> bool:
        """Whether a Dataset has any of its arrays."""
        return any(name in data for name in self.arrays or (self.name,))
