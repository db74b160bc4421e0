"""What a sweep's analysis costs, beside comparing each pair by itself.

    python benchmarks/sweep.py              28 pairs of stories3M (about 15 minutes; INTERP_DATA, or ../shared/data)
    python benchmarks/sweep.py --quick      tiny sizes: that it runs, not how fast
    python benchmarks/sweep.py --json out.json

28 distinct copies of the base, each with noise of its own on all weights, are compared with it: together by
`interp.compare_many`, and each by itself by `interp.compare`. Both load base from its folder, nothing is kept between
calls, and a batch has as many prompts as in the sweep. The sweep's analysis is the measures that it takes (completions
and weights too) and every model's circuit, base's once, or once a pair. Of the measures alone the largest part is what
cannot be shared: sampling from tuned, tracing it three times, and tracing base on tuned's samples. The unit is
processor time of this process on one thread, in turn, several times over; shown are the median of the ratios and their
range. Both must give the same numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

LIMIT = 0.6
Row = dict[str, Any]


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    found = run()
    return time.process_time() - start, found


def changed(folder: str, seed: int) -> Any:
    """A copy of the model with noise on every weight."""
    import torch

    from interp.models import load_model

    model = load_model(folder)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * parameter.std() * torch.randn(parameter.shape, generator=noise))
    return model


def tiny(folder: str) -> str:
    from benchmarks.compare import gpt2, small, word_tokenizer

    gpt2(0, **small(True)).save_pretrained(folder)
    word_tokenizer(300).save_pretrained(folder)
    return folder


def measure(folder: str, texts: list[str], circuit: Any, pairs: int, repeats: int) -> list[Row]:
    """The ratio for the default measures, for the sweep's, and for the sweep's with circuits."""
    import torch

    import interp
    from analyses.sweep.work import measures

    torch.set_num_threads(1)
    tokenizer = interp.Policy.load(folder).tokenizer
    models = {f"pair {seed}": changed(folder, seed) for seed in range(pairs)}
    prompts = interp.Prompts(texts)
    default = [name for name in interp.DEFAULT_MEASURES if name != "logit_diff"]
    sets = {name: _options(own) for name, own in (("default set", default), ("the sweep's set", measures()))}
    times: dict[str, list[tuple[float, float]]] = {}
    for options in sets.values():
        interp.compare(folder, models["pair 0"], prompts, **options)  # warms up
    for repeat in range(repeats):
        print(f"round {repeat + 1} of {repeats}", file=sys.stderr)
        for name, options in sets.items():
            many, found = seconds(lambda options=options: interp.compare_many(folder, models, prompts, **options))
            each, differ = 0.0, []
            for pair, model in models.items():
                spent, alone = seconds(lambda m=model, options=options: interp.compare(folder, m, prompts, **options))
                each += spent
                differ += [] if found[pair].dataset.identical(alone.dataset) else [pair]
            if differ:
                raise SystemExit(f"compare_many gave other numbers than compare for {differ[0]}")
            times.setdefault(name, []).append((many, each))
        # Base's circuit is computed once, or for every pair; it is the same work, so it is timed for every pair.
        of_base = [seconds(lambda: circuits(folder, circuit, tokenizer))[0] for _ in models]
        of_tuned = sum(seconds(lambda m=model: circuits(m, circuit, tokenizer))[0] for model in models.values())
        many, each = times["the sweep's set"][-1]
        both = (many + statistics.mean(of_base) + of_tuned, each + sum(of_base) + of_tuned)
        times.setdefault("the sweep's analysis: its set, and circuits", []).append(both)
    return [_row(name, pairs, len(texts), found) for name, found in times.items()]


def circuits(model: Any, prompts: Any, tokenizer: Any) -> Any:
    from interp.circuits import edge_attribution
    from interp.models import Policy

    return edge_attribution(Policy.load(model, tokenizer=tokenizer), prompts, "kl")


def _options(measures: list[str]) -> dict[str, Any]:
    from analyses.sweep.work import BATCH

    return {"measures": measures, "batch_size": BATCH}


def _row(name: str, pairs: int, texts: int, times: list[tuple[float, float]]) -> Row:
    ratios = [many / each for many, each in times]
    middle = statistics.median(ratios)
    return {
        "what": f"{pairs} pairs together over each by itself, {name}",
        "figure": f"{middle:.3f}",
        "limit": str(LIMIT),
        "range": f"{min(ratios):.3f} to {max(ratios):.3f}; {times[-1][0]:.1f} s and {times[-1][1]:.1f} s of processor,"
        f" {texts} prompts; the same numbers",
        "value": middle,
    }


def main() -> None:
    from benchmarks.compare import data_folder, real_prompts, show

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=28)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    options = parser.parse_args()
    if options.quick:
        with tempfile.TemporaryDirectory(prefix="interp-bench-") as folder:
            texts = [" ".join(f"t{(7 * row + i) % 300}" for i in range(8)) for row in range(12)]
            from interp import Prompts

            turned = [" ".join(text.split()[::-1]) for text in texts[1:5]]
            rows = measure(tiny(folder), texts, Prompts(texts[1:5], corrupted=turned), 4, 1)
    else:
        folder = str(data_folder() / "stories3M-hf")
        if not Path(folder).is_dir():
            raise SystemExit(f"no {folder}; set INTERP_DATA, or pass --quick")
        from interp import Policy, Prompts

        texts = real_prompts(options.prompts, Policy.load(folder).tokenizer)
        pairs_of_prompts = Prompts.from_file(ROOT / "training" / "recipes" / "emotion_pairs.csv")
        rows = measure(folder, texts, pairs_of_prompts, options.pairs, options.repeats)
    show(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
