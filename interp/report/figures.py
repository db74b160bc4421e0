"""The report's matplotlib figures: which, with what words, and as SVG that can stand inside a page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from interp import plot
from interp.errors import MeasureError
from interp.plot.style import Result


@dataclass(frozen=True)
class Spec:
    """One figure of the report.

    Attributes:
        name: of the figure and its section.
        title: the section's heading.
        measure: what to ask `compare` for.
        draw: the function of `interp.plot`.
        alt: what a reader who does not see it should know.
        caption: how to read it.
    """

    name: str
    title: str
    measure: str
    draw: Callable[[Result], Figure]
    alt: str
    caption: str


SPECS = (
    Spec(
        "lens", "At what depth the models part", "lens", plot.lens,
        "Line charts over layers: logit difference of base and of tuned, and KL divergence between their read-outs.",
        "Logit lens: the residual stream before every layer, read out with each model's own final norm and "
        "unembedding. Where the two curves part is where the change becomes visible to the read-out. Lines are means "
        "over prompts.",
    ),
    Spec(
        "attribution", "Which components write the difference", "attribution", plot.attribution,
        "Dot chart of every component's attribution in both models, and bars of tuned minus base split in two parts.",
        "Direct logit attribution: what embedding, attention, MLP and biases add to the answer's logit minus the "
        "alternative's. Right: the change, split exactly into a change of what the component writes and a change of "
        "how the final norm and unembedding read it. These are direct effects only.",
    ),
    Spec(
        "heads", "Which heads write the difference", "attribution", plot.heads,
        "Heat map over layers and heads of direct logit attribution, tuned minus base, with its two parts beside it.",
        "Red: the head pushes more toward the answer in tuned than in base; blue: less. The five largest cells are "
        "outlined. They are the largest of many, so expect some to shrink on other prompts.",
    ),
    Spec(
        "attention_change", "Which heads look elsewhere", "attention", plot.attention_change,
        "Heat maps over layers and heads of the divergence between the two models' attention patterns.",
        "Jensen-Shannon divergence between base's and tuned's attention over key positions: 0 is the same pattern, "
        "log 2 (0.693 nats) is no overlap.",
    ),
    Spec(
        "weights", "Which weights moved", "weights", plot.weights,
        "Heat maps of the relative change of every head's QK and OV circuit, and bars of every MLP's.",
        "Frobenius norm of the change over that of base. It needs no prompt, and says how far weights moved, not "
        "whether that matters.",
    ),
    Spec(
        "kl", "Where the predictions differ", "kl", plot.kl,
        "Line charts of KL divergence by prompt position and by token of the response.",
        "KL(tuned ‖ base) of the next-token distributions, exact over the vocabulary. Few prompts reach the last "
        "positions, so the right end of a curve is the least sure.",
    ),
)  # fmt: skip


def draw(cmp: Result, spec: Spec) -> Markup | None:
    """The figure as inline SVG; None where its measure was not asked for."""
    try:
        return to_svg(spec.draw(cmp), spec.name)
    except MeasureError:
        return None


def to_svg(figure: Figure, name: str) -> Markup:
    """SVG for use inside a page: the same bytes every time, ids of its own, text as paths, no metadata.

    matplotlib escapes the text that it puts into the file, and its comments, which repeat that text, are removed.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "path", "svg.image_inline": True}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for unwanted in (r"<!--.*?-->\s*", r"<metadata>.*?</metadata>\s*", r"<style.*?</style>\s*"):
        svg = re.sub(unwanted, "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    # the rule that matplotlib's own style element would apply to the whole page
    wide = figure.get_figwidth()
    sizes = (
        f"min-width:{83 * wide:.0f}px;max-width:{122 * wide:.0f}px"  # text stays legible, and no larger than the page's
    )
    looks = f'<svg aria-hidden="true" style="stroke-linejoin:round;stroke-linecap:butt;{sizes}"'
    return Markup(svg.replace("<svg", looks, 1))
