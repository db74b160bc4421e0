"""Prompts that are chats or token ids, and everything that is no prompt."""

import copy

import numpy as np
import pytest
import torch

from interp.errors import PromptError
from interp.models import Policy
from interp.prompts import Prompts, encode
from tests.conftest import tiny_gpt2
from tests.interp.comparisons import compare

ASK = [{"role": "user", "content": "was this movie bad"}]
BEGUN = [*ASK, {"role": "assistant", "content": "the movie was very"}]
PLAIN = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
OTHER = PLAIN.replace("[{{ m['role'] }}]", "{{ m['role'] }}:").replace("[assistant]", "assistant:")
WITH_BOS = "{{ bos_token }}" + PLAIN
PICKY = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + PLAIN


def with_template(tokenizer, template):
    own = copy.deepcopy(tokenizer)
    own.chat_template = template
    return own


def test_a_chat_is_read_up_to_where_the_answer_begins(tokenizer):
    tokens = Prompts([ASK], answers=(" bad", " good")).tokenize(with_template(tokenizer, PLAIN))
    assert tokens.texts == ("[user] was this movie bad\n[assistant]",)
    assert tokens.prompt_ids == (tuple(encode(tokenizer, tokens.texts[0])),)
    assert tokens.answer_ids.tolist() == [[encode(tokenizer, word)[0] for word in (" bad", " good")]]


def test_the_assistants_last_message_is_gone_on_with(tokenizer):
    tokens = Prompts([BEGUN], continuations=[" good"]).tokenize(with_template(tokenizer, PLAIN))
    assert tokens.texts == ("[user] was this movie bad\n[assistant] the movie was very",)
    assert tokens.response_ids == (tuple(encode(tokenizer, " good")),)


@pytest.mark.parametrize(("template", "bos", "count"), [(WITH_BOS, None, 1), (WITH_BOS, True, 1), (PLAIN, True, 1)])
def test_bos_is_the_templates_business_and_never_there_twice(tokenizer, template, bos, count):
    ids = Prompts([ASK], bos=bos).tokenize(with_template(tokenizer, template)).prompt_ids[0]
    assert ids.count(tokenizer.bos_token_id) == count
    assert Prompts([ASK]).tokenize(with_template(tokenizer, PLAIN)).prompt_ids[0].count(tokenizer.bos_token_id) == 0


def test_each_models_own_template_is_used_where_both_read_the_same(tokenizer):
    base, tuned = with_template(tokenizer, PLAIN), with_template(tokenizer, PLAIN.replace("m[", "(m)["))
    prompts = Prompts([ASK, BEGUN]).for_models([base, tuned])
    assert prompts.tokenize(base).prompt_ids == Prompts([ASK, BEGUN]).tokenize(tuned).prompt_ids


@pytest.mark.parametrize(("asked", "expected"), [("base", "[user] was"), ("tuned", "user: was"), (WITH_BOS, "<|end|>")])
def test_one_template_for_both(tokenizer, asked, expected):
    tokenizers = [with_template(tokenizer, PLAIN), with_template(tokenizer, OTHER)]
    prompts = Prompts([ASK], chat_template=asked).for_models(tokenizers)
    texts = {prompts.tokenize(each).texts[0] for each in tokenizers}
    assert len(texts) == 1 and texts.pop().startswith(expected)


def test_the_tuned_models_template_serves_a_base_without_one(tokenizer):
    prompts = Prompts([ASK], chat_template="tuned").for_models([tokenizer, with_template(tokenizer, PLAIN)])
    assert prompts.tokenize(tokenizer).texts == ("[user] was this movie bad\n[assistant]",)


def test_templates_that_read_a_chat_differently_are_shown_with_the_remedy(tokenizer):
    tokenizers = [with_template(tokenizer, PLAIN), with_template(tokenizer, OTHER)]
    with pytest.raises(
        PromptError, match="prompt 0 as '.user. was.*, tuned's as 'user: was.*chat_template= .*\"tuned\""
    ):
        Prompts([ASK]).for_models(tokenizers)


def test_completions_alone_let_each_model_read_in_its_own_words(tokenizer):
    """What base and tuned say is what each says by itself after its own template's words."""
    policies = [
        Policy.load(tiny_gpt2(seed), tokenizer=with_template(tokenizer, template))
        for seed, template in enumerate((PLAIN, OTHER))
    ]
    settings = dict(measures=["completions"], max_new_tokens=6, seed=5)
    both = compare(*policies, Prompts([ASK, BEGUN]), **settings)
    assert "response_kl" not in both
    for name, policy in zip(("base", "tuned"), policies, strict=True):
        texts = Prompts([ASK, BEGUN]).tokenize(policy.tokenizer).texts
        alone = compare(policy, policy, Prompts(texts, bos=False), **settings)
        assert (
            both["completion"].sel(source=name).values.tolist() == alone["completion"].sel(source=name).values.tolist()
        )
    with pytest.raises(PromptError, match="ask for completions alone, where each model reads its own"):
        compare(*policies, Prompts([ASK, BEGUN]), measures=["next_token", "completions"])


def test_texts_and_ids_need_no_template(tokenizer):
    for prompts in (Prompts(["this movie"]), Prompts([[3, 4]])):
        assert prompts.for_models([tokenizer, with_template(tokenizer, PLAIN)]) is prompts


def test_a_named_template_must_be_resolved(tokenizer):
    with pytest.raises(PromptError, match=r"call for_models\(\[base, tuned\]\)"):
        Prompts([ASK], chat_template="tuned").tokenize(with_template(tokenizer, PLAIN))


def test_chats_with_the_same_messages_form_a_group():
    groups = Prompts([ASK, BEGUN, [dict(ASK[0])]]).groups
    assert groups[0] == groups[2] != groups[1]


@pytest.mark.parametrize(
    ("template", "chat", "message"),
    [
        (None, ASK, "the tokenizer has no chat template; pass chat_template="),
        (PICKY, [{"role": "system", "content": "be good"}, *ASK], "does not take prompt 0: no system here; change"),
        ("{{ messages[0]['content'] + 1 }}", ASK, "does not take prompt 0"),
        ("{% for %}", ASK, "does not take prompt 0"),
        ("{{ 'nothing' }}", BEGUN, "does not take prompt 0"),
        ("{{ '' }}", ASK, r"prompt 0 \(''\) has no tokens"),
    ],
)
def test_a_chat_that_the_template_does_not_take(tokenizer, template, chat, message, as_a_user):
    with pytest.raises(PromptError, match=message) as caught:
        Prompts([chat]).tokenize(with_template(tokenizer, template))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [lambda ids: ids, np.array, torch.tensor, lambda ids: [np.array(row) for row in ids]],
    ids=["lists", "an array", "a tensor", "arrays"],
)
def test_token_ids_are_read_as_they_are(tokenizer, make, as_a_user):
    words = [encode(tokenizer, " movie was"), encode(tokenizer, " the plot")]
    tokens = Prompts(make(words), answers=(" bad", " good")).tokenize(tokenizer)
    assert tokens.prompt_ids == tuple(map(tuple, words))
    assert tokens.texts == (" movie was", " the plot")
    assert tokens.answer_ids.tolist() == [[encode(tokenizer, word)[0] for word in (" bad", " good")]] * 2


def test_ids_that_their_text_would_not_give_stay(tokenizer):
    letters = encode(tokenizer, "b") + encode(tokenizer, "a") + encode(tokenizer, "d")
    assert encode(tokenizer, "bad") != letters
    assert Prompts([letters]).tokenize(tokenizer).prompt_ids == (tuple(letters),)


def test_ids_beyond_the_vocabulary_are_refused(tokenizer):
    with pytest.raises(PromptError, match=f"prompt 1 holds the token id {len(tokenizer)}, the tokenizer has"):
        Prompts([[1], [len(tokenizer)]]).tokenize(tokenizer)


MALFORMED = [
    (dict(texts=None), "texts must be a list of strings, of chats or of lists of token ids, not NoneType"),
    (dict(texts=b"bytes"), "texts must be a list"),
    (dict(texts={"text": ["a"]}), "texts must be a list"),
    (dict(texts=[None]), "prompt 0 is NoneType"),
    (dict(texts=[b"a"]), "prompt 0 is bytes"),
    (dict(texts=[""]), "prompt 0 is empty"),
    (dict(texts=["a\ud800"]), "prompt 0 is no valid Unicode"),
    (dict(texts=ASK), "prompt 0 is dict .* one chat alone goes into a list of its own"),
    (dict(texts=[[]]), "prompt 0 is an empty list"),
    (dict(texts=[[1, "a"]]), "prompt 0 is a list with str 'a'"),
    (dict(texts=[[1, ASK[0]]]), "prompt 0 is a list of both messages and token ids"),
    (dict(texts=[[True]]), "prompt 0 is a list with bool"),
    (dict(texts=[[1.5]]), "prompt 0 is a list with float"),
    (dict(texts=[[3, -1]]), "prompt 0 holds the token id -1"),
    (dict(texts=["a", ASK]), "prompt 0 is a text and prompt 1 is a chat"),
    (dict(texts=[[1], "a"]), "prompt 0 is token ids and prompt 1 is a text"),
    (dict(texts=[[{"content": "a"}]]), "prompt 0, message 0 has no 'role'"),
    (dict(texts=[[{}]]), "prompt 0, message 0 has no 'role' and no 'content'"),
    (dict(texts=[[{"role": "robot", "content": "a"}]]), "has the role 'robot'; a role is one of system"),
    (dict(texts=[[{"role": ["user"], "content": "a"}]]), "has the role "),
    (dict(texts=[[{"role": "user", "content": None}]]), "message 0 has NoneType"),
    (dict(texts=[[{"role": "user", "content": [{"type": "image"}]}]]), "message 0 has list"),
    (dict(texts=[[{"role": "user", "content": " "}]]), "a chat in which nothing is said"),
    (dict(texts=[[{"role": "user", "content": "\udc80"}]]), "message 0 is no valid Unicode"),
    (dict(texts=["a"], chat_template=PLAIN), "chat_template is for chats"),
    (dict(texts=[ASK], chat_template="chatml"), 'chat_template is "base", "tuned", or a jinja template'),
    (dict(texts=[ASK], chat_template=3), "chat_template is"),
    (dict(texts=["a"], bos="yes"), "bos is None, True or False, not 'yes'"),
    (dict(texts=[[1]], bos=True), "with token ids put it among them"),
    (dict(texts=["a"], answers=("", " good")), "an answer of the pair .* is empty"),
    (dict(texts=["a"], answers=(" bad", "\ud800")), "no valid Unicode"),
    (dict(texts=["a"], answers=(" bad", None)), "an answer is a pair of strings"),
    (dict(texts=["a"], answers=(" bad", " good", " fun")), "an answer is a pair of strings"),
    (dict(texts=["a"], answers={" bad": " good"}), "an answer is a pair of strings"),
    (dict(texts=["a"], answers=[" bad", " good"]), "an answer is a pair of strings"),
    (dict(texts=["a"], continuations=" good"), "continuations must be a list of strings, not str"),
    (dict(texts=["a"], continuations=[3]), "continuations must be a list of strings"),
    (dict(texts=["a"], continuations=["\ud800"]), "continuations 0 is no valid Unicode"),
    (dict(texts=["a"], groups=[1]), "groups must be a list of strings"),
    (dict(texts=["a"], decoder_prefixes=3), "decoder_prefixes must be a list of strings"),
]


@pytest.mark.parametrize(("arguments", "message"), MALFORMED, ids=[message[:50] for _, message in MALFORMED])
def test_what_is_no_prompt_is_one_line(arguments, message, as_a_user):
    with pytest.raises(PromptError, match=message) as caught:
        Prompts(**arguments)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_an_answer_unknown_to_the_tokenizer_is_refused():
    from tests.interp.test_encoder_prompts import make_t5_tokenizer

    with pytest.raises(PromptError, match="does not know the answer ' 映画' and reads <unk> in it"):
        Prompts(["this movie was"], answers=(" 映画", " good")).tokenize(make_t5_tokenizer())
