import copy
import dataclasses

import pytest
import tiny
import torch

from interp.divergences import entropy_of_log_probs, kl_divergence
from interp.errors import TrainingError
from interp.sampling import end_ids
from training.config import GenerateConfig
from training.losses import logprobs_of
from training.reward import Reward
from training.rollouts import (
    Sampler,
    ValueHead,
    collect,
    compared,
    join,
    prompt_stream,
    read_responses,
    take,
    trimmed,
)

PROMPTS = ("the very film", "a", "so the", "it is a film", "and")


def setup(kind="gpt2"):
    model = tiny.model(kind)
    reference = copy.deepcopy(model).requires_grad_(False)
    return model, reference, Sampler(model, tiny.tokenizer(), GenerateConfig(max_new_tokens=6), seed=0)


def head():
    made = ValueHead(16, seed=0)
    with torch.no_grad():
        made.out.weight.normal_(generator=torch.Generator().manual_seed(0))
    return made


def roll(model, reference, sampler, prompts=PROMPTS, reward=tiny.share_of_good, value_head=None, chunk_size=2):
    return collect(
        model,
        value_head or ValueHead(16, seed=0),
        reference,
        sampler,
        sampler.encode(prompts),
        Reward(reward),
        first_index=0,
        chunk_size=chunk_size,
    )


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_what_was_kept_while_sampling_is_what_a_full_forward_gives(kind):
    model, reference, sampler = setup(kind)
    with torch.no_grad():  # so that policy and reference differ
        for parameter in model.parameters():
            parameter.mul_(1.3)
    value_head = head()
    rollouts = roll(model, reference, sampler, PROMPTS * 4, value_head=value_head, chunk_size=7)
    samples = rollouts.samples
    mask, ids = samples.response_mask, samples.response_ids
    assert (mask.sum(1) < mask.shape[1]).any() and (mask.sum(1) == mask.shape[1]).any()
    with torch.no_grad():
        logits, values = read_responses(model, samples, value_head)
        theirs, _ = read_responses(reference, samples)
    for name, want in {
        "logprobs": logprobs_of(logits, ids),
        "reference_logprobs": logprobs_of(theirs, ids),
        "values": values,
        "kl": kl_divergence(logits, theirs),
        "entropy": entropy_of_log_probs(logits.log_softmax(-1)),
    }.items():
        assert torch.allclose(getattr(rollouts, name)[mask].double(), want[mask].double(), atol=1e-5), name
        assert not getattr(rollouts, name)[~mask].any(), name
    assert rollouts.kl[mask].min() > 1e-5 and values[mask].abs().min() > 0


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_read_responses_equals_an_unpadded_forward(kind):
    model, reference, sampler = setup(kind)
    samples = roll(model, reference, sampler).samples
    value_head = head()
    with torch.no_grad():
        logits, values = read_responses(model, samples, value_head)
    for row in range(len(samples)):
        prompt = samples.prompt_ids[row][samples.prompt_mask[row]]
        response = samples.response_ids[row][samples.response_mask[row]]
        ids = torch.cat([prompt, response])[None]
        with torch.no_grad():
            if kind == "t5":
                encoder = samples.encoder_ids[row][samples.encoder_mask[row]][None]
                plain = model(input_ids=encoder, decoder_input_ids=ids, output_hidden_states=True)
                states = plain.decoder_hidden_states[-1]
            else:
                plain = model(ids, output_hidden_states=True)
                states = plain.hidden_states[-1]
            want = value_head(states[:, len(prompt) - 1 : -1])[0]
        assert torch.allclose(logits[row, : len(response)], plain.logits[0, len(prompt) - 1 : -1], atol=1e-5)
        assert torch.allclose(values[row, : len(response)], want, atol=1e-5)


def test_the_text_is_that_of_the_generated_ids():
    model, reference, sampler = setup()
    rollouts = roll(model, reference, sampler, ["the very film"] * 20)
    for row, ids in enumerate(sampler.responses(rollouts.samples)):
        assert not {0, 1} & set(ids)
        assert rollouts.texts.outputs[row].split() == [tiny.WORDS[i] for i in ids]
        assert rollouts.texts.samples[row].split() == ["the", "very", "film", *(tiny.WORDS[i] for i in ids)]


def test_an_encoder_reads_the_prompt_and_the_decoder_begins_with_its_start_token():
    model, reference, sampler = setup("t5")
    rollouts = roll(model, reference, sampler)
    samples = rollouts.samples
    assert samples.prompt_ids.tolist() == [[5]] * len(PROMPTS)
    assert samples.encoder_ids[0][samples.encoder_mask[0]].tolist() == [tiny.WORDS.index(w) for w in PROMPTS[0].split()]
    for row, ids in enumerate(sampler.responses(samples)):
        said = " ".join(tiny.WORDS[i] for i in ids)
        assert rollouts.texts.outputs[row] == said and rollouts.texts.samples[row] == f"{PROMPTS[row]} {said}"


def test_a_model_that_names_no_start_token(as_a_user):
    model = tiny.model("t5")
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = None
    with pytest.raises(TrainingError, match="T5ForConditionalGeneration names no decoder_start_token_id"):
        Sampler(model, tiny.tokenizer(), GenerateConfig(), seed=0)


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_kl_to_the_frozen_copy_is_0(kind):
    model, reference, sampler = setup(kind)
    rollouts = roll(model, reference, sampler)
    assert rollouts.kl.abs().max() < 1e-6
    assert torch.allclose(rollouts.logprobs, rollouts.reference_logprobs, atol=1e-5)
    assert not rollouts.values.any(), "an untrained value head says 0"


def test_kl_sees_a_reference_that_is_not_the_base():
    model, reference, sampler = setup()
    with torch.no_grad():
        reference.transformer.h[0].mlp.c_proj.weight.mul_(9)
    rollouts = roll(model, reference, sampler)
    assert rollouts.kl[rollouts.samples.response_mask].min() > 1e-6


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_the_chunk_size_changes_no_sample(kind):
    model, reference, sampler = setup(kind)
    prompts = PROMPTS * 3
    a, b = (roll(model, reference, sampler, prompts, chunk_size=size) for size in (2, 15))
    assert torch.equal(a.samples.response_ids, b.samples.response_ids) and torch.equal(a.scores, b.scores)
    assert a.texts == b.texts
    for name in ("logprobs", "reference_logprobs", "kl", "entropy"):
        assert torch.allclose(getattr(a, name), getattr(b, name), atol=1e-5)


def test_compared_in_blocks_is_compared_at_once(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(3, 4, 16, generator=generator) for _ in range(2))
    ids, mask = torch.randint(16, (3, 4), generator=generator), torch.arange(4) < torch.tensor([[4], [1], [2]])
    whole = compared(p, q, ids, mask)
    monkeypatch.setattr("training.rollouts._BLOCK", 32)
    for name, want in compared(p, q, ids, mask).items():
        assert torch.allclose(whole[name], want, atol=1e-6) and not want[~mask].any() and want[mask].abs().min() > 0
    assert torch.allclose(whole["kl"][mask], kl_divergence(p, q)[mask].float())


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_trimmed_leaves_out_padding_only(kind):
    model, reference, sampler = setup(kind)
    samples = roll(model, reference, sampler, PROMPTS * 4, chunk_size=20).samples
    lengths, prompts = (
        samples.response_mask.sum(1),
        (samples.encoder_mask if kind == "t5" else samples.prompt_mask).sum(1),
    )
    rows = ((lengths < 6) & (prompts < 4)).nonzero()[:, 0]
    part = take(samples, rows)
    small = trimmed(part)
    assert len(rows) > 1 and small.response_ids.shape[1] == lengths[rows].max() < 6
    assert (small.encoder_ids if kind == "t5" else small.prompt_ids).shape[1] == prompts[rows].max() < 4
    mask = small.response_mask
    with torch.no_grad():
        a, b = read_responses(model, part)[0][:, : mask.shape[1]], read_responses(model, small)[0]
    assert torch.allclose(a[mask], b[mask], atol=1e-5)


def test_join_undoes_a_split():
    model, reference, sampler = setup("t5")
    whole = roll(model, reference, sampler, PROMPTS * 3, chunk_size=15)
    parts = []
    for rows in (slice(0, 4), slice(4, 15)):
        tensors = {n: v[rows] for n, v in vars(whole).items() if isinstance(v, torch.Tensor)}
        texts = dataclasses.replace(whole.texts, **{n: v[rows] for n, v in vars(whole.texts).items()})
        parts.append(dataclasses.replace(whole, samples=take(whole.samples, rows), texts=texts, **tensors))
    again = join(parts, sampler.pad_id)
    assert torch.equal(again.kl, whole.kl) and torch.equal(again.scores, whole.scores) and again.texts == whole.texts
    assert torch.equal(again.samples.encoder_ids, whole.samples.encoder_ids)


def test_no_prompts():
    *_, sampler = setup()
    with pytest.raises(TrainingError, match="the list is empty"):
        sampler.encode([])
    with pytest.raises(TrainingError, match="'' has no tokens"):
        sampler.encode(["the film", ""])


def test_prompt_stream_takes_each_prompt_once_a_pass():
    *_, sampler = setup()
    stream = prompt_stream(sampler.encode(["the film", "a", "so"]), seed=0)
    passes = [[next(stream).text for _ in range(3)] for _ in range(20)]
    assert all(sorted(turn) == ["a", "so", "the film"] for turn in passes)
    assert len({tuple(turn) for turn in passes}) > 1


def test_end_ids_come_from_everywhere():
    assert end_ids(tiny.model(), tiny.tokenizer()) == (0, 1)
