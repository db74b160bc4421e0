"""The engine trlx, against the real trlX; where it is not installed, only what does not need it."""

import importlib.metadata
import importlib.util
import sys

import numpy as np
import peft
import pytest
import tiny
import torch

from interp.errors import ConfigError, InterpError, TrainingError
from training.evaluate import evaluate
from training.reward import Reward
from training.saving import prove, save
from training.trlx import compat, tune

INSTALLED = importlib.util.find_spec("trlx") is not None
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's call
needs_trlx = pytest.mark.skipif(not INSTALLED, reason=f"trlX is not installed ({compat.COMMAND})")
KINDS = pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])


def job(folder, kind="gpt2", **changes):
    changes["train"] = {"engine": "trlx"} | changes.get("train", {})
    return tiny.job(folder, kind, **changes)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_without_trlx_the_error_is_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InterpError) as error:
        tune(job(tmp_path))
    assert str(error.value) == f"the engine trlx needs trlX 0.7.0: {compat.COMMAND}"
    assert compat.COMMAND.startswith("pip install --no-deps git+https://github.com/CarperAI/trlx.git@")


def test_another_version_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.6.0")
    with pytest.raises(TrainingError, match=r"drives trlX 0\.7\.0, installed is trlX 0\.6\.0"):
        compat.load()


@needs_trlx
def test_nothing_is_left_of_the_stand_ins():
    compat.load()
    assert not {"deepspeed", "torchtyping", "ray", "ray.air"} & set(sys.modules)
    assert not hasattr(peft, "prepare_model_for_int8_training")


@needs_trlx
@KINDS
def test_it_trains_and_leaves_everything_else_as_it_was(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    work = job(tmp_path, kind)
    before, states = weights(work.base), (np.random.get_state()[1].tolist(), torch.get_rng_state())
    trainer = sys.modules.get("trlx.trainer.accelerate_base_trainer")
    names = {name: getattr(trainer, name) for name in ("AutoTokenizer", "get_git_tag")} if trainer else {}
    outcome = tune(work)
    assert outcome.steps == 8 and outcome.kl_at_step_0 == 0 and outcome.reached_kl is None
    assert type(outcome.model) is type(work.base) and not outcome.model.training
    after = weights(outcome.model)
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(before[name], value) for name, value in weights(work.base).items())
    assert outcome.model.generation_config.eos_token_id == [0, 1]
    assert not list(tmp_path.iterdir())
    assert np.random.get_state()[1].tolist() == states[0] and torch.equal(torch.get_rng_state(), states[1])
    assert all(getattr(trainer, name) is value for name, value in names.items())
    rows = work.watch.rows
    assert [row["step"] for row in rows] == [0, 4] and work.watch.steps == list(range(1, 9))
    assert rows[0]["kl"] == 0 < rows[1]["kl"] and rows[1]["kl"] != rows[1]["trlx_kl"] and rows[1]["retokenised"] == 0
    assert {"reward_mean", "reward_std", "entropy", "length", "distinct_2", "policy_loss", "value_loss"} <= set(rows[0])


@needs_trlx
@pytest.mark.parametrize("kind", ["gpt2", "t5"])
@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_what_it_returns_loads_again_as_it_is(tmp_path, kind, lora):
    work = job(tmp_path, kind, **({"model": {"lora": {"r": 2}}} if lora else {}))
    outcome = tune(work)
    assert isinstance(outcome.model, peft.PeftModel) is lora
    save(outcome.model, work.tokenizer, tmp_path / "tuned", base=str(tiny.base(tmp_path, kind)))
    prove(outcome.model, tmp_path / "tuned", torch.tensor([[4, 5, 6]]), base=work.base)


@needs_trlx
@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_the_same_seed_gives_the_same_bytes(tmp_path, kind):
    runs = [weights(tune(job(tmp_path, kind, train={"seed": seed})).model) for seed in (3, 3, 4)]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert any(not torch.equal(runs[0][name], runs[2][name]) for name in runs[0])


@needs_trlx
@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_blocks_before_the_unfrozen_ones_stay_as_they_were(tmp_path, kind):
    work = job(tmp_path, kind, model={"num_layers_unfrozen": 1})
    before, after = weights(work.base), weights(tune(work).model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    last = "transformer.h.1." if kind == "gpt2" else "decoder.block.1."
    assert any(name.startswith(last) for name in changed)
    assert not any("h.0." in name or "block.0." in name or name.startswith("encoder") for name in changed)
    assert not {"transformer.wte.weight", "transformer.wpe.weight", "shared.weight"} & changed


@needs_trlx
@KINDS
def test_outputs_keep_the_generated_ids_and_the_score_lies_on_the_last(tmp_path, monkeypatch, kind):
    """Under a tokenizer that spells its texts otherwise; responses have many lengths."""
    work = job(tmp_path, kind, ppo={"num_rollouts": 48, "chunk_size": 16, "init_kl_coef": 0.0})
    seen = []

    def look(trainer):
        trainer.make_experience(48, 0)
        seen.append((trainer.store.history, trainer.round))
        return False

    monkeypatch.setattr("training.trlx.engine._learn", look)
    monkeypatch.setattr(type(work.tokenizer), "decode", lambda self, ids, **options: "ok " * len(ids))
    tune(work)
    ((elements, made),) = seen
    begun = 1 if kind == "t5" else 0
    assert made.retokenised > 0 and len({len(ids) for ids in made.kept}) > 3
    for element, ids, score in zip(elements, made.kept, made.scores, strict=True):
        assert element.response_tensor[begun : begun + len(ids)].tolist() == ids
        assert not set(ids[:-1]) & {0, 1} and (len(ids) == 6 or ids[-1] in (0, 1))
        assert len(element.rewards) == len(element.values) == len(element.logprobs) == len(ids)
        assert element.rewards.tolist() == [0.0] * (len(ids) - 1) + [pytest.approx(score)]


@needs_trlx
def test_a_null_run_permutes_the_scores_of_a_batch(tmp_path, monkeypatch):
    found = {}
    for shuffle in (None, 5):
        work = job(tmp_path, shuffle=shuffle, ppo={"init_kl_coef": 0.0})

        def look(trainer, key=shuffle):
            trainer.make_experience(16, 0)
            found[key] = [round(float(element.rewards.sum()), 6) for element in trainer.store.history]
            return False

        monkeypatch.setattr("training.trlx.engine._learn", look)
        tune(work)
    assert found[None] != found[5]
    assert sorted(found[None][:8]) == sorted(found[5][:8]) and sorted(found[None][8:]) == sorted(found[5][8:])


@needs_trlx
def test_it_stops_at_a_kl_and_says_whether_it_was_reached(tmp_path):
    settings = {"train": {"total_steps": 40, "learning_rate": 1e-2}}
    stopped = job(tmp_path, stop_at_kl=0.02, **settings)
    outcome = tune(stopped)
    assert outcome.reached_kl is True and outcome.steps < 40
    assert stopped.watch.rows[-1]["kl"] >= 0.02 > stopped.watch.rows[-2]["kl"]
    assert tune(job(tmp_path, stop_at_kl=9.0)).reached_kl is False


@needs_trlx
def test_faults_end_in_one_line(tmp_path):
    constant = job(tmp_path, reward=lambda outputs, **others: [1.0] * len(outputs), train={"total_steps": 40})
    with pytest.raises(TrainingError, match="the reward is constant"):
        tune(constant)
    with pytest.raises(TrainingError, match="exceeds train.kl_limit"):
        tune(job(tmp_path, train={"total_steps": 200, "learning_rate": 1.0, "kl_limit": 0.5}))
    with pytest.raises(TrainingError, match="raised ZeroDivisionError"):
        tune(job(tmp_path, reward=lambda outputs, **others: [1 / 0]))


@needs_trlx
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"model_arch_type": "seq2seq"}}, "the base is causal"),
        ({"train": {"minibatch_size": 3}}, "multiple of train.minibatch_size"),
        ({"ppo": {"ref_mean": 1.0}}, "set both, or none"),
        ({"ppo": {"chunk_size": 1}, "shuffle": 1}, "permutes the scores of a batch"),
        ({"train": {"seq_length": 8}}, "leaves room for 2"),
    ],
)
def test_what_trlx_cannot_do_is_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        tune(job(tmp_path, **changes))


@needs_trlx
def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="in one process"):
        tune(job(tmp_path))


@needs_trlx
def test_backward_passes_in_parts_give_one_step(tmp_path, monkeypatch):
    """Responses of equal length: without whitening, a batch's loss is then the mean of its parts' losses."""
    found = []

    def look(trainer):
        trainer.make_experience(16, 0)
        method = trainer.config.method
        advantages = method.get_advantages_and_returns
        method.get_advantages_and_returns = lambda *given: advantages(*given, use_whitening=False)
        assert trainer.num_mb == 4
        parts = [trainer.loss(part)[0] for part in trainer.store.create_loader(4, shuffle=False)]
        trainer.num_mb = 1
        (whole,) = trainer.store.create_loader(16, shuffle=False)
        found.append((sum(parts).item(), trainer.loss(whole)[0].item()))
        return False

    monkeypatch.setattr("training.trlx.engine._learn", look)
    tune(job(tmp_path, train={"minibatch_size": 4, "batch_size": 16}, generate={"ignore_end": True}))
    assert found[0][0] == pytest.approx(found[0][1], rel=1e-5) and abs(found[0][1]) > 1e-3


@needs_trlx
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_it_learns_a_simple_reward(tmp_path, kind):
    learning = {
        "train": {"total_steps": 120, "batch_size": 64, "learning_rate": 3e-3},
        "ppo": {"num_rollouts": 128, "chunk_size": 128, "ppo_epochs": 2, "init_kl_coef": 0.02},
    }
    work = job(tmp_path, kind, **learning)
    outcome = tune(work)
    reward = Reward(tiny.share_of_good)
    base, tuned = (
        evaluate(model, work.base, work.sampler, list(work.prompts[:20]), reward, samples=8)
        for model in (work.base, outcome.model)
    )
    assert base.reward < 0.2 and tuned.reward > base.reward + 0.3 and 0 < tuned.kl < 3
