"""`interp compare`: two checkpoints and some prompts in, a table and a report out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from interp.errors import PromptError


def compare(
    base: Annotated[str, typer.Argument(help="Base model: folder or hub id.")],
    tuned: Annotated[str, typer.Argument(help="Tuned model: folder or hub id.")],
    out: Annotated[Path, typer.Option(help="New folder for comparison.nc, summary.csv and report.html.")],
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be given several times.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A text file with one prompt a line.")] = None,
    answer: Annotated[str | None, typer.Option(help='Answer whose logit is read, as " bad" with its space.')] = None,
    against: Annotated[str | None, typer.Option(help="Alternative that it is contrasted with.")] = None,
    multi_token: Annotated[str, typer.Option(help='An answer of several tokens: "error", or "first".')] = "error",
    control: Annotated[
        list[str] | None, typer.Option(help="Null run's model, as of a shuffled reward; repeatable.")
    ] = None,
    reward: Annotated[str | None, typer.Option(help="Reward model that scores the completions.")] = None,
    label: Annotated[str | None, typer.Option(help="Label of the reward model, where it has several.")] = None,
    measure: Annotated[list[str] | None, typer.Option(help="Measure to take; repeatable. Default: all.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help='Tokenizer for both: "base", "tuned", a folder or an id.')
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts a forward pass.")] = 16,
    max_new_tokens: Annotated[int, typer.Option(help="Longest sampled completion.")] = 24,
    dtype: Annotated[str | None, typer.Option(help="dtype of the weights, as float32 or bfloat16.")] = None,
    device: Annotated[str | None, typer.Option(help="Device, as cpu or cuda.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the samples and the bootstrap.")] = 0,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Accept pickled weights.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier comparison in --out.")] = False,
) -> None:
    """Compare TUNED with BASE on some prompts."""
    from interp.cli.show import working, write_and_print
    from interp.io import check_new_folder

    with working("loading the library"):
        from interp.comparison import FILE, OWN
        from interp.comparison import compare as run
        from interp.measures import check_measures
        from interp.models import RewardModel
        from interp.prompts import Prompts
    check_new_folder(out, owned_by=FILE, own=OWN, overwrite=overwrite)
    texts = [*(prompt or []), *(_lines(prompts) if prompts is not None else [])]
    if not texts:
        raise PromptError("there are no prompts; give --prompt TEXT, or --prompts FILE with one prompt a line")
    if label is not None and reward is None:
        raise PromptError("--label names a label of --reward; give both or none")
    if (answer is None) != (against is None):
        raise PromptError("--answer and --against go together; give both or none")
    check_measures(measure)
    answers = (answer, against) if answer is not None and against is not None else None
    given = Prompts(texts, answers=answers, multi_token=multi_token)  # type: ignore[arg-type]
    options: dict[str, Any] = {"dtype": dtype, "device": device, "allow_pickle": allow_pickle}
    with working("loading and tracing both models"):
        scorer = RewardModel.load(reward, label=label, device=device, allow_pickle=allow_pickle) if reward else None
        result = run(
            base,
            tuned,
            given,
            measures=measure,
            reward=scorer,
            control=control,
            tokenizer=tokenizer,
            batch_size=batch_size,
            seed=seed,
            max_new_tokens=max_new_tokens,
            **options,
        )
    write_and_print(result, out, overwrite=overwrite)


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(
            f"cannot read prompts from {path} ({error}); give a UTF-8 text file, one prompt a line"
        ) from error
    return [line for line in text.splitlines() if line.strip()]
