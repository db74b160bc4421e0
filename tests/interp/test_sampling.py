from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from interp.errors import InterpError, PromptError
from interp.prompts import positions
from interp.sampling import Samples, concatenate, end_ids, full_sequences, sample

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [3, 4]]


def gpt2(vocab: int = 40, scale: float = 4.0) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocab, n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():  # sharper than at initialisation, so that the context matters
        for parameter in model.parameters():
            parameter.mul_(scale if parameter.ndim > 1 else 1)
    return model


def llama() -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def draw(model, prompts=PROMPTS, **changes) -> Samples:
    settings = {"max_new_tokens": 12, "seed": 3, "end_ids": (1, 2), "pad_id": 0} | changes
    return sample(model, prompts, **settings)


@pytest.mark.parametrize("make", [gpt2, llama])
def test_greedy_equals_generate(make):
    model = make()
    got = draw(model, temperature=0, end_ids=())
    for row, prompt in enumerate(PROMPTS):
        ids = torch.tensor([prompt])
        want = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert got.response_ids[row].tolist() == want[0, len(prompt) :].tolist()


@pytest.mark.parametrize("make", [gpt2, llama])
def test_batch_size_and_order_change_nothing(make):
    model = make()
    whole = draw(model)
    for row, prompt in enumerate(PROMPTS):
        alone = draw(model, [prompt], first_index=row)
        steps = alone.response_ids.shape[1]
        assert whole.response_mask[row].sum() == alone.response_mask.sum()
        assert whole.response_ids[row, :steps].tolist() == alone.response_ids[0].tolist()
        assert torch.allclose(whole.logprobs[row, :steps], alone.logprobs[0], atol=1e-5)
    turned = draw(model, PROMPTS[::-1], indices=[3, 2, 1, 0])
    assert torch.equal(turned.response_ids.flip(0), whole.response_ids)


@pytest.mark.parametrize("make", [gpt2, llama])
def test_logprobs_equal_a_plain_forward(make):
    model = make()
    got = draw(model, temperature=0.7, top_k=5)
    for row, prompt in enumerate(PROMPTS):
        response = got.response_ids[row][got.response_mask[row]]
        ids = torch.cat([torch.tensor(prompt), response])[None]
        with torch.no_grad():
            logprobs = model(ids).logits[0].log_softmax(-1)
        want = logprobs[len(prompt) - 1 : -1].gather(1, response[:, None])[:, 0]
        assert torch.allclose(got.logprobs[row][got.response_mask[row]], want, atol=1e-5)
        assert (got.logprobs[row][~got.response_mask[row]] == 0).all()


def test_any_of_several_end_ids_ends_a_response():
    got = draw(gpt2(vocab=6, scale=1.0), [[3]] * 60, max_new_tokens=15, pad_id=5)
    ended = set()
    for ids, mask in zip(got.response_ids.tolist(), got.response_mask.tolist(), strict=True):
        length = sum(mask)
        assert mask == [True] * length + [False] * (len(mask) - length)
        assert not {1, 2} & set(ids[: length - 1])
        assert ids[length:] == [5] * (len(ids) - length)
        if length < len(ids):
            assert ids[length - 1] in (1, 2)
            ended.add(ids[length - 1])
    assert ended == {1, 2}


def test_stops_as_soon_as_all_have_ended():
    assert draw(gpt2(vocab=6), [[3]] * 3, max_new_tokens=40, end_ids=range(6)).response_ids.shape == (3, 1)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.5, 0, 1.0), (1.0, 4, 1.0), (1.0, 0, 0.6)]
)
def test_tokens_follow_the_distribution(temperature, top_k, top_p):
    model = gpt2(vocab=8)
    count = 4000
    with torch.no_grad():
        logits = model(torch.tensor([[3, 4]])).logits[0, -1].double()
    p = (logits / temperature).softmax(-1).numpy()
    ranked = np.argsort(-p)
    if top_k:
        p[ranked[top_k:]] = 0
    if top_p < 1:
        p[ranked[np.searchsorted(np.cumsum(p[ranked]), top_p) + 1 :]] = 0
    p /= p.sum()
    got = draw(
        model, [[3, 4]] * count, max_new_tokens=1, end_ids=(), temperature=temperature, top_k=top_k, top_p=top_p
    ).response_ids[:, 0]
    counts = np.bincount(got.numpy(), minlength=8)
    assert counts[p == 0].sum() == 0
    kept = p > 0
    assert kept.sum() > 1 and chisquare(counts[kept], p[kept] * count).pvalue > 1e-3


def test_seeds_differ_and_repeat():
    model = gpt2()
    assert torch.equal(draw(model).response_ids, draw(model).response_ids)
    assert not torch.equal(draw(model).response_ids, draw(model, seed=4).response_ids)


def test_nothing_is_left_on_the_model():
    model = gpt2()
    model.train()
    model.transformer.h[0].eval()
    model.generation_config.top_k = 1
    modes = [module.training for module in model.modules()]
    config, settings = model.config.to_dict(), model.generation_config.to_dict()
    before = torch.get_rng_state()
    got = draw(model, [[3]] * 40, max_new_tokens=1)
    assert len(set(got.response_ids[:, 0].tolist())) > 1, "generation_config.top_k was used"
    assert modes == [module.training for module in model.modules()]
    assert (config, settings) == (model.config.to_dict(), model.generation_config.to_dict())
    assert torch.equal(before, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_mode_is_restored_after_an_error():
    model = gpt2().train()
    with torch.no_grad():
        model.transformer.wte.weight.fill_(float("nan"))
    with pytest.raises(InterpError, match="finite logits"):
        draw(model)
    assert model.training


def test_end_ids_are_the_union():
    model = SimpleNamespace(
        generation_config=SimpleNamespace(eos_token_id=[1, 2]), config=SimpleNamespace(eos_token_id=7)
    )
    assert end_ids(model, SimpleNamespace(eos_token_id=2)) == (1, 2, 7)
    assert end_ids(SimpleNamespace(config=SimpleNamespace(eos_token_id=None)), SimpleNamespace(eos_token_id=None)) == ()


def test_full_sequences_and_concatenate():
    model = gpt2()
    parts = [draw(model, PROMPTS[:2]), draw(model, PROMPTS[2:], first_index=2, max_new_tokens=5)]
    joined = concatenate(parts, pad_id=0)
    assert len(joined) == 4 and joined.prompt_ids.shape[1] == 5
    for row, prompt in enumerate(PROMPTS):
        assert joined.prompt_ids[row][joined.prompt_mask[row]].tolist() == prompt
    ids, mask = full_sequences(joined)
    for row, prompt in enumerate(PROMPTS):
        part = parts[row // 2]
        response = part.response_ids[row % 2][part.response_mask[row % 2]].tolist()
        assert ids[row][mask[row]].tolist() == prompt + response


def test_positions_count_from_the_first_real_token():
    mask = torch.tensor([[False, False, True, True], [True, True, True, False]])
    assert positions(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"prompts": []}, PromptError, "at least one prompt"),
        ({"prompts": [[3], []]}, PromptError, "prompt 1 has no tokens"),
        ({"max_new_tokens": 0}, InterpError, "max_new_tokens"),
        ({"temperature": -1}, InterpError, "temperature"),
        ({"top_p": 0}, InterpError, "top_p"),
        ({"max_new_tokens": 61}, InterpError, "5 tokens and 61 new ones exceed the model's context of 64"),
        ({"indices": [1]}, InterpError, "4 prompts need 4 sample indices"),
    ],
)
def test_bad_input_is_refused(changes, kind, words):
    with pytest.raises(kind, match=words):
        draw(gpt2(), **changes)


def test_the_context_can_be_filled_to_its_end():
    assert draw(gpt2(), max_new_tokens=60, end_ids=()).response_ids.shape == (4, 60)
