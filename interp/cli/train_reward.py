"""`interp train-reward`: labelled texts or preferences in, a reward model with its card out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer


def train_reward(
    recipe: Annotated[str, typer.Argument(help="Recipe: a TOML file, or one of the package as goemotions_reward.")],
    out: Annotated[Path | None, typer.Option(help="New folder for the reward model.")] = None,
    override: Annotated[
        list[str] | None, typer.Option("--set", help="Change one key, as train.seed=1; repeatable.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Resolve and validate everything, train nothing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier reward model in --out.")] = False,
) -> None:
    """Train a reward model by the recipe, and measure it on texts that it never saw."""
    from interp.cli.train import _assignment, progress_lines
    from interp.errors import ConfigError
    from interp.io import check_new_folder
    from training import RewardModelConfig
    from training.reward_models import CARD, check_reward
    from training.reward_models import train_reward as run

    config = RewardModelConfig.load(recipe, dict(_assignment(text) for text in override or []))
    if check:
        for name, value in check_reward(config).items():
            print(f"{name:12} {value}")
        return
    if out is None:
        raise ConfigError("--out names the new folder for the reward model; add it, or --check to train nothing")
    check_new_folder(out, owned_by=CARD, overwrite=overwrite)
    with progress_lines() as progress:
        trained = run(config, out, overwrite=overwrite, progress=progress)
    print_card(trained.card)
    print(f'\nwrote {trained.path}; try it with: interp score {trained.path} "some text"')


def print_card(card: Mapping[str, Any]) -> None:
    """The figures of a card: a table by label, and the averages."""
    print("held out: " + ", ".join(f"{count} {name}" for name, count in card["counts"].items() if name != "train"))
    if card["kind"] == "preferences":
        low, high = card["accuracy_interval"]
        print(f"accuracy        {card['accuracy']:.3f} [{low:.3f}, {high:.3f}]")
        print(f"margin          {card['margin']:.3f} (standard deviation {card['margin_sd']:.3f})")
        print(f"longer chosen   {card['longer_is_chosen']:.3f} of the pairs")
        return
    width = max(len(name) for name in (*card["by_label"], "label"))
    multi = card["kind"] == "multi"
    extra = f" {'threshold':>9} {'F1 at 0.5':>9}" if multi else ""
    print(f"{'label':{width}} {'support':>7} {'precision':>9} {'recall':>6} {'F1':>5} {'AUROC':>5} {'95 %':>14}{extra}")
    for name, row in card["by_label"].items():
        area = ["", ""]
        if row["auroc"] is not None:
            area = [f"{row['auroc']:.3f}", "[{:.3f}, {:.3f}]".format(*row["auroc_interval"])]
        more = f" {row['threshold']:9.3f} {row['at_0.5']['f1']:9.3f}" if multi else ""
        print(
            f"{name:{width}} {row['support']:7} {row['precision']:9.3f} {row['recall']:6.3f} {row['f1']:5.3f}"
            f" {area[0]:>5} {area[1]:>14}{more}"
        )
    for average in ("micro", "macro"):
        kinds = card[average] if multi else {"": card[average]}
        for kind, figures in kinds.items():
            print(f"{average} F1 {_WAYS.get(kind, kind):59} {figures['f1']:.3f}".rstrip())
    if "accuracy" in card:
        print(f"accuracy {card['accuracy']:.3f}")
    for name, value in card.get("published", {}).items():
        print(f"for comparison, {name}: {value}")


_WAYS = {
    "": "",
    "tuned_by_label": "(each label's threshold, chosen on validation)",
    "tuned_for_micro": "(thresholds by label for micro F1, chosen on validation)",
    "one_threshold": "(one threshold, chosen on validation)",
    "at_0.5": "(threshold 0.5)",
}
