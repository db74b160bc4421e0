"""`interp compare`: two checkpoints and some prompts in, a table and a report out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from interp.cli.prompts import prompts_from
from interp.errors import PromptError


def _list_measures(asked: bool | None) -> None:
    """Print every measure with what it says, and stop."""
    if not asked:
        return
    from interp.measures import measures

    for name, known in measures().items():
        print(f"{name} ({known.when}): {known.meaning}")
    raise typer.Exit


def compare(
    base: Annotated[
        str, typer.Argument(help="Base model: folder, or hub id, as id@revision; or a pair: its folder, or demo.")
    ],
    out: Annotated[Path, typer.Option(help="New folder for result.nc, summary.csv and report.html.")],
    tuned: Annotated[
        str | None, typer.Argument(help="Tuned model: the same, or a LoRA adapter of BASE; none where BASE is a pair.")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be given several times.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts: .txt (one a line), .csv, .tsv, .jsonl, .json or .parquet.")
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="Column of the prompts; default: text, prompt, messages, ids.")
    ] = None,
    answer: Annotated[str | None, typer.Option(help='Answer whose logit is read, as " bad" with its space.')] = None,
    against: Annotated[str | None, typer.Option(help="Alternative that it is contrasted with.")] = None,
    multi_token: Annotated[str, typer.Option(help='An answer of several tokens: "error", "first" or "sum".')] = "error",
    chat_template: Annotated[
        str | None, typer.Option(help='Chat template for both: "base", "tuned" or a jinja file.')
    ] = None,
    decoder_prefix: Annotated[
        str | None, typer.Option(help="What the decoder of an encoder-decoder model has said already.")
    ] = None,
    control: Annotated[
        list[str] | None, typer.Option(help="Control run's model, as of a shuffled reward; repeatable.")
    ] = None,
    replicate: Annotated[
        list[str] | None, typer.Option(help="Model of the same recipe with another seed; repeatable.")
    ] = None,
    reward: Annotated[
        str | None, typer.Option(help="Reward model that scores the completions, or the pair's folder, which names it.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="Label of the reward model, where it has several.")] = None,
    optimised: Annotated[
        Path | None, typer.Option(help="The pair's folder, whose recipe says how the score was clipped and scaled.")
    ] = None,
    measure: Annotated[
        list[str] | None, typer.Option(help="Measure to take, or all; repeatable (see --list-measures).")
    ] = None,
    list_measures: Annotated[
        bool | None,
        typer.Option("--list-measures", callback=_list_measures, is_eager=True, help="Say what can be measured."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help='Tokenizer for both: "base", "tuned", a folder or an id.')
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts a forward pass.")] = 16,
    max_new_tokens: Annotated[int, typer.Option(help="Longest sampled completion.")] = 24,
    samples: Annotated[
        int | None, typer.Option(help="Completions of each model to each prompt; default: 1, with --reward 4.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="dtype of the weights, as float32 or bfloat16.")] = None,
    device: Annotated[str | None, typer.Option(help="Device, as cpu or cuda.")] = None,
    device_map: Annotated[str | None, typer.Option(help='"auto": spread each model over the GPUs there are.')] = None,
    in_memory: Annotated[str, typer.Option(help='Models in memory at a time: "all" or "one".')] = "all",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with a model.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the samples and the bootstrap.")] = 0,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Accept pickled weights.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier comparison in --out.")] = False,
) -> None:
    """Compare TUNED with BASE, or the two models of a pair, on some prompts."""
    from interp.cli.show import progress_bar, working, write_and_print
    from interp.io import check_new_folder

    with working("loading the library"):
        from interp.comparison import compare as run
        from interp.measures import check_measures
        from interp.models import load_pair, load_reward
        from interp.pair import pair_at
        from interp.result.store import FILES, owner
        from interp.sampling import Sampling
    check_new_folder(out, owned_by=owner(out), own=FILES, overwrite=overwrite)
    if label is not None and reward is None:
        raise PromptError("--label names a label of --reward; give both or none")
    if optimised is not None and reward is None:
        raise PromptError("--optimised says what was made of the score of --reward; give both or none")
    trained = pair_at(reward if reward is not None or tuned is not None else base)
    rewarded = reward is not None or (trained is not None and trained.reward is not None)
    check_measures(measure, with_reward=rewarded, with_checkpoints=trained is not None and bool(trained.checkpoints))
    given = prompts_from(
        prompt,
        prompts,
        column=column,
        answer=answer,
        against=against,
        multi_token=multi_token,
        chat_template=chat_template,
        decoder_prefix=decoder_prefix,
    )
    trust: dict[str, Any] = {"allow_pickle": allow_pickle, "trust_remote_code": trust_remote_code}
    place = {"device": device, "device_map": device_map, **trust}
    models: dict[str, Any] = {"source": base} if tuned is None else {"base": base, "tuned": tuned}
    pair = load_pair(
        **models,
        controls=control,
        replicates=replicate,
        tokenizer=tokenizer,
        in_memory=in_memory,  # type: ignore[arg-type]
        dtype=dtype,
        **place,
    )
    with progress_bar("loading the models") as progress:
        scorer: Any = reward
        if reward is not None and pair_at(reward) is not None and label is not None:
            raise PromptError("--label names a label of a reward model; the pair that --reward names has its own")
        if reward is not None and optimised is None and pair_at(reward) is not None:
            scorer = load_pair(reward, **place)
        elif reward is not None:
            scorer = load_reward(reward, label=label, optimised=optimised, **place)
        result = run(
            pair,
            given,
            measures=measure,
            reward=scorer,
            sampling=Sampling(samples, max_new_tokens),
            batch_size=batch_size,
            seed=seed,
            progress=progress,
        )
    write_and_print(result, out, overwrite=overwrite)
