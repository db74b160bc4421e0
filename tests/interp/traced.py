"""Two models traced on a few prompts, for the tests of measures."""

from interp.measures import measures
from interp.prompts import Prompts

TEXTS = ["this movie was really", "the plot was", "great acting and a very boring film", "fun"]
ANSWERS = (" bad", " good")
TRACED = tuple(name for name, measure in measures().items() if measure.per_batch is not None)
JOINED = tuple(name for name, measure in measures().items() if measure.needs.reward)


def traces(pair, tokenizer, names=TRACED, answers=ANSWERS, side="right", texts=TEXTS, **more):
    """Both models' traces on one batch that holds all prompts, with the sites of the named measures."""
    tokens = Prompts(texts, answers=answers, **more).tokenize(tokenizer)
    (batch,) = tokens.batches(len(texts), padding_side=side)
    sites = {site for name in names for site in measures()[name].needs.sites(pair[0])}
    return [policy.trace(batch, sites) for policy in pair]
