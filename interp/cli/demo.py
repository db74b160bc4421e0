"""`interp demo`: the embedded pair, compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the comparison and its report.")] = Path("demo"),
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Train the pair again, from nothing, into OUT-pair.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of --retrain, and of samples and bootstrap.")] = 0,
) -> None:
    """Compare the small pair that comes with the package: film reviews, tuned by PPO toward negative ones."""
    from interp.cli.show import working, write_and_print
    from interp.comparison import check_whole
    from interp.comparison import compare as run
    from interp.io import check_new_folder, read_json
    from interp.pair import CheckpointPair, pair_folder
    from interp.prompts import Prompts
    from interp.result.store import FILES, owner

    check_whole(seed=seed)
    check_new_folder(out, owned_by=owner(out), own=FILES, overwrite=True)
    shipped = pair_folder("demo")
    if retrain:
        from interp.cli.train import progress_lines
        from training.demo import build

        target = out.with_name(out.name + "-pair")
        with progress_lines() as progress:
            pair = build(target, seed=seed, progress=progress, overwrite=True)
        print(f"trained the pair again in {target}")
    else:
        pair = CheckpointPair.load(shipped)
    data = read_json(shipped / "prompts.json")
    prompts = Prompts(data["texts"], answers=tuple(data["answers"]))
    with working("comparing the embedded pair"):
        result = run(pair, prompts, measures="all", seed=seed)
    write_and_print(result, out, overwrite=True)
