"""Sampling from encoder-decoder models, against a loop without a cache."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from interp.errors import PromptError
from interp.sampling import sample

ENCODER = [[7, 8, 9, 1], [5, 1], [11, 12, 13, 14, 15, 1], [6, 6, 1]]
DECODER = [[0], [0, 21, 22], [0, 23], [0]]
ENDS = tuple(range(1, 9))  # so many that rows end at different steps


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def t5(request) -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=40,
        d_model=16,
        d_kv=8,
        num_heads=2,
        num_layers=2,
        d_ff=32,
        tie_word_embeddings=request.param,
        decoder_start_token_id=0,
        feed_forward_proj="relu" if request.param else "gated-gelu",
    )
    model = T5ForConditionalGeneration(config).eval()
    with torch.no_grad():  # neither flat nor certain, so that context and random numbers both matter
        if request.param:
            for parameter in model.parameters():
                parameter.mul_(2 if parameter.ndim > 1 else 1)
        else:
            model.lm_head.weight.mul_(0.3)
    return model


def draw(model, rows=range(4), **changes):
    settings = {"max_new_tokens": 10, "seed": 3, "end_ids": ENDS, "pad_id": 0, "indices": list(rows)} | changes
    return sample(model, [DECODER[r] for r in rows], encoder=[ENCODER[r] for r in rows], **settings)


def plainly(model, row, steps=10, seed=3, ends=ENDS) -> tuple[list[int], list[float]]:
    """One row by itself: no padding, no cache, the whole of both sides at every step."""
    uniforms = np.random.Generator(np.random.Philox(key=np.array([seed, row], dtype=np.uint64))).random(steps)
    ids, logprobs = list(DECODER[row]), []
    for uniform in uniforms:
        with torch.no_grad():
            output = model(
                input_ids=torch.tensor([ENCODER[row]]), decoder_input_ids=torch.tensor([ids]), use_cache=False
            )
        probabilities = output.logits[0, -1].double().softmax(-1).numpy()
        token = int(np.searchsorted(probabilities.cumsum(), uniform * probabilities.sum(), side="right"))
        ids.append(token)
        logprobs.append(float(np.log(probabilities[token])))
        if token in ends:
            break
    return ids[len(DECODER[row]) :], logprobs


def test_samples_are_those_of_a_loop_without_padding_or_cache(t5):
    got = draw(t5)
    lengths = set()
    for row in range(len(DECODER)):
        tokens, logprobs = plainly(t5, row)
        mask = got.response_mask[row]
        assert got.response_ids[row][mask].tolist() == tokens
        assert got.logprobs[row][mask].tolist() == pytest.approx(logprobs, abs=1e-5)
        lengths.add(len(tokens))
    assert len(lengths) > 1, "the case must hold rows that end at different steps"
    assert len({tuple(row) for row in got.response_ids.tolist()}) > 1


def test_greedy_equals_generate(t5):
    for row in (0, 2):
        want = t5.generate(
            torch.tensor([ENCODER[row]]),
            attention_mask=torch.ones(1, len(ENCODER[row]), dtype=torch.long),
            decoder_input_ids=torch.tensor([DECODER[row]]),
            do_sample=False,
            max_new_tokens=10,
            eos_token_id=None,
            pad_token_id=0,
        )
        got = draw(t5, [row], temperature=0, end_ids=())
        assert got.response_ids[0].tolist() == want[0, len(DECODER[row]) :].tolist()


def test_batch_size_and_order_change_no_sample(t5):
    whole = draw(t5)
    for rows in ([2], [3, 0, 1]):
        part = draw(t5, rows)
        for index, row in enumerate(rows):
            assert part.response_ids[index][part.response_mask[index]].tolist() == (
                whole.response_ids[row][whole.response_mask[row]].tolist()
            )


def test_the_encoder_reads_once(t5):
    calls = []
    handle = t5.get_encoder().register_forward_hook(lambda *_: calls.append(1))
    try:
        draw(t5)
    finally:
        handle.remove()
    assert calls == [1]


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (None, "T5ForConditionalGeneration has an encoder; pass encoder="),
        ([[5, 1]], "4 prompts need as many texts for the encoder, none empty; 1 came, 0 empty"),
        ([[5], [], [6], [7]], "4 came, 1 empty"),
    ],
)
def test_what_the_encoder_reads_must_fit(t5, encoder, message, as_a_user):
    with pytest.raises(PromptError, match=message):
        sample(t5, DECODER, max_new_tokens=2, seed=0, end_ids=(), pad_id=0, encoder=encoder)


def test_a_causal_model_takes_no_encoder():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1))
    with pytest.raises(PromptError, match="GPT2LMHeadModel has no encoder; leave encoder= out"):
        sample(model, [[1]], max_new_tokens=2, seed=0, end_ids=(), pad_id=0, encoder=[[1]])
