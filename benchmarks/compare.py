"""What compare() costs, in time and memory, each figure beside its limit.

    python benchmarks/compare.py                 everything (about 15 minutes on two quiet cores)
    python benchmarks/compare.py --only speed    speed, memory, one, or several of them
    python benchmarks/compare.py --json out.json
    python benchmarks/compare.py --quick         tiny sizes: that it runs, not how fast

speed   Two models of GPT-2-small's shape with random weights, 64 prompts of 32 tokens in batches of 16, two threads.
        The unit is the bare pair: both models' `model(input_ids, attention_mask, use_cache=False)` on the same
        batches under no_grad, on transformers' default kernel, with the logits of every position. Everything runs in
        one process, in turn, several times over; shown are the median of the ratios and their range. The whole
        default set is `run_measures` from texts to labelled arrays. Its parts are timed on one batch's traces each.
memory  Peak resident memory (VmHWM) of a process that compares stories3M with a changed copy on 500 and on 10,000
        prompts (INTERP_DATA, or ../shared/data beside the repository).
one     Peak resident memory of `in_memory="one"` on two models of 355 million parameters (float32, random weights,
        GPT-2-medium's shape), beside tracing one of them alone with the same sites and batches.

The limits hold on a machine that does nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

BATCH, SEQ, THREADS = 16, 32, 2
ANSWERS = (5, 9)
Row = dict[str, Any]


def word_tokenizer(vocab: int) -> Any:
    """One word a token: "t0", "t1" ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocab)}, unk_token="t0"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="t0", eos_token="t0")


def gpt2(seed: int, **changes: int) -> Any:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(**changes)).eval()


def small(quick: bool) -> dict[str, int]:
    return dict(n_layer=2, n_embd=32, n_head=2, vocab_size=300) if quick else {}


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


# speed


class Speed:
    """The models, the prompts, and the jobs that are timed."""

    def __init__(self, quick: bool) -> None:
        import torch

        from benchmarks import peer
        from interp.models import Policy
        from interp.prompts import Prompts

        torch.set_num_threads(THREADS)
        self.models = [gpt2(seed, **small(quick)) for seed in (0, 1)]
        vocab = self.models[0].config.vocab_size
        tokenizer = word_tokenizer(vocab)
        count = BATCH + 4 if quick else 64
        self.ids = torch.randint(vocab, (count, SEQ), generator=torch.Generator().manual_seed(0))
        texts = [" ".join(f"t{i}" for i in row) for row in self.ids.tolist()]
        self.prompts = Prompts(texts, answers=(f"t{ANSWERS[0]}", f"t{ANSWERS[1]}"))
        self.tokens = self.prompts.tokenize(tokenizer)
        self.policies = [Policy.load(model, tokenizer=tokenizer) for model in self.models]
        self.bridges: Any = None
        try:
            self.bridges = tuple(peer.boot(model, tokenizer) for model in self.models)
        except ImportError:
            print("no TransformerLens here (the extra 'lens'): its rows are left out", file=sys.stderr)

    def bare(self) -> None:
        import torch

        with torch.no_grad():
            for rows in self.ids.split(BATCH):
                for model in self.models:
                    model(input_ids=rows, attention_mask=torch.ones_like(rows), use_cache=False)

    def measures(self, names: Iterable[str]) -> None:
        from interp.measures import Settings
        from interp.measures.engine import run_measures
        from interp.sampling import Sampling

        settings = Settings(tuple(names), BATCH, 0, Sampling(1, 16))
        run_measures(self.policies[0], [self.policies[1]], self.prompts, settings)

    def parts(self, names: Iterable[str]) -> dict[str, float]:
        """Seconds of tracing with all sites, and of each measure by itself, on all prompts."""
        from interp.measures import measures

        chosen = {name: measures()[name] for name in names if measures()[name].per_batch is not None}
        sites = sorted({site for measure in chosen.values() for site in measure.needs.sites(self.policies[0])})
        taken = dict.fromkeys(["both traces", *chosen], 0.0)
        for batch in self.tokens.batches(BATCH):
            start = time.perf_counter()
            traces = [policy.trace(batch, sites) for policy in self.policies]
            taken["both traces"] += time.perf_counter() - start
            for name, measure in chosen.items():
                taken[name] += seconds(lambda: measure.per_batch(*traces))  # noqa: B023
        return taken

    def peer(self, *, cache_only: bool) -> None:
        from benchmarks import peer

        if not cache_only:
            peer.job(self.bridges, self.ids, ANSWERS, BATCH)
            return
        for rows in self.ids.split(BATCH):
            for bridge in self.bridges:
                bridge.run_with_cache(rows, prepend_bos=False, names_filter=lambda name: name.endswith(peer.SITES))


def speed(quick: bool, repeats: int) -> list[Row]:
    """Every job once a repeat, each beside its own repeat's bare pair."""
    from interp.measures import DEFAULT_MEASURES, MEASURES, measures

    bench = Speed(quick)
    alone = {one.name for one in measures().values() if not (one.needs.reward or one.needs.checkpoints)}
    extra = [name for name in MEASURES if name in alone and name not in DEFAULT_MEASURES]
    jobs: dict[str, Callable[[], Any]] = {"default set, whole": lambda: bench.measures(DEFAULT_MEASURES)}
    if bench.bridges:
        print("speed: TransformerLens beside it", file=sys.stderr)
        jobs["TransformerLens: both models run with the same sites cached"] = lambda: bench.peer(cache_only=True)
        jobs["TransformerLens: the nearest to the default set"] = lambda: bench.peer(cache_only=False)
    bare: list[float] = []
    found: dict[str, list[float]] = {}
    for repeat in range(repeats + 1):  # the first warms up
        print(f"speed: round {repeat} of {repeats}", file=sys.stderr)
        around = [seconds(bench.bare)]
        round_: dict[str, float] = {}
        for name, job in jobs.items():
            round_[name] = seconds(job)
            around.append(seconds(bench.bare))
        round_ |= {f"  of it: {name}": taken for name, taken in bench.parts(DEFAULT_MEASURES).items()}
        if repeat == repeats:
            round_ |= {f"by name: {name} alone": seconds(lambda: bench.measures([name])) for name in extra}  # noqa: B023
        around.append(seconds(bench.bare))
        if repeat:
            unit = statistics.median(around)
            bare += around
            for name, taken in round_.items():
                found.setdefault(name, []).append(taken / unit)
    rows = [_speed_row(name, values) for name, values in found.items()]
    middle = statistics.median(bare)
    return [
        {
            "what": "bare pair (the unit)",
            "figure": f"{middle:.2f} s",
            "limit": "",
            "range": f"{min(bare):.2f} to {max(bare):.2f} s",
        },
        *sorted(rows, key=lambda row: (row["what"].startswith("by name"), row["what"].startswith("Trans"))),
    ]


def _speed_row(name: str, ratios: list[float]) -> Row:
    limit = "1.4" if name.startswith("default") else ""
    figure = statistics.median(ratios)
    return {
        "what": name,
        "figure": f"{figure:.3f} x bare",
        "limit": limit,
        "range": f"{min(ratios):.3f} to {max(ratios):.3f}",
        "value": figure,
    }


# memory


def peak_mb() -> float:
    """Most resident memory that this process has had (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("the system does not tell VmHWM")


def data_folder() -> Path:
    return Path(os.environ.get("INTERP_DATA", ROOT.parent / "shared" / "data"))


LONGEST = 20  # tokens: peak memory is that of the longest batch, which must not depend on how many there are


def real_prompts(count: int, tokenizer: Any) -> list[str]:
    """Openings of 12 to 20 tokens out of stories and film reviews, all different."""
    files = [data_folder() / "tinystories" / "tinystories_train_head.txt", data_folder() / "imdb-sample" / "texts.csv"]
    words = " ".join(file.read_text(encoding="utf-8", errors="replace") for file in files if file.is_file()).split()
    step, found = 7, []
    for start in range(0, len(words) - 12, step):
        text = " ".join(words[start : start + 10])
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) >= 12:
            found.append(tokenizer.decode(ids[: LONGEST - 1]).strip())
    chosen = list(dict.fromkeys(found))[:count]
    if len(chosen) < count:
        raise SystemExit(f"{len(chosen)} different prompts of real text under {data_folder()}, {count} are needed")
    return chosen


def child_memory(folder: str, count: int) -> Row:
    """Compare on `count` prompts, in a process of its own."""
    import torch

    import interp
    from interp.models import Policy

    torch.set_num_threads(THREADS)
    assert interp.compare  # the library itself is loaded when a name of it is first used
    started = peak_mb()
    tuned = Policy.load(folder)
    prompts = interp.Prompts(real_prompts(count, tuned.tokenizer), answers=(" good", " bad"), multi_token="first")
    with torch.no_grad():
        tuned.model.model.layers[2].mlp.down_proj.weight.mul_(1.2)
    loaded = peak_mb()
    start = time.perf_counter()
    data = interp.compare(folder, tuned, prompts).dataset
    return {
        "started": started,
        "loaded": loaded,
        "peak": peak_mb(),
        "result": data.nbytes / 2**20,
        "tokens": float((data["tokens"] != "").sum("pos").mean()),
        "seconds": time.perf_counter() - start,
    }


def memory(quick: bool) -> list[Row]:
    folder = data_folder() / "stories3M-hf"
    if not folder.is_dir():
        print(f"memory: no {folder}; left out", file=sys.stderr)
        return []
    few, many = (20, 40) if quick else (500, 10_000)
    found = {count: in_child("memory", str(folder), count) for count in (few, many)}
    rows = [
        {
            "what": f"peak memory, default set on stories3M, {count} prompts of {each['tokens']:.0f} tokens",
            "figure": f"{each['peak']:.0f} MB",
            "limit": "",
            "range": f"libraries {each['started']:.0f} MB, with a model {each['loaded']:.0f} MB;"
            f" arrays of the result {each['result']:.1f} MB; {each['seconds']:.0f} s",
        }
        for count, each in found.items()
    ]
    ratio = found[many]["peak"] / found[few]["peak"]
    rows.append(
        {"what": f"the same, {many} over {few}", "figure": f"{ratio:.3f}", "limit": "1.1", "range": "", "value": ratio}
    )
    return rows


# one model in memory


def child_one(folder: str, how: str, quick: int) -> Row:
    """Trace one model alone, or compare two with one or all in memory, in a process of its own."""
    import torch

    import interp
    from interp.measures import DEFAULT_MEASURES, measures
    from interp.models import Policy

    torch.set_num_threads(THREADS)
    names = [*DEFAULT_MEASURES, "weights", "completions"] if how.endswith("weights") else list(DEFAULT_MEASURES)
    words = torch.randint(200, (BATCH + 8 if quick else 48, 16), generator=torch.Generator().manual_seed(0)).tolist()
    prompts = interp.Prompts([" ".join(f"t{i}" for i in row) for row in words], answers=("t5", "t9"))
    started, start = peak_mb(), time.perf_counter()
    if how == "alone":
        policy = Policy.load(f"{folder}/base")
        tokens = prompts.tokenize(policy.tokenizer)
        sites = {site for name in names for site in measures()[name].needs.sites(policy)}
        for batch in tokens.batches(BATCH):
            policy.trace(batch, sorted(sites))
        data = None
    else:
        pair = interp.load_pair(base=f"{folder}/base", tuned=f"{folder}/tuned", in_memory=how.split("-")[0])
        data = interp.compare(pair, prompts, measures=names, sampling=interp.Sampling(max_new_tokens=8)).dataset
    peak, taken = peak_mb(), time.perf_counter() - start
    total = float(sum(abs(data[name]).sum() for name in ("kl", "lens_kl", "head_attribution"))) if data else 0.0
    return {"started": started, "peak": peak, "seconds": taken, "check": total}


def one(quick: bool) -> list[Row]:
    shape = small(True) if quick else dict(n_layer=24, n_embd=1024, n_head=16)
    with tempfile.TemporaryDirectory(prefix="interp-bench-") as folder:
        for seed, name in enumerate(("base", "tuned")):
            model = gpt2(seed, **shape)
            model.save_pretrained(f"{folder}/{name}")
            word_tokenizer(model.config.vocab_size).save_pretrained(f"{folder}/{name}")
            del model
        hows = ("alone", "all", "one", "one-weights")
        found = {how: in_child("one", folder, how, int(quick)) for how in hows}
    labels = {
        "alone": "tracing one model of 355 M alone",
        "all": "default set, both models in memory",
        "one": 'default set, in_memory="one"',
        "one-weights": 'default set, weights and completions, in_memory="one"',
    }
    rows = []
    for how, each in found.items():
        ratio = each["peak"] / found["alone"]["peak"]
        limit = "1.15" if how.startswith("one") else ""
        rows.append(
            {
                "what": f"peak memory, {labels[how]}",
                "figure": f"{each['peak']:.0f} MB, {ratio:.3f} x alone",
                "limit": limit,
                "range": f"libraries {each['started']:.0f} MB; {each['seconds']:.0f} s",
                "value": ratio,
            }
        )
    if found["one"]["check"] != found["all"]["check"]:
        raise SystemExit("in_memory='one' gave other numbers than in_memory='all'")
    return rows


def in_child(name: str, *arguments: Any) -> Row:
    """Run one of the `child_` functions in a process of its own."""
    print(f"{name}: {' '.join(map(str, arguments[1:]))}", file=sys.stderr)
    command = [sys.executable, __file__, "--child", json.dumps([name, *arguments])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    result: Row = json.loads(done.stdout.splitlines()[-1])
    return result


def show(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False)
    for title in ("what", "figure", "limit", "range or detail"):
        table.add_column(title, justify="right" if title in ("figure", "limit") else "left")
    for row in rows:
        table.add_row(row["what"], row["figure"], row["limit"], row["range"])
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="speed,memory,one", help="which tables, separated by commas")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, *arguments = json.loads(options.child)
        print(json.dumps({"memory": child_memory, "one": child_one}[name](*arguments)))
        return
    wanted = options.only.split(",")
    rows: list[Row] = []
    if "speed" in wanted:
        rows += speed(options.quick, 1 if options.quick else options.repeats)
    if "memory" in wanted:
        rows += memory(options.quick)
    if "one" in wanted:
        rows += one(options.quick)
    show(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
