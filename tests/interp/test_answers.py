"""Whole answers: summed log-probabilities against a loop over bare forward passes."""

import pytest
import torch

from interp.errors import PromptError
from interp.measures.logit_diff import answers
from interp.models import Policy
from interp.prompts import Prompts
from tests.interp.comparisons import compare

TEXTS = ["this movie was really", "the plot was", "a great film and the acting was very", "fun"]
LONG = (" terrible acting", " good and great")


@pytest.fixture
def pair(make_model, tokenizer):
    return [Policy.load(make_model(seed), tokenizer=tokenizer) for seed in (0, 1)]


def plainly(policy, prompt, answer) -> float:
    """Log-probability of an answer, one bare pass of a whole prefix for each of its tokens."""
    total, ids = 0.0, list(prompt)
    for token in answer:
        with torch.no_grad():
            logits = policy.model(torch.tensor([ids])).logits[0, -1].double()
        total += float(logits.log_softmax(-1)[token])
        ids.append(token)
    return total


def test_sums_are_those_of_a_plain_loop(pair, tokenizer):
    tokens = Prompts(TEXTS, answers=LONG, multi_token="sum").tokenize(tokenizer)
    assert all(len(ids) > 1 for both in tokens.answer_tokens for ids in both)
    data = answers(*pair, tokens, batch_size=5)
    for row, (prompt, both) in enumerate(zip(tokens.prompt_ids, tokens.answer_tokens, strict=True)):
        for column, policy in enumerate(pair):
            want = [plainly(policy, prompt, ids) for ids in both]
            assert data["answer_logprob_sum"].values[row, column] == pytest.approx(want, abs=2e-5)
            assert data["logprob_diff"].values[row, column] == pytest.approx(want[0] - want[1], abs=4e-5)
    assert data["answer_text"].values.tolist() == [LONG[0]] * 4
    assert data["alternative_text"].values.tolist() == [LONG[1]] * 4


def test_for_one_token_it_is_the_logit_difference(pair):
    texts = [f"{text} {word}" for text in TEXTS for word in ("really", "very")]
    prompts = Prompts(texts, answers=(" bad", " good"), multi_token="sum")
    cmp = compare(*pair, prompts, measures=["logit_diff"])
    torch.testing.assert_close(
        torch.tensor(cmp["logprob_diff"].values), torch.tensor(cmp["logit_diff"].values), atol=2e-5, rtol=0
    )


def test_a_shared_beginning_counts_in_both_sums_and_is_read_as_the_prompts_end(pair, tokenizer):
    prompts = Prompts(TEXTS, answers=(" very bad", " very good fun"), multi_token="sum")
    tokens = prompts.tokenize(tokenizer)
    plain = Prompts(TEXTS).tokenize(tokenizer)
    very, bad, good, fun = (tokenizer(f" {word}")["input_ids"][0] for word in ("very", "bad", "good", "fun"))
    assert tokens.prompt_ids == tuple((*ids, very) for ids in plain.prompt_ids)
    assert tokens.answer_ids.tolist() == [[bad, good]] * 4
    assert tokens.shared == (1,) * 4 and tokens.answer_tokens == (((very, bad), (very, good, fun)),) * 4
    assert tokens.lengths == tuple(len(ids) + 3 for ids in plain.prompt_ids)
    data = answers(*pair, tokens)
    for row, prompt in enumerate(plain.prompt_ids):
        for column, policy in enumerate(pair):
            want = [plainly(policy, prompt, ids) for ids in ([very, bad], [very, good, fun])]
            assert data["answer_logprob_sum"].values[row, column] == pytest.approx(want, abs=2e-5)
    assert tokens.remarks == ("After 4 prompts both answers begin alike; what they share is read as the prompt's end.",)


def test_compare_contrasts_first_differences_and_says_what_it_summed(pair):
    prompts = Prompts(TEXTS * 2, answers=(" very bad", " very good fun"), multi_token="sum")
    cmp = compare(*pair, prompts, measures=["logit_diff", "attribution", "lens"])
    assert cmp["answer_token"].values[0] == " bad" and cmp["other_token"].values[0] == " good"
    total = cmp["attribution"].sum("component").values
    assert total == pytest.approx(cmp["logit_diff"].values, abs=1e-4)
    found = cmp.summary().set_index("finding")["estimate"]
    difference = cmp["logprob_diff"].sel(model="tuned") - cmp["logprob_diff"].sel(model="base")
    words = "log P(' very bad') - log P(' very good fun'): tuned minus base"
    assert found[words] == pytest.approx(float(difference.mean()))


def test_a_model_against_itself_differs_by_exactly_nothing(make_model, tokenizer):
    policy = Policy.load(make_model(0), tokenizer=tokenizer)
    data = answers(policy, policy, Prompts(TEXTS, answers=LONG, multi_token="sum").tokenize(tokenizer))
    assert (data["logprob_diff"].sel(model="tuned") == data["logprob_diff"].sel(model="base")).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(answers=(" good", " good")), "one is the beginning of the other"),
        (dict(answers=(" good", " good fun")), "one is the beginning of the other"),
        (
            dict(answers=(" very bad", " very good"), continuations=[" bad"]),
            "' very bad' and ' very good' share their first token.*leave out continuations",
        ),
    ],
)
def test_answers_that_cannot_be_contrasted(tokenizer, arguments, message):
    with pytest.raises(PromptError, match=message):
        Prompts(["this movie was"], multi_token="sum", **arguments).tokenize(tokenizer)


def test_an_answer_that_does_not_fit_the_context_is_refused(make_model, tokenizer):
    models = [make_model(seed, **{"n_positions": 8, "max_position_embeddings": 8}) for seed in (0, 1)]
    policies = [Policy.load(model, tokenizer=tokenizer) for model in models]
    prompts = Prompts(["this movie was really"], answers=(" bad", " great acting and very fun"), multi_token="sum")
    with pytest.raises(PromptError, match="prompt 0 has 10 tokens, the models read 8"):
        compare(*policies, prompts, measures=["logit_diff"])
