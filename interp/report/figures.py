"""The report's matplotlib figures: which, and with what words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from interp import plot
from interp.errors import MeasureError
from interp.plot.style import COLUMN, PAGE, Result
from interp.report.svg import Drawing, to_svg


@dataclass(frozen=True)
class Spec:
    """One figure of the report.

    Attributes:
        name: of the figure and its section.
        title: the section's heading.
        short: the same in a word or two, for the list of sections.
        measure: what to ask `compare` for.
        draw: the function of `interp.plot`.
        alt: what a reader who does not see it should know.
        caption: how to read it.
        readings: the summary's rows that it shows, by `reading` and a pattern in `finding`; the first found is quoted.
    """

    name: str
    title: str
    short: str
    measure: str
    draw: Callable[..., Figure]
    alt: str
    caption: str
    readings: tuple[tuple[str, str], ...] = ()


_NEXT_TOKEN = (
    Spec(
        "movers", "Tokens that moved most", "Movers", "next_token", plot.movers,
        "Bars of the change of probability of the tokens that rose and fell most, tuned minus base.",
        "Change of the probability as next token, summed over the prompts that list the token among the ten that rose "
        "or fell most and divided by the number of all prompts; what it changed by elsewhere counts as 0. Beside a "
        "bar: its value, and how many prompts list the token.",
        (("next token", "^moved most"), ("next token", "^share")),
    ),
    Spec(
        "answers", "Preference for the answer, prompt by prompt", "Answers", "logit_diff", plot.answers,
        "Scatter plot of tuned's preference for the answer against base's, one point a prompt, with the diagonal.",
        "A point is a prompt: base's preference for the answer over its alternative to the right, tuned's upward. "
        "Above the diagonal tuned prefers the answer more than base does; above the dotted line at 0 it prefers the "
        "answer to the alternative.",
        (("logit difference", ""), ("answers", "")),
    ),
    Spec(
        "mass_outside", "Probability of tokens that base does not have", "Added tokens", "next_token",
        plot.mass_outside,
        "Points of the probability outside the shared vocabulary, prompt by prompt.",
        "Tuned's vocabulary is base's with tokens added. All other readings are on the shared tokens, renormalised; "
        "this is the probability that they leave out.",
        (("next token", "outside"),),
    ),
    Spec(
        "kl", "Where the predictions differ", "Divergence", "kl", plot.kl,
        "Line charts of KL and JS divergence by prompt position and by token of the response.",
        "KL(tuned ‖ base) and Jensen-Shannon divergence of the next-token distributions, exact over the vocabulary: "
        "after every prompt token, and along the response on the text of the model named. Few prompts reach the last "
        "positions, so the right end of a curve is the least sure.",
        (("divergence", "per response token, tuned"), ("divergence", "KL")),
    ),
    Spec(
        "entropy", "How sure the predictions are", "Entropy", "kl", plot.entropy,
        "Line charts of the entropy of both models' predictions by prompt position and along the response.",
        "Entropy of the next-token distribution in nats: 0 is certainty. Where tuned's line is lower, it concentrates "
        "on fewer tokens than base does on the same text.",
        (("divergence", "entropy"), ("next token", "entropy")),
    ),
)  # fmt: skip
_LAYERS = (
    Spec(
        "lens", "At what depth the models part", "Logit lens", "lens", plot.lens,
        "Line charts over layers: logit difference of base and of tuned, and KL divergence between their read-outs.",
        "Logit lens: the residual stream before every layer, read out with each model's own final norm and "
        "unembedding. Where the curves part is where the change becomes visible to the read-out. Tuned's stream read "
        "through base's head leaves the change of the head out. Lines are means over prompts.",
        (("logit lens", ""),),
    ),
    Spec(
        "lens_positions", "At what depth and position they part", "Lens by position", "lens_positions",
        plot.lens_positions,
        "Heat map over layers and positions of the KL divergence between the two models' logit lenses.",
        "The logit lens at every token of the first prompt. Bright: the two models' read-outs are far apart there. "
        "Where there is room a cell holds tuned's likeliest token, in bold where it is not base's.",
        (("logit lens", "mean over prompt tokens"),),
    ),
    Spec(
        "residual", "How the residual stream turned", "Residual", "residual", plot.residual,
        "Line charts over layers of the norm of both models' residual stream and of the cosine between the two.",
        "Left: how long the residual stream is in each model. Right: the cosine between the two models' streams on the "
        "same tokens; 1 is the same direction. A change of length alone is undone by the next norm, a change of "
        "direction is not.",
        (("residual", ""),),
    ),
)  # fmt: skip
_ATTRIBUTION = (
    Spec(
        "attribution", "Which components write the difference", "Components", "attribution", plot.attribution,
        "Dot chart of every component's attribution in both models, and bars of tuned minus base split in two parts.",
        "Direct logit attribution: what embedding, attention, MLP and biases add to the answer's logit minus the "
        "alternative's. Right: the change, split exactly into a change of what the component writes and a change of "
        "how the final norm and unembedding read it. These are direct effects only.",
        (("attribution", ""),),
    ),
    Spec(
        "heads", "Which heads write the difference", "Heads", "attribution", plot.heads,
        "Heat map over layers and heads of direct logit attribution, tuned minus base, with its two parts beside it.",
        "Red: the head pushes more toward the answer in tuned than in base; blue: less. The change is split into what "
        "the head writes and how it is read out. The five largest cells are outlined; they are the largest of many, so "
        "expect some to shrink on other prompts.",
        (("attribution by head", ""),),
    ),
    Spec(
        "neurons", "Which MLP neurons write the difference", "Neurons", "neurons", plot.neurons,
        "Dot chart of the attribution of the MLP neurons that changed most, and bars of tuned minus base.",
        "Direct logit attribution of single MLP neurons (layer.index), those whose mean attribution changed most. The "
        "shaded range reaches as far as the largest neuron of the null runs, each of which has neurons of its own.",
        (("attribution by neuron", ""),),
    ),
)  # fmt: skip
_ATTENTION = (
    Spec(
        "attention_change", "Which heads look elsewhere", "Pattern change", "attention", plot.attention_change,
        "Heat maps over layers and heads of the divergence between the two models' attention patterns.",
        "Jensen-Shannon divergence between base's and tuned's attention over key positions: 0 is the same pattern, "
        "log 2 (0.693 nats) is no overlap.",
        (("attention", "JS"),),
    ),
    Spec(
        "attention_entropy", "Which heads look more widely, and which less", "Pattern entropy", "attention",
        plot.attention_entropy,
        "Heat maps over layers and heads of the entropy of base's attention pattern and of its change.",
        "Entropy of the attention pattern, mean over query positions: 0 is one key, log n is n keys evenly. Red: tuned "
        "spreads its attention more than base; blue: less.",
        (("attention", "entropy"),),
    ),
    Spec(
        "attention_classes", "What the changed heads look at", "Token classes", "attention", plot.attention_classes,
        "Stacked bars of each changed head's attention by class of token in both models, and bars of what moved.",
        "Attention of the last prompt token, by what it goes to: the first token (where heads rest), earlier mentions "
        "of the answer or its alternative, punctuation, all else. The heads are those whose pattern changed most.",
        (("attention moved", ""),),
    ),
)  # fmt: skip
_WEIGHTS = (
    Spec(
        "weights", "Which weights moved", "Weights", "weights", plot.weights,
        "Heat maps of the relative change of every head's QK and OV circuit, and bars of every MLP's.",
        "Frobenius norm of the change over that of base. It needs no prompt, and says how far weights moved, not "
        "whether that matters.",
        (("weights", "relative change of its"),),
    ),
    Spec(
        "singular_directions", "In how many directions they moved", "Directions", "weights", plot.singular_directions,
        "Bars of the effective rank of each matrix's change, and heat maps of its singular values and their overlap.",
        "The matrices with the largest relative change. Effective rank: in about how many directions the change goes, "
        "exp of the entropy of its singular values. Middle: size of each direction over the norm of base's matrix. "
        "Right: how much of it lies in base's own eight leading directions; 0 is a new direction.",
        (("weights", "effective rank"),),
    ),
)  # fmt: skip

_REWARD = (
    Spec(
        "implicit_reward", "Does the shift follow the reward?", "Implicit reward", "implicit_reward",
        plot.implicit_reward,
        "Scatter plot of the log-ratio of sampled responses against their reward, within prompts, and the fitted "
        "line; beside it the slope among those of permuted rewards.",
        "Each point is a sampled response: its reward, and how much likelier tuned finds it than base does, both minus "
        "the mean of the responses to its prompt and with the length taken out. At the optimum of reward minus beta "
        "times KL the slope is 1 / beta; a short training stays below. Tuned's samples were chosen by the very shift "
        "that is measured, which makes the slope over both too steep; that of base's samples alone is free of this.",
        (("implicit reward", "per unit of reward"),),
    ),
    Spec(
        "token_join", "Did the tokens move that the reward reads?", "Token join", "token_join", plot.token_join,
        "Scatter plot of the log-ratio of spans of characters against their reward attribution; beside it the rank "
        "correlation within texts among those of permuted attributions.",
        "Each point is a piece of one of tuned's responses. To the right: integrated gradients of the reward; upward: "
        "how much likelier tuned finds it than base does after the same text. The reward was paid for whole responses; "
        "nothing makes the policy move the very tokens that the reward model reads.",
        (("token join", ""),),
    ),
    Spec(
        "over_optimisation", "Reward against distance over the training", "Over-optimisation", "over_optimisation",
        plot.over_optimisation,
        "Line chart of the reward gained against the square root of the KL divergence from base, checkpoint by "
        "checkpoint, and of the KL over the training.",
        "Every stored checkpoint's samples, scored by the reward that was optimised, against how far they lie from "
        "base. That this reward rises says nothing of what it stands for: over_optimisation(pair, gold=...) lays a "
        "second reward model beside it.",
        (("over-optimisation", ": step [0-9]+$"),),
    ),
    Spec(
        "probes", "When a high reward could be read", "Probes", "probes", plot.probes,
        "Line charts of a linear probe's accuracy gained over step 0 by share of the training, and of its accuracy by "
        "depth.",
        "Linear probes for a reward above the median, at every layer of every checkpoint, judged on texts that they "
        "did not see. That a layer tells a high reward from a low one does not say that the model uses it, nor that "
        "one model taught the other: the shares of two trainings are two clocks.",
        (("probes", "accuracy"),),
    ),
)  # fmt: skip

SPECS = (*_NEXT_TOKEN, *_LAYERS, *_ATTRIBUTION, *_ATTENTION, *_WEIGHTS, *_REWARD)


def draw(cmp: Result, spec: Spec) -> dict[str, Drawing] | None:
    """The figure for a wide and for a narrow screen; None where its measure was not asked for."""
    try:
        return {
            "page": to_svg(spec.draw(cmp, width=PAGE), spec.name),
            "column": to_svg(spec.draw(cmp, width=COLUMN), f"{spec.name}-c"),
        }
    except MeasureError:
        return None
