"""What is recorded: every verb of the library, on few prompts, with small settings."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import inputs
import numpy as np
import pandas as pd
from adapter import call, joined, pair, policy, reward_model, run_command

import interp

Case = Callable[[], Any]
STREAM = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
HEADS = ("z", "result", "q", "k", "v", "pattern")
JOINS = ("implicit_reward", "token_join")
DRAWS = 3


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


def length_of_text(samples: list[str], *_: Any, **__: Any) -> list[float]:
    """A reward that is a function of the texts, however it is called."""
    return [float(len(text) % 7) for text in samples]


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
    others = [text.replace("The ", "My ").replace("This ", "That ") + " not" for text in texts]
    plain = prompts_of(texts[:9])
    asked = prompts_of(texts[:10], answers=answers, continuations=[" a good film, and"] * 10)
    paired = prompts_of([f"{text} very" for text in texts[:16]], corrupted=others[:16], answers=answers)

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
            "compare", *of("base", "tuned"), prompts_of(texts[:18], answers=answers, groups=[str(i // 2) for i in range(18)]),
            measures=["kl", "logit_diff", "lens"],
        ),
    )  # fmt: skip
    yield (
        "demo.compare_many",
        lambda: call(
            "compare_many", *of("base"), dict(zip("ab", of("tuned", "again"), strict=True)), many,
            controls=of("control"), measures=["kl", "weights", "lens_positions", "neurons"],
        ),
    )  # fmt: skip
    yield from patching_cases("demo", of, few, many)

    def metrics(metric: Any) -> Any:
        pairs = of("base", "tuned")
        return call("patching.activation_patching", *pairs, asked, sites="mlp_out", metric=metric, draws=0)

    for metric in ("logit_diff", "kl", "log_prob"):
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
        f"{text}{end}" for text in texts[:7] for end in (" good!", " bad, I think.", " very boring and terrible")
    ]
    yield from reward_cases("demo", lambda: models()["reward"], opinions, "negative")
    yield from join_cases("demo", of, lambda: models()["reward"], texts[:9])


def patching_cases(name: str, of: Callable[..., list[Any]], few: Any, many: Any) -> Iterator[tuple[str, Case]]:
    """Across two models, and ablation of one."""
    verb = "patching.activation_patching"
    for direction in (("base", "tuned"), ("tuned", "base")):
        for sites in (STREAM, HEADS):
            kind = "stream" if sites is STREAM else "heads"
            yield (
                f"{name}.patch_{direction[1]}_into_{direction[0]}_{kind}",
                functools.partial(_patched, verb, of, direction, many, sites=list(sites)),
            )
    cross = functools.partial(_patched, verb, of, ("base", "tuned"))
    yield f"{name}.patch_last", lambda: cross(many, sites=list(STREAM), positions="last")
    yield f"{name}.patch_numbers", lambda: cross(many, sites=["z", "mlp_out"], positions=[0, 1])
    yield f"{name}.patch_neurons", lambda: cross(few, sites=[{("mlp_post", 1): [0, 3]}, {("mlp_post", 0): [1]}])
    yield f"{name}.patch_sets", lambda: cross(many, sites=[{("z", 0): [0], ("z", 1): [1]}, {("mlp_out", 1): None}])
    yield f"{name}.patch_without_short_cut", lambda: cross(few, sites=["z", "resid_mid"], short_cut=False)
    for by in ("zero", "mean", "resample"):
        yield f"{name}.ablation_{by}", functools.partial(_ablated, of, many, by=by, sites=["z", "mlp_out", "attn_out"])
    estimate = "patching.attribution_patching"
    for steps in (0, 3):
        yield (
            f"{name}.attribution_patching_{steps}",
            functools.partial(_patched, estimate, of, ("base", "tuned"), many, sites=["z", "mlp_out"], steps=steps, sample=4),
        )  # fmt: skip
    yield (
        f"{name}.smallest_set",
        lambda: call(
            "patching.smallest_set",
            *of("base", "tuned"),
            many,
            sites="mlp_out",
            target=0.9,
            candidates=4,
            most=3,
            draws=2,
        ),
    )
    yield (
        f"{name}.steering",
        lambda: call(
            "patching.steering", *of("base", "tuned"), many, site=("resid_post", 0), doses=(0.5, 1, 2), draws=3
        ),
    )


def _patched(verb: str, of: Callable[..., list[Any]], direction: Any, prompts: Any, **settings: Any) -> Any:
    if verb.endswith("activation_patching"):
        settings = {"draws": DRAWS} | settings
    return call(verb, *of(*direction), prompts, **settings)


def _ablated(of: Callable[..., list[Any]], prompts: Any, **settings: Any) -> Any:
    return call("patching.ablation", *of("tuned"), prompts, draws=2, **settings)


def circuit_cases(
    name: str, of: Callable[..., list[Any]], paired: Any, prompts: Any, *, compare: bool = False
) -> Iterator[tuple[str, Case]]:
    @functools.cache
    def scores() -> Any:
        return call("circuits.edge_attribution", *of("tuned"), paired, steps=2)

    def size() -> int:
        return max(6, scores().graph.size // 8)

    def chosen(**how: Any) -> Any:
        return interp.circuits.choose(scores().graph, scores().mean, size(), **how)

    yield f"{name}.edge_attribution", scores
    yield f"{name}.edge_attribution_eap", lambda: call("circuits.edge_attribution", *of("tuned"), paired, method="eap")
    yield f"{name}.edge_attribution_kl", lambda: call("circuits.edge_attribution", *of("tuned"), paired, "kl", steps=2)
    yield f"{name}.choose", lambda: {"top": chosen(), "greedy": chosen(by="greedy")}
    yield f"{name}.faithfulness", lambda: call("circuits.faithfulness", *of("tuned"), paired, chosen())
    yield (
        f"{name}.circuit_values",
        lambda: call("circuits.circuit_values", *of("tuned"), paired, [chosen(), chosen(by="greedy")]),
    )
    yield (
        f"{name}.faithfulness_curve",
        lambda: call(
            "circuits.faithfulness_curve", *of("tuned"), paired, scores(), sizes=[size(), 2 * size()], random_circuits=2
        ),
    )
    yield f"{name}.stability", lambda: call("circuits.stability", scores(), size(), draws=8)
    if compare:
        yield (
            f"{name}.circuits_compare",
            lambda: call(
                "circuits.compare", *of("base", "tuned"), paired, sizes=[size(), 3 * size()], steps=1, random_circuits=2,
                draws=4, controls=of("control"), replicates=of("again"),
            ),
        )  # fmt: skip
    yield (
        f"{name}.path_patching",
        lambda: call(
            "circuits.path_patching", *of("base", "tuned"), prompts, receivers=["logits", "L1.mlp", "L1H0.q", "L1H0.v"]
        ),
    )
    yield f"{name}.head_changes", lambda: call("circuits.head_changes", *of("base", "tuned"), prompts, count=2)


def reward_cases(name: str, model: Callable[[], Any], texts: list[str], label: str) -> Iterator[tuple[str, Case]]:
    """Every reading of a reward model."""
    reward = interp.reward

    def attributed(**settings: Any) -> Any:
        found = call("reward.attribute", model(), texts[:6], **settings)
        return {"": found, "words": found.words(1), "characters": found.by_character(1, found.labels[0])}

    yield f"{name}.attribute", lambda: attributed(patched_texts=2)
    yield f"{name}.attribute_zero", lambda: attributed(baseline="zero", patched_texts=0, labels="all", tolerance=0.1)
    yield f"{name}.attribute_leave_one_out", lambda: attributed(method="leave_one_out")
    yield f"{name}.attribute_deleted", lambda: attributed(method="leave_one_out", baseline="delete")
    yield f"{name}.attribute_gradient", lambda: attributed(method="gradient_x_input", patched_texts=2)

    def against() -> Any:
        first = call("reward.attribute", model(), texts[:4], patched_texts=0)
        second = call("reward.attribute", model(), texts[:4], method="gradient_x_input", patched_texts=0)
        return {"": reward.against_patching(model(), first), "correlation": reward.rank_correlation(first, second)}

    yield f"{name}.against_patching", against
    yield f"{name}.score_range", lambda: call("reward.score_range", model(), texts)
    yield f"{name}.lens", lambda: call("reward.lens", model(), texts, labels="all")
    yield f"{name}.direct_attribution", lambda: call("reward.direct_attribution", model(), texts[:9], labels=[label])
    yield (
        f"{name}.direct_attribution_plain",
        lambda: call("reward.direct_attribution", model(), texts[:9], patching=False),
    )
    yield f"{name}.spurious", lambda: call("reward.spurious", model(), texts)
    labels = [index % 3 == 0 for index in range(len(texts))]
    yield (
        f"{name}.counterexamples",
        lambda: call("reward.counterexamples", model(), texts, labels, count=4, swaps=1, swapped_texts=2),
    )
    yield f"{name}.scores", lambda: {"one": model().score(texts), "all": model().score_labels(texts)}
    yield (
        f"{name}.patch_reward",
        lambda: call(
            "patching.ablation", model(), texts[:9], by="mean", sites=["attn_out", "mlp_out", "z"], draws=0
        ),
    )  # fmt: skip


def join_cases(
    name: str, of: Callable[..., list[Any]], reward: Callable[[], Any], texts: list[str]
) -> Iterator[tuple[str, Case]]:
    """A reward beside what the tuning did."""
    sampled: dict[str, Any] = {"samples": 4, "max_new_tokens": 6, "draws": 49}

    def implicit(scorer: Any) -> Any:
        found = call("reward.implicit_reward", *of("base", "tuned"), scorer, texts, **sampled)
        return {"": found, "texts": found.texts(2)}

    def tokens() -> Any:
        attribution = call("reward.attribute", reward(), [f"{text} good and boring" for text in texts], patched_texts=0)
        said = [f"{text} good and boring" for text in texts]
        return call("reward.token_join", *of("base", "tuned"), said, attribution, label=attribution.labels[0], draws=49)

    yield f"{name}.implicit_reward", lambda: implicit(reward())
    yield f"{name}.implicit_reward_function", lambda: implicit(length_of_text)
    yield f"{name}.token_join", tokens


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
            functools.partial(_patched, verb, of, ("base", "tuned"), prompts, sites=list(sites)),
        )
    yield "stories.ablation", lambda: _ablated(of, prompts, by="resample", sites=["attn_out", "mlp_out"])
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
    sampled: dict[str, Any] = {"samples": 4, "max_new_tokens": 5}
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
        lambda: call(
            "patching.activation_patching", model(), other(), texts[:9], sites=[*STREAM, "z", "v"], draws=2
        ),
    )  # fmt: skip
    yield (
        "encoder.smallest_set",
        lambda: call("patching.smallest_set", model(), other(), texts, sites="mlp_out", draws=2, candidates=2, most=2),
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
