"""What training costs and yields: our own PPO beside trlX's PPO and TRL's GRPO and RLOO.

    python benchmarks/training.py                 everything (about 10 minutes on one quiet core)
    python benchmarks/training.py --engines native,trlx --models gpt2
    python benchmarks/training.py --json out.json
    python benchmarks/training.py --quick         few steps: that it runs, not how fast

A GPT-2 and a T5 of two layers and width 64 (vocabulary 64, random weights) learn to say one word, on one thread. Every
engine draws the same number of samples of at most 16 tokens from the same prompts, toward the same reward, with the
same learning rate, batches of 16 and the same weight of the KL penalty; native and trlX have every setting of PPO in
common (native does not clip the gradient here, as trlX cannot). Timed is `tune` as a run calls it, its set-up included:
samples over its seconds, on the clock and of the processor, in short runs of all engines in turn, five times over; a
ratio is that of two neighbours, and shown are the median and the range. Longer runs with three seeds give the rest:
reward and KL (exact, nats per response token), measured afterwards, in the same way for all, on samples of the tuned
model, and what PPO maximises, reward less the penalty's weight times the KL of a whole response; in brackets the range
over seeds.

The engine trlx drives an installed trlX 0.7.0; where there is none, its rows say "not installed". No online trainer of
TRL takes an encoder-decoder. The ratios hold on any machine that does nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

VOCAB, TOKENS, BATCH, LIMIT = 64, 16, 16, 1.5
PENALTY = 0.05  # reward per nat
SEEDS = (0, 1, 2)
SHORT = 3  # rounds of 128 samples in the runs that are timed
LABELS = {"native": "native PPO", "trlx": "trlX PPO", "grpo": "TRL GRPO", "rloo": "TRL RLOO"}
COLUMNS = ("what", "figure", "limit", "reward", "kl", "objective", "detail")
Row = dict[str, Any]


def word_tokenizer() -> Any:
    """One word a token: "w0", "w1" ...; the first ends a text, the second pads."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w2"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="w0", pad_token="w1", clean_up_tokenization_spaces=False
    )


def tiny(kind: str) -> Any:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    if kind == "gpt2":
        shape = dict(n_layer=2, n_embd=64, n_head=4, n_positions=64)
        config = GPT2Config(vocab_size=VOCAB, bos_token_id=0, eos_token_id=0, pad_token_id=1, **shape)
        return GPT2LMHeadModel(config).eval()
    shape = dict(num_layers=2, d_model=64, d_kv=16, d_ff=256, num_heads=4)
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=VOCAB, decoder_start_token_id=1, eos_token_id=0, pad_token_id=1, **shape)
    )
    with torch.no_grad():  # T5's own initial values are made for long training: the first samples would be one word
        model.shared.weight.mul_(0.3)
    return model.eval()


def reward(samples: list[str], prompts: list[str], outputs: list[str], **_: Any) -> list[float]:
    """A quarter for every "w7" in a response: beside the penalty, neither silence nor one word for ever pays best."""
    return [output.split().count("w7") / 4 for output in outputs]


def recipe(kind: str, name: str, seed: int, rounds: int) -> Any:
    """The recipe of one engine or algorithm; all draw 128 samples a round."""
    from training import RLHFConfig

    train: Row = {"seed": seed, "batch_size": BATCH, "learning_rate": 1e-3, "timings": False}
    values: Row = {
        "model": {"base": kind},
        "prompts": {"files": ["in memory"]},
        "generate": {"max_new_tokens": TOKENS},
        "train": train,
    }
    if name in ("native", "trlx"):
        train |= {"engine": name, "total_steps": rounds * 4 * 128 // BATCH}
        if name == "native":
            train["max_grad_norm"] = 1e9
        values["ppo"] = {"num_rollouts": 128, "chunk_size": 128, "ppo_epochs": 4, "init_kl_coef": PENALTY}
    else:
        train |= {"engine": "trl", "total_steps": rounds * 128 // BATCH}
        values[name] = {"num_generations": 8, "beta": PENALTY}
    return RLHFConfig.from_dict(values)


class Silent:
    """The `Watch` of a run that nobody watches."""

    def log(self, row: Any) -> None: ...

    def progress(self, event: Any) -> None: ...

    def stepped(self, step: int, model: Any) -> None: ...


def job(kind: str, name: str, seed: int, rounds: int, folder: Path) -> Any:
    from training.job import Job
    from training.reward import Reward
    from training.rollouts import Sampler

    config, base, tokenizer = recipe(kind, name, seed, rounds), tiny(kind).requires_grad_(False), word_tokenizer()
    sampler = Sampler(base, tokenizer, config.generate, seed)
    prompts = tuple(f"w{i} w{j} w{i + j} w3" for i in range(8, 24) for j in range(8, 24))
    return Job(config, base, tokenizer, sampler, prompts, Reward(reward), folder, Silent())


def measure(kind: str, name: str, seed: int, rounds: int) -> Row | None:
    """One run: its seconds, and the tuned model's reward and KL; None where the engine is not installed."""
    from interp.errors import MissingExtra
    from training.evaluate import evaluate
    from training.job import engine

    with tempfile.TemporaryDirectory(prefix="interp-bench-") as folder:
        work = job(kind, name, seed, rounds, Path(folder))
        wall, processor = time.perf_counter(), time.process_time()
        try:
            outcome = engine(work.config.train.engine)(work)
        except MissingExtra:
            return None
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
    result = evaluate(outcome.model, work.base, work.sampler, work.prompts[:64], work.reward, samples=4)
    value = result.reward - PENALTY * result.kl * result.length
    return {
        "wall": wall,
        "processor": processor,
        "steps": outcome.steps,
        "reward": result.reward,
        "kl": result.kl,
        "objective": value,
    }


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(kind: str, names: list[str], rounds: int, seeds: tuple[int, ...], turns: int) -> list[Row]:
    """The rows of one model."""
    print(f"{kind}: {', '.join(names)} warm up", file=sys.stderr)
    present = [name for name in names if measure(kind, name, 0, 1) is not None]
    runs: dict[str, list[Row]] = {name: [] for name in names}
    short: dict[str, list[Row]] = {name: [] for name in names}
    for turn in range(turns):
        print(f"{kind}: speed, turn {turn + 1} of {turns}", file=sys.stderr)
        for name in present:
            short[name].append(_present(measure(kind, name, 0, SHORT)))
    for seed in seeds:
        for name in present:
            print(f"{kind}: {name}, seed {seed}", file=sys.stderr)
            runs[name].append(_present(measure(kind, name, seed, rounds)))
    rows = [_row(kind, name, short[name], runs[name], rounds * 128) for name in names]
    if "native" in names and "trlx" in names:
        rows += [_ratio(kind, short["native"], short["trlx"], clock) for clock in ("wall", "processor")]
    return rows


def _present(found: Row | None) -> Row:
    assert found is not None
    return found


def _row(kind: str, name: str, short: list[Row], runs: list[Row], samples: int) -> Row:
    what = f"{kind}: {LABELS[name]}"
    if not runs:
        return _absent(what)
    rates = [SHORT * 128 / run["wall"] for run in short]
    busy = [SHORT * 128 / run["processor"] for run in short]
    return {
        "what": what,
        "figure": f"{statistics.median(rates):.0f} samples/s",
        "limit": "",
        "reward": spread([run["reward"] for run in runs], 3),
        "kl": spread([run["kl"] for run in runs], 3),
        "objective": spread([run["objective"] for run in runs], 3),
        "detail": f"{statistics.median(busy):.0f} by processor time; trained on {samples} samples",
        "value": statistics.median(rates),
        "runs": runs,
    }


def _absent(what: str) -> Row:
    return {**dict.fromkeys(COLUMNS, ""), "what": what, "figure": "not installed"}


def _ratio(kind: str, native: list[Row], theirs: list[Row], clock: str) -> Row:
    what = f"{kind}: native over trlX, {'clock' if clock == 'wall' else 'processor'}"
    row = {**_absent(what), "limit": str(LIMIT)}
    if native and theirs:
        ratios = [b[clock] / a[clock] for a, b in zip(native, theirs, strict=True)]
        row |= {"figure": f"{statistics.median(ratios):.2f} x", "value": statistics.median(ratios)}
        row["detail"] = f"{min(ratios):.2f} to {max(ratios):.2f} over turns"
    return row


def show(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(show_edge=False, pad_edge=False)
    for title in COLUMNS:
        shown.add_column(title, justify="right" if title in ("figure", "limit") else "left")
    for row in rows:
        shown.add_row(*(row[title] for title in COLUMNS))
    Console(width=None if sys.stdout.isatty() else 190).print(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default=",".join(LABELS), help="which engines, separated by commas")
    parser.add_argument("--models", default="gpt2,t5", help="which models, separated by commas")
    parser.add_argument("--quick", action="store_true", help="one round, one seed")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    rounds, seeds, turns = (1, SEEDS[:1], 1) if options.quick else (20, SEEDS, 5)
    rows: list[Row] = []
    for kind in options.models.split(","):
        names = [name for name in options.engines.split(",") if kind == "gpt2" or name in ("native", "trlx")]
        rows += table(kind, names, rounds, seeds, turns)
    show(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
