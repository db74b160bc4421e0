"""One model in memory at a time: the same numbers, a scratch file that goes, weights that leave and come back."""

import contextlib
import os
import resource
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import interp
from interp.errors import InterpError, LoadError
from interp.hooks import Site
from interp.measures import MEASURES, Settings
from interp.measures.engine import run_measures
from interp.models import Policy
from interp.models.offload import AllInMemory, OneInMemory, TraceFile, offloaded, pages_of
from interp.prompts import make_batch
from interp.sampling import Sampling
from tests.conftest import save, tiny_gpt2
from tests.interp.comparisons import compare
from tests.interp.traced import JOINED

TEXTS = """this movie was really|the plot was|great acting and a very boring film|fun|a film|the acting was very|
this plot was really""".replace("\n", "").split("|")
ANSWERS = (" bad", " good")


@pytest.fixture
def folders(make_model, tokenizer, tmp_path):
    return [save(make_model(seed), tmp_path / f"model{seed}", tokenizer) for seed in (1, 2, 3)]


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """The temporary folder of this test alone."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def open_files():
    """Files without a name that this process holds open."""
    found = []
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one by which this folder is read
            found.append(os.readlink(each))
    return sorted(name for name in found if name.endswith("(deleted)"))


def policies(folders):
    return [offloaded(Policy.load(folder), folder.name, sole=True) for folder in folders]


@pytest.mark.parametrize("scratch_bytes", [0, 2**30])
def test_traces_are_measured_the_same_in_any_number_of_chunks(folders, scratch_bytes, scratch):
    models = policies(folders)
    prompts = interp.Prompts(TEXTS, answers=ANSWERS)
    found = []
    for turns in (AllInMemory(), OneInMemory.of([each.model for each in models], scratch_bytes)):
        settings = Settings(("kl", "attribution"), 2, in_memory=turns)
        found.append(run_measures(models[0], models[1:], prompts, settings))
    for expected, got in zip(*found, strict=True):
        xr.testing.assert_identical(expected, got)


@pytest.mark.slow
def test_every_measure_is_the_same_bit_for_bit(folders, scratch, scratch_bytes=150_000):
    models = policies(folders)
    prompts = interp.Prompts(TEXTS, answers=ANSWERS, continuations=[" very bad"] * len(TEXTS), multi_token="sum")
    found, names = {}, tuple(name for name in MEASURES if name not in JOINED)
    for turns in (AllInMemory(), OneInMemory.of([each.model for each in models], scratch_bytes)):
        settings = Settings(names, 2, sampling=Sampling(2, 4), in_memory=turns)
        found[type(turns)] = run_measures(models[0], models[1:], prompts, settings)
    for expected, got in zip(found[AllInMemory], found[OneInMemory], strict=True):
        xr.testing.assert_identical(expected, got)
    assert not list(scratch.iterdir())


@pytest.mark.slow
def test_through_compare_with_a_null_run_a_replicate_and_a_reward(folders, tokenizer, scratch):
    from tests.interp.test_models import classifier

    scorer = interp.RewardModel.load(classifier(), tokenizer=tokenizer, label="POS")
    base, tuned, other = folders
    options = dict(measures="all", controls=[other], replicates=[other], reward=scorer, max_new_tokens=3, batch_size=3)
    both = [compare(base, tuned, TEXTS, in_memory=how, **options) for how in ("all", "one")]
    for expected, got in zip(*([c.dataset, *c.controls, *c.replicates] for c in both), strict=True):
        xr.testing.assert_identical(expected, got)


def test_how_many_batches_a_chunk_holds(folders):
    base, tuned = policies(folders[:2])
    seen = []

    class Watched(OneInMemory):
        def only(self, policy):
            seen.append(policy.model if policy is not None else None)
            super().only(policy)

    batches = [make_batch([[1, 2, 3]]) for _ in range(5)]
    with TraceFile() as file:
        file.write(base.trace(batches[0], []))
        size = file.size
    for limit, chunks in ((0, 5), (4 * size, 3), (10 * size, 1)):
        seen.clear()
        pairs = Watched.of([base.model, tuned.model], limit).pairs(base, [tuned], batches, [])
        assert [pair.number for pair in pairs] == list(range(5))
        assert seen.count(base.model) == seen.count(tuned.model) == chunks


class TestScratch:
    def test_what_is_read_is_what_was_written(self, make_model, tokenizer):
        policy = Policy.load(make_model(), tokenizer=tokenizer)
        sites = [Site("z", 1), Site("pattern", 0), Site("resid_post", 2), Site("mlp_post", 0)]
        traces = [policy.trace(make_batch(rows), sites) for rows in ([[1, 2, 3], [4]], [[5, 6]])]
        with TraceFile() as file:
            for trace in traces:
                file.write(trace)
            assert file.size == sum(t.logits.nbytes + sum(v.nbytes for v in t.activations.values()) for t in traces)
            for number in (1, 0):
                got, expected = file.read(number, policy), traces[number]
                assert torch.equal(got.logits, expected.logits) and list(got.activations) == sites
                for site in sites:
                    assert torch.equal(got[site], expected[site]) and got[site].dtype == expected[site].dtype

    def test_half_precision_survives(self, tokenizer):
        policy = Policy.load(tiny_gpt2().bfloat16(), tokenizer=tokenizer)
        trace = policy.trace(make_batch([[1, 2, 3]]), [Site("z", 0)])
        with TraceFile() as file:
            file.write(trace)
            assert torch.equal(file.read(0, policy)[Site("z", 0)], trace[Site("z", 0)])

    @pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
    def test_nothing_is_left_however_it_ends(self, folders, scratch, stop):
        base, tuned = policies(folders[:2])
        before = open_files()
        with pytest.raises(stop):
            for _ in OneInMemory.of([base.model, tuned.model]).pairs(base, [tuned], [make_batch([[1, 2]])] * 3, []):
                assert len(open_files()) > len(before) and not list(scratch.iterdir())
                raise stop
        assert open_files() == before and not list(scratch.iterdir())

    def test_a_full_disk_is_one_line(self, folders, scratch):
        """A limit on the size of files gives the error that a full disk gives, in the middle of a write."""
        base, tuned = folders[:2]
        old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, old[1]))
            with pytest.raises(
                InterpError, match=f"cannot write a scratch file in {scratch} .*; make room there"
            ) as at:
                compare(base, tuned, TEXTS, in_memory="one", measures=["kl"])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
            signal.signal(signal.SIGXFSZ, handler)
        assert "\n" not in str(at.value) and not list(scratch.iterdir())


def resident(policy):
    """Bytes of a model's weights that are in memory now, as the kernel counts them."""
    addresses = [each.data_ptr() for each in policy.model.parameters()]
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            start, end = (int(word, 16) for word in words[0].split("-"))
            inside = any(start <= address < end for address in addresses)
        elif words[0] == "Rss:" and inside:
            total += 1024 * int(words[1])
    return total


class TestMapped:
    @pytest.fixture
    def policy(self, tokenizer, tmp_path):
        model = tiny_gpt2(n_embd=128, n_layer=4)
        return Policy.load(save(model, tmp_path / "larger", tokenizer))

    def test_weights_leave_and_come_back(self, policy):
        expected = {name: value.clone() for name, value in policy.model.state_dict().items()}
        size = sum(each.nbytes for each in policy.model.parameters())
        assert resident(policy) > 0.9 * size
        pages = pages_of(policy.model)
        assert pages.share == 1
        pages.release()
        assert resident(policy) < 0.1 * size
        for name, value in policy.model.state_dict().items():
            assert torch.equal(value, expected[name]), name
        assert resident(policy) > 0.9 * size

    def test_what_somebody_wrote_stays(self, policy):
        with torch.no_grad():
            policy.model.transformer.h[2].mlp.c_fc.weight.fill_(7)
        pages = pages_of(policy.model)
        assert pages.share == 0
        pages.release()
        assert (policy.model.transformer.h[2].mlp.c_fc.weight == 7).all()

    def test_weights_of_another_dtype_are_mapped_from_a_copy(self, tokenizer, tmp_path, scratch):
        folder = save(tiny_gpt2().bfloat16(), tmp_path / "half", tokenizer)
        loaded = Policy.load(folder, dtype="float32")
        assert pages_of(loaded.model).share == 0
        policy = offloaded(loaded, "base", sole=True)
        assert (
            pages_of(policy.model).share == 1
            and policy.description == loaded.description
            and not list(scratch.iterdir())
        )
        for name, value in policy.model.state_dict().items():
            assert torch.equal(value, loaded.model.state_dict()[name])
        batch = make_batch([[1, 2, 3]])
        assert torch.equal(policy.trace(batch).logits, loaded.trace(batch).logits)

    def test_a_full_disk_is_one_line(self, tokenizer, monkeypatch):
        policy = Policy.load(tiny_gpt2(), tokenizer=tokenizer)

        def full(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(policy.model, "save_pretrained", full)
        with pytest.raises(InterpError, match="cannot write weights to .*the disk is full"):
            offloaded(policy, "base", sole=True)

    def test_a_loaded_module_is_refused(self, tokenizer, tmp_path):
        folder = tmp_path / "base"
        with pytest.raises(LoadError, match='in_memory="one" reads models from their files, tuned is a loaded GPT2LM'):
            compare(save(tiny_gpt2(), folder, tokenizer), tiny_gpt2(), TEXTS, in_memory="one")

    @pytest.mark.usefixtures("as_a_user")
    def test_another_word_is_refused(self, folders):
        with pytest.raises(LoadError, match='in_memory is "all" or "one", not \'two\''):
            compare(folders[0], folders[1], TEXTS, in_memory="two")


def test_progress_counts_to_the_end(make_model, tokenizer):
    told = []
    base, tuned, null = (Policy.load(make_model(seed), tokenizer=tokenizer) for seed in (1, 2, 3))
    options = dict(measures="all", batch_size=3, max_new_tokens=2, progress=lambda *event: told.append(event))
    compare(base, tuned, TEXTS, controls=[null], **options)
    assert [event for event in told if event[0] == "prompts"] == [("prompts", done, 6) for done in range(1, 7)]
    assert {event[0] for event in told} == {"prompts", "weights", "completions", "attention patterns"}
    assert all(0 <= done <= total for _, done, total in told)


def test_kept_examples_are_those_that_would_be_traced_again(make_model, tokenizer, monkeypatch):
    base, tuned = (Policy.load(make_model(seed), tokenizer=tokenizer) for seed in (1, 2))
    prompts = interp.Prompts(TEXTS, continuations=[" very bad film"] * len(TEXTS))
    kept = compare(base, tuned, prompts, measures=["attention"])["pattern"]
    monkeypatch.setattr("interp.measures.attention.KEPT_BYTES", 0)
    again = compare(base, tuned, prompts, measures=["attention"])["pattern"]
    small = compare(base, tuned, prompts, measures=["attention"], batch_size=1)["pattern"]
    for other in (again, small):
        assert other.dims == kept.dims and other.sizes == kept.sizes
        np.testing.assert_allclose(kept, other, atol=1e-5)
