"""What each kind of cell computes: from a cell's settings to files in its folder."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from analyses.sweep.cells import Cell, Store
from interp.errors import InterpError
from interp.io import write_json
from interp.pair import CheckpointPair

Write = Callable[[Path], object]
"""Puts a cell's content into a folder."""

MANY = 8
"""Most pairs that are compared with base in one go."""

BATCH = 64
"""Prompts a forward pass of a comparison."""

READ_TEXTS = 6
"""Texts that a reading attributes word by word."""

FEWEST_PROBED = 15
"""Fewest texts that bear a label, of which a probe for it is trained."""

SHUFFLES = 19
"""Shuffled labels of a probe, the fewest with which p can be 0.05."""


def run_task(root: str, cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """Compute the cells of one task, all of one kind, and put each on disk.

    Args:
        root: folder of the sweep.
        cells: several of the kind `comparison`, or one of another.

    Returns:
        Name of each cell, and its error or an empty text. An error is on record, and nothing is raised but what stops
        the process.
    """
    store, start = Store(Path(root)), time.process_time()
    kind = cells[0].kind
    try:
        writes = compare(cells) if kind == "comparison" else [KINDS[kind](cells[0])]
    except Exception as error:
        if len(cells) > 1:  # one of them may be at fault: each by itself
            return [each for cell in cells for each in run_task(root, [cell])]
        return [_failed(store, cells[0], error)]
    seconds, outcomes = (time.process_time() - start) / len(cells), []
    for cell, write in zip(cells, writes, strict=True):
        try:
            store.finish(cell, write, seconds)
            outcomes.append((cell.name, ""))
        except Exception as error:  # of what is drawn and written, say
            outcomes.append(_failed(store, cell, error))
    return outcomes


def _failed(store: Store, cell: Cell, error: Exception) -> tuple[str, str]:
    store.fail(cell, error, traceback.format_exc())
    return cell.name, str(error) or type(error).__name__


def tasks(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells in tasks: comparisons some at a time, as base is traced once for all of a task; others by themselves."""
    found: list[list[Cell]] = []
    for cell in cells:
        last = found[-1] if found else []
        if cell.kind == "comparison" and last and last[0].kind == "comparison" and len(last) < MANY:
            last.append(cell)
        else:
            found.append([cell])
    return found


def pair(cell: Cell) -> Write:
    """Train a pair, or go on training it, or take the one that is there."""
    from training import train
    from training.config import RLHFConfig
    from training.run.workshop import unfinished

    folder = Path(cell.how["folder"])
    if "given" not in cell.inputs:
        config = RLHFConfig.from_dict(cell.how["recipe"])
        there = (folder / "pair.json").is_file()
        if there and not _is_of(CheckpointPair.load(folder), config):
            train(config, folder, overwrite=True)
        elif not there:
            _train(config, folder, resume=unfinished(folder).is_dir())
    found = CheckpointPair.load(folder, verify=True)
    return lambda out: write_json(out / "final.json", dict(found.manifest["final"]))


def _is_of(pair: CheckpointPair, config: Any) -> bool:
    """Whether a pair was trained by the recipe; a path may have been written in another way."""
    from training import RLHFConfig

    return RLHFConfig.from_dict(pair.manifest["config"]).anchored() == config.anchored()


def _train(config: Any, folder: Path, *, resume: bool) -> None:
    """Train; a run that was killed goes on where it was, if it is of this config and far enough to be resumed."""
    from training import train

    if resume:
        try:
            train(config, folder, resume=True)
            return
        except InterpError:
            if (folder / "pair.json").is_file():
                raise
    train(config, folder, overwrite=resume)


def measures() -> list[str]:
    """What a comparison of the sweep takes; its prompts have no answers."""
    from interp import DEFAULT_MEASURES

    return [*(name for name in DEFAULT_MEASURES if name != "logit_diff"), "weights", "completions"]


def compare(cells: Sequence[Cell]) -> list[Write]:
    """Comparisons with base, which is loaded and traced once for all of them."""
    import interp

    how = cells[0].how
    found = interp.compare_many(
        how["base"],
        {cell.name: cell.how["tuned"] for cell in cells},
        interp.Prompts(how["prompts"]),
        measures=measures(),
        sampling=interp.Sampling(max_new_tokens=how["max_new_tokens"]),
        batch_size=BATCH,
        seed=how["seed"],
    )

    def write(name: str) -> Write:
        def into(folder: Path) -> None:
            found[name].write_into(folder)
            found[name].report(folder / "report.html")

        return into

    return [write(cell.name) for cell in cells]


def states(cell: Cell) -> Write:
    """The residual stream at each prompt's last token, before every layer and after the last."""
    from interp.measures.lens import lens_sites
    from interp.models import Policy
    from interp.prompts import Prompts

    policy = Policy.load(cell.how.get("tuned", cell.how["base"]))
    sites, rows = lens_sites(policy), []
    for batch in Prompts(cell.how["prompts"]).tokenize(policy.tokenizer).batches(16):
        trace = policy.trace(batch, sites)
        rows.append(np.stack([trace.last(site).cpu().numpy() for site in sites], axis=1))
    values = np.concatenate(rows).astype(np.float32)
    data = xr.Dataset(
        {"state": (("prompt", "site", "d_model"), values, {"long_name": "residual at the last token", "units": ""})},
        coords={"site": [str(site) for site in sites]},
    )
    return lambda folder: data.to_netcdf(folder / "states.nc", engine="h5netcdf")


def patching(cell: Cell) -> Write:
    """Tuned's heads and MLPs put into base one by one: how much of tuned's next-token distribution each brings."""
    from interp.patching import activation_patching
    from interp.prompts import Prompts

    found = activation_patching(
        cell.how["base"],
        cell.how["tuned"],
        Prompts(cell.how["prompts"]),
        sites=["z", "mlp_out"],
        metric="kl",
        seed=cell.how["seed"],
    )
    frame = found.summary()
    return lambda folder: frame.reset_index().to_csv(folder / "patching.csv", index=False)


def labels(cell: Cell) -> Write:
    """Every label's logit on the held-out texts."""
    from interp.models import RewardModel

    model = RewardModel.load(cell.how["reward"], label=cell.how["emotions"][0], output="logit")
    texts = [text for text in cell.how["texts"] if not model.too_long([text])]
    frame = pd.DataFrame(model.score_labels(texts), columns=list(model.labels))
    return lambda folder: frame.to_parquet(folder / "logits.parquet")


def reading(cell: Cell) -> Write:
    """What the reward model's score for one emotion holds on to, and where that of the highest texts comes from."""
    from interp.models import RewardModel
    from interp.reward import against_patching, attribute, lens, spurious

    model = RewardModel.load(cell.how["reward"], label=cell.how["emotion"], output="logit")
    texts = [text for text in cell.how["texts"] if not model.too_long([text])]
    found = spurious(model, texts, seed=cell.how["seed"])
    scores = model.score(texts)
    highest = [texts[row] for row in np.argsort(-scores, kind="stable")[:READ_TEXTS]]
    attribution = against_patching(model, attribute(model, highest, patched_texts=0))
    # Few texts have a logit above 0: a layer decides here whether a text is in the upper or the lower half.
    layers = lens(model, texts, threshold=float(np.median(scores))).dataset
    decided = layers["deciding_site"].values[:, 0]
    by_layer = pd.DataFrame(
        {
            "site": layers["site"].values,
            "decided": [float(np.mean(decided == site)) for site in layers["site"].values],
            "rank_correlation": layers["lens_rank_correlation"].values[:, 0],
        }
    )

    def write(folder: Path) -> None:
        by_layer.to_csv(folder / "lens.csv", index=False)
        found.summary().to_csv(folder / "spurious.csv", index=False)
        write_json(folder / "held.json", list(found.features))
        found.report(folder / "spurious.html")
        attribution.report(folder / "attribution.html")

    return write


def implicit(cell: Cell) -> Write:
    """Does the policy's shift follow the reward? And what was gained of it."""
    from interp.models import RewardModel
    from interp.models.optimised import Optimised
    from interp.prompts import Prompts
    from interp.reward import implicit_reward
    from interp.sampling import Sampling

    how = cell.how
    reward = RewardModel.load(how["reward"], label=how["emotion"], output=how["output"])
    found = implicit_reward(
        how["base"],
        how["tuned"],
        reward,
        Prompts(how["prompts"]),
        sampling=Sampling(samples=how["samples"], max_new_tokens=how["max_new_tokens"]),
        optimised=Optimised.of(CheckpointPair.load(how["folder"])),
        reads=how["reads"],
        draws=how["permutations"],
        seed=how["seed"],
    )

    def write(folder: Path) -> None:
        found.dataset.to_netcdf(folder / "implicit.nc", engine="h5netcdf")
        found.summary().to_csv(folder / "summary.csv", index=False)

    return write


def tokens(cell: Cell) -> Write:
    """Does the reward attribution of a token tell how far its log-probability moved? On tuned's own samples."""
    from interp.models import Policy, RewardModel
    from interp.prompts import Prompts
    from interp.reward import attribute, token_join
    from interp.reward.responses import read_prompts, respond
    from interp.sampling import Sampling

    how = cell.how
    base, tuned = Policy.load(how["base"]), Policy.load(how["tuned"])
    reward = RewardModel.load(how["reward"], label=how["emotion"], output="logit")
    prompts = read_prompts([base, tuned], Prompts(how["prompts"]))
    sampling = Sampling(max_new_tokens=how["max_new_tokens"])
    said = respond(tuned, prompts, 1, sampling, seed=how["seed"], batch_size=32)
    kept = [
        (text.strip(), len(start.strip()))
        for text, start in zip(said.samples, said.prompts, strict=True)
        if text.strip() and not reward.too_long([text.strip()])
    ]
    texts, starts = [text for text, _ in kept], [start for _, start in kept]
    found = token_join(
        base,
        tuned,
        texts,
        attribute(reward, texts),
        starts=starts,
        draws=how["permutations"],
        seed=how["seed"],
    )

    def write(folder: Path) -> None:
        found.summary().to_csv(folder / "summary.csv", index=False)
        found.report(folder / "tokens.html")

    return write


def circuit(cell: Cell) -> Write:
    """Every edge's score in one model, on pairs of clean and corrupted prompts."""
    from interp.circuits import edge_attribution
    from interp.prompts import Prompts

    prompts = Prompts.from_file(cell.how["circuit_prompts"])
    metric: Literal["logit_diff", "kl"] = "logit_diff" if prompts.answers is not None else "kl"
    scores = edge_attribution(cell.how.get("tuned", cell.how["base"]), prompts, metric)
    sources, destinations = scores.graph.labels
    frame = pd.DataFrame({"source": sources, "destination": destinations, "score": scores.mean})
    return lambda folder: frame.to_parquet(folder / "edges.parquet")


def probes(cell: Cell) -> Write:
    """Who learns what, when: where policy and reward model make the emotion easier to read, by layer and step."""
    from interp.models import RewardModel
    from interp.reward.probes import probes as probe

    how = cell.how
    model = RewardModel.load(how["reward"], label=how["emotion"], output="logit")
    number, most = model.labels.index(how["emotion"]), how["probe_texts"]
    readable = [(text, labels) for text, labels in how["labelled"] if not model.too_long([text])]
    bearing = [text for text, labels in readable if number in labels][:most]
    others = [text for text, labels in readable if number not in labels]
    rng = np.random.default_rng(how["seed"])
    others = [others[row] for row in sorted(rng.permutation(len(others))[: len(bearing)])]
    courses = {of: steps for of, steps in how["courses"].items() if len(steps) > 1 and min(steps) == 0}
    if len(bearing) < FEWEST_PROBED or len(others) < FEWEST_PROBED:
        return lambda folder: write_json(folder / "few.json", {"texts": len(bearing)})
    found = probe(
        courses, [*bearing, *others], [1] * len(bearing) + [0] * len(others), draws=SHUFFLES, seed=how["seed"]
    )

    def write(folder: Path) -> None:
        found.dataset.to_netcdf(folder / "probes.nc", engine="h5netcdf")
        found.summary().to_csv(folder / "summary.csv", index=False)

    return write


KINDS: Mapping[str, Callable[[Cell], Write]] = {
    "pair": pair,
    "states": states,
    "patching": patching,
    "labels": labels,
    "reading": reading,
    "implicit": implicit,
    "tokens": tokens,
    "circuit": circuit,
    "probes": probes,
}
