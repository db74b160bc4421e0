"""Do the toolkit's methods find a difference that is known to be there, under ordinary fine-tuning drift?

    python -m analyses.planted --out planted            (needs real data in $INTERP_DATA, but for --bases demo)
    python -m analyses.planted --out planted --tables   (the tables and the figure of what is there)

Known edits are planted in four base models: one head's OV scaled or turned, two heads' QK exchanged, a rank-one update
of one MLP, a head or a layer fine-tuned by itself, a low-rank update of one matrix, and pairs of which either suffices
or neither does. On top lies ordinary fine-tuning on other text, all parameters, scaled so that the relative weight
change of its components (root mean square over those of the planted kind) is the plant's over a stated ratio. At equal
norms the drift moves behaviour far more than the plant, as it is in every component at once; its KL stands below the
tables. The axis is one of weights, so the method that reads weights answers to it almost by definition; how the others
rank among each other is what the tables are for.

Each method scores every head's `result` and every `mlp_out`; it is judged by AUROC and by the recall among the k
highest (k: how many were planted), the mean over plants with a bootstrap interval over plants, and by its processor
time over that of one forward pass of both models. All methods read the same prompts. Patching is judged by KL to the
source; attribution and edge attribution by the logit of tuned's top token minus that of base's likeliest other, as a
comparison does without answers. An edge's score is computed in each model between each prompt and another one, and the
two are subtracted.

There is no target. A plant that changes behaviour by less than 0.01 nat stands in a table of its own.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from analyses.planted.bases import BASES, DRIFT_RATES, Base, data_folder, open_base
from analyses.planted.edits import Component, added, own_weights, put, scaled, typical_strength
from analyses.planted.kinds import KINDS, Masks, Nursery, Plant
from analyses.planted.lessons import drift, shift
from analyses.planted.methods import METHODS, Case, forward_seconds, timed
from analyses.planted.results import ENOUGH, NO_DRIFT, PlantedBenchmark, auroc, column_name, recall_at_k
from interp.errors import ConfigError, InterpError, MeasureError
from interp.io import atomic_file, read_json, write_json, write_text
from interp.models import Policy
from training.seeding import derive, one_thread

Told = Callable[[str], None]
SETTINGS, FOLDER = "settings.json", "plants"


@dataclass(frozen=True)
class Settings:
    """What decides a plant's numbers.

    Attributes:
        ratios: the plant's relative weight change over the drift's; infinity is no drift.
        steps: steps of training, of the plants that are trained.
        drift_steps: steps of fine-tuning, of the drift.
        drifts: how many such runs there are of each base; plants take turns.
        epochs: passes in which the small GPT-2 learns its stories.
        seed: seed of everything.
    """

    ratios: tuple[float, ...] = (1.0, 4.0, 16.0, 64.0, NO_DRIFT)
    steps: int = 60
    drift_steps: int = 40
    drifts: int = 2
    epochs: int = 12
    seed: int = 0


QUICK = Settings(ratios=(1.0, NO_DRIFT), steps=3, drift_steps=10, drifts=1, epochs=1)
"""Settings of a test: that it runs, not what it finds."""


@dataclass(frozen=True)
class Bed:
    """A base that is ready for planting.

    Attributes:
        base: the base.
        own: the weights of each component.
        tuned: another copy, into which changes are written.
        drifts: the drift's snapshots, of each run.
    """

    base: Base
    own: Masks
    tuned: Policy
    drifts: Sequence[Sequence[dict[str, Tensor]]]


def run(
    out: Path,
    settings: Settings,
    *,
    bases: Sequence[str] = BASES,
    kinds: Sequence[str] = tuple(KINDS),
    plants: int = 2,
    data: Path | None = None,
    cache: Path | None = None,
    told: Told = print,
) -> PlantedBenchmark:
    """Plant, judge, and keep what was found; plants that are there already are not judged again.

    Args:
        out: folder of the results; plants/ has a Parquet file a plant.
        settings: what decides a plant's numbers.
        bases: which bases.
        kinds: which kinds.
        plants: plants of each kind in each base.
        data: folder of real data.
        cache: where a base that is trained here is kept; None is `out`.
        told: told of each plant.

    Raises:
        ConfigError: `out` holds plants of other settings, or a base or kind is unknown.
        LoadError: a base needs data that is not there.
    """
    _check(out, settings, bases, kinds)
    beds: dict[str, Bed] = {}
    todo = [(number, kind, base) for number in range(plants) for kind in kinds for base in bases]
    for place, (number, kind, name) in enumerate(todo, start=1):
        path = out / FOLDER / f"{name}-{kind.replace(' ', '_')}-{number}.parquet"
        if path.is_file():
            continue
        with one_thread():  # sums in another order would give other numbers
            if name not in beds:
                beds[name] = _bed(open_base(name, data=data, cache=cache or out, epochs=settings.epochs), settings)
            rows = pd.DataFrame(judge(beds[name], kind, number, settings))
        with atomic_file(path) as temporary:
            rows.to_parquet(temporary, index=False)
        told(f"{place}/{len(todo)} {path.stem}: {rows['kl'].iloc[0]:.3g} nats, planted {rows['planted'].iloc[0]}")
    return load(out)


def load(out: Path) -> PlantedBenchmark:
    """What is in the folder so far.

    Raises:
        MeasureError: nothing is.
    """
    files = sorted((out / FOLDER).glob("*.parquet"))
    if not files:
        raise MeasureError(f"{out} holds no plants; run python -m analyses.planted --out {out}")
    return PlantedBenchmark.of(pd.concat(map(pd.read_parquet, files), ignore_index=True))


def _check(out: Path, settings: Settings, bases: Sequence[str], kinds: Sequence[str]) -> None:
    for what, names, known in (("base", bases, BASES), ("kind", kinds, tuple(KINDS))):
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ConfigError(f"there is no {what} {unknown[0]!r}; there are {', '.join(known)}")
    wanted = json.loads(json.dumps(asdict(settings)))
    if (out / SETTINGS).is_file():
        found = read_json(out / SETTINGS)
        other = [each.name for each in fields(settings) if found.get(each.name) != wanted[each.name]]
        if other:
            raise ConfigError(f"{out} holds plants of another {other[0]} ({found.get(other[0])}); name a new folder")
    write_json(out / SETTINGS, wanted)


def _bed(base: Base, settings: Settings) -> Bed:
    model = base.policy.model
    tuned = Policy.load(copy.deepcopy(model), tokenizer=base.policy.tokenizer)
    runs = [
        drift(
            model, base.other, steps=settings.drift_steps, batch_size=16, learning_rate=DRIFT_RATES[base.name],
            seed=derive(settings.seed, "drift", number),
        )
        for number in range(settings.drifts)
    ]  # fmt: skip
    return Bed(base, own_weights(model), tuned, [list(found.values()) for found in runs])


def judge(bed: Bed, kind: str, number: int, settings: Settings) -> Iterator[dict[str, Any]]:
    """Make a plant and score every method at every ratio: one row each."""
    base, model = bed.base, bed.base.policy.model
    seed = derive(settings.seed, base.name, kind, number)
    plant = KINDS[kind](Nursery(base, bed.own, settings.steps, seed))
    case = Case(base.policy, bed.tuned, base.prompts)
    planted = np.array([component in plant.planted for component in case.candidates])
    known: dict[str, Any] = {
        "plant": f"{base.name} {kind} {number}",
        "base": base.name,
        "kind": kind,
        "planted": ", ".join(map(str, plant.planted)),
        "strength": typical_strength(model, plant.delta, bed.own, plant.planted),
        "kl": shift(model, base.ids, plant.delta),
        **{name: plant.notes.get(name, math.nan) for name in ("taught", "first", "second")},
    }
    snapshots = bed.drifts[number % len(bed.drifts)]
    for ratio in settings.ratios:
        ground = under(bed, plant, snapshots, known["strength"] / ratio)
        put(model, bed.tuned.model, added(plant.delta, ground))
        here = {**known, "ratio": ratio, "drift_kl": shift(model, base.ids, ground), "forward": forward_seconds(case)}
        for method in METHODS:
            scores, seconds = timed(method, case)
            for row, values in scores.items():
                found = {"auroc": auroc(values, planted), "recall": recall_at_k(values, planted)}
                yield {**here, "method": row, **found, "seconds": seconds}


def under(bed: Bed, plant: Plant, snapshots: Sequence[dict[str, Tensor]], wanted: float) -> dict[str, Tensor]:
    """The drift whose typical strength is `wanted`: the snapshot that is nearest to it, scaled the rest of the way.

    Typical is the root mean square over all components of the kinds (heads, MLPs) that were planted.
    """
    if wanted == 0:
        return {}
    kinds = {component.head < 0 for component in plant.planted}
    among: list[Component] = [component for component in bed.own if (component.head < 0) in kinds]
    sizes = [typical_strength(bed.base.policy.model, each, bed.own, among) for each in snapshots]
    nearest = min(range(len(sizes)), key=lambda index: abs(math.log(sizes[index] / wanted)))
    return scaled(snapshots[nearest], wanted / sizes[nearest])


def report(found: PlantedBenchmark, out: Path) -> str:
    """Write tables (CSV) and the figure (PNG) into `out`, and give the tables as text."""
    from analyses.planted.figure import figure

    texts = []
    for behaving, words in ((True, f"at least {ENOUGH} nat"), (False, f"less than {ENOUGH} nat")):
        some = found.behaving(behaving)
        if not some.dataset.sizes["plant"]:
            continue
        for name in ("auroc", "recall"):
            table = some.table(name)
            write_text(out / f"{name}{'' if behaving else '_weak'}.csv", table.to_csv())
            title = (
                f"{name} by plant-to-drift ratio: {some.dataset.sizes['plant']} plants that move behaviour by {words}"
            )
            texts.append(f"{title}\n{table.to_string()}")
    strong = found.behaving()
    if strong.dataset.sizes["plant"]:
        kinds = strong.by_kind()
        write_text(out / "auroc_by_kind.csv", kinds.to_csv())
        texts.append(f"auroc by kind, mean over the ratios with drift\n{kinds.to_string()}")
        figure(strong.means()).savefig(out / "auroc.png")
    kl = found.dataset["drift_kl"].median("plant")
    sizes = [f"{column_name(ratio)}: {value:.3g}" for ratio, value in zip(kl["ratio"].values, kl.values, strict=True)]
    texts.append(f"KL(drifted || base) by ratio, the drift alone, median over all plants: {', '.join(sizes)} nats")
    return "\n\n".join(texts)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m analyses.planted", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results; a run that was stopped goes on")
    parser.add_argument("--bases", nargs="+", default=list(BASES), metavar="BASE", help=", ".join(BASES))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--plants", type=int, default=2, help="plants of each kind in each base")
    parser.add_argument("--cache", type=Path, help="where the base that is trained here is kept (default: --out)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="hardly any training: that it runs, not what it finds")
    parser.add_argument("--tables", action="store_true", help="judge nothing; show what is there")
    given = parser.parse_args(arguments)
    settings = replace(QUICK if given.quick else Settings(), seed=given.seed)
    try:
        found = load(given.out) if given.tables else run(
            given.out, settings, bases=given.bases, kinds=given.kinds, plants=given.plants, data=data_folder(),
            cache=given.cache,
        )  # fmt: skip
        print(report(found, given.out))
    except InterpError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
