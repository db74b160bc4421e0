"""What is refused when a model is loaded, where models are found, and how much memory loading takes."""

import json
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import interp
from interp.errors import FidelityError, InterpError, LoadError, MissingExtra, TokenizerMismatch, UnknownFamily
from interp.models import Policy, RewardModel
from interp.models.pretrained import load_model, load_tokenizer
from interp.models.source import describe_source, locate, split_revision
from tests.conftest import save, tiny_gpt2, tiny_llama
from tests.interp.comparisons import compare
from tests.interp.test_models import classifier

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.usefixtures("as_a_user"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft's call
]


@pytest.fixture
def folder(tmp_path, tokenizer):
    return save(tiny_gpt2(), tmp_path / "model", tokenizer)


def change(file, **changes):
    """Set keys of a JSON file; None takes one away."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def refused(message, call, *arguments, kind=InterpError, **options):
    """The call raises one of our errors, in one line."""
    with pytest.raises(kind, match=message) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


CONFIGS = {
    "a missing number of heads": (dict(n_head=None), "does not give n_head; write it as the model was trained"),
    "a missing number of layers": (dict(n_layer=None), "does not give n_layer"),
    "a missing width": (dict(n_embd=None), "does not give n_embd"),
    "no architectures": (dict(architectures=None), "does not say which class the model is"),
    "empty architectures": (dict(architectures=[]), "does not say which class the model is"),
    "odd architectures": (dict(architectures=[3]), "does not say which class the model is"),
    "architectures in one string": (dict(architectures="GPT2LMHeadModel"), "does not say which class the model is"),
    "no model_type": (dict(model_type=None), "has no model_type"),
    "a model_type of the future": (dict(model_type="gpt9"), "cannot load the config .*gpt9"),
    "heads in words": (dict(n_head="four"), "cannot load the (config|weights)"),
    "heads that do not divide the width": (dict(n_head=5), "cannot load the (config|weights) .*mend its config.json"),
    "no layers below zero": (dict(n_layer=-1), "cannot load|unexpected keys"),
    "fewer layers than weights": (dict(n_layer=2), "unexpected keys .*h.2"),
    "more layers than weights": (dict(n_layer=4), "missing keys .*h.3"),
    "another vocabulary": (dict(vocab_size=7), "mismatched keys .*wte.weight"),
    "another activation": (dict(activation_function="nonsense"), "cannot load the (config|weights) .*nonsense"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_odd_configs(folder, kind):
    changes, message = CONFIGS[kind]
    change(folder / "config.json", **changes)
    refused(message, Policy.load, folder, kind=LoadError)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '"gpt2"', "null", "\x00"])
def test_a_config_that_is_none(folder, text):
    (folder / "config.json").write_text(text)
    refused("config.json (is not JSON|holds a JSON)", Policy.load, folder, kind=LoadError)


def test_extra_keys_of_a_config_do_no_harm(folder):
    change(folder / "config.json", of_my_own={"a": 1})
    assert Policy.load(folder).parts.n_layers == 3


def test_an_architecture_that_is_not_known(folder):
    change(folder / "config.json", architectures=["GPT9LMHeadModel"])
    refused("GPT9LMHeadModel", Policy.load, folder, kind=UnknownFamily)


class TestWeights:
    def changed(self, folder, change):
        tensors = change(load_file(folder / "model.safetensors"))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_nan(self, folder, value):
        def spoil(tensors):
            tensors["transformer.h.1.mlp.c_fc.weight"][3, 4] = value
            return tensors

        self.changed(folder, spoil)
        refused(r"h\.1\.mlp\.c_fc\.weight holds NaN or infinity", Policy.load, folder, kind=LoadError)
        module = tiny_gpt2()
        with torch.no_grad():
            module.transformer.h[0].mlp.c_fc.weight[0, 0] = value
        refused("NaN", Policy.load, module, tokenizer=object(), kind=FidelityError)

    def test_other_keys(self, folder):
        self.changed(folder, lambda tensors: tensors | {"transformer.more": torch.zeros(2)})
        refused("1 unexpected keys .*transformer.more", Policy.load, folder, kind=LoadError)

    @pytest.mark.parametrize("size", [0, 7, 100, 5000])
    def test_truncated(self, folder, size):
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:size])
        refused("is cut off or damaged", Policy.load, folder, kind=LoadError)

    def test_an_index_without_its_files(self, folder):
        index = folder / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
        refused("is listed in model.safetensors.index.json but absent", Policy.load, folder, kind=LoadError)
        for text, message in (("[]", "holds a JSON list"), ("{}", "has no weight_map"), ("{", "is not JSON")):
            index.write_text(text)
            refused(message, Policy.load, folder, kind=LoadError)

    def test_a_folder_of_something_else(self, tmp_path, folder, tokenizer):
        cmp = compare(tiny_gpt2(), tiny_gpt2(), ["this"], tokenizer=tokenizer, measures=["kl"])
        for file, message in (("pair.json", "is a pair, not a model; name its tuned/"), ("data.csv", "has no config")):
            other = tmp_path / file.partition(".")[0]
            other.mkdir()
            (other / file).write_text("{}")
            refused(message, Policy.load, other, kind=LoadError)
        refused("is a saved result, not a model", Policy.load, cmp.save(tmp_path / "out"), kind=LoadError)
        data = tmp_path / "prompts.csv"
        data.write_text("text\nthis movie")
        refused("is a file; name the folder", Policy.load, data, kind=LoadError)

    def test_the_wrong_kind_of_model(self, tmp_path, folder, tokenizer):
        scores = save(classifier(), tmp_path / "scores", tokenizer)
        refused("is a GPT2ForSequenceClassification, not a language model", Policy.load, scores, kind=LoadError)
        refused("is a GPT2LMHeadModel, not a classifier", RewardModel.load, folder, kind=LoadError)
        refused("not a language model", Policy.load, classifier(), tokenizer=tokenizer, kind=LoadError)
        refused("not a classifier", RewardModel.load, tiny_gpt2(), tokenizer=tokenizer, kind=LoadError)
        refused("Linear", Policy.load, torch.nn.Linear(2, 2), tokenizer=tokenizer)
        refused("is a whole model, no adapter; leave base out", Policy.load, folder, base=tiny_gpt2(), kind=LoadError)

    def test_different_shapes(self, tmp_path, folder, tokenizer):
        for other in (tiny_gpt2(n_layer=2), tiny_llama(), tiny_gpt2(n_head=2)):
            refused("compare a model with its own tuned version", interp.compare, folder, other, ["this"])

    def test_a_tokenizer_of_another_model(self, tmp_path, folder, tokenizer):
        from tests.interp.test_matched import other_ids

        other = save(tiny_gpt2(1), tmp_path / "other", other_ids(tokenizer))
        refused("differ from id", interp.compare, folder, other, ["this"], kind=TokenizerMismatch)
        (folder / "tokenizer.json").write_text("{")
        refused("cannot load the tokenizer", Policy.load, folder, kind=LoadError)

    @pytest.mark.parametrize("dtype", ["float8", "int8", 3, [], torch.int8, torch.complex64, ""])
    def test_odd_dtypes(self, folder, dtype):
        refused("dtype is float32, bfloat16, float16 or float64", Policy.load, folder, dtype=dtype, kind=LoadError)

    @pytest.mark.parametrize("device", ["tpu9", "cuda:99", "cup", "", 3.5, [], "meta"])
    def test_odd_devices(self, folder, device):
        refused("there is no device|holds no weights", Policy.load, folder, device=device, kind=LoadError)

    def test_odd_sources(self):
        for source, message in (
            ("", "names no folder"),
            ("a b", "neither a folder here nor a possible name on the hub"),
            ("-x", "neither a folder here"),
            ("a\0b", "names no folder"),
            ("~/no/such/folder", "there is no folder"),
            ("~nobody-here/model", "cannot be a folder"),
            ("x" * 10**6, "cannot be a folder|neither a folder"),
            (3, "a model is a folder, a hub id or a loaded module, not a int"),
            (["a", "b"], "not a list"),
        ):
            refused(message, Policy.load, source, kind=LoadError)

    def test_code_of_a_models_own(self, folder):
        change(folder / "config.json", model_type="mine", auto_map={"AutoConfig": "mine.MyConfig"})
        (folder / "mine.py").write_text("raise SystemExit('it ran')")
        refused("code of its own.*pass trust_remote_code=True", Policy.load, folder, kind=LoadError)


class TestDeviceMap:
    def test_it_gives_what_device_does(self, folder):
        plain = Policy.load(folder)
        for device_map in ("cpu", {"": "cpu"}, "auto"):
            policy = Policy.load(folder, device_map=device_map)
            got = compare(policy, plain, ["this movie was"], measures=["kl", "attribution", "lens"])
            assert float(got["kl"].max()) == 0

    def test_hooks_of_accelerate_do_no_harm(self, folder, tmp_path):
        from accelerate import dispatch_model

        from tests.interp.test_adapters import adapted, write

        model = load_model(folder)
        parts = {"transformer.wte": "cpu", "transformer.wpe": "cpu", "transformer.h.0": "cpu", "transformer.h.1": "cpu"}
        parts |= {"transformer.h.2": "cpu", "transformer.ln_f": "cpu", "lm_head": "cpu", "transformer.drop": "cpu"}
        spread = dispatch_model(model, parts, force_hooks=True)
        assert any(hasattr(module, "_hf_hook") for module in spread.modules())
        tokenizer = load_tokenizer(folder)
        cmp = compare(folder, spread, ["this movie was"], tokenizer=tokenizer, measures="all", max_new_tokens=2)
        assert float(cmp["kl"].max()) == 0
        theirs = adapted(tiny_gpt2, target_modules=["c_attn"])
        adapter = write(theirs, tmp_path / "a", base_model_name_or_path=str(folder))
        expected = compare(folder, adapter, ["this movie was"], measures=["kl"])
        got = compare(spread, adapter, ["this movie was"], tokenizer=tokenizer, measures=["kl"])
        np.testing.assert_allclose(got["kl"], expected["kl"], rtol=1e-4)
        assert float(got["kl"].max()) > 1e-3

    def test_refusals(self, folder, monkeypatch):
        refused("give one of them", Policy.load, folder, device="cpu", device_map="auto", kind=LoadError)
        refused("cannot load the weights", Policy.load, folder, device_map="everywhere", kind=LoadError)
        monkeypatch.setattr("interp.models.pretrained.find_spec", lambda name: None)
        refused(r"device_map needs the extra 'lora'", Policy.load, folder, device_map="auto", kind=MissingExtra)


class TestHub:
    @pytest.fixture
    def answer(self, monkeypatch, tmp_path):
        """Let the hub answer as the test says."""
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

        def answer(result):
            def info(self, name, **options):
                if isinstance(result, Exception):
                    raise result
                return result

            monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)

        return answer

    @staticmethod
    def error(kind):
        import httpx2

        return kind("no", response=httpx2.Response(404, request=httpx2.Request("GET", "https://huggingface.co")))

    def test_a_mistyped_folder_is_refused_at_once(self, answer):
        for error, reason in (
            (OSError("[Errno -2] Name or service not known"), "the hub cannot be reached"),
            (huggingface_hub.errors.OfflineModeIsEnabled("offline mode is enabled"), "switched off by HF_HUB_OFFLINE"),
        ):
            answer(error)
            start = time.monotonic()
            refused(f"there is no folder 'runs/x' here, and the hub {reason}|{reason}", Policy.load, "runs/x")
            refused("there is no folder 'runs/x' here", load_tokenizer, "runs/x")
            assert time.monotonic() - start < 1

    def test_what_the_hub_refuses(self, answer):
        errors = huggingface_hub.errors
        for kind, message in (
            (errors.RepositoryNotFoundError, "and no such model on the hub"),
            (errors.GatedRepoError, "accept the terms"),
            (errors.RevisionNotFoundError, "has no revision 'abc' on the hub"),
        ):
            answer(self.error(kind))
            refused(message, Policy.load, "runs/x@abc", kind=LoadError)

    def test_the_cache_serves_where_the_hub_does_not_answer(self, answer, tmp_path, folder, monkeypatch):
        snapshot = tmp_path / "cache" / "models--someone--small" / "snapshots" / "0123"
        snapshot.parent.mkdir(parents=True)
        folder.rename(snapshot)
        refs = snapshot.parents[1] / "refs"
        refs.mkdir()
        (refs / "main").write_text("0123")
        answer(OSError("no network"))
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        found = locate("someone/small")
        assert found.options == {"local_files_only": True} and found.name == "someone/small"
        assert locate("someone/small@0123").options == {"local_files_only": True, "revision": "0123"}
        refused("there is no folder 'someone/small' here", locate, "someone/small@other")

    def test_revisions(self, folder):
        assert split_revision("gpt2@main") == ("gpt2", "main") and split_revision("gpt2") == ("gpt2", None)
        assert split_revision("gpt2", "main") == split_revision("gpt2@main", "main") == ("gpt2", "main")
        assert describe_source("gpt2@main") == {"id": "gpt2", "revision": "main"}
        refused("names one revision", split_revision, "gpt2@main", "other")
        at = folder.rename(folder.with_name("model@home"))
        assert Policy.load(at).description["folder"] == str(at)


def test_a_description_tells_changed_weights_apart(folder, tmp_path):
    from interp.models.adapter_files import read_adapter
    from interp.models.adapters import with_adapter

    model = load_model(folder)
    first = describe_source(model)
    assert first == describe_source(load_model(folder)) and first["object"] == "GPT2LMHeadModel"
    from tests.interp.test_adapters import adapted, write

    theirs = adapted(tiny_gpt2, target_modules=["c_attn"])
    changed = with_adapter(model, read_adapter(write(theirs, tmp_path / "a")))
    assert describe_source(changed)["sha256"] != first["sha256"]


@pytest.mark.slow
def test_loading_holds_one_copy_of_the_weights_at_most(tmp_path):
    """Peak of the memory that is the process's own, for a model of 260 MB: nothing where the file is mapped."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=768, n_layer=4, vocab_size=48000))
    model.save_pretrained(tmp_path)
    size = sum(p.numel() * 4 for p in model.parameters()) / 2**20
    del model
    code = """
import sys, threading, torch
from interp.models import describe_source, load_model
from interp.models import Policy
def own():
    return int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1]) / 1024
load_model(sys.argv[1])  # what is imported on the way counts for nothing
start, peak, stop = own(), 0, threading.Event()
def watch():
    global peak
    while not stop.wait(0.002):
        peak = max(peak, own())
thread = threading.Thread(target=watch); thread.start()
model = load_model(sys.argv[1], dtype=None if sys.argv[2] == "None" else sys.argv[2])
describe_source(sys.argv[1]); describe_source(model)
stop.set(); thread.join()
print(peak - start)
"""
    for dtype, copies in (("None", 0), ("bfloat16", 0.5)):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), dtype], capture_output=True, text=True, cwd=ROOT, check=True
        )
        assert float(done.stdout) < (copies + 0.2) * size, dtype
