"""LoRA adapters against peft: merged, switched, and with one copy of the weights."""

import copy
import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from interp.errors import LoadError
from interp.families import effective, named_weights
from interp.models.adapter_files import read_adapter
from interp.models.adapters import unwrap, with_adapter, without_adapter
from tests.conftest import tiny_gpt2, tiny_llama

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's call

IDS = torch.tensor([[5, 9, 2, 7, 11, 3], [8, 1, 4, 20, 6, 2]])
KINDS = {
    "gpt2": (tiny_gpt2, dict(target_modules=["c_attn", "c_proj", "c_fc"])),
    "gpt2 with norms and biases": (
        tiny_gpt2, dict(target_modules=["c_attn"], modules_to_save=["ln_f", "ln_1"], bias="lora_only")
    ),
    "gpt2 embedding": (tiny_gpt2, dict(target_modules=["wte", "c_attn"])),
    "llama": (tiny_llama, dict(target_modules="all-linear")),
    "llama patterns": (
        tiny_llama,
        dict(target_modules=["q_proj", "o_proj"], rank_pattern={"o_proj": 2}, alpha_pattern={"0.self_attn.q_proj": 3}),
    ),
    "llama rslora": (tiny_llama, dict(target_modules=["v_proj"], use_rslora=True, layers_to_transform=[1])),
    "llama embedding and head": (tiny_llama, dict(target_modules=["embed_tokens"], modules_to_save=["lm_head"])),
    "llama dora": (tiny_llama, dict(target_modules=["q_proj", "down_proj"], use_dora=True)),
    "gpt2 dora": (tiny_gpt2, dict(target_modules=["c_attn"], use_dora=True)),
}  # fmt: skip


def adapted(make, seed=0, **options):
    """A model of peft with an adapter that changes it, and the module inside."""
    import peft

    with warnings.catch_warnings():  # peft warns about its own choices for embeddings and Conv1D
        warnings.simplefilter("ignore")
        torch.manual_seed(7 + seed)
        config = peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, task_type="CAUSAL_LM", **options)
        model = peft.get_peft_model(make(), config).eval()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and ".lora_" not in name or "magnitude" in name:
                parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def write(model, folder, **changes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    if changes:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def merged(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return copy.deepcopy(model).merge_and_unload()


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_gives_what_peft_computes(tmp_path, kind):
    make, options = KINDS[kind]
    theirs = adapted(make, **options)
    base = make()
    before = logits(base)
    ours = with_adapter(base, read_adapter(write(theirs, tmp_path / "a")))
    expected = logits(theirs)
    limit = 1e-5 * float(expected.abs().max())
    assert (expected - before).abs().max() > 1e-2, "the adapter changes nothing"
    assert (logits(ours) - expected).abs().max() <= limit
    assert torch.equal(logits(base), before), "the base is what it was"
    if "embedding" not in kind:  # there, peft's merge moves the tied head as well
        whole = dict(merged(theirs).named_parameters())
        for name, weight in named_weights(ours):
            torch.testing.assert_close(weight, whole[name], atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_peft_is_read_as_it_is(kind):
    make, options = KINDS[kind]
    theirs = adapted(make, **options)
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    expected = logits(theirs)
    limit = 1e-5 * float(expected.abs().max())
    for given in (theirs, theirs.get_base_model()):
        assert (logits(unwrap(given)) - expected).abs().max() <= limit
        if "bias" in options:
            with pytest.raises(LoadError, match="trained biases in place"):
                without_adapter(given)
            continue
        with theirs.disable_adapter():
            off = logits(theirs)
            assert torch.equal(logits(unwrap(given)), off)
        assert torch.equal(logits(without_adapter(given)), off)
    assert type(unwrap(theirs)) is type(theirs.get_base_model())
    assert theirs.state_dict().keys() == state.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in theirs.state_dict().items())


def test_the_weights_exist_once(tmp_path, make_model):
    base = make_model()
    target = "c_attn" if hasattr(base, "transformer") else "q_proj"
    adapter = read_adapter(write(adapted(make_model, target_modules=[target]), tmp_path / "a"))
    ours = with_adapter(base, adapter)
    theirs = dict(base.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.data_ptr() == theirs[name].data_ptr() and parameter is not theirs[name], name
    own = sum(b.numel() for name, b in ours.named_buffers() if ".lora_" in name)
    assert own == sum(c.A.numel() + c.B.numel() for c in adapter.changes.values())
    assert [b.data_ptr() for n, b in ours.named_buffers() if ".lora_" not in n] == [
        b.data_ptr() for b in base.buffers()
    ]
    again = without_adapter(ours)
    assert torch.equal(logits(again), logits(base))
    assert not [name for name, _ in again.named_buffers() if ".lora_" in name]
    assert without_adapter(base) is base and unwrap(base) is base


def test_half_precision_keeps_the_digits_of_the_adapter(tmp_path):
    theirs = adapted(tiny_llama, target_modules=["q_proj", "o_proj"])
    adapter = read_adapter(write(theirs, tmp_path / "a"))
    base = tiny_llama().bfloat16()
    ours = with_adapter(base, adapter)
    assert logits(ours).dtype == torch.bfloat16
    name = "model.layers.1.self_attn.q_proj.weight"
    change = effective(ours, name) - effective(base, name).float()
    expected = adapter.changes["model.layers.1.self_attn.q_proj"]
    torch.testing.assert_close(change, expected.B @ expected.A, atol=1e-6, rtol=1e-5)


def test_added_tokens_grow_the_vocabulary(tmp_path):
    def grown():
        torch.manual_seed(0)
        model = tiny_llama(tie_word_embeddings=False)
        model.resize_token_embeddings(model.config.vocab_size + 3, mean_resizing=False)
        return model

    theirs = adapted(grown, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    base = tiny_llama()
    ours = with_adapter(base, read_adapter(write(theirs, tmp_path / "a")))
    assert ours.config.vocab_size == base.config.vocab_size + 3 == logits(ours).shape[-1]
    assert (logits(ours) - logits(theirs)).abs().max() < 1e-4


def test_several_adapters_at_once():
    import peft

    theirs = adapted(tiny_llama, target_modules=["q_proj"])
    theirs.add_adapter("second", peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj", "k_proj"]))
    theirs.base_model.set_adapter(["default", "second"])
    assert (logits(unwrap(theirs)) - logits(theirs)).abs().max() < 1e-4
    theirs.set_adapter("second")
    assert (logits(unwrap(theirs)) - logits(theirs)).abs().max() < 1e-4


class TestRefusals:
    @pytest.fixture
    def folder(self, tmp_path):
        return write(adapted(tiny_llama, target_modules=["q_proj"]), tmp_path / "a")

    def refused(self, folder, message, base=None):
        with pytest.raises(LoadError, match=message) as caught:
            with_adapter(base or tiny_llama(), read_adapter(folder))
        assert "\n" not in str(caught.value)

    def test_a_base_of_another_width_or_depth(self, folder):
        self.refused(folder, "expects .*q_proj of 32 by 32, the model's is 64 by 64; load it on", tiny_llama(
            hidden_size=64, num_attention_heads=8
        ))  # fmt: skip
        self.refused(folder, r"layers\.2.*, which this LlamaForCausalLM does not have", tiny_llama(num_hidden_layers=2))
        self.refused(folder, "which this GPT2LMHeadModel does not have", tiny_gpt2())

    def test_without_weights(self, folder):
        (folder / "adapter_model.safetensors").unlink()
        self.refused(folder, "has an adapter_config.json but no adapter_model.safetensors")
        torch.save({}, folder / "adapter_model.bin")
        self.refused(folder, "allow_pickle=True")

    def test_cut_off_weights(self, folder):
        file = folder / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        self.refused(folder, "cut off or damaged")

    @pytest.mark.parametrize("text", ["{", "[]", "3"])
    def test_a_config_that_is_none(self, folder, text):
        (folder / "adapter_config.json").write_text(text)
        self.refused(folder, "is not JSON|not an object")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (dict(peft_type="IA3"), "type IA3, only LORA .*merge_and_unload"),
            (dict(peft_type=None), "type None"),
            (dict(r="four"), "r = 'four', not a number above 0"),
            (dict(lora_alpha=None), "lora_alpha = None"),
            (dict(init_lora_weights="pissa"), "initialised by 'pissa', which changes the base"),
            (dict(layer_replication=[[0, 2]]), "uses layer_replication"),
        ],
    )
    def test_what_is_no_plain_lora(self, folder, changes, message):
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
        self.refused(folder, message)

    def test_odd_tensors(self, folder):
        file = folder / "adapter_model.safetensors"
        tensors = load_file(file)
        key = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
        norm = "base_model.model.model.norm.weight"
        for changed, message in (
            ({k: v for k, v in tensors.items() if k != key}, "lacks .*layers.1.self_attn.q_proj.lora_A"),
            (tensors | {key: tensors[key][:, :-1].contiguous()}, "32 by 31"),
            (tensors | {key: tensors[key][:-1]}, "no low-rank pair"),
            (tensors | {key: tensors[key] * float("nan")}, "holds NaN"),
            (tensors | {"base_model.model.nothing.weight": tensors[key].clone()}, "brings nothing.weight"),
            (tensors | {norm: torch.ones(3)}, r"brings model.norm.weight of shape \(3,\)"),
            (tensors | {key.replace("lora_A.weight", "lora_Q"): torch.ones(3)}, "of no kind of LoRA"),
            ({}, "holds no tensor"),
        ):  # fmt: skip
            save_file(changed, file)
            self.refused(folder, message)

    def test_other_kinds_of_peft(self):
        import peft

        config = peft.IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[])
        model = peft.get_peft_model(tiny_llama(), config)
        with pytest.raises(LoadError, match="no LoRA; merge it"):
            unwrap(model)
        assert (logits(without_adapter(model)) - logits(tiny_llama())).abs().max() == 0
        model = peft.get_peft_model(tiny_llama(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
        with pytest.raises(LoadError, match="PROMPT_TUNING adapter changes no weight"):
            unwrap(model)
        model = adapted(tiny_llama, target_modules=["q_proj"])
        model.merge_adapter()
        assert (logits(unwrap(model)) - logits(model)).abs().max() == 0
        with pytest.raises(LoadError, match="call unmerge_adapter"):
            without_adapter(model)
