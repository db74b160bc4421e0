"""Properties of prompts and answers, over whatever texts and shapes hypothesis comes up with."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interp.errors import PromptError
from interp.prompts import Prompts, encode, encode_after, make_batch
from tests.conftest import WORDS
from tests.interp.test_encoder_prompts import make_t5_tokenizer

QUICK = settings(max_examples=60, deadline=None)
ANY_TEXT = st.text(st.characters(), max_size=20)  # surrogates and all
WORDY = st.lists(st.sampled_from([*WORDS, " ", ".", "é", "映画", "\n", "!"]), min_size=1, max_size=8).map("".join)
IDS = st.lists(st.integers(0, 60), min_size=1, max_size=6)


def scalar_text(**limits):
    return st.text(st.characters(exclude_categories=["Cs"]), **limits)


@given(WORDY | scalar_text(min_size=1, max_size=12), WORDY | scalar_text(max_size=12))
@settings(max_examples=200, deadline=None)
def test_what_follows_a_text_decodes_to_what_was_said(tokenizer, text, rest):
    """Byte-level tokens hold every character, so nothing may appear, go or move where the two meet."""
    ids = [*encode(tokenizer, text), *encode_after(tokenizer, text, rest)]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text + rest


@given(st.integers(0, 2000), st.integers(1, 40), st.integers(1, 20))
@settings(max_examples=150, deadline=None)
def test_real_sentences_cut_anywhere_decode_as_a_whole(stories, real_data, start, before, after):
    llama, story = _real(stories, real_data)
    text, rest = story[start : start + before], story[start + before : start + before + after]

    def decode(ids):
        return llama.decode(ids, clean_up_tokenization_spaces=False)

    assert decode([*encode(llama, text), *encode_after(llama, text, rest)]) == decode(encode(llama, text + rest))


_KEPT = {}


def _real(stories, real_data):
    if not _KEPT:
        from transformers import AutoTokenizer

        file = next(iter(sorted((real_data / "tinystories").glob("*.txt"))))
        _KEPT["both"] = AutoTokenizer.from_pretrained(stories), file.read_text(encoding="utf-8")[:2100]
    return _KEPT["both"]


@given(st.lists(st.tuples(IDS, st.lists(st.integers(0, 60), max_size=4)), min_size=1, max_size=5), st.data())
@QUICK
def test_padding_on_either_side_hides_nothing(rows, data):
    side = data.draw(st.sampled_from(["left", "right"]))
    encoder = data.draw(st.none() | st.lists(IDS, min_size=len(rows), max_size=len(rows)))
    batch = make_batch([p for p, _ in rows], [r for _, r in rows], encoder=encoder, padding_side=side)
    values = torch.randn(*batch.input_ids.shape, 3)
    aligned, last = batch.aligned(values), batch.at_last_prompt(values)
    for row, (prompt, response) in enumerate(rows):
        mask = batch.attention_mask[row]
        assert batch.input_ids[row][mask].tolist() == [*prompt, *response]
        assert torch.equal(aligned[row, : len(prompt) + len(response)], values[row][mask])
        assert torch.equal(last[row], values[row][mask][len(prompt) - 1])
        if encoder is not None:
            assert batch.encoder_ids[row][batch.encoder_mask[row]].tolist() == encoder[row]


def messages():
    role = st.sampled_from(["user", "assistant", "system", "robot"])
    return st.fixed_dictionaries({}, optional={"role": role | st.none(), "content": ANY_TEXT | st.none()})


THINGS = st.none() | st.booleans() | st.integers(-2, 400) | st.floats() | ANY_TEXT | st.binary(max_size=3)
PROMPTS = THINGS | st.lists(THINGS | messages(), max_size=3)
PAIRS = st.tuples(WORDY | ANY_TEXT, WORDY | ANY_TEXT)
ANSWERS = st.none() | ANY_TEXT | PAIRS | st.lists(st.lists(THINGS, max_size=3) | THINGS, max_size=4)


@given(texts=st.lists(PROMPTS, max_size=3) | THINGS, answers=ANSWERS, others=st.lists(THINGS, max_size=3) | THINGS)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_but_prompts_or_a_prompt_error_comes_of_any_input(as_a_user, texts, answers, others):
    for name in ("continuations", "groups", "decoder_prefixes"):
        try:
            prompts = Prompts(texts, answers=answers, **{name: others})
        except PromptError as error:
            assert "\n" not in str(error)
        else:
            assert prompts.kind in ("text", "chat", "ids") and len(prompts.groups) == len(prompts)
            assert prompts.answers is None or all(len(pair) == 2 and all(pair) for pair in prompts.answers)


TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizers(tokenizer):
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = TEMPLATE
    return {"causal": chat, "t5": make_t5_tokenizer()}


def good_chat():
    message = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": WORDY | ANY_TEXT})
    return st.lists(message, min_size=1, max_size=3)


@given(
    text=WORDY | ANY_TEXT | good_chat() | st.lists(st.integers(0, 312), min_size=1, max_size=5),
    answers=st.none() | PAIRS,
    rest=st.none() | WORDY | ANY_TEXT,
    mode=st.sampled_from(["error", "first", "sum"]),
    bos=st.sampled_from([None, None, True, False]),
    which=st.sampled_from(["causal", "t5"]),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_gives_tokens_or_a_prompt_error(as_a_user, tokenizers, text, answers, rest, mode, bos, which):
    """Tokens: none empty, every id in the vocabulary, the two answers different where they are contrasted."""
    own = tokenizers[which]
    try:
        responses = None if rest is None else [rest]
        prompts = Prompts([text], answers=answers, continuations=responses, multi_token=mode, bos=bos)
        tokens = prompts.tokenize(own, decoder_start=0 if which == "t5" else None)
    except PromptError as error:
        assert "\n" not in str(error)
        return
    rows = [*tokens.prompt_ids, *(tokens.encoder_ids or ()), *(tokens.response_ids or ())]
    assert all(0 <= token < len(own) for row in rows for token in row)
    assert all(tokens.prompt_ids) and all(tokens.encoder_ids or ((1,),))
    assert tokens.lengths[0] >= len(tokens.prompt_ids[0])
    if answers is not None:
        first, second = tokens.answer_ids[0].tolist()
        assert first != second
        if mode == "sum":
            shared = tokens.prompt_ids[0][len(tokens.prompt_ids[0]) - tokens.shared[0] :]
            for ids, contrasted in zip(tokens.answer_tokens[0], (first, second), strict=True):
                assert ids[: len(shared) + 1] == (*shared, contrasted)
