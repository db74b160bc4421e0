"""The cases of each kind of verb, for whatever models are given."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from adapter import call, compare_circuits

import interp

Case = Callable[[], Any]
Models = Callable[..., list[Any]]
"""From names of models to the models, loaded when they are first asked for."""

STREAM = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
HEADS = ("z", "result", "q", "k", "v", "pattern")
DRAWS = 3


def length_of_text(samples: list[str], *_: Any, **__: Any) -> list[float]:
    """A reward that is a function of the texts, however it is called."""
    return [float(len(text) % 7) for text in samples]


def patching_cases(name: str, of: Models, few: Any, many: Any) -> Iterator[tuple[str, Case]]:
    """Across two models, and ablation of one."""
    verb = "patching.activation_patching"
    for direction in (("base", "tuned"), ("tuned", "base")):
        for sites in (STREAM, HEADS):
            kind = "stream" if sites is STREAM else "heads"
            yield (
                f"{name}.patch_{direction[1]}_into_{direction[0]}_{kind}",
                functools.partial(patched, verb, of, direction, many, sites=list(sites)),
            )
    cross = functools.partial(patched, verb, of, ("base", "tuned"))
    yield f"{name}.patch_last", lambda: cross(many, sites=list(STREAM), positions="last")
    yield f"{name}.patch_numbers", lambda: cross(many, sites=["z", "mlp_out"], positions=[0, 1])
    yield f"{name}.patch_neurons", lambda: cross(few, sites=[{("mlp_post", 1): [0, 3]}, {("mlp_post", 0): [1]}])
    yield f"{name}.patch_sets", lambda: cross(many, sites=[{("z", 0): [0], ("z", 1): [1]}, {("mlp_out", 1): None}])
    yield f"{name}.patch_without_short_cut", lambda: cross(few, sites=["z", "resid_mid"], short_cut=False)
    for by in ("zero", "mean", "resample"):
        yield f"{name}.ablation_{by}", functools.partial(ablated, of, many, by=by, sites=["z", "mlp_out", "attn_out"])
    estimate = "patching.attribution_patching"
    for steps in (0, 3):
        yield (
            f"{name}.attribution_patching_{steps}",
            functools.partial(
                patched, estimate, of, ("base", "tuned"), many, sites=["z", "mlp_out"], steps=steps, sample=4
            ),
        )
    yield (
        f"{name}.smallest_set",
        lambda: call(
            "patching.smallest_set",
            *of("base", "tuned"),
            many,
            sites=["mlp_out", "z"],
            target=0.9,
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


def patched(verb: str, of: Models, direction: Any, prompts: Any, **settings: Any) -> Any:
    if verb.endswith("activation_patching"):
        settings = {"draws": DRAWS} | settings
    return call(verb, *of(*direction), prompts, **settings)


def ablated(of: Models, prompts: Any, **settings: Any) -> Any:
    return call("patching.ablation", *of("tuned"), prompts, draws=2, **settings)


def circuit_cases(
    name: str, of: Models, paired: Any, prompts: Any, *, compare: bool = False
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
            "circuits.faithfulness_curve", *of("tuned"), paired, scores(), sizes=[size(), 2 * size()], draws=2
        ),
    )
    yield (
        f"{name}.faithfulness_kl",
        lambda: call("circuits.faithfulness_curve", *of("tuned"), paired, scores(), "kl", sizes=[size()], draws=2),
    )
    yield f"{name}.stability", lambda: call("circuits.stability", scores(), size(), draws=8)
    if compare:
        yield (
            f"{name}.circuits_compare",
            functools.partial(circuits_compared, of, paired, size),
        )
        yield (
            f"{name}.circuits_compare_kl",
            functools.partial(circuits_compared, of, paired, size, metric="kl"),
        )
    yield (
        f"{name}.path_patching",
        lambda: call(
            "circuits.path_patching", *of("base", "tuned"), prompts, receivers=["logits", "L1.mlp", "L1H0.q", "L1H0.v"]
        ),
    )
    yield f"{name}.head_changes", lambda: call("circuits.head_changes", *of("base", "tuned"), prompts, count=2)


def circuits_compared(of: Models, paired: Any, size: Callable[[], int], **settings: Any) -> Any:
    models = {"controls": of("control"), "replicates": of("again")}
    sizes = [size(), 3 * size()]
    return compare_circuits(*of("base", "tuned"), paired, sizes=sizes, steps=1, splits=4, draws=2, **models, **settings)


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
        lambda: call("patching.ablation", model(), texts[:9], by="mean", sites=["attn_out", "mlp_out", "z"], draws=0),
    )


def join_cases(name: str, of: Models, reward: Callable[[], Any], texts: list[str]) -> Iterator[tuple[str, Case]]:
    """A reward beside what the tuning did."""
    sampled: dict[str, Any] = {"samples": 8, "max_new_tokens": 6, "draws": 49}

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
