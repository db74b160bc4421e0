"""What the good-vs-bad study looks at: two models, prompts of several shapes, a reward, null runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from interp import CheckpointPair, Policy, Prompts, RewardModel
from interp.errors import PromptError
from interp.io import read_json
from interp.models.matched import load_matched
from interp.pair import pair_folder

DEMO = pair_folder("demo")
PUBLISHED = ("lvwerra/gpt2-imdb", "curt-tigges/gpt2-negative-movie-reviews")
PROMPT = "This movie was really"
STORIES = (
    "The little girl was very", "The boy felt so", "Tom was very", "Lily felt", "The dog was so", "She was very",
    "He looked very", "Mom was", "The cat felt very", "The bird was so", "Her friend was very", "Ben felt really",
    "Sara looked so", "The man was very", "They were all very", "When the rain came, she was",
    "After the party, Tim felt", "The bear in the woods was very", "At the end of the day, Mia was so",
    "His mommy was very",
)  # fmt: skip
SHAPES = ("reviews", "stories")


@dataclass(frozen=True)
class Subject:
    """What is studied.

    Attributes:
        base: base model.
        tuned: tuned model.
        prompts: many prompts of several shapes, with their answers.
        one: the one prompt of the published table, with its answers.
        reward: scores samples; None leaves the steps out that need it.
        value_head: the pair's folder, where it has a value head.
        controls: null runs.
    """

    base: Policy
    tuned: Policy
    prompts: Prompts
    one: Prompts
    reward: RewardModel | None = None
    value_head: Path | None = None
    controls: tuple[Policy, ...] = ()

    @property
    def words(self) -> tuple[str, str]:
        """Answer and alternative of the one prompt."""
        answers: Any = self.one.answers
        answer, alternative = answers[0]
        return answer, alternative


def subject(
    base: str | None = None,
    tuned: str | None = None,
    *,
    shape: str | None = None,
    prompts: Prompts | None = None,
    bos: bool | None = None,
    reward: str | None = None,
    label: str | None = None,
    controls: Sequence[str] = (),
    allow_pickle: bool = False,
) -> Subject:
    """Load what is to be studied.

    Args:
        base: a base model; a pair's folder, or "published", without `tuned`; None is the pair of the package.
        tuned: the tuned model.
        shape: prompts that come with the study: "reviews" (" bad" over " good") or "stories" (" happy" over " sad").
            None takes those whose answers base itself finds likelier.
        prompts: prompts of one's own, with answers, instead; their first is the one of the table.
        bos: put the BOS token before every prompt; None: so for the published pair, else the tokenizer's habit.
        reward: a reward model; None takes the pair's own.
        label: its label.
        controls: null runs; a pair's own come first.
        allow_pickle: accept pickled weights, as of older models on the hub.

    Raises:
        InterpError: nothing can be loaded, or the prompts have no answers.
    """
    value_head, runs = None, list(controls)
    settings: dict[str, Any] = {"label": label}
    if base == "published" and tuned is None:
        base, tuned = PUBLISHED
    if tuned is None:
        pair = CheckpointPair.load(base or DEMO)
        base, tuned, runs = pair.base, pair.tuned, [*pair.controls, *runs]
        value_head = pair.path if "value_head" in pair.manifest else None
        if reward is None and pair.reward is not None:
            reference = pair.manifest["reward"]
            reward, settings = pair.reward, {"label": reference["label"], "output": reference["output"]}
    assert base is not None
    published = (base, tuned) == PUBLISHED
    models = load_matched(
        base, tuned, controls=runs, tokenizer="base" if published else None, options={"allow_pickle": allow_pickle}
    )
    bos = True if bos is None and published else bos
    chosen = prompts or _likelier(models.base, [shape] if shape else SHAPES, bos)
    if chosen.answers is None:
        raise PromptError("the study contrasts two answers after every prompt; give Prompts(..., answers=(' a', ' b'))")
    scorer = None if reward is None else RewardModel.load(reward, allow_pickle=allow_pickle, **settings)
    answers: Any = chosen.answers
    one = replace(chosen, texts=chosen.texts[:1], answers=answers[:1], groups=None, continuations=None)
    return Subject(models.base, models.tuned, chosen, one, scorer, value_head, models.controls)


def prompts_of(shape: str, bos: bool | None = None) -> Prompts:
    """The prompts of a shape; the first of the reviews is the published study's."""
    if shape == "stories":
        return Prompts(STORIES, answers=(" happy", " sad"), bos=bos)
    if shape != "reviews":
        raise PromptError(f"shapes are {' and '.join(SHAPES)}, not {shape!r}")
    data = read_json(DEMO / "prompts.json")
    texts = [PROMPT, *(text for text in data["texts"] if text != PROMPT)]
    return Prompts(texts, answers=tuple(data["answers"]), bos=bos)


def _likelier(policy: Policy, shapes: Sequence[str], bos: bool | None) -> Prompts:
    """Of the shapes whose answers are tokens of this model the one with the likeliest answers."""
    found: list[tuple[float, Prompts]] = []
    problem: PromptError | None = None
    for shape in shapes:
        prompts = prompts_of(shape, bos)
        try:
            batch = next(prompts.tokenize(policy.tokenizer).batches(len(prompts)))
        except PromptError as error:
            problem = error
            continue
        assert batch.answer_ids is not None
        chance = policy.trace(batch).last_logits.double().softmax(-1).gather(1, batch.answer_ids)
        found.append((float(chance.sum(1).mean()), prompts))
    if not found:
        assert problem is not None
        raise problem
    return max(found, key=lambda each: each[0])[1]
