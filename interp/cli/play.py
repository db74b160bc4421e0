"""`interp play`: a prompt in, what base and tuned make of it side by side, with their rewards."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from interp.pair import CheckpointPair
    from training.playground import Completion, Exchange
    from training.reward import Reward


def play(
    run: Annotated[str, typer.Argument(help="A pair's folder, or demo for the pair that comes with the package.")],
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt, for one shot; repeatable.")] = None,
    samples: Annotated[int, typer.Option(help="Completions of each model.", min=1)] = 2,
    seed: Annotated[int, typer.Option(help="Seed; the same one gives the same completions.", min=0)] = 0,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Most tokens in a completion; default as trained.", min=1)
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="Divides the logits; 0 takes the likeliest token; default as trained.", min=0),
    ] = None,
    device: Annotated[str | None, typer.Option(help="Device, as cuda; default the CPU.")] = None,
) -> None:
    """Complete prompts with base and tuned, drawn with the same random numbers, and score what they say."""
    from rich.console import Console

    from interp.cli.show import working
    from interp.errors import InterpError
    from training.playground import Playground

    settings: dict[str, Any] = {"samples": samples, "seed": seed, "device": device}
    with working("loading the pair"):
        pair, reward = _load(run)
        ground = Playground.load(pair, reward, max_new_tokens=max_new_tokens, temperature=temperature, **settings)
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=not sys.stdout.isatty())
    console.print(_headline(pair, reward))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # long texts are scored by what fits
        if prompt:
            for text in prompt:
                _show(console, ground.complete(text))
            return
        for number, text in enumerate(_typed(console)):
            try:
                _show(console, ground.complete(text, first_index=number * samples))
            except InterpError as error:  # a prompt that does not fit must not end the session
                print(f"interp: {error}", file=sys.stderr)


def _load(run: str) -> tuple[CheckpointPair, Reward | None]:
    from interp.pair import CheckpointPair
    from training.reward import reward_of_pair

    pair = CheckpointPair.load(run)
    return pair, reward_of_pair(pair)


def _headline(pair: CheckpointPair, reward: Reward | None) -> str:
    name = "none that can be loaded again" if reward is None else _name(reward.description)
    return f"pair    {pair.path}\nreward  {name}"


def _name(described: Mapping[str, Any]) -> str:
    """The reward in a few words."""
    if "terms" in described:
        parts = (f"{each['weight']:g} x {name}" for name, each in described["terms"].items())
        return " + ".join(parts)
    if "function" in described:
        return str(described["function"])
    return f"{described['label']} ({described.get('output', 'probability')})"


def _typed(console: Console) -> Iterator[str]:
    """Prompts from standard input until it ends; blank lines are passed over."""
    asked = sys.stdin.isatty()
    if asked:
        console.print("type a prompt; Ctrl-D leaves", style="dim")
    while True:
        try:
            line = input("\nprompt> ") if asked else sys.stdin.readline()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if not asked and not line:
            return
        if line.strip():
            yield line.rstrip("\n")


def _show(console: Console, exchange: Exchange) -> None:
    """One prompt's completions: base on the left, tuned on the right, a row for each draw."""
    from rich.table import Table
    from rich.text import Text

    sides = (("base", exchange.base), ("tuned", exchange.tuned))
    console.print()
    console.print(Text(exchange.prompt, style="bold"))
    if not console.is_terminal:
        for name, completions in sides:
            for each in completions:
                console.print(f"  {name:5} {_figure(each.reward):>7}  {_words(each)}")
            _mean_line(console, name, completions)
        return
    table = Table(show_edge=False, pad_edge=False, expand=True, show_lines=len(exchange.base) > 1)
    for name, _ in sides:
        table.add_column("reward", justify="right", no_wrap=True)
        table.add_column(name, ratio=1)
    for base, tuned in zip(exchange.base, exchange.tuned, strict=True):
        table.add_row(_figure(base.reward), Text(_words(base)), _figure(tuned.reward), Text(_words(tuned)))
    if len(exchange.base) > 1 and exchange.base[0].reward is not None:
        table.add_row(_mean(exchange.base), "mean", _mean(exchange.tuned), "mean", style="dim")
    console.print(table)


def _mean_line(console: Console, name: str, completions: tuple[Completion, ...]) -> None:
    if len(completions) > 1 and completions[0].reward is not None:
        console.print(f"  {name:5} {_mean(completions):>7}  (mean)")


def _mean(completions: tuple[Completion, ...]) -> str:
    rewards = [each.reward for each in completions if each.reward is not None]
    return _figure(sum(rewards) / len(rewards))


def _figure(reward: float | None) -> str:
    return "" if reward is None else f"{reward:.3f}"


def _words(completion: Completion) -> str:
    return completion.text.strip().replace("\n", " / ") or "(empty)"
