"""What is recorded: every verb of the library, on few prompts, with small settings."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import inputs
import numpy as np
import pandas as pd
from adapter import call, joined, pair, policy, reward_model, run_command
from verbs import (
    HEADS,
    STREAM,
    Case,
    ablated,
    circuit_cases,
    join_cases,
    length_of_text,
    patched,
    patching_cases,
    reward_cases,
)

import interp

JOINS = ("implicit_reward", "token_join")


def all_cases(folder: Path, demo: Path) -> Iterator[tuple[str, Case]]:
    """Names and functions; whatever a function returns is recorded."""
    yield from demo_cases(demo, folder)
    yield from stories_cases(folder)
    yield from tiny_cases(folder)
    yield from t5_cases(folder)
    yield from classifier_cases(folder)
    yield from training_cases(folder)


def prompts_of(texts: list[str], **settings: Any) -> Any:
    return interp.Prompts(texts, **settings)


def margin(logits: Any, _: Any) -> Any:
    """A metric of one's own."""
    return logits[..., 5] - logits[..., 9]


def compared(*models: Any, joins: tuple[str, ...] = (), **settings: Any) -> dict[str, Any]:
    result = call("compare", *models, **settings)
    return {"": result} | {f"joined/{name}": joined(result, name) for name in joins}


def demo_cases(demo: Path, folder: Path) -> Iterator[tuple[str, Case]]:
    @functools.cache
    def models() -> dict[str, Any]:
        again = inputs.edited(demo / "tuned", folder / "demo_again", 1)
        return {
            "base": policy(demo / "base"),
            "tuned": policy(demo / "tuned"),
            "control": policy(demo / "controls" / "shuffled-0"),
            "again": policy(again),
            "reward": reward_model(demo / "reward", label="negative"),
        }

    def of(*names: str) -> list[Any]:
        return [models()[name] for name in names]

    texts = json.loads((demo / "prompts.json").read_text())["texts"]
    answers = (" bad", " good")
    many, few = prompts_of(texts[:10], answers=answers), prompts_of(texts[:4], answers=answers)
    swapped = {" was ": " is ", " is ": " was ", " felt ": " was "}
    pairs = [(text, text.replace(old, new)) for text in texts for old, new in swapped.items() if old in text]
    plain = prompts_of(texts[:9])
    asked = prompts_of(texts[:10], answers=answers, continuations=[" a good film, and"] * 10)
    paired = prompts_of([pair[0] for pair in pairs[:16]], corrupted=[pair[1] for pair in pairs[:16]], answers=answers)

    def every(**more: Any) -> Any:
        settings: dict[str, Any] = {"measures": "all", "samples": 4, "max_new_tokens": 8} | more
        extra = {"controls": of("control"), "replicates": of("again"), "reward": pair(demo)}
        return compared(*of("base", "tuned"), asked, joins=JOINS, **extra, **settings)

    yield "demo.compare_all", every
    yield "demo.compare_of_one_batch_size", lambda: call("compare", *of("base", "tuned"), many, batch_size=3)
    yield "demo.compare_plain", lambda: call("compare", *of("base", "tuned"), texts[:8], measures=["kl", "completions"])
    yield (
        "demo.compare_groups",
        lambda: call(
            "compare",
            *of("base", "tuned"),
            prompts_of(texts[:18], answers=answers, groups=[str(i // 2) for i in range(18)]),
            measures=["kl", "logit_diff", "lens"],
        ),
    )
    yield (
        "demo.compare_many",
        lambda: call(
            "compare_many",
            *of("base"),
            dict(zip("ab", of("tuned", "again"), strict=True)),
            many,
            controls=of("control"),
            measures=["kl", "weights", "lens_positions", "neurons"],
        ),
    )
    yield from patching_cases("demo", of, few, many)

    def metrics(metric: Any) -> Any:
        pairs = of("base", "tuned")
        return call("patching.activation_patching", *pairs, asked, sites="mlp_out", metric=metric, draws=0)

    for metric in ("logit_diff", "kl", "logprob"):
        yield f"demo.metric_{metric}", functools.partial(metrics, metric)
    yield "demo.metric_own", lambda: metrics(margin)

    def within(**more: Any) -> Any:
        both = of("tuned", "tuned")
        return call("patching.activation_patching", *both, paired, recipient_reads="corrupted", draws=2, **more)

    yield "demo.patch_clean_into_corrupted", lambda: within(sites=["resid_pre", "z", "mlp_out"])
    yield "demo.patch_each_position", lambda: within(sites="resid_pre", positions="each")
    verb = "patching.reward_patching"
    sampled: dict[str, Any] = {"samples": 2, "max_new_tokens": 5}

    def rewarded(reward: Any, **more: Any) -> Any:
        return call(verb, *of("base", "tuned"), texts[:8], reward, **sampled, **more)

    sets = [{("z", 1): [0, 2], ("z", 2): [1]}]
    yield "demo.reward_patching", lambda: rewarded(*of("reward"), sites=["mlp_out", *sets], draws=2)
    yield "demo.reward_patching_function", lambda: rewarded(length_of_text, sites="attn_out", positions="prompt")
    yield "demo.reward_patching_pattern", lambda: rewarded(*of("reward"), sites=[{("pattern", 1): [0]}])
    reading = "patching.value_reading"
    yield (
        "demo.value_reading",
        lambda: call(reading, *of("tuned"), demo / "value_head.safetensors", plain, *of("reward"), **sampled),
    )
    yield (
        "demo.value_reading_function",
        lambda: call(reading, *of("tuned"), demo / "value_head.safetensors", plain, length_of_text, **sampled),
    )
    yield from circuit_cases("demo", of, paired, many, compare=True)
    opinions = [
        f"{text}{end}" for text in texts[:10] for end in (" good!", " bad, I think.", " very boring and terrible")
    ]
    yield from reward_cases("demo", lambda: models()["reward"], opinions, "negative")
    yield from join_cases("demo", of, lambda: models()["reward"], texts[:9])


def stories_cases(folder: Path) -> Iterator[tuple[str, Case]]:
    source = Path(os.environ.get("INTERP_DATA", "../shared/data")) / "stories3M-hf"

    @functools.cache
    def models() -> dict[str, Any]:
        tuned = inputs.edited(source, folder / "stories_edited")
        return {"base": policy(source), "tuned": policy(tuned)}

    def of(*names: str) -> list[Any]:
        return [models()[name] for name in names]

    texts = [
        f"Once upon a time, there was a {thing} who was" for thing in "cat dog girl boy bird fish king tree".split()
    ]
    prompts = prompts_of(texts, answers=(" sad", " happy"), multi_token="first")
    paired = prompts_of(
        texts, corrupted=[text.replace("who", "not") for text in texts], answers=(" sad", " happy"), multi_token="first"
    )
    yield (
        "stories.compare_all",
        lambda: call("compare", *of("base", "tuned"), prompts, measures="all", samples=2, max_new_tokens=6),
    )
    verb = "patching.activation_patching"
    for sites in (STREAM, HEADS):
        kind = "stream" if sites is STREAM else "heads"
        yield (
            f"stories.patch_{kind}",
            functools.partial(patched, verb, of, ("base", "tuned"), prompts, sites=list(sites)),
        )
    yield "stories.ablation", lambda: ablated(of, prompts, by="resample", sites=["attn_out", "mlp_out"])
    yield (
        "stories.attribution_patching",
        lambda: call("patching.attribution_patching", *of("base", "tuned"), prompts, sites="z", sample=4),
    )
    yield "stories.edge_attribution", lambda: call("circuits.edge_attribution", *of("tuned"), paired, steps=1)
    yield "stories.head_changes", lambda: call("circuits.head_changes", *of("base", "tuned"), prompts, count=2)


def tiny_cases(folder: Path) -> Iterator[tuple[str, Case]]:
    """A pair of version 1 on disk, with checkpoints, a control and a replicate."""

    @functools.cache
    def place() -> Path:
        return inputs.pair(folder / "pair")

    @functools.cache
    def models() -> dict[str, Any]:
        names = {"base": "step0", "tuned": "step20", "control": "step21", "again": "step22"}
        found: dict[str, Any] = {name: policy(place() / path) for name, path in names.items()}
        return found | {"reward": reward_model(place() / "reward", label="POS", output="logit")}

    def of(*names: str) -> list[Any]:
        return [models()[name] for name in names]

    texts = inputs.OPENINGS
    answers = (" good", " bad")
    prompts = prompts_of(texts, answers=answers)
    paired = prompts_of(texts, corrupted=inputs.CORRUPTED, answers=answers)
    joins = (*JOINS, "over_optimisation", "probes")

    def every() -> Any:
        settings: dict[str, Any] = {"measures": "all", "reward": pair(place()), "samples": 4, "max_new_tokens": 5}
        extra = {"controls": of("control"), "replicates": of("again")}
        return compared(*of("base", "tuned"), prompts, joins=joins, **settings, **extra)

    def manifest() -> Any:
        found = pair(place())
        names = {name: getattr(found, name) for name in ("base", "tuned", "reward", "controls", "replicates")}
        names["checkpoints"] = list(found.checkpoints.items())
        return {
            key: json.loads(json.dumps(value, default=str).replace(str(place()), "")) for key, value in names.items()
        }

    yield "tiny.pair", manifest
    yield "tiny.compare_all", every
    yield from patching_cases("tiny", of, prompts, prompts)
    yield from circuit_cases("tiny", of, paired, prompts, compare=True)
    yield from join_cases("tiny", of, lambda: models()["reward"], texts)
    sampled: dict[str, Any] = {"samples": 3, "max_new_tokens": 5}
    over = "reward.over_optimisation"
    yield "tiny.over_optimisation", lambda: call(over, pair(place()), prompts=texts, **sampled)
    gold: dict[str, Any] = {"gold": length_of_text}
    yield "tiny.over_optimisation_gold", lambda: call(over, pair(place()), prompts=texts, **gold, **sampled)
    labels = [index % 2 for index in range(len(inputs.OPINIONS))]
    yield "tiny.probes", lambda: call("reward.probes", pair(place()), inputs.OPINIONS, labels, draws=3, folds=3)


def t5_cases(folder: Path) -> Iterator[tuple[str, Case]]:
    @functools.cache
    def models() -> dict[str, Any]:
        found = {
            name: policy(inputs.t5(folder / f"t5_{name}", seed))
            for name, seed in (("base", 0), ("tuned", 1), ("control", 2), ("again", 3))
        }
        scorer = inputs.classifier(folder / "t5_reward", names=inputs.tokenizer())
        return found | {"reward": reward_model(scorer, label="POS", output="logit")}

    def of(*names: str) -> list[Any]:
        return [models()[name] for name in names]

    texts = inputs.OPENINGS
    prompts = prompts_of(texts, answers=("good", "bad"), decoder_prefixes="it was")
    paired = prompts_of(texts, corrupted=inputs.CORRUPTED, answers=("good", "bad"))

    def every() -> Any:
        sampled = {"samples": 4, "max_new_tokens": 5}
        extra = {"controls": of("control"), "replicates": of("again"), "reward": models()["reward"]}
        return compared(*of("base", "tuned"), prompts, measures="all", joins=("implicit_reward",), **sampled, **extra)

    yield "t5.compare_all", every
    yield from patching_cases("t5", of, prompts, prompts)
    yield from circuit_cases("t5", of, paired, prompts)
    sampled: dict[str, Any] = {"samples": 8, "max_new_tokens": 5}
    joining = "reward.implicit_reward"
    yield (
        "t5.implicit_reward",
        lambda: call(joining, *of("base", "tuned"), models()["reward"], texts, draws=49, **sampled),
    )
    yield (
        "t5.reward_patching",
        lambda: call(
            "patching.reward_patching",
            *of("base", "tuned"),
            texts,
            *of("reward"),
            sites="mlp_out",
            samples=2,
            max_new_tokens=4,
        ),
    )


def classifier_cases(folder: Path) -> Iterator[tuple[str, Case]]:
    @functools.cache
    def model() -> Any:
        return reward_model(inputs.encoder(folder / "encoder"), label="LABEL_1", output="logit")

    @functools.cache
    def other() -> Any:
        return reward_model(inputs.encoder(folder / "encoder_other", 8), label="LABEL_1", output="logit")

    texts = inputs.OPINIONS
    yield from reward_cases("encoder", model, texts, "LABEL_1")
    yield (
        "encoder.patch_rewards",
        lambda: call("patching.activation_patching", model(), other(), texts[:9], sites=[*STREAM, "z", "v"], draws=2),
    )
    yield (
        "encoder.smallest_set",
        lambda: call("patching.smallest_set", model(), other(), texts, sites="mlp_out", draws=2, most=2),
    )


def training_cases(folder: Path) -> Iterator[tuple[str, Case]]:
    """What a short training writes: weights, figures by step, held-out samples."""

    def trained(kind: str) -> Any:
        recipe = inputs.recipe(folder / f"train_{kind}", kind)
        run_command("train", str(recipe), "--out", str(folder / f"trained_{kind}"))
        return written(folder / f"trained_{kind}")

    def reward_trained(kind: str) -> Any:
        recipe = inputs.reward_recipe(folder / f"train_reward_{kind}", kind)
        run_command("train-reward", str(recipe), "--out", str(folder / f"trained_reward_{kind}"))
        return written(folder / f"trained_reward_{kind}")

    for kind in ("gpt2", "t5"):
        yield f"training.native_{kind}", functools.partial(trained, kind)
    for kind in ("single", "preferences"):
        yield f"training.reward_{kind}", functools.partial(reward_trained, kind)


def written(folder: Path) -> dict[str, Any]:
    """The files of a run as arrays."""
    from safetensors.numpy import load_file

    found: dict[str, Any] = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(file.relative_to(folder))
        if file.suffix == ".safetensors":
            found[name] = load_file(file)
        elif file.suffix == ".jsonl":
            found[name] = pd.read_json(file, lines=True)
        elif file.suffix == ".parquet":
            found[name] = pd.read_parquet(file)
    manifest = folder / "pair.json"
    if manifest.is_file():
        found["final"] = json.loads(manifest.read_text())["final"]
    card = folder / "card.json"
    if card.is_file():
        found["card"] = np.array(sorted(map(str, json.loads(card.read_text()).items())))
    return found
