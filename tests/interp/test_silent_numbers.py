"""Inputs that would give wrong numbers without a word: each is refused in one line, or remarked on."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import interp
from interp.errors import FormatError, InterpError, LoadError, MeasureError, TokenizerMismatch
from interp.io import check_new_folder
from tests.conftest import save, tiny_gpt2, tiny_llama
from tests.interp.comparisons import compare

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's call

PROMPTS = interp.Prompts([" this movie was", " the plot was really"], answers=(" bad", " good"))


@pytest.fixture
def base(tmp_path, tokenizer):
    return save(tiny_llama(), tmp_path / "base", tokenizer)


@pytest.fixture
def adapter(tmp_path, base):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_whole_adapter_passes(base, adapter):
    assert float(compare(base, adapter, PROMPTS, measures=["kl"])["kl"].max()) > 0


@pytest.mark.parametrize("gone", [".layers.1.", "v_proj"])
def test_an_adapter_that_lacks_tensors(base, adapter, gone):
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({key: t for key, t in tensors.items() if gone not in key}, adapter / "adapter_model.safetensors")
    with pytest.raises(LoadError, match="lacks the tensors of model.layers.*copy it again"):
        compare(base, adapter, PROMPTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": 4}, "has rank 2 .* its config says rank 4"),
        ({"use_dora": True}, "lacks model.layers.*lora_magnitude_vector"),
        ({"lora_bias": True}, "lacks model.layers.*lora_B.bias"),
        ({"modules_to_save": ["lm_head"]}, "lacks lm_head, which its config saves whole"),
    ],
)
def test_an_adapter_that_breaks_its_configs_promise(base, adapter, change, message):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(LoadError, match=message):
        compare(base, adapter, PROMPTS)


def test_a_model_with_an_adapter_left_beside_it(base, adapter):
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (base / name).write_bytes((adapter / name).read_bytes())
    with pytest.raises(LoadError, match="holds a model and a LoRA adapter"):
        interp.Policy.load(base)


def test_a_tokenizer_of_a_larger_model(tokenizer):
    narrow = [tiny_llama(seed, vocab_size=len(tokenizer) - 20) for seed in (0, 1)]
    with pytest.raises(TokenizerMismatch, match="the tokenizer has .* belongs to another model"):
        compare(*narrow, PROMPTS, tokenizer=tokenizer)


@pytest.mark.parametrize("ids", [{"negative": 1, "positive": 0}, {"negative": 5, "positive": 1}, {"negative": 0}])
def test_labels_that_contradict_each_other(tmp_path, tokenizer, ids):
    from transformers import GPT2ForSequenceClassification

    config = tiny_gpt2().config
    config.num_labels, config.id2label, config.label2id = 2, {0: "negative", 1: "positive"}, ids
    folder = save(GPT2ForSequenceClassification(config), tmp_path / "r", tokenizer)
    saved = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**saved, "label2id": ids}))
    with pytest.raises(LoadError, match="id2label .* label2id .* do not fit together"):
        interp.RewardModel.load(folder, label="negative")


def test_configs_that_differ_are_remarked_on(tokenizer):
    cmp = compare(tiny_llama(), tiny_llama(rms_norm_eps=1e-3), PROMPTS, tokenizer=tokenizer, measures=["kl"])
    assert "differ in rms_norm_eps (1e-06 and 0.001): not all of this is training." in cmp.notes()[0]
    same = compare(tiny_llama(), tiny_llama(1), PROMPTS, tokenizer=tokenizer, measures=["kl"])
    assert not any("configs" in note for note in same.notes())


@pytest.mark.parametrize("tuned", [torch.bfloat16, torch.float32])
def test_models_of_two_dtypes_are_compared_and_remarked_on(tokenizer, tuned):
    base = tiny_llama() if tuned == torch.bfloat16 else tiny_llama().bfloat16()
    cmp = compare(base, tiny_llama(1).to(tuned), PROMPTS, tokenizer=tokenizer)
    assert "part of the difference is rounding" in str(cmp)


def test_models_whose_mlps_differ_in_width(tokenizer):
    with pytest.raises(MeasureError, match="base has neurons 48, tuned neurons 40"):
        compare(tiny_llama(), tiny_llama(intermediate_size=40), PROMPTS, tokenizer=tokenizer)


def test_more_tokens_than_the_context_holds_are_not_asked_for(tokenizer):
    cmp = compare(
        tiny_llama(), tiny_llama(1), PROMPTS, tokenizer=tokenizer, measures=["completions"], max_new_tokens=10**11
    )
    assert cmp["response_kl"].sizes["step"] <= 64


def test_a_result_without_its_seed(tmp_path, tokenizer):
    cmp = compare(tiny_llama(), tiny_llama(1), PROMPTS, tokenizer=tokenizer, measures=["kl"])
    data = cmp.dataset.assign_attrs(format=1)
    del data.attrs["seed"]
    (tmp_path / "r").mkdir()
    data.to_netcdf(tmp_path / "r" / "comparison.nc", engine="h5netcdf")
    with pytest.raises(FormatError, match="it has no seed"):
        interp.Comparison.load(tmp_path / "r")


@pytest.mark.parametrize("target", [".", ".."])
def test_the_folder_one_is_in_is_no_target(target):
    with pytest.raises(InterpError, match="name a new folder"):
        check_new_folder(target, owned_by="comparison.nc")


def test_tokens_that_only_tuned_has_are_remarked_on(tokenizer):
    import copy

    longer = copy.deepcopy(tokenizer)
    longer.add_tokens(["<think>"])
    base, tuned = tiny_llama(), tiny_llama(1)
    tuned.resize_token_embeddings(len(longer), mean_resizing=False)
    pair = interp.Policy.load(base, tokenizer=tokenizer), interp.Policy.load(tuned, tokenizer=longer)
    cmp = compare(*pair, ["<think> this movie was"], measures=["kl"])
    assert "'<think>', a token that only tuned has" in str(cmp)
    assert "only tuned has" not in str(compare(*pair, [" this movie was"], measures=["kl"]))


@pytest.mark.parametrize("prompt", [3, -3])
def test_a_prompt_that_is_not_there_is_not_drawn(tokenizer, prompt):
    cmp = compare(tiny_llama(), tiny_llama(1), PROMPTS, tokenizer=tokenizer, measures=["lens_positions"])
    with pytest.raises(MeasureError, match="has 2, from 0 on"):
        cmp.plot.lens_positions(prompt=prompt)
