"""Two models traced on a few prompts, for the tests of measures."""

from interp.measures import TRACE_MEASURES
from interp.prompts import Prompts

TEXTS = ["this movie was really", "the plot was", "great acting and a very boring film", "fun"]
ANSWERS = (" bad", " good")


def traces(pair, tokenizer, names=tuple(TRACE_MEASURES), answers=ANSWERS, side="right", texts=TEXTS, **more):
    """Both models' traces on one batch that holds all prompts, with the sites of the named measures."""
    tokens = Prompts(texts, answers=answers, **more).tokenize(tokenizer)
    (batch,) = tokens.batches(len(texts), padding_side=side)
    sites = {site for name in names for site in TRACE_MEASURES[name].sites(pair[0])}
    return [policy.trace(batch, sites) for policy in pair]
