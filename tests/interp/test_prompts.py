import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import PromptError, TokenizerMismatch
from interp.prompts import Prompts, check_same_vocabulary, encode, encode_after, make_batch, token_text
from tests.conftest import WORDS


def test_answers_are_one_pair_each_or_one_for_all(tokenizer):
    pair = (" bad", " good")
    one = Prompts(["this movie was", "the plot was"], answers=pair).tokenize(tokenizer)
    each = Prompts(["this movie was", "the plot was"], answers=[pair, pair]).tokenize(tokenizer)
    expected = [tokenizer(" bad")["input_ids"][0], tokenizer(" good")["input_ids"][0]]
    assert one.answer_ids.tolist() == each.answer_ids.tolist() == [expected, expected]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(texts=[]), "there are no prompts"),
        (dict(texts="this movie"), "texts must be a list of strings, of chats or of lists of token ids, not str"),
        (dict(texts=["a", 3]), "prompt 1 is int '3'; a prompt is a text, a chat .* or a list of token ids"),
        (dict(texts=["a", "  "]), "prompt 1 is empty"),
        (dict(texts=["a"], answers=" bad"), "an answer is a pair of strings"),
        (dict(texts=["a"], answers=[(" bad",)]), "an answer is a pair of strings"),
        (dict(texts=["a", "b"], answers=[(" bad", " good")]), "2 prompts but 1 answer pairs"),
        (dict(texts=["a"], continuations=["b", "c"]), "1 prompts but 2 continuations"),
        (dict(texts=["a"], groups=["b", "c"]), "1 prompts but 2 groups"),
        (dict(texts=["a"], multi_token="last"), 'multi_token is "error", "first" or "sum", not \'last\''),
    ],
)
def test_malformed_prompts(arguments, message, as_a_user):
    with pytest.raises(PromptError, match=message):
        Prompts(**arguments)


def test_an_answer_of_several_tokens_is_listed_and_can_be_cut(tokenizer):
    asked = dict(answers=(" terrible", " good"))
    with pytest.raises(PromptError, match=r"' terrible' is 8 tokens \(' ', 't', .*multi_token=\"first\""):
        Prompts(["this movie was"], **asked).tokenize(tokenizer)
    cut = Prompts(["this movie was"], multi_token="first", **asked).tokenize(tokenizer)
    assert cut.answer_ids[0, 0] == tokenizer(" terrible")["input_ids"][0]


def test_answers_that_share_a_token_are_refused(tokenizer):
    with pytest.raises(PromptError, match="share their first token"):
        Prompts(["this"], answers=(" bad", " bad")).tokenize(tokenizer)


def test_bos_by_habit_always_never_but_not_twice(tokenizer, stories):
    from transformers import AutoTokenizer

    bos = tokenizer.bos_token_id
    plain = tokenizer("this movie")["input_ids"]
    assert encode(tokenizer, "this movie") == plain
    assert encode(tokenizer, "this movie", True) == [bos, *plain]
    assert encode(tokenizer, tokenizer.bos_token + "this movie", True) == [bos, *plain]
    llama = AutoTokenizer.from_pretrained(stories)
    assert encode(llama, "Once")[0] == llama.bos_token_id
    assert encode(llama, "<s>Once").count(llama.bos_token_id) == 1
    assert llama.bos_token_id not in encode(llama, "Once", False)


def test_answers_are_read_in_context(stories):
    """A SentencePiece tokenizer would put a token for the space before a lone ' good'."""
    from transformers import AutoTokenizer

    llama = AutoTokenizer.from_pretrained(stories)
    assert len(llama(" good", add_special_tokens=False)["input_ids"]) == 2
    ids = encode_after(llama, "This movie was really", " good")
    assert [token_text(llama, i) for i in ids] == [" good"]


@given(
    st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6), min_size=1, max_size=4),
    st.sampled_from(["left", "right"]),
)
@settings(max_examples=40, deadline=None)
def test_padding_hides_nothing(tokenizer, lists, side):
    texts = [" ".join(words) for words in lists]
    tokens = Prompts(texts, continuations=[" bad"] * len(texts)).tokenize(tokenizer)
    (batch,) = tokens.batches(8, padding_side=side)
    for row, text in enumerate(texts):
        whole = list(tokens.prompt_ids[row]) + list(tokens.response_ids[row])
        assert batch.input_ids[row][batch.attention_mask[row]].tolist() == whole
        assert batch.position_ids[row][batch.attention_mask[row]].tolist() == list(range(len(whole)))
        assert batch.input_ids[row, batch.last_prompt[row]] == tokens.prompt_ids[row][-1]
        assert batch.aligned(batch.input_ids)[row, : len(whole)].tolist() == whole
        assert tokenizer.decode(whole) == text + " bad"


def test_batches_keep_order_and_size(tokenizer):
    tokens = Prompts([f"this movie was {word}" for word in WORDS], answers=(" bad", " good")).tokenize(tokenizer)
    batches = list(tokens.batches(5))
    assert [len(b.input_ids) for b in batches] == [5, 5, 5, 1]
    assert torch.equal(torch.cat([b.answer_ids for b in batches]), tokens.answer_ids)
    assert make_batch([[1, 2], [3]], [[4], [5, 6]]).input_ids.tolist() == [[1, 2, 4], [3, 5, 6]]


def test_different_vocabularies_are_refused(tokenizer):
    import copy

    other = copy.deepcopy(tokenizer)
    check_same_vocabulary(tokenizer, other)
    other.add_tokens(["<extra>"])
    with pytest.raises(TokenizerMismatch, match="'<extra>'.*tokenizer=\"base\""):
        check_same_vocabulary(tokenizer, other)


@pytest.mark.parametrize(
    ("texts", "answers", "remarks"),
    [
        (["this movie was", "a film"], (" bad", " good"), ()),
        (["this movie was ", "a film"], None, ("1 prompt ends in a space: the next word's token usually carries it.",)),
        (["a ", "the ", "and"], None, ("2 prompts end in a space: the next word's token usually carries it.",)),
        (
            ["this movie was"],
            ("bad", " good"),
            ("An answer without its leading space is read as part of the prompt's last word, as 'wasbad'.",),
        ),
        (
            ["this movie was "],
            ("bad", "good"),
            ("1 prompt ends in a space: the next word's token usually carries it.",),
        ),
    ],
)
def test_what_is_seldom_meant_is_remarked_upon(tokenizer, texts, answers, remarks):
    tokens = Prompts(texts, answers=answers, multi_token="first").tokenize(tokenizer)
    assert tokens.remarks == remarks


def test_unknown_characters_are_remarked_upon():
    from tests.interp.test_encoder_prompts import make_t5_tokenizer

    texts = ["this movie 映画", "this movie"]
    for start in (None, 0):
        tokens = Prompts(texts).tokenize(make_t5_tokenizer(), decoder_start=start)
        assert tokens.remarks == ("1 prompt has characters that the tokenizer does not know (<unk>).",)


def test_a_merged_seam_gains_no_space(stories):
    """SentencePiece would put a space before a rest that is tokenised alone."""
    from transformers import AutoTokenizer

    llama = AutoTokenizer.from_pretrained(stories)
    for text, rest in (("She was real", "ly happy"), ("She was ", "happy"), ("Once upon a ti", "me")):
        ids = [*encode(llama, text), *encode_after(llama, text, rest)]
        assert llama.decode(ids, skip_special_tokens=True) == text + rest
