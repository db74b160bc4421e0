import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from interp.errors import ConfigError, TrainingError
from training.config import LoraConfig, ModelConfig
from training.native import tune
from training.native.policy import adapter_dropout, fused_activations, make_policy, trained_names
from training.rollouts import read_responses


def changed(outcome, base):
    before = base.state_dict()
    return {name for name, value in outcome.model.state_dict().items() if not torch.equal(value, before[name])}


def test_what_is_frozen_by_name():
    base = tiny.model()  # head tied to the embedding
    last = {f"transformer.{name}" for name in ("ln_f.weight", "ln_f.bias")}
    second = {name for name, _ in base.named_parameters() if name.startswith("transformer.h.1.")}
    assert trained_names(base, ModelConfig("x", num_layers_unfrozen=0)) == last
    assert trained_names(base, ModelConfig("x", num_layers_unfrozen=1)) == last | second
    every = {name for name, _ in base.named_parameters()}
    embeddings = {"transformer.wte.weight", "transformer.wpe.weight"}
    assert trained_names(base, ModelConfig("x", num_layers_unfrozen=9)) == every - embeddings
    assert trained_names(base, ModelConfig("x")) == every


def test_of_an_encoder_decoder_the_decoders_last_blocks_are_trained():
    base = tiny.model("t5")
    names = trained_names(base, ModelConfig("x", num_layers_unfrozen=1))
    assert names == {
        name
        for name, _ in base.named_parameters()
        if name.startswith("decoder.block.1.") or name == "decoder.final_layer_norm.weight"
    }
    assert any("EncDecAttention" in name for name in names)


def test_an_untied_head_is_trained():
    base = tiny.model("llama")
    base.config.tie_word_embeddings = False
    base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().clone())
    assert "lm_head.weight" in trained_names(base, ModelConfig("x", num_layers_unfrozen=0))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_frozen_weights_are_the_bases_own_and_the_others_move(tmp_path, kind):
    job = tiny.job(tmp_path, kind, model={"num_layers_unfrozen": 1})
    before = {name: value.clone() for name, value in job.base.state_dict().items()}
    outcome = tune(job)
    names = trained_names(job.base, job.config.model)
    own = dict(job.base.named_parameters())
    for name, parameter in outcome.model.named_parameters():
        assert (parameter is own[name]) == (name not in names)
        assert torch.equal(parameter, before[name]) == (name not in names), name
    assert all(torch.equal(value, before[name]) for name, value in job.base.state_dict().items())
    assert abs(outcome.kl_at_step_0) < 1e-6


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's call
@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_lora_leaves_the_base_alone_and_loads_again(tmp_path, kind):
    import peft

    job = tiny.job(tmp_path / "job", kind, model={"lora": {"r": 4}}, train={"learning_rate": 0.01, "total_steps": 16})
    before = {name: value.clone() for name, value in job.base.state_dict().items()}
    outcome = tune(job)
    assert isinstance(outcome.model, peft.PeftModel) and abs(outcome.kl_at_step_0) < 1e-6
    assert all(torch.equal(value, before[name]) for name, value in job.base.state_dict().items())
    shared = {id(p) for p in job.base.parameters()}
    assert all(id(p) in shared or "lora_" in name for name, p in outcome.model.named_parameters())
    samples = job.sampler.sample(
        job.base, job.sampler.encode(job.prompts[:4]), stream="test", first_index=0, chunk_size=4
    )
    with torch.no_grad():
        base, tuned = read_responses(job.base, samples)[0], read_responses(outcome.model, samples)[0]
        with outcome.model.disable_adapter():
            bare = read_responses(outcome.model, samples)[0]
    assert torch.equal(bare, base) and (tuned - base).abs().max() > 1e-3
    outcome.model.save_pretrained(tmp_path / "adapter")
    job.base.save_pretrained(tmp_path / "base")
    auto = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    loaded = peft.PeftModel.from_pretrained(auto.from_pretrained(tmp_path / "base"), tmp_path / "adapter").eval()
    with torch.no_grad():
        again = read_responses(loaded, samples)[0]
    assert torch.equal(again, tuned)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_lora_learns(tmp_path, kind):
    base = tiny.model(kind)
    with torch.no_grad():  # the frozen head must be able to say something: at its initial values it hardly can
        base.get_input_embeddings().weight.mul_({"gpt2": 10, "t5": 3}[kind])
    targets = {"gpt2": ["c_attn", "c_fc"], "t5": ["q", "v", "wi"]}[kind]
    job = tiny.job(
        tmp_path,
        base=base,
        model={"lora": {"r": 8, "dropout": 0.1, "target_modules": targets}},
        train={"total_steps": 120, "batch_size": 64, "learning_rate": 2e-2},
        ppo={"num_rollouts": 128, "chunk_size": 128, "ppo_epochs": 2, "init_kl_coef": 0.0},
    )
    tune(job)
    first, last = job.watch.rows[0], job.watch.rows[-1]
    assert last["reward_mean"] > first["reward_mean"] + 0.15


def test_the_adapters_dropout_is_at_work_in_updates_only():
    policy = make_policy(tiny.model(), ModelConfig("x", lora=LoraConfig(dropout=0.5)), seed=0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    ids = torch.arange(8)[None]
    with torch.no_grad():
        quiet = policy(input_ids=ids).logits
        noisy = []
        for seed in (1, 1, 2):
            with adapter_dropout(policy, seed):
                noisy.append(policy(input_ids=ids).logits)
        assert torch.equal(policy(input_ids=ids).logits, quiet)
    assert torch.equal(noisy[0], noisy[1]) and not torch.equal(noisy[0], noisy[2])
    assert not torch.equal(noisy[0], quiet) and not any(module.training for module in policy.modules())


def test_fused_activations_are_the_same_function_and_are_taken_off_again():
    base = tiny.model()
    ids = torch.arange(8)[None]
    with torch.no_grad():
        plain = base(ids).logits
        with fused_activations(base):
            inside = base(ids).logits
        assert torch.equal(base(ids).logits, plain) and torch.allclose(inside, plain, atol=1e-6)
    assert not any("forward" in vars(module) for module in base.modules())


def test_an_adapter_that_fits_nowhere(as_a_user):
    with pytest.raises(ConfigError, match="no adapter fits GPT2LMHeadModel: .*; set model.lora.target_modules"):
        make_policy(tiny.model(), ModelConfig("x", lora=LoraConfig(target_modules=("nowhere",))), seed=0)


def test_nothing_at_all_to_learn_from_is_an_error_with_lora_too(tmp_path, as_a_user):
    def constant(samples, prompts, outputs):
        return [0.0] * len(samples)

    with pytest.raises(TrainingError, match="the reward is constant"):
        tune(tiny.job(tmp_path, reward=constant, model={"lora": {}}, train={"total_steps": 40}))
