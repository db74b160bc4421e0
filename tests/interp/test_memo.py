"""What is remembered of a model is forgotten at whatever changes it, and at nothing else."""

import copy
import gc
import os

import pytest
import torch

from interp.models import Policy, as_policy, describe_source, memo, policy, source
from interp.models.memo import facts, fingerprint
from tests.conftest import save, tiny_gpt2, tiny_llama

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's call


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(memo, "_FACTS", type(memo._FACTS)())


@pytest.fixture
def checks(monkeypatch):
    """How often a model was checked."""
    calls = []
    check = policy.check_fidelity
    monkeypatch.setattr(policy, "check_fidelity", lambda *arguments: calls.append(1) or check(*arguments))
    return calls


def test_five_loads_of_a_module_check_and_hash_it_once(make_model, tokenizer, checks, monkeypatch):
    hashes, whole = [], source._module_hash
    monkeypatch.setattr(source, "_module_hash", lambda module: hashes.append(1) or whole(module))
    model = make_model()
    loaded = [as_policy(model, tokenizer=tokenizer) for _ in range(5)]
    assert len(checks) == len(hashes) == 1
    assert {each.description["sha256"] for each in loaded} == {whole(model)}
    Policy.load(model, tokenizer=tokenizer, refresh=True)
    assert len(checks) == len(hashes) == 2


def test_two_loads_of_a_folder_check_once_and_share_no_weight(tmp_path, make_model, tokenizer, checks):
    folder = save(make_model(), tmp_path, tokenizer)
    first, second = Policy.load(folder), Policy.load(folder)
    assert len(checks) == 1
    with torch.no_grad():
        first.parts.embedding().add_(1)
    assert not torch.equal(first.parts.embedding(), second.parts.embedding())


def step(model):
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    optimiser.step()


def write_one_element(model):
    model.get_input_embeddings().weight.data[3, 2] += 1e-3


def least_bit(model):
    """The last bit of one element, which no float sum would notice."""
    weight = model.get_input_embeddings().weight.data
    weight.view(-1)[5].copy_(torch.nextafter(weight.view(-1)[5], torch.tensor(torch.inf)))


def swap_two(model):
    """Two elements of one row, which moves no sum."""
    row = model.get_input_embeddings().weight.data[4]
    row[[1, 2]] = row[[2, 1]].clone()


def swap_matrices(model):
    """Two layers' weights of one shape."""
    layers = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    first, second = (dict(layers[index].named_parameters()) for index in (0, 1))
    name = next(name for name, weight in first.items() if weight.ndim == 2)
    first[name].data, second[name].data = second[name].data, first[name].data


def another_epsilon(model):
    norm = next(module for module in model.modules() if "Norm" in type(module).__name__)
    setattr(norm, "eps" if hasattr(norm, "eps") else "variance_epsilon", 0.1)


def another_config(model):
    model.config.max_position_embeddings = 7


def a_hook(model):
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output * 2)


def a_buffer(model):
    model.register_buffer("odd", torch.tensor([1.0]))


CHANGES = (
    step, write_one_element, least_bit, swap_two, swap_matrices, another_epsilon, another_config, a_hook, a_buffer,
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_noticed(make_model, change):
    model = make_model()
    before = fingerprint(model)
    facts(model)["seen"] = True
    change(model)
    assert fingerprint(model) != before and facts(model) == {}


@pytest.mark.parametrize("change", [step, write_one_element])
def test_a_changed_module_is_hashed_and_checked_anew(make_model, tokenizer, checks, change):
    model = make_model()
    before = as_policy(model, tokenizer=tokenizer).description["sha256"]
    change(model)
    after = as_policy(model, tokenizer=tokenizer).description["sha256"]
    assert after != before and len(checks) == 2
    assert after == describe_source(copy.deepcopy(model))["sha256"]


def test_mode_and_a_pass_change_nothing(make_model):
    model = make_model()
    before = fingerprint(model)
    for mode in (True, False):
        model.train(mode)
        with torch.no_grad():
            model(torch.tensor([[1, 2, 3]]))
        assert fingerprint(model) == before


def test_a_recycled_id_is_another_model():
    """Modules of which each lies where the last one lay."""
    seen, ids = set(), []
    for seed in range(6):
        model = tiny_gpt2(seed)
        assert facts(model) == {}
        facts(model)["seen"] = seed
        seen.add(fingerprint(model))
        ids.append(id(model))
        del model
        gc.collect()
    assert len(seen) == 6


def test_hooks_of_one_id_are_two(make_model):
    """Functions of which each lies where the last one lay."""
    model, seen = make_model(), set()
    for factor in range(4):
        handle = model.get_input_embeddings().register_forward_hook(lambda *call, by=factor: call[2] * by)
        seen.add(fingerprint(model))
        handle.remove()
        del handle
        gc.collect()
    assert len(seen) == 4
    assert fingerprint(model) not in seen


def test_states_of_an_adapter(tokenizer):
    import peft

    model = tiny_llama()
    config = peft.LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM", target_modules=["q_proj"])
    theirs = peft.get_peft_model(model, config).eval()
    hashes = {}

    def load(state):
        hashes[state] = as_policy(theirs, tokenizer=tokenizer).description["sha256"], fingerprint(theirs)

    load("on")
    theirs.base_model.disable_adapter_layers()
    load("off")
    theirs.base_model.enable_adapter_layers()
    load("on again")
    assert hashes["on"][1] == hashes["on again"][1] and hashes["on"][1] != hashes["off"][1]
    layer = next(module for module in theirs.modules() if isinstance(getattr(module, "scaling", None), dict))
    layer.scaling["default"] *= 2
    load("scaled")
    assert hashes["scaled"][1] != hashes["on"][1]
    layer.scaling["default"] /= 2
    theirs.merge_adapter()
    load("merged")
    assert len({digest for _, digest in hashes.values()}) == 4 and hashes["merged"][0] != hashes["on"][0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int8, torch.bool])
@pytest.mark.parametrize("size", [1, 3, 7, 2**16 * 8 + 5])
def test_one_element_of_any_type_and_place(dtype, size):
    holder = torch.nn.Module()
    holder.register_buffer("values", torch.zeros(size, dtype=dtype))
    before = fingerprint(holder)
    for index in {0, size // 2, size - 1}:
        holder.values.data[index] = 1
        assert fingerprint(holder) != before
        holder.values.data[index] = 0
    assert fingerprint(holder) == before


def test_files_are_hashed_again_when_they_change(tmp_path, make_model, tokenizer, monkeypatch):
    folder, read = save(make_model(), tmp_path, tokenizer), []
    sha256 = source.sha256
    monkeypatch.setattr(source, "sha256", lambda path: read.append(path.name) or sha256(path))
    old = 10**18
    for path in folder.iterdir():
        os.utime(path, ns=(old, old))
    describe_source(folder)
    fresh = len(read)
    monkeypatch.setattr(source, "_SETTLED", 0)  # as if the files had lain there for a while
    first, again = describe_source(folder), describe_source(folder)
    assert first == again and len(read) == 2 * fresh
    weights = folder / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    os.utime(weights, ns=(old, old))  # size and modification time as before
    assert describe_source(folder)["sha256"]["model.safetensors"] != first["sha256"]["model.safetensors"]


def test_only_so_many_models_are_remembered(monkeypatch):
    monkeypatch.setattr(memo, "MOST", 2)
    models = [tiny_gpt2(seed) for seed in range(3)]
    for model in models:
        facts(model)["seen"] = True
    assert [facts(model) for model in models[1:]] == [{"seen": True}] * 2 and facts(models[0]) == {}
