"""The value head read along samples: the trainer's own values, and their correlation with the reward."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from interp import CheckpointPair, Policy, Prompts, RewardModel
from interp.errors import LoadError
from interp.models.value_head import ValueHead, values_along
from interp.patching import value_reading
from interp.sampling import Sampling, sample
from tests.interp import architectures
from tests.interp.test_patching_generation import SIZE, TEXTS, policies


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM", "T5ForConditionalGeneration"])
def test_values_along_a_response_equal_the_trainers(name, tokenizer, tmp_path):
    from training.rollouts import ValueHead as Trained
    from training.rollouts import read_responses

    policy = policies(name, tokenizer)[0]
    trained = Trained(policy.parts.d_model, seed=0)
    with torch.no_grad():
        trained.out.weight.normal_()
    save_file(dict(trained.state_dict()), tmp_path / "value_head.safetensors")
    head = ValueHead.load(tmp_path / "value_head.safetensors")
    tokens = Prompts(TEXTS).tokenize(tokenizer, decoder_start=policy.decoder_start)
    encoder = None if tokens.encoder_ids is None else list(tokens.encoder_ids)
    samples = sample(
        policy.model, tokens.prompt_ids, max_new_tokens=4, seed=0, end_ids=[], pad_id=0, encoder=encoder
    )  # fmt: skip
    with torch.no_grad():
        _, expected = read_responses(policy.model, samples, trained)
    found = values_along(
        policy, head, tokens.prompt_ids, samples.response_ids.tolist(), encoder_ids=encoder, batch_size=3
    )
    for own, row in zip(found, expected, strict=True):
        torch.testing.assert_close(own[:-1], row, rtol=1e-4, atol=1e-5)


def test_the_embedded_pairs_value_head(tmp_path):
    pair = CheckpointPair.load("interp/data/demo")
    scorer = RewardModel.load(str(pair.reward), label="negative")
    reading = value_reading(
        pair.tuned, pair.path, ["This movie was really", "The plot was"], scorer, sampling=Sampling(samples=8)
    )
    values, rewards = reading["value"].values, reading["reward"].values
    assert values.shape == (2, 8, 25) and np.isfinite(values[:, :, 0]).all()
    here = np.isfinite(values[:, :, 3])
    expected = np.corrcoef(values[:, :, 3][here], rewards[here])[0, 1]
    assert float(reading["correlation"][3]) == pytest.approx(expected)
    residual = ((rewards - values[:, :, 0]) ** 2).sum() / ((rewards - rewards.mean()) ** 2).sum()
    assert float(reading["explained"][0]) == pytest.approx(1 - residual, rel=1e-5)
    with pytest.raises(LoadError, match="no pair|no value head"):
        ValueHead.load(tmp_path)
    other = Policy.load(
        architectures.build("GPT2LMHeadModel", vocab_size=SIZE), tokenizer=Policy.load(pair.base).tokenizer
    )
    with pytest.raises(LoadError, match="another|states of"):
        values_along(other, ValueHead.load(pair.path), [[1]], [[2]])
