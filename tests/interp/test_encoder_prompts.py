"""Prompts of encoder-decoder models: text for the encoder, and an optional prefix for the decoder."""

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

from interp.errors import PromptError
from interp.models import Policy
from interp.prompts import Prompts, encode, make_batch
from interp.sampling import sample
from tests.conftest import WORDS
from tests.interp.comparisons import compare


@pytest.fixture(scope="module")
def t5_tokenizer() -> T5Tokenizer:
    return make_t5_tokenizer()


def make_t5_tokenizer() -> T5Tokenizer:
    """Each of WORDS, with the space before it, is one token; letters are there for other words."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    letters = [(letter, -9.0) for letter in "abcdefghijklmnopqrstuvwxyz.:"]
    return T5Tokenizer(vocab=[*special, *((f"\u2581{word}", -1.0) for word in WORDS), *letters], extra_ids=0)


def words(tokenizer, text):
    return [tokenizer.convert_tokens_to_ids(f"\u2581{word}") for word in text.split()]


def test_texts_go_to_the_encoder_and_answers_follow_the_decoders_start(t5_tokenizer):
    prompts = Prompts(["this movie was", "the plot"], answers=(" bad", " good"), continuations=["great fun", "boring"])
    tokens = prompts.tokenize(t5_tokenizer, decoder_start=0)
    end = t5_tokenizer.eos_token_id
    assert tokens.encoder_ids == (
        (*words(t5_tokenizer, "this movie was"), end),
        (*words(t5_tokenizer, "the plot"), end),
    )
    assert tokens.prompt_ids == ((0,), (0,))
    assert tokens.response_ids == (tuple(words(t5_tokenizer, "great fun")), tuple(words(t5_tokenizer, "boring")))
    assert tokens.answer_ids.tolist() == [words(t5_tokenizer, "bad good")] * 2
    assert tokens.texts == prompts.texts


@pytest.mark.parametrize("prefixes", ["the film was", ["the film was", "a"]])
def test_a_prefix_is_what_the_decoder_has_said_already(t5_tokenizer, prefixes):
    each = [prefixes] * 2 if isinstance(prefixes, str) else prefixes
    prompts = Prompts(["this movie", "the plot"], decoder_prefixes=prefixes, answers=(" bad", " good"))
    tokens = prompts.tokenize(t5_tokenizer, decoder_start=0)
    assert tokens.prompt_ids == tuple((0, *words(t5_tokenizer, prefix)) for prefix in each)
    assert tokens.answer_ids.tolist() == [words(t5_tokenizer, "bad good")] * 2


def test_prefixes_are_refused_for_causal_models_and_in_the_wrong_number(t5_tokenizer):
    with pytest.raises(PromptError, match="these are causal; leave them out"):
        Prompts(["this"], decoder_prefixes="the").tokenize(t5_tokenizer)
    with pytest.raises(PromptError, match="1 prompts but 2 decoder_prefixes"):
        Prompts(["this"], decoder_prefixes=["the", "a"])


def test_bos_is_put_before_the_encoders_text_once(tokenizer):
    bos = tokenizer.bos_token_id
    for text in ("this movie", tokenizer.bos_token + "this movie"):
        tokens = Prompts([text], bos=True).tokenize(tokenizer, decoder_start=5)
        assert tokens.encoder_ids == ((bos, *encode(tokenizer, "this movie", False)),)
        assert tokens.prompt_ids == ((5,),)


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_carry_the_encoders_side(t5_tokenizer, side):
    texts = ["this movie was bad", "the plot", "a film", "fun"]
    tokens = Prompts(texts, decoder_prefixes=["the", "a film", "and", "the plot was"]).tokenize(
        t5_tokenizer, decoder_start=0
    )
    batches = [batch.to("cpu") for batch in tokens.batches(3, padding_side=side)]
    assert [len(batch.encoder_ids) for batch in batches] == [3, 1]
    for number, batch in enumerate(batches):
        for row in range(len(batch.input_ids)):
            real = batch.encoder_ids[row][batch.encoder_mask[row]]
            assert tuple(real.tolist()) == tokens.encoder_ids[3 * number + row]
            decoder = batch.input_ids[row][batch.attention_mask[row]]
            assert tuple(decoder.tolist()) == tokens.prompt_ids[3 * number + row]
    assert bool(batches[0].encoder_mask[1, 0 if side == "right" else -1])
    assert not bool(batches[0].encoder_mask[1, -1 if side == "right" else 0])


def test_a_causal_batch_has_no_encoder():
    batch = make_batch([[1, 2], [3]], answers=torch.tensor([[1, 2], [3, 4]])).to("cpu")
    assert batch.encoder_ids is None and batch.encoder_mask is None
    assert batch.answer_ids.tolist() == [[1, 2], [3, 4]]


@pytest.fixture(scope="module")
def t5_pair(t5_tokenizer):
    def make(seed: int) -> T5ForConditionalGeneration:
        torch.manual_seed(seed)
        sizes = dict(vocab_size=len(t5_tokenizer), d_model=16, d_kv=8, num_heads=2, num_layers=2, d_ff=32)
        special = dict(decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
        return T5ForConditionalGeneration(T5Config(**sizes, **special)).eval()

    return [Policy.load(make(seed), tokenizer=t5_tokenizer) for seed in (0, 1)]


def next_logprobs(policy, encoder, decoder):
    """The bare model's prediction after one row without padding."""
    with torch.no_grad():
        output = policy.model(input_ids=torch.tensor([encoder]), decoder_input_ids=torch.tensor([decoder]))
    return output.logits[0, -1].double().log_softmax(-1)


def test_compare_reads_both_sides(t5_pair, t5_tokenizer):
    texts, prefixes = ["this movie was really bad", "the plot", "a film"], ["the film was", "a", "it was very"]
    prompts = Prompts(texts, decoder_prefixes=prefixes, answers=(" very bad", " very good fun"), multi_token="sum")
    cmp = compare(*t5_pair, prompts, measures=["logit_diff", "completions"], max_new_tokens=5, seed=2)
    assert cmp["text"].values.tolist() == texts
    very, bad, good, fun = words(t5_tokenizer, "very bad good fun")
    for row, (text, prefix) in enumerate(zip(texts, prefixes, strict=True)):
        encoder = t5_tokenizer(text)["input_ids"]
        start = [0, *t5_tokenizer(prefix, add_special_tokens=False)["input_ids"]]
        for column, policy in enumerate(t5_pair):
            last = next_logprobs(policy, encoder, [*start, very])
            assert cmp["logit_diff"].values[row, column] == pytest.approx(float(last[bad] - last[good]), abs=1e-5)
            shared = next_logprobs(policy, encoder, start)[very]
            want = [shared + last[bad], shared + last[good] + next_logprobs(policy, encoder, [*start, very, good])[fun]]
            assert cmp["answer_logprob_sum"].values[row, column] == pytest.approx([float(w) for w in want], abs=1e-5)
            drawn = sample(
                policy.model, [[*start, very]], encoder=[encoder], max_new_tokens=5, seed=2, first_index=row,
                end_ids=(1,), pad_id=0,
            )  # fmt: skip
            ids = drawn.response_ids[0][drawn.response_mask[0]]
            before = [*encoder, *start, very]
            whole, head = (t5_tokenizer.decode(i, skip_special_tokens=True) for i in ([*before, *ids.tolist()], before))
            said = whole.removeprefix(head)
            assert cmp["completion"].values[row, column, 0] == said
