"""The command line of the study."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from analyses.good_vs_bad import study
from analyses.good_vs_bad.page import write
from analyses.good_vs_bad.subjects import SHAPES, subject
from interp import Prompts
from interp.errors import InterpError


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m analyses.good_vs_bad", description=(study.__doc__ or "").split("\n")[0]
    )
    parser.add_argument("base", nargs="?", help='base model, a pair\'s folder, or "published"; none: the embedded pair')
    parser.add_argument("tuned", nargs="?", help="tuned model")
    parser.add_argument("--out", default="good-vs-bad", help="folder for the report")
    parser.add_argument("--shape", choices=SHAPES, help="prompts that come with the study")
    parser.add_argument("--prompts", help="a file of prompts instead (text, answer, alternative)")
    parser.add_argument("--bos", action="store_true", default=None, help="put the BOS token before every prompt")
    parser.add_argument("--reward", help="a reward model")
    parser.add_argument("--label", help="its label")
    parser.add_argument("--control", action="append", default=[], help="a null run; may be given several times")
    parser.add_argument("--allow-pickle", action="store_true", help="accept pickled weights, as of older hub models")
    parser.add_argument("--samples", type=int, default=16, help="continuations a prompt")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    own = None if given.prompts is None else Prompts.from_file(given.prompts, bos=given.bos)
    try:
        what = subject(
            given.base, given.tuned, shape=given.shape, prompts=own, bos=given.bos, reward=given.reward,
            label=given.label, controls=given.control, allow_pickle=given.allow_pickle,
        )  # fmt: skip
        found = study.run(what, samples=given.samples, seed=given.seed, progress=lambda step: print(f"{step} ..."))
        print(f"wrote {write(found, given.out)}")
    except InterpError as error:
        parser.exit(1, f"{type(error).__name__}: {error}\n")


if __name__ == "__main__":
    main()
